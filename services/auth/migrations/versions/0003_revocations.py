"""Stray secrets know which provider has to be told before they are deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; of strays that are there already no provider is told."""
    op.add_column("stray_secrets", sa.Column("workspace_id", sa.Text))
    op.add_column("stray_secrets", sa.Column("integration_id", sa.Text))
    op.add_column("stray_secrets", sa.Column("attempt_time", Timestamp))
    op.add_column("stray_secrets", sa.Column("failure_count", sa.Integer, nullable=False, server_default="0"))
    op.create_index("stray_secrets_by_integration", "stray_secrets", ["integration_id"])
