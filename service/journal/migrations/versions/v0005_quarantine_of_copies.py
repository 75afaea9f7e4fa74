"""Quarantines keep what the version was made from, so that a copy of it is in quarantine too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column. What quarantines of before were made from is not known: they hold for their version alone."""
    op.add_column("quarantines", sa.Column("behind", sa.JSON(), nullable=False, server_default="[]"))
