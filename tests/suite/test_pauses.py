"""Pausing and resuming with real processes: no effect is interrupted, and a pause outlives its executor."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from holdfast import Agent
from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, NotFound
from holdfast.ids import new_uuid7
from holdfast.runs import RunHandle
from holdfast.testing import call, scripted
from tests.suite.effects import Gate
from tests.suite.histories import changes_of, check_history, read_history
from tests.suite.stages import Stage, question_of, until_change, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PAUSED = run_pb2.RUN_STATE_PAUSED


async def until_paused(handle: RunHandle) -> None:
    await until_change(handle, lambda change: change.run_state_changed.state == PAUSED)


async def test_run_that_waits_is_paused_at_once_and_its_answer_counts_when_it_is_resumed(stage: Stage) -> None:
    agent = Agent("asker", model=scripted(call("ask_user", question="Go?"), "went"), tools=["ask_user"])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        question = await question_of(handle)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        paused = await stage.command("runs", "pause", handle.id, "--reason", "lunch")
        assert paused["state"] == "RUN_STATE_PAUSED"
        assert [run.run_id async for run in stage.client.runs.list(states=[PAUSED])] == [handle.id]
        behind = await stage.client.start(agent, "and then", session_id=handle.run.session_id)
        await stage.client.approvals.answer(question.approval_id, "yes")
        assert (await handle.get()).state == PAUSED
        assert (await behind.get()).state == run_pb2.RUN_STATE_QUEUED
        resumed = await stage.command("runs", "resume", handle.id)
        assert resumed["state"] == "RUN_STATE_QUEUED"
        assert await handle.result() == "went"
        await stage.client.approvals.answer((await question_of(behind)).approval_id, "yes")
        assert await behind.result() == "went"
    events = await read_history(handle)
    check_history(events)
    [asked] = changes_of(events, "pause_requested")
    assert asked.pause_requested.reason == "lunch" and asked.pause_requested.requested_by
    with pytest.raises(FailedPrecondition):
        await stage.client.pause(handle.id)
    with pytest.raises(NotFound):
        await stage.client.resume(new_uuid7())


async def test_call_under_way_ends_before_its_run_is_paused_and_nothing_is_begun(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_slowly", gate.answer)
    agent = Agent("payer", model=scripted(call("pay_slowly"), "done"), tools=[stage.tool("pay_slowly")])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/pay_slowly")))
        asked = await handle.pause("stop")
        assert (asked.state, asked.pause_requested) == (run_pb2.RUN_STATE_RUNNING, True)
        gate.open()
        await until_paused(handle)
        run = await handle.get()
        assert run.step_count == 2, "the model's next step has not begun"
        await handle.resume()
        assert await handle.result() == "done"
    check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/pay_slowly")) == 1


async def test_pause_outlives_the_executor_and_what_it_had_under_way_is_in_doubt(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_once", gate.answer)
    agent = Agent("once", model=scripted(call("pay_once"), "done"), tools=[stage.tool("pay_once")])
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/pay_once")))
        await handle.pause()
        await stage.suite.kill("executor")
        await stage.suite.restart("executor")
        # The next driver takes it over, and pauses it: it makes no call and asks nobody.
        await until_paused(handle)
        assert (await handle.get()).state == PAUSED
        gate.open()
        await handle.resume()
        question = await question_of(handle)
        assert question.kind == run_pb2.APPROVAL_KIND_IN_DOUBT
        # A call in doubt can be resolved while its run is paused.
        await until_waiting(handle, run_pb2.WAIT_REASON_IN_DOUBT)
        assert (await handle.pause()).state == PAUSED
        await stage.client.approvals.resolve(question.approval_id, "done", result="paid")
        assert (await handle.get()).state == PAUSED
        await handle.resume()
        assert await handle.result() == "done"
    check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/pay_once")) == 1, "what may have happened is not done again"


async def test_paused_run_is_cancelled(stage: Stage) -> None:
    agent = Agent("sleeper", model=scripted(call("sleep_until", seconds=3_600), "slept"), tools=["sleep_until"])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        await until_waiting(handle, run_pb2.WAIT_REASON_TIMER)
        await handle.pause()
        await handle.cancel("enough")
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
    check_history(await read_history(handle))


@pytest.mark.parametrize("crash_point", ["executor.before_commit", "executor.after_commit"])
async def test_driver_that_dies_as_it_pauses_leaves_a_run_that_is_paused(stage: Stage, crash_point: str) -> None:
    path = f"/pay_at_{crash_point.rpartition('.')[2]}"
    gate = Gate("paid")
    stage.http.on(path, gate.answer)
    agent = Agent("fragile", model=scripted(call(path[1:]), "done"), tools=[stage.tool(path[1:], effect="idempotent")])
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, path)))
        await handle.pause()
        await stage.suite.kill("executor")
        # The only thing that the next one has to store is that the run is paused.
        stage.suite.launch("executor", settings={"HOLDFAST_CRASH_POINT": crash_point})
        assert await stage.suite.wait_for_exit("executor") == 137
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": ""})
        await until_paused(handle)
        assert len(stage.http.of(handle.id, path)) == 1
        gate.open()
        await handle.resume()
        assert await handle.result() == "done"
    events = await read_history(handle)
    check_history(events)
    states = [change.run_state_changed.state for change in changes_of(events, "run_state_changed")]
    assert states == [PAUSED, run_pb2.RUN_STATE_SUCCEEDED]
    assert len({made.key for made in stage.http.of(handle.id, path)}) == 1


# What state has committed and not answered: the same request again is answered, and stored once.
UNANSWERED = "state.outside.after_commit"


@pytest.mark.promise("P1")
async def test_pause_of_a_run_that_waits_and_its_resume_are_stored_once_although_state_died(stage: Stage) -> None:
    agent = Agent("asker", model=scripted(call("ask_user", question="Go?"), "went"), tools=["ask_user"])
    async with asyncio.timeout(80):
        handle = await stage.start(agent)
        question = await question_of(handle)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        paused = await stage.answered_again(UNANSWERED, partial(handle.pause, "lunch", request_id=new_uuid7()))
        assert (paused.state, paused.pause_requested) == (PAUSED, True)
        resumed = await stage.answered_again(UNANSWERED, partial(handle.resume, "back", request_id=new_uuid7()))
        assert (resumed.state, resumed.pause_requested) != (PAUSED, True)
        await stage.client.approvals.answer(question.approval_id, "yes")
        assert await handle.result() == "went"
    check_pauses(await read_history(handle), 1)


@pytest.mark.promise("P1")
async def test_driver_learns_of_a_pause_and_of_its_end_although_state_died(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_unheard", gate.answer)
    agent = Agent("unheard", model=scripted(call("pay_unheard"), "done"), tools=[stage.tool("pay_unheard")])
    async with asyncio.timeout(100):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/pay_unheard")))
        for ask, is_to_pause in ((handle.pause, True), (handle.resume, False), (handle.pause, True)):
            run = await stage.answered_again(UNANSWERED, partial(ask, "unheard", request_id=new_uuid7()))
            assert (run.state, run.pause_requested) == (run_pb2.RUN_STATE_RUNNING, is_to_pause)
        gate.open()
        await until_paused(handle)
        assert (await handle.get()).step_count == 2, "the model's next step has not begun"
        await handle.resume()
        assert await handle.result() == "done"
    check_pauses(await read_history(handle), 2)
    assert len(stage.http.of(handle.id, "/pay_unheard")) == 1


def check_pauses(events: list[run_pb2.Event], pauses: int) -> None:
    """The run was asked to rest and to go on so often, has rested once, and has gone on to its end."""
    check_history(events)
    assert [len(changes_of(events, kind)) for kind in ("pause_requested", "resume_requested")] == [pauses, pauses]
    states = [change.run_state_changed.state for change in changes_of(events, "run_state_changed")]
    assert states.count(PAUSED) == 1
    assert states[-1] == run_pb2.RUN_STATE_SUCCEEDED


@pytest.mark.promise("P1")
async def test_answer_and_cancellation_are_stored_once_although_state_died(stage: Stage) -> None:
    agent = Agent("asker", model=scripted(call("ask_user", question="Go?"), "went"), tools=["ask_user"])
    async with asyncio.timeout(80):
        answered, cancelled = await stage.start(agent), await stage.start(agent)
        question = await question_of(answered)
        for handle in (answered, cancelled):
            await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        await stage.answered_again(UNANSWERED, partial(stage.client.approvals.answer, question.approval_id, "yes"))
        assert await answered.result() == "went"
        await stage.answered_again(UNANSWERED, partial(cancelled.cancel, "enough"))
        assert (await cancelled.wait()).state == run_pb2.RUN_STATE_CANCELLED
    for handle, kind in ((answered, "approval_decided"), (cancelled, "cancel_requested")):
        events = await read_history(handle)
        check_history(events)
        assert len(changes_of(events, kind)) == 1
