"""What retention and erasure delete, batch by batch.

A run is removed in two parts. First, in one transaction, its row and what stands beside it: from then on it is gone for
everybody, and `removed_runs` remembers that its events are still there. Then its events, a few thousand at a time, and
last the memory of it. A process that dies between any two transactions leaves nothing but work for the next pass.

Invariants:
- A run that has not ended is never touched, nor any run of a session in which one has not ended. Both are looked for
  after the session's row is locked, which everybody locks who adds a run to it.
- Of a session, the oldest runs go first: whoever goes on with it reads whole runs, and never finds a hole.
- The newest event of the journal is never deleted, so that the change feed's end never goes back and every cursor stays
  one of this feed. (SQLite would give its number to the next event.)
- A body is deleted only under a lock on its row and when no reference is seen after that lock was taken; see
  `journal.put_blobs`.

Order of locks: sessions, runs, bodies; those that somebody else holds are passed over, and found by the next pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.transitions import ENDED

MIN_KEPT: Final = timedelta(hours=1)
"""Followers of the change feed have this long at least before an event may be gone."""

REQUEST_IDS_KEPT: Final = timedelta(days=7)
CALLS_KEPT: Final = timedelta(days=1)
TOMBSTONES_KEPT: Final = timedelta(days=30)
# Of an IN list; beyond, statements are split.
CHUNK: Final = 200

_NIL: Final = "00000000-0000-0000-0000-000000000000"
_ADVISORY_LOCK: Final = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('holdfast.state.housekeeping'))")
_NEWEST: Final = {
    "sqlite": sa.text("SELECT run_id, seq FROM journal ORDER BY rowid DESC LIMIT 1"),
    "postgresql": sa.text("SELECT run_id, seq FROM journal ORDER BY txid DESC LIMIT 1"),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a workspace keeps what has ended; None is for ever."""

    workspace_id: str
    runs_kept: timedelta | None
    sessions_kept: timedelta | None
    keep_latest: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """What a look at some old sessions shows.

    Attributes:
        with_old_runs: Sessions whose runs may be removed.
        abandoned: Sessions without runs that may be removed.
        last: The session to go on after; None at the end.
    """

    with_old_runs: Sequence[str]
    abandoned: Sequence[str]
    last: str | None


@dataclass(slots=True)
class Removed:
    """What one or more transactions removed."""

    runs: int = 0
    events: int = 0
    blobs: int = 0
    sessions: int = 0
    is_cut_short: bool = False

    def add(self, other: Removed) -> None:
        """Counts what another transaction removed."""
        self.runs += other.runs
        self.events += other.events
        self.blobs += other.blobs
        self.sessions += other.sessions


def is_alone(connection: sa.Connection, db: Database) -> bool:
    """Whether no other replica keeps house at this moment; holds until the transaction ends."""
    return db.dialect == "sqlite" or bool(connection.execute(_ADVISORY_LOCK).scalar())


# --------------------------------------------------------------------------------------------------- what is old


def policies(connection: sa.Connection) -> list[Policy]:
    """The workspaces that do not keep everything for ever."""
    w = t.workspaces.c
    query = sa.select(t.workspaces).where(sa.or_(w.ended_runs_kept > 0, w.idle_sessions_kept > 0))
    return [policy_of(row) for row in connection.execute(query.order_by(w.workspace_id))]


def policy_of(row: Any) -> Policy:
    """A workspace's row as a policy."""
    return Policy(
        row.workspace_id,
        timedelta(seconds=row.ended_runs_kept) if row.ended_runs_kept else None,
        timedelta(seconds=row.idle_sessions_kept) if row.idle_sessions_kept else None,
        row.keep_latest_runs,
    )


def kept_from(connection: sa.Connection, policy: Policy) -> dict[str, str]:
    """For each agent, the run from which on all are among its newest; empty when the policy keeps none for that.

    Runs that are accepted later only move these forward: what is kept by an answer from before is too much, never too
    little.
    """
    if not policy.keep_latest:
        return {}
    r = t.runs.c
    found: dict[str, str] = {}
    names = connection.execute(sa.select(t.agents.c.name).where(t.agents.c.workspace_id == policy.workspace_id))
    for name in names.scalars().all():
        first = connection.execute(
            sa.select(r.run_id)
            .where(r.workspace_id == policy.workspace_id, r.agent == name, r.parent_run_id.is_(None))
            .order_by(r.run_id.desc())
            .offset(policy.keep_latest - 1)
            .limit(1)
        ).scalar()
        # There are fewer: all of them are kept.
        found[name] = first or _NIL
    return found


def look_at_old_sessions(
    connection: sa.Connection, db: Database, policy: Policy, kept: Mapping[str, str], after: str, limit: int
) -> Page:
    """Which of the next sessions the policy lets go of. Nothing is locked: whoever removes looks again."""
    now = db.now(connection)
    periods = [period for period in (policy.runs_kept, policy.sessions_kept) if period is not None]
    s, r = t.sessions.c, t.runs.c
    # Ids of sessions are in the order of time (UUIDv7): younger ones are not even read.
    page = connection.execute(
        sa.select(s.session_id, s.created_at, s.idle_since)
        .where(
            s.workspace_id == policy.workspace_id,
            s.session_id > (after or _NIL),
            s.session_id < first_id_at(now - min(periods)),
        )
        .order_by(s.session_id)
        .limit(limit)
    ).all()
    newest: dict[str, datetime | None] = {}
    is_kept: set[str] = set()
    for row in connection.execute(
        sa.select(
            r.session_id,
            r.agent,
            sa.func.max(r.run_id if db.dialect == "sqlite" else sa.cast(r.run_id, sa.Text)).label("last_run"),
            sa.func.max(r.ended_at).label("ended_at"),
            sa.func.count().label("runs"),
            sa.func.count(r.ended_at).label("ended"),
        )
        .where(r.workspace_id == policy.workspace_id, r.session_id.in_([row.session_id for row in page]))
        .group_by(r.session_id, r.agent)
    ):
        before = newest.get(row.session_id, row.ended_at)
        if row.ended < row.runs or before is None:
            newest[row.session_id] = None
        else:
            newest[row.session_id] = max(before, row.ended_at)
        if row.agent in kept and row.last_run >= kept[row.agent]:
            is_kept.add(row.session_id)
    old: list[str] = []
    abandoned: list[str] = []
    for row in page:
        if row.session_id not in newest:
            if policy.sessions_kept is not None and (row.idle_since or row.created_at) < now - policy.sessions_kept:
                abandoned.append(row.session_id)
        elif policy.runs_kept is not None and row.session_id not in is_kept:
            ended_at = newest[row.session_id]
            if ended_at is not None and ended_at < now - policy.runs_kept:
                old.append(row.session_id)
    return Page(old, abandoned, page[-1].session_id if len(page) == limit else None)


def first_id_at(moment: datetime) -> str:
    """The smallest UUIDv7 of a moment."""
    digits = f"{max(0, int(moment.timestamp() * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


# --------------------------------------------------------------------------------------------------- runs, sessions


@dataclass(frozen=True, slots=True)
class Erasure:
    """Who asked that runs are erased; it is written where their followers find it."""

    requested_by: str
    request_id: str = ""

    def body(self) -> bytes:
        """The event that says so."""
        erased = run_pb2.RunErased(requested_by=self.requested_by, request_id=self.request_id)
        return journal.body_of([run_pb2.Change(run_erased=erased)])


def remove_runs(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    session_ids: Collection[str],
    limit: int,
    *,
    older_than: timedelta | None = None,
    erasure: Erasure | None = None,
) -> Removed:
    """Removes the runs of sessions in which all runs have ended, at most so many, the oldest of a session first.

    Args:
        session_ids: The sessions.
        limit: How many runs at most.
        older_than: Only of sessions whose last run ended longer ago.
        erasure: Says in each run's place in the feed that it was erased, and takes empty sessions as well.
    """
    now = db.now(connection)
    sessions = _lock_sessions(connection, workspace_id, session_ids)
    # Order matters: a statement of its own after the locks, so that it sees a run that was added before them.
    by_session = _ended_sessions(connection, workspace_id, sessions, None if older_than is None else now - older_than)
    chosen = _lock_runs(connection, by_session, limit)
    removed = Removed(runs=len(chosen), is_cut_short=len(chosen) < sum(map(len, by_session.values())))
    if chosen:
        removed.events = sum(row.last_seq for row in chosen)
        _remember_removed(connection, now, workspace_id, chosen, erasure)
        run_ids = [row.run_id for row in chosen]
        # Order matters: before the runs are deleted, as it reads when they ended.
        _close_the_gap(connection, workspace_id, by_session, run_ids)
        for table in (t.approvals, t.calls, t.run_grants, t.children, t.runs):
            connection.execute(sa.delete(table).where(table.c.run_id.in_(run_ids)))
        f = t.blob_references.c
        hashes = connection.execute(
            sa.delete(t.blob_references).where(f.run_id.in_(run_ids)).returning(f.hash)
        ).scalars()
        candidates = {bytes(value) for value in hashes}
        # Order matters: the bodies' locks come last, and are held for the shortest time.
        removed.blobs = delete_unreferenced(connection, workspace_id, candidates)
    if erasure is not None:
        removed.sessions = _delete_sessions(connection, workspace_id, sessions)
    return removed


def _lock_sessions(connection: sa.Connection, workspace_id: str, session_ids: Collection[str]) -> list[str]:
    s = t.sessions.c
    query = sa.select(s.session_id).where(s.workspace_id == workspace_id, s.session_id.in_(list(session_ids)))
    locked = connection.execute(query.order_by(s.session_id).with_for_update(skip_locked=True))
    return list(locked.scalars())


def _ended_sessions(
    connection: sa.Connection, workspace_id: str, session_ids: Sequence[str], ended_before: datetime | None
) -> dict[str, list[sa.Row[Any]]]:
    """The runs of those of the locked sessions that may be touched, in their order."""
    r = t.runs.c
    rows: Sequence[Any] = connection.execute(
        sa.select(r.run_id, r.session_id, r.state, r.ended_at, r.last_seq)
        .where(r.workspace_id == workspace_id, r.session_id.in_(session_ids))
        .order_by(r.session_id, r.ordinal)
    ).all()
    found: dict[str, list[sa.Row[Any]]] = {}
    for session_id, of_session in groupby(rows, key=lambda row: row.session_id):
        runs = list(of_session)
        if all(run.state in ENDED and run.ended_at is not None for run in runs) and (
            ended_before is None or all(run.ended_at < ended_before for run in runs)
        ):
            found[session_id] = runs
    return found


def _lock_runs(
    connection: sa.Connection, by_session: Mapping[str, Sequence[sa.Row[Any]]], limit: int
) -> list[sa.Row[Any]]:
    """The first runs of each session, up to the first that somebody holds: a late result is just being stored."""
    wanted = [run.run_id for runs in by_session.values() for run in runs][:limit]
    r = t.runs.c
    query = sa.select(r.run_id, r.last_seq).where(r.run_id.in_(wanted)).order_by(r.session_id, r.ordinal)
    # Read under the lock: such a result may have been stored a moment ago.
    rows: Sequence[Any] = connection.execute(query.with_for_update(skip_locked=True)).all()
    locked = {row.run_id: row for row in rows}
    chosen: list[sa.Row[Any]] = []
    for runs in by_session.values():
        for run in runs:
            if run.run_id not in locked:
                break
            chosen.append(locked[run.run_id])
    return chosen


def _remember_removed(
    connection: sa.Connection,
    now: datetime,
    workspace_id: str,
    runs: Sequence[sa.Row[Any]],
    erasure: Erasure | None,
) -> None:
    erased_at = None if erasure is None else now
    connection.execute(
        sa.insert(t.removed_runs),
        [
            {
                "run_id": run.run_id,
                "workspace_id": workspace_id,
                "last_seq": run.last_seq,
                "left_seq": run.last_seq,
                "erased_at": erased_at,
            }
            for run in runs
        ],
    )
    if erasure is not None:
        body = erasure.body()
        connection.execute(
            sa.insert(t.journal),
            [
                {
                    "run_id": run.run_id,
                    "seq": run.last_seq + 1,
                    "workspace_id": workspace_id,
                    "epoch": 0,
                    "at": now,
                    "body": body,
                }
                for run in runs
            ],
        )


def _close_the_gap(
    connection: sa.Connection,
    workspace_id: str,
    by_session: Mapping[str, Sequence[Any]],
    removed: Sequence[str],
) -> None:
    """Leaves no row that names a run as its neighbour that is about to be removed."""
    gone = set(removed)
    s, r = t.sessions.c, t.runs.c
    emptied: list[str] = []
    first_left: list[str] = []
    for session_id, runs in by_session.items():
        left = next((run.run_id for run in runs if run.run_id not in gone), None)
        if left is None:
            emptied.append(session_id)
        elif runs[0].run_id in gone:
            first_left.append(left)
    if first_left:
        connection.execute(sa.update(t.runs).where(r.run_id.in_(first_left)).values(previous_run_id=None))
    if emptied:
        last_end = sa.select(sa.func.max(r.ended_at)).where(r.session_id == s.session_id).scalar_subquery()
        connection.execute(
            sa.update(t.sessions)
            .where(s.workspace_id == workspace_id, s.session_id.in_(emptied))
            .values(last_run_id=None, idle_since=last_end)
        )


def remove_sessions(
    connection: sa.Connection, db: Database, workspace_id: str, session_ids: Collection[str], older_than: timedelta
) -> int:
    """Deletes those of the sessions that have no runs and have been idle for longer; returns how many."""
    locked = _lock_sessions(connection, workspace_id, session_ids)
    return _delete_sessions(connection, workspace_id, locked, db.now(connection) - older_than)


def _delete_sessions(
    connection: sa.Connection, workspace_id: str, locked: Sequence[str], idle_before: datetime | None = None
) -> int:
    s, r = t.sessions.c, t.runs.c
    query = sa.delete(t.sessions).where(
        s.workspace_id == workspace_id,
        s.session_id.in_(locked),
        sa.not_(sa.exists().where(r.session_id == s.session_id)),
    )
    if idle_before is not None:
        query = query.where(sa.func.coalesce(s.idle_since, s.created_at) < idle_before)
    deleted = list(connection.execute(query.returning(s.session_id)).scalars())
    if deleted:
        a = t.session_approvals.c
        connection.execute(
            sa.delete(t.session_approvals).where(a.workspace_id == workspace_id, a.session_id.in_(deleted))
        )
    return len(deleted)


# --------------------------------------------------------------------------------------------------- events


def delete_events(
    connection: sa.Connection, db: Database, limit: int, workspace_id: str | None = None
) -> tuple[int, bool]:
    """Deletes events of removed runs, at most `limit`.

    Args:
        workspace_id: Only of this workspace.

    Returns:
        How many were deleted, and whether there is more to delete now.
    """
    x = t.removed_runs.c
    query = sa.select(t.removed_runs).where(t.IS_UNDELETED)
    if workspace_id is not None:
        query = query.where(x.workspace_id == workspace_id)
    newest = connection.execute(_NEWEST[db.dialect]).one_or_none()
    rows = [
        row
        for row in connection.execute(query.limit(CHUNK).with_for_update(skip_locked=True)).all()
        # It waits until something newer is written.
        if newest is None or newest[0] != row.run_id or newest[1] > row.last_seq
    ]
    j = t.journal.c
    room = limit
    whole: list[str] = []
    for row in rows:
        if room <= 0:
            break
        if row.left_seq <= room:
            whole.append(row.run_id)
            room -= row.left_seq
            continue
        # From its end: what a follower still reads of it has no gap.
        left = row.left_seq - room
        connection.execute(sa.delete(t.journal).where(j.run_id == row.run_id, j.seq > left, j.seq <= row.left_seq))
        connection.execute(sa.update(t.removed_runs).where(x.run_id == row.run_id).values(left_seq=left))
        room = 0
    if whole:
        last = sa.select(x.last_seq).where(x.run_id == j.run_id).scalar_subquery()
        connection.execute(sa.delete(t.journal).where(j.run_id.in_(whole), j.seq <= last))
        connection.execute(sa.delete(t.removed_runs).where(x.run_id.in_(whole), x.erased_at.is_(None)))
        connection.execute(sa.update(t.removed_runs).where(x.run_id.in_(whole)).values(left_seq=0))
    return limit - room, bool(rows) and (room <= 0 or len(rows) == CHUNK)


def delete_tombstones(connection: sa.Connection, db: Database, limit: int) -> int:
    """Deletes the events of erasures that every follower has had the time to read; returns how many."""
    x, j = t.removed_runs.c, t.journal.c
    newest = connection.execute(_NEWEST[db.dialect]).one_or_none()
    old = connection.execute(
        sa.select(x.run_id)
        .where(x.erased_at < db.now(connection) - TOMBSTONES_KEPT, x.left_seq == 0)
        .order_by(x.erased_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).scalars()
    run_ids = [run_id for run_id in old if newest is None or newest[0] != run_id]
    if run_ids:
        connection.execute(sa.delete(t.journal).where(j.run_id.in_(run_ids)))
        connection.execute(sa.delete(t.removed_runs).where(x.run_id.in_(run_ids)))
    return len(run_ids)


# --------------------------------------------------------------------------------------------------- bodies


def delete_unreferenced(connection: sa.Connection, workspace_id: str, hashes: Iterable[bytes]) -> int:
    """Deletes those of the bodies that no run refers to; returns how many.

    One that a transaction in progress refers to is locked by it and passed over.
    """
    b, f = t.blobs.c, t.blob_references.c
    wanted = sorted(hashes)
    deleted = 0
    for start in range(0, len(wanted), CHUNK):
        locked = connection.execute(
            sa.select(b.hash)
            .where(b.workspace_id == workspace_id, b.hash.in_(wanted[start : start + CHUNK]))
            .order_by(b.hash)
            .with_for_update(skip_locked=True)
        ).scalars()
        # Order matters: a statement of its own after the locks, so that it sees every reference that was stored before.
        is_referenced = sa.exists().where(f.workspace_id == b.workspace_id, f.hash == b.hash)
        deleted += connection.execute(
            sa.delete(t.blobs).where(b.workspace_id == workspace_id, b.hash.in_(list(locked)), sa.not_(is_referenced))
        ).rowcount
    return deleted


def find_unreferenced(
    connection: sa.Connection, after: tuple[str, bytes], limit: int, workspace_id: str | None = None
) -> tuple[list[tuple[str, bytes]], tuple[str, bytes] | None]:
    """The bodies among the next `limit` that no run refers to, and where to go on; None at the end.

    What a removal passed over because it was locked is found here, when its transaction came to nothing.
    """
    b, f = t.blobs.c, t.blob_references.c
    is_referenced = sa.exists().where(f.workspace_id == b.workspace_id, f.hash == b.hash)
    place = sa.tuple_(sa.literal(after[0], b.workspace_id.type), sa.literal(after[1], b.hash.type))
    query = sa.select(b.workspace_id, b.hash, is_referenced.label("is_referenced")).where(
        sa.tuple_(b.workspace_id, b.hash) > place
    )
    if workspace_id is not None:
        query = query.where(b.workspace_id == workspace_id)
    rows = connection.execute(query.order_by(b.workspace_id, b.hash).limit(limit)).all()
    found = [(row.workspace_id, bytes(row.hash)) for row in rows if not row.is_referenced]
    return found, (rows[-1].workspace_id, bytes(rows[-1].hash)) if len(rows) == limit else None


# --------------------------------------------------------------------------------------------------- calls, requests


def forget_old_calls(connection: sa.Connection, db: Database, limit: int) -> int:
    """Deletes the calls of runs that ended so long ago that no late report is to be expected; returns how many."""
    c, r = t.calls.c, t.runs.c
    key = (c.run_id, c.step, c.attempt)
    old = connection.execute(
        sa.select(*key)
        .join(t.runs, r.run_id == c.run_id)
        .where(c.state == journal.CALL_OVER, r.ended_at < db.now(connection) - CALLS_KEPT)
        .limit(limit)
    ).all()
    if old:
        connection.execute(sa.delete(t.calls).where(sa.tuple_(*key).in_([tuple(row) for row in old])))
    return len(old)


def forget_old_requests(
    connection: sa.Connection, db: Database, limit: int, *, erased_workspace_id: str | None = None
) -> int:
    """Deletes request ids that are old enough, or those of a workspace that is erased; returns how many."""
    q = t.requests.c
    query = sa.select(q.workspace_id, q.request_id).limit(limit)
    if erased_workspace_id is None:
        query = query.where(q.created_at < db.now(connection) - REQUEST_IDS_KEPT)
    else:
        query = query.where(q.workspace_id == erased_workspace_id)
    old = connection.execute(query).all()
    if old:
        connection.execute(
            sa.delete(t.requests).where(
                sa.tuple_(q.workspace_id, q.request_id).in_([(row.workspace_id, row.request_id) for row in old])
            )
        )
    return len(old)
