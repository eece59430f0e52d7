"""Runs, sessions and questions: what clients read, and what people outside write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as run_store_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.stored_messages import stored_message_of
from services.state import journal
from services.state import tables as t
from services.state.rows import approval_of, run_of, session_approval_of, session_of
from services.state.transitions import ENDED

INLINE_BLOB_LIMIT = 1024 * 1024
FRAME_BYTES = 4 * 1024 * 1024
# A page of them: there is one for each tool of an agent, or a few.
MAX_SESSION_APPROVALS = 1_000
_POSITION = re.compile(r"([0-9]{1,9})\.([0-9]{1,18})")


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


# --------------------------------------------------------------------------------------------------- sessions


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


def put_messages_inline(
    connection: sa.Connection, workspace_id: str, events: Sequence[run_pb2.Event], *, limit: int | None
) -> list[run_pb2.Event]:
    """Replaces the blob references of messages by the messages, up to `limit` bytes each.

    Returns:
        As many of the events as fit into a frame with their messages, one at least. Of an event that is larger by
        itself, messages that do not fit stay references, unless there is no limit.
    """
    kept: list[run_pb2.Event] = []
    wanted: list[content_pb2.StoredMessage] = []
    room = FRAME_BYTES
    for event in events:
        refs = [
            stored
            for change in event.changes
            if (stored := stored_message_of(change)) is not None
            and stored.WhichOneof("body") == "blob"
            and (limit is None or stored.blob.size <= limit)
        ]
        size = event.ByteSize() + sum(stored.blob.size for stored in refs)
        if kept and size > room:
            break
        kept.append(event)
        room -= size
        while limit is not None and room < 0 and refs:
            room += refs.pop().blob.size
        wanted.extend(refs)
    if wanted:
        bodies = journal.read_blobs(connection, workspace_id, {stored.blob.hash for stored in wanted})
        for stored in wanted:
            body = bodies.get(stored.blob.hash)
            if body is not None:
                stored.message.ParseFromString(body)
    return kept


# --------------------------------------------------------------------------------------------------- questions


def get_approval(connection: sa.Connection, workspace_id: str, approval_id: str) -> run_pb2.Approval:
    """One question.

    Raises:
        NotFound: APPROVAL_NOT_FOUND.
    """
    return approval_of(_approval_row(connection, workspace_id, approval_id))


def list_approvals(
    connection: sa.Connection,
    workspace_id: str,
    limit: int,
    before: str,
    run_id: str,
    state: int,
    root_run_id: str = "",
) -> list[run_pb2.Approval]:
    """Questions, newest first."""
    check_ids(workspace_id=workspace_id, before_approval_id=before or workspace_id)
    if not all(is_uuid(asked) for asked in (run_id, root_run_id) if asked):
        return []
    a = t.approvals.c
    query = sa.select(t.approvals).where(a.workspace_id == workspace_id)
    if before:
        query = query.where(a.approval_id < before)
    if run_id:
        query = query.where(a.run_id == run_id)
    if root_run_id:
        query = query.where(is_in_tree(a.run_id, workspace_id, root_run_id))
    if state:
        query = query.where(a.state == state)
    return [approval_of(row) for row in connection.execute(query.order_by(a.approval_id.desc()).limit(limit))]


def list_sign_ins(
    connection: sa.Connection, workspace_id: str, limit: int, after: tuple[str, str] | None
) -> list[tuple[str, run_pb2.Approval]]:
    """Pending questions of kind SIGN_IN with their workspaces, by workspace and id."""
    a = t.approvals.c
    # Literally as in the partial index, which is used only then.
    query = sa.select(t.approvals).where(sa.text("kind = 3 AND state = 1"))
    if workspace_id:
        check_ids(workspace_id=workspace_id)
        query = query.where(a.workspace_id == workspace_id)
    if after is not None:
        check_ids(after_workspace_id=after[0], after_approval_id=after[1])
        query = query.where(
            sa.tuple_(a.workspace_id, a.approval_id)
            > sa.tuple_(*after, types=[a.workspace_id.type, a.approval_id.type])
        )
    query = query.order_by(a.workspace_id, a.approval_id).limit(limit)
    return [(row.workspace_id, approval_of(row)) for row in connection.execute(query)]


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


def decide_approval(
    connection: sa.Connection, db: Database, workspace_id: str, decision: run_pb2.ApprovalDecided
) -> tuple[run_pb2.Approval, Written]:
    """The first decision counts; the same one again is answered the same.

    Raises:
        NotFound: APPROVAL_NOT_FOUND.
        FailedPrecondition: APPROVAL_ALREADY_DECIDED, also for one that expired or was cancelled. APPROVAL_HASH_MISMATCH
            for an approval of other arguments than those that were asked about, unless it says that they were edited.
    """
    asked = _approval_row(connection, workspace_id, decision.approval_id)
    run = journal.find_run(connection, workspace_id, asked.run_id, lock=True)
    # Read again under the run's lock: two people may decide at the same moment.
    asked = _approval_row(connection, workspace_id, decision.approval_id)
    decision.step = asked.step
    if asked.state == run_pb2.APPROVAL_STATE_DECIDED:
        earlier = run_pb2.ApprovalDecided.FromString(asked.decision)
        if _same_decision(earlier, decision):
            return approval_of(asked), Written(None, asked.run_id)
    now = db.now(connection)
    # Also when nobody has closed it yet: what was not decided in time is not decided.
    question = run_pb2.Approval.FromString(asked.body)
    expires = question.expire_time
    has_expired = expires.ToMicroseconds() != 0 and expires.ToDatetime(tzinfo=UTC) <= now
    if asked.state != run_pb2.APPROVAL_STATE_PENDING or has_expired:
        raise FailedPrecondition(
            "the question is decided, has expired, or its run was cancelled", reason=Reason.APPROVAL_ALREADY_DECIDED
        )
    if not decision.edited_arguments_json and decision.arguments_sha256 != question.arguments_sha256:
        raise FailedPrecondition(
            "the decision is about other arguments than the question", reason=Reason.APPROVAL_HASH_MISMATCH
        )
    connection.execute(
        sa.update(t.approvals)
        .where(t.approvals.c.run_id == asked.run_id, t.approvals.c.approval_id == decision.approval_id)
        .values(
            state=run_pb2.APPROVAL_STATE_DECIDED,
            decision=db.seals.seal(workspace_id, decision.SerializeToString()),
            decided_at=now,
        )
    )
    if decision.verdict == run_pb2.APPROVAL_VERDICT_APPROVED and decision.scope == run_pb2.APPROVAL_SCOPE_SESSION:
        connection.execute(
            sa.insert(t.session_approvals).values(
                workspace_id=workspace_id,
                session_id=run.session_id,
                approval_id=decision.approval_id,
                run_id=asked.run_id,
                tool=question.tool,
                tool_sha256=question.tool_sha256,
                created_at=now,
            )
        )
    outside = journal.append_outside(connection, db, run, [run_pb2.Change(approval_decided=decision)])
    return get_approval(connection, workspace_id, decision.approval_id), Written(outside, asked.run_id)


def _same_decision(one: run_pb2.ApprovalDecided, other: run_pb2.ApprovalDecided) -> bool:
    """Whether two say the same, whoever said it and whatever else they noted."""
    said = ("answer_json", "resolution", "verdict", "reason", "edited_arguments_json", "arguments_sha256", "scope")
    return all(getattr(one, name) == getattr(other, name) for name in said)


def list_session_approvals(
    connection: sa.Connection, workspace_id: str, session_id: str, limit: int = MAX_SESSION_APPROVALS
) -> list[run_pb2.SessionApproval]:
    """The approvals that hold for all runs of a session, oldest first; the newest of them where there are too many."""
    check_ids(workspace_id=workspace_id, session_id=session_id)
    a = t.session_approvals.c
    query = sa.select(t.session_approvals).where(a.workspace_id == workspace_id, a.session_id == session_id)
    rows = connection.execute(query.order_by(a.approval_id.desc()).limit(limit)).all()
    return [session_approval_of(row) for row in reversed(rows)]


def _approval_row(connection: sa.Connection, workspace_id: str, approval_id: str) -> sa.Row[Any]:
    a = t.approvals.c
    row = None
    if is_uuid(workspace_id) and is_uuid(approval_id):
        row = connection.execute(
            sa.select(t.approvals).where(a.workspace_id == workspace_id, a.approval_id == approval_id)
        ).one_or_none()
    if row is None:
        raise NotFound("no such question", reason=Reason.APPROVAL_NOT_FOUND, metadata={"approval_id": approval_id})
    return row
