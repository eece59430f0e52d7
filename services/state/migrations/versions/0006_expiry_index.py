"""Runs whose time is over are found by an index."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEX = (
    "ix_runs_expire ON runs (expire_at) "
    "WHERE expire_at IS NOT NULL AND (state IN (1, 3, 7) OR state = 2 AND NOT expiring)"
)


def upgrade() -> None:
    """Adds the index."""
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX IF EXISTS ix_runs_expire")
            op.execute(f"CREATE INDEX CONCURRENTLY {_INDEX}")
    else:
        op.execute(f"CREATE INDEX {_INDEX}")
