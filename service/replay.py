"""Judges past promotions again under changed rules, from the journal: what would differ."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from service.errors import BadConfiguration
from service.journal.past import Past as PastEvents
from service.promotion.environments import Environments, load_environments
from service.promotion.gate import Environment, Purpose, matches
from service.promotion.keeping import restore
from service.promotion.replaying import Again, Past, Replay, State, judge_again
from service.promotion.schedule import parse_duration
from service.records import Capabilities
from service.settings import Configuration

_ALL = Capabilities(aliases=True, stages=True, tags=True)
_NO_FACTS = "no facts were kept"
_NO_ENVIRONMENT = "no environment of this name has the model"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Which promotions to judge, and by what."""

    environments: Path | None = None
    """The file with the new rules; None for the configured one."""
    since: str = "30d"
    until: str | None = None
    environment: str | None = None
    model: str = "*"
    """Exact, or a prefix followed by ``*``."""


def replay(configuration: Configuration, asked: Asked) -> Replay:
    """Judge again what *asked* names. The journal is only read.

    Raises:
        BadConfiguration: a file, the journal or an argument is wrong; nothing was judged.
    """
    now = time.time()
    since = moment(asked.since, now, "--since")
    until = moment(asked.until, now, "--until") if asked.until is not None else now
    if since >= until:
        message = "--since: it is not before --until"
        raise BadConfiguration(message)
    if "*" in asked.model[:-1] or not asked.model:
        message = f"--model: {asked.model!r} is neither a name nor a prefix that ends in *"
        raise BadConfiguration(message)
    file = _file(configuration, asked)
    loaded = load_environments(file, dict.fromkeys(configuration.settings.registries, _ALL))
    names = list(dict.fromkeys(item.name for item in loaded))
    if asked.environment is not None and asked.environment not in names:
        message = f"--environment: {file} has none named {asked.environment!r}; it has: {', '.join(names) or 'none'}"
        raise BadConfiguration(message)
    journal = PastEvents(configuration.journal_url())
    judge = _Judge(Environments(loaded), journal)
    items = tuple(judge.all(since, until, asked))
    return Replay(file.name, _said(since), _said(until), items, journal.pruned(since))


class _Judge:
    """Finds the environment and the facts of each past promotion."""

    def __init__(self, environments: Environments, journal: PastEvents) -> None:
        self._environments = environments
        self._journal = journal
        self._environment = cache(self._find)

    def all(self, since: float, until: float, asked: Asked) -> Iterator[Again]:
        for event in self._journal.events(since, until):
            try:
                pasts = list(_pasts(event))
            except (KeyError, TypeError, AttributeError, ValueError):
                message = f"the event {event.get('id')!r} has another shape than this version reads"
                raise BadConfiguration(message) from None
            for past, kept in pasts:
                if asked.environment in (None, past.environment) and matches(asked.model, past.model):
                    yield self._again(past, kept)

    def _again(self, past: Past, kept: Mapping[str, Any] | None) -> Again:
        environment = self._environment(past.registry, past.model, past.environment, past.purpose)
        if environment is None:
            return Again(past, State.NOT_JUDGED, because=_NO_ENVIRONMENT)
        document = self._journal.facts(str(kept["digest"])) if kept else None
        if kept is None or document is None:
            return Again(past, State.NOT_JUDGED, because=_NO_FACTS)
        try:
            facts = restore(document, str(kept["digest"]), float(kept["at"]))
        except ValueError as error:
            return Again(past, State.NOT_JUDGED, because=str(error))
        return judge_again(dataclasses.replace(past, version=facts.candidate.version.version), environment, facts)

    def _find(self, registry: str, model: str, name: str, purpose: Purpose) -> Environment | None:
        found = self._environments.get(registry, model, name)
        return None if found is None else found.judging(purpose)


def _pasts(event: Mapping[str, Any]) -> Iterator[tuple[Past, Mapping[str, Any] | None]]:
    """List what an event judged, each with where its facts are; a rename is judged for several environments."""
    data = event["data"]
    change = data["change"] or {}
    renamed = change.get("kind") == "ModelRename"
    verdicts = data.get("verdicts") or {data["environment"]: data["verdict"]}
    for name, verdict in verdicts.items():
        if verdict:
            kept = data.get("facts", {}).get(name)
            past = Past(
                operation=data["operation"],
                time=event["time"],
                registry=data["registry"],
                model=change["new_name"] if renamed else data["model"],
                version=data["version"] or "",
                environment=name,
                purpose=Purpose(change.get("purpose", "promotion")),
                by=data["actor"]["subject"],
                allowed=verdict["allowed"],
                closing=tuple(item["rule"] for item in verdict["findings"] if _closed(item)),
                approved_under=str((kept or {}).get("approved_under", "")),
                nothing_live=renamed or data["before"] == {"version": None},
            )
            yield past, kept


def _closed(finding: Mapping[str, Any]) -> bool:
    return not finding["passed"] and finding.get("severity", "block") == "block" and not finding.get("waived")


def _file(configuration: Configuration, asked: Asked) -> Path:
    if asked.environments is not None:
        return asked.environments.absolute()
    configured = configuration.settings.environments
    if configured is None:
        message = "no environments are configured; --environments names the file with the new rules"
        raise BadConfiguration(message)
    return configuration.path(configured)


def moment(text: str, now: float, option: str) -> float:
    """Read ``30d`` as that long ago, or a time; one without a zone is UTC.

    Raises:
        BadConfiguration: it is neither; *option* names it.
    """
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"{option}: {text!r} is neither a duration such as 30d nor a time such as 2026-11-01T12:00:00Z"
        raise BadConfiguration(message) from None


def _said(moment: float) -> str:
    return datetime.fromtimestamp(max(moment, 0.0), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
