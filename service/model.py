"""The nouns of a request: who calls, what they want, how it was decided and answered. Values only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol
from urllib.parse import quote

from service.change import Change, Located
from service.records import ModelVersion

ACTIONS = frozenset(
    {
        *(f"model:{verb}" for verb in ("create", "read", "update", "rename", "delete")),
        *(f"version:{verb}" for verb in ("create", "read", "update", "delete", "quarantine")),
        *(f"alias:{verb}" for verb in ("read", "set", "delete")),
        *(f"tag:{verb}" for verb in ("set", "delete")),
        "stage:set",
        *(f"experiment:{verb}" for verb in ("create", "read", "update", "delete")),
        *(f"run:{verb}" for verb in ("create", "read", "update", "delete", "delete-referenced")),
        *(f"artifact:{verb}" for verb in ("read", "write", "delete")),
        *(f"approval:{verb}" for verb in ("create", "revoke")),
        "evidence:post",
        *(f"environment:{verb}" for verb in ("promote", "rollback", "retire", "adopt", "emergency", "request")),
        *(f"audit:{verb}" for verb in ("read", "hold")),
        *(f"access:{verb}" for verb in ("read", "evaluate", "explain", "assume")),
        *(f"grant:{verb}" for verb in ("read", "change")),
        *(f"webhook:{verb}" for verb in ("read", "test", "redeliver")),
    }
)
"""Every action a policy row may name. The list is closed: a row that names another is refused."""


STAGES = ("None", "Staging", "Production", "Archived")
"""MLflow's four model version stages (mlflow/entities/model_registry/model_version_stages.py)."""


def segment(name: str) -> str:
    """Encode *name* as one segment of a resource: all but ``[A-Za-z0-9._@ -]`` percent-encoded."""
    return quote(name, safe="@ ").replace("~", "%7E")


def resource(*parts: str) -> str:
    """Join *parts* to a resource; each is encoded, so no name can add a segment or a wildcard."""
    return "/".join(segment(part) for part in parts)


MAX_NAME_CHARACTERS = 300
"""Of a principal or a group: what the journal keeps of one."""


class Record(Enum):
    """How much the journal keeps of an RPC."""

    EACH = "each"
    SUMMED = "summed"
    NONE = "none"


NOBODY = "user:unauthenticated"
"""What events say of a request whose sender is not known."""
ITSELF = "service:registry-gateway"
"""What events say of what the gateway finds by itself."""
RESERVED = frozenset({NOBODY, ITSELF})
"""No credential is of these."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. ``subject`` starts with ``user:`` or ``service:``; each group with ``group:``."""

    subject: str
    groups: frozenset[str] = frozenset()
    acting_for: str | None = None
    issuer: str = "api-key"
    credential: str = ""
    """The identifier of the credential, never the credential."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """What the issuer said about the caller; nothing for an API key."""
    also: frozenset[str] = frozenset()
    """Other identities of the same person, by configuration."""
    scope: frozenset[str] | None = None
    """What the credential is narrowed to, ``<registry>/<action>`` each (`service.scope`); None: not narrowed."""
    exchanged: bool = False
    """The gateway issued the credential itself, for one of *issuer*; it is not exchanged again."""

    @property
    def persons(self) -> frozenset[str]:
        """Everyone this principal counts as where four eyes are asked."""
        return self.also | {self.subject} | ({self.acting_for} if self.acting_for else set())

    @property
    def whole(self) -> Principal:
        """The same without a narrowed credential: what its rows forbid it, and all that it could do."""
        return self if self.scope is None else replace(self, scope=None)


class People:
    """Which identities are one person, by configuration."""

    def __init__(self, people: Iterable[Iterable[str]] = ()) -> None:
        """Take each of *people* for one person; no identity is of two."""
        self._same = {identity: several for several in map(frozenset, people) for identity in several}

    def everyone(self, identities: Iterable[str]) -> frozenset[str]:
        """Return *identities* and all that are the same persons."""
        return frozenset(who for identity in identities for who in self._same.get(identity, (identity,)))


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal and where it calls from."""

    principal: Principal
    address: str = ""
    key: str = ""
    """sha256 of principal and Idempotency-Key, where one was sent."""
    identify: Callable[[], Awaitable[Principal]] | None = None
    """Authenticates the same credential again."""

    async def again(self) -> Caller:
        """Return who the credential is of by now: keys and tokens end, and are taken back.

        Raises:
            Unauthenticated: nobody any more. IdentityUnavailable: it cannot be told.
        """
        return self if self.identify is None else replace(self, principal=await self.identify())


@dataclass(frozen=True, slots=True)
class Decision:
    """Access: allowed or denied, and by which policy row. The zero value is a denial."""

    allowed: bool = False
    row: str | None = None
    """The deciding row as ``file:line``, or None where no row matched."""
    revision: str = ""
    beyond_scope: bool = False
    """Whether the credential is narrowed to other things; no row was asked."""

    @property
    def denied_by_row(self) -> bool:
        """Whether a deny row matched, rather than no row at all."""
        return not self.allowed and self.row is not None


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that a principal can read at most: these, and all that begin with one of the prefixes."""

    names: frozenset[str] = frozenset()
    prefixes: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether no name can be read at all."""
        return not self.names and not self.prefixes


@dataclass(frozen=True, slots=True)
class Finding:
    """What one promotion rule found."""

    rule: str
    passed: bool
    because: str
    missing: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    severity: str = "block"
    """``block``, or ``warn``: said, and it closes nothing."""
    waived: bool = False
    """It failed, and an emergency passed it."""
    self_reported: tuple[str, ...] = ()
    """The facts among these that the promoted party could write itself."""

    @property
    def blocks(self) -> bool:
        """Whether the gate stays closed for it."""
        return not self.passed and self.severity == "block" and not self.waived


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings of a gate. The zero value is a closed gate that is enforced."""

    allowed: bool = False
    rules_digest: str = ""
    findings: tuple[Finding, ...] = ()
    mode: str = "enforce"
    """``enforce``; in ``warn`` and ``observe`` a closed gate refuses nothing."""
    stale_approvals: tuple[Mapping[str, str], ...] = ()
    """Approvals that do not count any more: ``{by, because}``."""
    artifact_digest: str | None = None
    """Of the files that were judged; None where nobody looked at them."""

    @property
    def refuses(self) -> bool:
        """Whether nothing may be written."""
        return not self.allowed and self.mode == "enforce"

    @property
    def passed(self) -> bool:
        """Whether every rule passed, none of them by an emergency."""
        return self.allowed and not any(finding.waived for finding in self.findings)

    @property
    def would_refuse(self) -> bool:
        """Whether the gate is closed and not enforced."""
        return not self.allowed and self.mode != "enforce"

    def document(self) -> dict[str, Any]:
        """Give the JSON shape of the contract."""
        return {
            "allowed": self.allowed,
            "rules_digest": self.rules_digest,
            "mode": self.mode,
            "would_refuse": self.would_refuse,
            "findings": [
                {
                    "rule": finding.rule,
                    "passed": finding.passed,
                    "because": finding.because,
                    "missing": list(finding.missing),
                    "facts": dict(finding.facts),
                    "severity": finding.severity,
                    "waived": finding.waived,
                    "self_reported": list(finding.self_reported),
                }
                for finding in self.findings
            ],
            "stale_approvals": [dict(item) for item in self.stale_approvals],
            "artifact_digest": self.artifact_digest,
        }


@dataclass(frozen=True, slots=True)
class Need:
    """One thing a call must be allowed: *action* on *resource* (or on the experiment behind it)."""

    action: str
    resource: str | Located


@dataclass(frozen=True, slots=True)
class Listing:
    """How a search answer is cut down to what the caller may read."""

    items: str
    """The field of the answer that holds the rows."""
    action: str
    resource_of: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Request:
    """What is judged and what is forwarded: one RPC of the registry's API and its canonical message."""

    rpc: str
    method: str
    path: str
    """Below the registry's root, path parameters filled in and percent-encoded."""
    message: Mapping[str, Any] = field(default_factory=dict)
    body: AsyncIterator[bytes] | None = None
    """The bytes of an artifact; never held in memory."""
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: bool = False
    """The answer is a file or another document that is not MLflow's JSON; it is passed on as it comes."""
    own: bool = False
    """The gateway reads it for itself."""

    def digest(self) -> str:
        """Name the canonical message: equal for equal calls, whatever their spelling was."""
        text = json.dumps([self.rpc, self.path, self.message], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """What became of a promotion. ``before`` and ``after`` are versions, or None where nothing is live."""

    id: str
    state: str
    """``succeeded``, ``unchanged`` (it was live already) or ``evaluated`` (a dry run)."""
    dry_run: bool
    before: str | None
    after: str | None
    verdict: Verdict
    version: ModelVersion | None = None
    effects: tuple[Any, ...] = ()
    """What it means for the journal's own tables (`service.effects.Effect`)."""


class Stream(Protocol):
    """Parts of a file, and what closes the connection they come from, whether any was taken or not."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the parts, once."""

    async def aclose(self) -> None:
        """Stop the transfer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A registry's answer. Either ``body`` or ``stream`` holds it."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None
    """Whoever takes it closes it."""
    promotion: PromotionResult | None = None
    """Set where the gateway itself wrote the marks; the edge that asked gives it its own shape."""
    operation: str = ""

    def document(self) -> dict[str, Any]:
        """Parse the body, which the registry promised to be a JSON object."""
        parsed = json.loads(self.body or b"{}")
        return parsed if isinstance(parsed, dict) else {}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Answer:
        """Build a 200 from *document*."""
        return cls(200, json.dumps(document).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, understood: who wants what of which registry, and what would be forwarded."""

    principal: Principal
    registry: str
    name: str
    """The RPC, or the name of our own operation."""
    needs: tuple[Need, ...]
    """All must be allowed. The first one names the call in events."""
    record: Record = Record.NONE
    request: Request | None = None
    change: Change | None = None
    listing: Listing | None = None
    experiments: str = ""
    """The repeated field of the message that is cut down to readable experiments."""
    traces: str = ""
    """The repeated field of the message that is cut down to readable traces."""
    address: str = ""
    trace: str = ""
    key: str = ""
    """sha256 of principal and Idempotency-Key, where one was sent."""

    def digest(self) -> str:
        """Name this call of this principal: equal for a repetition of the same message."""
        what = self.request.digest() if self.request else repr(self.change)
        return hashlib.sha256(f"{self.principal.subject}\n{self.registry}\n{self.name}\n{what}".encode()).hexdigest()
