"""Nothing is ever live in an enforced environment that its rules did not let in, whoever does what in which order."""

from __future__ import annotations

import os
import time

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.promotion.machine import Promotions
from tests.promotion.plain import ENVIRONMENTS
from tests.promotion.world import world

SEQUENCES = int(os.environ.get("PROMOTION_SEQUENCES", "25"))
STEPS = int(os.environ.get("PROMOTION_STEPS", "14"))


PHASES = [Phase.generate] if "CI" in os.environ else [Phase.generate, Phase.shrink]
"""To shrink a failure takes minutes on a real registry."""


def test_random_interleavings_on_a_real_registry(mlflow_server, tmp_path):
    (tmp_path / "environments.yaml").write_text(ENVIRONMENTS)
    changes = {
        "registries": {"main": {"kind": "mlflow", "url": mlflow_server.url}},
        "environments": str(tmp_path / "environments.yaml"),
        "drift_seconds": 0,
    }
    with world(tmp_path, **changes) as it:
        begun = time.monotonic()
        run_state_machine_as_test(
            type("Here", (Promotions,), {"world": it}),
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )
        print(
            f"\n{it.sequences} sequences, {it.steps} steps, {it.promoted} made live, {it.refused} refused, "
            f"{time.monotonic() - begun:.0f} s"
        )
    assert it.sequences >= SEQUENCES
    assert it.promoted > it.sequences  # otherwise it proved little
