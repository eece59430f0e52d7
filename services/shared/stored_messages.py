"""Where messages stand in a journal."""

from __future__ import annotations

from holdfast.api.common.v1 import content_pb2, run_pb2


def stored_message_of(change: run_pb2.Change) -> content_pb2.StoredMessage | None:
    """Returns the message that a change holds, or None."""
    kind = change.WhichOneof("kind")
    if kind == "run_created":
        return change.run_created.input
    if kind == "step_finished" and change.step_finished.HasField("message"):
        return change.step_finished.message
    if kind == "child_ended" and change.child_ended.HasField("output"):
        return change.child_ended.output
    return None
