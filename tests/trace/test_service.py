"""The service as a client sees it: real server, real feed, both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.trace.v1 import query_service_pb2 as pb
from holdfast.errors import HoldfastError, from_rpc_error
from holdfast.ids import new_uuid7
from services.trace.servicer import ACCESS
from tests.trace.conftest import KEY, KEY_WITHOUT_SCOPE, OTHER_KEY, Client, Suite
from tests.trace.journals import (
    OTHER_WORKSPACE,
    WAIT,
    WORKSPACE,
    Blobs,
    Journal,
    answer,
    asks,
    call_started,
    cancelled_run,
    decision,
    ends,
    finish_model,
    finish_tool,
    in_feed_order,
    parallel_run,
    question,
    result,
    simple_run,
    stamp,
    start_model,
    start_tool,
    timer_run,
    troubled_run,
    waits,
)


class Trace:
    """The service with the runs that a test gave it."""

    def __init__(self, suite: Suite, client: Client) -> None:
        self.suite = suite
        self.client = client

    async def read(self, *journals: Journal) -> None:
        """Commits journals and waits until trace has read them."""
        await self.suite.peers.feed.add(*in_feed_order(journals))
        for journal in journals:
            key = KEY if journal.workspace_id == WORKSPACE else OTHER_KEY
            await self.client.tree(journal.run_id, min_seq=len(journal.events), key=key)


@pytest.fixture
async def trace(suite: Suite) -> Trace:
    await suite.start_peers()
    app = await suite.start_trace()
    return Trace(suite, await suite.connect(app))


async def refusal(call: Any) -> HoldfastError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


# ----------------------------------------------------------------------------------------------------------- lists


async def test_runs_are_listed_newest_first_with_what_they_took(trace: Trace) -> None:
    older, newer = troubled_run(), simple_run(begin=1_000)
    await trace.read(older, newer)
    listed = await trace.client.list_runs()
    assert [run.run_id for run in listed.runs] == [newer.run_id, older.run_id]
    assert listed.next_page_token == ""
    run = listed.runs[0]
    assert run.trace_id == newer.run_id.replace("-", "")
    assert (run.session_id, run.agent, run.user_id) == (newer.session_id, "support", "ada")
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.create_time == stamp(1_000)
    assert run.end_time == stamp(1_003)
    assert run.queued_duration.ToSeconds() == 1
    assert run.active_duration.ToSeconds() == 2
    assert run.waiting_duration.ToSeconds() == 0
    assert (run.model_calls, run.tool_calls, run.claims, run.last_seq) == (1, 0, 1, 4)
    assert (run.usage.input_tokens, run.usage.cost_usd_nanos) == (100, 1_000)
    failed = listed.runs[1]
    assert failed.failure.reason == "MODEL_REFUSED"
    assert (failed.failed_attempts, failed.claims) == (3, 3)


async def test_cost_is_unset_while_one_price_is_unknown(trace: Trace) -> None:
    journal = timer_run()
    await trace.read(journal)
    [run] = (await trace.client.list_runs()).runs
    assert not run.usage.HasField("cost_usd_nanos")
    assert not run.HasField("end_time")


async def test_run_that_was_never_claimed_has_no_queued_duration(trace: Trace) -> None:
    await trace.read(Journal())
    [run] = (await trace.client.list_runs()).runs
    assert run.state == run_pb2.RUN_STATE_QUEUED
    assert not run.HasField("queued_duration")


async def test_run_that_waits_says_for_what(trace: Trace) -> None:
    journal = timer_run()
    journal.events = journal.events[:4]
    await trace.read(journal)
    [run] = (await trace.client.list_runs(states=[run_pb2.RUN_STATE_WAITING])).runs
    assert (run.state, run.wait_reason) == (run_pb2.RUN_STATE_WAITING, run_pb2.WAIT_REASON_TIMER)


async def test_pages_hold_every_run_once_also_when_created_together(trace: Trace) -> None:
    # Four at the same moment: the id decides, so that a page boundary between them loses none.
    journals = [simple_run(begin=number // 4) for number in range(11)]
    await trace.read(*journals)
    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        page = await trace.client.list_runs(page_size=3, page_token=token)
        seen += [run.run_id for run in page.runs]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert pages == 4
    expected = sorted(journals, key=lambda journal: (journal.events[0].time.seconds, journal.run_id), reverse=True)
    assert seen == [journal.run_id for journal in expected]


async def test_runs_that_begin_while_one_pages_do_not_move_the_pages(trace: Trace) -> None:
    journals = [simple_run(begin=number) for number in range(4)]
    await trace.read(*journals)
    first = await trace.client.list_runs(page_size=2)
    await trace.read(simple_run(begin=100))
    second = await trace.client.list_runs(page_size=2, page_token=first.next_page_token)
    assert [run.run_id for run in second.runs] == [journals[1].run_id, journals[0].run_id]


async def test_filters_select(trace: Trace) -> None:
    support, other_agent = simple_run(), simple_run(begin=10, agent="billing")
    other_user, waiting = simple_run(begin=20, user_id="bob"), timer_run(begin=30)
    await trace.read(support, other_agent, other_user, waiting)

    async def found(**filters: Any) -> list[str]:
        return [run.run_id for run in (await trace.client.list_runs(**filters)).runs]

    assert await found(agent="billing") == [other_agent.run_id]
    assert await found(user_id="bob") == [other_user.run_id]
    assert await found(session_id=support.session_id) == [support.run_id]
    assert await found(states=[run_pb2.RUN_STATE_RUNNING]) == [waiting.run_id]
    assert await found(states=[run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_SUCCEEDED], user_id="ada") == [
        waiting.run_id,
        other_agent.run_id,
        support.run_id,
    ]
    assert await found(created_after=stamp(10), created_before=stamp(30)) == [other_user.run_id, other_agent.run_id]
    assert await found(agent="nobody") == []


async def test_page_token_is_good_for_its_own_list_only(trace: Trace) -> None:
    await trace.read(*[simple_run(begin=number) for number in range(3)])
    token = (await trace.client.list_runs(page_size=1)).next_page_token
    for request in (
        {"page_token": token, "agent": "support"},
        {"page_token": token, "key": OTHER_KEY},
        {"page_token": token[:-2]},
        {"page_token": "nonsense"},
        {"page_token": "é"},
    ):
        error = await refusal(trace.client.list_runs(**request))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"agent": "a\0b"}, "agent"),
        ({"states": [0]}, "states"),
        ({"created_after": {"seconds": 10**15}}, "created_after"),
    ],
)
async def test_wrong_list_is_refused_and_names_the_field(trace: Trace, request_fields: Any, field: str) -> None:
    error = await refusal(trace.client.list_runs(**request_fields))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.field_violations] == [field]


# ------------------------------------------------------------------------------------------------------------- walls


async def test_every_method_has_an_entry_in_the_access_table() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["QueryService"].methods}
    assert {name.rpartition("/")[2] for name in ACCESS} == methods


@pytest.mark.promise("P11")
async def test_other_workspace_sees_nothing_of_a_run(trace: Trace) -> None:
    mine, theirs = parallel_run(), simple_run(begin=5, workspace_id=OTHER_WORKSPACE)
    await trace.read(mine, theirs)
    assert [run.run_id for run in (await trace.client.list_runs()).runs] == [mine.run_id]
    assert [run.run_id for run in (await trace.client.list_runs(key=OTHER_KEY)).runs] == [theirs.run_id]
    for run_id in (theirs.run_id, new_uuid7()):
        for call in (trace.client.tree(run_id), trace.client.step(run_id, 1)):
            error = await refusal(call)
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
            assert error.message == "there is no such run"


@pytest.mark.promise("P11")
async def test_conversation_never_crosses_into_another_workspace(trace: Trace) -> None:
    # State would never link them; if it did, the wall is still here.
    theirs = simple_run(words="a secret", workspace_id=OTHER_WORKSPACE)
    mine = simple_run(begin=10, previous=theirs)
    await trace.read(theirs, mine)
    detail = (await trace.client.step(mine.run_id, 1)).model
    assert [message.run_id for message in detail.input] == [mine.run_id]


@pytest.mark.parametrize(
    ("key", "code", "reason"),
    [
        ("", grpc.StatusCode.UNAUTHENTICATED, "API_KEY_MISSING"),
        ("made-up", grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"),
        (KEY_WITHOUT_SCOPE, grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    ],
)
async def test_wrong_key_is_refused(trace: Trace, key: str, code: grpc.StatusCode, reason: str) -> None:
    for call in (
        trace.client.list_runs(key=key),
        trace.client.tree(new_uuid7(), key=key),
        trace.client.step(new_uuid7(), 1, key=key),
    ):
        error = await refusal(call)
        assert (error.code, error.reason) == (code, reason)


# ------------------------------------------------------------------------------------------------------------- trees


@pytest.mark.promise("P9")
async def test_tree_has_every_step_once_with_parents_before_children(trace: Trace) -> None:
    journal = parallel_run()
    await trace.read(journal)
    tree = await trace.client.tree(journal.run_id)
    assert [span.name for span in tree.spans] == [
        "invoke_agent support",
        "holdfast.segment 1",
        "chat gpt-5-mini",
        "execute_tool find_order",
        "execute_tool find_user",
        "chat gpt-5-mini",
        "execute_tool send_mail",
        "execute_tool log",
        "chat gpt-5-mini",
    ]
    assert len({span.span_id for span in tree.spans}) == len(tree.spans)
    assert {span.trace_id for span in tree.spans} == {tree.run.trace_id}
    assert all(span.status == pb.SPAN_STATUS_OK and span.HasField("end_time") for span in tree.spans)
    assert tree.spans[2].attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert tree.spans[2].attributes["gen_ai.usage.input_tokens"] == 100
    assert tree.run.last_seq == len(journal.events)


async def test_tree_is_the_same_however_often_it_is_read(trace: Trace) -> None:
    journal = troubled_run()
    await trace.read(journal)
    first = await trace.client.tree(journal.run_id)
    await trace.read(simple_run(begin=500))
    assert await trace.client.tree(journal.run_id) == first


async def test_open_step_is_a_span_without_an_end(trace: Trace) -> None:
    journal = timer_run()
    await trace.read(journal)
    tree = await trace.client.tree(journal.run_id)
    still_open = [span.name for span in tree.spans if not span.HasField("end_time")]
    assert still_open == ["invoke_agent support", "holdfast.segment 2", "chat gpt-5-mini"]
    assert tree.spans[-1].status == pb.SPAN_STATUS_UNSPECIFIED


async def test_cancelled_run_says_so(trace: Trace) -> None:
    journal = cancelled_run()
    await trace.read(journal)
    tree = await trace.client.tree(journal.run_id)
    assert tree.run.state == run_pb2.RUN_STATE_CANCELLED
    assert tree.spans[0].status == pb.SPAN_STATUS_CANCELLED
    assert next(span for span in tree.spans if span.kind == pb.SPAN_KIND_WAIT).status == pb.SPAN_STATUS_CANCELLED


async def test_reader_waits_for_the_event_it_asks_for(trace: Trace) -> None:
    journal = simple_run()
    await trace.suite.peers.feed.add(*journal.entries[:2])
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(trace.client.tree(journal.run_id, min_seq=4))
        await trace.client.tree(journal.run_id, min_seq=2)
        assert not waiting.done()
        await trace.suite.peers.feed.add(*journal.entries[2:])
    assert waiting.result().run.last_seq == 4


async def test_reader_waits_for_a_run_that_trace_has_not_met_yet(trace: Trace) -> None:
    journal = simple_run()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(trace.client.tree(journal.run_id, min_seq=1))
        await trace.suite.peers.feed.add(*journal.entries)
    assert waiting.result().run.last_seq >= 1


async def test_reader_is_told_how_far_trace_is_when_its_time_is_up(trace: Trace) -> None:
    journal = simple_run()
    await trace.read(journal)
    error = await refusal(trace.client.tree(journal.run_id, min_seq=5, timeout=0.6))
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.metadata["last_seq"] == "4"
    error = await refusal(trace.client.tree(new_uuid7(), min_seq=1, timeout=0.6))
    assert error.reason == "RUN_NOT_FOUND"


async def test_replica_that_does_not_project_serves_what_the_other_stores(postgres_suite: Suite) -> None:
    await postgres_suite.start_peers()
    await postgres_suite.start_trace()
    await postgres_suite.peers.feed.wait_for_streams(1)
    client = await postgres_suite.connect(await postgres_suite.start_trace())
    journal = simple_run()
    await postgres_suite.peers.feed.add(*journal.entries)
    tree = await client.tree(journal.run_id, min_seq=4)
    assert tree.run.last_seq == 4
    assert postgres_suite.peers.feed.open_streams == 1


@pytest.mark.parametrize("run_id", ["", "nonsense", "a\0b", "0198C0DE-1111-7000-8000-000000000001", "x" * 10_000])
async def test_what_is_no_run_id_is_not_found(trace: Trace, run_id: str) -> None:
    for call in (trace.client.tree(run_id, min_seq=1), trace.client.step(run_id, 1)):
        assert (await refusal(call)).reason == "RUN_NOT_FOUND"


async def test_negative_min_seq_is_refused(trace: Trace) -> None:
    error = await refusal(trace.client.tree(new_uuid7(), min_seq=-1))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT


# ------------------------------------------------------------------------------------------------------------- steps


def shown(detail: pb.ModelStepDetail) -> list[tuple[int, str, bool]]:
    """Each input message: the step it came from, what it says, whether it is new."""
    return [(item.step, said(item.message), item.is_new) for item in detail.input]


def said(message: content_pb2.Message) -> str:
    part = message.parts[0]
    match part.WhichOneof("kind"):
        case "text":
            return part.text
        case "tool_call":
            return "calls " + " ".join(item.tool_call.call_id for item in message.parts)
        case _:
            return part.tool_result.content


async def test_model_step_shows_the_conversation_as_it_was_sent(trace: Trace) -> None:
    journal = parallel_run()
    await trace.read(journal)
    first = await trace.client.step(journal.run_id, 1)
    assert shown(first.model) == [(0, "where is my order?", True)]
    assert said(first.model.output) == "calls a b"
    assert first.span.name == "chat gpt-5-mini"
    assert first.model.spec.instructions == "be kind"
    assert (first.model.finish_reason, first.model.response_model) == ("stop", "gpt-5-mini-2026")
    assert first.model.usage.output_tokens == 10
    last = await trace.client.step(journal.run_id, 7)
    # Results stand in the order in which the model asked, not in which they arrived.
    assert shown(last.model) == [
        (0, "where is my order?", False),
        (1, "calls a b", False),
        (2, "order 7", False),
        (3, "ada", False),
        (4, "calls c d", True),
        (5, "sent", True),
        (6, "logged", True),
    ]
    assert said(last.model.output) == "done"


async def test_model_step_begins_with_the_earlier_runs_of_its_session(trace: Trace) -> None:
    first = simple_run(words="hello")
    second = parallel_run(words="and my order?", previous=first, begin=100)
    third = Journal("thanks", previous=second, begin=200)
    third.claim().drive(start_model(1, 11))
    unrelated = simple_run(words="somebody else", begin=50)
    await trace.read(first, second, third, unrelated)
    detail = (await trace.client.step(third.run_id, 1)).model
    assert [(item.run_id, item.step) for item in detail.input] == [
        (first.run_id, 0),
        (first.run_id, 1),
        (second.run_id, 0),
        (second.run_id, 1),
        (second.run_id, 2),
        (second.run_id, 3),
        (second.run_id, 4),
        (second.run_id, 5),
        (second.run_id, 6),
        (second.run_id, 7),
        (third.run_id, 0),
    ]
    assert all(item.is_new for item in detail.input), "the run made no call before"
    assert not detail.HasField("output")
    early = (await trace.client.step(second.run_id, 1)).model
    assert [said(item.message) for item in early.input] == ["hello"]


async def test_runs_of_a_session_that_came_later_are_not_shown(trace: Trace) -> None:
    first = simple_run(words="hello")
    second = simple_run(words="again", previous=first, begin=100)
    await trace.read(first, second)
    detail = (await trace.client.step(first.run_id, 1)).model
    assert [item.run_id for item in detail.input] == [first.run_id]


async def test_failed_model_call_shows_what_it_was_sent_and_no_answer(trace: Trace) -> None:
    journal = troubled_run()
    await trace.read(journal)
    found = await trace.client.step(journal.run_id, 3)
    assert shown(found.model) == [(0, "where is my order?", False), (1, "calls a", True), (2, "no", True)]
    assert not found.model.HasField("output")
    assert found.span.failure.reason == "MODEL_REFUSED"
    retried = await trace.client.step(journal.run_id, 1)
    assert [span.attempt for span in retried.attempts] == [1, 2, 3]
    assert [span.failure.reason for span in retried.attempts] == ["EXECUTOR_LOST", "MODEL_OVERLOADED", ""]
    assert {span.parent_span_id for span in retried.attempts} == {retried.span.span_id}


async def test_tool_step_shows_its_call_its_result_and_its_attempts(trace: Trace) -> None:
    journal = troubled_run()
    await trace.read(journal)
    found = await trace.client.step(journal.run_id, 2)
    tool = found.tool
    assert (tool.tool, tool.call_id, tool.arguments_json) == ("refund", "a", '{"id": 7}')
    assert tool.idempotency_key == "key-a"
    assert tool.shown.parts[0].tool_result.is_error
    assert tool.output == ""
    [approval] = tool.approvals
    assert approval.state == run_pb2.APPROVAL_STATE_DECIDED
    assert approval.decision.decided_by == "key-of-ada"
    assert approval.HasField("create_time")
    assert approval.HasField("decide_time")
    assert [span.status for span in found.attempts] == [pb.SPAN_STATUS_ERROR, pb.SPAN_STATUS_ERROR]


async def test_question_shows_its_answer(trace: Trace) -> None:
    approval_id = new_uuid7()
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(
        finish_model(1, asks(("a", "ask_user", {"question": "which one?"}))),
        start_tool(2, "a", "ask_user", tool_kind="builtin", kind=WAIT),
        question(2, approval_id),
    )
    journal.drive(waits(run_pb2.WAIT_REASON_INPUT))
    pending = list(journal.events)
    journal.pause(3_600).outside(decision(2, approval_id))
    journal.claim()
    journal.drive(finish_tool(2, result("a", "ask_user", "the red one")), start_model(3, 3))
    whole, journal.events = journal.events, pending
    await trace.read(journal)
    before = await trace.client.step(journal.run_id, 2)
    assert before.tool.approvals[0].state == run_pb2.APPROVAL_STATE_PENDING
    assert not before.span.HasField("end_time")
    journal.events = whole[len(pending) :]
    await trace.suite.peers.feed.add(*journal.entries)
    await trace.client.tree(journal.run_id, min_seq=len(whole))
    after = await trace.client.step(journal.run_id, 2)
    assert after.tool.approvals[0].decision.answer_json == '"the red one"'
    assert said(after.tool.shown) == "the red one"
    assert after.span.name == "holdfast.wait ask_user"


async def test_large_bodies_are_fetched_from_state_once(trace: Trace) -> None:
    blobs = Blobs()
    whole = "x" * 5_000 + "é"
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(finish_model(1, blobs.message(asks(("a", "fetch", {"n": 1})))), start_tool(2, "a", "fetch"))
    journal.outside(call_started(2, 1, "worker-1"))
    journal.outside(finish_tool(2, blobs.message(result("a", "fetch", "x" * 2_000)), output=blobs.put(whole.encode())))
    journal.drive(start_model(3, 3))
    journal.drive(finish_model(3, answer("long")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    trace.suite.peers.blobs.keep(WORKSPACE, blobs.bodies)
    await trace.read(journal)
    tool = (await trace.client.step(journal.run_id, 2)).tool
    assert tool.arguments_json == '{"n": 1}'
    assert said(tool.shown) == "x" * 2_000
    assert tool.output == whole
    model = (await trace.client.step(journal.run_id, 3)).model
    assert [item.step for item in model.input] == [0, 1, 2]
    assert said(model.input[2].message) == "x" * 2_000
    await trace.client.step(journal.run_id, 3)
    assert trace.suite.peers.blobs.reads == 3
    assert trace.suite.peers.agents.reads == 1


async def test_body_that_state_no_longer_has_is_said(trace: Trace) -> None:
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(finish_model(1, Blobs().message(answer("gone"))), ends(run_pb2.RUN_STATE_SUCCEEDED))
    await trace.read(journal)
    error = await refusal(trace.client.step(journal.run_id, 1))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BLOB_NOT_FOUND")


async def test_step_needs_state_and_lists_do_not(trace: Trace) -> None:
    journal = simple_run()
    await trace.read(journal)
    assert trace.suite.peers_server is not None
    await trace.suite.peers_server.drain()
    assert len((await trace.client.list_runs()).runs) == 1
    assert len((await trace.client.tree(journal.run_id)).spans) == 3
    error = await refusal(trace.client.step(journal.run_id, 1))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STATE_UNAVAILABLE")


@pytest.mark.parametrize("step", [0, 2, -1, 2**31 - 1])
async def test_unknown_step_is_not_found(trace: Trace, step: int) -> None:
    journal = simple_run()
    await trace.read(journal)
    error = await refusal(trace.client.step(journal.run_id, step))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "STEP_NOT_FOUND")


async def test_run_that_state_no_longer_has_keeps_its_spans_and_says_that_its_content_is_gone(trace: Trace) -> None:
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(finish_model(1, answer("forgotten")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    await trace.read(journal)
    trace.suite.peers.feed.removed.add(journal.run_id)
    assert (await trace.client.tree(journal.run_id)).spans
    error = await refusal(trace.client.step(journal.run_id, 1))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONTENT_REMOVED")
