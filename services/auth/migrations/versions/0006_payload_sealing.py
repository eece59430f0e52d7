"""Workspaces choose whether their payloads are sealed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column: all workspaces leave it to the installation."""
    op.add_column("workspaces", sa.Column("seals_payloads", sa.Boolean))
