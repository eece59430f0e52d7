"""Pausing and resuming runs, for people outside.

Invariant: a run is PAUSED only while its pause is asked for (`runs.pause_requested`), and its journal says by whom. A
run that nobody drives is paused by the transaction that stores the request. One that is driven has the request in its
journal, so that its driver, or whoever drives it after a crash, cannot store another transition without having read it:
nothing is lost between the two, and a request that is withdrawn in time is met by the same conflict.

A request that comes once more, however late, does not undo what was asked for since: its id is kept in the transaction
that does what it asks for.

What a paused run waits for keeps its own rows: answers and workers' results are stored, and wake nobody. Resuming makes
it QUEUED, whatever it did before: its driver reads the journal and goes on, or lets it wait again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, Reason
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.rows import run_of
from services.state.run_store import Written
from services.state.transitions import ENDED, PAUSED, RUNNING


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a pause or its end, and by which request.

    Attributes:
        by: Who.
        reason: Why.
        request_id: Names the request, so that it may be repeated; empty where it is not to be.
        fingerprint: Of the request with this id.
    """

    by: str = ""
    reason: str = ""
    request_id: str = ""
    fingerprint: bytes = b""


def request_pause(
    connection: sa.Connection, db: Database, workspace_id: str, run_id: str, asked: Asked
) -> tuple[run_pb2.Run, Written]:
    """Asks to pause a run; one that nobody drives is paused here.

    Nothing changes for a run that is paused, is to be, or is being cancelled, and by a request that was here before.

    Raises:
        NotFound: RUN_NOT_FOUND.
        FailedPrecondition: RUN_ENDED.
        InvalidArgument: REQUEST_ID_REUSED.
    """
    row, is_known = _take_request(connection, db, workspace_id, run_id, "PauseRun", asked)
    if is_known:
        return run_of(row), Written(None, run_id)
    is_driven = row.state == RUNNING
    if row.state == PAUSED or row.cancel_requested or (is_driven and row.pause_requested):
        return run_of(row), Written(None, run_id)
    changes: list[run_pb2.Change] = []
    values: dict[str, Any] = {"pause_requested": True}
    if not row.pause_requested:
        requested = run_pb2.PauseRequested(requested_by=asked.by, reason=asked.reason)
        changes.append(run_pb2.Change(pause_requested=requested))
    if not is_driven:
        changes.append(run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=PAUSED)))
        values.update(state=PAUSED, wait_reason=0, wake_at=None, updated_at=db.now(connection))
    return _written(connection, db, row, changes, values, journal.NOBODY)


def request_resume(
    connection: sa.Connection, db: Database, workspace_id: str, run_id: str, asked: Asked
) -> tuple[run_pb2.Run, Written]:
    """Asks to go on: a paused run is ready, the request to pause another one is withdrawn.

    Raises:
        NotFound: RUN_NOT_FOUND.
        FailedPrecondition: RUN_ENDED.
        InvalidArgument: REQUEST_ID_REUSED.
    """
    row, is_known = _take_request(connection, db, workspace_id, run_id, "ResumeRun", asked)
    if is_known or (not row.pause_requested and row.state != PAUSED):
        return run_of(row), Written(None, run_id)
    requested = run_pb2.ResumeRequested(requested_by=asked.by, reason=asked.reason)
    changes = [run_pb2.Change(resume_requested=requested)]
    return _written(connection, db, row, changes, {"pause_requested": False}, frozenset({PAUSED}))


def _take_request(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    run_id: str,
    method: Literal["PauseRun", "ResumeRun"],
    asked: Asked,
) -> tuple[sa.Row[Any], bool]:
    """Locks the run and keeps the request's id; tells whether it was kept before."""
    row = journal.find_run(connection, workspace_id, run_id, lock=True)
    # Order matters: looked for under the lock, so that of two that come at once the second finds the first.
    known = journal.find_request(connection, workspace_id, asked.request_id, method, asked.fingerprint)
    if known is not None:
        return row, True
    if row.state in ENDED:
        raise FailedPrecondition("the run has ended", reason=Reason.RUN_ENDED, metadata={"run_id": run_id})
    now = db.now(connection)
    journal.remember_request(connection, workspace_id, asked.request_id, method, asked.fingerprint, run_id, now)
    return row, False


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
