"""The crash campaign in its short form, and that it would notice: the long form is `make campaign`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from tests.campaign import schedule
from tests.campaign.campaign import Outcome, Plan, run_campaign
from tests.campaign.effects import Counted
from tests.campaign.load import Record
from tests.campaign.verdict import Violation, effect_violations, run_violations
from tests.suite.effects import HttpEffects

SEED = 20_261
KEY = "a key"


@pytest.mark.slow
# Longer than the campaign waits for ends, so that it says itself what has not ended.
@pytest.mark.timeout(300)
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@pytest.mark.promise("P9")
@pytest.mark.promise("P12")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_short_campaign_finds_nothing(database: str) -> None:
    plan = Plan(seed=SEED, faults=10, runs=40, window=20, database=database, longest_pause=6.0)
    outcome = await run_campaign(plan)
    print(outcome.report())
    assert not outcome.violations, outcome.report()
    assert sum(outcome.kinds.values()) == plan.faults
    assert len(outcome.records) >= plan.runs
    assert not outcome.data.exists(), "nothing is kept of a campaign without a finding"


# ------------------------------------------------------------------------------------------------------- the schedule


def test_the_same_seed_gives_the_same_faults() -> None:
    options = {"executors": 2, "states": 2, "workers": 2, "has_postgres": True}
    first, again, other = (schedule.plan(seed, 200, **options) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert first == again != other
    assert {fault.kind for fault in first} == set(schedule._WEIGHTS), "every kind comes"
    assert {fault.target for fault in first} == {0, 1}
    assert any(fault.seconds > 5 for fault in first), "some pauses are longer than a lease"


def test_without_postgresql_it_is_not_crashed() -> None:
    faults = schedule.plan(1, 200, executors=1, states=1, workers=1, has_postgres=False)
    assert schedule.RESTART_POSTGRES not in {fault.kind for fault in faults}


# -------------------------------------------------------------------------------------------------------- the verdict


def history() -> list[run_pb2.Event]:
    """A run that has paid once."""
    call = content_pb2.ToolCall(call_id="c", tool="pay", arguments_json="{}")
    result = content_pb2.ToolResult(call_id="c", tool="pay", content="done")

    def says(role: content_pb2.Role, part: content_pb2.Part) -> content_pb2.StoredMessage:
        return content_pb2.StoredMessage(message=content_pb2.Message(role=role, parts=[part]))

    intent = run_pb2.ToolIntent(tool="pay", call_id="c", tool_kind="http", idempotency_key=KEY)
    text = content_pb2.Part(text="hello")
    changes = [
        run_pb2.Change(run_created=run_pb2.RunCreated(input=says(content_pb2.ROLE_USER, text))),
        run_pb2.Change(run_claimed=run_pb2.RunClaimed(epoch=1)),
        run_pb2.Change(step_started=run_pb2.StepStarted(step=1, kind=run_pb2.STEP_KIND_MODEL)),
        finished(1, says(content_pb2.ROLE_ASSISTANT, content_pb2.Part(tool_call=call))),
        run_pb2.Change(step_started=run_pb2.StepStarted(step=2, kind=run_pb2.STEP_KIND_TOOL, tool=intent)),
        finished(2, says(content_pb2.ROLE_TOOL, content_pb2.Part(tool_result=result))),
        run_pb2.Change(step_started=run_pb2.StepStarted(step=3, kind=run_pb2.STEP_KIND_MODEL)),
        finished(3, says(content_pb2.ROLE_ASSISTANT, text)),
        run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_SUCCEEDED)),
    ]
    return [
        run_pb2.Event(run_id="run-1", seq=seq, epoch=min(seq - 1, 1), changes=[change])
        for seq, change in enumerate(changes, 1)
    ]


def finished(step: int, message: content_pb2.StoredMessage) -> run_pb2.Change:
    state = run_pb2.STEP_STATE_SUCCEEDED
    return run_pb2.Change(step_finished=run_pb2.StepFinished(step=step, attempt=1, state=state, message=message))


def counted(calls: int) -> Counted:
    """So many effects under the step's key."""
    effects = Counted(HttpEffects(), random.Random(1))
    effects.calls[KEY] = calls
    effects.tool_of[KEY], effects.run_of[KEY] = "pay", "run-1"
    return effects


def record(events: list[run_pb2.Event]) -> Record:
    return Record(0, "run-1", "session-1", "agent-1", events=events)


def test_a_run_whose_effect_happened_once_is_in_order() -> None:
    assert list(run_violations(record(history()), counted(1))) == []
    assert list(effect_violations([record(history())], counted(1))) == []


@pytest.mark.parametrize(
    ("calls", "what"),
    [
        (2, "step 2, pay: its effect happened 2 times"),
        (0, "step 2, pay: it succeeded and its effect never happened"),
    ],
)
def test_an_effect_that_happened_twice_or_never_is_found(calls: int, what: str) -> None:
    assert list(run_violations(record(history()), counted(calls))) == [Violation(what, "run-1")]


def test_an_effect_that_no_journal_knows_is_found() -> None:
    (found,) = effect_violations([], counted(1))
    assert found == Violation("pay was called with the key a key of no step", "run-1")


@pytest.mark.parametrize("missing", range(1, 9))
def test_a_watcher_that_missed_an_event_is_found(missing: int) -> None:
    events = history()
    del events[missing - 1]
    (found,) = run_violations(record(events), counted(1))
    assert "dense" in found.what


def test_a_run_that_failed_or_was_cancelled_without_a_word_is_found() -> None:
    for state in (run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED):
        events = history()
        events[-1].changes[0].run_state_changed.state = state
        (found,) = run_violations(record(events), counted(1))
        assert found.what == f"it ended as {run_pb2.RunState.Name(state)}"


def test_a_finding_is_printed_with_its_seed_schedule_and_journal(tmp_path: Path) -> None:
    outcome = Outcome(Plan(seed=77, faults=1, runs=1), data=tmp_path)
    outcome.happened.append("1.0 s #1 kill executor")
    outcome.records.append(record(history()))
    assert "no violations" in outcome.report()
    outcome.violations.append(Violation("something is wrong", "run-1"))
    printed = outcome.report()
    for part in ("seed 77", "#1 kill executor", "run-1: something is wrong", "journal of run-1", '"idempotency_key"'):
        assert part in printed
    assert f"kept: {tmp_path}" in printed
    assert "python -m tests.campaign --seed 77 --faults 1" in printed
