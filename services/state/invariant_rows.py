"""The invariants that rows show: of runs and what stands beside them, of sessions, of stored bodies; range by range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from services.shared.database import Database
from services.state import tables as t
from services.state.invariant_list import FIRED_WITHIN, ORPHANS_KEPT, SWEPT_WITHIN, Findings
from services.state.journal import CALL_OFFERED, CALL_QUEUED, CALL_STARTED
from services.state.journal_check import TOTALS
from services.state.transitions import ENDED, PAUSED, QUEUED, RUNNING, WAITING

FIRST: Final = "00000000-0000-0000-0000-000000000000"
LAST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
# Of what is overdue, so many are named at most.
MOST: Final = 500
_TOMBSTONE: Final = {"run_erased"}


# ------------------------------------------------------------------------------------------------------- rows of runs


def look_at_what_is_due(connection: sa.Connection, db: Database) -> Findings:
    """Looks for what the sweep has passed over."""
    now = db.now(connection)
    found = Findings()
    r, e, c = t.runs.c, t.executors.c, t.calls.c
    swept, fired = now - SWEPT_WITHIN, now - FIRED_WITHIN
    found.looked_at("leases_are_swept", _count(connection, sa.select(sa.func.count()).select_from(t.executors)))
    _overdue(connection, found, "leases_are_swept", sa.select(e.executor_id).where(e.expires_at < swept), "executor {}")
    waiting = sa.select(sa.func.count()).select_from(t.runs).where(t.IS_WAITING_FOR_TIME)
    found.looked_at("timers_have_fired", _count(connection, waiting))
    due = sa.select(r.run_id).where(t.IS_WAITING_FOR_TIME, r.wake_at < fired)
    _overdue(connection, found, "timers_have_fired", due, "run {}")
    mortal = sa.select(sa.func.count()).select_from(t.runs).where(t.IS_EXPIRING)
    found.looked_at("lifetimes_are_swept", _count(connection, mortal))
    expired = sa.select(r.run_id).where(t.IS_EXPIRING, r.expire_at < swept)
    _overdue(connection, found, "lifetimes_are_swept", expired, "run {}")
    orphaned = sa.select(sa.func.count()).select_from(t.children).where(t.IS_ORPHANED)
    found.looked_at("children_are_told_of", _count(connection, orphaned))
    x = t.children.c
    forgotten = sa.select(x.child_run_id).where(t.IS_ORPHANED, x.orphaned_at < swept)
    _overdue(connection, found, "children_are_told_of", forgotten, "run {}: its parent has ended, and nobody stops it")
    for is_open, deadline, what in (
        (t.IS_QUEUED_CALL, c.start_deadline, "is not begun"),
        (t.IS_OFFERED_CALL, c.offer_expires_at, "is offered"),
        (t.IS_STARTED_CALL, c.beat_due_at, "is executed"),
    ):
        open_calls = sa.select(sa.func.count()).select_from(t.calls).where(is_open)
        found.looked_at("calls_are_swept", _count(connection, open_calls))
        late = sa.select(c.run_id, c.step, c.attempt).where(is_open, deadline < swept)
        _overdue(connection, found, "calls_are_swept", late, f"run {{}}: the call of step {{}}, attempt {{}}, {what}")
    return found


def _overdue(connection: sa.Connection, found: Findings, name: str, query: sa.Select[Any], text: str) -> None:
    for row in connection.execute(query.limit(MOST)):
        found.broken(name, text.format(*row))


def _count(connection: sa.Connection, query: Any) -> int:
    return int(connection.execute(query).scalar_one())


RUN_COLUMNS = [
    t.runs.c[name]
    for name in (
        "run_id",
        "workspace_id",
        "session_id",
        "state",
        "wait_reason",
        "blocked",
        "pause_requested",
        "epoch",
        "holder",
        "last_seq",
        "step_count",
        "ready_at",
        "wake_at",
        "ended_at",
        "previous_run_id",
        "successor_run_id",
        *TOTALS,
    )
]


def look_at_runs(connection: sa.Connection, after: str, page: int) -> tuple[Findings, int, str]:
    """Compares the rows of a range of runs with all that stands beside them; returns the range's end as well."""
    found = Findings()
    r, j = t.runs.c, t.journal.c
    rows = connection.execute(sa.select(*RUN_COLUMNS).where(r.run_id > after).order_by(r.run_id).limit(page)).all()
    # By events too: what belongs to no run must not be passed over, and must not make a range endless.
    events = connection.execute(
        sa.select(j.run_id, sa.func.count().label("count"), sa.func.min(j.seq), sa.func.max(j.seq))
        .where(j.run_id > after)
        .group_by(j.run_id)
        .order_by(j.run_id)
        .limit(page)
    ).all()
    last = min(rows[-1].run_id if len(rows) == page else LAST, events[-1].run_id if len(events) == page else LAST)
    runs = {row.run_id: row for row in rows if row.run_id <= last}
    journals = {row.run_id: tuple(row[1:]) for row in events if row.run_id <= last}
    _dense(found, runs, journals)
    _belonging(connection, found, runs, journals.keys() - runs.keys())
    _referring(connection, found, runs, after, last, 4 * page)
    questions = _within(connection, t.approvals, after, last, t.approvals.c.state == run_pb2.APPROVAL_STATE_PENDING)
    calls = _within(connection, t.calls, after, last, t.calls.c.state.in_((CALL_QUEUED, CALL_OFFERED, CALL_STARTED)))
    _closed(found, runs, questions, calls)
    neighbours = _neighbours(connection, runs.values())
    executors = set(connection.execute(sa.select(t.executors.c.executor_id)).scalars())
    waited_for = _children(connection, found, runs, after, last)
    expected = {row.run_id for row in (*questions, *calls)} | waited_for
    for run in runs.values():
        _look_at_run(found, run, neighbours, executors, expected)
    return found, len(runs), last


def _dense(found: Findings, runs: dict[str, Any], journals: dict[str, tuple[int, int, int]]) -> None:
    found.looked_at("dense_sequences", len(runs))
    for run_id, run in runs.items():
        count, first, last = journals.get(run_id, (0, 0, 0))
        if (count, first, last) != (run.last_seq, 1, run.last_seq):
            found.broken(
                "dense_sequences", f"run {run_id}: {count} events from {first} to {last}, its row says {run.last_seq}"
            )


def _belonging(connection: sa.Connection, found: Findings, runs: dict[str, Any], without_run: set[str]) -> None:
    found.looked_at("events_have_a_run", len(runs))
    j, x = t.journal.c, t.removed_runs.c
    if not without_run:
        return
    removed = {
        row.run_id: row
        for row in connection.execute(sa.select(x.run_id, x.left_seq).where(x.run_id.in_(list(without_run))))
    }
    for run_id in sorted(without_run):
        found.looked_at("events_have_a_run")
        row = removed.get(run_id)
        if row is not None and row.left_seq > 0:
            # Its events go batch by batch.
            continue
        bodies = connection.execute(sa.select(j.body).where(j.run_id == run_id).order_by(j.seq).limit(2)).scalars()
        # What says that a run was erased is all that is left of it, for a while.
        if row is None or not is_tombstone([run_pb2.Event.FromString(body) for body in bodies]):
            found.broken("events_have_a_run", f"run {run_id}: events, and no row")


def _referring(
    connection: sa.Connection, found: Findings, runs: dict[str, Any], after: str, last: str, limit: int
) -> None:
    f = t.blob_references.c
    query = sa.select(f.run_id).where(f.run_id > after, f.run_id <= last).distinct()
    for run_id in connection.execute(query.order_by(f.run_id).limit(limit)).scalars():
        if run_id not in runs:
            found.broken("events_have_a_run", f"run {run_id}: references to bodies, and no row")


def is_tombstone(events: Iterable[run_pb2.Event]) -> bool:
    """Whether all that these say is that a run was erased."""
    return {change.WhichOneof("kind") for event in events for change in event.changes} == _TOMBSTONE


def _within(
    connection: sa.Connection, table: sa.Table, after: str, last: str, condition: sa.ColumnElement[bool]
) -> list[Any]:
    query = sa.select(table.c.run_id, table.c.step).where(table.c.run_id > after, table.c.run_id <= last, condition)
    return list(connection.execute(query).all())


def _closed(found: Findings, runs: dict[str, Any], questions: Sequence[Any], calls: Sequence[Any]) -> None:
    for name, rows, what in (
        ("questions_are_open", questions, "a pending question"),
        ("calls_are_closed", calls, "an open call"),
    ):
        found.looked_at(name, len(rows))
        for row in rows:
            run = runs.get(row.run_id)
            if run is None:
                found.broken("events_have_a_run", f"run {row.run_id}: {what} of step {row.step}, and no row")
            elif run.state in ENDED:
                found.broken(name, f"run {row.run_id}: {what} of step {row.step}, and the run has ended")


def _children(connection: sa.Connection, found: Findings, runs: dict[str, Any], after: str, last: str) -> set[str]:
    """Compares a range of runs with those that they started; returns which of them have one that is unfinished."""
    c, r = t.children.c, t.runs.c
    rows = connection.execute(
        sa.select(c.run_id, c.child_run_id, c.is_over, c.orphaned_at, r.state, r.cancel_requested, r.expiring)
        .join_from(t.children, t.runs, r.run_id == c.child_run_id, isouter=True)
        .where(c.run_id > after, c.run_id <= last)
    ).all()
    found.looked_at("children_are_told_of", len(rows))
    waited_for: set[str] = set()
    for row in rows:
        parent = runs.get(row.run_id)
        what = ""
        if parent is None:
            found.broken("events_have_a_run", f"run {row.run_id}: a run that it started, and no row")
        elif row.state is None:
            # Of a tree that is being removed, some are gone before others.
            what = "is not there" if parent.state not in ENDED and not row.is_over else ""
        elif row.is_over != (row.state in ENDED):
            what = f"is {'known' if row.is_over else 'not known'} to be over"
        elif row.state not in ENDED and parent.state in ENDED:
            is_asked = row.orphaned_at is not None or row.cancel_requested or row.expiring
            what = "" if is_asked else "is not asked to end"
        elif row.state not in ENDED:
            waited_for.add(row.run_id)
        if what:
            found.broken("children_are_told_of", f"run {row.run_id}: it started {row.child_run_id}, which {what}")
    return waited_for


def _neighbours(connection: sa.Connection, runs: Iterable[Any]) -> dict[str, Any]:
    r = t.runs.c
    wanted = {run_id for run in runs for run_id in (run.previous_run_id, run.successor_run_id) if run_id is not None}
    if not wanted:
        return {}
    query = sa.select(r.run_id, r.session_id, r.state, r.previous_run_id, r.successor_run_id)
    return {row.run_id: row for row in connection.execute(query.where(r.run_id.in_(wanted)))}


def _look_at_run(
    found: Findings, run: Any, neighbours: dict[str, Any], executors: set[str], expected: set[str]
) -> None:
    found.looked_at("one_holder")
    if (run.holder is not None) != (run.state == RUNNING):
        found.broken("one_holder", f"run {run.run_id}: {_state(run)} {'with' if run.holder else 'without'} a holder")
    if run.state == PAUSED and run.wake_at is not None:
        found.broken("a_way_forward", f"run {run.run_id}: PAUSED, and a time would wake it")
    if run.state not in ENDED:
        found.looked_at("a_way_forward")
        stuck = _stuck(run, neighbours, executors, expected)
        if stuck:
            found.broken("a_way_forward", f"run {run.run_id}: {_state(run)}, {stuck}")
    elif run.ended_at is None or run.wake_at is not None:
        found.broken("nothing_after_the_end", f"run {run.run_id}: {_state(run)} without the time of its end")
    successor = neighbours.get(run.successor_run_id)
    if successor is not None and (successor.previous_run_id, successor.session_id) != (run.run_id, run.session_id):
        found.broken("session_chains", f"run {run.run_id}: its successor {successor.run_id} comes after another")
    elif successor is None and run.successor_run_id is not None and run.state not in ENDED:
        found.broken("session_chains", f"run {run.run_id}: its successor {run.successor_run_id} is not there")


def _stuck(run: Any, neighbours: dict[str, Any], executors: set[str], expected: set[str]) -> str:
    if run.state == QUEUED and run.blocked:
        before = neighbours.get(run.previous_run_id)
        if before is None:
            return "behind a run that is not there"
        if before.state in ENDED:
            return f"behind run {before.run_id}, which has ended"
        return "" if before.successor_run_id == run.run_id else f"run {before.run_id} will not let it go on"
    if run.state == QUEUED:
        return "" if run.ready_at is not None else "without the time since which it is ready"
    if run.state == RUNNING:
        # Without a holder is a violation of its own.
        return "" if run.holder is None or run.holder in executors else "its executor is not known any more"
    if run.state == WAITING:
        return "" if run.wake_at is not None or run.run_id in expected else "and nothing can wake it"
    if run.state == PAUSED:
        return "" if run.pause_requested else "and nobody asked for it"
    return "which is no state"


def _state(run: Any) -> str:
    try:
        return run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    except ValueError:
        return str(run.state)


# ------------------------------------------------------------------------------------------------------------ sessions


def look_at_sessions(
    connection: sa.Connection, place: tuple[str, str], page: int
) -> tuple[Findings, tuple[str, str] | None]:
    """Compares a range of sessions with their runs; returns where the next begins as well."""
    found = Findings()
    s, r = t.sessions.c, t.runs.c
    query = sa.select(s.workspace_id, s.session_id, s.last_run_id, s.run_count)
    rows = connection.execute(
        query.where(_after((s.workspace_id, s.session_id), place)).order_by(s.workspace_id, s.session_id).limit(page)
    ).all()
    found.looked_at("session_chains", len(rows))
    if not rows:
        return found, None
    ordinals: dict[str, tuple[int, int, int]] = {
        row[0]: (row[1], row[2], row[3])
        for row in connection.execute(
            sa.select(r.session_id, sa.func.count(), sa.func.count(sa.distinct(r.ordinal)), sa.func.max(r.ordinal))
            .where(r.session_id.in_([row.session_id for row in rows]), r.parent_run_id.is_(None))
            .group_by(r.session_id)
        )
    }
    named = [row.last_run_id for row in rows if row.last_run_id is not None]
    last_runs = {
        row.run_id: row
        for row in connection.execute(sa.select(r.run_id, r.session_id, r.workspace_id).where(r.run_id.in_(named)))
    }
    for session in rows:
        count, different, highest = ordinals.get(session.session_id, (0, 0, 0))
        if count != different or highest > session.run_count:
            found.broken(
                "session_chains",
                f"session {session.session_id}: {count} runs, {different} numbers up to {highest}, its row says "
                f"{session.run_count}",
            )
        last = last_runs.get(session.last_run_id)
        # A run that was deleted with its time leaves its name.
        if last is not None and (last.session_id, last.workspace_id) != (session.session_id, session.workspace_id):
            found.broken("session_chains", f"session {session.session_id}: its last run is of another session")
        elif session.last_run_id is None and count:
            found.broken("session_chains", f"session {session.session_id}: {count} runs, and its row names none")
    is_last = len(rows) < page
    return found, None if is_last else (rows[-1].workspace_id, rows[-1].session_id)


# -------------------------------------------------------------------------------------------------------------- bodies


def _after(key: Sequence[sa.Column[Any]], place: Sequence[Any]) -> sa.ColumnElement[bool]:
    """The rows behind a place in the order of a key."""
    return sa.tuple_(*key) > sa.tuple_(
        *(sa.literal(value, column.type) for column, value in zip(key, place, strict=True))
    )


def look_at_bodies(
    connection: sa.Connection, db: Database, place: tuple[str, bytes], page: int
) -> tuple[Findings, tuple[str, bytes] | None]:
    """Looks for bodies that nothing refers to in a range; returns where the next begins as well."""
    found = Findings()
    b, f = t.blobs.c, t.blob_references.c
    before = db.now(connection) - ORPHANS_KEPT
    is_referenced = sa.exists().where(f.workspace_id == b.workspace_id, f.hash == b.hash)
    rows = connection.execute(
        sa.select(b.workspace_id, b.hash, b.created_at, is_referenced.label("is_referenced"))
        .where(_after((b.workspace_id, b.hash), place))
        .order_by(b.workspace_id, b.hash)
        .limit(page)
    ).all()
    found.looked_at("no_orphan_bodies", len(rows))
    for row in rows:
        if row.created_at < before and not row.is_referenced:
            found.broken("no_orphan_bodies", f"workspace {row.workspace_id}: {bytes(row.hash).hex()}")
    is_last = len(rows) < page
    return found, None if is_last else (rows[-1].workspace_id, bytes(rows[-1].hash))
