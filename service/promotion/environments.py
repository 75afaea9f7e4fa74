"""Loads environments.yaml: validated whole, every problem with file and line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from service.errors import InvalidRequest
from service.files import YamlFile
from service.promotion.expression import ExpressionError
from service.promotion.facts import LANGUAGE
from service.promotion.gate import Environment, Mark, Rule, Sealing
from service.records import Capabilities
from service.strict import check_alias

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_STAGES = ("Staging", "Production", "Archived")


class _Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    registry: str = "*"
    models: str = "*"


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    require: str
    because: str = ""


class _Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    marks: tuple[dict[str, str], ...]
    rules: tuple[_Rule, ...]
    where: _Where = _Where()
    after: str | None = None
    seal: str | None = None
    sealed_tags: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    environments: dict[str, _Environment]


def load_environments(path: Path, registries: Mapping[str, Capabilities]) -> tuple[Environment, ...]:
    """Load *path*; *registries* says what each configured registry can hold.

    Raises:
        BadConfiguration: unknown keys, names or facts, an expression that is not CEL or not boolean, an
            environment without ``rules:``, two with the same mark, a cycle in ``after``, marks the registry cannot
            hold, or tags to seal where nothing is sealed. The message names file and line.
    """
    file = YamlFile(path)
    data = file.convert(_File)
    loaded = tuple(_environment(name, raw, file, registries) for name, raw in data.environments.items())
    _check_after(loaded, file)
    _check_order(loaded, file)
    _check_marks(loaded, file)
    return loaded


def _environment(name: str, raw: _Environment, file: YamlFile, registries: Mapping[str, Capabilities]) -> Environment:
    at = ("environments", name)
    if not _NAME.fullmatch(name):
        raise file.error(f"the environment name {name!r} is not of a-z 0-9 - _", *at)
    if raw.where.registry != "*" and raw.where.registry not in registries:
        raise file.error(f"no registry is named {raw.where.registry!r}", *at, "where", "registry")
    if "*" in raw.where.models[:-1] or not raw.where.models:
        raise file.error("models: exact, or a prefix that ends in *", *at, "where", "models")
    marks = tuple(_mark(mark, file, (*at, "marks", index)) for index, mark in enumerate(raw.marks))
    if not marks or len(set(marks)) != len(marks):
        raise file.error("an environment needs at least one mark, and each mark once", *at, "marks")
    for registry, capabilities in registries.items():
        if raw.where.registry in ("*", registry):
            _check_capabilities(registry, capabilities, marks, file, at)
    rules: list[Rule] = []
    for index, rule in enumerate(raw.rules):
        where = (*at, "rules", index)
        if any(rule.name == other.name for other in rules):
            raise file.error(f"two rules are named {rule.name!r}", *where, "name")
        rules.append(_rule(rule, file, where))
    try:
        seal = None if raw.seal is None else Sealing(raw.seal)
    except ValueError:
        known = ", ".join(item.value for item in Sealing)
        raise file.error(f"seal: {raw.seal!r} is none of {known}", *at, "seal") from None
    loaded = Environment(
        name, raw.where.registry, raw.where.models, marks, raw.after, tuple(rules), seal, raw.sealed_tags
    )
    _check_sealed_tags(loaded, file, at)
    return loaded


def _check_sealed_tags(environment: Environment, file: YamlFile, at: tuple[Any, ...]) -> None:
    if environment.listed_tags and environment.sealing is Sealing.NEVER:
        raise file.error("sealed_tags: nothing is sealed here; say seal: approved or seal: live", *at, "sealed_tags")
    for index, item in enumerate(environment.listed_tags):
        if not item.strip() or "*" in item[:-1]:
            raise file.error("sealed_tags: a tag's key, or a prefix that ends in *", *at, "sealed_tags", index)


def _check_capabilities(
    registry: str, capabilities: Capabilities, marks: tuple[Mark, ...], file: YamlFile, at: tuple[Any, ...]
) -> None:
    held = {"alias": capabilities.aliases, "stage": capabilities.stages}
    for index, mark in enumerate(marks):
        if not held[mark.kind]:
            raise file.error(f"the registry {registry!r} has no {mark.kind}", *at, "marks", index)


def _mark(raw: Mapping[str, str], file: YamlFile, at: tuple[Any, ...]) -> Mark:
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


def _rule(raw: _Rule, file: YamlFile, at: tuple[Any, ...]) -> Rule:
    try:
        expression = LANGUAGE.compile(raw.require)
    except ExpressionError as error:
        raise file.error(f"rule {raw.name!r}: {error}", *at, "require") from None
    return Rule(raw.name, expression, raw.because or f"needed: {raw.require}")


def _check_after(loaded: tuple[Environment, ...], file: YamlFile) -> None:
    after = {environment.name: environment.after for environment in loaded}
    for name, first in after.items():
        seen, step = {name}, first
        while step is not None:
            if step not in after:
                raise file.error(f"after: no environment is named {step!r}", "environments", name, "after")
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
    a, b = one.models, other.models
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
        """List the environments of a model."""
        return tuple(item for item in self.all if item.covers(registry, model))

    def get(self, registry: str, model: str, name: str) -> Environment | None:
        """Return the environment *name* of a model, or None if it has none of this name."""
        return next((item for item in self.of(registry, model) if item.name == name), None)
