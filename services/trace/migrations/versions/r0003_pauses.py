"""How long a run was paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    """Adds two columns."""
    op.add_column("runs", sa.Column("paused_micros", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("runs", sa.Column("paused_since", Timestamp))
