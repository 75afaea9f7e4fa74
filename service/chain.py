"""The hash chain of events: what follows what, and what the signature of a checkpoint is made over. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

GENESIS = "0" * 64
"""What the first event of all follows."""
_DOMAIN = "registry-gateway checkpoint v1"


def digest_of(body: bytes) -> str:
    """Give the hash of an event's bytes, which the next event names as its ``previous``."""
    return hashlib.sha256(body).hexdigest()


def signed_bytes(cluster: str, sequence: int, digest: str, time: str) -> bytes:
    """Give what a checkpoint's signature is made over: five lines of ASCII, each with a line feed.

    They are the domain, the cluster, sequence and hash of the last event that it covers, and the checkpoint's time.
    """
    return f"{_DOMAIN}\n{cluster}\n{sequence}\n{digest}\n{time}\n".encode("ascii")


def with_signature(event: Mapping[str, Any], cluster: str, kid: str, sign: Callable[[bytes], bytes]) -> dict[str, Any]:
    """Give *event*, which has its place in the chain, as the checkpoint of the event before it."""
    data = event["data"]
    covered, digest = data["sequence"] - 1, data["previous"]
    signature = base64.b64encode(sign(signed_bytes(cluster, covered, digest, event["time"]))).decode()
    checkpoint = {"cluster": cluster, "sequence": covered, "hash": digest, "kid": kid, "signature": signature}
    return {**event, "data": {**data, "checkpoint": checkpoint}}
