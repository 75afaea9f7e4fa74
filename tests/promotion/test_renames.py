"""A rename between guarded names: one version after the other in the record, and no mark slips in unjudged."""

from __future__ import annotations

from itertools import pairwise

from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client
from tests.conftest import ROOT
from tests.promotion.flow import simple


async def test_what_ends_and_what_begins_meet(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        it.memory.files[("rose", version)] = it.memory.files[("iris", version)]
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 200, renamed.body
        history = (await client("GET", f"{V1}/rose/environments/production/history")).json["history"][::-1]
        assert len(history) == 2
        for earlier, later in pairwise(history):
            assert earlier["until"] <= later["since"]


async def test_a_lesser_mark_on_another_version_is_judged_too(running):
    async with running() as it:
        client = Client(it.application.asgi)
        good, bad = await register(it, client), await register(it, client, accuracy=0.1)
        await satisfy(client, good)
        assert (await promote(client, good)).status == 200
        it.memory.models["iris"]["versions"][good]["current_stage"] = "None"
        it.memory.models["iris"]["versions"][bad]["current_stage"] = "Production"
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 409, renamed.body
        assert "iris" in it.memory.models


async def test_a_lesser_mark_alone_is_not_recorded_as_live(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        del it.memory.models["iris"]["aliases"]["champion"]
        await client("POST", f"{V1}/iris/environments/production/checks")
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 200, renamed.body
        assert await it.application.journal.live() == []


async def test_what_is_read_by_its_id_is_decided_by_the_present_name(running, tmp_path):
    rows = tmp_path / "rows.csv"
    everybody = "".join(f"p, group:{who}, *, *, *, allow\n" for who in ("platform", "data-scientists", "ci"))
    rows.write_text(
        everybody + "p, group:readers, *, models/pub-*, *, allow\np, group:readers, *, models/pub-*/*, *, allow\n"
    )
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=simple(tmp_path), access=access) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, model="pub-x")
        promoted = (await promote(client, version, model="pub-x")).json["id"]
        refused = (await promote(client, version, model="pub-x", headers=[("if-match", '"x"')])).json["operation"]
        review = f"{V1}/pub-x/versions/{version}/review?environment=production"
        digest = (await client("GET", review)).json["digest"]
        targets = [f"/v1/promotions/{promoted}", f"/v1/promotions/{refused}", f"/v1/reviews/{digest}"]

        async def seen() -> list[int]:
            return [(await client.be("user:viewer")("GET", target)).status for target in targets]

        names = ["pub-x", "secret", "hidden", "pub-y"]
        assert await seen() == [200, 200, 200]
        for name, new_name in pairwise(names):
            renamed = await client.rpc("POST", "registered-models/rename", name=name, new_name=new_name)
            assert renamed.status == 200, renamed.body
            if name == "pub-x":  # another one takes its old name
                await register(it, client, model="pub-x")
            assert await seen() == ([200] * 3 if new_name == "pub-y" else [404] * 3)
