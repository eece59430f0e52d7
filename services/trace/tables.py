"""The tables of trace: events in the pieces in which they were read, one row for each run, and where the feed goes on.

Spans are no table: they are derived from a run's events when somebody asks, so that none can be missing or double.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.shared.timestamps import Timestamp

metadata: Final = sa.MetaData()

# What arrived of a run at once: many small rows would cost several times as much as what stands in them.
chunks: Final = sa.Table(
    "chunks",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("first_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    # An event between them may be missing, and stand in another chunk.
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    # A serialized ReadJournalResponse: the events without their run_id, in order. Compressed by zlib when it is longer
    # than some hundred bytes.
    sa.Column("body", sa.LargeBinary, nullable=False),
    # A run is read as a whole and in order: on SQLite its events lie side by side.
    sqlite_with_rowid=False,
)

# Read, not written any more: what was stored before there were chunks.
events: Final = sa.Table(
    "events",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    # The serialized Event without its run_id.
    sa.Column("body", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# One row for each run, updated in place: lists need nothing else. Its columns are the fields of `summary.RunRecord`,
# in the same order.
runs: Final = sa.Table(
    "runs",
    metadata,
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
    # The serialized Failure.
    sa.Column("failure", sa.LargeBinary),
    sa.Column("open_steps", sa.Text, nullable=False),
    # No gap before it: what the row tells is the run up to here.
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    # The newest event that is stored; beyond `last_seq` only while an event between them is missing.
    sa.Column("newest_seq", sa.BigInteger, nullable=False),
    sa.Column("paused_micros", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("paused_since", Timestamp),
    sa.Column("parent_run_id", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("parent_step", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Empty for a run that a caller started.
    sa.Column("root_run_id", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("depth", sa.Integer, nullable=False, server_default=sa.text("0")),
    # No index holds a column that changes with each event, so that updates stay within their page.
    sa.Index("runs_by_time", "workspace_id", "created_at", "run_id"),
    sa.Index("runs_by_agent", "workspace_id", "agent", "created_at", "run_id"),
    sa.Index("runs_by_session", "workspace_id", "session_id", "created_at", "run_id"),
    sa.Index("runs_by_user", "workspace_id", "user_id", "created_at", "run_id"),
    # A list of what runs or waits now must not read through all that has ended.
    sa.Index(
        "runs_unended",
        "workspace_id",
        "created_at",
        "run_id",
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    ),
    sa.Index(
        "runs_by_root",
        "workspace_id",
        "root_run_id",
        "run_id",
        sqlite_where=sa.text("root_run_id <> ''"),
        postgresql_where=sa.text("root_run_id <> ''"),
    ),
    postgresql_with={"fillfactor": "70"},
)

# One row: the change feed of state, and the cursor up to which its events are stored.
feeds: Final = sa.Table(
    "feeds",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("cursor", sa.LargeBinary, nullable=False),
)
