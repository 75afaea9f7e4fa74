"""What each of the demo principals may do with the shipped policies: the table of docs/policies.md, executed."""

from __future__ import annotations

import pytest

from tests.client import V1, Client
from tests.conftest import DEMO_PRINCIPALS, ROOT

PRINCIPALS = tuple(DEMO_PRINCIPALS)
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
REASON = {"reason": "because"}


async def prepared(client):
    """A registered version with a run behind it."""
    run = (await client.rpc("POST", "runs/create", experiment_id="0", start_time=1)).json["run"]["info"]["run_id"]
    await client.rpc("POST", "runs/log-metric", run_id=run, key="accuracy", value=0.95, timestamp=1)
    await client("PUT", f"{ARTIFACTS}/0/{run}/artifacts/m/MLmodel", raw=b"{}", headers=[("content-type", "text/plain")])
    await client.rpc("POST", "registered-models/create", name="iris")
    source = f"mlflow-artifacts:/0/{run}/artifacts/m"
    await client.rpc("POST", "model-versions/create", name="iris", source=source, run_id=run)
    return run


FLOWS = {
    "read a model": lambda c, _: c.rpc("GET", "registered-models/get", name="iris"),
    "search models": lambda c, _: c.rpc("GET", "registered-models/search"),
    "resolve what is live": lambda c, _: c.rpc("GET", "registered-models/alias", name="iris", alias="champion"),
    "download an artifact": lambda c, run: c("GET", f"{ARTIFACTS}/0/{run}/artifacts/m/MLmodel"),
    "create an experiment": lambda c, _: c.rpc("POST", "experiments/create", name="mine"),
    "log to a run": lambda c, run: c.rpc("POST", "runs/log-metric", run_id=run, key="a", value=1, timestamp=1),
    "register a version": lambda c, run: c.rpc(
        "POST", "model-versions/create", name="iris", source=f"runs:/{run}/m", run_id=run
    ),
    "tag a version": lambda c, _: c.rpc(
        "POST", "model-versions/set-tag", name="iris", version="1", key="note", value="x"
    ),
    "promote to staging": lambda c, _: c.rpc(
        "POST", "registered-models/alias", name="iris", alias="challenger", version="1"
    ),
    "promote to production": lambda c, _: c.rpc(
        "POST", "registered-models/alias", name="iris", alias="champion", version="1"
    ),
    "post evidence": lambda c, _: c(
        "POST", f"{V1}/iris/versions/1/evidence", {"kind": "validation", "result": "passed", "facts": {}}
    ),
    "approve for production": lambda c, _: c(
        "POST", f"{V1}/iris/versions/1/approvals", {"environment": "production", "decision": "approve"}
    ),
    "take down what is in staging": lambda c, _: c.rpc(
        "DELETE", "registered-models/alias", name="iris", alias="challenger"
    ),
    "delete the run behind a version": lambda c, run: c.rpc("POST", "runs/delete", run_id=run),
    "delete a model": lambda c, _: c.rpc("DELETE", "registered-models/delete", name="iris"),
    "read the audit trail": lambda c, _: c("GET", "/v1/audit/events"),
}


async def outcome(running, flow, principal):
    async with running() as it:
        admin = Client(it.application.asgi)
        run = await prepared(admin)
        if flow == "take down what is in staging":
            await FLOWS["promote to staging"](admin, run)
        answer = await FLOWS[flow](admin.be(principal), run)
        if answer.status in (400, 404) and flow == "resolve what is live":
            return "yes"  # nothing is live: it was looked up
        if flow == "read the audit trail" and answer.status == 200 and not answer.json["events"]:
            return "no"
        return {200: "yes", 201: "yes", 403: "no", 409: "held"}[answer.status]


def shown() -> dict[str, dict[str, str]]:
    """Read the table of the page."""
    lines = (ROOT / "docs/policies.md").read_text().splitlines()
    start = lines.index(f"| flow | {' | '.join(f'`{name}`' for name in PRINCIPALS)} |")
    table = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        flow, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        table[flow] = dict(zip(PRINCIPALS, cells, strict=True))
    return table


def test_the_page_shows_each_flow():
    assert list(shown()) == list(FLOWS)


@pytest.mark.parametrize("flow", FLOWS)
async def test_each_principal_may_what_the_page_says(running, tmp_path, flow):
    found = {}
    for principal in PRINCIPALS:
        directory = tmp_path / principal.replace(":", "-")
        directory.mkdir()
        found[principal] = await outcome(lambda directory=directory: running(directory=directory), flow, principal)
    assert found == shown()[flow]
