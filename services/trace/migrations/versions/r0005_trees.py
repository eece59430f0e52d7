"""The runs of a tree are found by an index."""

from __future__ import annotations

from alembic import op

revision = "r0005"
down_revision = "r0004"

_INDEX = "runs_by_root ON runs (workspace_id, root_run_id, run_id) WHERE root_run_id <> ''"


def upgrade() -> None:
    """Adds the index."""
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX IF EXISTS runs_by_root")
            op.execute(f"CREATE INDEX CONCURRENTLY {_INDEX}")
    else:
        op.execute(f"CREATE INDEX {_INDEX}")
