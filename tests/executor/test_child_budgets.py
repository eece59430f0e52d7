"""Budgets of a tree: what runs below are given is set aside whole, and all together never more than the root's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.child_budgets import part_of
from services.executor.child_runs import child_run
from services.executor.children import Target
from services.shared.run_budgets import Amounts, Ledger
from tests.executor.driving import RUN_ID, Drive, Journal, agent, results_by_call
from tests.executor.test_budgets import MODEL, book_of, says

pytestmark = pytest.mark.promise("P10")

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TOOLS = [{"name": "research", "agent": {"agent": "researcher"}}, {"name": "noop", "builtin": {"name": "noop"}}]


def researcher(**own: int) -> agent_pb2.AgentSpec:
    spec = agent(name="researcher", model=MODEL, tools=[])
    if own:
        spec.limits.budget.CopyFrom(agent_pb2.Budget(**own))
    return spec


def calling(target: agent_pb2.AgentSpec, *tools: str, **limits: int) -> tuple[Journal, Drive]:
    """A run with a budget whose model has called these tools."""
    journal = Journal(agent(model=MODEL, tools=TOOLS))
    journal.events[0].changes[0].run_created.budget.CopyFrom(agent_pb2.Budget(**limits))
    drive = driven(journal, target)
    drive.plan()
    calls: list[tuple[str, dict[str, object]]] = [
        (tool, {"input": "dig"} if tool == "research" else {}) for tool in tools
    ]
    drive.plan(says(drive, *calls, input_tokens=100, output_tokens=20, cost_usd_nanos=1_000))
    return journal, drive


def driven(journal: Journal, target: agent_pb2.AgentSpec) -> Drive:
    drive = journal.claim()
    drive.planner.targets = {"research": Target("researcher", "ab" * 32, target)}
    return drive


def given(journal: Journal) -> list[agent_pb2.Budget]:
    """The parts that the journal says were given."""
    starts = [change.step_started.tool for event in journal.events for change in event.changes]
    return [tool.child_budget for tool in starts if tool.child_run_id]


def test_runs_that_start_together_share_what_is_left() -> None:
    journal, drive = calling(researcher(), "research", "research", "noop", max_total_tokens=10_120, max_tool_calls=8)
    # Three calls are tool calls themselves; what is odd goes to the last.
    assert given(journal) == [agent_pb2.Budget(max_total_tokens=5_000, max_tool_calls=tools) for tools in (2, 3)]
    used, reserved = book_of(drive)
    assert used.total_tokens + reserved.total_tokens == 10_120
    assert used.tool_calls + reserved.tool_calls <= 8


def test_part_is_not_more_than_the_agents_own_limit_and_the_child_is_stored_with_it() -> None:
    target = researcher(max_total_tokens=300, max_model_calls=2)
    journal = Journal(agent(model=MODEL, tools=TOOLS))
    journal.events[0].changes[0].run_created.budget.max_total_tokens = 10_120
    drive = driven(journal, target)
    drive.plan()
    plan = drive.plan(says(drive, ("research", {"input": "dig"}), input_tokens=100, output_tokens=20))
    [child] = plan.children
    part = agent_pb2.Budget(max_total_tokens=300, max_model_calls=2)
    assert child_run("w", RUN_ID, child).budget == part
    assert given(journal) == [part]
    assert book_of(drive)[1].total_tokens == 300


def test_rest_of_a_part_is_there_again_when_the_run_below_has_ended() -> None:
    journal, _ = calling(researcher(), "research", max_total_tokens=10_120)
    ended = run_pb2.ChildEnded(step=2, attempt=1, child_run_id=Drive(journal).view.steps[2].child_run_id)
    ended.state = run_pb2.RUN_STATE_SUCCEEDED
    ended.output.message.parts.add(text="found")
    ended.used.CopyFrom(Amounts(input_tokens=40, output_tokens=10, model_calls=1).message())
    journal.write(0, [run_pb2.Change(child_ended=ended)])
    drive = driven(journal, researcher())
    plan = drive.plan()
    assert [call.tool for call in plan.local_calls] == [None]
    used, reserved = book_of(drive)
    assert used == Amounts(1_000, 140, 30, model_calls=2, tool_calls=1)
    assert 0 < reserved.total_tokens < 10_120 - 170


def test_run_below_says_at_its_end_what_it_used() -> None:
    journal = Journal(researcher())
    created = journal.events[0].changes[0].run_created
    created.parent_run_id = "0198c0de-0000-7000-8000-00000000aaaa"
    created.budget.max_total_tokens = 10_000
    # Only the root's budget can grow: nobody is asked about a part of it.
    journal.spec.limits.on_budget_exceeded = agent_pb2.BUDGET_POLICY_ASK
    drive = journal.claim()
    drive.plan()
    [_, end] = drive.plan(says(drive, text="found", input_tokens=40, output_tokens=10, cost_usd_nanos=7)).changes
    assert end.run_state_changed.used == run_pb2.BudgetUse(
        cost_usd_nanos=7, input_tokens=40, output_tokens=10, model_calls=1
    )
    poor = Journal(researcher())
    poor.events[0].changes[0].run_created.CopyFrom(created)
    poor.events[0].changes[0].run_created.budget.max_total_tokens = 1
    poor.spec.limits.on_budget_exceeded = agent_pb2.BUDGET_POLICY_ASK
    ended = poor.claim().plan().changes[-1].run_state_changed
    assert (ended.state, ended.used) == (run_pb2.RUN_STATE_BUDGET_EXCEEDED, run_pb2.BudgetUse())
    assert ended.HasField("used")


def test_agent_for_which_nothing_is_left_is_not_called_and_the_model_is_told() -> None:
    journal, drive = calling(researcher(), "research", max_model_calls=2, max_total_tokens=100_000)
    assert [part.max_model_calls for part in given(journal)] == [1]
    journal, drive = calling(researcher(), "research", "research", max_model_calls=2)
    told = [result.content for result in results_by_call(drive.view).values()]
    assert len(told) == 1 and "nothing is left of the run's budget for it (max_model_calls)" in told[0]
    assert [part.max_model_calls for part in given(journal)] == [1]


@pytest.mark.parametrize("lacks", ["longest answer", "price"])
def test_agent_that_cannot_be_held_to_the_budget_is_not_called(lacks: str) -> None:
    target = researcher()
    target.model.ClearField("parameters" if lacks == "longest answer" else "price")
    ledger = Ledger(agent_pb2.Budget(max_cost_usd_nanos=10**9))
    refused = part_of(ledger, target, NOW, parts=1, calls_to_begin=1)
    assert isinstance(refused, content_pb2.Failure)
    assert refused.reason == "BUDGET_NOT_KEPT"
    assert ("max_output_tokens" if lacks == "longest answer" else "price") in refused.message


def test_run_below_may_do_without_tools_when_no_call_is_left() -> None:
    ledger = Ledger(agent_pb2.Budget(max_tool_calls=1))
    part = part_of(ledger, researcher(), NOW, parts=1, calls_to_begin=1)
    assert isinstance(part, agent_pb2.Budget)
    assert Ledger(part).shortfall(Amounts(tool_calls=1)) is not None
    assert Ledger(part).shortfall(Amounts(model_calls=1)) is None
