"""The configuration: what is refused, by which line; defaults and the environment."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from service.errors import BadConfiguration
from service.journal.database import shown
from service.settings import TOKEN, Configuration, data_dir, embedded_document, load
from service.settings import URL as URL_VARIABLE
from tests.conftest import ROOT

BASE = """\
registries:
  main:
    kind: mlflow
    url: http://mlflow:5000/prefix
access: {model: model.conf, rows: policy.csv}
environments: environments.yaml
authentication: {api_keys: api-keys.yaml}
journal: {url: "sqlite:///journal.db"}
"""
URL = "http://mlflow:5000/prefix"
Read = Callable[..., Configuration]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str = BASE, **environ: str) -> Configuration:
        path = tmp_path / "gateway.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, {f"REGISTRY_GATEWAY_{name}": value for name, value in environ.items()})

    return read


def test_defaults(read: Read) -> None:
    settings = read().settings
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8080)
    assert (settings.audit.sinks, settings.audit.reads) == (("stdout",), False)
    assert (settings.audit.cluster, settings.audit.replica_name) == ("default", socket.gethostname()[:63])
    assert settings.audit.checkpoints is None
    assert (settings.journal.deadline_seconds, settings.lock_seconds) == (2.0, 10.0)
    registry = settings.registries["main"]
    assert (registry.mode, registry.sources, registry.token_file, registry.workspace) == ("enforce", (), None, None)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BASE + "lissten: {}\n", 9, "unknown key 'lissten'"),
        (BASE + "listen:\n  host: h\n  prot: 1\n", 11, "unknown key 'listen.prot'"),
        (BASE + "audit: {read: true}\n", 9, "unknown key 'audit.read'"),
        (BASE.replace("rows:", "row:"), 5, "unknown key 'access.row'"),
        (BASE + "listen: {port: '80'}\n", 9, "listen.port: Expected `int`"),
        (BASE + "listen: {port: 65536}\n", 9, "listen.port: must be 0 to 65535"),
        (BASE + "listen: {port: -1}\n", 9, "listen.port"),
        (BASE + "listen: {trusted_proxies: [10.0.0.1/8]}\n", 9, "listen.trusted_proxies"),
        (BASE + "listen: {hosts: ['Gateway']}\n", 9, "listen.hosts"),
        (BASE + "listen: {hosts: ['gateway:80']}\n", 9, "listen.hosts"),
        (BASE + "listen: {public_url: 'http://gateway.example.com'}\n", 9, "listen.public_url"),
        (BASE + "listen: {public_url: 'https://gateway.example.com/'}\n", 9, "listen.public_url"),
        (BASE + "listen: {public_url: 'https://u@gateway'}\n", 9, "listen.public_url"),
        (BASE + "listen: 8080\n", 9, "listen: Expected `object`"),
        (BASE + "environments: other.yaml\n", 9, "'environments' stands twice"),
        (BASE + "default_registry: second\n", 9, "no registry is named 'second'"),
        (BASE + "default_registry: {mlflow: second}\n", 9, "no registry is named 'second'"),
        (BASE + "audit: {sinks: [stdout, kafka]}\n", 9, "unknown sink 'kafka'"),
        (BASE + "audit: {reads: sometimes}\n", 9, "audit.reads"),
        (BASE + "audit: {cluster: a/b}\n", 9, "audit.cluster: 1 to 63"),
        (BASE + "audit: {cluster: ''}\n", 9, "audit.cluster: 1 to 63"),
        (BASE + f"audit: {{replica: {'x' * 64}}}\n", 9, "audit.replica: 1 to 63"),
        (BASE + "audit: {checkpoints: {key: k.pem}}\n", 9, "audit.checkpoints"),
        (BASE + "audit: {checkpoints: {key: k.pem, kid: 'a b'}}\n", 9, "audit.checkpoints.kid: 1 to 63"),
        (BASE + "audit: {checkpoints: {key: k, kid: a, seconds: 0}}\n", 9, "audit.checkpoints.seconds: more than 0"),
        (BASE + "audit: {checkpoints: {key: k, kid: a, events: 0}}\n", 9, "audit.checkpoints.events: 1 to"),
        (BASE + "audit: {sensitive_tags: ['*_token']}\n", 9, "sensitive_tags and audit.hmac_key_file go together"),
        (BASE + "audit: {hmac_key_file: k}\n", 9, "sensitive_tags and audit.hmac_key_file go together"),
        (BASE + "audit: {sensitive_tags: [''], hmac_key_file: k}\n", 9, "the key of a tag is not empty"),
        (BASE.replace("mlflow\n", "unity_catalog\n"), 3, "registries.main.kind: unity_catalog is not supported"),
        (BASE.replace("mlflow\n", "databricks\n"), 3, "registries.main.kind: databricks is not supported"),
        (BASE.replace("mlflow\n", "MLflow\n"), 3, "unknown kind 'MLflow'"),
        (BASE.replace(URL, "http://user:secret@mlflow"), 4, "no credentials"),
        (BASE.replace(URL, "http://user@mlflow"), 4, "no credentials"),
        (BASE.replace(URL, "http://mlflow/?token=a"), 4, "no credentials, query or fragment"),
        (BASE.replace(URL, "'http://mlflow/#x'"), 4, "no credentials, query or fragment"),
        (BASE.replace(URL, "mlflow:5000"), 4, "must be http://"),
        (BASE.replace(URL, "ftp://mlflow"), 4, "must be http://"),
        (BASE.replace(URL, "http:///x"), 4, "must be http://"),
        (BASE.replace(URL, "unix:mlflow.sock"), 4, "absolute path"),
        (BASE.replace(URL, f"{URL}\n    mode: shadow"), 5, "none of enforce, warn, observe"),
        (BASE.replace(URL, f"{URL}\n    sources: ['s3://models']"), 5, "ends in /"),
        (BASE.replace(URL, f"{URL}\n    sources: ['models/']"), 5, "ends in /"),
        (BASE.replace(URL, f"{URL}\n    username: u"), 2, "username and password_file go together"),
        (BASE.replace(URL, f"{URL}\n    password_file: p"), 2, "username and password_file go together"),
        (BASE.replace(URL, f"{URL}\n    token_file: t\n    username: u\n    password_file: p"), 2, "not both"),
        (BASE.replace("  main:", "  ma/in:"), 2, "a name is of"),
        (BASE.replace("  main:", "  m\u00e4in:"), 2, "a name is of"),
        (BASE.replace("{api_keys: api-keys.yaml}", "{issuers: [a]}"), 7, "authentication.issuers.0: Expected `object`"),
        (BASE.replace("{api_keys: api-keys.yaml}", "{}"), 7, "no way to authenticate"),
        (BASE.replace("sqlite:///journal.db", "mysql://db/x"), 8, "sqlite:///path or postgresql://user@host/database"),
        (BASE.replace("sqlite:///journal.db", "sqlite://journal.db"), 8, "three slashes"),
        (BASE.replace("sqlite:///journal.db", "postgresql://u:secret@db/x"), 8, "no password here"),
        (BASE.replace("sqlite:///journal.db", "postgresql://u@db:x/x"), 8, "journal.url"),
        (
            BASE.replace("sqlite:///journal.db", "postgresql://u@db/x"),
            8,
            "secret_file: a journal on PostgreSQL needs it",
        ),
        (BASE.replace('journal.db"', 'journal.db", password_file: p'), 8, "no password"),
        ("- a\n", 1, "must be a mapping"),
        ("", 1, "must be a mapping"),
        ("registries: [\n", 2, "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(read: Read, text: str, line: int, says: str) -> None:
    with pytest.raises(BadConfiguration, match=rf"gateway\.yaml:{line}: .*{re.escape(says)}"):
        read(text)


def test_a_refused_url_is_not_repeated_with_its_password(read: Read) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read(BASE.replace(URL, "http://user:hunter2@mlflow"))
    assert "hunter2" not in caught.value.detail


@pytest.mark.parametrize("key", ["access", "authentication", "registries"])
def test_what_is_missing_is_named(read: Read, key: str) -> None:
    text = re.sub(rf"(?m)^{key}:.*\n(  .*\n)*", "", BASE)
    with pytest.raises(BadConfiguration, match=f"missing required field `{key}`"):
        read(text)


def test_no_registry_is_refused(read: Read) -> None:
    with pytest.raises(BadConfiguration, match="at least one registry"):
        read(re.sub(r"(?m)^registries:\n(  .*\n)*", "registries: {}\n", BASE))


def test_the_environment_overrides_every_key(read: Read) -> None:
    settings = read(
        LISTEN__PORT="9000",
        REGISTRIES__MAIN__URL="unix:/run/mlflow.sock",
        REGISTRIES__MAIN__SOURCES="['s3://a/']",
        AUDIT__READS="true",
        ENVIRONMENTS="other.yaml",
        LOCK_SECONDS="0.5",
    ).settings
    assert settings.listen.port == 9000
    assert settings.registries["main"].url == "unix:/run/mlflow.sock"
    assert settings.registries["main"].kind == "mlflow"
    assert settings.registries["main"].sources == ("s3://a/",)
    assert settings.audit.reads is True
    assert settings.environments == "other.yaml"
    assert settings.lock_seconds == 0.5


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LISSTEN__PORT", "1", "REGISTRY_GATEWAY_LISSTEN__PORT: unknown setting 'lissten.port'"),
        ("LISTEN__PROT", "1", "REGISTRY_GATEWAY_LISTEN__PROT: unknown key 'listen.prot'"),
        ("LISTEN__PORT", "http", "REGISTRY_GATEWAY_LISTEN__PORT: listen.port: Expected `int`"),
        ("LISTEN", "{port: 99999}", "REGISTRY_GATEWAY_LISTEN: listen.port: must be"),
        (
            "REGISTRIES__MAIN__MODE",
            "off",
            "REGISTRY_GATEWAY_REGISTRIES__MAIN__MODE: registries.main.mode: Expected `str`",
        ),
        ("REGISTRIES__MAIN__MODE", "obsreve", "'obsreve' is none of enforce, warn, observe"),
        ("REGISTRIES__MAIN__USERNAME", "u", "gateway.yaml:"),
        ("ENVIRONMENTS__X", "1", "'environments' is not a group of settings"),
        ("REGISTRIES__MAIN__KIND", "databricks", "databricks is not supported"),
        ("REGISTRIES__MAIN__URL", "http://u:p@h", "no credentials"),
    ],
)
def test_an_override_is_checked_like_the_file(read: Read, name: str, value: str, says: str) -> None:
    with pytest.raises(BadConfiguration, match=re.escape(says)):
        read(BASE, **{name: value})


def test_our_own_variables_are_no_settings(read: Read) -> None:
    others = {"CONFIG": "/elsewhere.yaml", "DATA_DIR": "/data", "URL": "http://gateway", "TOKEN": "rgw_x"}
    assert read(**others).settings.environments == "environments.yaml"


def test_the_variables_of_the_clients_are_those_that_its_guide_names() -> None:
    guide = (ROOT / "docs/cli.md").read_text()
    assert set(re.findall(r"REGISTRY_GATEWAY_[A-Z]+", guide)) == {URL_VARIABLE, TOKEN}


def test_the_variable_names_the_file_and_the_argument_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(BASE)
    two.write_text(BASE + "lock_seconds: 3\n")
    environ = {"REGISTRY_GATEWAY_CONFIG": str(two)}
    assert load(None, environ).settings.lock_seconds == 3
    assert load(one, environ).settings.lock_seconds == 10
    with pytest.raises(BadConfiguration, match=r"three\.yaml: No such file"):
        load(tmp_path / "three.yaml", environ)


def test_relative_paths_are_relative_to_the_file(
    read: Read, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    found = read()
    assert found.path(found.settings.access.rows) == tmp_path / "policy.csv"
    assert found.path("/etc/x") == Path("/etc/x")
    assert found.journal_url() == f"sqlite:///{tmp_path}/journal.db"
    assert read(BASE.replace("sqlite:///journal.db", "sqlite:////var/j.db")).journal_url() == "sqlite:////var/j.db"
    monkeypatch.chdir(tmp_path)
    assert load(Path("gateway.yaml"), {}).path("x") == tmp_path / "x"


def test_the_only_registry_of_a_kind_is_its_default(read: Read) -> None:
    second = BASE.replace("access:", "  second:\n    kind: mlflow\n    url: http://other\naccess:", 1)
    assert read().settings.default_of("mlflow") == "main"
    assert read().settings.default_of("databricks") is None
    assert read(second).settings.default_of("mlflow") is None
    assert read(second + "default_registry: second\n").settings.default_of("mlflow") == "second"
    assert read(second + "default_registry: {mlflow: main}\n").settings.default_of("mlflow") == "main"


def test_the_embedded_default_is_a_valid_configuration(tmp_path: Path) -> None:
    found = load(None, {"REGISTRY_GATEWAY_DATA_DIR": str(tmp_path)})
    assert found.file is None
    assert found.settings.registries["main"].url == f"unix:{tmp_path}/mlflow/mlflow.sock"
    assert found.journal_url() == f"sqlite:///{tmp_path}/journal.db"
    assert Path(embedded_document(tmp_path)["access"]["rows"]).is_file()
    assert data_dir({}) == Path.cwd() / ".gateway"


def test_a_password_of_the_journal_comes_from_its_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a:b/c@d\n")
    text = BASE.replace('"sqlite:///journal.db"', '"postgresql://u@db:5433/x?ssl=require", password_file: p')
    found = read(text + "secret_file: s\n")
    assert found.journal_url() == "postgresql://u:a%3Ab%2Fc%40d@db:5433/x?ssl=require"
    assert shown(found.journal_url()) == "postgresql://u:***@db:5433/x"


def test_without_environments_and_journal_there_are_defaults(read: Read) -> None:
    document = yaml.safe_load(BASE)
    del document["environments"], document["journal"]
    configuration = read(yaml.safe_dump(document))
    assert configuration.settings.environments is None
    assert configuration.journal_url() == f"sqlite:///{configuration.base / 'journal.db'}"
