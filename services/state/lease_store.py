"""Who drives which run: streams, returns, and the sweep of what was left behind. `claims` has the claims.

Set-based; a heartbeat renews one row for all runs of an executor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.timestamps import Timestamp
from services.state import journal
from services.state import tables as t
from services.state.feed_origin import HORIZON_SQL, NEWEST_SQL
from services.state.transitions import ENDED

LEASE_DURATION = timedelta(seconds=5)
# An executor whose stream broke has this long to come back; a killed one never does.
GRACE = timedelta(milliseconds=500)
# How far back a heartbeat looks for events from outside; a few heartbeats, so that none is passed over.
NUDGED_WITHIN = timedelta(seconds=3)
SWEEP_LIMIT = 1_000
SWEEP_EXECUTORS = 10
LOST_CALLS_LIMIT = 100

QUEUED, RUNNING, WAITING = run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_WAITING


def open_stream(
    connection: sa.Connection, db: Database, executor_id: str, stream_id: str, held: Mapping[str, int]
) -> tuple[set[str], int]:
    """A stream speaks for an executor from now on, and no other does. The executor keeps the runs that it names.

    What it does not name was given to a stream before this one and never arrived: that becomes ready again.

    Returns:
        The runs that it still drives, and how many became ready.
    """
    expires = db.now(connection) + LEASE_DURATION
    insert = sqlite.insert if db.dialect == "sqlite" else postgresql.insert
    # Order matters: this waits for a claim that is under way on the stream before, so that the next statement sees it.
    connection.execute(
        insert(t.executors)
        .values(executor_id=executor_id, stream_id=stream_id, expires_at=expires)
        .on_conflict_do_update(
            index_elements=[t.executors.c.executor_id], set_={"stream_id": stream_id, "expires_at": expires}
        )
    )
    r = t.runs.c
    driven = connection.execute(sa.select(r.run_id, r.epoch).where(r.holder == executor_id, r.state == RUNNING)).all()
    kept = {row.run_id for row in driven if held.get(row.run_id) == row.epoch}
    lost = {row.run_id: row.epoch for row in driven if row.run_id not in kept}
    return kept, _make_ready(connection, db, executor_id, lost) if lost else 0


def renew(connection: sa.Connection, db: Database, executor_id: str, stream_id: str) -> list[str] | None:
    """The executor is alive; None when this stream does not speak for it (any more).

    Returns:
        Runs of the executor that lately got an event from outside, perhaps through another replica.
    """
    now = db.now(connection)
    e = t.executors.c
    alive = connection.execute(
        sa.update(t.executors)
        .where(e.executor_id == executor_id, e.stream_id == stream_id)
        .values(expires_at=now + LEASE_DURATION)
    )
    if alive.rowcount != 1:
        return None
    if db.dialect == "sqlite":
        return []
    r, j = t.runs.c, t.journal.c
    nudged = (
        sa.select(r.run_id)
        .join(t.journal, sa.and_(j.run_id == r.run_id, j.seq == r.last_seq))
        # The first event is its driver's to begin with.
        .where(r.holder == executor_id, r.last_seq > 1, j.epoch == 0, j.at > now - NUDGED_WITHIN)
    )
    return list(connection.execute(nudged).scalars())


def close_stream(connection: sa.Connection, db: Database, executor_id: str, stream_id: str, *, in_order: bool) -> int:
    """A stream is over. Unless a newer one speaks for the executor: one that ended in order gives its runs back now.

    One that broke has a short grace, in which the executor may come back.

    Returns:
        How many runs became ready.
    """
    e = t.executors.c
    mine = (e.executor_id == executor_id) & (e.stream_id == stream_id)
    if in_order:
        if connection.execute(sa.delete(t.executors).where(mine)).rowcount == 1:
            return _make_ready(connection, db, executor_id)
        return 0
    expires = db.now(connection) + GRACE
    connection.execute(sa.update(t.executors).where(mine, e.expires_at > expires).values(expires_at=expires))
    return 0


def extend_all(connection: sa.Connection, db: Database, duration: timedelta) -> None:
    """Every executor that is known is alive until `duration` from now, at least."""
    expires = db.now(connection) + duration
    e = t.executors.c
    connection.execute(sa.update(t.executors).where(e.expires_at < expires).values(expires_at=expires))


def release(connection: sa.Connection, db: Database, executor_id: str, runs: Mapping[str, int]) -> int:
    """Makes some of an executor's runs, named with their epochs, ready for others."""
    return _make_ready(connection, db, executor_id, runs)


# A run that is returned keeps the time at which it became ready: it goes before those that came after it.
def _make_ready(
    connection: sa.Connection, db: Database, executor_id: str, runs: Mapping[str, int] | None = None
) -> int:
    """What is returned keeps the time at which it became ready, and goes before what came after it."""
    now = db.now(connection)
    r = t.runs.c
    query = sa.update(t.runs).where(r.holder == executor_id, r.state == RUNNING)
    if runs is not None:
        named = [(run_id, epoch) for run_id, epoch in runs.items() if is_uuid(run_id)]
        query = query.where(sa.tuple_(r.run_id, r.epoch).in_(named))
    return connection.execute(query.values(state=QUEUED, holder=None, updated_at=now)).rowcount


# --------------------------------------------------------------------------------------------------- sweeping


@dataclass(frozen=True, slots=True)
class Glance:
    """What one cheap look at the database shows.

    Attributes:
        now: When it was made, by the database's clock.
        has_ready: There are runs to claim.
        next_due: When there is something for the sweep; None when nothing is due at any time.
        has_lost_calls: There are workers' calls whose time is over.
        has_expired: There are runs whose time is over.
        has_orphans: There are runs whose parents have ended, to be asked to end as well.
        newest: The newest transaction in the journal that is visible. 0 on SQLite, where all of them are made here.
        horizon: All transactions before this one are over.
    """

    now: datetime
    has_ready: bool
    next_due: datetime | None
    has_lost_calls: bool
    has_expired: bool
    has_orphans: bool
    newest: int
    horizon: int

    @property
    def has_due(self) -> bool:
        """There is something for the sweep."""
        return self.next_due is not None and self.next_due <= self.now


# Each reads one entry of a partial index: the order says so to a planner that would rather scan until it finds a row.
_READY = "(SELECT workspace_id FROM runs WHERE state = 1 AND NOT blocked AND agent_limit {limit} 0 ORDER BY 1 LIMIT 1)"
_DUE = {
    # Few rows, one for each executor.
    "expires": "(SELECT min(expires_at) FROM executors)",
    "wake": "(SELECT wake_at FROM runs WHERE state = 3 AND wake_at IS NOT NULL ORDER BY 1 LIMIT 1)",
    "expire": (
        "(SELECT expire_at FROM runs WHERE expire_at IS NOT NULL AND "
        "(state IN (1, 3, 7) OR state = 2 AND NOT expiring) ORDER BY 1 LIMIT 1)"
    ),
    "orphan": "(SELECT orphaned_at FROM children WHERE orphaned_at IS NOT NULL ORDER BY 1 LIMIT 1)",
    "start": "(SELECT start_deadline FROM calls WHERE state = 1 ORDER BY 1 LIMIT 1)",
    "offer": "(SELECT offer_expires_at FROM calls WHERE state = 2 ORDER BY 1 LIMIT 1)",
    "beat": "(SELECT beat_due_at FROM calls WHERE state = 3 ORDER BY 1 LIMIT 1)",
}


def _glance_sql(now: str, feed: str) -> sa.TextualSelect:
    dues = ", ".join(f"{query} AS {name}" for name, query in _DUE.items())
    return sa.text(
        f"SELECT {_READY.format(limit='=')} IS NOT NULL OR {_READY.format(limit='>')} IS NOT NULL AS has_ready, "
        f"{feed}, {now} AS now, {dues}"
    ).columns(
        sa.Column("has_ready", sa.Boolean),
        sa.Column("newest", sa.BigInteger),
        sa.Column("horizon", sa.BigInteger),
        sa.Column("now", Timestamp()),
        *(sa.Column(name, Timestamp()) for name in _DUE),
    )


_GLANCE = {
    "sqlite": _glance_sql(":now", "0 AS newest, 0 AS horizon"),
    "postgresql": _glance_sql(
        "statement_timestamp()",
        f"COALESCE(({NEWEST_SQL}), 0) AS newest, {HORIZON_SQL} AS horizon",
    ),
}


def glance(connection: sa.Connection, db: Database) -> Glance:
    """Looks whether there is anything to do; nothing is written or locked."""
    values = {"now": journal.to_micros(db.now(connection))} if db.dialect == "sqlite" else {}
    row = connection.execute(_GLANCE[db.dialect], values).one()
    next_due = min((due for name in _DUE if (due := getattr(row, name)) is not None), default=None)
    has_lost_calls = any(due is not None and due <= row.now for due in (row.start, row.beat))
    has_expired = row.expire is not None and row.expire <= row.now
    has_orphans = row.orphan is not None
    return Glance(
        row.now, bool(row.has_ready), next_due, has_lost_calls, has_expired, has_orphans, row.newest, row.horizon
    )


# From the newest events to their runs, whatever is known of the tables' sizes when it is planned. The runs that are
# asked for, which may be many, are looked up in a hash: it is no join.
_WRITTEN_SINCE = (
    "FROM journal WHERE txid >= CAST(CAST(:since AS text) AS xid8) "
    "AND (CAST(run_id AS text) IN (SELECT unnest(CAST(:run_ids AS text[])))) IS TRUE"
)
_REACHED = sa.text(f"SELECT run_id, max(seq) {_WRITTEN_SINCE} GROUP BY run_id")
_ENDED = sa.text(
    f"WITH written AS MATERIALIZED (SELECT DISTINCT run_id {_WRITTEN_SINCE}) "
    "SELECT run_id FROM written WHERE (SELECT state FROM runs WHERE runs.run_id = written.run_id) "
    f"IN ({', '.join(str(int(state)) for state in sorted(ENDED))})"
)


def reached_since(connection: sa.Connection, run_ids: list[str], since: int) -> list[tuple[str, int]]:
    """Of these runs, those that transactions since `since` wrote to, with their newest event. PostgreSQL only."""
    return [(run_id, seq) for run_id, seq in connection.execute(_REACHED, {"run_ids": run_ids, "since": since})]


def ended_since(connection: sa.Connection, run_ids: list[str], since: int) -> list[str]:
    """Of these runs, those that have ended and that transactions since `since` wrote to. PostgreSQL only."""
    return list(connection.execute(_ENDED, {"run_ids": run_ids, "since": since}).scalars())


@dataclass(slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        ready_runs: How many runs became ready.
        calls_queued: Workspaces and tools of calls that are queued again.
        is_full: It found as much as it takes at once: there may be more.
    """

    ready_runs: int = 0
    calls_queued: set[tuple[str, str]] = field(default_factory=set)
    is_full: bool = False

    @property
    def is_empty(self) -> bool:
        """Nothing was found: there was nothing, or somebody else has it."""
        return not (self.ready_runs or self.calls_queued or self.is_full)


def sweep(connection: sa.Connection, db: Database) -> Sweep:
    """Returns the runs of lost executors, wakes what is due, and queues calls again that were offered in vain.

    So much at once that a transaction takes some milliseconds, however much is due.
    """
    now = db.now(connection)
    found = Sweep()
    r, e, c = t.runs.c, t.executors.c, t.calls.c
    expired = (
        sa.select(e.executor_id).where(e.expires_at < now).limit(SWEEP_EXECUTORS).with_for_update(skip_locked=True)
    )
    lost = connection.execute(
        sa.delete(t.executors).where(e.executor_id.in_(expired.scalar_subquery())).returning(e.executor_id)
    )
    executors = list(lost.scalars())
    if executors:
        returned = sa.update(t.runs).where(r.holder.in_(executors), r.state == RUNNING)
        returned = returned.values(state=QUEUED, holder=None, updated_at=now)
        found.ready_runs = connection.execute(returned).rowcount
    due = (
        sa.select(r.run_id)
        .where(t.IS_WAITING_FOR_TIME, r.wake_at <= now)
        .order_by(r.wake_at)
        .limit(SWEEP_LIMIT)
        .with_for_update(skip_locked=True)
        .cte("due")
        # Looked up once, or the limit would hold for each of several look-ups.
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    woken = sa.update(t.runs).where(r.run_id.in_(sa.select(due.c.run_id)))
    # Returned, as SQLite counts no rows of a statement that begins with WITH.
    woken = woken.values(state=QUEUED, wait_reason=0, wake_at=None, ready_at=now, updated_at=now)
    awake = len(connection.execute(woken.returning(r.run_id)).all())
    unused = (
        sa.update(t.calls)
        .where(t.IS_OFFERED_CALL, c.offer_expires_at <= now)
        .values(state=journal.CALL_QUEUED, lease=None, worker_id=None)
        .returning(c.workspace_id, c.tool)
    )
    found.calls_queued.update((row.workspace_id, row.tool) for row in connection.execute(unused))
    found.ready_runs += awake
    found.is_full = awake == SWEEP_LIMIT or len(executors) == SWEEP_EXECUTORS
    return found


@dataclass(frozen=True, slots=True)
class LostCall:
    """An attempt whose time is over."""

    workspace_id: str
    run_id: str
    step: int
    attempt: int


def lost_calls(connection: sa.Connection, db: Database) -> list[LostCall]:
    """The calls that no worker began in time, or whose worker is silent or takes too long."""
    c = t.calls.c
    # Apart, so that each is found by an index of its own.
    return [
        LostCall(*row)
        for condition in _lost_conditions(db.now(connection))
        for row in connection.execute(
            sa.select(c.workspace_id, c.run_id, c.step, c.attempt).where(condition).limit(LOST_CALLS_LIMIT)
        )
    ]


def lose_call(connection: sa.Connection, db: Database, lost: LostCall) -> journal.Outside | None:
    """Takes one of them from its worker and tells its run; None when it is not lost any more.

    One call is one transaction: the feed's order within a run rests on a transaction beginning to write with the run's
    row.
    """
    # The run first, then the call: the order in which every transaction locks them.
    run = journal.select_run(connection, lost.workspace_id, lost.run_id, lock=True)
    now = db.now(connection)
    c = t.calls.c
    key = (c.run_id == lost.run_id) & (c.step == lost.step) & (c.attempt == lost.attempt)
    call = connection.execute(
        sa.select(t.calls).where(key, sa.or_(*_lost_conditions(now))).with_for_update()
    ).one_or_none()
    if run is None or call is None:
        return None
    connection.execute(sa.update(t.calls).where(key).values(state=journal.CALL_OVER))
    if call.state == journal.CALL_QUEUED:
        failure = content_pb2.Failure(
            reason="WORKER_START_TIMEOUT",
            message=f"No worker took the call of {call.tool} in time.",
            failure_class=content_pb2.FAILURE_CLASS_RETRYABLE,
        )
    elif call.times_out_at <= now:
        failure = content_pb2.Failure(
            reason="CALL_TIMEOUT",
            message=f"The call of {call.tool} did not end in time.",
            failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME,
        )
    else:
        failure = content_pb2.Failure(
            reason="WORKER_LOST",
            message=f"The worker that ran {call.tool} was not heard of any more.",
            failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME,
        )
    failed = run_pb2.AttemptFailed(step=call.step, attempt=call.attempt, failure=failure)
    return journal.append_outside(connection, db, run, [run_pb2.Change(attempt_failed=failed)])


def _lost_conditions(now: datetime) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    c = t.calls.c
    return sa.and_(t.IS_STARTED_CALL, c.beat_due_at <= now), sa.and_(t.IS_QUEUED_CALL, c.start_deadline <= now)


def repair(connection: sa.Connection, db: Database) -> int:
    """Makes ready what a process left behind that died between two statements; finds nothing otherwise.

    Returns:
        How many runs were stranded.
    """
    now = db.now(connection)
    r, e = t.runs.c, t.executors.c
    before = t.runs.alias("before")
    behind_nobody = sa.exists().where(before.c.run_id == r.previous_run_id, before.c.state.in_(ENDED))
    held_by_nobody = sa.not_(sa.exists().where(e.executor_id == r.holder))
    unblocked = sa.update(t.runs).where(t.IS_BLOCKED, behind_nobody).values(blocked=False, ready_at=now)
    returned = (
        sa.update(t.runs)
        .where(r.state == RUNNING, r.holder.is_not(None), held_by_nobody)
        .values(state=QUEUED, holder=None, updated_at=now)
    )
    return connection.execute(unblocked).rowcount + connection.execute(returned).rowcount
