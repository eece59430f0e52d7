"""Runs that other runs start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def _id() -> sa.types.TypeEngine[str]:
    return sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")


def upgrade() -> None:
    """Adds columns and a table."""
    op.create_table(
        "children",
        sa.Column("run_id", _id(), nullable=False),
        sa.Column("child_run_id", _id(), nullable=False),
        sa.Column("workspace_id", _id(), nullable=False),
        sa.Column("root_run_id", _id(), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("is_over", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("orphaned_at", Timestamp()),
        sa.PrimaryKeyConstraint("run_id", "child_run_id", name="pk_children"),
    )
    op.create_index("ix_children_workspace_id_root_run_id", "children", ["workspace_id", "root_run_id", "child_run_id"])
    op.create_index(
        "ix_children_orphaned",
        "children",
        ["orphaned_at"],
        postgresql_where=sa.text("orphaned_at IS NOT NULL"),
        sqlite_where=sa.text("orphaned_at IS NOT NULL"),
    )
    op.add_column("runs", sa.Column("parent_run_id", _id()))
    op.add_column("runs", sa.Column("parent_step", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("runs", sa.Column("root_run_id", _id()))
    op.add_column("runs", sa.Column("depth", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
