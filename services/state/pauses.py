"""Pausing and resuming runs, for people outside.

Invariant: a run is PAUSED only while its pause is asked for (`runs.pause_requested`), and its journal says by whom. A
run that nobody drives is paused by the transaction that stores the request. One that is driven has the request in its
journal, so that its driver, or whoever drives it after a crash, cannot store another transition without having read it:
nothing is lost between the two, and a request that is withdrawn in time is met by the same conflict.

What a paused run waits for keeps its own rows: answers and workers' results are stored, and wake nobody. Resuming makes
it QUEUED, whatever it did before: its driver reads the journal and goes on, or lets it wait again.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, Reason
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.rows import run_of
from services.state.run_store import Written
from services.state.transitions import ENDED, PAUSED, RUNNING


def request_pause(
    connection: sa.Connection, db: Database, workspace_id: str, run_id: str, requested_by: str, reason: str
) -> tuple[run_pb2.Run, Written]:
    """Asks to pause a run; one that nobody drives is paused here.

    Nothing changes for a run that is paused, is to be, or is being cancelled.

    Raises:
        NotFound: RUN_NOT_FOUND.
        FailedPrecondition: RUN_ENDED.
    """
    row = _lock_unfinished(connection, workspace_id, run_id)
    is_driven = row.state == RUNNING
    if row.state == PAUSED or row.cancel_requested or (is_driven and row.pause_requested):
        return run_of(row), Written(None, run_id)
    changes: list[run_pb2.Change] = []
    values: dict[str, Any] = {"pause_requested": True}
    if not row.pause_requested:
        asked = run_pb2.PauseRequested(requested_by=requested_by, reason=reason)
        changes.append(run_pb2.Change(pause_requested=asked))
    if not is_driven:
        changes.append(run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=PAUSED)))
        values.update(state=PAUSED, wait_reason=0, wake_at=None, updated_at=db.now(connection))
    return _written(connection, db, row, changes, values, journal.NOBODY)


def request_resume(
    connection: sa.Connection, db: Database, workspace_id: str, run_id: str, requested_by: str, reason: str
) -> tuple[run_pb2.Run, Written]:
    """Asks to go on: a paused run is ready, the request to pause another one is withdrawn.

    Raises:
        NotFound: RUN_NOT_FOUND.
        FailedPrecondition: RUN_ENDED.
    """
    row = _lock_unfinished(connection, workspace_id, run_id)
    if not row.pause_requested and row.state != PAUSED:
        return run_of(row), Written(None, run_id)
    asked = run_pb2.Change(resume_requested=run_pb2.ResumeRequested(requested_by=requested_by, reason=reason))
    return _written(connection, db, row, [asked], {"pause_requested": False}, frozenset({PAUSED}))


def _lock_unfinished(connection: sa.Connection, workspace_id: str, run_id: str) -> sa.Row[Any]:
    row = journal.find_run(connection, workspace_id, run_id, lock=True)
    if row.state in ENDED:
        raise FailedPrecondition("the run has ended", reason=Reason.RUN_ENDED, metadata={"run_id": run_id})
    return row


def _written(
    connection: sa.Connection,
    db: Database,
    row: sa.Row[Any],
    changes: list[run_pb2.Change],
    values: dict[str, Any],
    wakes: frozenset[run_pb2.RunState],
) -> tuple[run_pb2.Run, Written]:
    outside = journal.append_outside(connection, db, row, changes, wakes=wakes)
    connection.execute(sa.update(t.runs).where(t.runs.c.run_id == row.run_id).values(values))
    stored = journal.find_run(connection, row.workspace_id, row.run_id)
    return run_of(stored), Written(outside, row.run_id)
