"""Approvals of calls with real processes: nothing is made before its yes is stored, and each call is made once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from holdfast import Agent, tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, Reason
from holdfast.runs import RunHandle
from holdfast.testing import call, scripted, turn
from tests.suite.effects import Gate
from tests.suite.histories import changes_of, check_history, read_history, results_of
from tests.suite.stages import Stage, question_of, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

APPROVAL = run_pb2.WAIT_REASON_APPROVAL
SCHEMA = {
    "type": "object",
    "properties": {"amount": {"type": "integer", "maximum": 1_000}},
    "required": ["amount"],
}


def payer(stage: Stage, name: str, *turns: Any, **options: Any) -> Agent:
    pay = stage.tool(name, input_schema=SCHEMA, **({"approval": True} | options))
    return Agent(name.replace("_", "-"), model=scripted(*turns), tools=[pay])


async def asked(stage: Stage, handle: RunHandle) -> list[run_pb2.Approval]:
    """What a run that waits for approvals asks, in the order of its steps."""
    await until_waiting(handle, APPROVAL)
    found = [approval async for approval in stage.client.approvals.list(run_id=handle.id)]
    return sorted(found, key=lambda approval: approval.step)


@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
async def test_a_call_waits_as_rows_and_is_made_once_it_is_approved(stage: Stage) -> None:
    agent = payer(stage, "pay_a", call("pay_a", amount=5), "paid")
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        run = await handle.get()
        assert (run.state, run.wait_reason) == (run_pb2.RUN_STATE_WAITING, APPROVAL)
        assert (approval.tool, approval.arguments_json) == ("pay_a", '{"amount":5}')
        assert not stage.http.of(handle.id, "/pay_a")
        with pytest.raises(FailedPrecondition) as caught:
            await stage.client.approvals.approve(approval.approval_id, arguments_sha256="0" * 64)
        assert caught.value.reason == Reason.APPROVAL_HASH_MISMATCH
        decided = await stage.client.approvals.approve(
            approval.approval_id, arguments_sha256=approval.arguments_sha256, comment="looks right"
        )
        assert decided.decision.decided_by
        # The same once more is answered the same, another one is refused.
        await stage.client.approvals.approve(approval.approval_id)
        with pytest.raises(FailedPrecondition):
            await stage.client.approvals.reject(approval.approval_id, "no")
        assert await handle.result() == "paid"
    check_history(await read_history(handle))
    assert [made.body for made in stage.http.of(handle.id, "/pay_a")] == [{"amount": 5}]


async def test_calls_of_a_turn_are_decided_in_any_order_and_others_go_on_meanwhile(stage: Stage) -> None:
    shipped: list[int] = []

    @tool(effect="idempotent", approval=True)
    def ship_b(box: int) -> str:
        shipped.append(box)
        return f"box {box}"

    calls = (call("pay_b", amount=1), call("pay_b", amount=2), call("ship_b", box=3), call("look_b"))
    agent = Agent(
        "mixed",
        model=scripted(turn("", *calls), "all done"),
        tools=[
            stage.tool("pay_b", input_schema=SCHEMA, approval="args.amount > 1"),
            ship_b,
            stage.tool("look_b", effect="read_only"),
        ],
    )
    async with asyncio.timeout(40), stage.worker(ship_b):
        handle = await stage.start(agent)
        pay, ship = await asked(stage, handle)
        assert (pay.arguments_json, ship.arguments_json) == ('{"amount":2}', '{"box":3}')
        # What needs no approval was made: the small payment, and the look.
        assert [made.body for made in stage.http.of(handle.id, "/pay_b")] == [{"amount": 1}]
        assert len(stage.http.of(handle.id, "/look_b")) == 1
        assert not shipped
        decided = await stage.command("approve", ship.approval_id, "--comment", "go")
        assert decided["decision"]["verdict"] == "APPROVAL_VERDICT_APPROVED"
        rejected = await stage.command("reject", pay.approval_id, "--reason", "Ask Ada first.")
        assert rejected["decision"]["reason"] == "Ask Ada first."
        assert await handle.result() == "all done"
    view = check_history(await read_history(handle))
    assert shipped == [3]
    assert "Ask Ada first." in results_of(view)["pay_b"].content
    assert results_of(view)["pay_b"].is_error
    assert len(stage.http.of(handle.id, "/pay_b")) == 1


async def test_a_decision_counts_while_other_calls_of_the_turn_are_under_way(stage: Stage) -> None:
    gate = Gate("looked")
    stage.http.on("/look_j", gate.answer)
    pay = stage.tool("pay_j", input_schema=SCHEMA, approval=True)
    both = turn("", call("look_j"), call("pay_j", amount=5))
    agent = Agent("busy", model=scripted(both, "both"), tools=[stage.tool("look_j", effect="read_only"), pay])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/look_j")))
        approval = await question_of(handle)
        assert (await handle.get()).state == run_pb2.RUN_STATE_RUNNING
        await stage.client.approvals.approve(approval.approval_id)
        # It is made although the other one has not ended.
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/pay_j")))
        gate.open()
        assert await handle.result() == "both"
    check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/pay_j")) == 1


async def test_large_arguments_are_shown_whole_and_are_what_was_approved(stage: Stage) -> None:
    note = "n" * 20_000
    pay = stage.tool("pay_k", approval=True)
    agent = Agent("writer", model=scripted(call("pay_k", note=note), "paid"), tools=[pay])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        [listed] = await asked(stage, handle)
        assert listed.arguments_shortened
        whole = await stage.client.approvals.get(listed.approval_id)
        assert not whole.arguments_shortened
        assert json.loads(whole.arguments_json) == {"note": note}
        assert hashlib.sha256(whole.arguments_json.encode()).hexdigest() == whole.arguments_sha256
        await stage.client.approvals.approve(whole.approval_id, arguments_sha256=whole.arguments_sha256)
        assert await handle.result() == "paid"
    [made] = stage.http.of(handle.id, "/pay_k")
    assert made.body == {"note": note}


async def test_edited_arguments_are_what_is_called_and_the_model_is_told(stage: Stage) -> None:
    agent = payer(stage, "pay_c", call("pay_c", amount=900), "paid")
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        with pytest.raises(InvalidArgument):
            await stage.client.approvals.approve(approval.approval_id, arguments={"amount": 5_000})
        decided = await stage.command("approve", handle.id, "--arguments", '{"amount": 90}')
        assert decided["decision"]["edited_arguments_json"] == '{"amount":90}'
        assert await handle.result() == "paid"
    events = await read_history(handle)
    view = check_history(events)
    [made] = stage.http.of(handle.id, "/pay_c")
    assert made.body == {"amount": 90}
    [begun] = [change for change in changes_of(events, "step_started") if change.step_started.HasField("tool")]
    assert made.key not in ("", begun.step_started.tool.idempotency_key)
    assert 'with these: {"amount":90}' in results_of(view)["pay_c"].content
    async with asyncio.timeout(40):
        tree = await stage.client.trace.tree(handle.id, min_seq=events[-1].seq)
        step = (await stage.client.trace.step(handle.id, begun.step_started.step)).tool
    wait, span = (next(s for s in tree.spans if s.name.startswith(name)) for name in ("holdfast.approval", "execute"))
    assert wait.parent_span_id == span.span_id
    assert wait.attributes["holdfast.approval.verdict"] == "approved"
    assert (step.arguments_json, step.edited_arguments_json) == ('{"amount": 900}', '{"amount":90}')
    assert step.idempotency_key == made.key
    assert step.approvals[0].decision.decided_by == decided["decision"]["decided_by"]


async def test_a_worker_gets_the_edited_arguments_and_the_model_is_told(stage: Stage) -> None:
    @tool(effect="idempotent", approval="args.box > 1")
    def ship_d(box: int) -> str:
        return f"box {box}"

    agent = Agent("shipper", model=scripted(call("ship_d", box=7), "done"), tools=[ship_d])
    async with asyncio.timeout(40), stage.worker(ship_d):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        await stage.client.approvals.approve(approval.approval_id, arguments={"box": 2})
        assert await handle.result() == "done"
    content = results_of(check_history(await read_history(handle)))["ship_d"].content
    assert 'with these: {"box":2}' in content
    assert content.endswith("box 2")


async def test_an_approval_that_nobody_gives_expires_and_the_call_is_not_made(stage: Stage) -> None:
    agent = payer(stage, "pay_e", call("pay_e", amount=5), "asked again later", approval_expires_after=0.5)
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        assert await handle.result() == "asked again later"
        [approval] = [item async for item in stage.client.approvals.list(run_id=handle.id, pending_only=False)]
        assert approval.state == run_pb2.APPROVAL_STATE_EXPIRED
        with pytest.raises(FailedPrecondition):
            await stage.client.approvals.approve(approval.approval_id)
    events = await read_history(handle)
    check_history(events)
    reasons = [change.step_finished.failure.reason for change in changes_of(events, "step_finished")]
    assert "APPROVAL_EXPIRED" in reasons
    assert not stage.http.of(handle.id, "/pay_e")


async def test_a_run_whose_time_is_over_takes_its_question_along(stage: Stage) -> None:
    agent = payer(stage, "pay_l", call("pay_l", amount=5), "paid")
    async with asyncio.timeout(40):
        handle = await stage.start(agent, ttl=1.5)
        [approval] = await asked(stage, handle)
        assert (await handle.wait()).state == run_pb2.RUN_STATE_EXPIRED
        assert (await stage.client.approvals.get(approval.approval_id)).state == run_pb2.APPROVAL_STATE_EXPIRED
        with pytest.raises(FailedPrecondition):
            await stage.client.approvals.approve(approval.approval_id)
    view = check_history(await read_history(handle))
    assert "may have taken effect" not in results_of(view)["pay_l"].content
    assert not stage.http.of(handle.id, "/pay_l")


async def test_an_approval_for_the_session_is_found_by_its_next_runs_and_by_no_other(stage: Stage) -> None:
    agent = payer(stage, "pay_f", call("pay_f", amount=5), call("pay_f", amount=6), "paid")
    async with asyncio.timeout(60):
        first = await stage.start(agent)
        [approval] = await asked(stage, first)
        await stage.client.approvals.approve(approval.approval_id, scope="session")
        assert await first.result() == "paid"
        second = await stage.client.start(agent, "again", session_id=first.run.session_id)
        assert await second.result() == "paid"
        assert len(stage.http.of(second.id, "/pay_f")) == 2
        by = {
            change.step_started.tool.approval_id
            for change in changes_of(await read_history(second), "step_started")
            if change.step_started.HasField("tool")
        }
        assert by == {approval.approval_id}
        # Another session, and the same one with another definition of the tool, are asked.
        stranger = await stage.client.start(agent, "and I?")
        await asked(stage, stranger)
        await stranger.cancel()
        changed = payer(stage, "pay_f", call("pay_f", amount=5), "paid", description="pays twice")
        third = await stage.start(changed, session_id=first.run.session_id)
        await asked(stage, third)
        await third.cancel()
        assert (await third.wait()).state == run_pb2.RUN_STATE_CANCELLED
    events = await read_history(third)
    check_history(events)
    assert [change.approval_closed.state for change in changes_of(events, "approval_closed")] == [
        run_pb2.APPROVAL_STATE_CANCELLED
    ]


async def test_a_decision_during_a_pause_counts_when_the_run_goes_on(stage: Stage) -> None:
    agent = payer(stage, "pay_g", call("pay_g", amount=5), "paid")
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        assert (await handle.pause()).state == run_pb2.RUN_STATE_PAUSED
        await stage.client.approvals.approve(approval.approval_id)
        assert (await handle.get()).state == run_pb2.RUN_STATE_PAUSED
        assert not stage.http.of(handle.id, "/pay_g")
        await handle.resume()
        assert await handle.result() == "paid"
    check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/pay_g")) == 1


async def test_a_definition_with_a_condition_that_is_wrong_is_refused_with_its_place(stage: Stage) -> None:
    agent = payer(stage, "pay_h", "never", approval="args.amount >")
    with pytest.raises(InvalidArgument) as caught:
        await stage.client.apply(agent)
    [violation] = caught.value.field_violations
    assert violation.field == "tools[0].approval.condition"
    assert "line 1, column 14" in violation.description
    asks = Agent("asker", model=scripted("x"), tools=["ask_user"]).spec
    asks.tools[0].approval.CopyFrom(agent_pb2.ApprovalPolicy(always=True))
    with pytest.raises(InvalidArgument) as caught:
        await stage.client.apply(Agent.from_spec(asks))
    assert "could approve" in str(caught.value)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("crash_point", "is_in_doubt", "made"),
    [
        # Nothing was announced: the next driver makes the call.
        ("executor.before_commit", False, 1),
        # It was announced and not made, or made: nobody knows which.
        ("executor.after_commit", True, 0),
        ("executor.after_call", True, 1),
    ],
)
async def test_an_executor_that_dies_after_a_decision_makes_the_call_once_or_leaves_it_in_doubt(
    stage: Stage, crash_point: str, is_in_doubt: bool, made: int
) -> None:
    name = f"pay_at_{crash_point.rpartition('.')[2]}"
    agent = payer(stage, name, call(name, amount=5), "done")
    async with asyncio.timeout(90):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": crash_point})
        assert not stage.http.of(handle.id, f"/{name}")
        # It wakes the run, whose driver dies at the point.
        await stage.client.approvals.approve(approval.approval_id)
        assert await stage.suite.wait_for_exit("executor") == 137
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": ""})
        if is_in_doubt:
            await until_waiting(handle, run_pb2.WAIT_REASON_IN_DOUBT)
            [doubt] = [item async for item in stage.client.approvals.list(run_id=handle.id)]
            await stage.client.approvals.resolve(doubt.approval_id, "done", result="paid")
        assert await handle.result() == "done"
    check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, f"/{name}")) == made


async def test_a_decision_that_state_commits_and_cannot_answer_is_not_made_twice(stage: Stage) -> None:
    agent = payer(stage, "pay_i", call("pay_i", amount=5), "paid")
    async with asyncio.timeout(90):
        handle = await stage.start(agent)
        [approval] = await asked(stage, handle)
        decided = await stage.answered_again(
            "state.outside.after_commit", lambda: stage.client.approvals.approve(approval.approval_id)
        )
        assert decided.state == run_pb2.APPROVAL_STATE_DECIDED
        assert await handle.result() == "paid"
    events = await read_history(handle)
    check_history(events)
    assert len(changes_of(events, "approval_decided")) == 1
    assert len(stage.http.of(handle.id, "/pay_i")) == 1


async def test_doctor_finds_nothing_wrong_with_all_of_this(stage: Stage) -> None:
    async with asyncio.timeout(60):
        report = await stage.command("doctor", "--data", str(stage.suite.data))
    [check] = [check for check in report["checks"] if check["name"] == "approved_before_dispatch"]
    assert check["result"] == "OK"
    assert check["examined"] >= 1
