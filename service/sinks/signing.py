"""Signs what is sent: as Standard Webhooks has it, and as MLflow does, so that receivers of both verify unchanged."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"


def signature_headers(secrets: Sequence[str], identifier: str, at: int, body: bytes) -> dict[str, str]:
    """Give the headers that name and sign one message; *secrets* are the newest first.

    Each secret signs ``id.timestamp.body`` by HMAC-SHA256 (standardwebhooks.com; mlflow/webhooks/delivery.py). MLflow's
    header holds one signature, so it is the first secret's; MLflow takes a secret as it is written.
    """
    signed = f"{identifier}.{at}.".encode() + body
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(_signature(_key(secret), signed) for secret in secrets),
        "X-MLflow-Delivery-Id": identifier,
        "X-MLflow-Timestamp": str(at),
        "X-MLflow-Signature": _signature(secrets[0].encode(), signed),
    }


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _key(secret: str) -> bytes:
    """Return the bytes of a secret: those that ``whsec_…`` encodes in base64, else the text's own."""
    if secret.startswith(_PREFIX):
        with contextlib.suppress(binascii.Error):  # whoever reads secrets asks check_secret first
            return _decoded(secret)
    return secret.encode()


def check_secret(secret: str) -> None:
    """Return if *secret* can sign.

    Raises:
        ValueError: it says ``whsec_``, and no receiver could read it.
    """
    if secret.startswith(_PREFIX):
        try:
            _decoded(secret)
        except binascii.Error:
            message = "whsec_ is followed by base64 (A-Z a-z 0-9 + /)"
            raise ValueError(message) from None


def _decoded(secret: str) -> bytes:
    text = secret.removeprefix(_PREFIX).rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
