"""Runs whose time is over, with real processes: they end whatever they do, and whoever is there."""

from __future__ import annotations

import asyncio
import sys

import pytest

from holdfast import Agent, RunExpired
from holdfast.api.common.v1 import run_pb2
from holdfast.cli.console import ExitCode
from holdfast.errors import InvalidArgument
from holdfast.testing import call, scripted, turn
from tests.suite.effects import Gate
from tests.suite.histories import changes_of, check_history, read_history, results_of
from tests.suite.stages import Stage, question_of, until_waiting
from tests.suite.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P7")]

EXPIRED = run_pb2.RUN_STATE_EXPIRED
ASKER = Agent(
    "asker",
    model=scripted(turn("", call("ask_user", question="Go?"), call("noop")), "went"),
    tools=["ask_user", "noop"],
)


async def test_run_that_waits_ends_in_time_and_its_session_goes_on(stage: Stage) -> None:
    async with asyncio.timeout(60):
        handle = await stage.start(ASKER, ttl=2)
        question = await question_of(handle)
        behind = await stage.client.start(ASKER, "and then", session_id=handle.run.session_id)
        with pytest.raises(RunExpired, match="expired"):
            await handle.result()
        run = await handle.get()
        assert run.end_time.ToDatetime() >= run.expire_time.ToDatetime()
        asked = await stage.client.approvals.get(question.approval_id)
        assert asked.state == run_pb2.APPROVAL_STATE_EXPIRED
        # The conversation is one that a model can go on with: the next run has been given it and asks in its turn.
        await stage.client.approvals.answer((await question_of(behind)).approval_id, "yes")
        assert await behind.result() == "went"
    view = check_history(await read_history(handle))
    assert "time was over" in results_of(view)["ask_user"].content


async def test_run_that_is_driven_stops_what_it_does(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_for_ever", gate.answer)
    agent = Agent("payer", model=scripted(call("pay_for_ever"), "done"), tools=[stage.tool("pay_for_ever")])
    async with asyncio.timeout(60):
        handle = await stage.start(agent, ttl=1.5)
        assert (await handle.wait()).state == EXPIRED
        gate.open()
    events = await read_history(handle)
    view = check_history(events)
    assert len(changes_of(events, "expiry_reached")) == 1
    assert "may have taken effect" in results_of(view)["pay_for_ever"].content


async def test_run_ends_while_its_executor_is_dead(stage: Stage) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_then_die", gate.answer)
    agent = Agent("mortal", model=scripted(call("pay_then_die"), "done"), tools=[stage.tool("pay_then_die")])
    async with asyncio.timeout(60):
        waiting = await stage.start(ASKER, ttl=3)
        await until_waiting(waiting, run_pb2.WAIT_REASON_INPUT)
        await waiting.pause()
        driven = await stage.start(agent, ttl=3)
        await stage.http.until(lambda: bool(stage.http.of(driven.id, "/pay_then_die")))
        await stage.suite.kill("executor")
        # Nobody is there but state, which says so in its log.
        ids = {waiting.id, driven.id}
        await until(
            lambda: (
                ids
                <= {event.get("run_id") for event in stage.suite.events("state") if event.get("event") == "run_expired"}
            )
        )
        gate.open()
        await stage.suite.restart("executor")
        assert [(await handle.wait()).state for handle in (waiting, driven)] == [EXPIRED, EXPIRED]
    for handle in (waiting, driven):
        events = await read_history(handle)
        check_history(events)
        assert events[-1].epoch == 0
    assert len(stage.http.of(driven.id, "/pay_then_die")) == 1


async def test_time_survives_a_restart_of_state(stage: Stage) -> None:
    async with asyncio.timeout(60):
        handle = await stage.start(ASKER, ttl=3)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        await stage.suite.kill("state")
        await stage.suite.restart("state")
        assert (await handle.wait()).state == EXPIRED
    check_history(await read_history(handle))


@pytest.mark.promise("P1")
@pytest.mark.parametrize("is_driven", [False, True], ids=["waiting", "driven"])
async def test_time_that_state_noticed_before_it_died_is_noticed_once(stage: Stage, is_driven: bool) -> None:
    gate = Gate("paid")
    stage.http.on("/pay_unheard", gate.answer)
    payer = Agent("unheard", model=scripted(call("pay_unheard"), "done"), tools=[stage.tool("pay_unheard")])
    async with asyncio.timeout(80):
        handle = await stage.start(payer if is_driven else ASKER, ttl=3)
        if is_driven:
            await stage.http.until(lambda: bool(stage.http.of(handle.id, "/pay_unheard")))
        else:
            await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        behind = await stage.client.start(ASKER, "and then", session_id=handle.run.session_id)
        await stage.suite.kill("state")
        # Not waited for: its time may be over by then. Nobody hears of what is committed.
        stage.suite.launch("state", settings={"HOLDFAST_CRASH_POINT": "state.expiry.after_commit"})
        assert await stage.suite.wait_for_exit("state") == 137
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
        # The call of the one that is driven is never answered: its driver learns of it as it comes back.
        assert (await handle.wait()).state == EXPIRED
        await stage.client.approvals.answer((await question_of(behind)).approval_id, "yes")
        assert await behind.result() == "went"
        gate.open()
    events = await read_history(handle)
    check_history(events)
    assert len(changes_of(events, "expiry_reached")) == 1
    assert len(stage.http.of(handle.id, "/pay_unheard")) == is_driven


async def test_command_gives_a_time_and_says_how_the_run_ended(stage: Stage) -> None:
    await stage.client.apply(ASKER)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.cli", "run", "asker", "go", "--ttl", "1s", "--json"),
        env=stage.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == ExitCode.RUN_EXPIRED, err.decode()
    assert "RUN_STATE_EXPIRED" in out.decode().splitlines()[-1]


@pytest.mark.parametrize("seconds", [0.5, -1, 401 * 86_400])
async def test_time_that_cannot_be_given_is_refused(stage: Stage, seconds: float) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stage.start(ASKER, ttl=seconds)
    assert [wrong.field for wrong in caught.value.field_violations] == ["ttl"]
