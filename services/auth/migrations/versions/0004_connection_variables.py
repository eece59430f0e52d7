"""Connections and connect sessions keep the values of their providers' variables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns."""
    for table in ("connections", "connect_sessions"):
        op.add_column(table, sa.Column("variables", sa.Text, nullable=False, server_default="{}"))
