"""Sign-ins that runs wait for are found by an index."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEX = "ix_approvals_sign_ins ON approvals (workspace_id, approval_id) WHERE kind = 3 AND state = 1"


def upgrade() -> None:
    """Adds the index."""
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX IF EXISTS ix_approvals_sign_ins")
            op.execute(f"CREATE INDEX CONCURRENTLY {_INDEX}")
    else:
        op.execute(f"CREATE INDEX {_INDEX}")
