"""Workspaces can be closed, and then deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns: all workspaces are open."""
    op.add_column("workspaces", sa.Column("close_time", Timestamp))
    op.add_column("workspaces", sa.Column("delete_time", Timestamp))
