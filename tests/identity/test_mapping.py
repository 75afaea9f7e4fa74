"""Claims -> principal: the presets with the claims that their issuers send, and names that nothing can break out of."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.authentication.issuer import Issuer
from service.authentication.issuers import Mapped
from service.authentication.jwks import FileKeys
from service.authentication.presets import PRESETS
from service.authentication.tokens import REFUSED, Token
from service.authorization.snapshot import Snapshot
from service.errors import Unauthenticated
from service.promotion.environments import load_environments
from service.records import Capabilities
from tests.conftest import ROOT
from tests.identity.samples import ENTRA, LIKE, TENANT
from tests.identity.signer import AUDIENCE, ISSUER, key_set, signer
from tests.identity.test_issuer import settings_of

OTHERS = {
    "github": {"environment": "staging"},
    "gitlab": {"environment": "production", "environment_protected": "false"},
    "kubernetes": {},
    "entra": {"roles": ["Reader"]},
}
"""What takes the right of the guide's row away."""


def token(claims):
    return Token(claims.get("iss", ISSUER), claims, "0" * 64, claims.get("jti"), claims.get("iat"), 2e9)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(signer("ES256")))
    return FileKeys(path)


@pytest.fixture
def mapped(keys):
    def mapped(preset="generic", **changes):
        return Mapped(
            Issuer(changes.pop("issuer", ISSUER), AUDIENCE, preset, jwks_file="f", **changes), keys, lambda: 0
        )

    return mapped


@pytest.mark.parametrize(
    ("preset", "changes", "subject", "groups", "acting_for"),
    [
        ("github", {}, "service:github-74",
         {"group:github-74/environment/prod", "group:github-74/ref/refs/heads/main"}, "user:github-12"),
        ("github", {"environment": None, "ref": "refs/pull/7/merge"}, "service:github-74",
         {"group:github-74/ref/refs/pull/7/merge"}, "user:github-12"),
        ("github", {"environment": "../../ref/refs/heads/main"}, "service:github-74",
         {"group:github-74/environment/../../ref/refs/heads/main", "group:github-74/ref/refs/heads/main"},
         "user:github-12"),  # a group is compared as a whole, never as a path
        ("gitlab", {}, "service:gitlab-20", {"group:gitlab-20/ref-protected-false/branch/feature-branch-1",
         "group:gitlab-20/environment-protected-false/test-environment2"}, "user:gitlab-1"),
        ("gitlab", {"environment": None, "environment_protected": None, "ref_protected": "true", "ref": "main"},
         "service:gitlab-20", {"group:gitlab-20/ref-protected-true/branch/main"}, "user:gitlab-1"),
        ("gitlab", {"environment": "x/environment-protected-true/production"}, "service:gitlab-20",
         {"group:gitlab-20/ref-protected-false/branch/feature-branch-1",
          "group:gitlab-20/environment-protected-false/x/environment-protected-true/production"}, "user:gitlab-1"),
        ("kubernetes", {}, "service:kubernetes/my-namespace/my-serviceaccount",
         {"group:kubernetes/my-namespace"}, None),
        ("entra", {}, f"user:entra-{TENANT}/0000aaaa-11bb-cccc-dd22-eeeeee333333",
         {f"group:entra-{TENANT}/group/22223333-cccc-4444-dddd-5555eeee6666", f"group:entra-{TENANT}/role/Promoter",
          f"group:entra-{TENANT}/role/Reader"}, None),
        ("entra", {"groups": "role/Owner", "roles": None}, f"user:entra-{TENANT}/0000aaaa-11bb-cccc-dd22-eeeeee333333",
         {f"group:entra-{TENANT}/group/role/Owner"}, None),  # a group's name may be of those who make it
        ("entra", {"groups": None, "roles": None}, f"user:entra-{TENANT}/0000aaaa-11bb-cccc-dd22-eeeeee333333",
         set(), None),
        ("entra", {"groups": [], "roles": []}, f"user:entra-{TENANT}/0000aaaa-11bb-cccc-dd22-eeeeee333333",
         set(), None),
    ],
)  # fmt: skip
def test_presets(mapped, preset, changes, subject, groups, acting_for):
    claims = {name: value for name, value in {**LIKE[preset], **changes}.items() if value is not None}
    found = mapped(preset, issuer=claims["iss"]).principal(token(claims))
    assert (found.subject, set(found.groups), found.acting_for) == (subject, groups, acting_for)
    assert (found.issuer, found.credential) == (claims["iss"], "0" * 64)


@pytest.mark.parametrize(
    ("preset", "changes", "says"),
    [
        ("github", {"repository_id": None}, "'repository_id' is missing"),
        ("github", {"repository_id": 74}, "'repository_id' is int, not text"),
        ("github", {"repository_id": ["74"]}, "is list, not text"),
        ("github", {"repository_id": ""}, "is empty"),
        ("github", {"repository_id": "74/ref/refs/heads/main"}, "holds '/'"),
        ("github", {"actor_id": None}, "'actor_id' is missing"),
        ("github", {"actor_id": "12:admin"}, "holds a colon"),
        ("github", {"ref": "refs/heads/a:b"}, "holds a colon"),
        ("github", {"environment": "prod\u202e"}, "control or format"),
        ("github", {"environment": " prod"}, "white space"),
        ("github", {"environment": ["a", 1]}, "is int, not text"),
        ("github", {"environment": None, "ref": None, "repository_owner_id": "66"}, "'repository_owner_id' is '66'"),
        ("gitlab", {"project_id": None}, "'project_id' is missing"),
        ("gitlab", {"ref_protected": True}, "is bool, not text"),
        ("gitlab", {"ref_protected": "true/branch"}, "holds '/'"),
        ("gitlab", {"user_id": None}, "'user_id' is missing"),
        ("kubernetes", {"kubernetes.io": None}, "is missing"),
        ("kubernetes", {"kubernetes.io": "my-namespace"}, "is missing"),
        ("kubernetes", {"kubernetes.io": {"namespace": "a"}}, "is missing"),
        ("kubernetes", {"kubernetes.io": {"namespace": "a/b", "serviceaccount": {"name": "c"}}}, "holds '/'"),
        ("kubernetes", {"kubernetes.io": {"namespace": "a", "serviceaccount": ["c"]}}, "is missing"),
        ("entra", {"oid": None}, "'oid' is missing"),
        ("entra", {"groups": ["a", "b:c"]}, "holds a colon"),
        ("entra", {"groups": {"a": 1}}, "is dict, not text"),
        ("entra", {"groups": [str(index) for index in range(501)]}, "over 500 names"),
    ],
)  # fmt: skip
def test_claims_that_make_no_name(mapped, preset, changes, says):
    claims = {name: value for name, value in {**LIKE[preset], **changes}.items() if value is not None}
    require = {"repository_owner_id": "65"} if preset == "github" else {}
    with pytest.raises(Unauthenticated) as caught:
        mapped(preset, issuer=claims["iss"], require=require).principal(token(claims))
    assert says in caught.value.reason
    assert caught.value.detail == REFUSED


def test_groups_that_any_issuer_left_out_are_refused(mapped):
    found = mapped("generic", principal="user:{sub}", groups="group:{teams}")
    assert found.principal(token({"sub": "ann", "_claim_names": {"address": "src1"}})).groups == frozenset()
    with pytest.raises(Unauthenticated, match="leaves out groups"):
        found.principal(token({"sub": "ann", "_claim_names": {"teams": "src1"}}))


@pytest.mark.parametrize(
    ("template", "sub"), [("user:{sub}", "unauthenticated"), ("service:registry-{sub}", "gateway")]
)
def test_nobody_is_named_like_the_gateway_or_like_nobody(mapped, template, sub):
    found = mapped("generic", principal=template)
    assert found.principal(token({"sub": "ann"})).subject.endswith("ann")
    with pytest.raises(Unauthenticated) as caught:
        found.principal(token({"sub": sub}))
    assert "the gateway's own word" in caught.value.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": None, "_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://g/x"}}},
        {"groups": None, "hasgroups": True},
        {"groups": None, "hasgroups": "true"},
        {"_claim_names": {"groups": "src1"}},
        {"_claim_names": {"roles": "src1"}},
    ],
)
def test_groups_that_entra_left_out_are_told_to_the_caller(mapped, changes):
    claims = {name: value for name, value in {**ENTRA, **changes}.items() if value is not None}
    with pytest.raises(Unauthenticated, match="leaves out groups because there are too many"):
        mapped("entra").principal(token(claims))


@pytest.mark.parametrize(
    ("wanted", "said", "good"),
    [
        ("65", "65", True), ("65", 65, False), (65, 65, True), (1, True, False), (True, True, True), (True, 1, False),
        (("a", "b"), "b", True), (("a", "b"), "c", False), (("a", "b"), ["a"], False), ("a", None, False),
        ("a", "A", False), ("a", "a ", False), (True, "true", False),
    ],
)  # fmt: skip
def test_required_claims_are_exact(mapped, wanted, said, good):
    one = mapped(principal="user:{sub}", require={"who": wanted})
    claims = {"sub": "ann", **({"who": said} if said is not None else {})}
    if good:
        assert one.principal(token(claims)).subject == "user:ann"
    else:
        with pytest.raises(Unauthenticated) as caught:
            one.principal(token(claims))
        assert "'who'" in caught.value.reason


def test_claims_for_rules_are_bounded(mapped):
    one = mapped(principal="user:{sub}", claims=("a", "b", "c", "d", "e", "f", "/g/h", "i"))
    said = {
        "sub": "x", "a": "x" * 5000, "b": True, "c": 1 << 70, "d": ["y"] * 500, "e": {"deep": 1}, "f": 1.5,
        "g": {"h": "z"}, "secret": "s",
    }  # fmt: skip
    told = one.principal(token(said)).claims
    assert told == {"a": "x" * 1000, "b": True, "d": ["y"] * 100, "f": 1.5, "/g/h": "z"}


@pytest.mark.parametrize(
    "sub", ["group:platform", "role:admin", "user:admin", ":", "x:", "admin\n", "\u200badmin", "admin "]
)
def test_a_subject_that_is_named_like_something_else_is_refused(mapped, sub):
    one = mapped(principal="user:{sub}", groups="group:{groups}")
    for claims in ({"sub": sub}, {"sub": "ann", "groups": [sub]}, {"sub": "ann", "groups": sub}):
        with pytest.raises(Unauthenticated):
            one.principal(token(claims))


@pytest.mark.parametrize(
    "sub", ["group", "platform", "role", "admin", "*", "role%3Aadmin", "group\uff1aplatform", "service", "p, user"]
)
def test_the_policy_gives_nothing_to_who_is_named_like_a_group_or_a_role(mapped, tmp_path, sub):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "p, group:platform, *, *, *, allow\np, role:admin, *, *, *, allow\np, user:root, *, *, *, allow\n"
        "g, user:root, role:admin\n"
    )
    snapshot = Snapshot(ROOT / "policies/model.conf", rows, ["main"])
    one = mapped(principal="user:{sub}", groups="group:corp-{groups}")
    principal = one.principal(token({"sub": sub, "groups": [sub]}))
    assert not snapshot.decide(principal, "main", "models/fraud", "model:read").allowed
    root = one.principal(token({"sub": "root"}))
    assert snapshot.decide(root, "main", "models/fraud", "model:read").allowed  # the row does what it says


def blocks():
    for document in sorted((ROOT / "docs/identity").glob("*.md")):
        for index, block in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)):
            if "issuers:" in block:
                yield pytest.param(document.stem, block, id=f"{document.stem}-{index}")


@pytest.mark.parametrize(("document", "block"), list(blocks()))
def test_the_configurations_of_the_guides_load(tmp_path, document, block):
    found = settings_of(tmp_path, *yaml.safe_load(block)["authentication"]["issuers"])
    assert all(one.preset == document for one in found.issuers if document not in ("README", "exchange"))


@pytest.mark.parametrize(
    ("preset", "changes", "action"),
    [
        ("github", {"environment": "production"}, "environment:promote"),
        ("gitlab", {"environment": "production", "environment_protected": "true"}, "environment:promote"),
        (
            "kubernetes",
            {"kubernetes.io": {"namespace": "serving", "serviceaccount": {"name": "fraud-api"}}},
            "model:read",
        ),
        ("entra", {}, "environment:promote"),
    ],
)
def test_the_row_of_a_guide_does_what_it_says(mapped, tmp_path, preset, changes, action):
    rows = re.findall(r"^    (p, .*)$", (ROOT / f"docs/identity/{preset}.md").read_text(), re.MULTILINE)
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    snapshot = Snapshot(ROOT / "policies/model.conf", tmp_path / "rows.csv", ["main"])
    where = "models/fraud/environments/production" if action == "environment:promote" else "models/fraud/versions"
    one = mapped(preset, issuer=LIKE[preset]["iss"])
    for said, allowed in (({**LIKE[preset], **changes}, True), ({**LIKE[preset], **OTHERS[preset]}, False)):
        assert snapshot.decide(one.principal(token(said)), "main", where, action).allowed is allowed


def test_the_rule_of_a_guide_loads(tmp_path):
    text = (ROOT / "docs/identity/github.md").read_text()
    rule = yaml.safe_load(re.search(r"```yaml\n(- name: .*?)```", text, re.DOTALL)[1])
    path = tmp_path / "environments.yaml"
    found = {"where": {"registry": "main", "models": "*"}, "marks": [{"alias": "champion"}], "rules": rule}
    path.write_text(yaml.safe_dump({"environments": {"production": found}}))
    capabilities = {"main": Capabilities(aliases=True, stages=True, tags=True)}
    assert len(load_environments(path, capabilities)[0].rules) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


SAID = st.text(min_size=1, max_size=6) | JSON


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.fixed_dictionaries({"sub": SAID, "person": SAID}, optional={"groups": st.lists(SAID) | JSON, "extra": JSON})
)
def test_whatever_a_token_says_it_is_somebody_in_the_templates_or_nobody(mapped, said):
    one = mapped(principal="user:x-{sub}", groups="group:x-{groups}", acting_for="user:{person}", claims=("extra",))
    refusal = found = None
    try:
        found = one.principal(token(said))
    except Unauthenticated as error:
        refusal = error
    if found is None:
        assert refusal.detail == REFUSED
        return
    assert (found.subject, found.acting_for) == (f"user:x-{said['sub']}", f"user:{said['person']}")
    assert re.fullmatch(r"user:x-[^:]+", found.subject)
    assert all(re.fullmatch(r"group:x-[^:]+", group) for group in found.groups)
    assert set(found.claims) <= {"extra"}


@pytest.mark.parametrize("preset", sorted(LIKE))
def test_the_guides_say_which_claims_rules_can_read(preset):
    text = (ROOT / f"docs/identity/{preset}.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `request.claims`"))
    assert tuple(re.findall(r"`([^`]+)`", row)[1:]) == PRESETS[preset].claims
