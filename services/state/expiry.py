"""Runs whose time is over, by the database's clock.

Invariant: a run with an `expire_at` that has passed either ends in the transaction that finds it, or its driver is told
in that transaction (`runs.expiring`, and ExpiryReached in its journal), so that it cannot store another transition
without having read it, and ends the run itself. A run whose driver is lost then is QUEUED, and found again at once: it
ends here, or by whoever claims it first. Each is one transaction: a crash at any line leaves a run that is found again.

What ends here ends as a driver would end it: every open step and every call of a model gets its one result (P7), open
questions are closed, workers' calls are given up, and the session's next run goes on. The journal is read for that, and
nothing of it is taken for granted: one run that cannot be understood must not keep the others from their end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.errors import NotFound
from services.shared.database import Database
from services.shared.run_budgets import Ledger, ledger_of
from services.shared.run_ends import EXPIRY, failure_of_open_call, told_of_open_call
from services.state import children, journal
from services.state import tables as t
from services.state.run_store import Written, end_blocked, leases_of, lock_in_chain
from services.state.transition_batch import after_ends
from services.state.transitions import ENDED, EXPIRED, RUNNING

EXPIRED_LIMIT: Final = 100
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class ExpiredRun:
    """A run whose time is over."""

    workspace_id: str
    run_id: str


def expired_runs(connection: sa.Connection, db: Database) -> list[ExpiredRun]:
    """Those that have to end, or whose drivers have to be told."""
    r = t.runs.c
    query = sa.select(r.workspace_id, r.run_id).where(t.IS_EXPIRING, r.expire_at <= db.now(connection))
    return [ExpiredRun(*row) for row in connection.execute(query.order_by(r.expire_at).limit(EXPIRED_LIMIT))]


def expire_run(connection: sa.Connection, db: Database, expired: ExpiredRun) -> Written | None:
    """Ends one of them, or tells its driver; None when that is done already.

    One run is one transaction: the feed's order within a run rests on a transaction beginning to write with the run's
    row.
    """
    parent: sa.Row[Any] | None = None
    try:
        row = journal.find_run(connection, expired.workspace_id, expired.run_id)
        if row.parent_run_id is None:
            row = lock_in_chain(connection, expired.workspace_id, expired.run_id)
        else:
            # A run that another one started stands in no chain.
            locked = children.lock_run_with_parent(connection, expired.workspace_id, expired.run_id)
            if locked is None:
                return None
            row, parent = locked
    except NotFound:
        return None
    now = db.now(connection)
    if row.state in ENDED or row.expire_at is None or row.expire_at > now:
        return None
    reached = run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())
    reached.expiry_reached.expire_time.FromDatetime(row.expire_at)
    if row.state == RUNNING:
        if row.expiring:
            return None
        outside = journal.append_outside(connection, db, row, [reached], wakes=journal.NOBODY)
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == row.run_id).values(expiring=True))
        return Written(outside, row.run_id, leases_of(connection, row.run_id))
    if row.blocked:
        return Written(end_blocked(connection, db, row, reached, EXPIRED), row.run_id)
    return _end(connection, db, row, [] if row.expiring else [reached], parent)


def _end(
    connection: sa.Connection,
    db: Database,
    row: sa.Row[Any],
    changes: list[run_pb2.Change],
    parent: sa.Row[Any] | None,
) -> Written:
    now = db.now(connection)
    leases = leases_of(connection, row.run_id)
    changes += _closed_questions(connection, row.run_id)
    left = OpenEnds()
    spent: Ledger | None = None
    seq = 0
    while events := journal.read_events(connection, row.workspace_id, row.run_id, seq, _PAGE):
        for event in events:
            left.take(event)
            spent = _spend(spent, event.changes)
        seq = events[-1].seq
    if left.turn is not None and left.turn.WhichOneof("body") == "blob":
        bodies = journal.read_blobs(connection, row.workspace_id, [left.turn.blob.hash])
        left.turn.message.ParseFromString(bodies.get(left.turn.blob.hash, b""))
    changes += left.changes()
    changes.append(run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=EXPIRED)))
    spent = _spend(spent, changes)
    used = spent.used.message() if spent is not None and parent is not None else None
    if used is not None:
        changes[-1].run_state_changed.used.CopyFrom(used)
    outside = journal.append_outside(connection, db, row, changes, wakes=journal.NOBODY)
    connection.execute(
        sa.update(t.runs)
        .where(t.runs.c.run_id == row.run_id)
        .values(
            state=EXPIRED,
            wait_reason=0,
            wake_at=None,
            ended_at=now,
            updated_at=now,
            step_count=max(row.step_count, left.last_step),
        )
    )
    after_ends(connection, now, {row.run_id: row.successor_run_id})
    others: list[Written] = []
    if row.parent_run_id is not None:
        others = children.tell_parents(connection, db, [(row, parent, children.End(EXPIRED, used=used))])
    outside = journal.Outside(outside.seq, None, became_ready=row.successor_run_id is not None)
    return Written(outside, row.run_id, leases, others)


def _spend(ledger: Ledger | None, changes: Iterable[run_pb2.Change]) -> Ledger | None:
    for change in changes:
        kind = change.WhichOneof("kind") or ""
        if ledger is not None:
            ledger.take(kind, change)
        elif kind == "run_created" and (ledger := ledger_of(change.run_created)) is None:
            return None
    return ledger


def _closed_questions(connection: sa.Connection, run_id: str) -> list[run_pb2.Change]:
    a = t.approvals.c
    pending = (a.run_id == run_id) & (a.state == run_pb2.APPROVAL_STATE_PENDING)
    questions = connection.execute(sa.select(a.approval_id).where(pending).order_by(a.approval_id)).scalars().all()
    connection.execute(sa.update(t.approvals).where(pending).values(state=EXPIRY.question_state))
    return [
        run_pb2.Change(approval_closed=run_pb2.ApprovalClosed(approval_id=approval_id, state=EXPIRY.question_state))
        for approval_id in questions
    ]


@dataclass(slots=True)
class _OpenStep:
    tool: run_pb2.ToolIntent | None
    attempt: int = 1
    # Whether the current attempt is known to have failed; what is in doubt is not.
    has_failed: bool = False
    # It waits for approval, or has got it and no attempt was announced since: it was not dispatched.
    is_held: bool = False


class OpenEnds:
    """What of a run has no result yet. Takes the events of a run in order.

    Attributes:
        turn: The newest message of the model, whose calls need results; one that is stored as a body is a reference.
        last_step: The highest number of a step.
    """

    def __init__(self) -> None:
        self.turn: content_pb2.StoredMessage | None = None
        self.last_step = 0
        self._open: dict[int, _OpenStep] = {}
        self._calls_with_steps: set[str] = set()

    def take(self, event: run_pb2.Event) -> None:
        """Takes the next event."""
        for change in event.changes:
            match change.WhichOneof("kind"):
                case "step_started":
                    self._start(change.step_started)
                case "attempt_started":
                    if (step := self._open.get(change.attempt_started.step)) is not None:
                        step.attempt, step.has_failed = change.attempt_started.attempt, False
                        step.is_held = False
                case "approval_requested":
                    asked = change.approval_requested.approval
                    if asked.kind == run_pb2.APPROVAL_KIND_TOOL_CALL and asked.step in self._open:
                        self._open[asked.step].is_held = True
                case "attempt_failed":
                    if (step := self._open.get(change.attempt_failed.step)) is not None:
                        step.has_failed = change.attempt_failed.attempt == step.attempt
                case "step_in_doubt":
                    if (step := self._open.get(change.step_in_doubt.step)) is not None:
                        step.has_failed = False
                case "step_finished":
                    self._finish(change.step_finished)

    def _start(self, started: run_pb2.StepStarted) -> None:
        tool = started.tool if started.WhichOneof("intent") == "tool" else None
        self._open[started.step] = _OpenStep(tool)
        self.last_step = max(self.last_step, started.step)
        if tool is not None:
            self._calls_with_steps.add(tool.call_id)

    def _finish(self, finished: run_pb2.StepFinished) -> None:
        step = self._open.pop(finished.step, None)
        if step is not None and step.tool is None and finished.HasField("message"):
            self.turn = finished.message

    def changes(self) -> list[run_pb2.Change]:
        """The ends of all open steps, and of the calls that have no step: they get one with its end."""
        changes = [_finished(number, step) for number, step in sorted(self._open.items())]
        parts = self.turn.message.parts if self.turn is not None else ()
        for part in parts:
            call = part.tool_call
            if part.WhichOneof("kind") != "tool_call" or call.call_id in self._calls_with_steps:
                continue
            self.last_step += 1
            # Never dispatched, and never will be: it has no key, and the class that nobody has to look up.
            intent = run_pb2.ToolIntent(
                tool=call.tool, call_id=call.call_id, effect=agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
            )
            started = run_pb2.StepStarted(step=self.last_step, kind=run_pb2.STEP_KIND_TOOL, tool=intent)
            changes.append(run_pb2.Change(step_started=started))
            changes.append(_finished(self.last_step, _OpenStep(intent, has_failed=True)))
        return changes


def _finished(number: int, step: _OpenStep) -> run_pb2.Change:
    may_have_happened = (
        step.tool is not None and not step.has_failed and not step.is_held and step.tool.tool_kind != "builtin"
    )
    failure = failure_of_open_call(EXPIRY, may_have_happened=may_have_happened)
    finished = run_pb2.StepFinished(
        step=number, attempt=step.attempt, state=run_pb2.STEP_STATE_CANCELLED, failure=failure
    )
    if step.tool is not None:
        result = content_pb2.ToolResult(
            call_id=step.tool.call_id, tool=step.tool.tool, content=told_of_open_call(failure), is_error=True
        )
        finished.message.message.CopyFrom(
            content_pb2.Message(role=content_pb2.ROLE_TOOL, parts=[content_pb2.Part(tool_result=result)])
        )
    return run_pb2.Change(step_finished=finished)
