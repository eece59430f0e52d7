"""What must be true of every journal, whatever happened while it was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.runs import RunEvent, RunHandle
from services.executor.journal_view import RunView
from services.shared.run_budgets import Amounts

ENDED = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED,
    run_pb2.RUN_STATE_BUDGET_EXCEEDED,
)


async def read_history(handle: RunHandle) -> list[run_pb2.Event]:
    """All events of a run, to its end, with their messages inline."""
    events = []
    async for event in handle.events(deltas=False):
        assert isinstance(event, RunEvent)
        for change in event.changes:
            if change.HasField("step_finished") and change.step_finished.message.WhichOneof("body") == "blob":
                stored = change.step_finished.message
                stored.message.CopyFrom(await handle.read_message(stored))
        events.append(event.message)
    return events


def check_history(events: list[run_pb2.Event]) -> RunView:
    """Checks a finished run's journal, folds it and returns the view."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "events are dense from 1"
    epochs = [event.epoch for event in events if event.epoch]
    assert epochs == sorted(epochs), "nobody writes under an older lease"
    claims = [change.run_claimed.epoch for _, change in _of_kind(events, "run_claimed")]
    assert len(set(claims)) == len(claims), "a lease is announced once"

    started = Counter(change.step_started.step for _, change in _of_kind(events, "step_started"))
    assert sorted(started) == list(range(1, len(started) + 1)), "steps are dense from 1"
    assert set(started.values()) <= {1}
    finished = Counter(change.step_finished.step for _, change in _of_kind(events, "step_finished"))
    assert finished == started, "every step has one end"
    _check_attempts(events)

    view = RunView()
    view.apply_events(events)
    assert view.state in ENDED
    assert not view.open_steps
    end = next(event for event in events if any(c.run_state_changed.state in ENDED for c in event.changes))
    after = [change.WhichOneof("kind") for event in events[end.seq :] for change in event.changes]
    assert set(after) <= {"late_result"}, "nothing follows the end"
    _check_results(view)
    assert view.ledger is None or view.ledger.reserved() == Amounts(), "nothing is reserved after the end"
    return view


def _of_kind(events: Iterable[run_pb2.Event], kind: str) -> list[tuple[run_pb2.Event, run_pb2.Change]]:
    return [(event, change) for event in events for change in event.changes if change.WhichOneof("kind") == kind]


def changes_of(events: Iterable[run_pb2.Event], kind: str) -> list[run_pb2.Change]:
    """All changes of a kind, in order."""
    return [change for _, change in _of_kind(events, kind)]


def _check_attempts(events: list[run_pb2.Event]) -> None:
    """Attempts of a step are numbered without gaps, and each fails at most once."""
    last: dict[int, int] = {}
    failed: set[tuple[int, int]] = set()
    over: set[int] = set()
    for event in events:
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if kind == "step_started":
                last[change.step_started.step] = 1
            elif kind == "attempt_started":
                step, attempt = change.attempt_started.step, change.attempt_started.attempt
                assert step not in over, "no attempt of a step that is over"
                # The same number again: it was announced, and its run was parked before it was made.
                assert attempt in (last[step], last[step] + 1)
                last[step] = attempt
            elif kind == "attempt_failed":
                key = (change.attempt_failed.step, change.attempt_failed.attempt)
                assert key not in failed, "an attempt fails once"
                failed.add(key)
            elif kind == "step_finished":
                over.add(change.step_finished.step)


def _check_results(view: RunView) -> None:
    """Every call of the model has exactly one result message, after it (P7)."""
    calls: list[str] = []
    results: list[str] = []
    for message in view.conversation():
        for part in message.parts:
            if part.WhichOneof("kind") == "tool_call":
                calls.append(part.tool_call.call_id)
            elif part.WhichOneof("kind") == "tool_result":
                assert part.tool_result.call_id in calls
                results.append(part.tool_result.call_id)
    assert len(set(calls)) == len(calls)
    assert sorted(results) == sorted(calls), "one result for each call"


def results_of(view: RunView) -> dict[str, content_pb2.ToolResult]:
    """The last result of each tool."""
    return {
        part.tool_result.tool: part.tool_result
        for message in view.conversation()
        for part in message.parts
        if part.WhichOneof("kind") == "tool_result"
    }
