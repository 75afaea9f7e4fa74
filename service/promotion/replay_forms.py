"""A replay in the forms that people and pipelines read: text, JSON, and Markdown for a pull request's comment."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

from service.promotion.replaying import Again, Replay, State

FORMS = ("text", "markdown", "json")
_MAX_ROWS = 50
_MAX_RULES = 5
_MAX_NAME = 80
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_Row = tuple[int, Again]
"""How often, and the last of them."""


def render(replay: Replay, form: str) -> str:
    """Give *replay* in one of `FORMS`."""
    if form == "json":
        return _json(replay)
    return _markdown(replay) if form == "markdown" else _text(replay)


def _json(replay: Replay) -> str:
    document = {
        "environments": replay.environments,
        "since": replay.since,
        "until": replay.until,
        "judged": _judged(replay),
        **{state.value: count for state, count in replay.counts.items()},
        "rules_not_known": [
            {"rule": rule, "facts": list(facts), "count": count} for (rule, facts), count in replay.unknown.items()
        ],
        "promotions": [item.document() for item in replay.items],
    }
    return json.dumps(document, indent=2) + "\n"


def _text(replay: Replay) -> str:
    lines = [f"since {replay.since} until {replay.until}, by {_printable(replay.environments)}:", _summary(replay)]
    for title, state in (("would be refused now", State.REFUSED), ("would be let in now", State.ADMITTED)):
        rows = _rows(replay.of(state))
        if rows:
            lines += ["", f"{title}:"]
        for count, item in rows:
            past = item.past
            times = f" ({count} times)" if count > 1 else ""
            what = f"{past.registry}/{past.model} {past.version} -> {past.environment}"
            lines.append(_printable(f"  {past.time}  {what}  {past.purpose.value} by {past.by}{times}"))
            lines.append(_printable(f"      {', '.join(item.rules) or 'rules that the event does not name'}"))
    lines += [""] * bool(replay.unknown or replay.unjudged)
    lines += [
        _printable(f"not known then: {rule} ({', '.join(facts)}), {_times(count)}")
        for (rule, facts), count in replay.unknown.items()
    ]
    lines += [_printable(f"cannot be judged: {because}, {_times(count)}") for because, count in replay.unjudged.items()]
    return "\n".join(lines) + "\n"


def _markdown(replay: Replay) -> str:
    lines = [
        f"### Promotions since {replay.since[:10]}, judged again by {_code(replay.environments)}",
        "",
        _summary(replay, strong="**"),
    ]
    rows = _rows(replay.of(State.REFUSED, State.ADMITTED))
    if rows:
        lines += [
            "",
            "| now | rules | environment | model | version | purpose | by | last | times |",
            "|---|---|---|---|---|---|---|---|--:|",
        ]
        lines += [_table_row(*row) for row in rows[:_MAX_ROWS]]
    if len(rows) > _MAX_ROWS:
        lines += ["", f"And {len(rows) - _MAX_ROWS} more; `--format json` lists all."]
    notes = [
        f"- Not known then: {_code(rule)} ({_codes(facts)}), {_times(count)}."
        for (rule, facts), count in replay.unknown.items()
    ]
    notes += [f"- Cannot be judged: {_code(because)}, {_times(count)}." for because, count in replay.unjudged.items()]
    lines += ["", *notes[:_MAX_ROWS]] if notes else []
    return "\n".join(lines) + "\n"


def _table_row(count: int, item: Again) -> str:
    past = item.past
    now = "❌ refused" if item.state is State.REFUSED else "✅ let in"
    cells = (
        now,
        _codes(item.rules) or "not named in the event",
        _code(past.environment),
        _code(f"{past.registry}/{past.model}"),
        _code(past.version),
        past.purpose.value,
        _code(past.by),
        past.time[:16].replace("T", " "),
        str(count),
    )
    return f"| {' | '.join(cells)} |"


def _judged(replay: Replay) -> int:
    counts = replay.counts
    return counts[State.SAME] + counts[State.REFUSED] + counts[State.ADMITTED]


def _summary(replay: Replay, strong: str = "") -> str:
    counts = replay.counts
    if not replay.items:
        return "Nothing was promoted or refused in this time."
    parts = [
        f"{_judged(replay)} judged: {counts[State.SAME]} the same",
        f"{strong}{counts[State.REFUSED]} would be refused now{strong}",
        f"{strong}{counts[State.ADMITTED]} would be let in now{strong}",
    ]
    others = [
        f"{counts[state]} {what}"
        for state, what in (
            (State.NOT_KNOWN, "rest on a fact that was not known then"),
            (State.NOT_JUDGED, "cannot be judged"),
        )
        if counts[state]
    ]
    return "; ".join([", ".join(parts), *others]) + "."


def _rows(items: Sequence[Again]) -> list[_Row]:
    """Put together what a pipeline asked again and again; the newest first."""
    rows: dict[tuple[object, ...], _Row] = {}
    for item in items:
        past = item.past
        where = (past.registry, past.model, past.version, past.environment, past.purpose, past.by)
        key = (item.state, item.rules, *where)
        count, _ = rows.pop(key, (0, item))
        rows[key] = (count + 1, item)
    newest = list(rows.values())[::-1]
    return sorted(newest, key=lambda row: row[1].state is State.ADMITTED)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _printable(text: str) -> str:
    """Replace what moves a cursor, turns the direction of writing, or begins a line."""
    return "".join("\ufffd" if unicodedata.category(letter) in _UNPRINTABLE else letter for letter in text)


def _codes(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_RULES} more" if len(names) > _MAX_RULES else ""
    return ", ".join(_code(name) for name in names[:_MAX_RULES]) + more


def _code(text: str) -> str:
    """Write a name as code, where no link, mention, reference or markup begins; it cannot end the code or the cell.

    A backtick and a pipe are replaced, not escaped: renderers differ in how they read a backslash before a pipe.
    """
    cut = text if len(text) <= _MAX_NAME else text[:_MAX_NAME] + "…"
    plain = _printable(cut).replace("`", "'").replace("|", "\u00a6").strip()
    return f"`{plain or '-'}`"
