"""Who drives which run: claims, returns, and the sweep of what was left behind.

Set-based; a heartbeat renews one row for all runs of an executor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.database import Database
from services.state import journal
from services.state import tables as t

LEASE_DURATION = timedelta(seconds=5)
# An executor whose stream broke has this long to come back; a killed one never does.
GRACE = timedelta(milliseconds=500)
SWEEP_LIMIT = 1_000
REQUEST_IDS_KEPT = timedelta(days=7)
CALLS_KEPT = timedelta(days=1)

QUEUED, RUNNING, WAITING = run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_WAITING


def renew(connection: sa.Connection, db: Database, executor_id: str, duration: timedelta) -> None:
    """An executor is alive until `duration` from now."""
    expires = db.now(connection) + duration
    insert = sqlite.insert if db.dialect == "sqlite" else postgresql.insert
    connection.execute(
        insert(t.executors)
        .values(executor_id=executor_id, expires_at=expires)
        .on_conflict_do_update(index_elements=[t.executors.c.executor_id], set_={"expires_at": expires})
    )


def extend_all(connection: sa.Connection, db: Database, duration: timedelta) -> None:
    """Every executor that is known is alive until `duration` from now, at least."""
    expires = db.now(connection) + duration
    e = t.executors.c
    connection.execute(sa.update(t.executors).where(e.expires_at < expires).values(expires_at=expires))


def still_held(connection: sa.Connection, executor_id: str, run_ids: list[str]) -> dict[str, int]:
    """Of these runs, those that the executor still drives, with their epochs."""
    r = t.runs.c
    query = sa.select(r.run_id, r.epoch).where(r.run_id.in_(run_ids), r.holder == executor_id, r.state == RUNNING)
    return {row.run_id: row.epoch for row in connection.execute(query)}


def release_unnamed(connection: sa.Connection, db: Database, executor_id: str, held: dict[str, int]) -> int:
    """Makes those of an executor's runs ready that it does not drive: their claim, or their return, never arrived."""
    r = t.runs.c
    query = sa.select(r.run_id, r.epoch).where(r.holder == executor_id, r.state == RUNNING)
    unnamed = {row.run_id: row.epoch for row in connection.execute(query) if held.get(row.run_id) != row.epoch}
    return release(connection, db, executor_id, unnamed) if unnamed else 0


def claim(connection: sa.Connection, db: Database, executor_id: str, limit: int) -> list[sa.Row[Any]]:
    """Takes ready runs for an executor, oldest first, each under a new epoch."""
    now = db.now(connection)
    r = t.runs.c
    ready = sa.select(r.run_id).where(t.IS_READY).order_by(r.ready_at).limit(limit).with_for_update(skip_locked=True)
    claimed = (
        sa.update(t.runs)
        .where(r.run_id.in_(ready))
        .values(state=RUNNING, wait_reason=0, wake_at=None, holder=executor_id, epoch=r.epoch + 1, updated_at=now)
        .returning(t.runs)
    )
    return list(connection.execute(claimed).all())


def short_journals(connection: sa.Connection, run_ids: list[str], max_bytes: int) -> dict[str, list[run_pb2.Event]]:
    """The journals of these runs where they are short, in one query."""
    j = t.journal.c
    query = (
        sa.select(j.run_id, j.seq, j.epoch, j.at, j.body)
        .where(j.run_id.in_(run_ids))
        .order_by(j.run_id, j.seq)
        .limit(len(run_ids) * 64)
    )
    events: dict[str, list[run_pb2.Event]] = {}
    sizes: dict[str, int] = {}
    for row in connection.execute(query):
        sizes[row.run_id] = sizes.get(row.run_id, 0) + len(row.body)
        events.setdefault(row.run_id, []).append(journal.event_of(row))
    return {run_id: found for run_id, found in events.items() if sizes[run_id] <= max_bytes}


def release(connection: sa.Connection, db: Database, executor_id: str, runs: dict[str, int] | None = None) -> int:
    """Makes an executor's runs ready for others: all of them, or those named with their epochs."""
    now = db.now(connection)
    r = t.runs.c
    query = sa.update(t.runs).where(r.holder == executor_id, r.state == RUNNING)
    if runs is not None:
        query = query.where(sa.tuple_(r.run_id, r.epoch).in_(list(runs.items())))
    freed = connection.execute(query.values(state=QUEUED, holder=None, ready_at=now, updated_at=now)).rowcount
    if runs is None:
        connection.execute(sa.delete(t.executors).where(t.executors.c.executor_id == executor_id))
    return freed


@dataclass(slots=True)
class Sweep:
    """What a sweep found."""

    ready_runs: int = 0
    # Runs that got an event: (run, holder).
    events: list[tuple[str, str | None]] = field(default_factory=list)
    calls_queued: set[tuple[str, str]] = field(default_factory=set)


def sweep(connection: sa.Connection, db: Database) -> Sweep:
    """Returns the runs of lost executors, wakes what is due, takes offers back that nobody started."""
    now = db.now(connection)
    found = Sweep()
    r, e, c = t.runs.c, t.executors.c, t.calls.c
    # Only the second case is rare: a process that died between a claim and the renewal of its executor's row.
    holders = sa.select(r.holder).where(r.holder.is_not(None)).distinct().except_(sa.select(e.executor_id))
    for executor_id in connection.execute(holders).scalars().all():
        found.ready_runs += release(connection, db, executor_id)
    lost = connection.execute(sa.select(e.executor_id).where(e.expires_at < now)).scalars().all()
    for executor_id in lost:
        found.ready_runs += release(connection, db, executor_id)
    due = (
        sa.select(r.run_id)
        .where(t.IS_WAITING_FOR_TIME, r.wake_at <= now)
        .order_by(r.wake_at)
        .limit(SWEEP_LIMIT)
        .with_for_update(skip_locked=True)
    )
    woken = sa.update(t.runs).where(r.run_id.in_(due))
    found.ready_runs += connection.execute(
        woken.values(state=QUEUED, wait_reason=0, wake_at=None, ready_at=now, updated_at=now)
    ).rowcount
    unused = (
        sa.update(t.calls)
        .where(t.IS_OPEN_CALL, c.state == journal.CALL_OFFERED, c.offer_expires_at <= now)
        .values(state=journal.CALL_QUEUED, lease=None, worker_id=None)
        .returning(c.workspace_id, c.tool)
    )
    found.calls_queued.update((row.workspace_id, row.tool) for row in connection.execute(unused))
    return found


def overdue_calls(connection: sa.Connection, db: Database) -> list[sa.Row[Any]]:
    """Calls that no worker took in time, and those whose worker is silent or takes too long."""
    now = db.now(connection)
    c = t.calls.c
    # Apart, so that each finds its rows by the index: few are started, many may be queued.
    started = sa.and_(
        t.IS_OPEN_CALL, c.state == journal.CALL_STARTED, sa.or_(c.beat_due_at <= now, c.times_out_at <= now)
    )
    queued = sa.and_(t.IS_OPEN_CALL, c.state == journal.CALL_QUEUED, c.start_deadline <= now)
    return [
        row
        for over in (started, queued)
        for row in connection.execute(sa.select(t.calls).where(over).limit(SWEEP_LIMIT)).all()
    ]


def lose_call(connection: sa.Connection, db: Database, call: sa.Row[Any]) -> journal.Outside | None:
    """Writes the end of an overdue call's attempt; None when somebody else was faster."""
    # The run first, then the call: the order in which every transaction locks them.
    run = journal.select_run(connection, call.workspace_id, call.run_id, lock=True)
    now = db.now(connection)
    taken = connection.execute(
        sa.update(t.calls)
        .where(
            t.calls.c.run_id == call.run_id,
            t.calls.c.step == call.step,
            t.calls.c.state == call.state,
            t.calls.c.attempt == call.attempt,
            sa.or_(
                sa.and_(
                    t.calls.c.state == journal.CALL_STARTED,
                    sa.or_(t.calls.c.beat_due_at <= now, t.calls.c.times_out_at <= now),
                ),
                sa.and_(t.calls.c.state == journal.CALL_QUEUED, t.calls.c.start_deadline <= now),
            ),
        )
        .values(state=journal.CALL_OVER)
    )
    if taken.rowcount != 1 or run is None:
        return None
    if call.state == journal.CALL_QUEUED:
        failure = content_pb2.Failure(
            reason="WORKER_START_TIMEOUT",
            message=f"No worker took the call of {call.tool} in time.",
            failure_class=content_pb2.FAILURE_CLASS_RETRYABLE,
        )
    elif call.times_out_at is not None and call.times_out_at <= now:
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


def forget_old_calls(connection: sa.Connection, db: Database) -> int:
    """Deletes the calls of runs that ended long enough ago that no late report is to be expected, a few at a time."""
    before = db.now(connection) - CALLS_KEPT
    c = t.calls.c
    old = connection.execute(
        sa.select(c.run_id, c.step)
        .join(t.runs, t.runs.c.run_id == c.run_id)
        .where(c.state == journal.CALL_OVER, t.runs.c.ended_at < before)
        .limit(SWEEP_LIMIT)
    ).all()
    if old:
        connection.execute(
            sa.delete(t.calls).where(sa.tuple_(c.run_id, c.step).in_([(row.run_id, row.step) for row in old]))
        )
    return len(old)


def forget_old_requests(connection: sa.Connection, db: Database) -> int:
    """Deletes request ids that are old enough, a few at a time."""
    before = db.now(connection) - REQUEST_IDS_KEPT
    q = t.requests.c
    old = connection.execute(
        sa.select(q.workspace_id, q.request_id).where(q.created_at < before).limit(SWEEP_LIMIT)
    ).all()
    if old:
        connection.execute(
            sa.delete(t.requests).where(
                sa.tuple_(q.workspace_id, q.request_id).in_([(row.workspace_id, row.request_id) for row in old])
            )
        )
    return len(old)
