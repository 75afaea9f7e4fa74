"""The documents say what is so: the README shows the story's real output, links lead somewhere, examples load."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from service.promotion.environments import load_environments
from service.records import Capabilities
from tests.conftest import ROOT

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


def test_the_example_configuration_is_good(tmp_path):
    text = (ROOT / "docs/configuration.md").read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "registries:" in block]
    document = yaml.safe_load(blocks[0])
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
