"""Approvals that hold for all runs of a session."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a table."""
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    op.create_table(
        "session_approvals",
        sa.Column("workspace_id", uuid, nullable=False),
        sa.Column("session_id", uuid, nullable=False),
        sa.Column("approval_id", uuid, nullable=False),
        sa.Column("run_id", uuid, nullable=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("tool_sha256", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "session_id", "approval_id", name="pk_session_approvals"),
    )
