"""What followers of the journal have read, what is to be delivered, who serves it, what was pruned and what is held."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
_SEQUENCE = sa.BigInteger()


_FILTERS = ("version", "registry", "environment", "action", "outcome", "phase")


def upgrade() -> None:
    """Create tables and indexes. Whoever follows begins with what comes from now on."""
    op.create_table(
        "about",
        sa.Column("name", sa.String(length=64), primary_key=True),
        sa.Column("value", sa.String(length=200), nullable=False),
    )
    op.execute(sa.text("INSERT INTO about VALUES ('usable_from', '0008')"))
    _note_clock()
    op.drop_index("events_model", "events")
    op.create_index("events_model", "events", ["model", "sequence"])
    for name in _FILTERS:
        op.create_index(f"events_{name}", "events", [name, "sequence"])
    op.create_table(
        "followers",
        sa.Column("name", sa.String(length=200), primary_key=True),
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("sink", sa.String(length=200), nullable=False),
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
    )
    op.create_index("deliveries_due", "deliveries", ["sink", "state", "due"])
    op.create_index("deliveries_place", "deliveries", ["sink", "place", "state"])
    op.create_table(
        "replicas",
        sa.Column("source", sa.String(length=200), primary_key=True),
        sa.Column("seen_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "judgings",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("operation", sa.String(length=64), nullable=False),
        sa.Column("registry", sa.String(length=100), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=20), nullable=False),
        sa.Column("behind", sa.JSON(), nullable=False),
    )
    op.create_table(
        "pruned",
        sa.Column("first", _SEQUENCE, primary_key=True, autoincrement=False),
        sa.Column("last", _SEQUENCE, nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("archive", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_table(
        "holds",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("registry", sa.String(length=100), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.String(length=300), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("lifted_at", sa.Float(), nullable=True),
        sa.Column("lifted_by", sa.String(length=300), nullable=False),
    )
    with op.batch_alter_table("operations") as operations:  # a source names cluster and replica too
        operations.alter_column("source", existing_type=sa.String(length=100), type_=sa.String(length=200))


def _note_clock() -> None:
    """Keep by how much the times of events went back at most, as the gateway does from now on."""
    latest, back, last = 0.0, 0.0, 0
    page = sa.text("SELECT sequence, time FROM events WHERE sequence > :last ORDER BY sequence LIMIT 10000")
    while rows := op.get_bind().execute(page, {"last": last}).all():
        for _, time in rows:
            latest, back = max(latest, time), max(back, latest - time)
        last = rows[-1].sequence
    op.execute(sa.text("INSERT INTO about VALUES ('clock_back_seconds', :back)").bindparams(back=str(back)))
