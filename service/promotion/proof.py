"""Proofs of evidence: statements signed with a configured key, about the very files of a version. Pure.

DSSE envelopes (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md) that hold an in-toto Statement v1
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.errors import InvalidRequest
from service.strict import parse_json

STATEMENT = "https://in-toto.io/Statement/v1"
EVIDENCE = "https://registry-gateway.dev/evidence/v1"
"""The predicate: ``{kind, result, facts}``, as they are posted."""
MODEL_SIGNATURE = "https://model_signing/signature/v1.0"
"""The predicate of OpenSSF model-signing: the digest of each file (model_signing/_signing/signing.py)."""
PROOF_TYPES: Mapping[str, str] = {"dsse": "dsse", "model_signing": "model-signing"}
"""What a proof is posted as -> its type in the evidence."""
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MAX_SIGNATURES = 10
_MIN_RSA_BITS = 2048
_CURVES: Mapping[str, hashes.HashAlgorithm] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}


@dataclass(frozen=True, slots=True)
class Statement:
    """What was signed, and with which key."""

    key: str
    """Identifier of the key (`key_id`)."""
    predicate_type: str
    subjects: frozenset[str]
    """SHA-256 digests of what it is about."""
    predicate: Mapping[str, Any]
    digest: str
    """SHA-256 of the payload."""


def key_id(pem: str) -> str:
    """Name a public key: sha256 of its PEM text without white space."""
    return hashlib.sha256("".join(pem.split()).encode()).hexdigest()


def check_key(pem: str) -> None:
    """Return if *pem* is a public key that proofs can be verified with.

    Raises:
        ValueError: it is none; the message is for the author of the file.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        message = f"not a public key in PEM form: {error}"
        raise ValueError(message) from None
    good = (
        isinstance(key, ed25519.Ed25519PublicKey)
        or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES)
        or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS)
    )
    if not good:
        message = f"a key is Ed25519, ECDSA over P-256 or P-384, or RSA of at least {_MIN_RSA_BITS} bits"
        raise ValueError(message)


def verify(envelope: Any, keys: Iterable[str]) -> Statement:
    """Verify a DSSE envelope with one of *keys* (PEM texts) and return the in-toto statement in it.

    Raises:
        InvalidRequest: it is malformed, no configured key signed it, or it holds no Statement v1. It proves nothing.
    """
    payload, kind, signatures = _parts(envelope)
    signed = _pre_authentication(kind, payload)
    key = next((pem for pem in keys if any(_is_signed(pem, item, signed) for item in signatures)), None)
    if key is None:
        _refuse("no key that is configured for this kind of evidence signed it")
    if kind != _PAYLOAD_TYPE:
        _refuse(f"payloadType is not {_PAYLOAD_TYPE}")
    statement = parse_json(payload)
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT:
        _refuse(f"the payload is no {STATEMENT}")
    predicate, subjects = statement.get("predicate"), statement.get("subject")
    if not isinstance(predicate, dict) or not isinstance(subjects, list):
        _refuse("the statement has no predicate or no subject")
    digests = (item.get("digest", {}) for item in subjects if isinstance(item, dict))
    named = frozenset(str(item.get("sha256")) for item in digests if isinstance(item, dict) and item.get("sha256"))
    return Statement(
        key_id(key), str(statement.get("predicateType", "")), named, predicate, hashlib.sha256(payload).hexdigest()
    )


def check_evidence(
    statement: Statement, *, kind: str, result: str, facts: Mapping[str, Any], artifact_digest: str
) -> None:
    """Return if *statement* says what is posted, about these files.

    Raises:
        InvalidRequest: it says something else. It proves nothing.
    """
    if statement.predicate_type != EVIDENCE:
        _refuse(f"its predicateType is not {EVIDENCE}")
    for name, posted in (("kind", kind), ("result", result), ("facts", dict(facts))):
        signed = statement.predicate.get(name, {} if name == "facts" else None)
        # As JSON: to Python 0, 0.0 and False are equal.
        if json.dumps(signed, sort_keys=True) != json.dumps(posted, sort_keys=True):
            _refuse(f"its {name} is not what is posted")
    if artifact_digest not in statement.subjects:
        _refuse("it is about other files than the version's")


def check_model_signature(statement: Statement, files: Sequence[tuple[str, str]]) -> None:
    """Return if *statement* is a model-signing signature over exactly *files*: path and SHA-256 (hex) of each.

    Raises:
        InvalidRequest: it is none, or a file differs, is missing or is not signed.
    """
    if statement.predicate_type != MODEL_SIGNATURE:
        _refuse(f"its predicateType is not {MODEL_SIGNATURE}")
    resources = statement.predicate.get("resources")
    if not isinstance(resources, list) or not all(isinstance(item, dict) for item in resources):
        _refuse("it lists no resources")
    if any(item.get("algorithm") != "sha256" for item in resources):
        _refuse("its resources have other digests than sha256")
    signed = {str(item.get("name")): str(item.get("digest")) for item in resources}
    if len(signed) != len(resources):
        _refuse("a file stands in it twice")
    root = hashlib.sha256(b"".join(_hex(str(item.get("digest"))) for item in resources)).hexdigest()
    if root not in statement.subjects:
        _refuse("its resources are not those it is about")
    if signed != dict(files):
        differing = sorted({name for name, _ in set(signed.items()) ^ set(files)})
        _refuse(f"the files differ: {', '.join(differing[:5])}")


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        _refuse("a digest is not hexadecimal")


def _parts(envelope: Any) -> tuple[bytes, str, list[bytes]]:
    if not isinstance(envelope, dict):
        _refuse("it is no DSSE envelope")
    kind, signatures = envelope.get("payloadType"), envelope.get("signatures")
    if not isinstance(kind, str) or not isinstance(signatures, list) or not 0 < len(signatures) <= _MAX_SIGNATURES:
        _refuse(f"a DSSE envelope has payload, payloadType and 1 to {_MAX_SIGNATURES} signatures")
    found = [_decoded(item.get("sig") if isinstance(item, dict) else None) for item in signatures]
    return _decoded(envelope.get("payload")), kind, found


def _decoded(text: Any) -> bytes:
    """Decode base64 in its standard or its URL-safe alphabet (DSSE protocol, section on encodings)."""
    try:
        return base64.b64decode(str(text).replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, binascii.Error):
        _refuse("its payload or a signature is not base64")


def _pre_authentication(kind: str, payload: bytes) -> bytes:
    """Give what is signed (DSSE protocol, PAE)."""
    raw = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(raw), raw, len(payload), payload)


def _is_signed(pem: str, signature: bytes, signed: bytes) -> bool:
    key = load_pem_public_key(pem.encode())
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, signed)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(_CURVES[key.curve.name]))
        elif isinstance(key, rsa.RSAPublicKey):
            digest = hashes.SHA256()
            key.verify(signature, signed, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _refuse(because: str) -> NoReturn:
    message = f"The proof is not accepted: {because}. Nothing is stored."
    raise InvalidRequest(message)
