"""Operations say which process carries them out, so that two replicas do not change one model at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column. Those of before were carried out by a process that is gone."""
    op.add_column("operations", sa.Column("source", sa.String(100), nullable=False, server_default=""))
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers have 64 bits
        op.alter_column("events", "sequence", type_=sa.BigInteger())
