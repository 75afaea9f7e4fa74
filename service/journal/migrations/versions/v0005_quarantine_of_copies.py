"""Quarantines keep what the version was made from, so that copies are in quarantine too; requests are found by age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add column and index. What quarantines of before were made from is not known: they hold for their version."""
    op.add_column("quarantines", sa.Column("behind", sa.JSON(), nullable=False, server_default="[]"))
    op.drop_index("requests_state", "requests")
    op.create_index("requests_state", "requests", ["state", "expires"])
