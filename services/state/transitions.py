"""The one table of what may happen to a run, and the rules of a transition's shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import InvalidArgument
from holdfast.ids import is_uuid

QUEUED: Final = run_pb2.RUN_STATE_QUEUED
RUNNING: Final = run_pb2.RUN_STATE_RUNNING
WAITING: Final = run_pb2.RUN_STATE_WAITING
SUCCEEDED: Final = run_pb2.RUN_STATE_SUCCEEDED
FAILED: Final = run_pb2.RUN_STATE_FAILED
CANCELLED: Final = run_pb2.RUN_STATE_CANCELLED
PAUSED: Final = run_pb2.RUN_STATE_PAUSED
EXPIRED: Final = run_pb2.RUN_STATE_EXPIRED
BUDGET_EXCEEDED: Final = run_pb2.RUN_STATE_BUDGET_EXCEEDED

ENDED: Final = frozenset({SUCCEEDED, FAILED, CANCELLED, EXPIRED, BUDGET_EXCEEDED})

ALLOWED: Final[dict[run_pb2.RunState, frozenset[run_pb2.RunState]]] = {
    QUEUED: frozenset({RUNNING, PAUSED, CANCELLED, EXPIRED}),
    RUNNING: frozenset({QUEUED, WAITING, PAUSED, *ENDED}),
    WAITING: frozenset({QUEUED, PAUSED, EXPIRED}),
    PAUSED: frozenset({QUEUED, CANCELLED, EXPIRED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
    EXPIRED: frozenset(),
    BUDGET_EXCEEDED: frozenset(),
}
"""From a state to those it may become. RUNNING to QUEUED is a lease that was lost or given back."""

BY_DRIVER: Final = ALLOWED[RUNNING] - {QUEUED}
"""What a transition may make of a run."""

DRIVER_CHANGES: Final = frozenset(
    {
        "run_claimed",
        "step_started",
        "attempt_started",
        "attempt_failed",
        "step_finished",
        "step_in_doubt",
        "run_state_changed",
        "approval_requested",
        "approval_closed",
    }
)
"""Changes that a driver writes; the others are written by state."""

_CLOSED: Final = frozenset({run_pb2.APPROVAL_STATE_EXPIRED, run_pb2.APPROVAL_STATE_CANCELLED})

MAX_CHANGES: Final = 2_000
MAX_TTL_SECONDS: Final = 400 * 86_400


def check_transition(transition: journal_pb2.Transition) -> list[str]:
    """Refuses a transition that could not be applied to any run.

    Returns:
        Of each of its changes, the kind.

    Raises:
        InvalidArgument: What is wrong with it.
    """
    if not is_uuid(transition.workspace_id) or not is_uuid(transition.run_id):
        raise _wrong("run_id", "workspace_id and run_id must be UUIDs")
    if transition.seq < 2 or transition.epoch < 1:
        raise _wrong("seq", "a driver's events begin at seq 2 and epoch 1")
    if not transition.changes:
        raise _wrong("changes", "a transition has at least one change")
    if len(transition.changes) > MAX_CHANGES:
        raise _wrong("changes", f"a transition has at most {MAX_CHANGES} changes")
    last = len(transition.changes) - 1
    kinds: list[str] = []
    # Runs that it starts, as its changes name them.
    named: dict[str, tuple[int, int]] = {}
    for index, change in enumerate(transition.changes):
        kind = change.WhichOneof("kind")
        if kind is None or kind not in DRIVER_CHANGES:
            raise _wrong(f"changes[{index}]", f"a driver does not write {kind or 'an empty change'}")
        kinds.append(kind)
        if child := _child_of(change, kind):
            named[child[0]] = child[1:]
        if kind == "approval_requested" and not is_uuid(change.approval_requested.approval.approval_id):
            raise _wrong(f"changes[{index}].approval_requested.approval.approval_id", "must be a UUID")
        if kind == "approval_closed":
            if not is_uuid(change.approval_closed.approval_id):
                raise _wrong(f"changes[{index}].approval_closed.approval_id", "must be a UUID")
            if change.approval_closed.state not in _CLOSED:
                raise _wrong(f"changes[{index}].approval_closed.state", "a closed question has expired or is cancelled")
        if kind == "run_state_changed":
            if index != last:
                raise _wrong(f"changes[{index}]", "run_state_changed is the last change")
            if change.run_state_changed.state not in BY_DRIVER:
                raise _wrong(f"changes[{index}].run_state_changed.state", "a driver makes a run wait, pause or end")
            if transition.calls and change.run_state_changed.state in ENDED:
                raise _wrong("calls", "a run that ends has no calls to make")
            if transition.children and change.run_state_changed.state in ENDED:
                raise _wrong("children", "a run that ends starts no others")
    for index, call in enumerate(transition.calls):
        _check_call(f"calls[{index}]", call)
    if named or transition.children:
        _check_children(transition, named)
    check_blobs("transition.blobs", transition.blobs)
    return kinds


def _child_of(change: run_pb2.Change, kind: str) -> tuple[str, int, int] | None:
    """The run that a change says to start, with the step and the attempt that wait for it."""
    if kind == "step_started" and change.step_started.kind == run_pb2.STEP_KIND_CHILD:
        started = change.step_started
        return (started.tool.child_run_id, started.step, 1) if started.tool.child_run_id else None
    if kind == "attempt_started" and change.attempt_started.child_run_id:
        attempt = change.attempt_started
        return attempt.child_run_id, attempt.step, attempt.attempt
    return None


def _check_children(transition: journal_pb2.Transition, named: dict[str, tuple[int, int]]) -> None:
    # Invariant: a step waits for a child exactly if that is stored with it.
    for index, child in enumerate(transition.children):
        field = f"children[{index}]"
        check_run(child)
        if child.workspace_id != transition.workspace_id or child.parent.run_id != transition.run_id:
            raise _wrong(field, "a child is one of this run's")
        if named.pop(child.run_id, None) != (child.parent.step, child.parent.attempt):
            raise _wrong(field, "no change of this transition starts it")
        if child.parent.depth < 1 or child.request_id or child.claim_for:
            raise _wrong(field, "a child has a depth, and is nobody else's request")
    if named:
        raise _wrong("children", "a run that a change starts is missing")


def check_new_run(new_run: journal_pb2.NewRun) -> None:
    """Refuses a new run that could not be stored by itself.

    Raises:
        InvalidArgument: What is wrong with it.
    """
    if new_run.HasField("parent"):
        raise InvalidArgument("a child is stored with the transition of its parent", field="new_run.parent")
    check_run(new_run)


def check_run(new_run: journal_pb2.NewRun) -> None:
    """Refuses a new run that could not be stored.

    Raises:
        InvalidArgument: What is wrong with it.
    """
    ids = [new_run.workspace_id, new_run.run_id]
    if not new_run.HasField("parent"):
        # A child is in its parent's session.
        ids.append(new_run.session_id or new_run.new_session_id)
    if not all(is_uuid(value) for value in ids):
        raise InvalidArgument("workspace_id, run_id and the session's id must be UUIDs", field="new_run.run_id")
    if not new_run.agent or not new_run.revision or not new_run.HasField("input"):
        raise InvalidArgument("a run has an agent, a revision and an input", field="new_run.agent")
    if new_run.HasField("ttl") and (new_run.ttl.seconds, new_run.ttl.nanos) <= (0, 0):
        raise InvalidArgument("must be longer than nothing", field="new_run.ttl")
    if new_run.ttl.seconds > MAX_TTL_SECONDS:
        raise InvalidArgument(f"must be {MAX_TTL_SECONDS} s or less", field="new_run.ttl")
    if new_run.claim_for and not is_uuid(new_run.claim_for):
        raise InvalidArgument("must be a UUID", field="new_run.claim_for")
    check_blobs("new_run.blobs", new_run.blobs)


def check_blobs(field: str, blobs: Iterable[content_pb2.Blob]) -> None:
    """Refuses a body under a hash that is not its own: everybody who refers to the hash later would be given it.

    Raises:
        InvalidArgument: Which of them is wrong.
    """
    for index, blob in enumerate(blobs):
        if hashlib.sha256(blob.data).digest() != blob.hash:
            raise InvalidArgument("the hash is not the SHA-256 of the data", field=f"{field}[{index}].hash")


def _check_call(field: str, call: journal_pb2.NewCall) -> None:
    if call.step < 1 or call.attempt < 1 or not call.tool:
        raise _wrong(field, "a call has a step, an attempt and a tool")
    if not call.HasField("start_deadline"):
        raise _wrong(f"{field}.start_deadline", "is required")
    for name in ("timeout", "heartbeat_timeout"):
        duration = getattr(call, name)
        if (duration.seconds, duration.nanos) <= (0, 0):
            raise _wrong(f"{field}.{name}", "must be longer than nothing")


def _wrong(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, field=f"transition.{field}")
