"""Runs with a budget, with real processes: what a call may use is reserved before it is made, whoever dies."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from holdfast import Agent, Budget, Limits, RunBudgetExceeded, agent_tool
from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.cli.console import ExitCode
from holdfast.errors import InvalidArgument, Unavailable
from holdfast.ids import new_uuid7
from holdfast.runs import RunHandle
from holdfast.testing import call, scripted, turn
from tests.suite.histories import changes_of, check_history, read_history, results_of
from tests.suite.stages import Stage, question_of, until_change, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P10")]

EXCEEDED = run_pb2.RUN_STATE_BUDGET_EXCEEDED


def priced(*turns: Any, loop: bool = False, longest: int = 100) -> agent_pb2.ModelSpec:
    """A scripted model whose words cost: $1 for a million sent, $10 for a million received."""
    model = scripted(*turns, loop=loop)
    model.parameters.max_output_tokens = longest
    model.price.input_usd_nanos_per_million_tokens = 10**9
    model.price.output_usd_nanos_per_million_tokens = 10**10
    return model


def left_of(lines: list[run_pb2.BudgetLine], limit: str) -> run_pb2.BudgetLine:
    return next(line for line in lines if line.limit == limit)


def spender(**budget: Any) -> Agent:
    """Calls a tool again and again."""
    limits = Limits(max_steps=1_000, budget=Budget(**budget))
    return Agent("spender", model=priced(call("noop", a=1), loop=True), tools=["noop"], limits=limits)


async def test_run_stops_before_it_has_spent_more_than_its_budget(stage: Stage) -> None:
    async with asyncio.timeout(60):
        handle = await stage.start(spender(max_cost_usd=0.0025))
        with pytest.raises(RunBudgetExceeded, match="max_cost_usd_nanos"):
            await handle.result()
        run = await handle.get()
        line = left_of(await handle.budget(), "max_cost_usd_nanos")
        events = await read_history(handle)
        tree = await stage.client.trace.tree(handle.id, min_seq=run.last_seq, timeout=30)
        listed = [run async for run in stage.client.runs.list(agent="spender", states=[EXCEEDED])]
        in_trace = [run async for run in stage.client.trace.list(agent="spender", states=[EXCEEDED])]
    check_history(events)
    assert (run.state, run.failure.reason) == (EXCEEDED, "BUDGET_EXCEEDED")
    # The scripted model tells what it used, so that the cost is exact, and the last call did not fit.
    assert line.used == run.usage.cost_usd_nanos > 0
    assert (line.reserved, line.left) == (0, line.max - line.used)
    started = changes_of(events, "step_started")
    intents = [one.step_started.model for one in started if one.step_started.WhichOneof("intent") == "model"]
    assert len(intents) > 2 and all(intent.reserved.cost_usd_nanos > 0 for intent in intents)
    assert line.left < intents[-1].reserved.cost_usd_nanos + 100 * 10_000
    assert tree.run.state == EXCEEDED
    assert tree.spans[0].attributes["holdfast.budget.left.max_cost_usd_nanos"] == line.left
    assert [run.run_id for run in listed] == [run.run_id for run in in_trace] == [handle.id]


@pytest.mark.promise("P7")
async def test_calls_beyond_the_limit_are_not_made_and_the_conversation_can_go_on(stage: Stage) -> None:
    agent = Agent(
        "caller",
        model=priced(turn("", call("pay_twice", n=1), call("pay_twice", n=2)), "done"),
        tools=[stage.tool("pay_twice")],
    )
    async with asyncio.timeout(60):
        handle = await stage.start(agent, budget=Budget(max_tool_calls=1))
        assert (await handle.wait()).state == EXCEEDED
        behind = await stage.client.start(agent, "and then", session_id=handle.run.session_id)
        assert await behind.result() == "done"
    view = check_history(await read_history(handle))
    assert "budget" in results_of(view)["pay_twice"].content
    assert stage.http.of(handle.id, "/pay_twice") == []
    assert len(stage.http.of(behind.id, "/pay_twice")) == 2


@pytest.mark.promise("P2")
@pytest.mark.parametrize("has_room", [True, False], ids=["room for another", "no room"])
async def test_executor_that_dies_in_a_model_call_has_spent_its_reservation(stage: Stage, has_room: bool) -> None:
    slow = turn("slow")
    slow.delay.FromMilliseconds(1_500)
    agent = Agent(f"dying-{'rich' if has_room else 'poor'}", model=priced(slow))
    async with asyncio.timeout(80):
        await stage.client.apply(agent)
        # What one attempt reserves: instructions and the text, a token for a byte, and the longest answer.
        handle = await stage.client.start(agent, "go", budget=Budget(max_output_tokens=250 if has_room else 150))
        await until_change(handle, lambda change: change.HasField("step_started"))
        await stage.suite.kill("executor")
        await stage.suite.restart("executor")
        run = await handle.wait()
        line = left_of(await handle.budget(), "max_output_tokens")
    events = await read_history(handle)
    check_history(events)
    [lost] = changes_of(events, "attempt_failed")
    assert lost.attempt_failed.failure.reason == "EXECUTOR_LOST"
    if has_room:
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert line.used == 100 + run.usage.output_tokens
    else:
        # Another attempt might have been paid as well: it was not made.
        assert run.state == EXCEEDED
        assert line.used == 100
        assert not changes_of(events, "attempt_started")


@pytest.mark.parametrize("point", ["executor.before_commit", "executor.after_commit", "executor.after_intent"])
async def test_run_ends_at_the_same_limit_wherever_its_executor_dies(stage: Stage, point: str) -> None:
    async with asyncio.timeout(80):
        await stage.client.apply(spender(max_model_calls=4))
        await stage.suite.kill("executor")
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": f"{point}:5"})
        request_id = new_uuid7()
        starting = asyncio.create_task(_started(stage, request_id))
        assert await stage.suite.wait_for_exit("executor") == 137
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": ""})
        handle = await starting
        run = await handle.wait()
    events = await read_history(handle)
    check_history(events)
    assert run.state == EXCEEDED
    line = left_of(await handle.budget(), "max_model_calls")
    assert (line.used, line.left) == (4, 0)


async def _started(stage: Stage, request_id: str) -> RunHandle:
    """Starts one run, however often its executor dies before it answers."""
    while True:
        try:
            return await stage.client.start("spender", "go", request_id=request_id)
        except Unavailable:
            continue


@pytest.mark.promise("P6")
async def test_person_gives_more_and_the_run_goes_on_with_it(stage: Stage) -> None:
    asking = Agent(
        "asking",
        model=priced(call("noop", a=1), loop=True),
        tools=["noop"],
        limits=Limits(budget=Budget(max_model_calls=1), on_budget_exceeded="ask"),
    )
    async with asyncio.timeout(80):
        handle = await stage.start(asking)
        question = await question_of(handle)
        assert (question.kind, question.budget.limit) == (run_pb2.APPROVAL_KIND_BUDGET, "max_model_calls")
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        # It is rows: nobody drives it while everything is started anew.
        await stage.suite.kill("executor")
        await stage.suite.restart("executor")
        with pytest.raises(InvalidArgument, match="a whole number above 0"):
            await stage.client.approvals.answer(question.approval_id, "plenty")
        await stage.client.approvals.answer(question.approval_id, 2)
        again = await question_of(handle, but=question.approval_id)
        assert (again.budget.max, again.budget.used, again.budget.needed) == (3, 3, 1)
        await stage.client.approvals.resolve(again.approval_id, "fail_run")
        run = await handle.wait()
        assert run.state == EXCEEDED
        await stage.client.trace.tree(handle.id, min_seq=run.last_seq, timeout=30)
        detail = await stage.client.trace.step(handle.id, question.step)
    assert [asked.decision.answer_json for asked in detail.tool.approvals] == ["2"]
    check_history(await read_history(handle))
    assert left_of(await handle.budget(), "max_model_calls").used == 3


async def test_model_answers_with_what_it_has_when_there_is_no_room_for_more(stage: Stage) -> None:
    agent = Agent(
        "finaliser",
        model=priced(call("noop", a=1), "I know {{result}}.", "not this"),
        tools=["noop"],
        limits=Limits(budget=Budget(max_model_calls=2), on_budget_exceeded="finalise"),
    )
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        assert await handle.result() == 'I know {"a":1}.'
        run = await handle.get()
        await stage.client.trace.tree(handle.id, min_seq=run.last_seq, timeout=30)
        detail = await stage.client.trace.step(handle.id, 3)
    events = await read_history(handle)
    check_history(events)
    [last] = [change.step_started.model for change in changes_of(events, "step_started")][-1:]
    assert "max_model_calls" in last.final_note
    sent = detail.model.input[-1].message
    assert (sent.role, sent.parts[0].text) == (content_pb2.ROLE_RUNTIME, last.final_note)
    assert left_of(await handle.budget(), "max_model_calls").left == 0


async def test_run_goes_on_with_a_cheaper_model(stage: Stage) -> None:
    dear = priced(call("noop", a=1), loop=True, longest=1_000)
    cheap = priced("not yet", "not yet", "done cheaply", "done cheaply", longest=10)
    cheap.name = "small"
    limits = Limits(
        max_steps=1_000, budget=Budget(max_output_tokens=1_005), on_budget_exceeded="degrade", cheaper_model=cheap
    )
    agent = Agent("degrader", model=dear, tools=["noop"], limits=limits)
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        assert await handle.result() == "done cheaply"
        detail = await stage.client.trace.tree(handle.id, min_seq=(await handle.get()).last_seq, timeout=30)
    events = await read_history(handle)
    check_history(events)
    intents = [change.step_started for change in changes_of(events, "step_started")]
    made = [started.model.is_cheaper for started in intents if started.WhichOneof("intent") == "model"]
    assert made == [False, False, False, True]
    assert "chat small" in [span.name for span in detail.spans]


async def test_tree_never_spends_more_than_its_roots_budget(stage: Stage) -> None:
    """Two agents that never end by themselves, called at once, one of which calls the other; an executor dies."""
    endless = priced(call("noop", a=1), loop=True)
    await stage.client.apply(Agent("leaf", model=endless, tools=["noop"], limits=Limits(max_steps=1_000)))
    await stage.client.apply(
        Agent("branch", model=priced(call("leaf", input="x"), loop=True), tools=[agent_tool("leaf")])
    )
    root = Agent(
        "root",
        model=priced(turn("", call("leaf", input="x"), call("branch", input="x")), "done"),
        tools=[agent_tool("leaf"), agent_tool("branch")],
    )
    async with asyncio.timeout(80):
        await stage.client.apply(root)
        handle = await stage.client.start(root, "go", budget=Budget(max_model_calls=30, max_tool_calls=200))
        await until_change(handle, lambda change: change.HasField("run_state_changed"))
        await stage.suite.kill("executor")
        await stage.suite.restart("executor")
        run = await handle.wait()
        lines = await handle.budget()
    tree = [run async for run in stage.client.runs.list(root_run_id=handle.id)]
    assert len(tree) >= 3 and all(run.end_time.seconds for run in tree)
    made = 0
    for member in tree:
        events = await read_history(stage.client.runs.handle(member.run_id))
        check_history(events)
        begun = [change.step_started for change in changes_of(events, "step_started")]
        models = {started.step for started in begun if started.WhichOneof("intent") == "model"}
        again = [change.attempt_started.step for change in changes_of(events, "attempt_started")]
        # Tools are called again, too, when the executor dies.
        made += len(models) + sum(step in models for step in again)
    line = left_of(lines, "max_model_calls")
    assert made <= 30 and line.used <= 30 and line.reserved == 0
    assert run.state in (run_pb2.RUN_STATE_SUCCEEDED, EXCEEDED)
    # Those below were stopped by their parts of it, and the root had what they left.
    assert EXCEEDED in {member.state for member in tree}
    report = await stage.command("doctor", "--data", str(stage.suite.data))
    assert {check["result"] for check in report["checks"]} == {"OK"}, report


async def test_command_gives_a_budget_and_says_how_the_run_ended(stage: Stage) -> None:
    await stage.client.apply(spender())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.cli", "run", "spender", "go", "--max-cost", "0.0025", "--json"),
        env=stage.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == ExitCode.RUN_BUDGET_EXCEEDED, err.decode()
    assert "RUN_STATE_BUDGET_EXCEEDED" in out.decode().splitlines()[-1]


async def test_doctor_finds_every_budget_kept(stage: Stage) -> None:
    async with asyncio.timeout(60):
        await (await stage.start(spender(max_model_calls=2))).wait()
        report = await stage.command("doctor", "--data", str(stage.suite.data))
    [check] = [check for check in report["checks"] if check["name"] == "budgets_hold"]
    assert (check["result"], check["examined"] >= 1) == ("OK", True), check
