"""Joined messages are the bytes that the library writes."""

from __future__ import annotations

import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from services.shared.wire import embedded, number_tag_of, repeated, tag_of, whole_number


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 16_383, 16_384, 300_000])
def test_a_joined_operation_is_the_one_that_the_library_writes(length: int) -> None:
    part = content_pb2.Part(text="x" * length)
    finished = run_pb2.StepFinished(message=content_pb2.StoredMessage(message=content_pb2.Message(parts=[part])))
    transition = pb.Transition(run_id="r", seq=300, changes=[run_pb2.Change(step_finished=finished)])
    joined = pb.Operation(id=7).SerializeToString() + embedded(
        tag_of(pb.Operation, "transition"), transition.SerializeToString()
    )
    assert joined == pb.Operation(id=7, transition=transition).SerializeToString()


@pytest.mark.parametrize("seq", [1, 127, 128, 16_383, 16_384, 2**40, 2**63 - 1])
def test_a_joined_number_is_the_one_that_the_library_writes(seq: int) -> None:
    assert whole_number(number_tag_of(pb.Transition, "seq"), seq) == pb.Transition(seq=seq).SerializeToString()


def test_joined_repeated_messages_are_the_ones_that_the_library_writes() -> None:
    changes = [run_pb2.Change(step_started=run_pb2.StepStarted(step=number)) for number in range(300)]
    joined = repeated(tag_of(run_pb2.Event, "changes"), [change.SerializeToString() for change in changes])
    assert joined == run_pb2.Event(changes=changes).SerializeToString()
    assert repeated(tag_of(run_pb2.Event, "changes"), []) == b""
