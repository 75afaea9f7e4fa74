"""Owner as a subject, through the whole gateway: create, use, rename, delete, and make again."""

from __future__ import annotations

import pytest

from tests.api.test_modes_of_access import mode
from tests.client import Client
from tests.conftest import ROOT

CREATE = "".join(f"p, group:{name}, main, models/*, model:create, allow\n" for name in ("data-scientists", "ml-leads"))
OWN = "p, owner, main, models/*, *, allow\np, group:platform, *, *, *, allow\n"


def access(tmp_path, rows):
    (tmp_path / "rows.csv").write_text(rows)
    return {"model": str(ROOT / "policies/model.conf"), "rows": str(tmp_path / "rows.csv")}


async def may_update(client, name):
    answer = await client.rpc("PATCH", "registered-models/update", name=name, description="x")
    assert answer.status in (200, 403), answer.body
    return answer.status == 200


async def test_who_creates_a_model_owns_it_at_once_and_nobody_else(running, tmp_path):
    async with running(access=access(tmp_path, CREATE + OWN)) as it:
        admin = Client(it.application.asgi)
        ann, lead = admin.be("user:scientist"), admin.be("user:lead")
        assert (await ann.rpc("POST", "registered-models/create", name="fraud")).status == 200
        assert await may_update(ann, "fraud")
        assert not await may_update(lead, "fraud")
        assert (await lead.rpc("POST", "registered-models/create", name="fraud")).status == 400  # it exists
        assert not await may_update(lead, "fraud")
        found = await ann.rpc("GET", "registered-models/search")
        assert [item["name"] for item in found.json["registered_models"]] == ["fraud"]
        assert "registered_models" not in (await lead.rpc("GET", "registered-models/search")).json

        renamed = await ann.rpc("POST", "registered-models/rename", name="fraud", new_name="risk")
        assert renamed.status == 403  # he does not own what is named risk, or will be
        assert (await admin.rpc("POST", "registered-models/rename", name="fraud", new_name="risk")).status == 200
        assert await may_update(ann, "risk")

        assert (await ann.rpc("DELETE", "registered-models/delete", name="risk")).status == 200
        assert (await lead.rpc("POST", "registered-models/create", name="risk")).status == 200
        assert not await may_update(ann, "risk")
        assert await may_update(lead, "risk")


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ("p, owner, main, models/prod-*, *, allow\n", 403),
        ("p, owner, main, models/prod-*/*, *, allow\n", 403),
        ("p, owner, main, models/*/environments/*, approval:create, deny\n", 200),
        ("p, owner, main, models/dev-*, *, allow\n", 200),
    ],
)
async def test_a_model_is_renamed_with_its_owner_who_gains_nothing_by_it(running, tmp_path, rows, status):
    mine = "p, group:data-scientists, main, models/*, model:rename, allow\np, group:data-scientists, main, "
    create = "models/dev-x, model:create, allow\n"
    if "deny" in rows:
        create = "*, *, allow\n"
    async with running(access=access(tmp_path, mine + create + rows)) as it:
        ann = Client(it.application.asgi, "user:scientist")
        assert (await ann.rpc("POST", "registered-models/create", name="dev-x")).status == 200
        answer = await ann.rpc("POST", "registered-models/rename", name="dev-x", new_name="prod-x")
        assert answer.status == status, answer.body


async def test_owners_are_known_after_a_restart_and_from_a_journal_of_before(running, tmp_path):
    where = access(tmp_path, CREATE + OWN.split("\n", 1)[1])
    async with running(access=where) as it:
        ann = Client(it.application.asgi, "user:scientist")
        assert (await ann.rpc("POST", "registered-models/create", name="fraud")).status == 200
        assert not await may_update(ann, "fraud")
        assert not it.application.owners.loaded  # no row asks for it
        access(tmp_path, CREATE + OWN)
        await it.application.authorizer.follow()  # as each second
        assert await may_update(ann, "fraud")
    async with running(it.memory, access=where) as again:
        assert await may_update(Client(again.application.asgi, "user:scientist"), "fraud")
        assert not await may_update(Client(again.application.asgi, "user:lead"), "fraud")


async def test_a_journal_that_is_down_leaves_owners_as_they_were(running, tmp_path, monkeypatch):
    async with running(access=access(tmp_path, CREATE + OWN)) as it:
        ann = Client(it.application.asgi, "user:scientist")
        assert (await ann.rpc("POST", "registered-models/create", name="fraud")).status == 200
        (tmp_path / "journal.db").rename(tmp_path / "away.db")
        it.application.journal._database._engine.dispose()
        assert (await ann.rpc("GET", "registered-models/get", name="fraud")).status == 200


MAKE = "p, group:readers, main, models/*, model:create, allow\n"


@pytest.mark.parametrize("rows", ["", MAKE])
@pytest.mark.parametrize("how", ["delete", "rename"])
async def test_nobody_becomes_owner_by_what_is_only_observed(running, tmp_path, rows, how):
    approve = "registry=main&resource=models/fraud/environments/production&action=approval:create"
    own = "p, owner, main, models/*/environments/*, approval:create, allow\n"
    async with running(**mode("observe", tmp_path, own + CREATE + rows)) as it:
        ann = Client(it.application.asgi, "user:scientist")
        viewer = ann.be("user:viewer")

        async def may_approve(client):
            return (await client("GET", f"/v1/access/explain?{approve}")).json["allowed"]

        assert (await ann.rpc("POST", "registered-models/create", name="fraud")).status == 200
        assert (await may_approve(ann), await may_approve(viewer)) == (True, False)
        if how == "delete":
            taken = await viewer.rpc("DELETE", "registered-models/delete", name="fraud")
        else:
            taken = await viewer.rpc("POST", "registered-models/rename", name="fraud", new_name="other")
        assert taken.status == 200
        assert (await viewer.rpc("POST", "registered-models/create", name="fraud")).status == 200
        assert (await may_approve(ann), await may_approve(viewer)) == (False, False)
    async with running(
        it.memory, **mode("enforce", tmp_path, own + CREATE + rows + "p, group:platform, *, *, *, allow\n")
    ) as it:
        admin = Client(it.application.asgi)
        viewer = admin.be("user:viewer")
        assert not await may_approve(viewer)
        assert (await admin.rpc("DELETE", "registered-models/delete", name="fraud")).status == 200
        created = await viewer.rpc("POST", "registered-models/create", name="fraud")
        assert (created.status, await may_approve(viewer)) == ((200, True) if rows else (403, False))
