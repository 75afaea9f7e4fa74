"""How long a token takes: from the Authorization header to the principal, each signature verified anew."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.authentication.credentials import Credentials
from service.authentication.issuer import Issuer
from service.authentication.issuers import Issuers
from tests.identity.samples import GITHUB
from tests.identity.signer import AUDIENCE, claims, key_set, signer

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

ROUNDS = 1000
LIMIT_MICROSECONDS = 500


def tokens(bench: Bench) -> None:
    """Time tokens of each algorithm, with the claims that GitHub sends."""
    for algorithm in ("RS256", "ES256", "EdDSA"):
        times = asyncio.run(_times(algorithm))
        median, p99 = statistics.median(times), sorted(times)[int(len(times) * 0.99)]
        bench.add(f"jwt-{algorithm.lower()}-p50", median, "us", f"<={LIMIT_MICROSECONDS}", median <= LIMIT_MICROSECONDS)
        bench.add(f"jwt-{algorithm.lower()}-p99", p99, "us", "-", held=True)


async def _times(algorithm: str) -> list[float]:
    one = signer(algorithm)
    settings = Issuer(
        GITHUB["iss"],
        AUDIENCE,
        "github",
        jwks_file="keys.json",
        algorithms=(algorithm,),
        require={"repository_id": "74"},
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "keys.json").write_bytes(key_set(one, *(signer(algorithm, f"o{index}") for index in range(2))))
        credentials = Credentials(None, Issuers([settings], Path(folder).joinpath, _no_tls))
    now = int(time.time())
    said = {**GITHUB, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 300}
    headers = [f"Bearer {one.by_hand(claims(**{**said, 'jti': str(index)}))}" for index in range(50)]
    times = []
    for index in range(ROUNDS):
        begun = time.perf_counter()
        await credentials.authenticate(headers[index % len(headers)])
        times.append((time.perf_counter() - begun) * 1e6)
    return times


def _no_tls(*_: object) -> None:
    raise AssertionError
