"""The commands of pipelines, and the recipes for curl, against a gateway that listens."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import re
import sys
import threading
import unicodedata
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from service.api import verdicts
from tests.client import Client
from tests.conftest import ROOT, TOKENS
from tests.faults.served import served
from tests.promotion.flow import V1, alias_of, ask, promote, register, satisfy, simple

NOWHERE = "http://127.0.0.1:1"
ONE_TRY = """
import sys
from service import client
client._TRIES = 1
from service.__main__ import main
sys.exit(main())
"""
LEADS = "approvals: {required: [{group: 'group:ml-leads'}]}"
FLOOR = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: 'a < b & \"c\"'}]"


async def begin(url, *arguments, who="service:ci", terminal=asyncio.subprocess.DEVNULL, **more):
    """Start a command; *terminal* is what it reads."""
    environ = {**os.environ, "REGISTRY_GATEWAY_URL": url, "REGISTRY_GATEWAY_TOKEN": TOKENS[who], **more}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", *arguments,
        env=environ, cwd=ROOT, stdin=terminal, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run(url, *arguments, who="service:ci", terminal=asyncio.subprocess.DEVNULL, **more):
    """Run a command; give its exit status and what it wrote."""
    process = await begin(url, *arguments, who=who, terminal=terminal, **more)
    out, err = await process.communicate()
    assert TOKENS[who] not in (out + err).decode()
    return process.returncode, out.decode(), err.decode()


async def test_from_verdict_to_rollback(running, tmp_path):
    async with running(environments=simple(tmp_path, LEADS)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        status, out, _ = await run(url, "verdict", "iris", first, "production")
        assert (status, "FAIL   approvals-ml-leads" in out, "closed" in out) == (1, True, True)
        status, out, _ = await run(url, "promote", "iris", first, "production")
        assert (status, "is closed for version" in out) == (1, True)
        waiting = await begin(url, "promote", "iris", first, "production", "--wait", "60")
        assert b"waiting for approvals-ml-leads" in await waiting.stderr.readline()
        status, _, err = await run(
            url, "approve", "iris", first, "production", "--reason", "ok", "--yes", who="user:lead"
        )
        assert (status, "FAIL   approvals-ml-leads" in err) == (0, True)
        out, _ = await waiting.communicate()
        assert (waiting.returncode, b"succeeded: nothing -> 1" in out) == (0, True)
        await run(url, "approve", "iris", second, "production", "--yes", who="user:lead")
        status, out, _ = await run(url, "promote", "iris", second, "production", "--format", "json")
        assert (status, json.loads(out)["after"]) == (0, second)
        status, out, _ = await run(url, "rollback", "iris", "production", "--reason", "slow", who="user:lead")
        assert (status, alias_of(it)) == (0, first)
        status, out, _ = await run(url, "adopt", "--reason", "r", who="user:admin")
        assert (status, "recorded  iris production: alias champion on version 1" in out) == (0, True)


async def test_verdicts_for_machines(running, tmp_path):
    async with running(environments=simple(tmp_path, "", FLOOR)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        for command in ("verdict", "promote"):
            file = tmp_path / f"{command}.xml"
            status, _, _ = await run(
                url, command, "iris", version, "production", "--format", "junit", "--output", str(file)
            )
            suite = ET.parse(file).getroot().find("testsuite")
            cases = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
            assert (status, suite.get("failures"), cases["ready"]) == (1, "1", None)
            assert cases["floor"].get("message") == 'a < b & "c"'
        assert (await ask(client, "promotions", await register(it, client))).status == 200
        status, out, _ = await run(url, "promote", "iris", "2", "production", "--format", "junit")
        assert (status, ET.fromstring(out).find("testsuite").get("failures")) == (0, "0")
        status, out, _ = await run(url, "verdict", "iris", version, "production", "--format", "markdown")
        assert (status, '| ❌ | `floor` | `a < b & "c"` |' in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "more", "status", "says"),
    [
        (("verdict", "iris", "1", "production"), {"REGISTRY_GATEWAY_TOKEN": ""}, 2, "REGISTRY_GATEWAY_TOKEN"),
        (("verdict", "iris", "1", "production", "--url", "ftp://x"), {}, 2, "not an http or https URL"),
        (("verdict", "iris", "99", "production"), {}, 1, "99"),
        (("verdict", "iris", "1", "nowhere"), {}, 1, "nowhere"),
        (("rollback", "iris", "production"), {}, 2, "usage: registry-gateway rollback"),
        (("rollback", "iris", "production", "--reason", " "), {}, 1, "reason: it must say something"),
        (("promote", "iris", "1", "production", "--idempotency-key", "a b"), {}, 2, "without spaces"),
        (("promote", "iris", "1", "production", "--if-match", "abc"), {}, 1, "is not what If-Match names"),
        (("promote", "iris", "1"), {}, 2, "usage"),
        (("adopt", "--yes"), {}, 2, "--reason"),
    ],
)
async def test_what_cannot_be_done_says_so(running, tmp_path, arguments, more, status, says):
    async with running(environments=simple(tmp_path)) as it, served(it.application.asgi) as url:
        await register(it, Client(it.application.asgi))
        found, out, err = await run(url, *arguments, **more)
        assert (found, says in out + err) == (status, True), (out, err)
        assert "Traceback" not in err


async def test_what_cannot_be_reached_is_no_no(tmp_path, monkeypatch):
    from service import client, pipeline

    monkeypatch.setattr(client, "_TRIES", 1)
    monkeypatch.setenv("REGISTRY_GATEWAY_TOKEN", "x")
    from service.__main__ import main

    assert main(["verdict", "iris", "1", "production", "--url", "http://127.0.0.1:1"]) == pipeline.CANNOT_TELL


@pytest.fixture
def something_else():
    """Serve the same answer to everything: status, media type, body."""
    servers = []

    def start(status, kind, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.do_POST()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


COMMANDS = (
    ("promote", "iris", "3", "production"),
    ("promote", "iris", "3", "production", "--format", "junit"),
    ("promote", "iris", "3", "production", "--wait", "1"),
    ("rollback", "iris", "production", "--reason", "r"),
    ("verdict", "iris", "3", "production"),
    ("approve", "iris", "3", "production", "--yes"),
    ("adopt", "--yes", "--reason", "r"),
    ("adopt", "--yes", "--reason", "r", "--format", "json"),
)


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>Please log in</html>"),
        (302, "text/html", b""),
        (403, "text/html", b"blocked"),
        (200, "application/json", b"{}"),
        (200, "application/json", b'{"state": "done", "verdict": "fine"}'),
        (404, "application/json", b'{"error": "no such page"}'),
    ],
)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_who_is_no_gateway_tells_nothing(monkeypatch, capsys, something_else, command, answer):
    from service import pipeline
    from service.__main__ import main

    monkeypatch.setenv("REGISTRY_GATEWAY_TOKEN", "x")
    assert main([*command, "--url", something_else(*answer)]) == pipeline.CANNOT_TELL
    assert "is this a gateway?" in capsys.readouterr().err


def test_a_promotion_that_was_only_evaluated_is_not_done(monkeypatch, capsys, something_else):
    from service import pipeline
    from service.__main__ import main

    monkeypatch.setenv("REGISTRY_GATEWAY_TOKEN", "x")
    body = {"id": "1", "state": "evaluated", "before": None, "after": "3", "verdict": {"allowed": True, "findings": []}}
    url = something_else(200, "application/json", json.dumps(body).encode())
    assert main(["promote", "iris", "3", "production", "--url", url]) == pipeline.CANNOT_TELL
    assert "nobody knows" in capsys.readouterr().err


@contextlib.contextmanager
def typing(text):
    """Give a terminal on which somebody has typed *text*."""
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, text.encode())
        yield terminal
    finally:
        os.close(keyboard)
        os.close(terminal)


async def test_what_was_not_looked_at_is_not_approved(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        version = await register(it, client)
        approve = ("approve", "iris", version, "production")

        async def stored():
            found = (await client("GET", f"{V1}/iris/versions/{version}/approvals")).json["approvals"]
            return [item["decision"] for item in found]

        status, _, err = await run(url, *approve, who="user:lead")
        assert (status, "--review DIGEST" in err, await stored()) == (2, True, [])
        digest = re.search(r"review ([0-9a-f]{64})", err)[1]
        for typed in ("\n", "n\n", "what\n"):
            with typing(typed) as terminal:
                status, _, err = await run(url, *approve, who="user:lead", terminal=terminal)
            assert (status, "approve iris version 1 for production? [y/N]" in err, await stored()) == (1, True, [])
        with typing("y\n") as terminal:
            status, _, err = await run(url, *approve, who="user:lead", terminal=terminal)
        assert (status, await stored()) == (0, ["approve"])
        evidence = {"kind": "validation", "result": "failed"}
        await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", evidence)
        status, _, err = await run(url, *approve, "--reject", "--review", digest, who="user:lead")
        assert (status, await stored()) == (1, ["approve"]), err  # a fact has moved
        digest = re.search(r"review ([0-9a-f]{64})", err)[1]
        status, _, err = await run(url, *approve, "--reject", "--review", digest, who="user:lead")
        assert (status, await stored()) == (0, ["approve", "reject"]), err


HOSTILE = (
    "see https://evil.example/login, www.evil.example and @org/everyone <img src=x> | a | `code` ``x\n"
    "::error file=x::owned\n##[error]x ##vso[x]\x1b[2K\x1b[1A\x9b1A\x07 hidden \u202e\u200b"
)


async def rejected(it, client):
    """Register a version that is rejected for a hostile reason."""
    version = await register(it, client)
    body = {"environment": "production", "decision": "reject", "reason": HOSTILE}
    assert (await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/approvals", body)).status == 201
    return version


async def test_what_others_wrote_is_nothing_to_obey_in_a_terminal(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it, served(it.application.asgi) as url:
        version = await rejected(it, Client(it.application.asgi))
        for command in (
            ("verdict", "iris", version, "production"),
            ("verdict", "iris", version, "production", "--format", "json"),
            ("verdict", "iris", version, "production", "--format", "junit"),
            ("verdict", "iris", version, "production", "--format", "markdown"),
            ("promote", "iris", version, "production"),
            ("promote", "iris", version, "production", "--wait", "0.1"),
            ("verdict", "iris\n::error::x\x1b", version, "production"),
        ):
            status, out, err = await run(url, *command)
            assert status == 1, (command, out, err)
            written = out + err
            assert not [letter for letter in written if unicodedata.category(letter) in ("Cc", "Cf") and letter != "\n"]
            assert "##[" not in written
            assert "##vso[" not in written
            assert not [line for line in written.splitlines() if line.lstrip().startswith("::")]
            if "json" in command:
                because = [item["because"] for item in json.loads(out)["verdict"]["findings"]]
                assert any(HOSTILE.splitlines()[0] in text for text in because)


async def test_what_others_wrote_is_code_in_markdown(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await rejected(it, client)
        headers = [("content-type", "application/json"), ("accept", "text/markdown")]
        text = (await promote(client, version, headers=headers, dry_run=True)).body.decode()
        (row,) = [line for line in text.splitlines() if "evil.example" in line]
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 5
        assert re.fullmatch(r" (`{3,})[^`].*https://evil.*@org/everyone.*[^`]\1 ", cells[3])
        assert not [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf") and letter != "\n"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("", ""),
        ("\n", ""),
        ("plain", "`plain`"),
        ("a | b || c", r"`a \| b \|\| c`"),
        (r"a\|b", r"`a\ \|b`"),
        ("`", "`` ` ``"),
        ("a ``b`` `c", "```a ``b`` `c```"),
        ("a\r\n# b", "`a # b`"),
        ("a\x1bb\u202e", "`a\ufffdb\ufffd`"),
    ],
)
def test_a_cell(text, cell):
    assert verdicts._cell(text) == cell


def scripts(name):
    """The shell of a recipe, job by job."""
    text = (ROOT / "docs/ci" / name).read_text()
    document = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    if "jobs" in document:
        return [step["run"] for step in document["jobs"]["promote"]["steps"]]
    return [line for job in document.values() for line in job["script"]]


async def shell(script, directory, environ):
    """Run *script* as a runner does; give its exit status and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-c", script, cwd=directory, env=environ, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.parametrize("name", ["github-actions.md", "gitlab.md"])
async def test_a_job_that_is_run_again_is_judged_again(running, tmp_path, name):
    promotes = [script for script in scripts(name) if "promote-" in script]
    async with running() as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        version = await register(it, client)
        environ = {
            **os.environ, "GATEWAY": url, "TOKEN": TOKENS["service:ci"], "MODEL": "iris", "VERSION": version,
            "CI_PIPELINE_ID": "42", "GITHUB_RUN_ID": "42",
        }  # fmt: skip
        first = {**environ, "GITHUB_RUN_ATTEMPT": "1", "CI_JOB_ID": "7"}
        assert (await shell(promotes[0], tmp_path, first))[0] == 22  # curl's status of a 409
        await satisfy(client, version)
        assert (await shell(promotes[0], tmp_path, {**environ, "GITHUB_RUN_ATTEMPT": "2", "CI_JOB_ID": "8"}))[0] == 0
        assert (len(promotes), alias_of(it)) == (1, version)


@pytest.mark.parametrize("name", ["github-actions.md", "gitlab.md"])
async def test_the_recipes_run(running, tmp_path, name):
    async with running() as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        if name == "gitlab.md":  # so that there is something to roll back to
            live = await register(it, client)
            await satisfy(client, live)
            assert (await promote(client, live)).status == 200
        version = await register(it, client)
        await satisfy(client, version)
        environ = {
            **os.environ, "GATEWAY": url, "TOKEN": TOKENS["service:ci"], "MODEL": "iris", "VERSION": version,
            "ROLLBACK_TOKEN": TOKENS["user:lead"], "CI_PIPELINE_ID": "42",
            "GITHUB_RUN_ID": "42", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        }  # fmt: skip
        lives = []
        for job, script in enumerate(scripts(name)):
            status, out = await shell(script, tmp_path, {**environ, "CI_JOB_ID": str(job)})
            assert status == 0, out
            lives.append(alias_of(it))
        assert version in lives
        assert ET.parse(tmp_path / "verdict.xml").getroot().tag == "testsuites"
        if name == "gitlab.md":
            assert lives[-1] == live
        again = await ask(client.be("service:ci"), "promotions", version)
        assert again.status in (200, 409)


@pytest.mark.parametrize("form", ["junit", "markdown"])
async def test_a_report_is_one_whatever_became_of_it(running, tmp_path, form):
    async with running(environments=simple(tmp_path)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        steps = [
            (("promote", "iris", first, "production"), "service:ci", 0, f"iris version {first} in production"),
            (("promote", "iris", second, "production"), "service:ci", 0, f"iris version {second} in production"),
            (("promote", "iris", second, "production"), "service:ci", 0, f"iris version {second} in production"),
            (("rollback", "iris", "production", "--reason", "r"), "user:lead", 0, f"iris version {first} in"),
            (("promote", "iris", first, "production"), "user:viewer", 1, "user:viewer may not environment:promote"),
            (("verdict", "iris", "99", "production"), "service:ci", 1, "iris 99 production"),
            (("verdict", "iris", first, "production", "--url", NOWHERE), "service:ci", 2, "cannot be reached"),
        ]  # fmt: skip
        for number, (arguments, who, status, says) in enumerate(steps):
            file = tmp_path / f"report-{number}"
            environ = {**os.environ, "REGISTRY_GATEWAY_URL": url, "REGISTRY_GATEWAY_TOKEN": TOKENS[who]}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                ONE_TRY,
                *arguments,
                "--format",
                form,
                "--output",
                str(file),
                cwd=ROOT,
                env=environ,
            )
            assert await process.wait() == status
            written = file.read_text()
            if form == "junit":
                suite = ET.fromstring(written).find("testsuite")
                assert suite.get("errors") == ("0" if status == 0 else "1")
            assert says in written.replace("\\_", "_")


async def test_the_text_says_what_would_become_of_what(running, tmp_path):
    rules = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: too low}]"
    async with running(environments=simple(tmp_path, "", rules)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        low, good, better = [await register(it, client, accuracy=value) for value in (0.5, 0.95, 0.99)]
        assert (
            f"version {low} would be refused; nothing stays live"
            in (await run(url, "verdict", "iris", low, "production"))[1]
        )
        out = (await run(url, "verdict", "iris", good, "production"))[1]
        assert (f"version {good} would become live, the first one" in out, "pass   floor\n" in out) == (True, True)
        await promote(client, good)
        says = {
            better: f"{better} would become live instead of version {good}",
            good: "is live already",
            low: "stays live",
        }
        for version, sentence in says.items():
            assert sentence in (await run(url, "verdict", "iris", version, "production"))[1]


async def test_what_is_not_enforced_and_what_is_stale_is_said(running, tmp_path):
    observed = simple(tmp_path, f"mode: observe\n{LEADS}")
    async with running(environments=observed) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/approvals",
                {"environment": "production", "decision": "approve", "expires": soon()})).status == 201  # fmt: skip
        await asyncio.sleep(1.1)
        out = (await run(url, "verdict", "iris", version, "production"))[1]
        assert "stale  approval of user:lead does not count: " in out
        why = out.partition("does not count: ")[2].splitlines()[0]
        assert "closed, and changes nothing: the environment's mode is observe, it is promoted all the same" in out
        for form in ("junit", "markdown"):
            report = (await run(url, "verdict", "iris", version, "production", "--format", form))[1]
            assert f"the approval of user:lead does not count any more: {why}" in report
            assert "iris version" in report


def soon():
    """A moment that is past in a second."""
    return (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
