"""The OCSF projection is valid by the pinned schema, whatever the event."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.event import EVENT_ACTIONS, OUTCOMES, PHASES
from service.exports import FORMS
from service.ocsf import api_activity
from tests.client import Client
from tests.conftest import ROOT
from tests.contract.test_queries import event
from tests.promotion.flow import promote, register

SCHEMA = jsonschema_rs.validator_for(json.loads((ROOT / "tests/ocsf/api_activity-1.8.0.json").read_text()))
TEXT = st.text(max_size=20)
MAYBE = st.none() | TEXT


def problems(found):
    return [f"{list(error.instance_path)}: {error.message[:200]}" for error in SCHEMA.iter_errors(found)]


@given(
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(sorted(EVENT_ACTIONS)),
            "phase": st.sampled_from(sorted(PHASES)),
            "outcome": st.none() | st.sampled_from(sorted(OUTCOMES)),
            "actor": st.fixed_dictionaries(
                {"subject": st.sampled_from(["user:a", "service:b"])},
                optional={"groups": st.lists(TEXT), "issuer": MAYBE, "credential": MAYBE, "address": MAYBE},
            ),
            "registry": TEXT,
            "resource": TEXT,
            "model": MAYBE,
            "version": MAYBE,
            "environment": MAYBE,
            "status": st.none() | st.integers(100, 599),
            "latency_ms": st.none() | st.floats(0, 1e6),
            "reason": TEXT,
            "detail": TEXT,
            "sequence": st.integers(1, 1 << 60),
        },
        optional={
            "decision": st.fixed_dictionaries({}, optional={"allowed": st.booleans(), "row": TEXT, "revision": TEXT}),
            "verdict": st.none() | st.fixed_dictionaries({"allowed": st.booleans()}),
        },
    )
)
def test_every_event_is_a_valid_object(data):
    found = api_activity(event(1_790_000_000.0, **data))
    assert problems(found) == []
    assert found["type_uid"] == found["class_uid"] * 100 + found["activity_id"]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_addresses_are_addresses(address):
    found = api_activity(event(1.0, actor={"subject": "user:a", "address": address}))
    assert (found["src_endpoint"]["ip"], problems(found)) == (address, [])


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("model:create", "Create"),
        ("model:read", "Read"),
        ("environment:promote", "Update"),
        ("environment:retire", "Delete"),
        ("alias:delete", "Delete"),
        ("authentication:fail", "Other"),
    ],
)
def test_activities(action, kind):
    assert api_activity(event(1.0, action=action))["activity_name"] == kind


async def test_real_events_of_a_day_are_valid(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await promote(client, version)
        await client.be("user:viewer")("POST", "/api/2.0/mlflow/registered-models/create", {"name": "x"})
        await client.be(None)("GET", "/v1/registries")
        lines = (await client("GET", "/v1/audit/export?format=ocsf")).body.splitlines()
        assert len(lines) == len(await it.events()) > 5
        assert [problems(json.loads(line)) for line in lines] == [[]] * len(lines)


def test_the_schema_refuses_what_is_not_in_it():
    good = api_activity(event(1.0))
    assert problems(good) == []
    for wrong in (
        {"actor": {"user": {"nick": "x"}}},
        {"activity_id": 7},
        {"time": "now"},
        {"class_uid": 1},
        {"new": 1},
    ):
        assert problems({**good, **wrong}), wrong
    assert FORMS["ocsf"].line(json.dumps(event(1.0))).count("\n") == 1
