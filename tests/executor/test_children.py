"""What the loop decides about calls of other agents: one run for each attempt, one result for each call."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.ids import new_uuid7
from services.executor.child_runs import child_run
from services.executor.children import Target, child_run_id
from services.executor.decide.plan import Plan
from services.state.expiry import OpenEnds
from tests.executor.driving import NOW, RUN_ID, Drive, Journal, agent, kinds, last_state, results_by_call

SUB_AGENT = agent_pb2.AgentSpec(name="researcher")
TARGET = Target("researcher", "ab" * 32, SUB_AGENT)
TOOLS = [
    {"name": "research", "agent": {"agent": "researcher"}},
    {"name": "again", "agent": {"agent": "researcher"}, "retry": {"max_attempts": 2, "initial_interval": "60s"}},
    {"name": "count", "agent": {"agent": "researcher"}, "output_schema": {"type": "integer"}},
    {"name": "form", "agent": {"agent": "researcher"}, "input_schema": {"type": "object"}, "timeout": "60s"},
    {"name": "pay_or_fail", "in_doubt": "IN_DOUBT_POLICY_FAIL_RUN", "http": {"url": "https://example.com"}},
]


def driven(journal: Journal) -> Drive:
    drive = journal.claim()
    drive.planner.targets = dict.fromkeys(("research", "again", "count", "form"), TARGET)
    return drive


def calling(*tools: str, **limits: int) -> tuple[Journal, Drive, Plan]:
    """A run whose model has called these tools."""
    journal = Journal(agent(tools=TOOLS, limits=limits))
    drive = driven(journal)
    drive.plan()
    arguments: dict[str, object] = {"input": "dig"}
    answer = drive.model_says(*((tool, {} if tool == "pay_or_fail" else arguments) for tool in tools))
    assert {tool.name for tool in drive.planner.agent_tools([answer])} == {*tools} - {"pay_or_fail"}
    return journal, drive, drive.plan(answer)


def ends(journal: Journal, step: int, state: run_pb2.RunState = run_pb2.RUN_STATE_SUCCEEDED, text: str = "42") -> None:
    """The child of a step ends."""
    drive = Drive(journal)
    view = drive.view.steps[step]
    ended = run_pb2.ChildEnded(step=step, attempt=view.attempt, child_run_id=view.child_run_id, state=state)
    if state == run_pb2.RUN_STATE_SUCCEEDED:
        ended.output.message.parts.add(text=text)
    elif state == run_pb2.RUN_STATE_FAILED:
        ended.failure.reason, ended.failure.message = "MAX_STEPS_EXCEEDED", "Too many steps."
    journal.write(0, [run_pb2.Change(child_ended=ended)])


def started(plan: Plan) -> list[str]:
    """The children that the changes of a plan name; they are exactly those that it stores."""
    named = [
        run_id
        for change in plan.changes
        for run_id in (change.step_started.tool.child_run_id, change.attempt_started.child_run_id)
        if run_id
    ]
    assert named == [child.run_id for child in plan.children]
    return named


def test_call_of_an_agent_is_a_run_of_its_own_that_is_waited_for() -> None:
    journal, drive, plan = calling("research", "research")
    assert started(plan) == [child_run_id(RUN_ID, 2, 1), child_run_id(RUN_ID, 3, 1)]
    assert not plan.local_calls and not plan.calls
    assert {drive.view.steps[step].kind for step in (2, 3)} == {run_pb2.STEP_KIND_CHILD}
    assert not drive.plan().changes
    parked = drive.planner.park()
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_CHILD
    assert not last_state(parked).HasField("wake_time")
    drive.store(parked)
    ends(journal, 3, text="second")
    drive = driven(journal)
    assert kinds(drive.plan()) == ["run_claimed", "step_finished"]
    ends(journal, 2, text="first")
    drive = driven(journal)
    assert kinds(drive.plan()) == ["run_claimed", "step_finished", "step_started"]
    assert [result.content for result in results_by_call(drive.view).values()] == ["first", "second"]


def test_id_of_a_child_is_one_for_each_attempt() -> None:
    run_id = new_uuid7()
    ids = [child_run_id(run_id, step, attempt) for step in (1, 2) for attempt in (1, 2)]
    assert ids == [child_run_id(run_id, step, attempt) for step in (1, 2) for attempt in (1, 2)]
    assert len({*ids, child_run_id(new_uuid7(), 1, 1)}) == 5
    assert {(UUID(one).version, UUID(one).int >> 80) for one in ids} == {(7, UUID(run_id).int >> 80)}


def test_whoever_drives_next_starts_no_child_again() -> None:
    journal, _, _ = calling("research")
    drive = driven(journal)
    plan = drive.plan()
    assert not plan.changes and not plan.children
    assert drive.planner.agent_tools([]) == []


def test_child_is_asked_a_text_or_its_arguments_and_has_the_time_of_its_tool() -> None:
    _, _, plan = calling("research", "form")
    text, form = (child_run("w", RUN_ID, call) for call in plan.children)
    assert [new.input.message.parts[0].text for new in (text, form)] == ["dig", '{"input":"dig"}']
    assert (text.HasField("ttl"), form.ttl.seconds) == (False, 60)
    assert (form.agent, form.revision, form.parent.step, form.parent.attempt) == ("researcher", TARGET.revision, 3, 1)
    assert (form.parent.depth, form.parent.depth_limit) == (1, 5)


def test_answer_has_to_fit_what_the_tool_declares() -> None:
    journal, _, _ = calling("count", "count")
    ends(journal, 2, text="42")
    ends(journal, 3, text="many")
    drive = driven(journal)
    drive.plan()
    fits, refused = results_by_call(drive.view).values()
    assert (fits.content, fits.is_error) == ("42", False)
    assert refused.is_error and "not valid JSON" in refused.content


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (run_pb2.RUN_STATE_FAILED, "CHILD_FAILED"),
        (run_pb2.RUN_STATE_CANCELLED, "CHILD_CANCELLED"),
        (run_pb2.RUN_STATE_EXPIRED, "CHILD_EXPIRED"),
    ],
)
def test_child_that_comes_to_nothing_is_told_and_not_repeated(state: run_pb2.RunState, reason: str) -> None:
    journal, _, _ = calling("research")
    ends(journal, 2, state)
    drive = driven(journal)
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_finished", "step_started"]
    assert not started(plan)
    [result] = results_by_call(drive.view).values()
    assert result.is_error and reason in result.content


def test_failed_child_is_repeated_after_its_delay_where_its_tool_says_so() -> None:
    journal, _, plan = calling("again")
    first = started(plan)
    ends(journal, 2, run_pb2.RUN_STATE_FAILED)
    drive = driven(journal)
    assert [tool.name for tool in drive.planner.agent_tools([])] == ["again"]
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "attempt_started"]
    if not started(plan):
        parked = drive.planner.park()
        assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_TIMER
        assert last_state(parked).HasField("wake_time")
        drive.store(parked)
        drive = driven(journal)
        plan = drive.plan(now=NOW + timedelta(seconds=61))
    second = started(plan)
    assert second == [child_run_id(RUN_ID, 2, 2)] != first
    ends(journal, 2, run_pb2.RUN_STATE_FAILED)
    drive = driven(journal)
    drive.plan()
    [result] = results_by_call(drive.view).values()
    assert "CHILD_FAILED" in result.content


def test_cancelled_child_is_not_repeated() -> None:
    journal, _, _ = calling("again")
    ends(journal, 2, run_pb2.RUN_STATE_CANCELLED)
    plan = driven(journal).plan()
    assert "attempt_started" not in kinds(plan)


def test_run_that_ends_after_all_starts_no_child() -> None:
    journal = Journal(agent(tools=[{**TOOLS[1], "retry": {"max_attempts": 2, "initial_interval": "0s"}}, TOOLS[4]]))
    drive = driven(journal)
    drive.plan()
    drive.plan(drive.model_says(("again", {"input": "dig"}), ("pay_or_fail", {})))
    ends(journal, 2, run_pb2.RUN_STATE_FAILED)
    # The executor was lost while it paid: that ends the run, after the child's next attempt was decided.
    plan = driven(journal).plan()
    assert last_state(plan).state == run_pb2.RUN_STATE_FAILED
    assert "attempt_started" in kinds(plan)
    assert not started(plan) and not plan.children


@pytest.mark.parametrize(
    ("depth", "limit", "own", "is_refused"),
    [(0, 0, 0, False), (4, 5, 0, False), (5, 5, 0, True), (1, 5, 1, False), (2, 2, 9, True)],
)
def test_depth_is_limited_by_everybody_above(depth: int, limit: int, own: int, is_refused: bool) -> None:
    journal = Journal(agent(tools=TOOLS, limits={"max_depth": own}))
    created = journal.events[0].changes[0].run_created
    created.depth, created.depth_limit = depth, limit
    drive = driven(journal)
    drive.plan()
    plan = drive.plan(drive.model_says(("research", {"input": "dig"})))
    assert bool(started(plan)) != is_refused
    if is_refused:
        [result] = results_by_call(drive.view).values()
        assert "MAX_DEPTH_EXCEEDED" in result.content
    else:
        [child] = plan.children
        assert child.depth == depth + 1
        assert child.depth_limit == min(limit or 99, depth + (own or 5))


def test_run_starts_no_more_children_than_its_limit() -> None:
    _, drive, plan = calling("research", "research", "research", max_children=2)
    assert len(started(plan)) == 2
    [result] = results_by_call(drive.view).values()
    assert "MAX_CHILDREN_EXCEEDED" in result.content


def test_agent_that_is_gone_is_told_to_the_model() -> None:
    journal = Journal(agent(tools=TOOLS))
    drive = driven(journal)
    gone = content_pb2.Failure(reason="AGENT_NOT_FOUND", message="no such agent")
    drive.planner.targets = {"research": gone}
    drive.plan()
    plan = drive.plan(drive.model_says(("research", {"input": "dig"})))
    assert not started(plan)
    [result] = results_by_call(drive.view).values()
    assert "AGENT_NOT_FOUND" in result.content


def test_cancelled_run_gives_up_its_children_as_state_would() -> None:
    journal, _, _ = calling("research")
    left = OpenEnds()
    for event in journal.events:
        left.take(event)
    journal.write(0, [run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())])
    plan = driven(journal).plan()
    assert last_state(plan).state == run_pb2.RUN_STATE_EXPIRED
    finished = [change for change in plan.changes if change.WhichOneof("kind") == "step_finished"]
    assert finished == left.changes()


def test_call_that_needs_approval_starts_its_run_after_the_yes() -> None:
    tools = [{**TOOLS[0], "approval": {"always": True}}]
    journal = Journal(agent(tools=tools))
    drive = driven(journal)
    drive.plan()
    plan = drive.plan(drive.model_says(("research", {"input": "dig"})))
    assert not started(plan)
    asked = plan.changes[-1].approval_requested.approval
    assert asked.kind == run_pb2.APPROVAL_KIND_TOOL_CALL
    assert last_state(drive.planner.park()).wait_reason == run_pb2.WAIT_REASON_APPROVAL
    decided = run_pb2.ApprovalDecided(
        approval_id=asked.approval_id,
        step=asked.step,
        verdict=run_pb2.APPROVAL_VERDICT_APPROVED,
        arguments_sha256=asked.arguments_sha256,
    )
    journal.write(0, [run_pb2.Change(approval_decided=decided)])
    assert started(driven(journal).plan()) == [child_run_id(RUN_ID, asked.step, 1)]
