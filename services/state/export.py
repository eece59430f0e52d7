"""A workspace's data as a stream of pieces that can be gone on with behind any of them.

Each piece is one read-only transaction. The order is fixed: agents with their revisions, sessions with their runs, each
with its events and questions, then the bodies, so that a cursor is a place in it and nothing has to be remembered.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, workspace_pb2
from holdfast.errors import InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import agent_store, journal
from services.state import tables as t
from services.state.approval_store import list_session_approvals
from services.state.rows import approval_of, run_of, stamp
from services.state.run_store import check_ids

FRAME_BYTES: Final = 512 * 1024
FRAME_RECORDS: Final = 500
_NIL: Final = "00000000-0000-0000-0000-000000000000"

Record = workspace_pb2.ExportRecord

# A place: what comes next, and what is behind.
#   ["agents", name]                         agents after the name
#   ["revisions", name, revision]            revisions of the agent after the revision
#   ["sessions", session]                    sessions after the session
#   ["runs", session, ordinal]               runs of the session after the ordinal
#   ["children", session, run]               runs of the session that others have started, after the run
#   ["events", session, ordinal, run, seq]   events of the run after the seq, then its questions
#   ["blobs", hash]                          bodies after the hash
Place = list[Any]
_FORMS: Final[dict[str, tuple[type, ...]]] = {
    "agents": (str,),
    "revisions": (str, str),
    "sessions": (str,),
    "runs": (str, int),
    "children": (str, str),
    "events": (str, int, str, int),
    "blobs": (str,),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a workspace's data; with neither of the last two, all of it."""

    workspace_id: str
    session_id: str = ""
    user_id: str = ""

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.session_id or self.user_id)

    def has_session(self) -> sa.ColumnElement[bool]:
        """Whether a session is in it."""
        s = t.sessions.c
        of_workspace: sa.ColumnElement[bool] = s.workspace_id == self.workspace_id
        if self.session_id:
            return sa.and_(of_workspace, s.session_id == self.session_id)
        if self.user_id:
            # Another name, so that it is never taken for the runs of a statement around it.
            run = t.runs.alias("of_user")
            has_run = sa.exists().where(run.c.session_id == s.session_id, run.c.user_id == self.user_id)
            return sa.and_(of_workspace, sa.or_(s.user_id == self.user_id, has_run.correlate(t.sessions)))
        return of_workspace

    def has_run(self) -> sa.ColumnElement[bool]:
        """Whether a run is in it."""
        r = t.runs.c
        of_workspace: sa.ColumnElement[bool] = r.workspace_id == self.workspace_id
        if self.is_everything:
            return of_workspace
        return sa.and_(of_workspace, r.session_id.in_(sa.select(t.sessions.c.session_id).where(self.has_session())))


def scope_of(workspace_id: str, scope: workspace_pb2.DataScope) -> Scope:
    """The scope of a request.

    Raises:
        InvalidArgument: It says nothing, or something that cannot be.
    """
    check_ids(workspace_id=workspace_id)
    part = scope.WhichOneof("part")
    if part is None or (part == "everything" and not scope.everything):
        raise InvalidArgument("expected everything, a session or a user", field="scope")
    if part == "everything":
        return Scope(workspace_id)
    value = getattr(scope, part)
    if not value or "\0" in value:
        raise InvalidArgument("is required", field=f"scope.{part}")
    return Scope(workspace_id, session_id=scope.session_id, user_id=scope.user_id)


def check_session(connection: sa.Connection, scope: Scope) -> None:
    """Refuses a session that is not there.

    Raises:
        NotFound: SESSION_NOT_FOUND.
    """
    if scope.session_id and (
        not is_uuid(scope.session_id)
        or connection.execute(sa.select(t.sessions.c.session_id).where(scope.has_session())).first() is None
    ):
        raise NotFound("no such session", reason=Reason.SESSION_NOT_FOUND, metadata={"session_id": scope.session_id})


async def export(db: Database, scope: Scope, cursor: str) -> AsyncIterator[tuple[list[Record], str]]:
    """Yields the records behind a cursor, and the cursor behind them.

    Raises:
        InvalidArgument: INVALID_PAGE_TOKEN.
        NotFound: SESSION_NOT_FOUND.
    """
    place: Place | None = (
        _decoded(cursor) if cursor else (["agents", ""] if scope.is_everything else ["sessions", _NIL])
    )
    if not cursor:
        await db.read(check_session, scope)
    while place is not None:
        records, place = await db.read(_frame, scope, place)
        # The end is a place too: behind the last body there is none.
        yield records, _encoded(place if place is not None else ["blobs", "f" * 64])


def _frame(connection: sa.Connection, scope: Scope, place: Place) -> tuple[list[Record], Place | None]:
    records: list[Record] = []
    size = 0
    following: Place | None = place
    while following is not None and size < FRAME_BYTES and len(records) < FRAME_RECORDS:
        more, following = _STEPS[following[0]](connection, scope, *following[1:])
        records += more
        size += sum(record.ByteSize() for record in more)
    return records, following


def _agents(connection: sa.Connection, scope: Scope, name: str) -> tuple[list[Record], Place | None]:
    found = agent_store.list_agents(connection, scope.workspace_id, 1, name)
    if not found:
        return [], ["sessions", _NIL]
    return [Record(agent=found[0])], ["revisions", found[0].name, ""]


def _revisions(connection: sa.Connection, scope: Scope, name: str, after: str) -> tuple[list[Record], Place | None]:
    r = t.agent_revisions.c
    row = connection.execute(
        sa.select(t.agent_revisions)
        .where(r.workspace_id == scope.workspace_id, r.agent == name, r.revision > after)
        .order_by(r.revision)
        .limit(1)
    ).one_or_none()
    if row is None:
        return [], ["agents", name]
    return [Record(agent_revision=agent_store.revision_of(row))], ["revisions", name, row.revision]


def _sessions(connection: sa.Connection, scope: Scope, after: str) -> tuple[list[Record], Place | None]:
    s = t.sessions.c
    row = connection.execute(
        sa.select(t.sessions).where(scope.has_session(), s.session_id > after).order_by(s.session_id).limit(1)
    ).one_or_none()
    if row is None:
        return [], ["blobs", ""]
    session = workspace_pb2.ExportedSession(
        session_id=row.session_id,
        user_id=row.user_id,
        run_count=row.run_count,
        create_time=stamp(row.created_at),
    )
    # As many as a decision made one of; a session has a few.
    approvals = list_session_approvals(connection, scope.workspace_id, row.session_id)
    records = [Record(session=session), *(Record(session_approval=approval) for approval in approvals)]
    return records, ["runs", row.session_id, 0]


def _runs(connection: sa.Connection, scope: Scope, session_id: str, after: int) -> tuple[list[Record], Place | None]:
    r = t.runs.c
    row = connection.execute(
        sa.select(t.runs)
        .where(r.workspace_id == scope.workspace_id, r.session_id == session_id, r.ordinal > after)
        .order_by(r.ordinal)
        .limit(1)
    ).one_or_none()
    if row is None:
        return [], ["children", session_id, _NIL]
    return [Record(run=run_of(row))], ["events", session_id, row.ordinal, row.run_id, 0]


def _children(
    connection: sa.Connection, scope: Scope, session_id: str, after: str
) -> tuple[list[Record], Place | None]:
    r = t.runs.c
    row = connection.execute(
        sa.select(t.runs)
        .where(
            r.workspace_id == scope.workspace_id,
            r.session_id == session_id,
            r.ordinal == 0,
            r.run_id > after,
        )
        .order_by(r.run_id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return [], ["sessions", session_id]
    return [Record(run=run_of(row))], ["events", session_id, 0, row.run_id, 0]


def _events(
    connection: sa.Connection, scope: Scope, session_id: str, ordinal: int, run_id: str, after: int
) -> tuple[list[Record], Place | None]:
    following: Place = ["runs", session_id, ordinal] if ordinal else ["children", session_id, run_id]
    # Looked for through the run: events of one that is being deleted belong to nobody any more.
    if journal.select_run(connection, scope.workspace_id, run_id) is None:
        return [], following
    events = journal.read_events(connection, scope.workspace_id, run_id, after, FRAME_RECORDS)
    if events:
        return [Record(event=event) for event in events], ["events", session_id, ordinal, run_id, events[-1].seq]
    a = t.approvals.c
    asked = connection.execute(sa.select(t.approvals).where(a.run_id == run_id).order_by(a.approval_id)).all()
    return [Record(approval=approval_of(row)) for row in asked], following


def _blobs(connection: sa.Connection, scope: Scope, after: str) -> tuple[list[Record], Place | None]:
    b, f, r = t.blobs.c, t.blob_references.c, t.runs.c
    query = sa.select(b.hash, b.data).where(b.workspace_id == scope.workspace_id, b.hash > bytes.fromhex(after))
    if not scope.is_everything:
        referenced = (
            sa.select(f.hash)
            .join(t.runs, r.run_id == f.run_id)
            .where(f.workspace_id == scope.workspace_id, scope.has_run())
        )
        query = query.where(b.hash.in_(referenced))
    row = connection.execute(query.order_by(b.hash).limit(1)).one_or_none()
    if row is None:
        return [], None
    body = content_pb2.Blob(hash=bytes(row.hash), data=bytes(row.data))
    return [Record(blob=body)], ["blobs", bytes(row.hash).hex()]


_STEPS: Final[dict[str, Any]] = {
    "agents": _agents,
    "revisions": _revisions,
    "sessions": _sessions,
    "runs": _runs,
    "children": _children,
    "events": _events,
    "blobs": _blobs,
}


def _encoded(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode()


def _decoded(cursor: str) -> Place:
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        form = _FORMS[place[0]]
        if tuple(type(value) for value in place[1:]) != form:
            raise ValueError(cursor)
        if place[0] in ("sessions", "runs", "children", "events") and not all(
            is_uuid(v) for v in place[1:] if type(v) is str
        ):
            raise ValueError(cursor)
        if place[0] == "blobs":
            bytes.fromhex(place[1])
        if any("\0" in value if type(value) is str else not 0 <= value < 2**31 for value in place[1:]):
            raise ValueError(cursor)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidArgument(
            "not a cursor of this export", reason=Reason.INVALID_PAGE_TOKEN, field="cursor"
        ) from error
    assert isinstance(place, list)
    return place
