"""What may be configured of tokens: how they are signed, how much clocks may differ. Loads no cryptography."""

from __future__ import annotations

from collections.abc import Mapping

ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""What may be configured, each with the key type and curve that it takes. No ``none``, nothing with a shared secret."""
DEFAULT_ALGORITHMS = frozenset({"RS256", "ES256"})
MAX_LEEWAY_SECONDS = 60
