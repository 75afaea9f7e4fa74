"""What is asked of a version is told: the environments as they are, and rules by digest as they were."""

from __future__ import annotations

from tests.client import Client
from tests.promotion.flow import environments, promote, register

TEXT = """\
environments:
  production:
    marks: [{alias: champion}]
    rules: [{name: floor, require: candidate.metrics.accuracy >= environment.parameters.floor, because: too low}]
    parameters: {floor: 0.9}
    approvals: {required: [{group: "group:ml-leads", count: 2}], expire_after: 14d, review: true}
    evidence: {validation: {expire_after: 90m}}
    allowed_times: [{days: [mon, fri], from: 09:00, until: "24:00", time_zone: Europe/Zurich}]
    freezes: [{from: 2026-12-18T00:00:00+01:00, until: 2027-01-04T00:00:00+01:00, because: year end}]
    overrides: [{models: "fraud-*", rules: [{name: bias, require: "passed(evidence, 'bias')", because: no bias check}]}]
    rollback: {rules: [{name: ticket, require: request.reason != '', because: say why}]}
    waivable: [freeze, allowed-times]
    mode: observe
"""


async def test_everything_that_is_asked_is_told(running, tmp_path):
    async with running(environments=environments(tmp_path, TEXT)) as it:
        client = Client(it.application.asgi)
        told = (await client("GET", "/v1/environments")).json["environments"][0]
        freezes = [{"from": "2026-12-17T23:00:00Z", "until": "2027-01-03T23:00:00Z", "because": "year end"}]
        bias = {"name": "bias", "require": "passed(evidence, 'bias')", "because": "no bias check"}
        quorum = {"required": [{"group": "group:ml-leads", "count": 2}], "expire_after": "14d", "review": True}
        times = [{"days": ["mon", "fri"], "from": "09:00", "until": "24:00", "time_zone": "Europe/Zurich"}]
        assert told["parameters"] == {"floor": 0.9}
        assert told["approvals"] == quorum
        assert told["evidence"] == {"validation": {"expire_after": "90m", "keys": []}}
        assert (told["allowed_times"], told["freezes"]) == (times, freezes)
        assert told["overrides"] == [{"models": "fraud-*", "rules": [{**bias, "severity": "block", "waivable": False}]}]
        assert [rule["name"] for rule in told["rollback_rules"]] == ["ticket"]
        assert (told["waivable"], told["mode"], told["on_drift"]) == (["allowed-times", "freeze"], "observe", "report")

        digest = (await promote(client, await register(it, client))).json["verdict"]["rules_digest"]
        rules = (await client("GET", f"/v1/rules/{digest}")).json
        assert (rules["freezes"], rules["allowed_times"], rules["approvals"]) == (freezes, times, quorum)
        assert rules["rules"][0]["because"] == "too low"
