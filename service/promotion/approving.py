"""Which approvals count: newest of each person, in force, bound to what was seen, and by nobody concerned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.records import Approval, Evidence


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many people of a group must approve."""

    group: str
    count: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What an approval is bound to, as it is now."""

    environment: str
    rules_digest: str
    artifact_digest: str | None
    incumbent: str | None
    """The binding of what is live, ``""`` for nothing; None where nobody looked."""
    now: float
    expire_after: float | None = None
    review_needed: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """The decisions about a version, sorted by whether they count."""

    approvals: tuple[Approval, ...]
    vetoes: tuple[Approval, ...]
    stale: tuple[tuple[Approval, str], ...]
    """Those that do not count, each with the reason."""


def judge_approvals(approvals: Sequence[Approval], concerned: frozenset[str], seen: Seen) -> Judged:
    """Sort the newest decision of each person; nobody in *concerned* approves (a veto is everybody's right)."""
    counted: list[Approval] = []
    vetoes: list[Approval] = []
    stale: list[tuple[Approval, str]] = []
    for item in _newest(approvals, seen.environment):
        expired = _expired(item, seen)
        if item.decision == "reject":
            if item.expires is None or item.expires > seen.now:  # a no holds whatever changes, until it is taken back
                vetoes.append(item)
            continue
        because = expired or _moved(item, seen)
        if not because and concerned & {item.by, *item.persons}:
            because = "its author registered, evidenced or asked to promote the version"
        if because:
            stale.append((item, because))
        else:
            counted.append(item)
    return Judged(tuple(counted), tuple(vetoes), tuple(stale))


def _newest(approvals: Sequence[Approval], environment: str) -> Iterable[Approval]:
    newest: dict[str, Approval] = {}
    for item in approvals:
        if item.environment == environment and not item.revoked:
            newest[item.by] = item
    return newest.values()


def _expired(item: Approval, seen: Seen) -> str:
    if item.expires is not None and item.expires <= seen.now:
        return "it has expired"
    if seen.expire_after is not None and item.at + seen.expire_after <= seen.now:
        return "it is older than the environment accepts"
    return ""


def _moved(item: Approval, seen: Seen) -> str:
    if item.rules_digest != seen.rules_digest:
        return "the rules have changed since"
    if item.artifact_digest != seen.artifact_digest:
        return "the files are not those it was given for"
    if item.incumbent is not None and seen.incumbent is not None and item.incumbent != seen.incumbent:
        return "another version is live than then"
    if seen.review_needed and not item.review:
        return "it names no review"
    return ""


def concerned_in(registrants: Iterable[str], evidence: Iterable[Evidence], askers: Iterable[str]) -> frozenset[str]:
    """Name everyone who registered a version, posted evidence about it or asks to promote it."""
    posters = {person for item in evidence for person in (item.by, *item.persons)}
    return frozenset({*registrants, *posters, *askers})


def missing_of(quorum: Quorum, approvals: Sequence[Approval]) -> int:
    """Return how many approvals of the group are still needed; identities of one person count once."""
    people: list[set[str]] = []
    for item in approvals:
        if quorum.group not in item.groups:
            continue
        who = {item.by, *item.persons}
        same = [other for other in people if other & who]
        people = [other for other in people if not other & who]
        people.append(who.union(*same))
    return max(0, quorum.count - len(people))
