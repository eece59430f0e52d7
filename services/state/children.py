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

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.new_runs import put_first_event, put_grants, run_values
from services.state.run_store import Written, request_cancel
from services.state.transitions import ENDED
from services.state.turns import BATCH, CHILD

ORPHANS_LIMIT: Final = 100
BY_PARENT: Final = "parent"
"""Who asked to cancel a run whose parent has ended."""


def insert_children(connection: sa.Connection, now: datetime, transition: journal_pb2.Transition) -> None:
    """Stores the runs that an applied transition starts. Its run's row is locked by the transition."""
    parent = journal.select_run(connection, transition.workspace_id, transition.run_id)
    assert parent is not None, "the transition was applied to it"
    root_run_id = parent.root_run_id or parent.run_id
    if parent.root_run_id is None:
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == parent.run_id).values(root_run_id=parent.run_id))
    for asked in transition.children:
        new = _child_of(parent, root_run_id, asked)
        values = run_values(new, now, 0, None, False, False)
        values |= {
            # It goes before runs that callers started later, among those that are as urgent.
            "lane": BATCH if parent.lane == BATCH else CHILD,
            "ready_at": parent.ready_at or now,
            "parent_run_id": parent.run_id,
            "parent_step": new.parent.step,
            "root_run_id": root_run_id,
            "depth": new.parent.depth,
        }
        connection.execute(sa.insert(t.runs).values(values))
        connection.execute(
            sa.insert(t.children).values(
                run_id=parent.run_id,
                child_run_id=new.run_id,
                workspace_id=parent.workspace_id,
                root_run_id=root_run_id,
                step=new.parent.step,
                attempt=new.parent.attempt,
            )
        )
        put_first_event(connection, new, None, now)
        journal.put_blobs(connection, new.workspace_id, new.run_id, new.blobs, now)
        put_grants(connection, [new])


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


def lock_parent(connection: sa.Connection, run: sa.Row[Any]) -> sa.Row[Any] | None:
    """Locks the parent of a run, before the run itself; None where it has none."""
    if run.parent_run_id is None:
        return None
    return journal.select_run(connection, run.workspace_id, run.parent_run_id, lock=True)


def lock_run_with_parent(
    connection: sa.Connection, workspace_id: str, run_id: str
) -> tuple[sa.Row[Any], sa.Row[Any] | None] | None:
    """Locks a run that has a parent, after that; None where somebody wrote to it meanwhile: it is to be tried again.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    before = journal.find_run(connection, workspace_id, run_id)
    parent = lock_parent(connection, before)
    row = journal.find_run(connection, workspace_id, run_id, lock=True)
    return (row, parent) if row.last_seq == before.last_seq else None


def end_in_tree(
    connection: sa.Connection, db: Database, run: sa.Row[Any], parent: sa.Row[Any] | None, end: End
) -> list[Written]:
    """What the end of a run means for its parent and its children; it is written by the caller, in this transaction.

    Args:
        run: The run, as it was before.
        parent: Its parent's row, locked.
        end: How it has ended.

    Returns:
        What was written to others.
    """
    if run.root_run_id is None:
        return []
    c = t.children.c
    now = db.now(connection)
    connection.execute(sa.update(t.children).where(c.run_id == run.run_id, sa.not_(c.is_over)).values(orphaned_at=now))
    if run.parent_run_id is None:
        return []
    link = (c.run_id == run.parent_run_id) & (c.child_run_id == run.run_id)
    waiting = connection.execute(sa.select(c.step, c.attempt).where(link)).one_or_none()
    connection.execute(sa.update(t.children).where(link).values(is_over=True, orphaned_at=None))
    if parent is None or waiting is None or parent.state in ENDED:
        return []
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
    outside = journal.append_outside(connection, db, parent, [run_pb2.Change(child_ended=ended)])
    return [Written(outside, parent.run_id)]


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
