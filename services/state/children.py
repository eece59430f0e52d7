"""Runs that other runs start: stored with the step that waits for them, told of when they end, ended with their parent.

Invariants:
- A step of kind CHILD waits for a run exactly if that is stored: both are one transaction, and `check_transition` holds
  one against the other.
- The end of a child, and the news of it in its parent's journal (ChildEnded), are one transaction, whoever writes the
  end; it makes a waiting parent ready. A parent that has ended is not told.
- The end of a run marks those of its children that have not ended, in the same transaction (`children.orphaned_at`).
  The sweep of any replica asks each of them to cancel, in a transaction of its own, and takes the mark away with it. A
  crash between two lines leaves the mark, so that it is found again.

Order of locks: the parent, the run, then rows of `children`. And more than that: the feed tells the events of a run in
the order of their transactions' ids, and PostgreSQL gives a transaction its id with its first lock. So the parent is
locked first, and a transaction that has done so writes to the run itself only if nothing was written to it meanwhile:
the batch's own condition says so for a transition, `lock_run_with_parent` for all else. Where several wait for one
row, its first lock may still come after its id: `journal.append_outside` finds that out, and the transaction is made
again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.new_runs import put_first_events, put_grants, run_values
from services.state.run_store import Written, request_cancel
from services.state.transitions import ENDED
from services.state.turns import BATCH, CHILD

ORPHANS_LIMIT: Final = 100
BY_PARENT: Final = "parent"
"""Who asked to cancel a run whose parent has ended."""


def insert_children(connection: sa.Connection, now: datetime, transitions: Sequence[journal_pb2.Transition]) -> None:
    """Stores the runs that applied transitions start. The rows of their own runs are locked by the transitions."""
    if not transitions:
        return
    r = t.runs.c
    started_by = [transition.run_id for transition in transitions]
    parents = {row.run_id: row for row in connection.execute(sa.select(t.runs).where(r.run_id.in_(started_by)))}
    connection.execute(
        sa.update(t.runs).where(r.run_id.in_(started_by), r.root_run_id.is_(None)).values(root_run_id=r.run_id)
    )
    children: list[journal_pb2.NewRun] = []
    runs: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for transition in transitions:
        parent = parents[transition.run_id]
        root_run_id = parent.root_run_id or parent.run_id
        for asked in transition.children:
            new = _child_of(parent, root_run_id, asked)
            children.append(new)
            runs.append(
                run_values(new, now, 0, None, False, False)
                | {
                    # It goes before runs that callers started later, among those that are as urgent.
                    "lane": BATCH if parent.lane == BATCH else CHILD,
                    "ready_at": parent.ready_at or now,
                    "parent_run_id": parent.run_id,
                    "parent_step": new.parent.step,
                    "root_run_id": root_run_id,
                    "depth": new.parent.depth,
                }
            )
            links.append(
                {
                    "run_id": parent.run_id,
                    "child_run_id": new.run_id,
                    "workspace_id": parent.workspace_id,
                    "root_run_id": root_run_id,
                    "step": new.parent.step,
                    "attempt": new.parent.attempt,
                }
            )
    connection.execute(sa.insert(t.runs), runs)
    connection.execute(sa.insert(t.children), links)
    put_first_events(connection, children, now)
    for new in children:
        journal.put_blobs(connection, new.workspace_id, new.run_id, new.blobs, now)
    put_grants(connection, children)


def _child_of(parent: sa.Row[Any], root_run_id: str, asked: journal_pb2.NewRun) -> journal_pb2.NewRun:
    """A child with what is not its executor's to say: whose it is, and where it stands."""
    new = journal_pb2.NewRun()
    new.CopyFrom(asked)
    new.session_id, new.new_session_id, new.user_id = parent.session_id, "", parent.user_id
    new.parent.root_run_id, new.parent.depth = root_run_id, parent.depth + 1
    return new


# ---------------------------------------------------------------------------------------------------------------- ends


@dataclass(frozen=True, slots=True)
class End:
    """How a run has ended, for its parent.

    Attributes:
        state: As what.
        failure: Why it failed.
        output: Its answer.
        used: What it used of a budget that it was given.
        blobs: Bodies that the answer refers to.
    """

    state: run_pb2.RunState
    failure: content_pb2.Failure | None = None
    output: content_pb2.StoredMessage | None = None
    used: run_pb2.BudgetUse | None = None
    blobs: tuple[content_pb2.Blob, ...] = ()


def lock_parents(
    connection: sa.Connection, run_ids: Collection[str], *, skip_locked: bool = False
) -> dict[str, sa.Row[Any]]:
    """Locks the parents of runs, before those themselves.

    Args:
        connection: In a transaction that has not written yet.
        run_ids: Of the parents.
        skip_locked: Leave out those that somebody else has locked.
    """
    if not run_ids:
        return {}
    query = sa.select(t.runs).where(t.runs.c.run_id.in_(run_ids)).with_for_update(skip_locked=skip_locked)
    return {row.run_id: row for row in connection.execute(query)}


def lock_run_with_parent(
    connection: sa.Connection, workspace_id: str, run_id: str
) -> tuple[sa.Row[Any], sa.Row[Any] | None] | None:
    """Locks a run that has a parent, after that; None where somebody wrote to it meanwhile: it is to be tried again.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    before = journal.find_run(connection, workspace_id, run_id)
    parent = lock_parents(connection, [before.parent_run_id]).get(before.parent_run_id)
    row = journal.find_run(connection, workspace_id, run_id, lock=True)
    return (row, parent) if row.last_seq == before.last_seq else None


def tell_parents(
    connection: sa.Connection, db: Database, ends: Sequence[tuple[sa.Row[Any], sa.Row[Any] | None, End]]
) -> list[Written]:
    """Writes the news of ends to the runs that had started these; the ends are written by the caller, in this
    transaction.

    Args:
        connection: In the transaction of the ends.
        db: Where the journal is.
        ends: Each with the run and its parent's row, locked; None where that is not there any more.

    Returns:
        What was written.
    """
    c = t.children.c
    over = (
        sa.update(t.children)
        .where(
            c.run_id.in_({run.parent_run_id for run, _, _ in ends}),
            c.child_run_id.in_([run.run_id for run, _, _ in ends]),
        )
        .values(is_over=True, orphaned_at=None)
    )
    steps = {row.child_run_id: row for row in connection.execute(over.returning(c.child_run_id, c.step, c.attempt))}
    news: list[tuple[sa.Row[Any], list[run_pb2.Change]]] = []
    now = db.now(connection)
    for run, parent, end in ends:
        waiting = steps.get(run.run_id)
        if parent is None or waiting is None or parent.state in ENDED:
            continue
        journal.put_blobs(connection, run.workspace_id, parent.run_id, end.blobs, now)
        ended = run_pb2.ChildEnded(
            step=waiting.step,
            attempt=waiting.attempt,
            child_run_id=run.run_id,
            state=end.state,
            failure=end.failure,
            output=end.output,
            used=end.used,
        )
        news.append((parent, [run_pb2.Change(child_ended=ended)]))
    outside = journal.append_each_outside(connection, db, news)
    return [Written(event, parent.run_id) for event, (parent, _) in zip(outside, news, strict=True)]


# ------------------------------------------------------------------------------------------------------------- orphans


@dataclass(frozen=True, slots=True)
class Orphan:
    """A run whose parent has ended, and that has not been asked to end."""

    workspace_id: str
    run_id: str
    child_run_id: str


def orphans(connection: sa.Connection) -> list[Orphan]:
    """Those that are to be asked."""
    c = t.children.c
    query = sa.select(c.workspace_id, c.run_id, c.child_run_id).where(t.IS_ORPHANED)
    return [Orphan(*row) for row in connection.execute(query.order_by(c.orphaned_at).limit(ORPHANS_LIMIT))]


def cancel_orphan(connection: sa.Connection, db: Database, orphan: Orphan) -> Written | None:
    """Asks one of them to end; None when it has ended, or was asked before."""
    row = journal.select_run(connection, orphan.workspace_id, orphan.child_run_id, lock=True)
    written: Written | None = None
    if row is not None and row.state not in ENDED:
        _, written = request_cancel(
            connection, db, orphan.workspace_id, orphan.child_run_id, BY_PARENT, "The run that started it has ended."
        )
    # Order matters: a transaction begins to write with the run's row.
    c = t.children.c
    connection.execute(
        sa.update(t.children)
        .where(c.run_id == orphan.run_id, c.child_run_id == orphan.child_run_id)
        .values(orphaned_at=None)
    )
    return None if written is None or written.outside is None else written
