"""A rename sheds no deny and inherits no grant."""

from __future__ import annotations

import pytest

from tests.client import Client
from tests.conftest import ROOT

ALL = "p, group:platform, *, *, *, allow\np, user:scientist, main, models/*, *, allow\n"


def access(directory, rows):
    (directory / "rows.csv").write_text(rows)
    return {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}


@pytest.mark.parametrize(
    ("rows", "status", "gains"),
    [
        (ALL, 200, ""),
        (ALL + "p, user:scientist, main, models/secret, model:read, deny\n", 403, "model:read"),
        (ALL + "p, user:scientist, main, models/secret/versions, version:read, deny\n", 403, "version:read"),
        (ALL + "p, user:scientist, main, models/secret/aliases/blue, alias:set, deny\n", 403, "alias:set"),
        (ALL + "p, user:scientist, main, models/secret/tags/owner, tag:set, deny\n", 403, "tag:set"),
        (ALL + "p, user:scientist, main, models/secret/environments/production, *, deny\n", 403, "environment:promote"),
        (ALL + "p, user:scientist, main, models/open, model:update, deny\n", 200, ""),  # what is lost is no gain
        (
            ALL.replace("models/*, *", "models/*, model:rename") + "p, user:scientist, main, models/open/*, *, allow\n",
            403,
            "version:create",
        ),
    ],
)
async def test_what_the_caller_may_does_not_grow_with_the_name(running, tmp_path, rows, status, gains):
    async with running(access=access(tmp_path, rows)) as it:
        admin = Client(it.application.asgi)
        await admin.rpc("POST", "registered-models/create", name="secret", tags=[{"key": "owner", "value": "a"}])
        await it.application.backends["main"].get_model("secret")
        it.memory.models["secret"]["aliases"]["blue"] = "1"
        scientist = admin.be("user:scientist")
        answer = await scientist.rpc("POST", "registered-models/rename", name="secret", new_name="open")
        assert (answer.status, gains in answer.body.decode()) == (status, True)
        assert ("open" in it.memory.models) is (status == 200)
        assert len(await it.events(phase="denied")) == (status == 403)
