"""Sessions: conversations, and the messages of their runs as one list."""

from __future__ import annotations

import re

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as run_store_pb2
from holdfast.errors import InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.stored_messages import stored_message_of
from services.state import journal
from services.state import tables as t
from services.state.inline_messages import put_messages_inline
from services.state.rows import session_of
from services.state.run_store import check_ids

_POSITION = re.compile(r"([0-9]{1,9})\.([0-9]{1,18})")


def create_session(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    session_id: str,
    user_id: str,
    request_id: str,
    fingerprint: bytes,
) -> run_store_pb2.StoredSession:
    """Begins a session, or finds the one that the same request made."""
    check_ids(workspace_id=workspace_id, session_id=session_id)
    earlier = journal.find_request(connection, workspace_id, request_id, "CreateSession", fingerprint)
    if earlier is None:
        now = db.now(connection)
        connection.execute(
            sa.insert(t.sessions).values(
                workspace_id=workspace_id, session_id=session_id, user_id=user_id, run_count=0, created_at=now
            )
        )
        journal.remember_request(connection, workspace_id, request_id, "CreateSession", fingerprint, session_id, now)
    return get_session(connection, workspace_id, earlier or session_id)


def get_session(connection: sa.Connection, workspace_id: str, session_id: str) -> run_store_pb2.StoredSession:
    """One session.

    Raises:
        NotFound: SESSION_NOT_FOUND.
    """
    s = t.sessions.c
    row = None
    if is_uuid(workspace_id) and is_uuid(session_id):
        row = connection.execute(
            sa.select(t.sessions).where(s.workspace_id == workspace_id, s.session_id == session_id)
        ).one_or_none()
    if row is None:
        raise NotFound("no such session", reason=Reason.SESSION_NOT_FOUND, metadata={"session_id": session_id})
    return session_of(row)


def list_sessions(
    connection: sa.Connection, workspace_id: str, limit: int, before_session_id: str, user_id: str
) -> list[run_store_pb2.StoredSession]:
    """Sessions, newest first."""
    check_ids(workspace_id=workspace_id, before_session_id=before_session_id or workspace_id)
    s = t.sessions.c
    query = sa.select(t.sessions).where(s.workspace_id == workspace_id)
    if before_session_id:
        query = query.where(s.session_id < before_session_id)
    if user_id:
        query = query.where(s.user_id == user_id)
    return [session_of(row) for row in connection.execute(query.order_by(s.session_id.desc()).limit(limit))]


def list_session_messages(
    connection: sa.Connection, workspace_id: str, session_id: str, limit: int, position: str, before_run_id: str
) -> tuple[list[run_store_pb2.StoredSessionMessage], str]:
    """The session's messages in order, run by run. The position is the last event read: `ordinal.seq`."""
    get_session(connection, workspace_id, session_id)
    after_ordinal, after_seq = _position(position)
    r, j = t.runs.c, t.journal.c
    query = (
        sa.select(r.ordinal, j.run_id, j.seq, j.epoch, j.at, j.body)
        .join(t.journal, j.run_id == r.run_id)
        .where(
            r.workspace_id == workspace_id,
            r.session_id == session_id,
            # Runs that others started have no place in the conversation.
            r.parent_run_id.is_(None),
            sa.or_(r.ordinal > after_ordinal, sa.and_(r.ordinal == after_ordinal, j.seq > after_seq)),
        )
        .order_by(r.ordinal, j.seq)
        .limit(limit)
    )
    if before_run_id:
        before = journal.find_run(connection, workspace_id, before_run_id)
        query = query.where(r.ordinal < before.ordinal)
    rows = connection.execute(query).all()
    events = put_messages_inline(connection, workspace_id, [journal.event_of(row) for row in rows], limit=None)
    messages = [message for event in events for message in _messages_of(event)]
    # A page counts events, not messages: it may hold none and still not be the last.
    is_last = len(rows) < limit and len(events) == len(rows)
    last = rows[len(events) - 1] if events else None
    return messages, "" if is_last or last is None else f"{last.ordinal}.{last.seq}"


def _position(position: str) -> tuple[int, int]:
    if not position:
        return 0, 0
    found = _POSITION.fullmatch(position)
    if found is None:
        raise InvalidArgument("not a position of this list", reason=Reason.INVALID_PAGE_TOKEN, field="position")
    return int(found[1]), int(found[2])


def _messages_of(event: run_pb2.Event) -> list[run_store_pb2.StoredSessionMessage]:
    found: list[run_store_pb2.StoredSessionMessage] = []
    for change in event.changes:
        stored = stored_message_of(change)
        # What a child answers becomes a message when its result is made of it.
        if stored is None or change.WhichOneof("kind") == "child_ended":
            continue
        step = change.step_finished.step if change.WhichOneof("kind") == "step_finished" else 0
        found.append(
            run_store_pb2.StoredSessionMessage(
                run_id=event.run_id, seq=event.seq, step=step, message=stored.message, time=event.time
            )
        )
    return found
