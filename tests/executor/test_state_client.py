"""The journal's stream from the executor's side: answers find their operations, and a lost answer loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.api.state.v1.journal_service_pb2_grpc import (
    JournalServiceServicer,
    add_JournalServiceServicer_to_server,
)
from holdfast.errors import Conflict, FailedPrecondition, LeaseLost, Reason
from services.executor.state_client import ANSWERS_AT_ONCE, JournalClient, in_call_order


class FakeJournal(JournalServiceServicer):
    """Applies operations by run and seq, once; may break its stream after applying and before answering."""

    def __init__(self) -> None:
        self.applied: list[tuple[str, int]] = []
        self.frames: list[int] = []
        self.deltas: list[str] = []
        self.breaks_left = 0
        self.refusals: dict[str, pb.Refused] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def Checkpoint(
        self, request_iterator: AsyncIterator[pb.CheckpointRequest], context: Any
    ) -> AsyncIterator[pb.CheckpointResponse]:
        async for frame in request_iterator:
            await self.gate.wait()
            self.deltas += [delta.text for delta in frame.deltas]
            if not frame.operations:
                continue
            self.frames.append(len(frame.operations))
            results = [self._apply(operation) for operation in frame.operations]
            if self.breaks_left:
                self.breaks_left -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield pb.CheckpointResponse(results=reversed(results))

    def _apply(self, operation: pb.Operation) -> pb.OperationResult:
        transition = operation.transition
        refused = self.refusals.get(transition.run_id)
        if refused is not None:
            return pb.OperationResult(id=operation.id, refused=refused)
        if (transition.run_id, transition.seq) not in self.applied:
            self.applied.append((transition.run_id, transition.seq))
        return pb.OperationResult(id=operation.id, committed=pb.Committed(seq=transition.seq))


def fake_journal() -> FakeJournal:
    # Only the stream is served here; the other methods answer UNIMPLEMENTED, as the generated class has it.
    made: FakeJournal = cast(Any, FakeJournal)()
    return made


@asynccontextmanager
async def serving(journal: FakeJournal) -> AsyncIterator[JournalClient]:
    server = grpc.aio.server()
    add_JournalServiceServicer_to_server(journal, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = JournalClient(channel)
        running = asyncio.create_task(client.run())
        try:
            async with asyncio.timeout(20):
                yield client
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await server.stop(None)


def transition(run: str, seq: int = 2) -> pb.Transition:
    return pb.Transition(run_id=run, seq=seq, epoch=1)


async def test_operations_of_many_runs_share_frames_and_each_gets_its_own_answer() -> None:
    journal = fake_journal()
    journal.gate.clear()
    async with serving(journal) as client:
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(client.commit(transition(f"r{n}", n + 2).SerializeToString())) for n in range(300)
            ]
            await asyncio.sleep(0)
            journal.gate.set()
        assert [task.result().seq for task in waiting] == [n + 2 for n in range(300)]
    assert len(journal.frames) < 10


async def test_runs_that_were_answered_together_go_on_in_groups() -> None:
    journal = fake_journal()
    journal.gate.clear()
    async with serving(journal) as client:

        async def two_steps(run: str) -> None:
            await client.commit(transition(run, 2).SerializeToString())
            await client.commit(transition(run, 3).SerializeToString())

        async with asyncio.TaskGroup() as tasks:
            for n in range(3 * ANSWERS_AT_ONCE):
                tasks.create_task(two_steps(f"r{n}"))
            await asyncio.sleep(0)
            journal.gate.set()
    first, *others = journal.frames
    assert first == 3 * ANSWERS_AT_ONCE
    # What the first of them decide is on its way before the last of them have their answers.
    assert others[0] <= ANSWERS_AT_ONCE
    assert sum(others) == 3 * ANSWERS_AT_ONCE


@pytest.mark.promise("P1")
async def test_an_operation_whose_answer_was_lost_is_sent_again_and_applied_once() -> None:
    journal = fake_journal()
    journal.breaks_left = 3
    async with serving(journal) as client:
        answers = await asyncio.gather(*(client.commit(transition("r", seq).SerializeToString()) for seq in (2, 3, 4)))
    assert [answer.seq for answer in answers] == [2, 3, 4]
    assert journal.applied == [("r", 2), ("r", 3), ("r", 4)]


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("LEASE_LOST", grpc.StatusCode.ABORTED, LeaseLost),
        ("CONFLICT", grpc.StatusCode.ABORTED, Conflict),
        ("SESSION_BUSY", grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
    ],
)
async def test_a_refusal_is_raised_as_the_error_it_stands_for(
    reason: str, code: grpc.StatusCode, expected: type[Exception]
) -> None:
    journal = fake_journal()
    journal.refusals["r"] = pb.Refused(reason=reason, code=code.value[0], message="no")
    async with serving(journal) as client:
        with pytest.raises(expected) as caught:
            await client.commit(transition("r").SerializeToString())
    assert getattr(caught.value, "reason", "") == Reason(reason)


async def test_a_caller_that_gives_up_does_not_disturb_the_others() -> None:
    journal = fake_journal()
    journal.gate.clear()
    async with serving(journal) as client:
        given_up = asyncio.create_task(client.commit(transition("a").SerializeToString()))
        kept = asyncio.create_task(client.commit(transition("b").SerializeToString()))
        await asyncio.sleep(0)
        given_up.cancel()
        journal.gate.set()
        assert (await kept).seq == 2


async def test_pieces_of_answers_travel_with_the_operations() -> None:
    journal = fake_journal()
    async with serving(journal) as client:
        client.send_delta(run_pb2.Delta(run_id="r", text="hel"))
        client.send_delta(run_pb2.Delta(run_id="r", text="lo"))
        await client.commit(transition("r").SerializeToString())
    assert "".join(journal.deltas) == "hello"


def test_results_of_a_turn_are_put_in_the_order_of_its_calls() -> None:
    def message(role: content_pb2.Role, **part: Any) -> content_pb2.Message:
        return content_pb2.Message(role=role, parts=[content_pb2.Part(**part)])

    assistant = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
    for call_id in ("a", "b"):
        assistant.parts.add(tool_call=content_pb2.ToolCall(call_id=call_id))
    results = [
        message(content_pb2.ROLE_TOOL, tool_result=content_pb2.ToolResult(call_id=call_id)) for call_id in ("b", "a")
    ]
    last = message(content_pb2.ROLE_ASSISTANT, text="done")
    ordered = in_call_order([message(content_pb2.ROLE_USER, text="hi"), assistant, *results, last])
    assert [m.parts[0].tool_result.call_id for m in ordered[2:4]] == ["a", "b"]
    assert ordered[-1] is last
