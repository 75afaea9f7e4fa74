"""The public keys of one issuer: which of a JSON Web Key Set (RFC 7517) are used, and which one a token names."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Protocol

from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key
from joserfc.jws import JWSRegistry

from service.authentication.algorithms import ALGORITHMS
from service.errors import InvalidRequest
from service.strict import parse_json

MAX_KEYS = 100
MAX_KID_CHARACTERS = 512
_RSA_BITS = range(2048, 8193)
_MAX_EXPONENT_BITS = 64
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class BadKeySetError(Exception):
    """A document that is not taken for a key set; it says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One public key that signatures are checked with."""

    kid: str | None
    kind: tuple[str, str | None]
    """Key type and curve."""
    algorithm: str | None
    """The only algorithm it is for, where the set says so."""
    key: Key

    def fits(self, algorithm: str) -> bool:
        """Tell whether *algorithm* goes with the key's type, curve and own algorithm."""
        return ALGORITHMS.get(algorithm) == self.kind and self.algorithm in (None, algorithm)

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Tell whether *signature* is this key's on *signed*. A key that does not fit *algorithm* verifies nothing."""
        if not self.fits(algorithm):
            return False
        name = "Ed25519" if algorithm == "EdDSA" else algorithm  # RFC 9864: the same, by its new name
        model = JWSRegistry.algorithms[name]
        try:
            model.check_key(self.key)
            return model.verify(signed, signature, self.key)
        except (JoseError, ValueError, TypeError):
            return False


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a set."""

    keys: tuple[SigningKey, ...]

    def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the one key for *kid* and *algorithm*, without *kid* the only one that fits; None if not one does."""
        found = [key for key in self.keys if kid in (None, key.kid) and key.fits(algorithm)]
        return found[0] if len(found) == 1 else None

    def has(self, kid: str | None) -> bool:
        """Tell whether a key has the identifier *kid*."""
        return any(key.kid == kid for key in self.keys)


class Keys(Protocol):
    """Where a verifier has its keys from."""

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the key for *kid* and *algorithm*, or None where there is none, or more than one without *kid*.

        Raises:
            IdentityUnavailable: the keys cannot be had now. The token is neither good nor bad.
        """


class FixedKeys:
    """Keys that are at hand."""

    def __init__(self, keys: KeySet) -> None:
        """Find in *keys*; another set may be put in their place."""
        self.keys = keys

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the key for *kid* and *algorithm*."""
        return self.keys.find(kid, algorithm)


def parse_key_set(raw: bytes) -> KeySet:
    """Read a JSON Web Key Set. Keys that no token may be verified with are left out.

    Raises:
        BadKeySetError: it is not one, has over 100 keys, or none that can be used.
    """
    try:
        document = parse_json(raw)
    except InvalidRequest as error:
        raise BadKeySetError(error.detail.replace("The body", "The key set")) from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise BadKeySetError('The key set is not {"keys": […]}.')
    if len(entries) > MAX_KEYS:
        raise BadKeySetError(f"The key set has {len(entries)} keys; at most {MAX_KEYS} are read.")
    keys = tuple(key for key in map(signing_key, entries) if key is not None)
    if not keys:
        raise BadKeySetError(f"None of the {len(entries)} keys of the set can be used to verify a signature.")
    return KeySet(keys)


def signing_key(entry: Any) -> SigningKey | None:
    """Read one JSON Web Key; None if signatures are not verified with such a key.

    Left out are private and symmetric keys, keys for encryption, RSA under 2048 bits and unknown types and curves.
    """
    if not isinstance(entry, dict) or _PRIVATE & entry.keys() or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    kid, algorithm = entry.get("kid"), entry.get("alg")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS):
        return None
    kind: tuple[Any, Any] = (entry.get("kty"), entry.get("crv") if entry.get("kty") != "RSA" else None)
    if kind not in ALGORITHMS.values() or (algorithm is not None and ALGORITHMS.get(str(algorithm)) != kind):
        return None
    plain = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}
    if kind[0] == "RSA" and (_bits(plain.get("n")) not in _RSA_BITS or _bits(plain.get("e")) > _MAX_EXPONENT_BITS):
        return None
    try:
        return SigningKey(kid, kind, algorithm, import_key(plain))
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _bits(number: object) -> int:
    """Measure a number in Base64url; 0 if it is none."""
    if not isinstance(number, str):
        return 0
    try:
        raw = base64.b64decode(number + "=" * (-len(number) % 4), b"-_", validate=True)
    except ValueError:
        return 0
    return int.from_bytes(raw).bit_length()
