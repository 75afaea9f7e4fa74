"""How a policy is loaded and replaced: bounds, bad content, swapped directories, and what it costs the event loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from service.authorization import authorizer as authorizing
from service.authorization.authorizer import Authorizer
from service.authorization.rows import Limits
from service.authorization.snapshot import Content, Snapshot
from service.errors import BadConfiguration
from service.model import Principal

MODEL = Path(__file__).parent.parent.parent / "policies" / "model.conf"
ALLOW = "p, user:ann, main, models/*, model:read, allow\n"
DENY = ALLOW.replace("allow", "deny")
ANN = Principal("user:ann")


def may(authorizer: Authorizer) -> bool:
    return authorizer.decide(ANN, "main", "models/a", "model:read").allowed


def load(raw: bytes, limits: Limits) -> Snapshot:
    return Snapshot(MODEL, Path("policy.csv"), ["main"], limits, content=Content(MODEL.read_bytes(), raw))


def rows(count: int) -> str:
    made = (f"p, role:r{i % 100}, main, models/m{i}/*, version:read, allow\n" for i in range(count))
    return "".join(made) + "".join(f"g, user:u{i}, role:r{i}\n" for i in range(100))


def config_map(mount: Path, revision: str, policy: str) -> None:
    """Write *policy* as a kubelet does: a directory of its own, a link to it, and one rename of that link."""
    fresh = mount / f"..{revision}"
    fresh.mkdir(parents=True)
    (fresh / "policy.csv").write_text(policy)
    (fresh / "model.conf").write_text(MODEL.read_text())
    (mount / "..data_tmp").symlink_to(fresh.name)
    (mount / "..data_tmp").rename(mount / "..data")
    for name in ("policy.csv", "model.conf"):
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(f"..data/{name}")


def test_a_config_map_is_followed_through_its_links(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    config_map(mount, "2026_1", ALLOW)
    authorizer = Authorizer(mount / "model.conf", mount / "policy.csv", ["main"])
    assert may(authorizer)
    config_map(mount, "2026_2", DENY)
    assert authorizer.reload() is True
    assert not may(authorizer)
    (mount / "..2026_1" / "policy.csv").unlink()
    (mount / "..2026_1" / "model.conf").unlink()
    (mount / "..2026_1").rmdir()
    assert authorizer.reload() is False


def test_content_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "policy.csv"
    path.write_text(ALLOW)
    stat = path.stat()
    authorizer = Authorizer(MODEL, path, ["main"])
    path.write_text(ALLOW.replace("user:ann", "user:bob"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert authorizer.reload() is True
    assert not may(authorizer)


def test_model_and_rows_are_read_of_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = tmp_path / "mount"
    config_map(mount, "1", ALLOW)
    read, swapped = authorizing.Content.read.__func__.__globals__["read_bytes"], []

    def swap_after_the_first(path: Path, *more: object) -> bytes:
        content = read(path, *more)
        if not swapped:
            swapped.append(path.name)
            config_map(mount, "2", DENY)
            (mount / "..2" / "model.conf").write_text("# two\n" + MODEL.read_text())
        return content

    monkeypatch.setitem(authorizing.Content.read.__func__.__globals__, "read_bytes", swap_after_the_first)
    content = Content.read(mount / "model.conf", mount / "policy.csv", Limits())
    assert (content.model[:5], content.rows) == (b"# two", DENY.encode())


def test_what_was_refused_is_named_each_time_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.csv"
    path.write_text(ALLOW)
    clock = itertools.count()
    authorizer = Authorizer(MODEL, path, ["main"], now=lambda: float(next(clock)))
    first = authorizer.loaded_at
    built = []

    class Counted(Snapshot):
        def __init__(self, *given: object, **named: object) -> None:
            built.append(1)
            super().__init__(*given, **named)

    monkeypatch.setattr(authorizing, "Snapshot", Counted)
    path.write_text("p, user:ann\n")
    said = set()
    for _ in range(3):
        with pytest.raises(BadConfiguration) as caught:
            authorizer.reload()
        said.add(caught.value.detail)
    assert len(built) == len(said) == 1
    assert may(authorizer)
    assert authorizer.loaded_at == first
    path.write_text(ALLOW)
    assert authorizer.reload() is False
    assert len(built) == 1
    path.write_text(DENY)
    assert authorizer.reload() is True
    assert authorizer.loaded_at > first
    assert not may(authorizer)


@pytest.mark.parametrize(
    ("raw", "limits", "says"),
    [
        (ALLOW.encode() * 4, Limits(max_rows=3), "policy.csv:4:1: more than 3 rows; access.max_rows allows more"),
        (b"g, user:a, role:b\n" * 1_000_000, Limits(max_bytes=1 << 30), "policy.csv:100001:1: more than 100000 rows"),
        (b"g2, models/a, set:b\n" * 1_000_000, Limits(max_bytes=1 << 30), "policy.csv:100001:1: more than 100000 rows"),
        (b"x\n" * 1_000_000, Limits(), "policy.csv:100001:1: more than 100000 rows"),
        (ALLOW.encode() + b"p, user:" + b"a" * (10 << 20) + b"\n", Limits(), "policy.csv:2:16385: a row of 10485768"),
    ],
    ids=["rows", "a million links", "a million members", "a million bad rows", "a row of 10 MiB"],
)
def test_too_much_is_refused_without_much_memory(raw: bytes, limits: Limits, says: str) -> None:
    read = itertools.count()
    content = Content(MODEL.read_bytes(), raw)
    tracemalloc.start()
    with pytest.raises(BadConfiguration) as caught:
        Snapshot(MODEL, Path("policy.csv"), ["main"], limits, content=content, pace=lambda: next(read) and None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says in caught.value.detail
    assert peak < (64 << 20)
    assert next(read) <= limits.max_rows + 1, "what follows was not read"


@pytest.mark.parametrize(
    ("through", "ends", "says"),
    [
        ("g, user:u{}, role:hub\n", "g, role:hub, role:r{}\n", "roles"),
        ("g2, models/m{}, set:hub\n", "g2, set:hub, set:s{}\n", "sets"),
    ],
)
def test_few_rows_that_make_very_many_memberships_are_refused(through: str, ends: str, says: str) -> None:
    made = "".join(through.format(i) + ends.format(i) for i in range(1100))
    tracemalloc.start()
    with pytest.raises(
        BadConfiguration, match=rf"policy\.csv:\d+:1: .* more than 1000000 memberships, .* all its {says}"
    ):
        load((ALLOW + made).encode(), Limits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (128 << 20)


def test_a_file_over_its_bound_is_not_read_further(tmp_path: Path) -> None:
    path = tmp_path / "policy.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(BadConfiguration, match=r"policy\.csv: larger than 1000 bytes; access\.max_bytes allows more"):
        Snapshot(MODEL, path, ["main"], Limits(max_bytes=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 20)


def test_the_collector_of_garbage_does_not_look_at_the_rows() -> None:
    few, many = (load(rows(count).encode(), Limits()) for count in (100, 2000))
    gc.collect()
    tracked = [
        sum(gc.is_tracked(part) for part in (*policy.rows, *policy.parts(lambda: None))) for policy in (few, many)
    ]
    assert tracked[0] == tracked[1] <= 100  # the roles of each of a hundred subjects


def test_strangers_leave_nothing_in_memory() -> None:
    policy = load(rows(1000).encode(), Limits())

    def ask(start: int, count: int) -> None:
        for i in range(start, start + count):
            who = Principal(f"user:s{i}", frozenset({f"group:g{i}"}))
            assert not policy.decide(who, "main", f"models/x{i}", "model:read").allowed

    ask(0, 100)
    gc.collect()
    tracemalloc.start()
    ask(100, 20_000)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < (1 << 20)  # 52 bytes each


CONTENTS = {
    "permissions": "p, user:u{0}, main, models/m{0}/*, version:read, allow\n",
    "roles": "g, user:u{0}, role:r{0}\n",
    "one role": "g, user:u{0}, role:r\n",
    "sets": "g2, models/m{0}, set:s{0}\n",
    "one set": "g2, models/m{0}, set:s\n",
    "comments": "# {0}\n",
}


def longest_way_between_rests(monkeypatch: pytest.MonkeyPatch, path: Path, content: str) -> int:
    """Replace a policy of *content* and count the lines of Python that run between two rests."""
    counted = [0]
    longest = [0]

    def rest(_: object) -> None:
        longest[0], counted[0] = max(longest[0], counted[0]), 0

    def trace(frame, event: str, _: object):
        if "/service/authorization/" not in frame.f_code.co_filename:
            return None
        counted[0] += event == "line"
        return trace

    monkeypatch.setattr(authorizing.Pace, "__call__", rest)
    path.write_text(ALLOW + content)
    authorizer = Authorizer(MODEL, path, ["main"])
    path.write_text("# changed\n" + ALLOW + content)
    counted[0] = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert authorizer.reload() is True
    finally:
        sys.settrace(before)
    rest(None)
    return longest[0]


@pytest.mark.parametrize("line", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_reload_rests_as_often_as_there_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    few, many = (
        longest_way_between_rests(monkeypatch, tmp_path / "policy.csv", "".join(line.format(i) for i in range(count)))
        for count in (10, 500)
    )
    assert 0 < many <= few + 50


def test_after_half_a_millisecond_of_work_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rests = [0.0], []
    monkeypatch.setattr(authorizing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(authorizing.time, "sleep", rests.append)
    pace = authorizing.Pace()
    for now[0] in (0.0001, 0.0004, 0.0006, 0.0007, 0.0010, 0.0013):
        pace()
    assert len(rests) == 2
    assert all(rest > 0 for rest in rests)


async def test_a_policy_is_followed_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.csv"
    path.write_text(rows(10))
    authorizer = Authorizer(MODEL, path, ["main"])
    loop, turns = asyncio.get_running_loop(), []

    def wait_for_the_loop(_: object) -> None:
        done = threading.Event()
        loop.call_soon_threadsafe(done.set)
        turns.append(done.wait(60))  # a build on the loop itself would wait in vain

    monkeypatch.setattr(authorizing.Pace, "__call__", wait_for_the_loop)
    path.write_text("# changed\n" + rows(10))
    assert await authorizer.follow() is True
    assert len(turns) > 10
    assert all(turns)
