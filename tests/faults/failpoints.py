"""The places at which a test can kill a gateway, by name; `tests.faults.gateway` makes them in its own process."""

FAILPOINTS = ("before-intent", "before-commit", "after-commit", "after-intent", "after-answer", "after-outcome")
