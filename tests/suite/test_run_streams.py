"""Many runs over one stream: each is one run, accepted or refused for itself, whatever happens to the stream."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC
from itertools import pairwise

import grpc.aio
import pytest

from holdfast import Agent
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import run_service_pb2
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.errors import NotFound, Unavailable
from holdfast.ids import new_uuid7
from holdfast.runs import RunCancelled
from holdfast.testing import Suite, call, scripted, turn
from tests.suite.effects import Gate
from tests.suite.stages import Stage, question_of, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
NOOP = agent_pb2.ToolSpec(name="noop", builtin=agent_pb2.BuiltinTool(name="noop"))
ASK = agent_pb2.ToolSpec(name="ask_user", builtin=agent_pb2.BuiltinTool(name="ask_user"))


def agent(name: str, answer: str = "done") -> Agent:
    return Agent(name, model=scripted(turn("", call("noop")), answer), tools=[NOOP])


async def test_runs_of_a_stream_end_with_their_outputs(stage: Stage) -> None:
    await stage.client.apply(agent("streamed"))
    async with asyncio.timeout(30), stage.client.run_stream() as stream:
        ended = await asyncio.gather(*(stream.run("streamed", f"number {number}") for number in range(50)))
    assert {run.state for run in ended} == {SUCCEEDED}
    assert {run.output.parts[0].text for run in ended} == {"done"}
    assert len({run.run_id for run in ended}) == 50


async def test_a_refused_order_says_why_and_its_neighbours_run(stage: Stage) -> None:
    await stage.client.apply(agent("streamed"))
    async with asyncio.timeout(30), stage.client.run_stream() as stream:
        good, bad = stream.run("streamed", "go"), stream.run("nobody", "go")
        results = await asyncio.gather(good, bad, return_exceptions=True)
    assert isinstance(results[0], run_pb2.Run)
    assert isinstance(results[1], NotFound)
    assert results[1].reason == "AGENT_NOT_FOUND"


async def test_the_same_request_id_is_the_same_run(stage: Stage) -> None:
    await stage.client.apply(agent("streamed"))
    request_id = new_uuid7()
    async with asyncio.timeout(30), stage.client.run_stream() as stream:
        first = await stream.run("streamed", "go", request_id=request_id)
        again = await stream.run("streamed", "go", request_id=request_id)
        started = await stream.start("streamed", "go", request_id=request_id)
    assert first.run_id == again.run_id == started.run_id


async def test_a_request_that_is_repeated_while_its_run_makes_a_call_makes_no_second_call(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay", gate.answer)
    paying = Agent("paying", model=scripted(call("pay"), "done"), tools=[stage.tool("pay")])
    await stage.client.apply(paying)
    request_id = new_uuid7()
    async with asyncio.timeout(30), stage.client.run_stream() as stream:
        first = await stream.start("paying", "go", request_id=request_id)
        await stage.http.until(lambda: len(stage.http.of(first.run_id, "/pay")) == 1)
        for _ in range(5):
            again = await stream.start("paying", "go", request_id=request_id)
            assert again.run_id == first.run_id
        gate.open()
        await (await stage.client.run(first.run_id)).result()
    assert len(stage.http.of(first.run_id, "/pay")) == 1


async def test_a_new_revision_is_followed_by_the_next_run(stage: Stage) -> None:
    async with asyncio.timeout(30), stage.client.run_stream() as stream:
        for number in range(5):
            await stage.client.apply(agent("moving", f"answer {number}"))
            run = await stream.run("moving", "go")
            assert run.output.parts[0].text == f"answer {number}"


async def test_a_stream_that_the_client_half_closes_ends_after_the_last_answer(stage: Stage) -> None:
    await stage.client.apply(agent("streamed"))
    metadata = (("authorization", f"Bearer {stage.suite.api_key}"),)
    async with asyncio.timeout(30), grpc.aio.insecure_channel(stage.suite.address()) as channel:
        stream = RunServiceStub(channel).StartRuns(metadata=metadata)
        request = run_service_pb2.StartRunRequest(agent="streamed", text="go")
        orders = [run_service_pb2.RunOrder(id=number, run=request, await_end=True) for number in (1, 2)]
        await stream.write(run_service_pb2.StartRunsRequest(runs=orders))
        await stream.done_writing()
        kinds = [(answer.id, answer.WhichOneof("kind")) async for frame in stream for answer in frame.answers]
        assert sorted(kinds) == [(1, "accepted"), (1, "ended"), (2, "accepted"), (2, "ended")]
        assert await stream.code() == grpc.StatusCode.OK


async def test_a_wait_ends_with_the_run_and_not_before(stage: Stage) -> None:
    asking = Agent("asking", model=scripted(turn("", call("ask_user", question="Well?")), "so be it"), tools=[ASK])
    handle = await stage.start(asking)
    async with asyncio.timeout(30):
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        waiting = asyncio.create_task(handle.wait())
        question = await question_of(handle)
        await stage.client.approvals.answer(question.approval_id, "yes")
        assert (await waiting).output.parts[0].text == "so be it"


async def test_a_wait_for_a_cancelled_run_ends(stage: Stage) -> None:
    asking = Agent("asking", model=scripted(turn("", call("ask_user", question="Well?")), "so be it"), tools=[ASK])
    handle = await stage.start(asking)
    async with asyncio.timeout(30):
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        waiting = asyncio.create_task(handle.result())
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await waiting


async def test_an_executor_drives_no_more_runs_than_it_has_slots_for() -> None:
    slow = Agent("slow", model=scripted(turn("done", delay=0.1)))
    settings = {"HOLDFAST_MAX_RUNS": "1"}
    async with asyncio.timeout(60), Suite(settings=settings) as suite, suite.client() as client:
        await client.apply(slow)
        async with client.run_stream() as stream:
            runs = await asyncio.gather(*(stream.run("slow", "go") for _ in range(8)))
        times = []
        for run in runs:
            events = [event async for event in (await client.run(run.run_id)).events()]
            claimed = next(e for e in events if any(c.HasField("run_claimed") for c in e.changes))  # type: ignore[union-attr]
            times.append((claimed.time, run.end_time.ToDatetime(tzinfo=UTC)))  # type: ignore[union-attr]
    times.sort()
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(times))


async def test_orders_survive_the_executor_and_state() -> None:
    async with asyncio.timeout(60), Suite(executors=2) as suite, suite.client(executor="executor-2") as client:
        await client.apply(agent("streamed"))
        async with client.run_stream() as stream:
            runs = [asyncio.create_task(stream.run("streamed", "go")) for _ in range(100)]
            await stream.start("streamed", "first")
            await suite.kill("executor")
            await suite.kill("state")
            await suite.restart("state")
            ended = await asyncio.gather(*runs)
            await suite.kill("executor-2")
            more = [asyncio.create_task(stream.run("streamed", "go")) for _ in range(100)]
            await suite.restart("executor-2")
            ended += await asyncio.gather(*more)
        listed = [run.run_id async for run in client.runs.list(agent="streamed")]
    assert {run.state for run in ended} == {SUCCEEDED}
    # One run for each order, and the one that was only started.
    assert len({run.run_id for run in ended}) == 200
    assert len(listed) == len(set(listed)) == 201


async def test_a_run_whose_creation_was_not_answered_is_one_run_and_driven() -> None:
    settings = {"state": {"HOLDFAST_CRASH_POINT": "state.after_commit:1"}}
    async with asyncio.timeout(60), Suite(service_settings=settings) as suite, suite.client() as client:
        await client.apply(agent("streamed"))
        async with client.run_stream() as stream:
            running = asyncio.create_task(stream.run("streamed", "go"))
            # Dead between the commit that creates and claims the run, and its answer.
            await suite.wait_for_exit("state")
            await suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
            ended = await running
        listed = [run.run_id async for run in client.runs.list(agent="streamed")]
    assert ended.state == SUCCEEDED
    assert listed == [ended.run_id]


async def test_a_run_that_was_claimed_as_it_was_created_is_taken_over() -> None:
    async with asyncio.timeout(60), Suite(executors=2) as suite, suite.client() as client:
        await client.apply(agent("streamed"))
        await suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": "executor.before_commit:1"})
        request_id = new_uuid7()
        # Dead with the claim stored, and nothing else of the run; the answer may have been sent or not.
        with suppress(Unavailable):
            await client.start("streamed", "go", request_id=request_id)
        await suite.wait_for_exit("executor")
        async with suite.client(executor="executor-2") as other:
            ended = await (await other.start("streamed", "go", request_id=request_id)).wait()
            listed = [run.run_id async for run in other.runs.list(agent="streamed")]
    assert ended.state == SUCCEEDED
    assert listed == [ended.run_id]
