"""Keys that payloads are sealed with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a table."""
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")
    op.create_table(
        "data_keys",
        sa.Column("workspace_id", uuid, nullable=False),
        sa.Column("key_id", uuid, nullable=False),
        sa.Column("wrapped", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "key_id", name="pk_data_keys"),
    )
