"""When a run's time is over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds two columns."""
    op.add_column("runs", sa.Column("expire_at", Timestamp()))
    op.add_column("runs", sa.Column("expiring", sa.Boolean, nullable=False, server_default=sa.text("false")))
