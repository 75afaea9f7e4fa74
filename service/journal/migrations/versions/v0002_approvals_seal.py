"""Approvals keep what stands behind their version, so that it can be sealed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns. What was signed before has none of these, and seals nothing."""
    op.add_column("approvals", sa.Column("version", sa.String(length=20), nullable=True))
    op.add_column("approvals", sa.Column("behind", sa.JSON(), nullable=True))
    op.add_column("approvals", sa.Column("deleted_at", sa.Float(), nullable=True))
