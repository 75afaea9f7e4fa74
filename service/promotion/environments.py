"""Loads environments.yaml: validated whole, every problem with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from service.errors import BadConfiguration, InvalidRequest
from service.files import YamlFile, read_text
from service.promotion.approving import Quorum
from service.promotion.expression import ExpressionError
from service.promotion.facts import LANGUAGE
from service.promotion.gate import BUILT_IN, Environment, EvidenceTerms, Mark, Override, Rule, Sealing
from service.promotion.proof import check_key
from service.promotion.schedule import AllowedTimes, Freeze, parse_clock, parse_duration
from service.promotion.schema import (
    EnvironmentShape,
    EvidenceShape,
    FileShape,
    FreezeShape,
    OverrideShape,
    RuleShape,
    TimesShape,
)
from service.records import Capabilities
from service.strict import check_alias

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_STAGES = ("Staging", "Production")
_At = tuple[str | int, ...]


def load_environments(path: Path, registries: Mapping[str, Capabilities]) -> tuple[Environment, ...]:
    """Load *path*; *registries* says what each configured registry can hold.

    Raises:
        BadConfiguration: unknown keys, names or facts, an expression that is not CEL or not boolean, an
            environment without ``rules:``, two with the same mark, a cycle in ``after``, marks the registry cannot
            hold, or tags to seal where nothing is sealed. The message names file and line.
    """
    file = YamlFile(path)
    data = file.convert(FileShape)
    sets = {name: _rules(rules, file, ("rule_sets", name)) for name, rules in data.rule_sets.items()}
    reader = _Reader(file, path.parent, sets, registries)
    loaded = tuple(reader.environment(name, raw) for name, raw in data.environments.items())
    _check_after(loaded, file)
    _check_order(loaded, file)
    _check_marks(loaded, file)
    return loaded


class _Reader:
    """Turns the shapes of one file into environments; every problem names its line."""

    def __init__(
        self, file: YamlFile, folder: Path, sets: Mapping[str, tuple[Rule, ...]], registries: Mapping[str, Capabilities]
    ) -> None:
        self._file = file
        self._folder = folder
        self._sets = sets
        self._registries = registries

    def environment(self, name: str, raw: EnvironmentShape) -> Environment:
        file, at = self._file, ("environments", name)
        if not _NAME.fullmatch(name):
            raise file.error(f"the environment name {name!r} is not of a-z 0-9 - _", *at)
        if raw.where.registry != "*" and raw.where.registry not in self._registries:
            problem = (
                f"no registry is named {raw.where.registry!r}; there are: {', '.join(self._registries)}, or * for all"
            )
            raise file.error(problem, *at, "where", "registry")
        self._check_pattern(raw.where.models, (*at, "where", "models"))
        rules = self._all_rules(raw, at)
        loaded = Environment(
            name=name,
            registry=raw.where.registry,
            models=raw.where.models,
            marks=self._marks(raw, at),
            after=raw.after,
            rules=rules,
            seal=None if raw.seal is None else Sealing(raw.seal),
            listed_tags=raw.sealed_tags,
            mode=raw.mode,
            parameters=raw.parameters,
            quorums=tuple(Quorum(item.group, item.count) for item in raw.approvals.required),
            approvals_expire=self._seconds(raw.approvals.expire_after, (*at, "approvals", "expire_after")),
            review_needed=raw.approvals.review,
            evidence={kind: self._terms(terms, (*at, "evidence", kind)) for kind, terms in raw.evidence.items()},
            allowed_times=tuple(
                self._times(item, (*at, "allowed_times", index)) for index, item in enumerate(raw.allowed_times)
            ),
            freezes=tuple(self._freeze(item, (*at, "freezes", index)) for index, item in enumerate(raw.freezes)),
            overrides=tuple(
                self._override(item, rules, (*at, "overrides", index)) for index, item in enumerate(raw.overrides)
            ),
            rollback_rules=_rules(raw.rollback.rules, file, (*at, "rollback", "rules")),
            waivable=frozenset(raw.waivable),
            on_drift=raw.on_drift,
        )
        groups = [item.group for item in loaded.quorums]
        if len(set(groups)) != len(groups):
            raise file.error("approvals.required: a group stands twice", *at, "approvals", "required")
        self._check_overrides(loaded.overrides, at)
        self._check_parameters(loaded, at)
        _check_sealed_tags(loaded, file, at)
        return loaded

    def _check_pattern(self, pattern: str, at: _At) -> None:
        if "*" in pattern[:-1] or not pattern:
            raise self._file.error("models: exact, or a prefix that ends in *", *at)

    def _all_rules(self, raw: EnvironmentShape, at: _At) -> tuple[Rule, ...]:
        used = self._used(raw.use, (*at, "use"))
        return self._distinct(used, _rules(raw.rules, self._file, (*at, "rules")), (*at, "rules"))

    def _used(self, names: Iterable[str], at: _At) -> tuple[Rule, ...]:
        rules: tuple[Rule, ...] = ()
        for index, name in enumerate(names):
            if name not in self._sets:
                known = ", ".join(self._sets) or "none"
                raise self._file.error(f"no rule set is named {name!r}; rule_sets has: {known}", *at, index)
            rules = self._distinct(rules, self._sets[name], (*at, index))
        return rules

    def _distinct(self, rules: tuple[Rule, ...], more: tuple[Rule, ...], at: _At) -> tuple[Rule, ...]:
        names = {rule.name for rule in rules}
        for rule in more:
            if rule.name in names:
                raise self._file.error(f"two rules are named {rule.name!r}", *at)
        return (*rules, *more)

    def _override(self, raw: OverrideShape, rules: tuple[Rule, ...], at: _At) -> Override:
        """An override only adds; one that names a rule again or takes one away says that it relaxes, and why."""
        self._check_pattern(raw.models, (*at, "models"))
        used = self._used(raw.use, (*at, "use"))
        more = self._distinct(used, _rules(raw.rules, self._file, (*at, "rules")), (*at, "rules"))
        names = {rule.name for rule in rules}
        again = [rule.name for rule in more if rule.name in names]
        if not raw.relax:
            if again or raw.without:
                what = f"names {again[0]!r} again" if again else "has `without`"
                problem = f"the override {what}: it only adds, unless `relax: true` and a `reason` stand beside it"
                raise self._file.error(problem, *at, "rules" if again else "without")
            if raw.reason:
                raise self._file.error("reason: it belongs to `relax: true`", *at, "reason")
            return Override(raw.models, more)
        if not raw.reason.strip():
            raise self._file.error("relax: a `reason` must say why less is asked of these models", *at)
        unknown = [name for name in raw.without if name not in names]
        if unknown:
            known = ", ".join(sorted(names)) or "none"
            raise self._file.error(f"without: no rule is named {unknown[0]!r}; there are: {known}", *at, "without")
        if not again and not raw.without:
            raise self._file.error("relax: nothing here replaces a rule or takes one away", *at)
        return Override(raw.models, more, raw.without, raw.reason.strip())

    def _check_overrides(self, overrides: tuple[Override, ...], at: _At) -> None:
        """Of what two overrides say of the same model, neither may undo the other."""
        for index, one in enumerate(overrides):
            for other in overrides[:index]:
                said = ({*(rule.name for rule in item.rules), *item.without} for item in (one, other))
                both = set.intersection(*said)
                if both and patterns_meet(one.models, other.models):
                    problem = f"two overrides of the same models both name the rule {min(both)!r}"
                    raise self._file.error(problem, *at, "overrides", index)

    def _marks(self, raw: EnvironmentShape, at: _At) -> tuple[Mark, ...]:
        marks = tuple(_mark(mark, self._file, (*at, "marks", index)) for index, mark in enumerate(raw.marks))
        if not marks or len(set(marks)) != len(marks):
            raise self._file.error("an environment needs at least one mark, and each mark once", *at, "marks")
        for registry, capabilities in self._registries.items():
            if raw.where.registry in ("*", registry):
                _check_capabilities(registry, capabilities, marks, self._file, at)
        return marks

    def _seconds(self, text: str | None, at: _At) -> float | None:
        try:
            return None if text is None else parse_duration(text)
        except ValueError as error:
            raise self._file.error(str(error), *at) from None

    def _terms(self, raw: EvidenceShape, at: _At) -> EvidenceTerms:
        keys = tuple(self._key(name, (*at, "keys", index)) for index, name in enumerate(raw.keys))
        return EvidenceTerms(self._seconds(raw.expire_after, (*at, "expire_after")), keys, raw.proof)

    def _key(self, name: str, at: _At) -> str:
        try:
            key = read_text(self._folder / name)
            check_key(key)
        except BadConfiguration as error:
            raise self._file.error(f"keys: {error.detail}; name a PEM file beside environments.yaml", *at) from None
        except ValueError as error:
            raise self._file.error(f"keys: {error}", *at) from None
        return key

    def _times(self, raw: TimesShape, at: _At) -> AllowedTimes:
        try:
            since, until = parse_clock(raw.since), parse_clock(raw.until)
        except ValueError as error:
            raise self._file.error(str(error), *at) from None
        if since == until:
            raise self._file.error("from and until are the same time", *at)
        try:
            zone = ZoneInfo(raw.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise self._file.error(f"no time zone is named {raw.time_zone!r}", *at, "time_zone") from None
        return AllowedTimes(raw.days, since, until, zone)

    def _freeze(self, raw: FreezeShape, at: _At) -> Freeze:
        freeze = Freeze(raw.since.timestamp(), raw.until.timestamp(), raw.because)
        if freeze.since >= freeze.until:
            raise self._file.error("the freeze ends before it begins", *at)
        return freeze

    def _check_parameters(self, environment: Environment, at: _At) -> None:
        """A parameter that a rule reads and nobody set would close the gate for ever."""
        overrides = (rule for item in environment.overrides for rule in item.rules)
        for rule in (*environment.rules, *environment.rollback_rules, *overrides):
            for path in rule.require.paths:
                if (
                    path[:2] == ("environment", "parameters")
                    and len(path) > 2
                    and path[2] not in environment.parameters
                ):
                    known = ", ".join(environment.parameters) or "none"
                    problem = f"rule {rule.name!r} reads the parameter {path[2]!r}; parameters has: {known}"
                    raise self._file.error(problem, *at)


def _rules(raw: Iterable[RuleShape], file: YamlFile, at: _At) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for index, rule in enumerate(raw):
        where = (*at, index)
        if any(rule.name == other.name for other in rules):
            raise file.error(f"two rules are named {rule.name!r}", *where, "name")
        rules.append(_rule(rule, file, where))
    return tuple(rules)


def _check_sealed_tags(environment: Environment, file: YamlFile, at: _At) -> None:
    if environment.listed_tags and environment.sealing is Sealing.NEVER:
        raise file.error("sealed_tags: nothing is sealed here; say seal: approved or seal: live", *at, "sealed_tags")
    for index, item in enumerate(environment.listed_tags):
        if not item.strip() or "*" in item[:-1]:
            raise file.error("sealed_tags: a tag's key, or a prefix that ends in *", *at, "sealed_tags", index)


def _check_capabilities(
    registry: str, capabilities: Capabilities, marks: tuple[Mark, ...], file: YamlFile, at: _At
) -> None:
    held = {"alias": capabilities.aliases, "stage": capabilities.stages}
    for index, mark in enumerate(marks):
        if not held[mark.kind]:
            raise file.error(f"the registry {registry!r} has no {mark.kind}", *at, "marks", index)


def _mark(raw: Mapping[str, str], file: YamlFile, at: _At) -> Mark:
    if len(raw) != 1 or next(iter(raw)) not in ("alias", "stage"):
        raise file.error("a mark is {alias: NAME} or {stage: NAME}", *at)
    kind, value = next(iter(raw.items()))
    if kind == "alias":
        try:
            check_alias(value)
        except InvalidRequest as error:
            raise file.error(error.detail, *at) from None
    elif value not in _STAGES:
        raise file.error(f"the stage {value!r} is none of {', '.join(_STAGES)}", *at)
    return Mark(kind, value)


def _rule(raw: RuleShape, file: YamlFile, at: _At) -> Rule:
    if raw.name in BUILT_IN or raw.name.startswith(("after-", "approvals-")):
        raise file.error(f"the rule name {raw.name!r} belongs to a finding that every gate has", *at, "name")
    try:
        expression = LANGUAGE.compile(raw.require)
    except ExpressionError as error:
        raise file.error(f"rule {raw.name!r}: {error}", *at, "require") from None
    return Rule(raw.name, expression, raw.because or f"needed: {raw.require}", raw.severity, raw.waivable)


def _check_after(loaded: tuple[Environment, ...], file: YamlFile) -> None:
    after = {environment.name: environment.after for environment in loaded}
    for name, first in after.items():
        seen, step = {name}, first
        while step is not None:
            if step not in after:
                problem = f"after: no environment is named {step!r}; there are: {', '.join(after)}"
                raise file.error(problem, "environments", name, "after")
            if step in seen:
                raise file.error(f"after: {name!r} comes after itself", "environments", name, "after")
            seen.add(step)
            step = after[step]


def _check_order(loaded: tuple[Environment, ...], file: YamlFile) -> None:
    seen: set[str] = set()
    for environment in loaded:
        if environment.after is not None and environment.after not in seen:
            problem = f"list {environment.after!r} before {environment.name!r}: the order is the way to production"
            raise file.error(problem, "environments", environment.name, "after")
        seen.add(environment.name)


def _check_marks(loaded: tuple[Environment, ...], file: YamlFile) -> None:
    for index, one in enumerate(loaded):
        for other in loaded[:index]:
            shared = {(mark.kind, mark.value.lower()) for mark in one.marks} & {
                (mark.kind, mark.value.lower()) for mark in other.marks
            }
            if shared and _overlap(one, other):
                kind, value = next(iter(shared))
                problem = f"{one.name!r} and {other.name!r} both have the {kind} {value!r} as a mark"
                raise file.error(problem, "environments", one.name, "marks")


def _overlap(one: Environment, other: Environment) -> bool:
    if one.registry != other.registry and "*" not in (one.registry, other.registry):
        return False
    return patterns_meet(one.models, other.models)


def patterns_meet(a: str, b: str) -> bool:
    """Tell whether a model can match both patterns."""
    if a.endswith("*") and b.endswith("*"):
        return a[:-1].startswith(b[:-1]) or b[:-1].startswith(a[:-1])
    if a.endswith("*"):
        return b.startswith(a[:-1])
    return a.startswith(b[:-1]) if b.endswith("*") else a == b


class Environments:
    """All environments, and which of them a change touches."""

    def __init__(self, environments: tuple[Environment, ...]) -> None:
        """Hold what `load_environments` loaded."""
        self.all = environments

    def of(self, registry: str, model: str) -> tuple[Environment, ...]:
        """List the environments of a model, each with the rules that count for this model."""
        return tuple(item.of_model(model) for item in self.all if item.covers(registry, model))

    def later(self, one: Environment, other: Environment) -> bool:
        """Tell whether *one* stands after *other* in the file, which lists environments on the way to production."""
        names = [item.name for item in self.all]
        return names.index(one.name) > names.index(other.name)

    def get(self, registry: str, model: str, name: str) -> Environment | None:
        """Return the environment *name* of a model, or None if it has none of this name."""
        return next((item for item in self.of(registry, model) if item.name == name), None)
