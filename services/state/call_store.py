"""The queue of workers' calls. Whatever happens to a call is written to its run's journal in the same transaction.

Order of locks: the run, then its call.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as calls_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import InvalidArgument, LeaseLost, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.journal import CALL_OFFERED, CALL_OVER, CALL_QUEUED, CALL_STARTED
from services.state.transitions import ENDED, check_blobs

_ENDS = ("step_finished", "attempt_failed", "step_in_doubt")
DEFAULT_OFFER = timedelta(seconds=15)
MAX_DETAILS = 4096


@dataclass(frozen=True, slots=True)
class CallEvent:
    """What an event of a call's run did."""

    run_id: str
    outside: journal.Outside


def lease_calls(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    worker_id: str,
    tools: Sequence[str],
    limit: int,
    offer: timedelta,
) -> list[calls_pb2.LeasedCall]:
    """Offers queued calls to a worker, oldest first."""
    if not is_uuid(workspace_id):
        return []
    now = db.now(connection)
    c = t.calls.c
    queued = (
        sa.select(t.calls)
        .where(
            c.workspace_id == workspace_id,
            t.IS_QUEUED_CALL,
            c.tool.in_(list(tools)),
            c.not_before <= now,
            c.start_deadline > now,
        )
        .order_by(c.not_before, c.run_id, c.step)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    leased: list[calls_pb2.LeasedCall] = []
    for row in connection.execute(queued).all():
        lease = secrets.token_urlsafe(24)
        expires = now + offer
        connection.execute(
            sa.update(t.calls)
            .where(_key(row))
            .values(state=CALL_OFFERED, lease=lease, worker_id=worker_id, offer_expires_at=expires)
        )
        call = _leased(row, lease)
        call.offer_expire_time.FromDatetime(expires)
        leased.append(call)
    return leased


def _leased(row: sa.Row[Any], lease: str) -> calls_pb2.LeasedCall:
    new = journal_pb2.NewCall.FromString(row.body)
    return calls_pb2.LeasedCall(
        lease=lease,
        workspace_id=row.workspace_id,
        run_id=row.run_id,
        step=row.step,
        attempt=row.attempt,
        tool=row.tool,
        arguments_json=new.arguments_json,
        idempotency_key=new.idempotency_key,
        timeout=new.timeout,
        agent=new.agent,
        user_id=new.user_id,
        revision=new.revision,
        last_heartbeat_details=row.details,
        call_id=new.call_id,
        arguments_edited=new.arguments_edited,
        root_run_id=new.root_run_id,
    )


def find_call(connection: sa.Connection, workspace_id: str, lease: str) -> sa.Row[Any] | None:
    """The attempt of a lease, whoever holds it and whether or not it counts."""
    if not (lease and is_uuid(workspace_id)):
        return None
    c = t.calls.c
    return connection.execute(sa.select(t.calls).where(c.workspace_id == workspace_id, c.lease == lease)).one_or_none()


def _key(row: sa.Row[Any]) -> sa.ColumnElement[bool]:
    c = t.calls.c
    return sa.and_(c.run_id == row.run_id, c.step == row.step, c.attempt == row.attempt)


def get_call(
    connection: sa.Connection, workspace_id: str, lease: str, executing_worker_id: str = ""
) -> calls_pb2.LeasedCall:
    """The call of a lease; with a worker's id only one that it executes now.

    Raises:
        LeaseLost: CALL_LEASE_LOST.
    """
    row = find_call(connection, workspace_id, lease)
    if row is None:
        raise lost()
    if executing_worker_id and (row.state != CALL_STARTED or row.worker_id != executing_worker_id):
        raise lost()
    return _leased(row, lease)


def start_call(
    connection: sa.Connection, db: Database, workspace_id: str, worker_id: str, lease: str
) -> CallEvent | None:
    """Stores that the worker is about to execute the call; None when that is stored already.

    Raises:
        LeaseLost: CALL_LEASE_LOST.
    """
    run, row = _locked(connection, workspace_id, lease)
    if row is None or run is None or row.worker_id != worker_id:
        raise lost()
    if row.state == CALL_STARTED:
        return None
    now = db.now(connection)
    if (
        row.state != CALL_OFFERED
        or run.state in ENDED
        or run.cancel_requested
        or run.expiring
        or row.offer_expires_at <= now
    ):
        raise lost()
    new = journal_pb2.NewCall.FromString(row.body)
    times_out_at = now + new.timeout.ToTimedelta()
    # Offers are given, returned and taken back without the run's lock: only this condition says whose it is now.
    is_still_offered = (t.calls.c.lease == lease) & (t.calls.c.state == CALL_OFFERED)
    taken = connection.execute(
        sa.update(t.calls)
        .where(_key(row), is_still_offered)
        .values(
            state=CALL_STARTED,
            beat_due_at=min(now + new.heartbeat_timeout.ToTimedelta(), times_out_at),
            times_out_at=times_out_at,
        )
    )
    if taken.rowcount != 1:
        raise lost()
    started = run_pb2.CallStarted(step=row.step, attempt=row.attempt, worker_id=worker_id)
    # Nothing can be decided from this, so a waiting run is left alone.
    outside = journal.append_outside(connection, db, run, [run_pb2.Change(call_started=started)], wakes=journal.NOBODY)
    return CallEvent(row.run_id, outside)


def renew_calls(
    connection: sa.Connection, db: Database, workspace_id: str, worker_id: str, running: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Signs of life. Returns leases that are lost, and those whose run is being cancelled."""
    if not is_uuid(workspace_id):
        return list(running), []
    now = db.now(connection)
    c = t.calls.c
    rows = {
        row.lease: row
        for row in connection.execute(
            sa.select(t.calls, t.runs.c.cancel_requested, t.runs.c.expiring)
            .join(t.runs, t.runs.c.run_id == c.run_id)
            .where(c.workspace_id == workspace_id, c.lease.in_(list(running)))
        )
    }
    gone: list[str] = []
    cancelled: list[str] = []
    beats: list[dict[str, Any]] = []
    # In one order, so that two beats at once do not wait for each other.
    for lease, details in sorted(running.items()):
        row = rows.get(lease)
        if row is None or row.worker_id != worker_id or row.state not in (CALL_OFFERED, CALL_STARTED):
            gone.append(lease)
            continue
        if row.cancel_requested or row.expiring:
            cancelled.append(lease)
        if row.state == CALL_STARTED:
            new = journal_pb2.NewCall.FromString(row.body)
            beats.append(
                {
                    "of_run": row.run_id,
                    "of_step": row.step,
                    "of_attempt": row.attempt,
                    "due": min(now + new.heartbeat_timeout.ToTimedelta(), row.times_out_at),
                    "said": db.seals.seal_text(workspace_id, details[:MAX_DETAILS] or row.details),
                }
            )
    if beats:
        connection.execute(
            sa.update(t.calls)
            .where(
                c.run_id == sa.bindparam("of_run"),
                c.step == sa.bindparam("of_step"),
                c.attempt == sa.bindparam("of_attempt"),
                c.state == CALL_STARTED,
            )
            .values(beat_due_at=sa.bindparam("due"), details=sa.bindparam("said")),
            beats,
        )
    return gone, cancelled


def return_calls(
    connection: sa.Connection, workspace_id: str, worker_id: str, leases: Sequence[str]
) -> set[tuple[str, str]]:
    """Gives offers back that were not started; returns what is queued again."""
    if not is_uuid(workspace_id):
        return set()
    c = t.calls.c
    returned = (
        sa.update(t.calls)
        .where(
            c.workspace_id == workspace_id,
            c.worker_id == worker_id,
            c.lease.in_(list(leases)),
            c.state == CALL_OFFERED,
        )
        .values(state=CALL_QUEUED, lease=None, worker_id=None)
        .returning(c.workspace_id, c.tool)
    )
    return {(row.workspace_id, row.tool) for row in connection.execute(returned)}


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of a report."""

    event: CallEvent | None
    seq: int
    is_late: bool


def complete_call(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    worker_id: str,
    lease: str,
    change: run_pb2.Change,
    blobs: Sequence[content_pb2.Blob],
    late: run_pb2.LateResult,
) -> Completion:
    """Stores the end of an attempt. A report that comes too late is stored as late, and the caller refuses it.

    The report that counts is the attempt's, and before there is one the first that came too late: the same again
    changes nothing and is answered the same.

    Raises:
        LeaseLost: CALL_LEASE_LOST: nobody knows the lease.
        InvalidArgument: The change is not an end of the lease's attempt, or too large.
    """
    run, row = _locked(connection, workspace_id, lease)
    if row is None or run is None:
        raise lost()
    _check_end(change, row)
    check_blobs("blobs", blobs)
    digest = hashlib.sha256(change.SerializeToString(deterministic=True)).digest()
    counts = row.state == CALL_STARTED and row.worker_id == worker_id and run.state not in ENDED
    # Only of what would not count: the report of an offer that became void says nothing of the lease after it.
    if not counts and row.report_digest is not None and bytes(row.report_digest) == digest:
        return Completion(None, row.report_seq, is_late=_is_late(connection, row))
    if counts:
        # What came too late refers to no body: its event has a shortened text.
        journal.put_blobs(connection, workspace_id, row.run_id, blobs, db.now(connection))
        outside = journal.append_outside(connection, db, run, [change])
    else:
        late.step, late.attempt, late.worker_id = row.step, row.attempt, worker_id
        outside = journal.append_outside(connection, db, run, [run_pb2.Change(late_result=late)], wakes=journal.NOBODY)
    values: dict[str, Any] = {"state": CALL_OVER} if counts else {}
    if counts or row.report_digest is None:
        values.update(report_digest=digest, report_seq=outside.seq)
    if values:
        connection.execute(sa.update(t.calls).where(_key(row)).values(values))
    return Completion(CallEvent(row.run_id, outside), outside.seq, is_late=not counts)


def _check_end(change: run_pb2.Change, row: sa.Row[Any]) -> None:
    kind = change.WhichOneof("kind")
    if kind not in _ENDS:
        raise InvalidArgument("the change is not an end of this call", reason=Reason.INVALID_FIELD, field="change")
    end = getattr(change, kind)
    if (end.step, end.attempt) != (row.step, row.attempt):
        raise InvalidArgument("the change is of another call", reason=Reason.INVALID_FIELD, field="change")
    if change.ByteSize() > journal.MAX_EVENT_BYTES:
        raise InvalidArgument(
            f"an event has at most {journal.MAX_EVENT_BYTES} bytes; larger bodies are stored as blobs",
            reason=Reason.MESSAGE_TOO_LARGE,
            field="change",
        )


def _is_late(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    """Whether the report that a call has was refused: its event says so."""
    stored = journal.stored_event(connection, row.run_id, row.report_seq)
    assert stored is not None, "a report's event is in the journal"
    return bool(journal.event_of(stored).changes[0].WhichOneof("kind") == "late_result")


def _locked(connection: sa.Connection, workspace_id: str, lease: str) -> tuple[sa.Row[Any] | None, sa.Row[Any] | None]:
    row = find_call(connection, workspace_id, lease)
    if row is None:
        return None, None
    run = journal.select_run(connection, workspace_id, row.run_id, lock=True)
    # Read again under the run's lock: between the two it may have been lost or given to another.
    return run, find_call(connection, workspace_id, lease)


def lost() -> LeaseLost:
    """The call is not the worker's."""
    return LeaseLost("the call is no longer this worker's", reason=Reason.CALL_LEASE_LOST)
