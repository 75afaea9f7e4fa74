"""The person behind a pipeline's key counts where four eyes are asked, and lends it no rights."""

from __future__ import annotations

import pytest
import yaml

from service.authentication.api_keys import ApiKeys, entry_for
from service.embedded import DEMO_PRINCIPALS
from service.errors import BadConfiguration
from tests.client import V1, Client
from tests.conftest import TOKENS
from tests.promotion.flow import register, simple

DECISION = {"environment": "production", "decision": "approve"}


def key_file(path, acting_for):
    """Write the demo keys, with *acting_for* behind that of the pipeline."""
    people = {"service:ci": acting_for}
    entries = [
        entry_for(TOKENS[name], name, (group,), identifier=name, acting_for=people.get(name))
        for name, group in DEMO_PRINCIPALS.items()
    ]
    path.write_text(yaml.safe_dump(entries))
    return {"api_keys": str(path)}


@pytest.mark.parametrize(("person", "status"), [("user:lead", 403), ("user:kim", 201), (None, 201)])
async def test_the_person_behind_a_pipeline_approves_nothing_of_it(running, tmp_path, person, status):
    keys = key_file(tmp_path / "people.yaml", person)
    async with running(environments=simple(tmp_path), authentication=keys) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        evidence = {"kind": "validation", "result": "passed"}
        assert (await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", evidence)).status == 201
        reply = await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/approvals", DECISION)
        assert reply.status == status
        event = (await it.events(action="evidence:post"))[0]
        assert event["data"]["actor"]["acting_for"] == person


async def test_it_lends_no_rights(running, tmp_path):
    keys = key_file(tmp_path / "people.yaml", "user:lead")
    async with running(environments=simple(tmp_path), authentication=keys) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        reply = await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/approvals", DECISION)
        assert reply.status == 403


@pytest.mark.parametrize("person", ["lead", "group:ml-leads", "user:"])
def test_it_is_a_person(tmp_path, person):
    entry = {**entry_for("k", "service:ci"), "acting_for": person}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump([entry]))
    with pytest.raises(BadConfiguration, match=r"keys\.yaml:1: acting_for .* is not user:… or service:…"):
        ApiKeys(tmp_path / "keys.yaml")
    with pytest.raises(BadConfiguration, match="--acting-for"):
        entry_for("k", "service:ci", acting_for=person)
