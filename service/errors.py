"""The closed set of errors. No HTTP here: `api.problems` and the dialects say how each is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.model import Decision, Verdict


class GatewayError(Exception):
    """Something the gateway says no to, or cannot tell. Each subclass names its consequence."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"

    def __init__(self, detail: str, *, operation: str | None = None, retry_after: int = 1) -> None:
        """Say what happened in *detail*, one sentence a user can act on; *operation* if it was recorded.

        Where the answer is 429 or 503, it says to try again after *retry_after* seconds.
        """
        super().__init__(detail)
        self.detail = detail
        self.operation = operation
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = {}
        """More to say in headers."""


class Unauthenticated(GatewayError):
    """No valid credential. Nothing was looked at."""

    code, title = "unauthenticated", "Authentication needed"

    def __init__(self, detail: str, *, reason: str = "") -> None:
        """Tell the caller *detail*; *reason* is the exact one, for the log and the event, never for the caller."""
        super().__init__(detail)
        self.reason = reason


class IdentityUnavailable(GatewayError):
    """Who calls cannot be told now: an issuer's keys cannot be had. Nothing was looked at."""

    code, title = "identity-unavailable", "The caller cannot be identified now"


class RateLimited(GatewayError):
    """The caller sends too much. Nothing was looked at."""

    code, title = "rate-limited", "Too many requests"


class Denied(GatewayError):
    """No policy allows it. Nothing was forwarded."""

    code, title = "denied", "Not allowed"

    def __init__(self, detail: str, *, operation: str | None = None, decision: Decision | None = None) -> None:
        """Say what is missing; *decision* for a caller who may know which row decides."""
        super().__init__(detail, operation=operation)
        self.decision = decision


class UnknownRoute(GatewayError):
    """No table names this path. Nothing was forwarded."""

    code, title = "unknown-route", "No such route"


class RefusedRoute(GatewayError):
    """The registry has this route and the gateway refuses it on purpose. Nothing was forwarded."""

    code, title = "refused-route", "Route refused"


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this method. Nothing was forwarded."""

    code, title = "method-not-allowed", "Method not allowed"

    def __init__(self, detail: str, allowed: Iterable[str] = ()) -> None:
        """Say what happened; *allowed* are the methods that the path takes (RFC 9110, section 15.5.6)."""
        super().__init__(detail)
        self.allowed = tuple(sorted(allowed))


class InvalidRequest(GatewayError):
    """The request is malformed. Nothing was forwarded."""

    code, title = "invalid-request", "Invalid request"


class BodyTooLarge(GatewayError):
    """The body is over the limit of this route. Nothing was forwarded."""

    code, title = "body-too-large", "Body too large"


class RequestTimeout(GatewayError):
    """The body came too slowly. Nothing that was sent of it is kept."""

    code, title = "request-timeout", "Request timeout"


class UnsupportedMediaType(GatewayError):
    """The body is of a type or encoding that is not read. Nothing was forwarded."""

    code, title = "unsupported-media-type", "Unsupported media type"


class NotFound(GatewayError):
    """What was asked for does not exist. Nothing was changed."""

    code, title = "not-found", "Not found"


class Conflict(GatewayError):
    """The state of things does not allow it. Nothing was forwarded."""

    code, title = "conflict", "Conflict"


class GateClosed(GatewayError):
    """A promotion rule failed. Nothing was forwarded. The verdict lists every finding."""

    code, title = "gate-closed", "The gate is closed"

    def __init__(self, detail: str, verdict: Verdict, *, operation: str | None = None) -> None:
        """Carry the *verdict* to the caller."""
        super().__init__(detail, operation=operation)
        self.verdict = verdict


class Stale(GatewayError):
    """The caller's view (If-Match, review) is not the present one. Nothing was forwarded."""

    code, title = "stale", "The state has changed"


class OperationPending(GatewayError):
    """The same call is unsettled. It was not forwarded again."""

    code, title = "operation-pending", "An equal operation is unsettled"


class IdempotencyKeyReused(GatewayError):
    """The Idempotency-Key belongs to another request of the same principal. Nothing was forwarded."""

    code, title = "idempotency-key-reused", "The Idempotency-Key was used before"


class Busy(GatewayError):
    """A lock was not had in time. Nothing was forwarded; try again."""

    code, title = "busy", "Busy"


class JournalUnavailable(GatewayError):
    """A write could not be recorded first. Nothing was forwarded; try again."""

    code, title = "journal-unavailable", "The journal is unavailable"


class RegistryUnavailable(GatewayError):
    """The registry could not be reached or failed before it could act. Nothing was changed; try again."""

    code, title = "registry-unavailable", "The registry is unavailable"


class OutcomeUnknown(GatewayError):
    """The write was forwarded and its answer never came. It is read back and its outcome recorded."""

    code, title = "outcome-unknown", "The outcome is not known yet"


class RegistryRefused(GatewayError):
    """The registry was asked and said no, in its own words."""

    code, title = "registry-refused", "The registry refused"

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        error_code: str,
        classification: Mapping[str, str] | None = None,
        retry_after: int = 1,
    ) -> None:
        """Keep the registry's own *status*, *error_code* and *classification* (MLflow's sqlstate and error_class)."""
        super().__init__(detail, retry_after=retry_after)
        self.status = status
        self.error_code = error_code
        self.classification = classification or {}


class BadConfiguration(GatewayError):
    """A file or setting is wrong. The process does not start, or keeps what it had."""

    code, title = "bad-configuration", "Bad configuration"
