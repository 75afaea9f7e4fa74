"""What enforcement would refuse: who, what, how often, and the row that would allow it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from service.estates.forms import code, printable, table
from service.estates.history import Past
from service.estates.rows import row


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that enforcement would refuse one principal."""

    registry: str
    subject: str
    action: str
    resource: str
    """Ends in ``*`` where it is about many names that a search shows."""
    denied_by: str
    """The row that denies it, or nothing where no row allows it."""
    count: int = 0
    first: str = ""
    last: str = ""

    @property
    def remedy(self) -> str:
        """Say what would allow it."""
        if self.denied_by:
            return f"take out or narrow {self.denied_by}"
        if "*" in self.resource:
            return "rows for the names that it should see"
        return row("p", self.subject, self.registry, self.resource, self.action, "allow")


def refusals(past: Iterable[Past]) -> list[Refusal]:
    """Sum what would have been refused, most often first."""
    sums: dict[Refusal, Refusal] = {}
    for item in past:
        for denial in item.denials:
            key = Refusal(item.registry, item.subject, denial.action, denial.resource, denial.row)
            known = sums.get(key, key)
            first = min(known.first or item.time, item.time)
            last = max(known.last, item.time)
            sums[key] = dataclasses.replace(known, count=known.count + item.asked, first=first, last=last)
    return sorted(sums.values(), key=lambda item: (-item.count, dataclasses.astuple(item)))


def render(found: list[Refusal], form: str) -> str:
    """Give *found* as text, Markdown or JSON."""
    if form == "json":
        rows = [{**dataclasses.asdict(item), "remedy": item.remedy} for item in found]
        return json.dumps({"would_deny": rows}, indent=2) + "\n"
    if not found:
        return "Enforcement would have refused nothing.\n"
    total = sum(item.count for item in found)
    people = len({item.subject for item in found})
    head = f"Enforcement would have denied {total} of what {people} principal{'s' if people > 1 else ''} asked."
    if form == "markdown":
        cells = [
            (
                code(item.subject),
                code(item.action),
                code(f"{item.registry}/{item.resource}"),
                str(item.count),
                item.last[:16].replace("T", " "),
                code(item.denied_by) if item.denied_by else "no row",
                code(item.remedy),
            )
            for item in found
        ]
        names = ("who", "action", "resource", "times", "last", "denied by", "what would allow it")
        return f"{head}\n\n{table(names, cells)}"
    lines = [head, ""]
    for item in found:
        why = f"denied by {item.denied_by}" if item.denied_by else "no row allows it"
        lines.append(
            printable(f"{item.count:>6}  {item.subject}  {item.action} on {item.registry}/{item.resource}: {why}")
        )
        lines.append(printable(f"        last {item.last}; {item.remedy}"))
    return "\n".join(lines) + "\n"
