"""Questions to people: what clients read of them, and the one decision that each can have."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.rows import approval_of, session_approval_of
from services.state.run_store import Written, check_ids, is_in_tree

# A page of them: there is one for each tool of an agent, or a few.
MAX_SESSION_APPROVALS = 1_000


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
