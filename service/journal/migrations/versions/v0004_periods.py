"""What was live is kept with the files it was judged with, whether its gate was open, and the name it had."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns. Of what was live before, nobody knows the files; drift and emergencies did not pass."""
    op.add_column("periods", sa.Column("artifact_digest", sa.String(length=64), nullable=True))
    op.add_column("periods", sa.Column("passed", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("periods", sa.Column("live_as", sa.Text(), nullable=False, server_default=""))
    periods = sa.table("periods", *(sa.column(name) for name in ("kind", "passed", "live_as", "model")))
    op.execute(periods.update().values(live_as=periods.c.model))
    op.execute(periods.update().where(periods.c.kind.in_(("drift", "emergency"))).values(passed=sa.false()))
    op.create_index("periods_live_as", "periods", ["registry", "live_as"])
