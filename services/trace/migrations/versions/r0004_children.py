"""Which run started which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"


def upgrade() -> None:
    """Adds four columns."""
    for name in ("parent_run_id", "root_run_id"):
        op.add_column("runs", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''")))
    for name in ("parent_step", "depth"):
        op.add_column("runs", sa.Column(name, sa.Integer, nullable=False, server_default=sa.text("0")))
