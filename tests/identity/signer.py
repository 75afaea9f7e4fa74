"""Signs tokens in two ways that share no code: by joserfc, and by hand with cryptography. Bad ones too."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
import warnings
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwk, jws

ISSUER, AUDIENCE = "https://issuer.example", "registry-gateway"
_CURVES = {"ES256": (ec.SECP256R1, "P-256"), "ES384": (ec.SECP384R1, "P-384"), "ES512": (ec.SECP521R1, "P-521")}
_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def segment(document: Any) -> str:
    """Give a part of a token; bytes are taken as they are."""
    return b64(document if isinstance(document, bytes) else json.dumps(document).encode())


def claims(**changes: Any) -> dict[str, Any]:
    """Give good claims; None takes one out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "nbf": now, "exp": now + 300, "jti": "t1"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


class Signer:
    """One key pair of an issuer; *algorithm* is what it signs with."""

    def __init__(self, algorithm: str = "RS256", kid: str | None = "k1", bits: int = 2048) -> None:
        self.algorithm, self.kid = algorithm, kid
        if algorithm in _CURVES:
            self.private = ec.generate_private_key(_CURVES[algorithm][0]())
        elif algorithm in ("EdDSA", "Ed25519"):
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(65537, bits)

    @property
    def public(self) -> dict[str, Any]:
        """Give the public key as a JSON Web Key, made by hand."""
        found = self.private.public_key()
        if isinstance(found, rsa.RSAPublicKey):
            numbers = found.public_numbers()
            entry = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        elif isinstance(found, ec.EllipticCurvePublicKey):
            curve = _CURVES[self.algorithm][1]
            size, numbers = (found.curve.key_size + 7) // 8, found.public_numbers()
            entry = {"kty": "EC", "crv": curve, "x": number(numbers.x, size), "y": number(numbers.y, size)}
        else:
            entry = {"kty": "OKP", "crv": "Ed25519", "x": b64(found.public_bytes_raw())}
        return {**entry, "use": "sig", **({"kid": self.kid} if self.kid else {})}

    def header(self, **changes: Any) -> dict[str, Any]:
        good = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid, **changes}
        return {name: value for name, value in good.items() if value is not None}

    def raw(self, signed: bytes) -> bytes:
        """Sign bytes, by hand."""
        key, bits = self.private, self.algorithm[2:]
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(signed)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            size = (key.curve.key_size + 7) // 8
            pair = decode_dss_signature(key.sign(signed, ec.ECDSA(_HASHES[bits]())))
            return b"".join(value.to_bytes(size, "big") for value in pair)
        digest = _HASHES[bits]()
        if self.algorithm.startswith("PS"):
            return key.sign(signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return key.sign(signed, padding.PKCS1v15(), digest)

    def by_hand(self, payload: Any = None, header: Any = None) -> str:
        """Sign with cryptography alone; header and payload may be bytes that are no JSON."""
        head = segment(self.header() if header is None else header)
        signed = f"{head}.{segment(claims() if payload is None else payload)}"
        return f"{signed}.{b64(self.raw(signed.encode()))}"

    def by_joserfc(self, payload: Any = None) -> str:
        """Sign with joserfc."""
        registry = jws.JWSRegistry(algorithms=[self.algorithm])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EdDSA has a newer name
            return jws.serialize_compact(
                self.header(), json.dumps(payload or claims()), self._library_key(), registry=registry
            )

    def _library_key(self) -> jwk.Key:
        kind = {"R": jwk.RSAKey, "P": jwk.RSAKey, "E": jwk.ECKey}[self.algorithm[0]]
        return (jwk.OKPKey if self.algorithm.startswith("Ed") else kind)(self.private, self.private)


@functools.cache
def signer(algorithm: str = "RS256", kid: str | None = "k1", number: int = 0) -> Signer:
    """Give a key pair that all tests share: RSA keys take their time."""
    return Signer(algorithm, kid)


def key_set(*signers: Signer) -> bytes:
    return json.dumps({"keys": [one.public for one in signers]}).encode()


def with_shared_secret(secret: bytes, payload: Any = None, header: Any = None) -> str:
    """Sign with HS256, as who has only the public key would."""
    signed = f"{segment(header or {'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'})}.{segment(payload or claims())}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
