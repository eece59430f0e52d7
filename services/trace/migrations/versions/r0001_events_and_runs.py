"""Events, runs and the feed's cursor."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "r0001"
down_revision = None


def upgrade() -> None:
    """Expands the schema."""
    op.create_table(
        "events",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("workspace_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("previous_run_id", sa.Text, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("wait_reason", sa.Integer, nullable=False),
        sa.Column("created_at", Timestamp),
        sa.Column("ended_at", Timestamp),
        sa.Column("queued_micros", sa.BigInteger),
        sa.Column("active_micros", sa.BigInteger, nullable=False),
        sa.Column("waiting_micros", sa.BigInteger, nullable=False),
        sa.Column("segment_epoch", sa.BigInteger, nullable=False),
        sa.Column("segment_started_at", Timestamp),
        sa.Column("segment_last_at", Timestamp),
        sa.Column("waiting_since", Timestamp),
        sa.Column("wake_at", Timestamp),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("model_calls", sa.Integer, nullable=False),
        sa.Column("tool_calls", sa.Integer, nullable=False),
        sa.Column("failed_attempts", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_read_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_write_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd_nanos", sa.BigInteger, nullable=False),
        sa.Column("unpriced_calls", sa.Integer, nullable=False),
        sa.Column("price_source", sa.Text, nullable=False),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("open_steps", sa.Text, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("newest_seq", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("runs_by_time", "runs", ["workspace_id", "created_at", "run_id"])
    op.create_index("runs_by_agent", "runs", ["workspace_id", "agent", "created_at", "run_id"])
    op.create_index("runs_by_session", "runs", ["workspace_id", "session_id", "created_at", "run_id"])
    op.create_index("runs_by_user", "runs", ["workspace_id", "user_id", "created_at", "run_id"])
    op.create_index(
        "runs_unended",
        "runs",
        ["workspace_id", "created_at", "run_id"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    feeds = op.create_table(
        "feeds",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("cursor", sa.LargeBinary, nullable=False),
    )
    op.bulk_insert(feeds, [{"name": "state", "cursor": b""}])
