"""One run is one trace: every step a span with an id of its own, parents before children, nothing open at the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.trace.spans import Span, SpanBuilder, SpanKind, span_id_of, trace_id_of
from services.trace.summary import RunRecord
from services.trace.timeline import Outcome, Timeline
from tests.trace.journals import (
    SUCCEEDED,
    Journal,
    answer,
    approved_run,
    asks,
    at,
    attempt_failed,
    attempt_started,
    call_started,
    cancelled_run,
    ends,
    failure,
    finish_model,
    finish_tool,
    parallel_run,
    paused_run,
    result,
    simple_run,
    start_model,
    start_tool,
    timer_run,
    troubled_run,
)

RUN_ID = "0198c0de-1111-7000-8000-000000000001"


def spans_of(journal: Journal, *, up_to: int | None = None) -> list[Span]:
    events = journal.events[:up_to]
    run = RunRecord(journal.run_id, journal.workspace_id)
    run.advance({event.seq: event for event in events})
    return SpanBuilder(run, Timeline(events)).all()


def named(spans: Sequence[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


def test_ids_are_those_of_every_release() -> None:
    # Ids are computed again whenever a run is read: another formula would make other traces of old runs.
    assert trace_id_of(RUN_ID) == "0198c0de111170008000000000000001"
    assert span_id_of(RUN_ID, SpanKind.RUN) == "70938f3d490a8e20"
    assert span_id_of(RUN_ID, SpanKind.TOOL, "3") == "b09035f005699f3c"
    assert span_id_of(RUN_ID, SpanKind.ATTEMPT, "3", 2) == "fe36772e6cc7693d"


def test_simple_run_has_a_root_a_segment_and_a_model_call() -> None:
    journal = simple_run()
    spans = spans_of(journal)
    assert [(span.name, span.kind) for span in spans] == [
        ("invoke_agent support", SpanKind.RUN),
        ("holdfast.segment 1", SpanKind.SEGMENT),
        ("chat gpt-5-mini", SpanKind.MODEL),
    ]
    root, segment, model = spans
    assert root.parent_span_id == ""
    assert segment.parent_span_id == model.parent_span_id == root.span_id
    assert {span.trace_id for span in spans} == {trace_id_of(journal.run_id)}
    assert (root.started_at, root.ended_at) == (at(0), at(3))
    assert (segment.started_at, segment.ended_at) == (at(1), at(3))
    assert (model.started_at, model.ended_at) == (at(2), at(3))
    assert {span.outcome for span in spans} == {Outcome.OK}


def test_model_call_has_the_attributes_of_the_conventions() -> None:
    model = named(spans_of(simple_run()), "chat gpt-5-mini")
    assert model.attributes | {"gen_ai.conversation.id": ""} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.response.id": "response-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.conversation.id": "",
        "holdfast.usage.cost_usd_nanos": 1_000,
        "holdfast.usage.price_source": "genai-prices 0.2.3",
        "holdfast.request.message_count": 1,
        "holdfast.step.number": 1,
        "holdfast.segment.number": 1,
    }


def test_tool_call_has_the_attributes_of_the_conventions_and_its_worker() -> None:
    tool = named(spans_of(parallel_run()), "execute_tool find_order")
    assert tool.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "find_order",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "a",
        "holdfast.tool.kind": "worker",
        "holdfast.tool.effect": "idempotent",
        "holdfast.idempotency_key": "key-a",
        "holdfast.worker.id": "worker-2",
        "holdfast.attempt.accept_time": at(5).isoformat(),
        "holdfast.step.number": 2,
        "holdfast.segment.number": 1,
    }


@pytest.mark.parametrize("kind", [simple_run, parallel_run, troubled_run, cancelled_run, timer_run, approved_run])
@pytest.mark.promise("P9")
def test_every_prefix_of_a_journal_is_a_tree_whose_ids_stay(kind) -> None:
    journal = kind()
    kept: set[str] = set()
    for length in range(1, len(journal.events) + 1):
        spans = spans_of(journal, up_to=length)
        ids = [span.span_id for span in spans]
        assert len(set(ids)) == len(ids), "no doubles"
        # A step that succeeds at once has no attempts; once one is shown it stays.
        assert kept <= set(ids)
        kept = set(ids)
        seen: set[str] = set()
        for span in spans:
            assert not span.parent_span_id or span.parent_span_id in seen, "parents before children"
            seen.add(span.span_id)
            assert span.ended_at is None or span.started_at <= span.ended_at
            assert (span.ended_at is None) == (span.outcome is Outcome.OPEN)
    if journal.events[-1].changes[-1].HasField("run_state_changed"):
        assert all(span.ended_at is not None for span in spans), "nothing is open when the run is over"


def test_step_that_is_not_finished_is_an_open_span() -> None:
    tool = named(spans_of(parallel_run(), up_to=5), "execute_tool find_order")
    assert (tool.ended_at, tool.outcome) == (None, Outcome.OPEN)


def test_lost_executor_ends_its_segment_at_its_last_event() -> None:
    spans = spans_of(troubled_run())
    first, second, third = (named(spans, f"holdfast.segment {number}") for number in (1, 2, 3))
    assert (first.started_at, first.ended_at, first.outcome) == (at(1), at(2), Outcome.ERROR)
    assert first.failure is not None
    assert first.failure.reason == "EXECUTOR_LOST"
    assert first.attributes["error.type"] == "EXECUTOR_LOST"
    assert first.attributes["holdfast.segment.end"] == "lost"
    assert second.attributes["holdfast.segment.reason"] == "takeover"
    assert second.attributes["holdfast.executor.id"] == "executor-2"
    assert (second.outcome, second.attributes["holdfast.segment.end"]) == (Outcome.OK, "waiting")
    assert (third.attributes["holdfast.segment.reason"], third.attributes["holdfast.segment.end"]) == ("wake", "ended")
    assert third.attributes["holdfast.lease.epoch"] == 3


def test_attempts_are_children_of_the_one_span_of_their_step() -> None:
    spans = spans_of(troubled_run())
    model = next(span for span in spans if span.step == 1)
    attempts = [span for span in spans if span.kind is SpanKind.ATTEMPT and span.step == 1]
    assert [(span.name, span.attempt, span.outcome) for span in attempts] == [
        ("holdfast.attempt 1", 1, Outcome.ERROR),
        ("holdfast.attempt 2", 2, Outcome.ERROR),
        ("holdfast.attempt 3", 3, Outcome.OK),
    ]
    assert {span.parent_span_id for span in attempts} == {model.span_id}
    assert [span.failure.reason if span.failure else None for span in attempts] == [
        "EXECUTOR_LOST",
        "MODEL_OVERLOADED",
        None,
    ]
    assert model.outcome is Outcome.OK
    assert model.attributes["holdfast.attempt.count"] == 3
    # The delay before an attempt is not part of it.
    assert attempts[1].ended_at is not None
    assert (attempts[2].started_at - attempts[1].ended_at).total_seconds() == 3


def test_attempt_called_off_during_its_delay_has_no_length() -> None:
    journal = Journal().claim()
    journal.drive(start_model(1, 1))
    journal.drive(attempt_failed(1, 1, "OVERLOADED"), attempt_started(1, 2, not_before=1_000))
    journal.drive(
        finish_model(1, None, attempt=2, state=run_pb2.STEP_STATE_CANCELLED), ends(run_pb2.RUN_STATE_CANCELLED)
    )
    second = named(spans_of(journal), "holdfast.attempt 2")
    assert second.started_at == second.ended_at == at(journal.now)
    assert second.outcome is Outcome.CANCELLED


def test_call_in_doubt_shows_its_question_and_late_result() -> None:
    spans = spans_of(troubled_run())
    refund = named(spans, "execute_tool refund")
    assert refund.outcome is Outcome.ERROR
    assert refund.attributes["error.type"] == "TOOL_FAILED"
    assert refund.attributes["holdfast.approval.state"] == "decided"
    assert refund.attributes["holdfast.approval.decided_by"] == "key-of-ada"
    assert refund.attributes["holdfast.late_results"] == 1
    first, second = (span for span in spans if span.kind is SpanKind.ATTEMPT and span.step == 2)
    assert (first.outcome, first.attributes["holdfast.step.in_doubt"]) == (Outcome.ERROR, True)
    assert second.attributes["holdfast.worker.id"] == "worker-2"
    assert second.failure is not None
    assert second.failure.reason == "TOOL_FAILED"


def test_the_wait_for_an_approval_is_a_span_of_its_own_and_so_is_the_call() -> None:
    journal = approved_run()
    spans = spans_of(journal)
    approved, rejected, expired = (span for span in spans if span.name == "holdfast.approval refund")
    call = next(span for span in spans if span.step == 2 and span.kind is SpanKind.TOOL)
    assert {span.kind for span in (approved, rejected, expired)} == {SpanKind.APPROVAL}
    assert approved.parent_span_id == call.span_id
    assert (approved.outcome, rejected.outcome, expired.outcome) == (Outcome.OK, Outcome.OK, Outcome.ERROR)
    assert approved.attributes["holdfast.approval.verdict"] == "approved"
    assert approved.attributes["holdfast.approval.scope"] == "once"
    assert approved.attributes["holdfast.approval.edited"] is True
    assert approved.attributes["holdfast.approval.decided_by"] == "key-of-ada"
    assert rejected.attributes["holdfast.approval.verdict"] == "rejected"
    assert expired.attributes["holdfast.approval.state"] == "expired"
    waited = approved.attributes["holdfast.approval.wait_seconds"]
    assert isinstance(waited, float)
    assert waited >= 3_600
    assert approved.ended_at is not None
    assert (approved.ended_at - approved.started_at).total_seconds() == waited
    # The call itself took some seconds of that hour.
    [attempt] = [span for span in spans if span.kind is SpanKind.ATTEMPT]
    assert attempt.step == 2
    assert attempt.ended_at is not None
    assert attempt.started_at >= approved.ended_at
    assert 5 <= (attempt.ended_at - attempt.started_at).total_seconds() < 60
    assert call.attributes["holdfast.idempotency_key"] == "another key"
    standing = next(span for span in spans if span.step == 6)
    assert standing.attributes["holdfast.approval.standing_id"] == approved.attributes["holdfast.approval.id"]
    assert len({span.span_id for span in spans}) == len(spans)
    assert all(span.ended_at is not None for span in spans)


def test_a_wait_for_an_approval_is_open_while_nobody_has_decided() -> None:
    journal = approved_run()
    spans = spans_of(journal, up_to=4)
    waits = [span for span in spans if span.name == "holdfast.approval refund"]
    assert [(span.outcome, span.ended_at) for span in waits] == [(Outcome.OPEN, None)] * 3
    assert not [span for span in spans if span.kind is SpanKind.ATTEMPT]


def test_call_in_doubt_is_open_and_says_what_is_known() -> None:
    journal = troubled_run()
    waiting = next(
        event.seq for event in journal.events if event.changes[-1].run_state_changed.state == run_pb2.RUN_STATE_WAITING
    )
    refund = named(spans_of(journal, up_to=waiting), "execute_tool refund")
    assert (refund.ended_at, refund.attributes["holdfast.step.in_doubt"]) == (None, True)
    assert refund.failure is not None
    assert refund.failure.reason == "WORKER_LOST"


def test_failed_run_says_why() -> None:
    root = spans_of(troubled_run())[0]
    assert root.outcome is Outcome.ERROR
    assert root.attributes["error.type"] == "MODEL_REFUSED"


def test_cancelled_run_ends_everything_cancelled() -> None:
    spans = spans_of(cancelled_run())
    root = spans[0]
    assert root.outcome is Outcome.CANCELLED
    assert root.attributes["holdfast.cancel.requested_by"] == "key-of-ada"
    assert root.attributes["holdfast.cancel.reason"] == "changed my mind"
    wait = named(spans, "holdfast.wait sleep_until")
    assert (wait.kind, wait.outcome) == (SpanKind.WAIT, Outcome.CANCELLED)
    assert named(spans, "execute_tool fetch").outcome is Outcome.CANCELLED


def test_run_cancelled_before_it_began_has_no_segment() -> None:
    journal = Journal()
    journal.outside(
        run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by="ada")), ends(run_pb2.RUN_STATE_CANCELLED)
    )
    [root] = spans_of(journal)
    assert (root.outcome, root.ended_at) == (Outcome.CANCELLED, at(1))


def test_wait_is_open_while_its_timer_runs() -> None:
    journal = timer_run()
    wait = named(spans_of(journal, up_to=4), "holdfast.wait sleep_until")
    assert (wait.kind, wait.ended_at) == (SpanKind.WAIT, None)
    segments = [span for span in spans_of(journal, up_to=4) if span.kind is SpanKind.SEGMENT]
    assert [segment.outcome for segment in segments] == [Outcome.OK], "nobody drives a run that waits"


def test_refused_call_is_a_failed_span_without_attempts() -> None:
    # Invalid arguments: never dispatched, so that there was no attempt to tell of.
    journal = Journal().claim().drive(start_model(1, 1))
    told = result("a", "refund", "id is missing", is_error=True)
    journal.drive(
        finish_model(1, asks(("a", "refund", {}))),
        start_tool(2, "a", "refund"),
        finish_tool(2, told, state=run_pb2.STEP_STATE_FAILED, why=failure("INVALID_ARGUMENTS")),
        start_model(3, 3),
    )
    spans = spans_of(journal)
    refund = named(spans, "execute_tool refund")
    assert (refund.outcome, refund.attributes["error.type"]) == (Outcome.ERROR, "INVALID_ARGUMENTS")
    assert [span for span in spans if span.kind is SpanKind.ATTEMPT] == []


def test_caller_is_an_attribute_and_not_the_parent() -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    root = spans_of(simple_run(traceparent=caller))[0]
    assert root.attributes["holdfast.caller.traceparent"] == caller
    assert root.parent_span_id == ""


def test_worker_call_given_to_another_worker_is_one_attempt() -> None:
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(finish_model(1, asks(("a", "fetch", {}))), start_tool(2, "a", "fetch"))
    journal.outside(call_started(2, 1, "worker-1"))
    journal.outside(finish_tool(2, result("a", "fetch", "ok"), state=SUCCEEDED))
    journal.drive(start_model(3, 3))
    journal.drive(finish_model(3, answer("done")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    assert [span.kind for span in spans_of(journal) if span.step == 2] == [SpanKind.TOOL]


def test_paused_run_shows_who_asked_and_its_segments_end_paused() -> None:
    spans = spans_of(paused_run())
    root = spans[0]
    assert (root.outcome, root.attributes["error.type"]) == (Outcome.ERROR, "RUN_EXPIRED")
    assert root.attributes["holdfast.pause.count"] == 2
    assert root.attributes["holdfast.pause.requested_by"] == "key-of-bob"
    assert root.attributes["holdfast.pause.reason"] == "lunch"
    ends = [span.attributes.get("holdfast.segment.end") for span in spans if span.kind is SpanKind.SEGMENT]
    assert ends == ["paused", "waiting"]
    assert named(spans, "holdfast.wait ask_user").outcome is Outcome.CANCELLED


def test_run_that_ends_for_somebody_outside_after_its_executor_was_lost_has_a_lost_segment() -> None:
    journal = Journal().claim().drive(start_model(1, 1))
    journal.pause(50).outside(ends(run_pb2.RUN_STATE_EXPIRED))
    segment = named(spans_of(journal), "holdfast.segment 1")
    assert (segment.attributes["holdfast.segment.end"], segment.ended_at) == ("lost", at(2))


def test_run_with_a_budget_shows_what_is_left_of_it_and_what_a_call_had_reserved() -> None:
    journal = Journal()
    journal.events[0].changes[0].run_created.budget.CopyFrom(agent_pb2.Budget(max_total_tokens=500, max_tool_calls=0))
    begun = start_model(1, 1)
    begun.step_started.model.reserved.CopyFrom(run_pb2.Reservation(input_tokens=100, output_tokens=60))
    journal.claim().drive(begun)
    root = spans_of(journal)[0].attributes
    assert (root["holdfast.budget.limit.max_total_tokens"], root["holdfast.budget.left.max_total_tokens"]) == (500, 340)
    assert "holdfast.budget.limit.max_tool_calls" not in root
    [call] = [span for span in spans_of(journal) if span.kind is SpanKind.MODEL]
    assert call.attributes["holdfast.reserved.input_tokens"] == 100
    assert "holdfast.reserved.cost_usd_nanos" not in call.attributes
    ended = ends(run_pb2.RUN_STATE_BUDGET_EXCEEDED)
    ended.run_state_changed.failure.CopyFrom(content_pb2.Failure(reason="BUDGET_EXCEEDED", message="no room"))
    journal.drive(finish_model(1, answer("hm")), ended)
    root_span = spans_of(journal)[0]
    assert (root_span.outcome, root_span.attributes["error.type"]) == (Outcome.ERROR, "BUDGET_EXCEEDED")
    assert root_span.attributes["holdfast.budget.reserved.max_total_tokens"] == 0
