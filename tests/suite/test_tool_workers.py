"""Workers that die, lie, repeat themselves or come too late: one result for each call, and no effect twice."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from holdfast import Agent, ToolError, tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import tool_worker_service_pb2 as pb
from holdfast.runs import RunCancelled
from holdfast.testing import call, scripted
from holdfast.tool import Effect, ToolContext, effect_class
from tests.suite.histories import changes_of, check_history, read_history, results_of
from tests.suite.raw_worker import RawWorker
from tests.suite.stages import Stage, question_of
from tests.suite.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# Executes forever, so that it can be killed in the middle.
DOOMED = '''
import sys, time
from holdfast import Worker, tool
from holdfast.tool import ToolContext

def work(context: ToolContext) -> str:
    """Works until it is killed."""
    with open(sys.argv[1], "a") as marks:
        marks.write(context.idempotency_key + "\\n")
    time.sleep(600)
    return "never"

Worker([tool(effect=sys.argv[3], name=sys.argv[2])(work)]).run_forever()
'''


def worker_tool(name: str, effect: Effect, *, heartbeat_seconds: int = 3) -> agent_pb2.ToolSpec:
    spec = agent_pb2.ToolSpec(name=name, worker=agent_pb2.WorkerTool(), effect=effect_class(effect))
    spec.heartbeat_timeout.FromSeconds(heartbeat_seconds)
    return spec


@asynccontextmanager
async def doomed_worker(stage: Stage, marks: Path, name: str, effect: str) -> AsyncIterator[asyncio.subprocess.Process]:
    program = marks.with_suffix(".py")
    program.write_text(DOOMED)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(marks), name, effect, env=stage.environment()
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def kill_in_mid_call(process: asyncio.subprocess.Process, marks: Path) -> str:
    """Kills a worker once it executes, and returns the key under which it did."""
    await until(lambda: marks.exists() and marks.read_text().endswith("\n"))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    return marks.read_text().strip()


async def test_a_call_that_changes_nothing_is_given_to_another_worker_when_its_worker_dies(
    stage: Stage, tmp_path: Path
) -> None:
    keys: list[tuple[str, int]] = []

    @tool(effect="read_only")
    async def peek(context: ToolContext) -> str:
        """Looks."""
        keys.append((context.idempotency_key, context.attempt))
        return "seen"

    agent = Agent("peeker", model=scripted(call("peek"), "{{result}}"), tools=[worker_tool("peek", "read_only")])
    async with asyncio.timeout(60), doomed_worker(stage, tmp_path / "marks", "peek", "read_only") as process:
        handle = await stage.start(agent)
        key = await kill_in_mid_call(process, tmp_path / "marks")
        async with stage.worker(peek):
            assert await handle.result() == "seen"
    events = await read_history(handle)
    check_history(events)
    assert keys == [(key, 2)]
    (lost,) = changes_of(events, "attempt_failed")
    assert lost.attempt_failed.failure.reason == "WORKER_LOST"


@pytest.mark.promise("P5")
async def test_a_call_that_may_have_had_its_effect_is_in_doubt_when_its_worker_dies(
    stage: Stage, tmp_path: Path
) -> None:
    executed: list[str] = []

    @tool
    async def poke(context: ToolContext) -> str:
        """Pokes."""
        executed.append(context.run_id)
        return "poked"

    agent = Agent("poker", model=scripted(call("poke"), "{{result}}"), tools=[worker_tool("poke", "at_most_once")])
    async with asyncio.timeout(60), doomed_worker(stage, tmp_path / "marks", "poke", "at_most_once") as process:
        handle = await stage.start(agent)
        await kill_in_mid_call(process, tmp_path / "marks")
        async with stage.worker(poke):
            question = await question_of(handle)
            assert question.kind == run_pb2.APPROVAL_KIND_IN_DOUBT
            await stage.client.approvals.resolve(question.approval_id, "tell_model")
            assert "unknown" in await handle.result()
    check_history(await read_history(handle))
    assert executed == []


@pytest.mark.promise("P7")
@pytest.mark.parametrize("garbage", ["{not json", "", "NaN", '"\\ud800"'])
async def test_a_result_that_is_no_json_is_the_tools_failure(stage: Stage, garbage: str) -> None:
    spec = worker_tool("mumble", "at_most_once")
    agent = Agent("listener", model=scripted(call("mumble"), "{{result}}"), tools=[spec])
    async with asyncio.timeout(30), RawWorker(stage.suite.address(), stage.suite.api_key, "mumble") as worker:
        handle = await stage.start(agent)
        offer = await worker.offered()
        await worker.begin(offer)
        await worker.complete(offer.lease, result_json=garbage)
        await handle.result()
    view = check_history(await read_history(handle))
    assert results_of(view)["mumble"].is_error


@pytest.mark.promise("P7")
async def test_a_report_that_is_repeated_counts_once_and_another_one_is_late(stage: Stage) -> None:
    agent = Agent("stutter", model=scripted(call("st"), "{{result}}"), tools=[worker_tool("st", "at_most_once")])
    async with asyncio.timeout(30), RawWorker(stage.suite.address(), stage.suite.api_key, "st") as worker:
        handle = await stage.start(agent)
        offer = await worker.offered()
        await worker.begin(offer)
        await asyncio.gather(*(worker.complete(offer.lease, result_json='"once"') for _ in range(5)))
        assert await handle.result() == "once"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.complete(offer.lease, result_json='"twice"')
        assert refused.value.code() == grpc.StatusCode.ABORTED
        await worker.complete(offer.lease, result_json='"once"')
        run = await handle.get()
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    check_history(await read_history(handle))


async def test_a_report_after_the_end_of_the_run_is_kept_as_late(stage: Stage) -> None:
    agent = Agent("latecomer", model=scripted(call("late"), "never"), tools=[worker_tool("late", "at_most_once")])
    async with asyncio.timeout(30), RawWorker(stage.suite.address(), stage.suite.api_key, "late") as worker:
        handle = await stage.start(agent)
        offer = await worker.offered()
        await worker.begin(offer)
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
        before = (await handle.get()).last_seq
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.complete(offer.lease, result_json='"too late"')
        assert refused.value.code() == grpc.StatusCode.ABORTED
        run = await handle.get()
    assert run.last_seq == before + 1
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    check_history(await read_history(handle))


async def test_a_call_that_takes_too_long_is_in_doubt_and_its_result_comes_too_late(stage: Stage) -> None:
    spec = worker_tool("slow_poke", "at_most_once", heartbeat_seconds=60)
    spec.timeout.FromSeconds(1)
    spec.in_doubt = agent_pb2.IN_DOUBT_POLICY_TELL_MODEL
    agent = Agent("impatient", model=scripted(call("slow_poke"), "{{result}}"), tools=[spec])
    async with asyncio.timeout(30), RawWorker(stage.suite.address(), stage.suite.api_key, "slow_poke") as worker:
        handle = await stage.start(agent)
        offer = await worker.offered()
        await worker.begin(offer)
        assert "unknown" in await handle.result()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.complete(offer.lease, result_json='"at last"')
        assert refused.value.code() == grpc.StatusCode.ABORTED
    events = await read_history(handle)
    check_history(events)
    (failed,) = changes_of(events, "attempt_failed")
    assert failed.attempt_failed.failure.reason == "CALL_TIMEOUT"


async def test_an_offer_that_a_worker_leaves_behind_goes_to_another_one(stage: Stage) -> None:
    @tool
    async def lift(context: ToolContext) -> str:
        """Lifts."""
        return "lifted"

    agent = Agent("lifter", model=scripted(call("lift"), "{{result}}"), tools=[lift])
    async with asyncio.timeout(30):
        handle = await stage.start(agent)
        async with RawWorker(stage.suite.address(), stage.suite.api_key, "lift") as lazy:
            assert (await lazy.offered()).run_id == handle.id
        async with stage.worker(lift):
            assert await handle.result() == "lifted"
    check_history(await read_history(handle))


async def test_a_tool_says_whether_it_may_be_tried_again_and_whether_it_knows_what_it_did(stage: Stage) -> None:
    attempts: list[int] = []

    @tool
    async def try_it(context: ToolContext) -> str:
        """Succeeds at the second attempt."""
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise ToolError("not yet", retryable=True)
        return "done"

    @tool
    async def lose_it(context: ToolContext) -> str:
        """Does not know what it did."""
        raise ToolError("the line went dead", outcome_unknown=True)

    lost = lose_it.spec()
    lost.in_doubt = agent_pb2.IN_DOUBT_POLICY_FAIL_RUN
    again = try_it.spec()
    again.retry.initial_interval.FromMilliseconds(10)
    async with asyncio.timeout(30), stage.worker(try_it, lose_it):
        handle = await stage.start(Agent("trying", model=scripted(call("try_it"), "{{result}}"), tools=[again]))
        assert await handle.result() == "done"
        assert attempts == [1, 2]
        check_history(await read_history(handle))
        handle = await stage.start(Agent("losing", model=scripted(call("lose_it"), "never"), tools=[lost]))
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert "the line went dead" in run.failure.message
    check_history(await read_history(handle))


async def test_a_worker_that_says_nothing_sensible_is_told_so(stage: Stage) -> None:
    async with asyncio.timeout(20), RawWorker(stage.suite.address(), stage.suite.api_key, "x") as worker:
        for lease in ("unknown", "", "x" * 10_000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await worker.complete(lease, result_json="1")
            assert refused.value.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.complete("unknown")
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.complete("unknown", error=pb.CallError(message="x"))
        assert refused.value.code() == grpc.StatusCode.ABORTED
