"""Whether pausing a run was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column."""
    op.add_column("runs", sa.Column("pause_requested", sa.Boolean, nullable=False, server_default=sa.text("false")))
