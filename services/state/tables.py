"""The tables. Every primary key starts with `workspace_id` or `run_id`; nothing refers across runs by a constraint.

`journal` is the truth. What stands beside it is either updated in the transaction that writes the journal (runs,
approvals, calls) or immutable (blobs, revisions).
"""

from __future__ import annotations

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from services.shared.seals import SealedBytes, SealedText
from services.shared.timestamps import Timestamp

metadata = sa.MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})


# What is read of an event whose workspace's key was destroyed: followers forget the run.
GONE_EVENT = run_pb2.Event(
    changes=[run_pb2.Change(run_erased=run_pb2.RunErased(requested_by="workspace deleted"))]
).SerializeToString()


def _id() -> sa.types.TypeEngine[str]:
    """UUIDs are strings in Python, native on PostgreSQL and 36 characters on SQLite."""
    return sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("session_id", _id(), nullable=False),
    # Place in the session: 1, 2, 3, …
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    # 1 child, 2 interactive, 3 batch: the order in which ready runs are claimed.
    sa.Column("lane", sa.SmallInteger, nullable=False),
    # How many runs of its agent may be driven at once; 0 is no limit.
    sa.Column("agent_limit", sa.Integer, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("wait_reason", sa.SmallInteger, nullable=False),
    # Behind an unfinished run of its session: not claimable.
    sa.Column("blocked", sa.Boolean, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    # The executor that drives it. Invariant: set exactly while the state is RUNNING.
    sa.Column("holder", _id()),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("step_count", sa.Integer, nullable=False),
    sa.Column("ready_at", Timestamp()),
    sa.Column("wake_at", Timestamp()),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_usd_nanos", sa.BigInteger, nullable=False),
    # Model calls with usage and no known price: while there is one, the cost is unknown.
    sa.Column("unpriced_calls", sa.Integer, nullable=False),
    sa.Column("failure", SealedBytes()),
    # The event that holds the answer; 0 while there is none.
    sa.Column("output_seq", sa.BigInteger, nullable=False),
    sa.Column("previous_run_id", _id()),
    sa.Column("successor_run_id", _id()),
    sa.Column("created_at", Timestamp(), nullable=False),
    sa.Column("updated_at", Timestamp(), nullable=False),
    sa.Column("ended_at", Timestamp()),
    # Asked for and not withdrawn. Invariant: set while the state is PAUSED; no transition writes it.
    sa.Column("pause_requested", sa.Boolean, nullable=False, server_default=sa.text("false")),
    # When its time is over, set when it is created; no transition writes it.
    sa.Column("expire_at", Timestamp()),
    # Its driver was told that its time is over. Where its executor is lost, the sweep ends it.
    sa.Column("expiring", sa.Boolean, nullable=False, server_default=sa.text("false")),
    # The run and step that started it; a run that a caller started has none.
    sa.Column("parent_run_id", _id()),
    sa.Column("parent_step", sa.Integer, nullable=False, server_default=sa.text("0")),
    # The run at the top of its tree. Invariant: set exactly where the run has a parent or has ever had a child.
    sa.Column("root_run_id", _id()),
    sa.Column("depth", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.Index("ix_runs_workspace_id_run_id", "workspace_id", "run_id"),
    sa.Index("ix_runs_session_id_ordinal", "session_id", "ordinal"),
    # What is claimed, in the order of claims; runs of agents with a limit apart, each agent a queue of its own, so that
    # one that is at its limit is passed over however many of its runs are ready.
    sa.Index(
        "ix_runs_ready",
        "workspace_id",
        "lane",
        "ready_at",
        "run_id",
        postgresql_where=sa.text("state = 1 AND NOT blocked AND agent_limit = 0"),
        sqlite_where=sa.text("state = 1 AND NOT blocked AND agent_limit = 0"),
    ),
    sa.Index(
        "ix_runs_ready_limited",
        "workspace_id",
        "agent",
        "lane",
        "ready_at",
        "run_id",
        postgresql_where=sa.text("state = 1 AND NOT blocked AND agent_limit > 0"),
        sqlite_where=sa.text("state = 1 AND NOT blocked AND agent_limit > 0"),
    ),
    # Counted where a workspace or an agent has a limit.
    sa.Index(
        "ix_runs_running",
        "workspace_id",
        "agent",
        postgresql_where=sa.text("state = 2"),
        sqlite_where=sa.text("state = 2"),
    ),
    sa.Index(
        "ix_runs_wake",
        "wake_at",
        postgresql_where=sa.text("state = 3 AND wake_at IS NOT NULL"),
        sqlite_where=sa.text("state = 3 AND wake_at IS NOT NULL"),
    ),
    sa.Index(
        "ix_runs_holder",
        "holder",
        postgresql_where=sa.text("holder IS NOT NULL"),
        sqlite_where=sa.text("holder IS NOT NULL"),
    ),
    sa.Index(
        "ix_runs_blocked",
        "previous_run_id",
        postgresql_where=sa.text("state = 1 AND blocked"),
        sqlite_where=sa.text("state = 1 AND blocked"),
    ),
    # Those that the sweep has to end, or whose drivers it has to tell.
    sa.Index(
        "ix_runs_expire",
        "expire_at",
        postgresql_where=sa.text("expire_at IS NOT NULL AND (state IN (1, 3, 7) OR state = 2 AND NOT expiring)"),
        sqlite_where=sa.text("expire_at IS NOT NULL AND (state IN (1, 3, 7) OR state = 2 AND NOT expiring)"),
    ),
    # Each step updates its run's row; room for all rows of a page at once keeps the updates there. Where a batch finds
    # less, what does not fit goes to another page, and into each index.
    postgresql_with={"fillfactor": "50"},
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("at", Timestamp(), nullable=False),
    # A serialized Event that has only `changes`.
    sa.Column("body", SealedBytes(gone=GONE_EVENT), nullable=False),
)

# On PostgreSQL the journal has one column more, `txid xid8 DEFAULT pg_current_xact_id()`, with an index: the order of
# the change feed, see feed_origin.py. SQLite has one writer, so that its rowid is the order of commits.

# One row, on PostgreSQL: which feed that order belongs to, and where it was written.
feed = sa.Table(
    "feed",
    metadata,
    sa.Column("feed_id", _id(), primary_key=True),
    # Cluster, database and table; another place means that they were restored from a dump.
    sa.Column("origin", sa.Text, nullable=False),
    # What is added to transaction ids.
    sa.Column("base", sa.BigInteger, nullable=False),
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("data", SealedBytes(), nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
)

# Which runs refer to a body. Invariant: a row is stored with the event that refers to the body, under a lock on the
# body's own row, and goes with its run; a body without one may be deleted by whoever holds the lock.
blob_references = sa.Table(
    "blob_references",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("run_id", _id(), primary_key=True),
    sa.Index("ix_blob_references_run_id", "run_id"),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("session_id", _id(), primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("last_run_id", _id()),
    sa.Column("run_count", sa.Integer, nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
    # When the last of its runs that were removed had ended.
    sa.Column("idle_since", Timestamp()),
)

approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("approval_id", _id(), primary_key=True),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    # ApprovalKind; 0 in rows of a release that did not write it.
    sa.Column("kind", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("state", sa.SmallInteger, nullable=False),
    # The serialized Approval as it was asked.
    sa.Column("body", SealedBytes(), nullable=False),
    # The serialized ApprovalDecided.
    sa.Column("decision", SealedBytes()),
    sa.Column("created_at", Timestamp(), nullable=False),
    sa.Column("decided_at", Timestamp()),
    sa.Index("ix_approvals_workspace_id_approval_id", "workspace_id", "approval_id"),
    # Sign-ins that runs wait for, of one workspace or of all.
    sa.Index(
        "ix_approvals_sign_ins",
        "workspace_id",
        "approval_id",
        postgresql_where=sa.text("kind = 3 AND state = 1"),
        sqlite_where=sa.text("kind = 3 AND state = 1"),
    ),
)

# Approvals that hold for all runs of a session. Invariant: a row is stored with the decision, and goes with its
# session.
session_approvals = sa.Table(
    "session_approvals",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("session_id", _id(), primary_key=True),
    sa.Column("approval_id", _id(), primary_key=True),
    sa.Column("run_id", _id(), nullable=False),
    sa.Column("tool", sa.Text, nullable=False),
    # Of the tool's definition, lower-case hex: it holds for no other one.
    sa.Column("tool_sha256", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
)

# The right of a run to use connections, signed by auth; a run of an agent that uses none has no row.
run_grants = sa.Table(
    "run_grants",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("run_grant", sa.Text, nullable=False),
)

# Who started whom, beside the run that started the other. A row stays as long as that run.
children = sa.Table(
    "children",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("child_run_id", _id(), primary_key=True),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("root_run_id", _id(), nullable=False),
    # Of `run_id`.
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # The child has ended, and `run_id` was told unless it had ended before.
    sa.Column("is_over", sa.Boolean, nullable=False, server_default=sa.text("false")),
    # When `run_id` ended, while the child still has to be asked to end as well.
    sa.Column("orphaned_at", Timestamp()),
    sa.Index("ix_children_workspace_id_root_run_id", "workspace_id", "root_run_id", "child_run_id"),
    sa.Index(
        "ix_children_orphaned",
        "orphaned_at",
        postgresql_where=sa.text("orphaned_at IS NOT NULL"),
        sqlite_where=sa.text("orphaned_at IS NOT NULL"),
    ),
)

# One row for each attempt. A row outlives its call: a late report is recognised by it, and the next attempt is given
# the details of its last heartbeat.
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("workspace_id", _id(), nullable=False),
    sa.Column("tool", sa.Text, nullable=False),
    # 1 queued, 2 offered, 3 started, 4 over.
    sa.Column("state", sa.SmallInteger, nullable=False),
    # The serialized NewCall.
    sa.Column("body", SealedBytes(), nullable=False),
    sa.Column("not_before", Timestamp(), nullable=False),
    sa.Column("start_deadline", Timestamp(), nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("worker_id", sa.Text),
    sa.Column("offer_expires_at", Timestamp()),
    # When it is taken from a silent worker; never after `times_out_at`.
    sa.Column("beat_due_at", Timestamp()),
    sa.Column("times_out_at", Timestamp()),
    sa.Column("details", SealedText(), nullable=False),
    # A digest of the first report and the event that it became: the same report again is answered the same.
    sa.Column("report_digest", sa.LargeBinary),
    sa.Column("report_seq", sa.BigInteger),
    sa.Index(
        "ix_calls_workspace_id_tool",
        "workspace_id",
        "tool",
        "not_before",
        postgresql_where=sa.text("state = 1"),
        sqlite_where=sa.text("state = 1"),
    ),
    sa.Index("ix_calls_workspace_id_lease", "workspace_id", "lease"),
    sa.Index(
        "ix_calls_start_deadline",
        "start_deadline",
        postgresql_where=sa.text("state = 1"),
        sqlite_where=sa.text("state = 1"),
    ),
    sa.Index(
        "ix_calls_offer_expires_at",
        "offer_expires_at",
        postgresql_where=sa.text("state = 2"),
        sqlite_where=sa.text("state = 2"),
    ),
    sa.Index(
        "ix_calls_beat_due_at",
        "beat_due_at",
        postgresql_where=sa.text("state = 3"),
        sqlite_where=sa.text("state = 3"),
    ),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
    sa.Column("updated_at", Timestamp(), nullable=False),
)

agent_revisions = sa.Table(
    "agent_revisions",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("revision", sa.Text, primary_key=True),
    sa.Column("spec", SealedBytes(), nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
)

agent_labels = sa.Table(
    "agent_labels",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("revision", sa.Text, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    # What the first call made: the id of a run or session, a revision, a label.
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
    sa.Index("ix_requests_created_at", "created_at"),
)

# What a workspace may use and how long it keeps what has ended; a workspace without a row has the defaults.
workspaces = sa.Table(
    "workspaces",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    # Its share of claims beside the other workspaces, 1 to 100; the default is 1.
    sa.Column("weight", sa.SmallInteger, nullable=False),
    # How many of its runs may be driven at once; 0 is no limit.
    sa.Column("max_running", sa.Integer, nullable=False),
    # Seconds after its end that a run is kept, and after its last run that a session is; 0 keeps them for ever.
    sa.Column("ended_runs_kept", sa.BigInteger, nullable=False),
    sa.Column("idle_sessions_kept", sa.BigInteger, nullable=False),
    # Of each agent, the newest so many runs are kept whatever their age.
    sa.Column("keep_latest_runs", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("updated_at", Timestamp(), nullable=False),
)

# Runs that are gone for everybody, and whose events are still to be deleted; one that was erased stays here as long as
# the event that says so.
removed_runs = sa.Table(
    "removed_runs",
    metadata,
    sa.Column("run_id", _id(), primary_key=True),
    sa.Column("workspace_id", _id(), nullable=False),
    # The last of its events that are to be deleted, and up to which they are left: a part of a run is its beginning.
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("left_seq", sa.BigInteger, nullable=False),
    # Set when it was erased: the event after `last_seq` says so.
    sa.Column("erased_at", Timestamp()),
    sa.Index(
        "ix_removed_runs_undeleted",
        "workspace_id",
        "run_id",
        postgresql_where=sa.text("left_seq > 0"),
        sqlite_where=sa.text("left_seq > 0"),
    ),
    sa.Index("ix_removed_runs_erased_at", "erased_at"),
)

# What payloads are sealed with, wrapped under the workspace's own key, which only auth can use.
data_keys = sa.Table(
    "data_keys",
    metadata,
    sa.Column("workspace_id", _id(), primary_key=True),
    sa.Column("key_id", _id(), primary_key=True),
    sa.Column("wrapped", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp(), nullable=False),
)

executors = sa.Table(
    "executors",
    metadata,
    sa.Column("executor_id", _id(), primary_key=True),
    # The stream that speaks for it. Invariant: only this one renews, claims for it, or gives its runs back.
    sa.Column("stream_id", _id(), nullable=False),
    sa.Column("expires_at", Timestamp(), nullable=False),
)

# A partial index is used only where the query says its condition in the same words, without parameters.
IS_BLOCKED = sa.text("runs.state = 1 AND runs.blocked")
IS_WAITING_FOR_TIME = sa.text("runs.state = 3 AND runs.wake_at IS NOT NULL")
IS_EXPIRING = sa.text(
    "runs.expire_at IS NOT NULL AND (runs.state IN (1, 3, 7) OR runs.state = 2 AND NOT runs.expiring)"
)
IS_QUEUED_CALL = sa.text("calls.state = 1")
IS_OFFERED_CALL = sa.text("calls.state = 2")
IS_STARTED_CALL = sa.text("calls.state = 3")
IS_UNDELETED = sa.text("removed_runs.left_seq > 0")
IS_ORPHANED = sa.text("children.orphaned_at IS NOT NULL")
