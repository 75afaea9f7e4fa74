"""The rules of promotion, said plainly: what the state machine expects of the gateway."""

from __future__ import annotations

import dataclasses

ENVIRONMENTS = """
environments:
  staging:
    where: {models: "g*"}
    marks: [{alias: challenger}, {stage: Staging}]
    rules: []
    on_drift: revert
  production:
    where: {models: "g*"}
    marks: [{alias: champion}, {stage: Production}]
    after: staging
    approvals: {required: [{group: group:ml-leads, count: 1}]}
    rules:
      - {name: validated, require: "passed(evidence, 'validation')"}
    waivable: [after, approvals]
    on_drift: revert
"""
ALIASES = {"staging": "challenger", "production": "champion"}
STAGES = {"staging": "Staging", "production": "Production"}

RIGHTS = {
    "promote staging": {"user:admin", "user:scientist", "service:ci", "user:lead"},
    "promote production": {"user:admin", "service:ci", "user:lead"},
    "rollback": {"user:admin", "user:lead"},
    "retire": {"user:admin", "user:lead"},
    "emergency": {"user:admin", "user:lead"},
    "evidence": {"user:admin", "service:ci"},
    "approve": {"user:admin", "user:lead"},
    "register": {"user:admin", "user:scientist", "service:ci"},
    "alias": {"user:admin", "user:scientist", "service:ci"},
    "quarantine": {"user:admin", "user:lead"},
    "all": {"user:admin"},
}
"""What policies/policy.csv gives, as far as the machine asks."""


@dataclasses.dataclass(eq=False)
class Decision:
    by: str
    approves: bool
    incumbent: Version | None
    id: str
    revoked: bool = False


@dataclasses.dataclass(eq=False)
class Version:
    number: str
    by: str
    evidence: list[tuple[bool, str]] = dataclasses.field(default_factory=list)
    decisions: list[Decision] = dataclasses.field(default_factory=list)
    quarantined: bool = False
    been: set[str] = dataclasses.field(default_factory=set)
    """Environments it was promoted into, by whatever way."""

    def newest(self) -> list[Decision]:
        return list({item.by: item for item in self.decisions if not item.revoked}.values())

    def concerned(self, asker: str) -> set[str]:
        return {self.by, asker, *(by for _, by in self.evidence)}


@dataclasses.dataclass(eq=False)
class Model:
    name: str
    versions: list[Version] = dataclasses.field(default_factory=list)
    marks: dict[str, Version | None] = dataclasses.field(default_factory=lambda: dict.fromkeys(ALIASES))
    """What each environment's alias is on: in a guarded model that is what is live."""
    former: dict[str, list[Version]] = dataclasses.field(default_factory=lambda: {name: [] for name in ALIASES})
    """What was made live, oldest first."""

    @property
    def guarded(self) -> bool:
        return self.name.startswith("g")

    def go_live(self, environment: str, version: Version) -> None:
        if self.marks[environment] is not version:
            self.former[environment].append(version)
        self.marks[environment] = version
        version.been.add(environment)


def passes(version: Version, environment: str, by: str, incumbent: Version | None, purpose: str = "promotion") -> bool:
    """Tell whether the gate is open."""
    if version.quarantined:
        return False
    if purpose == "rollback":
        return environment in version.been
    if environment == "staging":
        return True
    newest = version.newest()
    if not version.evidence or not version.evidence[-1][0] or not all(item.approves for item in newest):
        return False
    if purpose == "emergency":  # passes `after` and the approvals
        return True
    approved = any(
        item.by == "user:lead" and item.incumbent is incumbent and item.by not in version.concerned(by)
        for item in newest
    )
    return approved and "staging" in version.been
