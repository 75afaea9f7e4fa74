"""When each API key was last used is kept, by the hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table. What was used before is not known."""
    op.create_table(
        "key_uses",
        sa.Column("credential", sa.String(length=200), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("credential"),
    )
