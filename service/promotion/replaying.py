"""Judges a past promotion again, by the facts that were kept of it and other rules. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from service.model import Finding
from service.promotion.facts import Facts, Fetched, Source, sources_of
from service.promotion.gate import Environment, Purpose
from service.promotion.syntax import Path, dotted


class State(Enum):
    """What judging again showed."""

    SAME = "same"
    REFUSED = "refused"
    """The gate was open and would be closed."""
    ADMITTED = "admitted"
    """The gate was closed and would be open."""
    NOT_KNOWN = "not_known"
    """It depends on a fact that was not fetched then."""
    NOT_JUDGED = "not_judged"
    """Its facts were not kept, or there is no such environment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """A promotion as its event tells it."""

    operation: str
    time: str
    registry: str
    model: str
    version: str
    environment: str
    purpose: Purpose
    by: str
    allowed: bool
    """Whether the gate was open."""
    closing: tuple[str, ...]
    """The rules that closed it."""
    approved_under: str
    """The digest of the rules that approvals counted under."""
    nothing_live: bool
    """It is known that nothing was live there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Again:
    """The same promotion, judged again."""

    past: Past
    state: State
    rules: tuple[str, ...] = ()
    """Those that make the difference: that would close the gate, or that closed it."""
    unknown: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By rule, the facts that were not fetched then."""
    because: str = ""
    """Why it cannot be judged."""

    def document(self) -> dict[str, Any]:
        """Give it as JSON."""
        past = self.past
        return {
            "operation": past.operation,
            "time": past.time,
            "registry": past.registry,
            "model": past.model,
            "version": past.version,
            "environment": past.environment,
            "purpose": past.purpose.value,
            "by": past.by,
            "then": "open" if past.allowed else "closed",
            "state": self.state.value,
            "rules": list(self.rules),
            "not_known": {rule: list(facts) for rule, facts in self.unknown.items()},
            "because": self.because,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """All that were judged again, oldest first."""

    environments: str
    """The name of the file with the new rules."""
    since: str
    until: str
    items: Sequence[Again]
    pruned: str | None = None
    """Before when events are missing, if some are."""

    def of(self, *states: State) -> list[Again]:
        """List those that ended so."""
        return [item for item in self.items if item.state in states]

    @property
    def counts(self) -> Mapping[State, int]:
        """How many ended how."""
        found = Counter(item.state for item in self.items)
        return {state: found[state] for state in State}

    @property
    def differs(self) -> bool:
        """Whether any would end otherwise."""
        return any(item.state in (State.REFUSED, State.ADMITTED) for item in self.items)

    @property
    def unknown(self) -> Mapping[tuple[str, tuple[str, ...]], int]:
        """How often a rule could not be judged, with the facts that were not known."""
        return Counter((rule, facts) for item in self.items for rule, facts in item.unknown.items())

    @property
    def unjudged(self) -> Mapping[str, int]:
        """How often a promotion could not be judged, by reason."""
        return Counter(item.because for item in self.of(State.NOT_JUDGED))


def judge_again(past: Past, environment: Environment, facts: Facts) -> Again:
    """Judge *facts* by *environment*, which is the one of the model and the purpose.

    Approvals that were given under the rules of then count as given under these: what is asked for is whether the
    rules would have decided otherwise, and no change of them would leave any approval in force.
    """
    facts = _as_known(past, facts)
    digest = environment.approved_under or environment.rules_digest
    approvals = [
        dataclasses.replace(item, rules_digest=digest) if item.rules_digest == past.approved_under else item
        for item in facts.approvals
    ]
    verdict = environment.judge(dataclasses.replace(facts, approvals=approvals), past.registry)
    unknown = _unknown(environment, facts)
    closing = tuple(item.rule for item in verdict.findings if item.blocks and item.rule not in unknown)
    undecided = any(_may_block(item) for item in verdict.findings if item.rule in unknown)
    if closing:
        state, rules = (State.REFUSED, closing) if past.allowed else (State.SAME, ())
    elif undecided:
        state, rules = State.NOT_KNOWN, ()
    else:
        state, rules = (State.SAME, ()) if past.allowed else (State.ADMITTED, past.closing)
    return Again(past, state, rules, unknown)


def _may_block(finding: Finding) -> bool:
    """Tell whether a finding over a fact that was not known could close the gate."""
    return finding.severity == "block" and not finding.waived


def _as_known(past: Past, facts: Facts) -> Facts:
    """Add what the event knows: that nothing was live, also where nobody looked because no rule asked."""
    if not past.nothing_live or facts.incumbent is not None or facts.fetched is None:
        return facts
    fetched = dataclasses.replace(facts.fetched, incumbent=frozenset(Source))
    return dataclasses.replace(facts, incumbent_binding=facts.incumbent_binding or "", fetched=fetched)


def _unknown(environment: Environment, facts: Facts) -> dict[str, tuple[str, ...]]:
    """Map findings to the facts that they rest on and that were not fetched."""
    fetched = facts.fetched
    if fetched is None:
        return {}
    unknown = {
        rule.name: tuple(dict.fromkeys(_missed(rule.require.paths, environment, facts, fetched)))
        for rule in environment.rules
    }
    if not _knows_approvals(environment, facts, fetched):
        groups = (quorum.group.removeprefix("group:") for quorum in environment.quorums)
        unknown.update({f"approvals-{group}": ("approvals",) for group in groups})
    return {name: paths for name, paths in unknown.items() if paths}


def _missed(paths: Iterable[Path], environment: Environment, facts: Facts, fetched: Fetched) -> Iterator[str]:
    for path in paths:
        side = path[0]
        if side == "approvals":
            known = _knows_approvals(environment, facts, fetched)
        elif side == "evidence" or path[:2] == ("candidate", "evidence"):
            known = fetched.digest or not facts.evidence  # it counts only for the files it is about
        elif side == "candidate":
            needed = sources_of([path], "candidate")
            known = needed <= fetched.candidate and (fetched.digest or Source.DIGEST not in needed)
        elif side == "incumbent":
            known = _knows_incumbent(path, facts, fetched)
        else:
            known = True
        if not known:
            yield dotted(path)


def _knows_incumbent(path: Path, facts: Facts, fetched: Fetched) -> bool:
    if fetched.incumbent is None:
        return False
    return facts.incumbent is None or sources_of([path], "incumbent") <= fetched.incumbent


def _knows_approvals(environment: Environment, facts: Facts, fetched: Fetched) -> bool:
    """Tell whether it is known which approvals count: it hangs on the files, what was live and who registered."""
    given = (item for item in facts.approvals if item.environment == environment.name and not item.revoked)
    if all(item.decision != "approve" for item in given):
        return True
    return fetched.digest and fetched.registrants and facts.incumbent_binding is not None
