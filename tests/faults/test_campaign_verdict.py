"""That the campaign would notice: what its verdict says of histories that are in order, and of those that are not."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from tests.campaign.effects import Counted
from tests.campaign.load import Record, Rest
from tests.campaign.verdict import (
    Violation,
    approval_violations,
    budget_violations,
    child_violations,
    effect_violations,
    expiry_violations,
    pause_violations,
    run_violations,
    seal_violations,
    stored_events,
)
from tests.suite.effects import HttpEffects

KEY = "a key"
PAUSED = run_pb2.RUN_STATE_PAUSED
EXPIRED = run_pb2.RUN_STATE_EXPIRED
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


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
        run_pb2.Change(step_started=asks_model(1)),
        finished(1, says(content_pb2.ROLE_ASSISTANT, content_pb2.Part(tool_call=call))),
        run_pb2.Change(step_started=run_pb2.StepStarted(step=2, kind=run_pb2.STEP_KIND_TOOL, tool=intent)),
        finished(2, says(content_pb2.ROLE_TOOL, content_pb2.Part(tool_result=result))),
        run_pb2.Change(step_started=asks_model(3)),
        finished(3, says(content_pb2.ROLE_ASSISTANT, text)),
        run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_SUCCEEDED)),
    ]
    return [
        run_pb2.Event(run_id="run-1", seq=seq, epoch=min(seq - 1, 1), changes=[change])
        for seq, change in enumerate(changes, 1)
    ]


def asks_model(step: int) -> run_pb2.StepStarted:
    return run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_MODEL, model=run_pb2.ModelIntent(model="scripted"))


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


# --------------------------------------------------------------------------------------------------------------- pauses

PAUSE = run_pb2.Change(pause_requested=run_pb2.PauseRequested(requested_by="ada"))
RESUME = run_pb2.Change(resume_requested=run_pb2.ResumeRequested(requested_by="ada"))
CANCEL = run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by="ada"))
OVER = run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())
BEGINS = run_pb2.Change(
    step_started=run_pb2.StepStarted(step=1, tool=run_pb2.ToolIntent(tool="pay", idempotency_key=KEY))
)
TRIES = run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
LOST = run_pb2.Change(attempt_failed=run_pb2.AttemptFailed(step=1, attempt=1))
ENDS = run_pb2.Change(step_finished=run_pb2.StepFinished(step=1, attempt=1))


def becomes(state: run_pb2.RunState) -> run_pb2.Change:
    return run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state))


def written(
    *events: tuple[int, Sequence[run_pb2.Change]], pauses: int = 1, resumes: int = 1, expires_at: datetime | None = None
) -> Record:
    """A run with these events under these epochs, a second apart from noon, whose pauses were acknowledged so often."""
    messages = []
    for seq, (epoch, changes) in enumerate(events, 1):
        message = run_pb2.Event(run_id="run-1", seq=seq, epoch=epoch, changes=changes)
        message.time.FromDatetime(NOON + timedelta(seconds=seq))
        messages.append(message)
    made = record(messages)
    made.pauses = [Rest(10.0, seq=3, ended=20.0) for _ in range(pauses)]
    made.resumes, made.expires_at = resumes, expires_at
    return made


def test_run_that_rests_is_in_order() -> None:
    # What a driver had begun ends before it rests; what a worker has in hand ends while it does.
    rests = [(1, [BEGINS]), (0, [PAUSE]), (1, [ENDS, becomes(PAUSED)]), (0, [LOST]), (0, [RESUME]), (2, [TRIES])]
    assert list(pause_violations(written(*rests), counted(0))) == []
    # A pause that is withdrawn in time, and one whose run is cancelled.
    assert list(pause_violations(written((0, [PAUSE]), (0, [RESUME]), (1, [BEGINS])), counted(0))) == []
    cancelled = [(0, [PAUSE, becomes(PAUSED)]), (0, [CANCEL]), (1, [BEGINS, ENDS, becomes(SUCCEEDED)])]
    assert list(pause_violations(written(*cancelled, resumes=0), counted(0))) == []


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ([(0, [PAUSE, becomes(PAUSED)]), (1, [ENDS]), (0, [RESUME])], "event 2 is of a driver, and the run is paused"),
        ([(0, [PAUSE]), (1, [BEGINS]), (0, [RESUME])], "event 2 has step_started, and the run is to rest"),
        ([(0, [PAUSE]), (1, [TRIES]), (0, [RESUME])], "event 2 has attempt_started, and the run is to rest"),
        ([(0, [PAUSE]), (0, [RESUME]), (1, [becomes(PAUSED)])], "event 3 pauses it, and nobody asked for that"),
        ([(0, [RESUME])], "1 times pause_requested was acknowledged, 0 are there"),
        ([(0, [PAUSE]), (0, [RESUME]), (0, [PAUSE])], "1 times pause_requested was acknowledged, 2 are there"),
        ([(0, [PAUSE])], "1 times resume_requested was acknowledged, 0 are there"),
    ],
)
def test_run_that_does_not_rest_is_found(events: list[tuple[int, Sequence[run_pb2.Change]]], what: str) -> None:
    assert list(pause_violations(written(*events), counted(0))) == [Violation(what, "run-1")]


@pytest.mark.parametrize(("arrived", "is_found"), [(5.0, False), (15.0, True), (25.0, False)])
def test_effect_of_a_run_that_rests_is_found(arrived: float, is_found: bool) -> None:
    rests = written((0, [PAUSE]), (1, [becomes(PAUSED)]), (0, [RESUME]), (1, [BEGINS]))
    effects = counted(1)
    effects.arrivals["run-1"] = [(KEY, arrived)]
    found = [Violation("pay was begun and called while it was paused", "run-1")]
    assert list(pause_violations(rests, effects)) == (found if is_found else [])
    # What was begun before may still be under way.
    begun = written((1, [BEGINS]), (0, [PAUSE]), (1, [becomes(PAUSED)]), (0, [RESUME]))
    assert list(pause_violations(begun, effects)) == []


# ---------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("events", "seconds", "what"),
    [
        ([(1, [BEGINS]), (0, [OVER]), (1, [ENDS]), (1, [BEGINS, ENDS, becomes(EXPIRED)])], 2, ""),
        ([(0, [OVER, BEGINS, ENDS, becomes(EXPIRED)])], 1, ""),
        ([(1, [BEGINS, ENDS, becomes(SUCCEEDED)])], 0, ""),
        ([(0, [OVER, becomes(EXPIRED)])], 2, "event 1: its time is over too early"),
        ([(0, [OVER, becomes(EXPIRED)])], None, "event 1: its time is over too early"),
        ([(0, [OVER]), (0, [OVER, becomes(EXPIRED)])], 1, "event 2: its time is over for the second time"),
        ([(0, [becomes(EXPIRED)])], 1, "it is EXPIRED without a word of its time"),
        ([(0, [OVER]), (1, [becomes(SUCCEEDED)])], 1, "its time was over, and it ended as something else"),
        ([(0, [OVER]), (1, [TRIES]), (1, [becomes(EXPIRED)])], 1, "event 2 begins something, and its time is over"),
    ],
)
def test_time_of_a_run(events: list[tuple[int, Sequence[run_pb2.Change]]], seconds: int | None, what: str) -> None:
    expires_at = None if seconds is None else NOON + timedelta(seconds=seconds)
    found = list(expiry_violations(written(*events, expires_at=expires_at)))
    assert found == ([Violation(what, "run-1")] if what else [])


def test_run_that_expired_is_in_order_only_when_its_time_was_limited() -> None:
    events = history()
    events[-1].changes[0].run_state_changed.state = EXPIRED
    (found,) = run_violations(record(events), counted(1))
    assert found.what == "it ended as RUN_STATE_EXPIRED"
    expected = record(events)
    expected.expires_at = NOON
    assert list(run_violations(expected, counted(1))) == []


# -------------------------------------------------------------------------------------------------------------- budgets


def limited(budget: agent_pb2.Budget) -> Record:
    """The run that has paid once, under a budget."""
    events = history()
    events[0].changes[0].run_created.budget.CopyFrom(budget)
    run = record(events)
    run.is_limited = True
    return run


@pytest.mark.parametrize(
    ("budget", "calls", "what"),
    [
        (agent_pb2.Budget(max_tool_calls=1, max_model_calls=2), 1, []),
        (agent_pb2.Budget(max_tool_calls=1), 2, ["it made 2 calls of tools, more than its budget has"]),
        (
            agent_pb2.Budget(max_model_calls=1),
            1,
            ["event 7: max_model_calls is exceeded by 1", "event 8: max_model_calls is exceeded by 1"],
        ),
    ],
)
def test_budget_of_a_run(budget: agent_pb2.Budget, calls: int, what: list[str]) -> None:
    effects = counted(1)
    for number in range(1, calls):
        effects.run_of[f"another key {number}"] = "run-1"
    assert [found.what for found in budget_violations(limited(budget), effects)] == what


def test_what_runs_below_use_is_of_the_same_budget() -> None:
    run = limited(agent_pb2.Budget(max_tool_calls=1))
    child = Record(0, "child", "session-1", "helper-1", is_limited=True, parent=run)
    effects = counted(1)
    effects.run_of["a child's key"] = "child"
    found = list(budget_violations(run, effects, [child]))
    assert found == [Violation("it made 2 calls of tools, more than its budget has", "run-1")]


def test_budget_that_was_lost_is_found() -> None:
    run = record(history())
    assert list(budget_violations(run, counted(1))) == []
    run.is_limited = True
    found = list(budget_violations(run, counted(1)))
    assert found == [Violation("it was given a budget, and its journal has none", "run-1")]


# ------------------------------------------------------------------------------------------------------------ approvals


APPROVED = run_pb2.APPROVAL_VERDICT_APPROVED
REJECTED = run_pb2.APPROVAL_VERDICT_REJECTED


def wires(approval_id: str = "") -> run_pb2.Change:
    """A call that needs approval begins."""
    intent = run_pb2.ToolIntent(
        tool="wire", call_id="c", tool_kind="http", idempotency_key=KEY, approval_id=approval_id
    )
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=2, kind=run_pb2.STEP_KIND_TOOL, tool=intent))


def decided(verdict: run_pb2.ApprovalVerdict, key: str = "") -> run_pb2.Change:
    return run_pb2.Change(
        approval_decided=run_pb2.ApprovalDecided(
            step=2, verdict=verdict, edited_arguments_json=key, idempotency_key=key
        )
    )


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ([wires(), decided(APPROVED)], False),
        ([wires("an approval for the run")], False),
        ([wires()], True),
        ([wires(), decided(REJECTED)], True),
        # With other arguments it would have been called with another key.
        ([wires(), decided(APPROVED, "another key")], True),
    ],
)
def test_call_that_nobody_approved_is_found(changes: Sequence[run_pb2.Change], is_found: bool) -> None:
    effects = counted(1)
    effects.tool_of[KEY] = "wire"
    found = list(approval_violations(written((1, changes)), effects))
    expected = [Violation(f"wire was called with the key {KEY}, and nobody approved it", "run-1")]
    assert found == (expected if is_found else [])


# ------------------------------------------------------------------------------------------------------------- children


def starts(child: str) -> run_pb2.Change:
    intent = run_pb2.ToolIntent(tool="help", call_id="c", tool_kind="agent", child_run_id=child)
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=2, kind=run_pb2.STEP_KIND_CHILD, tool=intent))


def hears(child: str, state: run_pb2.RunState = SUCCEEDED) -> run_pb2.Change:
    return run_pb2.Change(child_ended=run_pb2.ChildEnded(step=2, attempt=1, child_run_id=child, state=state))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ([starts("child"), hears("child")], []),
        ([starts("child")], ["it was told 0 times that child has ended"]),
        ([starts("child"), hears("child"), hears("child")], ["it was told 2 times that child has ended"]),
        ([starts("child"), hears("child", EXPIRED)], ["what it was told of child is not so"]),
        ([hears("child")], ["what it was told of child is not so", "nobody started it"]),
    ],
)
def test_what_a_run_is_told_of_another_one(changes: Sequence[run_pb2.Change], what: list[str]) -> None:
    parent = written((1, changes))
    child = Record(0, "child", "session-1", "helper-1", events=history(), parent=parent)
    assert [found.what for found in child_violations([parent], [child])] == what


def test_run_that_has_ended_is_told_nothing_more() -> None:
    parent = written((1, [starts("child")]))
    parent.is_cancelled = True
    child = Record(0, "child", "session-1", "helper-1", events=history(), parent=parent)
    assert list(child_violations([parent], [child])) == []
    child.events[-1].changes[0].run_state_changed.state = run_pb2.RUN_STATE_CANCELLED
    assert list(run_violations(child, counted(1))) == []


# ---------------------------------------------------------------------------------------------------------------- seals


def test_event_in_the_clear_among_sealed_ones_is_found(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("CREATE TABLE journal (run_id TEXT, seq INTEGER, body BLOB)")
        connection.execute("INSERT INTO journal VALUES ('run-1', 1, ?)", (b"\x00hf\x01 and what is sealed",))
        connection.execute("INSERT INTO journal VALUES ('run-1', 2, ?)", (history()[0].SerializeToString(),))
        connection.commit()
    stored = list(stored_events(tmp_path, None))
    assert seal_violations(stored, seals=True) == [Violation("event 2 is stored in the clear", "run-1")]
    assert seal_violations(stored, seals=False) == [Violation("event 1 is stored sealed", "run-1")]
