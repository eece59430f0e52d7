"""Runs: what clients read, and how people outside cancel one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.inline_messages import put_messages_inline
from services.state.rows import run_of
from services.state.transitions import ENDED


def get_run(connection: sa.Connection, workspace_id: str, run_id: str) -> run_pb2.Run:
    """A run with its output.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    row = journal.find_run(connection, workspace_id, run_id)
    run = run_of(row)
    if row.output_seq:
        stored = journal.stored_event(connection, run_id, row.output_seq)
        assert stored is not None, "the output's event is in the journal"
        set_output(connection, workspace_id, run, journal.event_of(stored))
    return run


def set_output(connection: sa.Connection, workspace_id: str, run: run_pb2.Run, event: run_pb2.Event) -> None:
    """Gives a run its output, which stands in an event."""
    put_messages_inline(connection, workspace_id, [event], limit=None)
    put_output(run, event)


def has_blob(event: run_pb2.Event) -> bool:
    """Whether a message of the event is a body of its own, to be read first."""
    return any(
        change.WhichOneof("kind") == "step_finished" and change.step_finished.message.WhichOneof("body") == "blob"
        for change in event.changes
    )


def put_output(run: run_pb2.Run, event: run_pb2.Event) -> None:
    """Gives a run the output that an event holds inline."""
    for change in event.changes:
        if change.WhichOneof("kind") == "step_finished" and change.step_finished.HasField("message"):
            run.output.CopyFrom(change.step_finished.message.message)


def check_ids(**ids: str) -> None:
    """Refuses what is not a UUID: a database would fail on it.

    Raises:
        InvalidArgument: Names the field.
    """
    for field, value in ids.items():
        if not is_uuid(value):
            raise InvalidArgument("must be a UUID", field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list. Empty means any."""

    agent: str = ""
    session_id: str = ""
    user_id: str = ""
    states: Sequence[int] = ()
    created_after: datetime | None = None
    parent_run_id: str = ""
    root_run_id: str = ""
    include_children: bool = False


def list_runs(
    connection: sa.Connection, workspace_id: str, limit: int, before_run_id: str, only: RunFilter
) -> list[run_pb2.Run]:
    """Runs, newest first: their ids are time-ordered."""
    check_ids(workspace_id=workspace_id, before_run_id=before_run_id or workspace_id)
    ids = (only.session_id, only.parent_run_id, only.root_run_id)
    if not all(is_uuid(asked) for asked in ids if asked):
        return []
    r = t.runs.c
    query = sa.select(t.runs).where(r.workspace_id == workspace_id)
    if before_run_id:
        query = query.where(r.run_id < before_run_id)
    if only.parent_run_id:
        query = query.where(r.run_id.in_(_children_of(t.children.c.run_id, only.parent_run_id)))
    if only.root_run_id:
        query = query.where(is_in_tree(r.run_id, workspace_id, only.root_run_id))
    if not (only.parent_run_id or only.root_run_id or only.include_children):
        query = query.where(r.parent_run_id.is_(None))
    if only.agent:
        query = query.where(r.agent == only.agent)
    if only.session_id:
        query = query.where(r.session_id == only.session_id)
    if only.user_id:
        query = query.where(r.user_id == only.user_id)
    if only.states:
        query = query.where(r.state.in_(list(only.states)))
    if only.created_after is not None:
        query = query.where(r.created_at >= only.created_after)
    return [run_of(row) for row in connection.execute(query.order_by(r.run_id.desc()).limit(limit))]


def is_in_tree(run_id: sa.ColumnElement[Any], workspace_id: str, root_run_id: str) -> sa.ColumnElement[bool]:
    """Whether a run is a root itself, or one of those below it."""
    below = _children_of(t.children.c.root_run_id, root_run_id).where(t.children.c.workspace_id == workspace_id)
    return sa.or_(run_id == root_run_id, run_id.in_(below))


def _children_of(column: sa.ColumnElement[Any], run_id: str) -> sa.Select[tuple[str]]:
    return sa.select(t.children.c.child_run_id).where(column == run_id)


def get_run_grant(connection: sa.Connection, workspace_id: str, run_id: str) -> str:
    """The run's grant; empty when it has none.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    g = t.run_grants.c
    check_ids(workspace_id=workspace_id, run_id=run_id)
    query = sa.select(g.run_grant).where(g.run_id == run_id, g.workspace_id == workspace_id)
    found: str | None = connection.execute(query).scalar_one_or_none()
    if found is None:
        # Tells a run without a grant from one that is not there.
        get_run(connection, workspace_id, run_id)
    return found or ""


@dataclass(frozen=True, slots=True)
class Written:
    """What somebody outside changed, and whom to tell."""

    outside: journal.Outside | None
    run_id: str
    leases: Sequence[str] = ()
    # What it meant for other runs.
    others: Sequence[Written] = ()


def request_cancel(
    connection: sa.Connection, db: Database, workspace_id: str, run_id: str, requested_by: str, reason: str
) -> tuple[run_pb2.Run, Written]:
    """Asks to cancel a run; one that waits behind another of its session is cancelled here.

    Raises:
        NotFound: RUN_NOT_FOUND.
        FailedPrecondition: RUN_ENDED.
    """
    row = lock_in_chain(connection, workspace_id, run_id)
    # One that is paused although it was to be cancelled is woken once more.
    is_asked = row.cancel_requested and row.state not in ENDED and row.state != run_pb2.RUN_STATE_PAUSED
    if row.state == run_pb2.RUN_STATE_CANCELLED or is_asked:
        return run_of(row), Written(None, run_id)
    if row.state in ENDED:
        raise FailedPrecondition("the run has ended", reason=Reason.RUN_ENDED, metadata={"run_id": run_id})
    asked = run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by=requested_by, reason=reason))
    if row.blocked:
        outside = end_blocked(connection, db, row, asked, run_pb2.RUN_STATE_CANCELLED, cancel_requested=True)
    else:
        # A paused run is made ready too: cancelling goes before pausing, and its next driver ends it.
        outside = journal.append_outside(connection, db, row, [asked], wakes=journal.RESTING)
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == run_id).values(cancel_requested=True))
    leases = leases_of(connection, run_id)
    stored = journal.find_run(connection, workspace_id, run_id)
    return run_of(stored), Written(outside, run_id, leases)


def leases_of(connection: sa.Connection, run_id: str) -> tuple[str, ...]:
    """What workers have in hand of a run."""
    c = t.calls.c
    query = sa.select(c.lease).where(c.run_id == run_id, c.state.in_((journal.CALL_OFFERED, journal.CALL_STARTED)))
    return tuple(connection.execute(query).scalars())


def lock_in_chain(connection: sa.Connection, workspace_id: str, run_id: str) -> sa.Row[Any]:
    """Locks a run, and before it what its end changes in its session's chain.

    The order is that of every transaction: the session, then its runs from the first to the last.
    """
    row = journal.find_run(connection, workspace_id, run_id)
    if row.blocked:
        s = t.sessions.c
        connection.execute(
            sa.select(s.session_id)
            .where(s.workspace_id == workspace_id, s.session_id == row.session_id)
            .with_for_update()
        )
        # Nobody takes its predecessor out of the chain from here on; read again, as that may just have happened.
        row = journal.find_run(connection, workspace_id, run_id)
        connection.execute(sa.select(t.runs.c.run_id).where(t.runs.c.run_id == row.previous_run_id).with_for_update())
    return journal.find_run(connection, workspace_id, run_id, lock=True)


def end_blocked(
    connection: sa.Connection,
    db: Database,
    row: sa.Row[Any],
    why: run_pb2.Change,
    state: run_pb2.RunState,
    **values: Any,
) -> journal.Outside:
    """Takes a run that has not begun out of its session's chain: its successor waits for its predecessor now.

    Args:
        row: The run, and what its chain needs, locked by `lock_in_chain`.
        why: What ends it.
        state: As what it ends.
        values: What else its row says from now on.
    """
    ended = run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state))
    outside = journal.append_outside(connection, db, row, [why, ended], wakes=journal.NOBODY)
    now = db.now(connection)
    r = t.runs.c
    connection.execute(
        sa.update(t.runs)
        .where(r.run_id == row.run_id)
        .values(state=state, blocked=False, ended_at=now, updated_at=now, successor_run_id=None, **values)
    )
    # The predecessor may have ended since this row was read: then its successor has to be unblocked here.
    still_ahead = connection.execute(
        sa.update(t.runs)
        .where(r.run_id == row.previous_run_id, r.state.not_in(ENDED))
        .values(successor_run_id=row.successor_run_id)
    ).rowcount
    if row.successor_run_id is not None:
        connection.execute(
            sa.update(t.runs)
            .where(r.run_id == row.successor_run_id)
            .values(blocked=bool(still_ahead), ready_at=now, previous_run_id=row.previous_run_id)
        )
    else:
        connection.execute(
            sa.update(t.sessions)
            .where(t.sessions.c.workspace_id == row.workspace_id, t.sessions.c.session_id == row.session_id)
            .values(last_run_id=row.previous_run_id)
        )
    return journal.Outside(outside.seq, None, became_ready=not still_ahead and row.successor_run_id is not None)
