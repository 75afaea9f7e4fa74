"""Which issuers are served, and which are refused at start: by name, line and what to do."""

from __future__ import annotations

import pytest

from service.authentication.presets import PRESETS
from service.errors import BadConfiguration
from service.settings import load
from tests.conftest import write_configuration
from tests.identity.signer import AUDIENCE, ISSUER

GENERIC = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"{ISSUER}/keys", "principal": "user:{sub}"}
OTHER = {**GENERIC, "issuer": "https://other.example"}


def settings_of(tmp_path, *issuers, **more):
    authentication = {"issuers": list(issuers), **more}
    return load(write_configuration(tmp_path, authentication=authentication), environ={}).settings.authentication


@pytest.mark.parametrize(
    ("issuers", "says"),
    [
        ([{**GENERIC, "jwks_uri": "x"}], "unknown key 'authentication.issuers.0.jwks_uri'"),
        ([{**GENERIC, "preset": "okta"}], "it is one of: entra, generic, github, gitlab, kubernetes"),
        ([{k: v for k, v in GENERIC.items() if k != "audience"}], "missing required field `audience`"),
        ([{**GENERIC, "issuer": ""}], "issuers.0.issuer"),
        ([{**GENERIC, "issuer": "api-key"}], "issuers.0.issuer"),
        ([{**GENERIC, "issuer": f"{ISSUER} "}], "issuers.0.issuer"),
        ([{**GENERIC, "audience": ["a"]}], "audience"),
        ([{**GENERIC, "jwks_url": "http://issuer.example/keys"}], "must be https://"),
        ([{**GENERIC, "jwks_url": "http://127.0.0.1.evil.example/keys"}], "must be https://"),
        ([{**GENERIC, "jwks_url": "http://2130706433/keys"}], "must be https://"),
        ([{**GENERIC, "jwks_url": "ftp://127.0.0.1/keys"}], "must be https://"),
        ([{**GENERIC, "jwks_url": "https:///keys"}], "must be https://"),
        ([{**GENERIC, "jwks_url": "https://u:p@issuer.example/keys"}], "no credentials"),
        ([{**GENERIC, "jwks_url": "https://issuer.example/keys#x"}], "no fragment"),
        ([{**GENERIC, "jwks_url": "https://issuer.example:x/keys"}], "issuers.0.jwks_url"),
        ([{**GENERIC, "jwks_file": "keys.json"}], "not both"),
        ([{k: v for k, v in GENERIC.items() if k != "jwks_url"}], "name jwks_url or jwks_file"),
        ([{**GENERIC, "jwks_url": "http://127.0.0.1/keys", "ca_file": "ca.pem"}], "only for an https://"),
        ([{**GENERIC, "principal": "{sub}"}], "does not begin with user: or service:"),
        ([{**GENERIC, "principal": "group:{sub}"}], "does not begin with user: or service:"),
        ([{k: v for k, v in GENERIC.items() if k != "principal"}], "principal is missing"),
        ([{**GENERIC, "groups": "user:{groups}"}], "does not begin with group:"),
        ([{**GENERIC, "groups": "group:everybody"}], "names no claim"),
        ([{**GENERIC, "acting_for": "group:{a}"}], "issuers.0.acting_for"),
        ([{**GENERIC, "algorithms": ["none"]}], "'none' cannot be used"),
        ([{**GENERIC, "algorithms": ["RS256", "HS256"]}], "'HS256' cannot be used"),
        ([{**GENERIC, "algorithms": []}], "issuers.0.algorithms"),
        ([{**GENERIC, "leeway_seconds": 61}], "leeway_seconds: 0 to 60"),
        ([{**GENERIC, "leeway_seconds": -1}], "leeway_seconds: 0 to 60"),
        ([{**GENERIC, "max_lifetime_seconds": 0}], "max_lifetime_seconds: 1 to 2592000"),
        ([{**GENERIC, "max_lifetime_seconds": 1e9}], "max_lifetime_seconds: 1 to 2592000"),
        ([{**GENERIC, "jwks_refresh_seconds": 1}], "jwks_refresh_seconds: 10 to 86400"),
        ([{**GENERIC, "jwks_stale_seconds": 10}], "jwks_stale_seconds: 300 to 604800"),
        ([{**GENERIC, "require": {"a": []}}], "'a' needs a value"),
        ([{**GENERIC, "require": {"a": {"b": 1}}}], "require"),
        ([{**GENERIC, "claims": ["a", "a"]}], "different names"),
        ([GENERIC, {**GENERIC}], "issuers.1.issuer and audience are those of issuers.0"),
        ([GENERIC, OTHER], "could give a name that is also one by 'user:{sub}' of issuers.0"),
        ([GENERIC, {**OTHER, "shared": True}], "shared: true on both"),
        ([GENERIC, {**OTHER, "principal": "user:corp-{sub}"}], "could give a name"),
        ([GENERIC, {**GENERIC, "audience": "b", "principal": "user:{email}"}], "could give a name"),
        ([{**GENERIC, "groups": "group:{groups}"},
          {**OTHER, "principal": "service:{sub}", "groups": "group:{roles}"}], "groups: 'group:{roles}'"),
        ([{"preset": "github", "issuer": PRESETS["github"].issuer, "audience": "a"}], "everybody can get a token"),
        ([{"preset": "github", "issuer": PRESETS["github"].issuer, "audience": "a", "require": {"repository": "a/b"}}],
         "repository_owner_id: '1234567'"),
        ([{"preset": "gitlab", "issuer": "https://gitlab.com", "audience": "a"}], "everybody can get a token"),
        ([{**GENERIC, "issuer": PRESETS["github"].issuer}], "everybody can get a token"),
        ([{"preset": "github", "audience": "a", "issuer": PRESETS["github"].issuer,
           "require": {"repository_owner_id": 65}}], "write repository_owner_id: '65', with quotation marks"),
        ([{"preset": "gitlab", "issuer": "https://gitlab.com", "audience": "a",
           "require": {"project_id": ["1", "2"], "ref_protected": True}}], "write ref_protected: 'true'"),
        ([{**GENERIC, "issuer": "https://gitlab.com"}], "namespace_id: '1234567'"),
        ([{"preset": "gitlab", "issuer": "https://gitlab.corp", "audience": "a"}], "name jwks_url or jwks_file"),
    ],
)  # fmt: skip
def test_issuers_that_are_refused_at_start(tmp_path, issuers, says):
    with pytest.raises(BadConfiguration, match=r"gateway\.yaml:\d+: ") as caught:
        settings_of(tmp_path, *issuers)
    assert says in caught.value.detail


def test_the_line_of_the_problem_is_named(tmp_path):
    path = write_configuration(tmp_path, authentication={"issuers": [GENERIC, {**OTHER, "leeway_seconds": 99}]})
    with pytest.raises(BadConfiguration) as caught:
        load(path, environ={})
    line = int(caught.value.detail.split(":")[1])
    assert "leeway_seconds: 99" in path.read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    "issuers",
    [
        [GENERIC, {**OTHER, "principal": "service:{sub}"}],
        [{**GENERIC, "principal": "user:a-{sub}"}, {**OTHER, "principal": "user:b-{sub}"}],
        [GENERIC, {**GENERIC, "audience": "second"}],
        [{**GENERIC, "shared": True}, {**OTHER, "shared": True}],
        [{**GENERIC, "jwks_url": "http://127.0.0.1:1/keys"}],
        [{**GENERIC, "jwks_url": "http://[::1]:1/keys"}],
        [{**GENERIC, "jwks_url": "http://localhost:1/keys"}],
        [{**GENERIC, "jwks_url": "https://issuer.example/keys?appid=1"}],
        [{**GENERIC, "require": {"a": ["x", "y"], "b": True, "c": 7}, "groups": ["group:a-{g}", "group:b-{g}"]}],
    ],
)
def test_issuers_that_go_together(tmp_path, issuers):
    assert len(settings_of(tmp_path, *issuers).issuers) == len(issuers)
