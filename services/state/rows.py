"""Rows as the contract's messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as run_store_pb2
from services.state.turns import BATCH

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# Of a run that stands alone, what its row says of a tree.
NO_TREE: Final = {"parent_run_id": None, "parent_step": 0, "root_run_id": None, "depth": 0}


def stamp(moment: datetime) -> Timestamp:
    """A moment as a protobuf timestamp."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def run_of(row: Any) -> run_pb2.Run:
    """A run's row as a Run without its output."""
    # Filled in place, and times without the library's calendar: this is done for each run that is new, claimed or over.
    run = run_pb2.Run(
        run_id=row.run_id,
        session_id=row.session_id,
        agent=row.agent,
        revision=row.revision,
        user_id=row.user_id,
        state=row.state,
        wait_reason=row.wait_reason,
        cancel_requested=row.cancel_requested,
        pause_requested=row.pause_requested,
        last_seq=row.last_seq,
        step_count=row.step_count,
        previous_run_id=row.previous_run_id or "",
        priority=run_pb2.PRIORITY_BATCH if row.lane == BATCH else run_pb2.PRIORITY_INTERACTIVE,
    )
    usage = run.usage
    usage.input_tokens, usage.output_tokens = row.input_tokens, row.output_tokens
    usage.cache_read_input_tokens, usage.cache_write_input_tokens = row.cache_read_tokens, row.cache_write_tokens
    usage.reasoning_output_tokens = row.reasoning_tokens
    if row.unpriced_calls == 0:
        usage.cost_usd_nanos = row.cost_usd_nanos
    _put(run.create_time, row.created_at)
    _put(run.update_time, row.updated_at)
    if row.failure is not None:
        run.failure.ParseFromString(row.failure)
    if row.ended_at is not None:
        _put(run.end_time, row.ended_at)
    if row.expire_at is not None:
        _put(run.expire_time, row.expire_at)
    if row.wake_at is not None:
        _put(run.wake_time, row.wake_at)
    if row.parent_run_id is not None:
        run.parent_run_id, run.parent_step = row.parent_run_id, row.parent_step
        run.root_run_id, run.depth = row.root_run_id, row.depth
    return run


def _put(stamp: Timestamp, moment: datetime) -> None:
    since = moment - _EPOCH
    stamp.seconds, stamp.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1_000


def approval_of(row: sa.Row[Any]) -> run_pb2.Approval:
    """A question's row as an Approval."""
    approval = run_pb2.Approval.FromString(row.body)
    approval.state = row.state
    approval.run_id = row.run_id
    approval.create_time.FromDatetime(row.created_at)
    if row.decided_at is not None:
        approval.decide_time.FromDatetime(row.decided_at)
    if row.decision is not None:
        approval.decision.ParseFromString(row.decision)
    return approval


def session_approval_of(row: sa.Row[Any]) -> run_pb2.SessionApproval:
    """An approval for a session, from its row."""
    return run_pb2.SessionApproval(
        approval_id=row.approval_id,
        run_id=row.run_id,
        tool=row.tool,
        tool_sha256=row.tool_sha256,
        create_time=stamp(row.created_at),
    )


def session_of(row: sa.Row[Any]) -> run_store_pb2.StoredSession:
    """A session's row."""
    return run_store_pb2.StoredSession(
        session_id=row.session_id,
        user_id=row.user_id,
        last_run_id=row.last_run_id or "",
        create_time=stamp(row.created_at),
    )
