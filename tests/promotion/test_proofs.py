"""Proofs of evidence: signed by a configured key, saying what is posted, about the files of the version."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.errors import BadConfiguration, InvalidRequest
from service.promotion import proof
from service.promotion.environments import load_environments
from service.records import Capabilities
from tests.api.test_attacks import run_of
from tests.client import Client
from tests.promotion.flow import V1, ask, register, simple

DATA = Path(__file__).parent / "data"
RULES = "[{name: tested, require: \"passed(evidence, 'validation')\"}]"
FACTS = {"tests": 12}


def pem(private) -> str:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(private, raw: bytes) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(raw)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        digest = hashes.SHA256() if private.curve.name == "secp256r1" else hashes.SHA384()
        return private.sign(raw, ec.ECDSA(digest))
    return private.sign(raw, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def envelope(private, digest: str, *, kind="application/vnd.in-toto+json", **changes) -> dict:
    predicate = {"kind": "validation", "result": "passed", "facts": FACTS, **changes.pop("predicate", {})}
    statement = {
        "_type": proof.STATEMENT,
        "subject": [{"name": "iris", "digest": {"sha256": digest}}],
        "predicateType": proof.EVIDENCE,
        "predicate": predicate,
        **changes,
    }
    payload = json.dumps(statement).encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    signature = base64.b64encode(sign(private, signed)).decode()
    return {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [{"sig": signature}]}


KEYS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
}
GOOD = KEYS["ed25519"]
DIGEST = "d" * 64


@pytest.mark.parametrize("name", KEYS)
def test_each_kind_of_key(name: str) -> None:
    statement = proof.verify(envelope(KEYS[name], DIGEST), [pem(KEYS["p256"]), pem(KEYS[name])])
    proof.check_evidence(statement, kind="validation", result="passed", facts=FACTS, artifact_digest=DIGEST)
    assert statement.key == proof.key_id(pem(KEYS[name]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predicate": {"kind": "bias"}}, "its kind is not"),
        ({"predicate": {"result": "failed"}}, "its result is not"),
        ({"predicate": {"facts": {"tests": 13}}}, "its facts is not"),
        ({"subject": [{"digest": {"sha256": "e" * 64}}]}, "about other files"),
        ({"subject": []}, "about other files"),
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "its predicateType is not"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "the payload is no"),
        ({"kind": "text/plain"}, "payloadType is not"),
    ],
)
def test_what_says_something_else_proves_nothing(changes: dict, says: str) -> None:
    def check() -> None:
        statement = proof.verify(envelope(GOOD, DIGEST, **changes), [pem(GOOD)])
        proof.check_evidence(statement, kind="validation", result="passed", facts=FACTS, artifact_digest=DIGEST)

    with pytest.raises(InvalidRequest, match=says):
        check()


@pytest.mark.parametrize(
    ("signed", "posted"),
    [(0, False), (False, 0), (1, True), (1, 1.0), (1.0, 1), ([0], [False]), ({"a": 1}, {"a": True}), ("1", 1)],
)
def test_what_python_takes_for_equal_proves_nothing(signed: object, posted: object) -> None:
    statement = proof.verify(envelope(GOOD, DIGEST, predicate={"facts": {"unbiased": signed}}), [pem(GOOD)])
    about = {"kind": "validation", "result": "passed", "artifact_digest": DIGEST}
    with pytest.raises(InvalidRequest, match="its facts is not"):
        proof.check_evidence(statement, facts={"unbiased": posted}, **about)
    proof.check_evidence(statement, facts={"unbiased": signed}, **about)


def test_another_key_or_a_changed_payload_proves_nothing() -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(InvalidRequest, match="no key that is configured"):
        proof.verify(envelope(other, DIGEST), [pem(GOOD)])
    changed = envelope(GOOD, DIGEST)
    payload = base64.b64decode(changed["payload"]).replace(b"passed", b"failed")
    with pytest.raises(InvalidRequest, match="no key that is configured"):
        proof.verify({**changed, "payload": base64.b64encode(payload).decode()}, [pem(GOOD)])


@pytest.mark.parametrize(
    "bad",
    [
        None, [], "x", {}, {"payload": "", "payloadType": "x", "signatures": []},
        {"payload": "!", "payloadType": "x", "signatures": [{"sig": ""}]},
        {"payload": "", "payloadType": 1, "signatures": [{"sig": ""}]},
        {"payload": "", "payloadType": "x", "signatures": [{"sig": ""}] * 11},
        {"payload": "", "payloadType": "x", "signatures": [None]},
        {"payload": None, "payloadType": "x", "signatures": [{"sig": "AA=="}]},
    ],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(bad: object) -> None:
    with pytest.raises(InvalidRequest):
        proof.verify(bad, [pem(GOOD)])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("no key", "not a public key in PEM form"),
        (pem(rsa.generate_private_key(65537, 1024)), "RSA of at least 2048"),
        (pem(ec.generate_private_key(ec.SECP521R1())), "P-256 or P-384"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_at_load(tmp_path: Path, key: str, says: str) -> None:
    (tmp_path / "key.pem").write_text(key)
    path = simple(tmp_path, "evidence: {validation: {keys: [key.pem]}}")
    with pytest.raises(BadConfiguration, match=rf"yaml:5: keys: .*{says}"):
        load_environments(Path(path), {"main": Capabilities(aliases=True, stages=True, tags=True)})


def model_signing() -> tuple[dict, str]:
    """What the tool itself made (model-signing 1.1.1, `sign key`) over MLmodel ("a") and data/w.bin ("b")."""
    return json.loads((DATA / "model-signing.json").read_text()), (DATA / "model-signing.pem").read_text()


FILES = [("MLmodel", hashlib.sha256(b"a\n").hexdigest()), ("data/w.bin", hashlib.sha256(b"b\n").hexdigest())]


def test_a_bundle_of_model_signing_holds_for_its_files() -> None:
    bundle, key = model_signing()
    proof.check_model_signature(proof.verify(bundle["dsseEnvelope"], [key]), FILES)


@pytest.mark.parametrize(
    "files",
    [FILES[:1], [*FILES, ("more", "0" * 64)], [FILES[0], ("data/w.bin", "0" * 64)], [FILES[0], ("w.bin", FILES[1][1])]],
)
def test_and_for_no_others(files: list[tuple[str, str]]) -> None:
    bundle, key = model_signing()
    with pytest.raises(InvalidRequest, match="the files differ"):
        proof.check_model_signature(proof.verify(bundle["dsseEnvelope"], [key]), files)


async def post(client: Client, version: str, **fields):
    body = {"kind": "validation", "result": "passed", "facts": FACTS, **fields}
    return await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", body)


async def test_where_keys_are_configured_only_proved_evidence_counts(running, tmp_path):
    (tmp_path / "ci.pem").write_text(pem(GOOD))
    path = simple(tmp_path, "evidence: {validation: {keys: [ci.pem]}}", RULES)
    async with running(environments=path) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        unproved = await post(client, version)
        assert (unproved.status, unproved.json["proof"]) == (201, None)
        assert (await ask(client, "promotions", version)).status == 409
        digest = unproved.json["artifact_digest"]
        forged = await post(client, version, proof={"dsse": envelope(ed25519.Ed25519PrivateKey.generate(), digest)})
        assert (forged.status, "no key that is configured" in forged.json["detail"]) == (400, True)
        elsewhere = await post(client, version, proof={"dsse": envelope(GOOD, DIGEST)})
        assert (elsewhere.status, "other files" in elsewhere.json["detail"]) == (400, True)
        assert len((await client("GET", f"{V1}/iris/versions/{version}/evidence")).json["evidence"]) == 1
        assert len(await it.events(action="evidence:post", phase="rejected")) == 2
        proved = await post(client, version, proof={"dsse": envelope(GOOD, digest)})
        assert (proved.status, proved.json["proof"]["key"]) == (201, proof.key_id(pem(GOOD)))
        assert (await ask(client, "promotions", version)).status == 200
        other = await post(client, version, kind="bias", proof={"dsse": envelope(GOOD, digest)})
        assert (other.status, "No key is configured" in other.json["detail"]) == (400, True)


async def test_a_models_signature_over_what_the_registry_serves(running, tmp_path):
    bundle, key = model_signing()
    (tmp_path / "signer.pem").write_text(key)
    async with running(
        environments=simple(tmp_path, "evidence: {validation: {keys: [signer.pem], proof: model_signing}}", RULES)
    ) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        root = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model"
        it.memory.artifacts |= {f"{root}/MLmodel": b"a\n", f"{root}/data/w.bin": b"b\n"}
        more = await post(client, version, proof={"model_signing": bundle})
        assert (more.status, "without facts" in more.json["detail"]) == (400, True)
        assert (await post(client, version, facts={}, proof={"model_signing": bundle})).status == 201
        assert (await ask(client, "promotions", version, dry_run=True)).json["verdict"]["allowed"] is True
        it.memory.artifacts[f"{root}/data/w.bin"] = b"evil"
        assert (await ask(client, "promotions", version, dry_run=True)).json["verdict"]["allowed"] is False
        changed = await post(client, version, facts={}, proof={"model_signing": bundle})
        assert (changed.status, "the files differ: data/w.bin" in changed.json["detail"]) == (400, True)


async def test_a_models_signature_proves_no_other_kind(running, tmp_path):
    bundle, key = model_signing()
    (tmp_path / "signer.pem").write_text(key)
    more = "evidence: {validation: {keys: [signer.pem]}, signature: {keys: [signer.pem], proof: model_signing}}"
    async with running(environments=simple(tmp_path, more, RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        root = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model"
        it.memory.artifacts |= {f"{root}/MLmodel": b"a\n", f"{root}/data/w.bin": b"b\n"}
        for facts in (FACTS, {}):
            other = await post(client, version, facts=facts, proof={"model_signing": bundle})
            assert (other.status, "No key is configured" in other.json["detail"]) == (400, True)
        good = await post(client, version, kind="signature", facts={}, proof={"model_signing": bundle})
        assert (good.status, good.json["proof"]["type"]) == (201, "model-signing")
        assert (await ask(client, "promotions", version)).status == 409


async def test_evidence_with_another_proof_than_is_asked_for_now_does_not_count(running, tmp_path):
    bundle, key = model_signing()
    (tmp_path / "signer.pem").write_text(key)
    path = simple(tmp_path, "evidence: {validation: {keys: [signer.pem], proof: model_signing}}", RULES)
    async with running(environments=path) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        root = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model"
        it.memory.artifacts |= {f"{root}/MLmodel": b"a\n", f"{root}/data/w.bin": b"b\n"}
        assert (await post(client, version, facts={}, proof={"model_signing": bundle})).status == 201
        environment = it.application.environments.all[0]
        terms = dataclasses.replace(environment.evidence["validation"], proof="dsse")
        it.application.environments.all = (dataclasses.replace(environment, evidence={"validation": terms}),)
        assert (await ask(client, "promotions", version, dry_run=True)).json["verdict"]["allowed"] is False


@pytest.mark.parametrize("name", ["ed25519", "p256"])
async def test_a_proof_counts_once(running, tmp_path, name):
    private = KEYS[name]
    (tmp_path / "ci.pem").write_text(pem(private))
    path = simple(tmp_path, "evidence: {validation: {keys: [ci.pem], expire_after: 1h}}", RULES)
    async with running(environments=path) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        digest = (await post(client, version)).json["artifact_digest"]
        passed = envelope(private, digest)
        failed = envelope(private, digest, predicate={"result": "failed"})
        assert (await post(client, version, proof={"dsse": passed})).status == 201
        assert (await post(client, version, result="failed", proof={"dsse": failed})).status == 201
        for again in (passed, envelope(private, digest)):  # the same statement, signed again, is no other one
            replayed = await post(client, version, proof={"dsse": again})
            assert (replayed.status, "posted before" in replayed.json["detail"]) == (409, True)
        assert (await ask(client, "promotions", version, dry_run=True)).json["verdict"]["allowed"] is False
        anew = envelope(private, digest, predicate={"at": "2026-11-25T12:00:00Z"})
        assert (await post(client, version, proof={"dsse": anew})).status == 201
        assert (await ask(client, "promotions", version, dry_run=True)).json["verdict"]["allowed"] is True
