"""The main job, end to end: a client starts a run, an agent decides and acts, people and time are waited for."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from itertools import pairwise

import pytest

from holdfast import Agent, tool
from holdfast.agent import Limits
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument
from holdfast.ids import new_uuid7
from holdfast.runs import RunCancelled, RunEvent, RunFailed, TextDelta
from holdfast.testing import call, scripted, turn
from holdfast.tool import ToolContext
from tests.fakes.provider import DONE, FakeProvider, Reply, chunk, event_stream, openai_text
from tests.suite.effects import Answer, Gate, HttpCall
from tests.suite.histories import changes_of, check_history, read_history, results_of
from tests.suite.stages import Stage, question_of, until_change, until_waiting
from tests.suite.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ASK = call("ask_user", question="Blue or red?", options=["blue", "red"])


def openai_calls(*calls: tuple[str, dict[str, object]]) -> Reply:
    """An answer that calls tools."""
    deltas = [
        {"index": index, "id": f"call_{index}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for index, (name, arguments) in enumerate(calls)
    ]
    made = chunk({"role": "assistant", "content": None, "tool_calls": deltas})
    return event_stream(made, chunk(finish_reason="tool_calls"), DONE)


# -------------------------------------------------------------------------------------------------------------- turns


@pytest.mark.promise("P7")
async def test_calls_of_one_turn_are_in_flight_at_the_same_time(stage: Stage) -> None:
    meeting = asyncio.Barrier(3)

    @tool
    async def left(context: ToolContext) -> str:
        """Comes from the left."""
        await meeting.wait()
        return "left"

    @tool
    async def right(context: ToolContext) -> str:
        """Comes from the right."""
        await meeting.wait()
        return "right"

    async def middle(made: HttpCall) -> Answer:
        await meeting.wait()
        return Answer("middle")

    stage.http.on("/middle", middle)
    agent = Agent(
        "meeting",
        model=scripted(turn("", call("left"), call("middle"), call("right")), "all met"),
        tools=[left, right, stage.tool("middle")],
    )
    async with asyncio.timeout(20), stage.worker(left, right):
        handle = await stage.start(agent)
        assert await handle.result() == "all met"
    view = check_history(await read_history(handle))
    assert [message.parts[0].tool_result.tool for message in view.conversation()[2:5]] == ["left", "middle", "right"]
    assert {name: result.content for name, result in results_of(view).items()} == {
        "left": "left",
        "middle": "middle",
        "right": "right",
    }


async def test_wrong_arguments_and_unknown_tools_are_told_to_the_model_and_nothing_is_executed(stage: Stage) -> None:
    executed: list[int] = []

    @tool
    async def pack(box: int) -> str:
        """Packs a box."""
        executed.append(box)
        return "packed"

    first = openai_calls(("pack", {"box": "one"}), ("unpack", {"box": 1}), ("pack", {}))
    async with asyncio.timeout(20), stage.worker(pack), FakeProvider() as provider:
        provider.will_reply(first, openai_calls(("pack", {"box": 1})), openai_text("Packed."))
        await stage.client.connections.create("openai", "sk-test", name="clumsy", base_url=provider.url)
        model = agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="clumsy")
        handle = await stage.start(Agent("clumsy", model=model, tools=[pack]))
        assert await handle.result() == "Packed."
    events = await read_history(handle)
    view = check_history(events)
    assert executed == [1]
    results = [
        part.tool_result
        for message in view.conversation()
        for part in message.parts
        if part.WhichOneof("kind") == "tool_result"
    ]
    assert [result.is_error for result in results] == [True, True, True, False]
    assert "box" in results[0].content
    assert "There is no tool 'unpack'" in results[1].content
    assert "pack" in results[1].content
    assert "box" in results[2].content
    # The model's answer, the three refusals and the next model step are one event.
    refusing = next(event for event in events if len([c for c in event.changes if c.HasField("step_finished")]) == 4)
    assert refusing.changes[-1].step_started.kind == run_pb2.STEP_KIND_MODEL


async def test_a_run_that_needs_more_steps_than_it_may_take_fails_before_it_takes_them(stage: Stage) -> None:
    agent = Agent("restless", model=scripted(call("noop", a=1), loop=True), tools=["noop"], limits=Limits(max_steps=5))
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert failed.value.failure.reason == "MAX_STEPS_EXCEEDED"
    check_history(await read_history(handle))
    assert (
        len(
            [
                change
                for change in changes_of(await read_history(handle), "step_finished")
                if change.step_finished.state == run_pb2.STEP_STATE_SUCCEEDED
            ]
        )
        == 5
    )


async def test_an_endpoint_that_asks_for_patience_is_called_again_with_the_same_key(stage: Stage) -> None:
    async def busy_twice(made: HttpCall) -> Answer:
        if len(stage.http.of(made.run_id, "/busy")) <= 2:
            return Answer("busy", status=503, headers={"Retry-After": "1"})
        return Answer("at last")

    stage.http.on("/busy", busy_twice)
    patient = stage.tool("busy", effect="idempotent")
    patient.retry.initial_interval.FromMilliseconds(1)
    agent = Agent("patient", model=scripted(call("busy"), "{{result}}"), tools=[patient])
    async with asyncio.timeout(30):
        handle = await stage.start(agent)
        assert await handle.result() == "at last"
    events = await read_history(handle)
    check_history(events)
    assert len(stage.http.of(handle.id, "/busy")) == 3
    assert len({made.key for made in stage.http.of(handle.id, "/busy")}) == 1
    delays = [change.attempt_started.not_before for change in changes_of(events, "attempt_started")]
    assert len(delays) == 2
    failed = [event for event in events if any(change.HasField("attempt_failed") for change in event.changes)]
    for event, not_before in zip(failed, delays, strict=True):
        assert not_before.ToNanoseconds() - event.time.ToNanoseconds() > 0.8e9


async def test_an_endpoint_that_never_recovers_ends_in_a_result_for_the_model(stage: Stage) -> None:
    async def broken(made: HttpCall) -> Answer:
        return Answer("out of order", status=500)

    stage.http.on("/broken", broken)
    spec = stage.tool("broken", effect="read_only")
    spec.retry.max_attempts = 2
    spec.retry.initial_interval.FromMilliseconds(10)
    agent = Agent("resigned", model=scripted(call("broken"), "It is broken."), tools=[spec])
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        assert await handle.result() == "It is broken."
    view = check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/broken")) == 2
    assert results_of(view)["broken"].is_error


# -------------------------------------------------------------------------------------------------- people and time


@pytest.mark.promise("P6")
@pytest.mark.parametrize("by", ["sdk", "command line"])
async def test_a_question_waits_for_a_person_and_the_answer_moves_the_run_on(stage: Stage, by: str) -> None:
    agent = Agent("asking", model=scripted(ASK, "I take {{result}}."), tools=["ask_user"])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        question = await question_of(handle)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        run = await handle.get()
        assert run.state == run_pb2.RUN_STATE_WAITING
        assert question.prompt == "Blue or red?"
        with pytest.raises(InvalidArgument):
            await stage.client.approvals.answer(question.approval_id, "green")
        if by == "sdk":
            await stage.client.approvals.answer(question.approval_id, "red")
        else:
            listed = await stage.command("approvals", "--run", handle.id)
            assert question.approval_id in str(listed)
            await stage.command("answer", question.approval_id, "red")
        assert await handle.result() == "I take red."
        decided = await stage.client.approvals.answer(question.approval_id, "red")
        assert decided.state == run_pb2.APPROVAL_STATE_DECIDED
        with pytest.raises(FailedPrecondition) as refused:
            await stage.client.approvals.answer(question.approval_id, "blue")
        assert refused.value.reason == "APPROVAL_ALREADY_DECIDED"
    check_history(await read_history(handle))


@pytest.mark.promise("P6")
@pytest.mark.parametrize(("seconds", "end"), [(2, "kill"), (6, "terminate")])
async def test_a_timer_outlives_the_executor(stage: Stage, seconds: int, end: str) -> None:
    agent = Agent("sleepy", model=scripted(call("sleep_until", seconds=seconds), "awake"), tools=["sleep_until"])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        started = await until_change(handle, lambda change: change.step_started.tool.tool == "sleep_until")
        if end == "terminate":
            await until_waiting(handle, run_pb2.WAIT_REASON_TIMER)
            assert (await handle.get()).wake_time == started.step_started.tool.due_time
            await stage.suite.terminate()
        else:
            await stage.suite.kill()
        await stage.suite.restart("executor")
        assert await handle.result() == "awake"
    events = await read_history(handle)
    check_history(events)
    woke = next(event for event in events if any(change.step_finished.step == 2 for change in event.changes))
    assert woke.time.ToNanoseconds() >= started.step_started.tool.due_time.ToNanoseconds() - 300_000_000


@pytest.mark.promise("P6")
async def test_two_hundred_runs_that_wait_are_only_rows_and_outlive_every_service(stage: Stage) -> None:
    agent = Agent("parked", model=scripted(ASK, "{{result}}"), tools=["ask_user"])
    await stage.client.apply(agent)
    async with asyncio.timeout(90):
        handles = await asyncio.gather(*(stage.client.start(agent, f"run {number}") for number in range(200)))
        await asyncio.gather(*(until_waiting(handle, run_pb2.WAIT_REASON_INPUT) for handle in handles))
        with sqlite3.connect(f"file:{stage.suite.data / 'state.db'}?mode=ro", uri=True) as rows:
            assert rows.execute("SELECT count(*) FROM runs WHERE holder IS NOT NULL").fetchone() == (0,)
        for name in ("executor", "trace", "auth", "state"):
            await stage.suite.kill(name)
        for name in ("state", "auth", "trace", "executor"):
            await stage.suite.restart(name)
        questions = {
            approval.run_id: approval.approval_id
            async for approval in stage.client.approvals.list()
            if approval.run_id in {handle.id for handle in handles}
        }
        assert len(questions) == 200
        await asyncio.gather(*(stage.client.approvals.answer(questions[handle.id], "red") for handle in handles))
        assert set(await asyncio.gather(*(handle.result() for handle in handles))) == {"red"}


# ------------------------------------------------------------------------------------------------------------- cancel


async def test_cancelling_a_run_tells_the_worker_that_runs_its_call(stage: Stage) -> None:
    begun, was_told = asyncio.Event(), asyncio.Event()

    @tool
    async def dig(context: ToolContext) -> str:
        """Digs until it is told to stop."""
        begun.set()
        await until(lambda: context.is_cancelled)
        was_told.set()
        return "half a hole"

    agent = Agent("digger", model=scripted(call("dig"), "dug"), tools=[dig])
    async with asyncio.timeout(30), stage.worker(dig):
        handle = await stage.start(agent)
        await begun.wait()
        await handle.cancel("enough")
        await was_told.wait()
        with pytest.raises(RunCancelled):
            await handle.result()
    events = await read_history(handle)
    view = check_history(events)
    assert results_of(view)["dig"].is_error
    (requested,) = changes_of(events, "cancel_requested")
    assert requested.cancel_requested.reason == "enough"


async def test_cancelling_a_run_that_waits_for_a_person_closes_its_question(stage: Stage) -> None:
    agent = Agent("asking", model=scripted(ASK, "I take {{result}}."), tools=["ask_user"])
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        question = await question_of(handle)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        await handle.cancel()
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
        closed = await stage.client.approvals.get(question.approval_id)
        assert closed.state == run_pb2.APPROVAL_STATE_CANCELLED
        with pytest.raises(FailedPrecondition):
            await stage.client.approvals.answer(question.approval_id, "red")
    check_history(await read_history(handle))


async def test_cancelling_a_run_that_sleeps_ends_it_at_once(stage: Stage) -> None:
    agent = Agent("sleeper", model=scripted(call("sleep_until", seconds=3600), "awake"), tools=["sleep_until"])
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        await until_waiting(handle, run_pb2.WAIT_REASON_TIMER)
        await handle.cancel()
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
        again = await handle.cancel()
        assert again.state == run_pb2.RUN_STATE_CANCELLED
    check_history(await read_history(handle))


async def test_cancelling_a_run_whose_call_is_in_flight_says_that_it_may_have_happened(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/wire", gate.answer)
    agent = Agent("wiring", model=scripted(call("wire"), "wired"), tools=[stage.tool("wire")])
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/wire")))
        await handle.cancel()
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
    gate.open()
    view = check_history(await read_history(handle))
    assert "may have taken effect" in results_of(view)["wire"].content


async def test_cancelling_a_model_call_does_not_wait_for_its_answer(stage: Stage) -> None:
    agent = Agent("thinker", model=scripted(turn("done", delay=60)))
    async with asyncio.timeout(20):
        handle = await stage.start(agent)
        await until_change(handle, lambda change: change.HasField("step_started"))
        await handle.cancel()
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
    check_history(await read_history(handle))


async def test_cancelling_a_run_behind_another_of_its_session_lets_the_next_one_come(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/first", gate.answer)
    slow = Agent("slow", model=scripted(call("first"), "first"), tools=[stage.tool("first")])
    async with asyncio.timeout(20):
        first = await stage.start(slow)
        quick = Agent("quick", model=scripted("{{input}}"))
        second = await stage.start(quick, "second", session_id=first.run.session_id)
        third = await stage.start(quick, "third", session_id=first.run.session_id)
        cancelled = await second.cancel()
        assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
        assert (await third.get()).state == run_pb2.RUN_STATE_QUEUED
        gate.open()
        assert await first.result() == "first"
        assert await third.result() == "third"
        with pytest.raises(FailedPrecondition) as refused:
            await first.cancel()
        assert refused.value.reason == "RUN_ENDED"


# ----------------------------------------------------------------------------------------------------------- sessions


async def test_a_conversation_goes_on_over_runs(stage: Stage) -> None:
    async with asyncio.timeout(30), FakeProvider() as provider:
        provider.will_reply(openai_text("Hello Ada."), openai_text("Your name is Ada."))
        await stage.client.connections.create("openai", "sk-test", name="talk", base_url=provider.url)
        agent = Agent("talker", model=agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="talk"))
        first = await stage.start(agent, "I am Ada.")
        assert await first.result() == "Hello Ada."
        second = await stage.start(agent, "Who am I?", session_id=first.run.session_id)
        assert await second.result() == "Your name is Ada."
        said = [(message["role"], message["content"]) for message in provider.requests[1].body["messages"]]
    assert said == [("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "Who am I?")]
    messages = [entry async for entry in stage.client.sessions.messages(first.run.session_id)]
    assert [entry.run_id for entry in messages] == [first.id, first.id, second.id, second.id]


async def test_runs_of_a_session_go_one_after_the_other_in_their_order(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/turnstile", gate.answer)
    agent = Agent("queued", model=scripted(call("turnstile"), "{{input}}"), tools=[stage.tool("turnstile")])
    async with asyncio.timeout(30):
        first = await stage.start(agent, "1")
        session_id = first.run.session_id
        others = [await stage.client.start(agent, str(number), session_id=session_id) for number in (2, 3, 4)]
        with pytest.raises(FailedPrecondition) as refused:
            await stage.client.start(agent, "5", session_id=session_id, reject_when_busy=True)
        assert refused.value.reason == "SESSION_BUSY"
        await stage.http.until(lambda: bool(stage.http.of(first.id, "/turnstile")))
        assert {(await other.get()).state for other in others} == {run_pb2.RUN_STATE_QUEUED}
        gate.open()
        assert [await handle.result() for handle in (first, *others)] == ["1", "2", "3", "4"]
        await stage.client.start(agent, "6", session_id=session_id, reject_when_busy=True)
    histories = [await read_history(handle) for handle in (first, *others)]
    for before, after in pairwise(histories):
        claimed = next(event for event in after if any(change.HasField("run_claimed") for change in event.changes))
        assert before[-1].time.ToNanoseconds() <= claimed.time.ToNanoseconds()


@pytest.mark.promise("P1")
async def test_the_same_request_is_the_same_run_and_another_one_is_refused(stage: Stage) -> None:
    agent = Agent("once", model=scripted("{{input}}"))
    request_id = new_uuid7()
    async with asyncio.timeout(20):
        first = await stage.start(agent, "hello", request_id=request_id)
        starts = [stage.client.start(agent, "hello", request_id=request_id) for _ in range(10)]
        assert {again.id for again in await asyncio.gather(*starts)} == {first.id}
        with pytest.raises(InvalidArgument) as refused:
            await stage.client.start(agent, "something else", request_id=request_id)
        assert refused.value.reason == "REQUEST_ID_REUSED"
        # Also when both are new and come at the same time.
        other = new_uuid7()
        both = await asyncio.gather(*(stage.client.start(agent, "twice", request_id=other) for _ in range(10)))
        assert len({handle.id for handle in both}) == 1
        assert len([run async for run in stage.client.runs.list(agent="once")]) == 2


# ------------------------------------------------------------------------------------------------------------- events


@pytest.mark.promise("P12")
async def test_watchers_see_the_same_events_over_the_death_of_the_executor_without_gap_or_double(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/watched", gate.answer)
    agent = Agent(
        "watched",
        model=scripted(*[turn("many words said", call("noop", a=n)) for n in range(5)], call("watched"), "the end"),
        tools=["noop", stage.tool("watched", effect="read_only")],
    )

    found = asyncio.Semaphore(0)

    async def watch(run_id: str, after_seq: int, deltas: bool) -> list[run_pb2.Event]:
        seen = []
        async with stage.suite.client() as client:
            run = await client.run(run_id)
            found.release()
            async for item in run.events(after_seq, deltas=deltas):
                if isinstance(item, RunEvent):
                    seen.append(item.message)
                else:
                    assert isinstance(item, TextDelta)
        return seen

    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        watching = [asyncio.create_task(watch(handle.id, 0, deltas)) for deltas in (True, False)]
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/watched")))
        later = asyncio.create_task(watch(handle.id, 3, False))
        # What is followed over the death is found before it: looking it up is an ordinary call.
        for _ in range(3):
            await found.acquire()
        await stage.suite.kill()
        gate.open()
        await stage.suite.restart("executor")
        assert await handle.result() == "the end"
        whole = await read_history(handle)
        check_history(whole)
        assert [await watched for watched in watching] == [whole, whole]
        assert await later == whole[3:]
        assert await watch(handle.id, whole[-1].seq, True) == []


@pytest.mark.promise("P12")
async def test_a_run_goes_on_when_its_client_goes_away(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/alone", gate.answer)
    agent = Agent("alone", model=scripted(call("alone"), "done anyway"), tools=[stage.tool("alone")])
    async with asyncio.timeout(20):
        async with stage.suite.client() as client:
            await client.apply(agent)
            run_id = (await client.start(agent, "go")).id
        await stage.http.until(lambda: bool(stage.http.of(run_id, "/alone")))
        gate.open()
        assert await (await stage.client.run(run_id)).result() == "done anyway"


async def test_many_large_results_of_one_turn_are_stored(stage: Stage) -> None:
    async def large(made: HttpCall) -> Answer:
        return Answer("x" * 2_000_000)

    stage.http.on("/large", large)
    agent = Agent(
        "large",
        model=scripted(turn("", *(call("large", part=part) for part in range(30))), "all there"),
        tools=[stage.tool("large")],
    )
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        assert await handle.result() == "all there"
    events = await read_history(handle)
    check_history(events)
    assert len(stage.http.of(handle.id, "/large")) == 30
    outputs = [
        c.step_finished.output.size for c in changes_of(events, "step_finished") if c.step_finished.HasField("output")
    ]
    assert len(outputs) == 30
