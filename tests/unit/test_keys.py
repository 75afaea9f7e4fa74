"""The commands for API keys: small edits that keep what people wrote, and no hash on a screen."""

from __future__ import annotations

import hashlib
import itertools
import json
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service import files
from service.__main__ import main
from service.authentication import key_edits
from service.authentication.api_keys import ApiKeys
from service.authentication.key_edits import edit, with_entry, with_fields
from service.authentication.key_file import MAX_KEYS, checked
from service.errors import BadConfiguration, Unauthenticated
from service.files import YamlFile, yaml_items
from service.journal import schema
from service.journal.store import SqlJournal
from tests.conftest import write_configuration

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
BLOCK = f"""# keys of the ünit — kept by hand
- id: ann   # Ann's laptop
  principal: user:ann
  sha256: {A}

  # the trainer
-   principal: service:ci
    id: ci
    sha256: {B}
    expires: 2090-01-01  # long enough
"""
FLOW = json.dumps(
    [{"id": "ann", "principal": "user:ann", "sha256": A}, {"principal": "service:ci", "id": "ci", "sha256": B}]
)
MIXED = f"  - {{id: ann, principal: 'user:ann', sha256: {A}}}\n  - id: ci\n    principal: service:ci\n    sha256: {B}"
TEXTS = [BLOCK, FLOW, MIXED, BLOCK.replace("\n", "\r\n"), BLOCK.rstrip("\n")]
NEW = {"id": "bob", "principal": "user:bob", "groups": ["group:ß"], "sha256": C}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def entries(text: str) -> dict[str, dict]:
    return {item["id"]: item for item in yaml.safe_load(text)}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("identifier", ["ann", "ci"])
def test_one_field_changes_and_nothing_else(text: str, identifier: str) -> None:
    changed = with_fields(text, identifier, revoked=True, expires="2030-01-01T00:00:00Z")
    before, after = entries(text), entries(changed)
    assert after.pop(identifier) == {**before.pop(identifier), "revoked": True, "expires": "2030-01-01T00:00:00Z"}
    assert after == before
    for comment in ("# keys of the ünit — kept by hand", "# Ann's laptop", "# the trainer"):
        assert changed.count(comment) == text.count(comment)
    assert with_fields(changed, identifier, revoked=True) == changed
    assert entries(with_fields(changed, identifier, revoked=False))[identifier]["revoked"] is False


@pytest.mark.parametrize("text", [*TEXTS, "", "# nothing yet\n", "[]\n", "[] # none\n"])
def test_an_entry_is_added_at_the_end(text: str) -> None:
    changed = with_entry(text, NEW)
    assert yaml.safe_load(changed) == [*(yaml.safe_load(text) or []), NEW]
    for line in text.splitlines():
        if "#" in line:
            assert line.partition("#")[2] in changed


def test_a_field_that_says_nothing_is_filled() -> None:
    text = BLOCK.replace("  principal: user:ann\n", "  principal: user:ann\n  expires:\n")
    assert text != BLOCK
    assert entries(with_fields(text, "ann", expires="2030-01-01"))["ann"]["expires"] == "2030-01-01"


def test_a_key_that_is_not_there_is_said() -> None:
    with pytest.raises(BadConfiguration, match="no key has the id 'bob'"):
        with_fields(BLOCK, "bob", revoked=True)


def test_mode_and_symlink_stay_and_the_file_is_whole_at_any_time(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "keys.yaml"
    real.write_text("\ufeff" + BLOCK)
    real.chmod(0o640)
    link.symlink_to(real)
    old = real.read_text()
    with real.open() as held:
        edit(link, lambda text: with_fields(text, "ann", revoked=True))
        assert held.read() == old  # who reads it now reads the whole old file
    assert link.is_symlink()
    assert real.read_text().startswith("\ufeff#")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert entries(real.read_text("utf-8-sig"))["ann"]["revoked"] is True
    assert names(tmp_path) == ["keys.yaml", "real.yaml"]


@pytest.mark.parametrize("change", [lambda _: "- [", lambda text: text + text, lambda text: text.replace("user:", "")])
def test_an_edit_that_would_break_the_file_changes_nothing(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(BLOCK)
    with pytest.raises(BadConfiguration):
        edit(path, change)
    assert path.read_text() == BLOCK
    assert names(tmp_path) == ["keys.yaml"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(BLOCK)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_edits.os, "fsync", full)
    with pytest.raises(BadConfiguration, match="No space left"):
        edit(path, lambda text: with_fields(text, "ann", revoked=True))
    assert path.read_text() == BLOCK
    assert names(tmp_path) == ["keys.yaml"]


def test_of_many_edits_at_once_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("")

    def add(index: int) -> None:
        entry = {"id": f"k{index}", "principal": "user:x", "sha256": f"{index:064x}"}
        edit(path, lambda text: with_entry(text, entry))

    threads = [threading.Thread(target=add, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(entries(path.read_text())) == {f"k{index}" for index in range(20)}


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def who(path: Path, key: str, now: float | None = None) -> str | None:
    try:
        return ApiKeys(path, now=lambda: now or time.time()).authenticate(f"Bearer {key}").credential
    except Unauthenticated:
        return None


def test_a_key_is_made_narrowed_rotated_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.yaml"
    options = ["--file", str(path), "--id", "ci-1", "--scope", "main/model:read", "--scope", "main/alias:*"]
    assert main(["key", "new", "service:ci", "--group", "group:ci", *options, "--expires", "90d"]) == 0
    first = said(capsys)[-1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert who(path, first) == "ci-1"
    assert who(path, first, time.time() + 91 * 86_400) is None

    assert main(["key", "rotate", "ci-1", "--file", str(path)]) == 2
    assert "say when the new one ends, as with --expires 90d" in capsys.readouterr().err
    arguments = ["--file", str(path), "--overlap", "7d", "--expires", "90d", "--new-id", "ci-2"]
    assert main(["key", "rotate", "ci-1", *arguments]) == 0
    second = said(capsys)[-1]
    week = time.time() + 7 * 86_400
    assert [who(path, key, week - 60) for key in (first, second)] == ["ci-1", "ci-2"]
    assert [who(path, key, week + 60) for key in (first, second)] == [None, "ci-2"]
    old, new = (item.entry for item in checked(path, path.read_text()))
    assert (old.principal, old.groups, old.scopes) == (new.principal, new.groups, new.scopes)

    later = ["--not-before", "30d", "--id", "soon", "--file", str(path)]
    assert main(["key", "new", "service:ci", *later]) == 0
    assert main(["key", "rotate", "soon", "--file", str(path), "--overlap", "40d", "--new-id", "sooner"]) == 0
    third = said(capsys)[-1]
    assert [who(path, third, time.time() + days * 86_400) for days in (0, 31)] == [None, "sooner"]

    assert main(["key", "revoke", "ci-2", "--file", str(path)]) == 0
    assert who(path, second) is None
    assert who(path, first) == "ci-1"
    assert main(["key", "rotate", "ci-2", "--file", str(path)]) == 2
    assert main(["key", "revoke", "ci-3", "--file", str(path)]) == 2
    assert "no key has the id 'ci-3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scope", "main"], "is not <registry>/<action>"),
        (["--scope", "main/model:reed"], "unknown action 'model:reed'; there are: model:create,"),
        (["--scope", "lake/model:read"], "names the registry 'lake'; there are: main"),
        (["--expires", "tomorrow"], "--expires: 'tomorrow' is neither a duration"),
        (["--expires", "2020-01-01"], "--expires: the key would end at 2020-01-01T00:00:00Z, before it is valid"),
        (["--expires", "10d", "--not-before", "30d"], "before it is valid"),
        (["--not-before", "0d"], "--not-before: '0d'"),
        (["--id", "a\u200bb"], "no control or format characters"),
        (["--group", "leads"], "'leads' is not group:"),
        (["--id", "x"], "is the gateway's own word"),
    ],
)
def test_a_key_that_no_gateway_would_take_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    config = write_configuration(tmp_path)
    before = (tmp_path / "keys.yaml").read_text()
    arguments = ["--config", str(config), "--file", str(tmp_path / "keys.yaml"), *options]
    principal = "service:registry-gateway" if options == ["--id", "x"] else "user:x"
    assert main(["key", "new", principal, *arguments]) == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "keys.yaml").read_text() == before


async def test_the_list_tells_all_but_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_configuration(tmp_path)
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    schema.upgrade(url)
    (tmp_path / "keys.yaml").write_text(
        BLOCK
        + f"- {{id: gone, principal: 'user:g', sha256: {C}, revoked: true}}\n"
        + f"- {{id: late, principal: 'user:l', sha256: {'d' * 64}, expires: 2001-01-01, scopes: ['main/run:*']}}\n"
        + f"- {{id: soon, principal: 'user:s', sha256: {'e' * 64}, not_before: 2089-01-01}}\n"
    )
    journal = SqlJournal(url)
    await journal.start()
    from service.authentication.uses import Uses

    uses = Uses(journal, now=lambda: 1_577_880_000.0 + 123)
    uses.note("ann")
    await uses.flush()
    await journal.close()
    assert main(["key", "list", "--config", str(config), "--format", "json"]) == 0
    text = capsys.readouterr().out
    listed = {item["id"]: item for item in json.loads(text)["keys"]}
    assert {name: item["state"] for name, item in listed.items()} == {
        "ann": "active", "ci": "active", "gone": "revoked", "late": "expired", "soon": "not yet"
    }  # fmt: skip
    assert listed["ann"]["last_used"] == "2020-01-01T12:00:00Z"
    assert listed["ci"]["last_used"] is None
    assert listed["late"]["scopes"] == ["main/run:*"]
    assert main(["key", "list", "--config", str(config)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[1].split() == ["ann", "user:ann", "-", "-", "active", "-", "2020-01-01T12:00:00Z"]
    for digest in (A, B, C):
        assert digest not in text + table


async def test_a_use_is_written_once_an_hour_and_waits_for_the_journal(tmp_path: Path) -> None:
    from service.authentication.uses import Uses
    from service.effects import KeysUsed
    from service.errors import JournalUnavailable

    class Journal:
        def __init__(self) -> None:
            self.down, self.written = True, []

        async def append(self, events: object, effects: list[KeysUsed]) -> None:
            if self.down:
                raise JournalUnavailable("down")
            self.written += [dict(item.hours) for item in effects]

    journal, now = Journal(), [7200.0]
    uses = Uses(journal, now=lambda: now[0])
    for _ in range(3):
        uses.note("a")
    await uses.flush()
    journal.down = False
    await uses.flush()
    uses.note("a")
    await uses.flush()
    now[0] = 10_801.0
    uses.note("a")
    await uses.flush()
    assert journal.written == [{"a": 7200}, {"a": 10_800}]
    for index in range(450):
        uses.note(f"k{index}")
    for _ in range(3):
        await uses.flush()
    assert [len(item) for item in journal.written[2:]] == [200, 200, 50]
    for index in range(450, 900):
        uses.note(f"k{index}")
    await uses.close()
    assert [len(item) for item in journal.written[5:]] == [200, 200, 50]
    journal.down = True
    uses.note("late")
    await uses.close()


def test_a_file_has_a_bounded_number_of_keys(tmp_path: Path) -> None:
    text = "".join(f"- {{id: k{i}, principal: 'user:x', sha256: '{i:064x}'}}\n" for i in range(MAX_KEYS + 1))
    with pytest.raises(BadConfiguration, match=f":{MAX_KEYS + 1}: more than {MAX_KEYS} keys"):
        checked(tmp_path / "keys.yaml", text)


ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(items=st.lists(ITEMS, max_size=6), flow=st.sampled_from([True, False, None]), plain=st.booleans())
def test_a_list_is_read_item_by_item_as_it_is_read_whole(items: list, flow: bool | None, plain: bool) -> None:
    text = (
        yaml.safe_dump(items, default_flow_style=flow, allow_unicode=True) if plain else json.dumps(items, default=str)
    )
    path = Path("x.yaml")
    try:
        whole: object = YamlFile(path, text).data or []
    except BadConfiguration:
        whole = BadConfiguration
    try:
        found: object = [item.data for item in yaml_items(path, text)]
    except BadConfiguration:
        found = BadConfiguration
    assert repr(found) == repr(whole)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n", "null", "[]"])
def test_nothing_is_an_empty_list(text: str) -> None:
    assert list(yaml_items(Path("x.yaml"), text)) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: b", "x.yaml:1: Expected `array`"),
        ("text", "x.yaml:1: Expected `array`"),
        ("- a\n---\n- b\n", "x.yaml:2: not valid YAML: a second document"),
        ("- a: 1\n  a: 2\n", "x.yaml:2: the key 'a' stands twice"),
        ("- &a b\n- *a\n", "x.yaml:2: not valid YAML: YAML aliases are not read"),
        ("- " + "[" * 40 + "]" * 40, "more than 32 levels"),
        ("- [" + "1," * 3000 + "]", "or 2000 nodes in one item"),
        ("- \x00\n", "not valid YAML"),
        ("- a\n-b", "not valid YAML"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        list(yaml_items(Path("x.yaml"), text))
    assert says in caught.value.detail


def test_ten_thousand_keys_are_read_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps others run. Measured in the thread's own time: a busy machine makes no difference."""
    path = tmp_path / "keys.yaml"

    def write(seed: str) -> None:
        digests = (hashlib.sha256(f"{seed}{index}".encode()).hexdigest() for index in range(10_000))
        lines = (
            f"- {{id: k{i}, principal: 'user:x', groups: ['group:a'], sha256: '{d}'}}\n" for i, d in enumerate(digests)
        )
        path.write_text("".join(lines))

    write("old")
    known, longest = ApiKeys(path), []
    steps: list[float] = []
    monkeypatch.setattr(files.time, "sleep", lambda _: steps.append(time.thread_time()))
    for seed in ("one", "two", "three"):
        write(seed)
        steps[:] = [time.thread_time()]
        assert known.reload() is True
        steps.append(time.thread_time())
        longest.append(max(after - before for before, after in itertools.pairwise(steps)))
    assert min(longest) < 0.005, longest
    assert len(steps) > 2_500
