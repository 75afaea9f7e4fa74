"""The documents say what is so: the README shows the story's real output, links lead somewhere, examples load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from service.__main__ import main
from service.authorization.snapshot import Snapshot
from service.embedded import DEMO_PRINCIPALS
from service.model import Principal
from service.promotion.environments import load_environments
from service.records import Capabilities
from service.resources import asked_on
from tests.client import V1, Client
from tests.conftest import ROOT, TOKENS
from tests.faults.served import served
from tests.promotion.flow import promote, register, satisfy, simple

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_MOVING = re.compile(r"[0-9a-f]{8}$|\d\d:\d\d:\d\d", re.MULTILINE)


def story_of(text: str) -> list[str]:
    """Cut what differs from run to run: times and run identifiers."""
    return [
        _MOVING.sub("…", line).rstrip() for line in text.splitlines() if line.startswith(("user:", "service:", "  "))
    ]


def readme_story() -> str:
    return (ROOT / "README.md").read_text().partition("<!-- story -->\n```\n")[2].partition("\n```")[0]


def test_the_readme_shows_a_story():
    assert len(story_of(readme_story())) > 25


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_documents_speak_of_the_project_alone(document):
    text = document.read_text().lower()
    for word in ("/tmp/", "/work/", "/root/", "shared/design", "helper agent", "session has"):
        assert word not in text


def configurations():
    text = (ROOT / "docs/configuration.md").read_text()
    return [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "registries:" in block]


@pytest.mark.parametrize("block", configurations(), ids=["first", "example"])
def test_the_example_configurations_are_good(tmp_path, block):
    document = yaml.safe_load(block)
    assert document["registries"]
    document["access"] = {"model": str(ROOT / "policies/model.conf"), "rows": str(ROOT / "policies/policy.csv")}
    environments = tmp_path / "environments.yaml"
    environments.write_text("environments: {}\n")
    document["environments"] = str(environments)
    (tmp_path / "keys.yaml").write_text("[]\n")
    document["authentication"] = {"api_keys": "keys.yaml"}
    for registry in document["registries"].values():
        for key in ("token_file", "password_file"):
            if key in registry:
                (tmp_path / "secret").write_text("x")
                registry[key] = "secret"
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "service", "check", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environments_of_the_guide_load(tmp_path):
    text = (ROOT / "docs/rules.md").read_text()
    blocks = re.findall(r"```yaml\n((?:environments|rule_sets):\n.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    for index, block in enumerate(blocks):
        path = tmp_path / f"{index}.yaml"
        path.write_text(block)
        assert load_environments(path, {"main": Capabilities(aliases=True, stages=True, tags=True)})


def test_the_examples_of_explain_and_who_can_are_what_they_say(capsys):
    text = (ROOT / "docs/policies.md").read_text()
    examples = re.findall(r"\$ registry-gateway (policy (?:explain|who-can) .*)\n((?:    .+\n)+)", text)
    assert len(examples) == 3
    for command, answer in examples:
        main(command.split())
        said, shown = (
            [re.sub(r"(?<=revision: )[0-9a-f]{8,64}", "", line).strip("… ") for line in text.strip().splitlines()]
            for text in (capsys.readouterr().out, answer)
        )
        assert said == shown


def shape(value):
    """Give the keys of a document, and of what is in it; of lists the first item counts."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if key not in ("facts", "params")}
    return [shape(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def example(document, heading):
    """Give the first JSON example below a heading; what is cut with … is left out."""
    text = (ROOT / "docs" / document).read_text().partition(f"\n## {heading}\n")[2]
    return json.loads(re.sub(r",?\s*…", "", re.search(r"```json\n(.*?)```", text, re.DOTALL)[1]))


async def test_the_examples_of_answers_have_their_shape(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version, reason="first release")).status == 200
        journalled = await client("GET", "/v1/audit/events?phase=outcome&action=environment:promote")
        event, shown = journalled.json["events"][0], example("audit.md", "An event")
        assert shape(shown) == shape(event)
        assert shown["data"]["decision"]["row"] == event["data"]["decision"]["row"]
        live = await client("GET", f"{V1}/iris/environments/production")
        assert shape(example("api.md", "What is live")) == shape(live.json)
        version_shown = await client("GET", f"{V1}/iris/versions/{version}")
        assert set(example("api.md", "A version")) == set(version_shown.json)
        environments = (await client("GET", "/v1/environments")).json["environments"]
        assert set(example("api.md", "Environments")["environments"][0]) == set(environments[0])


def is_part(shown, found):
    """Tell whether what a guide shows is so; text that ends in … is a beginning, keys may be left out."""
    if isinstance(shown, dict):
        return isinstance(found, dict) and all(key in found and is_part(shown[key], found[key]) for key in shown)
    if isinstance(shown, list):
        return len(shown) == len(found) and all(map(is_part, shown, found))
    if isinstance(shown, str) and shown.endswith("…"):
        return isinstance(found, str) and found.startswith(shown[:-1])
    return bool(shown == found)


async def test_each_question_of_the_authzen_guide_gets_the_answer_it_shows(running):
    text = (ROOT / "docs/authzen.md").read_text()
    steps = re.findall(r"```bash\n(.*?)```.*?```json\n(.*?)```", text, re.DOTALL)
    assert len(steps) == text.count("curl") == text.count("```bash")
    async with running() as it, served(it.application.asgi) as url:
        await register(it, Client(it.application.asgi))
        environ = {**os.environ, "U": url, "TOKEN": TOKENS["user:admin"]}
        for command, answer in steps:
            arguments = ["bash", "-ec", command]
            done = await asyncio.to_thread(subprocess.run, arguments, env=environ, capture_output=True, check=True)
            assert is_part(json.loads(answer), json.loads(done.stdout)), done.stdout


async def test_the_examples_of_access_have_their_shape(running):
    text = (ROOT / "docs/api.md").read_text().partition("\n## Access\n")[2]
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[:2]
    shown, who_shown = (json.loads(re.sub(r",?\s*…(?!\")", "", block)) for block in blocks)
    asked = "registry=main&resource=models/iris/environments/production&action=environment:promote"
    async with running() as it:
        client = Client(it.application.asgi)
        told = (await client.be("service:ci")("GET", f"/v1/access/explain?{asked}")).json
        assert set(shown) == set(told)
        (nearest,) = shown.pop("near")
        assert is_part(nearest, told["near"][0])
        revision = shown.pop("revision"), told["revision"]
        assert is_part(shown, told)
        assert all(re.match(r"[0-9a-f]{8}", item) for item in revision)
        who = (await client("GET", f"/v1/access/who-can?{asked}")).json
        assert set(who_shown) == set(who)
        assert is_part(who_shown["allowed"][0], who["allowed"][0])


def test_each_step_of_the_guide_can_be_done_with_its_demo_key():
    text = (ROOT / "docs/promotion.md").read_text().partition("| demo key |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"\| `([a-z:]+)` \| `([a-z:]+)` \|$", text, re.MULTILINE)
    snapshot = Snapshot(ROOT / "policies/model.conf", ROOT / "policies/policy.csv", ["main"])
    places = ("audit", "models/iris", "models/iris/versions", "models/iris/environments/production")
    for action, who in rows:
        where = next(place for place in places if asked_on(place, action))
        assert snapshot.decide(Principal(who, frozenset({DEMO_PRINCIPALS[who]})), "main", where, action).allowed, action
    assert len(rows) == len(text.splitlines()) - 1


async def test_the_envelope_of_the_guide_proves_what_is_posted(running, tmp_path):
    text = (ROOT / "docs/rules.md").read_text().partition("#### A DSSE envelope, worked out")[2]
    keys, script = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("bash", "python"))
    await asyncio.to_thread(subprocess.run, ["bash", "-ec", keys], cwd=tmp_path, check=True)
    (tmp_path / "sign.py").write_text(script)
    rules = "[{name: tested, require: \"passed(evidence, 'validation')\"}]"
    async with running(environments=simple(tmp_path, "evidence: {validation: {keys: [ci.pem]}}", rules)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        posted = f"{V1}/iris/versions/{version}/evidence"
        plain = await client.be("service:ci")("POST", posted, {"kind": "validation", "result": "passed"})
        assert (await promote(client, version)).status == 409
        arguments = [sys.executable, "sign.py", "ci.key", plain.json["artifact_digest"]]
        done = await asyncio.to_thread(subprocess.run, arguments, cwd=tmp_path, capture_output=True, check=True)
        assert (await client.be("service:ci")("POST", posted, json.loads(done.stdout))).status == 201
        assert (await promote(client, version)).status == 200
