"""TLS with a registry, over real sockets: own authorities, client certificates, names, and rotated secrets."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from service.app import Application
from service.backends.credentials import Secret, basic, bearer, tls_context
from service.backends.http import HttpTransport
from service.errors import BadConfiguration, RegistryUnavailable
from service.model import Request
from service.settings import load
from tests.client import Client
from tests.conftest import write_configuration
from tests.faults.upstream_server import plain, upstream

pytestmark = pytest.mark.real
READ = Request("MlflowService.getExperiment", "GET", "/api/2.0/mlflow/experiments/get", {"experiment_id": "0"})
NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """Signs certificates and writes them below *directory*."""

    def __init__(self, directory, name):
        self.directory, self.name = directory, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self.sign(name, self.key.public_key(), authority=True)
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name, public, *, host="localhost", days=1, authority=False):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=10))
            .not_valid_after(NOW + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, password=None, **options):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.directory / f"{name}.crt"
        certificate.write_bytes(self.sign(name, key.public_key(), **options).public_bytes(serialization.Encoding.PEM))
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        private = self.directory / f"{name}.key"
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
        return certificate, private


@pytest.fixture
def ours(tmp_path):
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path):
    return Authority(tmp_path, "theirs")


def serving(certificate, key, clients=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


async def ask(server, context):
    transport = HttpTransport("main", server.url, timeout_seconds=2, tls=context)
    try:
        with capture_logs() as logs:
            try:
                return (await transport.send(READ, writes=False)).status, logs
            except RegistryUnavailable as error:
                return error.detail, logs
    finally:
        await transport.close()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("good", None),
        ("another authority", "unable to get local issuer"),
        ("the system's authorities", "unable to get local issuer"),
        ("expired", "expired"),
        ("another name", "localhost"),
    ],
)
async def test_whom_the_gateway_trusts(ours, theirs, how, says):
    options = {"expired": {"days": -1}, "another name": {"host": "elsewhere"}}.get(how, {})
    trusted = {"another authority": theirs.path, "the system's authorities": None}.get(how, ours.path)
    async with upstream(plain(), tls=serving(*ours.issue("server", **options))) as server:
        answer, logs = await ask(server, tls_context("registries.main", trusted, None, None))
        if says is None:
            assert answer == 200
            return
        assert "do not trust each other; nothing was forwarded" in answer
        assert [(line["event"], line["registry"]) for line in logs] == [("TLS with the registry failed", "main")]
        assert says in logs[0]["problem"]
        assert server.seen == []


@pytest.mark.parametrize("how", ["good", "none", "another authority"])
async def test_mutual_tls(ours, theirs, how):
    shown = {"good": ours.issue("client"), "none": (None, None), "another authority": theirs.issue("client2")}[how]
    async with upstream(plain(), tls=serving(*ours.issue("server"), clients=ours.path)) as server:
        answer, logs = await ask(server, tls_context("registries.main", ours.path, *shown))
        if how == "good":
            assert answer == 200
        else:
            assert isinstance(answer, str)
            assert server.seen == []
            assert all("client certificate?" in line["event"] for line in logs)
            assert len(logs) == 3


async def test_through_the_whole_gateway(ours, theirs, running):
    async with upstream(plain(), tls=serving(*ours.issue("server"))) as server:
        transport = HttpTransport("main", server.url, tls=tls_context("r", theirs.path, None, None))
        async with running(transport=transport) as it:
            answer = await Client(it.application.asgi).rpc("GET", "experiments/get", experiment_id="0")
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert "certificate" not in answer.json["message"]  # the log says which and why


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"ca_file": "none.pem"}, "registries.main.ca_file: "),
        ({"ca_file": "junk"}, "no certificates in PEM form"),
        ({"client_certificate_file": "a.crt", "client_key_file": "b.key"}, "client_certificate_file, client_key_file"),
        ({"client_certificate_file": "a.crt", "client_key_file": "none"}, "No such file"),
        ({"client_certificate_file": "a.crt", "client_key_file": "locked.key"}, "encrypted key"),
        ({"client_certificate_file": "a.crt"}, "go together"),
        ({"client_key_file": "a.key"}, "go together"),
        ({"url": "http://h", "ca_file": "ours.pem"}, "ca_file: only for an https:// url"),
        ({"url": "unix:/s", "client_certificate_file": "a.crt", "client_key_file": "a.key"}, "only for an https://"),
        ({"token_file": "none"}, "registries.main.token_file: "),
        ({"token_file": "empty"}, "one line"),
        ({"token_file": "lines"}, "one line"),
        ({"connections": 0}, "registries.main.connections: 1 to 1000"),
        ({"streams": 1001}, "registries.main.streams: 1 to 1000"),
    ],
)
def test_what_cannot_work_is_refused_at_start(tmp_path, ours, entry, says):
    for name in ("a", "b"):
        ours.issue(name)
    ours.issue("locked", password=b"secret")
    for name, text in (("junk", "junk"), ("empty", "\n"), ("lines", "a\nb\n")):
        (tmp_path / name).write_text(text)
    if entry.get("client_key_file") == "locked.key":
        entry = {**entry, "client_certificate_file": "locked.crt"}
    config = write_configuration(tmp_path, registries={"main": {"kind": "mlflow", "url": "https://h", **entry}})
    with pytest.raises(BadConfiguration, match=r"registries\.main") as caught:
        Application(load(config, environ={}))
    assert says in caught.value.detail
    assert "Traceback" not in caught.value.detail


def test_a_rotated_secret_is_read_again(tmp_path):
    path = tmp_path / "token"
    path.write_text("one\n")
    header = bearer(Secret("registries.main.token_file", path))
    assert header() == "Bearer one"
    path.write_text("second\n")
    assert header() == "Bearer second"
    replacement = tmp_path / "new"  # as Kubernetes and many tools do it
    replacement.write_text("third\n")
    replacement.replace(path)
    assert header() == "Bearer third"
    with capture_logs() as logs:
        path.unlink()
        assert [header(), header()] == ["Bearer third"] * 2
        path.write_text("")
        assert header() == "Bearer third"
    assert [line["event"] for line in logs] == ["the old secret stays in force"] * 2
    assert "third" not in str(logs)
    assert basic("u", lambda: "p")() == "Basic dTpw"
