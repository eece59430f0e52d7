"""Run grants, and the kind of a question as a column."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a table and a column."""
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    op.create_table(
        "run_grants",
        sa.Column("run_id", uuid, nullable=False),
        sa.Column("workspace_id", uuid, nullable=False),
        sa.Column("run_grant", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_grants"),
    )
    op.add_column("approvals", sa.Column("kind", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
