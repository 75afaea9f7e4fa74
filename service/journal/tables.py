"""The journal's tables."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False, unique=True),
    Column("time", Float, nullable=False),
    Column("type", String(200), nullable=False),
    Column("phase", String(20), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("actor", String(300), nullable=False),
    Column("action", String(64), nullable=False),
    Column("registry", String(100), nullable=False),
    Column("resource", Text, nullable=False),
    Column("model", Text),
    Column("version", String(20)),
    Column("environment", String(200)),
    Column("outcome", String(20)),
    Column("body", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("events_operation", "operation"),
    *(
        Index(f"events_{name}", name, "sequence")
        for name in ("model", "version", "registry", "environment", "actor", "action", "outcome", "phase")
    ),
    Index("events_time", "time"),
)

operations = Table(
    "operations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("registry", String(100), nullable=False),
    Column("state", String(20), nullable=False),
    Column("change", JSON),
    Column("at", Float, nullable=False),
    Column("key", String(64)),
    Column("source", String(200), nullable=False),
    Index("operations_state", "state", "digest"),
    Index("operations_key", "key"),
)

creations = Table(
    "creations",
    metadata,
    Column("registry", String(100), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("binding", String(64), primary_key=True),
    Column("version", String(20), nullable=False),
    Column("by", String(300), nullable=False),
    Column("persons", JSON, nullable=False),
    Column("at", Float, nullable=False),
)

periods = Table(
    "periods",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("environment", String(200), nullable=False),
    Column("version", String(20), nullable=False),
    Column("binding", String(64), nullable=False),
    Column("since", Float, nullable=False),
    Column("until", Float),
    Column("by", String(300), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("behind", JSON, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("artifact_digest", String(64)),
    Column("passed", Boolean, nullable=False),
    Column("live_as", Text, nullable=False),
    Index("periods_model", "registry", "model", "environment"),
    Index("periods_live_as", "registry", "live_as"),
)

evidence = Table(
    "evidence",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("binding", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Index("evidence_binding", "registry", "model", "binding"),
)

approvals = Table(
    "approvals",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("binding", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Column("revoked_at", Float),
    Column("version", String(20)),
    Column("behind", JSON),
    Column("deleted_at", Float),
    Index("approvals_binding", "registry", "model", "binding"),
)

quarantines = Table(
    "quarantines",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("binding", String(64), nullable=False),
    Column("version", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String(300), nullable=False),
    Column("at", Float, nullable=False),
    Column("lifted_at", Float),
    Column("behind", JSON, nullable=False),
    Index("quarantines_model", "registry", "model", "binding"),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("environment", String(200), nullable=False),
    Column("version", String(20), nullable=False),
    Column("binding", String(64), nullable=False),
    Column("by", String(300), nullable=False),
    Column("persons", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("change", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("state", String(20), nullable=False),
    Column("ended_at", Float),
    Column("ended_by", String(300), nullable=False),
    Column("operation", String(64), nullable=False),
    Index("requests_model", "registry", "model", "binding"),
    Index("requests_state", "state", "expires"),
)

debts = Table(
    "debts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("environment", String(200), nullable=False),
    Column("version", String(20), nullable=False),
    Column("by", String(300), nullable=False),
    Column("persons", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("ticket", Text, nullable=False),
    Column("waived", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("closed_at", Float),
    Column("closed_by", String(300), nullable=False),
    Column("closing_reason", Text, nullable=False),
    Index("debts_environment", "registry", "environment", "closed_at"),
)

documents = Table(
    "documents",
    metadata,
    Column("kind", String(20), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("body", JSON, nullable=False),
    Column("at", Float, nullable=False),
)
"""What is kept by its digest: ``rules`` as they were written, each ``review`` that was shown, ``facts`` of verdicts."""

answers = Table(
    "answers",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index("answers_at", "at"),
)

key_uses = Table(
    "key_uses",
    metadata,
    Column("credential", String(200), primary_key=True),
    Column("hour", Integer, nullable=False),
)
"""The beginning of the hour in which each API key was last used."""

followers = Table(
    "followers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
)
"""Up to which event each follower of the journal has come."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sink", String(200), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("event", String(64), nullable=False),
    Column("place", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    Column("status", Integer),
    Column("problem", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("ended_at", Float),
    Index("deliveries_due", "sink", "state", "due"),
    Index("deliveries_place", "sink", "place", "state"),
)
"""Events that a sink is given again, or was given: those of one ``place`` (registry and model) go in order."""

replicas = Table(
    "replicas",
    metadata,
    Column("source", String(200), primary_key=True),
    Column("seen_at", Float, nullable=False),
)
"""Which processes use the journal, and when the server saw each last, by the server's clock."""

judgings = Table(
    "judgings",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("source", String(200), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("environment", String(200), nullable=False),
    Column("version", String(20), nullable=False),
    Column("behind", JSON, nullable=False),
)
"""What is being judged just now, and by which process; where the outcome is unknown, by none."""

pruned = Table(
    "pruned",
    metadata,
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("archive", Text, nullable=False),
    Column("at", Float, nullable=False),
)
"""Events that are in an archive and no longer here: the chain goes from ``previous`` to ``hash`` over them."""

holds = Table(
    "holds",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("registry", String(100), nullable=False),
    Column("model", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String(300), nullable=False),
    Column("at", Float, nullable=False),
    Column("lifted_at", Float),
    Column("lifted_by", String(300), nullable=False),
)
"""Legal holds: events of these models are not pruned."""

about = Table(
    "about",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(200), nullable=False),
)
"""What the journal knows of itself, by name."""

BY_MODEL = (creations, periods, evidence, approvals, quarantines, requests, debts)
"""Tables that follow a model when it is renamed."""
