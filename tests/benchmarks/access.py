"""Access decisions: what they cost at three sizes and several shapes, beside the stock enforcer in the same run."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource as rusage
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import casbin

from service.authorization.authorizer import Authorizer
from service.authorization.patterns import FUNCTIONS
from service.authorization.snapshot import Content, Snapshot
from service.model import Principal
from tests.conftest import ROOT

MODEL = ROOT / "policies/model.conf"
QUESTIONS = 3000
ROUNDS = 5
"""The round that other processes disturbed least counts; nothing keeps answers, so the questions stay cold."""
Question = tuple[Principal, str, str, str]
Shape = Callable[[int], tuple[list[str], Callable[[int], Question]]]


def _links() -> list[str]:
    return [f"g, user:u{i}, role:r{i}" for i in range(100)]


def _over_roles(registry: str) -> Shape:
    def shape(size: int) -> tuple[list[str], Callable[[int], Question]]:
        rows = [f"p, role:r{i % 100}, {registry}, models/m{i}/*, version:read, allow" for i in range(size)]
        return rows + _links(), lambda i: (
            Principal(f"user:u{i % 100}"),
            "main",
            f"models/m{i % size}/versions",
            "version:read",
        )

    return shape


def _of_one_role(resource: Callable[[int], str], asked: Callable[[int], str]) -> Shape:
    def shape(size: int) -> tuple[list[str], Callable[[int], Question]]:
        rows = [f"p, role:r0, main, {resource(i)}, version:read, allow" for i in range(size)]
        return rows + _links(), lambda i: (Principal("user:u0"), "main", asked(i % size), "version:read")

    return shape


def _of_many_roles(size: int) -> tuple[list[str], Callable[[int], Question]]:
    """Give one caller a hundred roles; every role has rows for the same patterns."""
    rows = [f"p, role:r{i % 100}, main, models/m{i // 100}/versions, version:read, allow" for i in range(size)]
    rows += [f"g, user:all, role:r{i}" for i in range(100)]
    return rows, lambda i: (Principal("user:all"), "main", f"models/m{i % (size // 100)}/versions", "version:read")


def _of_sets(size: int) -> tuple[list[str], Callable[[int], Question]]:
    rows = [f"g2, models/m{i}, set:s{i % 100}" for i in range(size - 100)]
    rows += [
        f"p, role:r{i}, main, set:s{i % min(100, size - 100) if size > 100 else 0}/*, *, allow" for i in range(100)
    ]
    rows += [] if size > 100 else ["g2, models/m0, set:s0"]
    return rows + _links(), lambda i: (
        Principal(f"user:u{i % 100}"),
        "main",
        f"models/m{i % max(1, size - 100)}/versions",
        "version:read",
    )


SHAPES: dict[str, tuple[Shape, float]] = {
    "spread": (_over_roles("*"), 100),
    "one-registry": (_over_roles("main"), 150),
    "one-role-prefixes": (
        _of_one_role(lambda i: f"models/team-{i:05}*/*", lambda i: f"models/team-{i:05}x/versions"),
        150,
    ),
    "one-role-prefixes-of-each-length": (
        _of_one_role(lambda i: f"models/{'x' * (i % 200)}{i}*/*", lambda i: f"models/{'x' * (i % 200)}{i}/versions"),
        150,
    ),
    "one-role-same-head": (
        _of_one_role(lambda i: f"models/m/versions/tags/k{i}", lambda i: f"models/m/versions/tags/k{i}"),
        150,
    ),
    "one-role-any-model": (_of_one_role(lambda i: f"models/*/aliases/a{i}*", lambda i: f"models/m/aliases/a{i}"), 150),
    "hundred-roles-of-one-caller": (_of_many_roles, 150),
    "sets": (_of_sets, 150),
}


def build(rows: Sequence[str]) -> Snapshot:
    content = Content(MODEL.read_bytes(), ("\n".join(rows) + "\n").encode())
    return Snapshot(MODEL, Path("rows.csv"), ["main"], content=content)


def microseconds(call: Callable[[Question], object], questions: Sequence[Question], rounds: int = 1) -> list[float]:
    """Time each question; return the times of the best round, ascending."""
    best: list[float] = []
    for _ in range(rounds):
        times = []
        for question in questions:
            begun = time.perf_counter()
            call(question)
            times.append((time.perf_counter() - begun) * 1e6)
        times.sort()
        if not best or percentile(times, 0.99) < percentile(best, 0.99):
            best = times
    return best


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def stock(rows: Sequence[str]) -> casbin.Enforcer:
    logging.getLogger("casbin").disabled = True
    enforcer = casbin.Enforcer(str(MODEL))
    for name, function in FUNCTIONS.items():
        enforcer.add_function(name, function)
    for kind, add in (
        ("p", enforcer.add_policies),
        ("g", lambda items: enforcer.add_named_grouping_policies("g", items)),
        ("g2", lambda items: enforcer.add_named_grouping_policies("g2", items)),
    ):
        add([row.split(", ")[1:] for row in rows if row.split(", ")[0] == kind])
    return enforcer


def decisions(bench) -> None:
    """Time cold questions, each asked once; nothing keeps answers."""
    for name, (shape, limit) in SHAPES.items():
        medians = {}
        for size in (100, 1_000, 10_000):
            rows, question = shape(size)
            questions = [question(i * 7) for i in range(QUESTIONS)]
            snapshot = build(rows)
            times = microseconds(lambda q, s=snapshot: s.decide(*q), questions, ROUNDS)
            medians[size] = percentile(times, 0.5)
            p99 = percentile(times, 0.99)
            promised = f"<={limit:.0f}" if size == 10_000 else "-"
            bench.add(f"decision-{name}-{size}-p50", medians[size], "us", "-", True)
            bench.add(f"decision-{name}-{size}-p99", p99, "us", promised, p99 <= limit or size < 10_000)
            if name in ("spread", "one-registry"):
                enforcer = stock(rows)
                few = questions[: max(5, 20_000 // size)]
                times = microseconds(lambda q, e=enforcer: e.enforce(q[0].subject, *q[1:]), few)
                bench.add(f"decision-{name}-{size}-stock-p50", percentile(times, 0.5), "us", "-", True)
                bench.add(f"decision-{name}-{size}-stock-p99", percentile(times, 0.99), "us", "-", True)
                asked = [snapshot.decide(*q).allowed is enforcer.enforce(q[0].subject, *q[1:]) for q in few[:20]]
                bench.add(f"decision-{name}-{size}-stock-differs", asked.count(False), "answers", "<=0", all(asked))
        growth = medians[10_000] / medians[100]
        bench.add(f"decision-{name}-growth-100-to-10000", growth, "ratio", "<=1.5", growth <= 1.5)


def strangers(bench) -> None:
    """Ask for 100,000 callers that no row knows; what stays in memory afterwards."""
    rows, _ = SHAPES["spread"][0](10_000)
    snapshot = build(rows)

    def ask(start: int) -> None:
        for i in range(start, start + 100_000):
            who = Principal(f"user:stranger-{i}", frozenset({f"group:g{i}"}))
            snapshot.decide(who, "main", f"models/s{i}", "model:read")

    ask(0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    resident = rusage.getrusage(rusage.RUSAGE_SELF).ru_maxrss
    ask(100_000)
    gc.collect()
    growth = (tracemalloc.get_traced_memory()[0] - before) / (1 << 20)
    tracemalloc.stop()
    bench.add("strangers-100000-memory", growth, "MiB", "<=5", growth <= 5)
    peak = (rusage.getrusage(rusage.RUSAGE_SELF).ru_maxrss - resident) / 1024
    bench.add("strangers-100000-resident-peak", peak, "MiB", "<=5", peak <= 5)


async def _late_while(work: Callable[[], object]) -> float:
    """Return by how much a task that sleeps a millisecond was late at most while a thread did *work*; milliseconds."""
    late = [0.0]
    task = asyncio.create_task(asyncio.to_thread(work))
    while not task.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - begun - 0.001) * 1000)
    await task
    return max(late)


async def reloads(bench) -> None:
    """Reload 10,000 rows beside a running loop; the round that other processes disturbed least counts."""
    gc.collect()
    gc.freeze()  # as the server does when it starts
    rows, _ = SHAPES["spread"][0](10_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_text("\n".join(rows) + "\n")
        authorizer = Authorizer(MODEL, path, ["main"])
        paced, plain, seconds = [], [], []
        for number in range(10):
            path.write_text("\n".join([f"# {number}", *rows]) + "\n")
            begun = time.perf_counter()
            paced.append(await _late_while(authorizer.reload))
            seconds.append(time.perf_counter() - begun)
            plain.append(await _late_while(lambda: Snapshot(MODEL, path, ["main"])))
            await asyncio.sleep(0.01)
    gc.unfreeze()
    bench.add("reload-10000-loop-late", min(paced), "ms", "<=5", min(paced) <= 5)
    bench.add("reload-10000-loop-late-median", statistics.median(paced), "ms", "-", True)
    bench.add("reload-10000-loop-late-without-pace", min(plain), "ms", "-", True)
    bench.add("reload-10000-loop-late-without-pace-median", statistics.median(plain), "ms", "-", True)
    effect = statistics.median(seconds) + 1  # the files are looked at each second
    bench.add("reload-10000-file-to-effect", effect, "s", "<=5", effect <= 5)


def access_figures(bench) -> None:
    decisions(bench)
    strangers(bench)
    asyncio.run(reloads(bench))


if __name__ == "__main__":
    from tests.benchmarks.bench import Bench

    access_figures(Bench())
