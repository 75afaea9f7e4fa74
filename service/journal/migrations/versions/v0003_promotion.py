"""Promotion's own records: quarantines, requests, debts, rules and reviews by digest, answers by key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables and columns. What was live before counts as promoted."""
    op.add_column("periods", sa.Column("kind", sa.String(length=20), nullable=False, server_default="promotion"))
    op.add_column("operations", sa.Column("key", sa.String(length=64), nullable=True))
    op.create_index("operations_key", "operations", ["key"])
    op.create_table(
        "quarantines",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("registry", sa.String(length=100), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("binding", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.String(length=300), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("lifted_at", sa.Float(), nullable=True),
    )
    op.create_index("quarantines_model", "quarantines", ["registry", "model", "binding"])
    op.create_table(
        "requests",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("registry", sa.String(length=100), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=20), nullable=False),
        sa.Column("binding", sa.String(length=64), nullable=False),
        sa.Column("by", sa.String(length=300), nullable=False),
        sa.Column("persons", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("change", sa.JSON(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("ended_by", sa.String(length=300), nullable=False),
        sa.Column("operation", sa.String(length=64), nullable=False),
    )
    op.create_index("requests_model", "requests", ["registry", "model", "binding"])
    op.create_index("requests_state", "requests", ["state", "at"])
    op.create_table(
        "debts",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("registry", sa.String(length=100), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=20), nullable=False),
        sa.Column("by", sa.String(length=300), nullable=False),
        sa.Column("persons", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("waived", sa.JSON(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("closed_by", sa.String(length=300), nullable=False),
        sa.Column("closing_reason", sa.Text(), nullable=False),
    )
    op.create_index("debts_environment", "debts", ["registry", "environment", "closed_at"])
    op.create_table(
        "documents",
        sa.Column("kind", sa.String(length=20), primary_key=True),
        sa.Column("digest", sa.String(length=64), primary_key=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("key", sa.String(length=64), primary_key=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_index("answers_at", "answers", ["at"])
