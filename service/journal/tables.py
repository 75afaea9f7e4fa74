"""The journal's tables."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
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
    Index("events_model", "registry", "model", "sequence"),
    Index("events_actor", "actor", "sequence"),
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
    Index("operations_state", "state", "digest"),
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
    Index("periods_model", "registry", "model", "environment"),
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

BY_MODEL = (creations, periods, evidence, approvals)
"""Tables that follow a model when it is renamed."""
