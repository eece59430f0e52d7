"""`RunService` over gRPC: starting, following and cancelling runs."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.executor.v1 import agent_service_pb2 as agent_api
from holdfast.api.executor.v1 import run_service_pb2 as api
from holdfast.api.executor.v1 import session_service_pb2 as session_api
from holdfast.api.state.v1 import journal_service_pb2 as journal
from holdfast.api.state.v1 import run_store_service_pb2 as run_store
from holdfast.errors import HoldfastError, Reason, Unavailable, from_rpc_error
from holdfast.ids import is_uuid, new_uuid7
from tests.executor.servicers.conftest import Client, Executor
from tests.fakes.state_services import FakeRun

REVISION = "a" * 64
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def client(executor: Executor) -> Client:
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="support"), REVISION)
    return await executor.client()


async def error(awaitable: Any) -> HoldfastError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


def start(**fields: Any) -> api.StartRunRequest:
    if "message" not in fields:
        fields.setdefault("text", "hello")
    return api.StartRunRequest(**({"agent": "support"} | fields))


# ------------------------------------------------------------------------------------------------------------- start


async def test_accepted_run_pins_its_revision_and_begins_a_session(executor: Executor, client: Client) -> None:
    request = start(user_id="u1")
    run = (await client.runs.StartRun(request, metadata=(("traceparent", TRACEPARENT),))).run
    [stored] = executor.state.new_runs
    assert is_uuid(run.run_id)
    assert is_uuid(run.session_id)
    assert (stored.workspace_id, stored.revision, stored.user_id) == ("ws1", REVISION, "u1")
    assert stored.traceparent == TRACEPARENT
    assert stored.input.message == content_pb2.Message(
        role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text="hello")]
    )
    assert (await client.runs.GetRun(api.GetRunRequest(run_id=run.run_id))).run == run


async def test_long_input_is_stored_under_its_hash(executor: Executor, client: Client) -> None:
    await client.runs.StartRun(start(text="x" * 9_000))
    [stored] = executor.state.new_runs
    [blob] = stored.blobs
    assert stored.input.blob.hash == blob.hash == hashlib.sha256(blob.data).digest()
    assert content_pb2.Message.FromString(blob.data).parts[0].text == "x" * 9_000


async def test_whole_message_becomes_the_users(executor: Executor, client: Client) -> None:
    parts = [content_pb2.Part(text="a"), content_pb2.Part(text="b")]
    await client.runs.StartRun(start(message=content_pb2.Message(parts=parts)))
    assert executor.state.new_runs[0].input.message == content_pb2.Message(role=content_pb2.ROLE_USER, parts=parts)


async def test_same_request_id_is_the_same_run_and_other_content_is_refused(executor: Executor, client: Client) -> None:
    first = await client.runs.StartRun(start(request_id="r1"))
    assert await client.runs.StartRun(start(request_id="r1")) == first
    assert len(executor.state.new_runs) == 1
    assert (await error(client.runs.StartRun(start(request_id="r1", text="x")))).reason == Reason.REQUEST_ID_REUSED
    # The same content in another form is still another request.
    assert (await error(client.runs.StartRun(start(request_id="r1", user_id="u")))).reason == Reason.REQUEST_ID_REUSED


TOOL_CALL = content_pb2.Part(tool_call=content_pb2.ToolCall(call_id="c", tool="t"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"agent": ""}, "agent"),
        ({"agent": "a\nb"}, "agent"),
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"message": content_pb2.Message()}, "message.parts"),
        ({"message": content_pb2.Message(parts=[TOOL_CALL])}, "message.parts[0]"),
        ({"message": content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)}, "message.role"),
        ({"user_id": "u" * 257}, "user_id"),
        ({"user_id": "u\x00"}, "user_id"),
        ({"request_id": "r" * 65}, "request_id"),
        ({"busy_policy": 9}, "busy_policy"),
        ({"priority": 9}, "priority"),
        ({"revision": "r" * 300}, "revision"),
    ],
)
async def test_wrong_field_is_named_and_nothing_is_stored(
    executor: Executor, client: Client, fields: dict[str, Any], field: str
) -> None:
    refused = await error(client.runs.StartRun(start(**fields)))
    assert [violation.field for violation in refused.field_violations] == [field]
    assert executor.state.new_runs == []


async def test_run_is_stored_with_its_lane_and_its_agents_limit(executor: Executor, client: Client) -> None:
    limits = agent_pb2.RunLimits(max_concurrent_runs=3)
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="limited", limits=limits), "b" * 64)
    await client.runs.StartRun(start(agent="limited"))
    await client.runs.StartRun(start(priority=run_pb2.PRIORITY_INTERACTIVE))
    await client.runs.StartRun(start(priority=run_pb2.PRIORITY_BATCH))
    lanes = [new.lane for new in executor.state.new_runs]
    assert lanes == [journal.LANE_INTERACTIVE, journal.LANE_INTERACTIVE, journal.LANE_BATCH]
    assert [new.agent_limit for new in executor.state.new_runs] == [3, 0, 0]


async def test_run_without_any_input_is_refused(client: Client) -> None:
    refused = await error(client.runs.StartRun(api.StartRunRequest(agent="support")))
    assert [violation.field for violation in refused.field_violations] == ["input"]


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 17 * 1024 * 1024])
async def test_input_that_is_too_large_names_the_limit(client: Client, size: int) -> None:
    refused = await error(client.runs.StartRun(start(text="x" * size)))
    assert (refused.reason, refused.code) == (Reason.MESSAGE_TOO_LARGE, grpc.StatusCode.INVALID_ARGUMENT)
    assert int(refused.metadata["limit_bytes"]) in (1024 * 1024, 16 * 1024 * 1024)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agent": "nobody"}, Reason.AGENT_NOT_FOUND),
        ({"revision": "prod"}, Reason.LABEL_NOT_FOUND),
        ({"revision": "0" * 64}, Reason.REVISION_NOT_FOUND),
        ({"session_id": "not-an-id"}, Reason.SESSION_NOT_FOUND),
        ({"session_id": new_uuid7()}, Reason.SESSION_NOT_FOUND),
    ],
)
async def test_what_does_not_exist_is_not_found(client: Client, fields: dict[str, Any], reason: Reason) -> None:
    refused = await error(client.runs.StartRun(start(**fields)))
    assert (refused.reason, refused.code) == (reason, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("traceparent", ["", "00-x", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "01-abc"])
async def test_trace_context_that_cannot_be_read_is_left_out(
    executor: Executor, client: Client, traceparent: str
) -> None:
    await client.runs.StartRun(start(), metadata=(("traceparent", traceparent),))
    assert executor.state.new_runs[0].traceparent == ""


async def test_run_of_a_label_follows_the_newest_revision_at_once(executor: Executor, client: Client) -> None:
    await client.runs.StartRun(start())
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="support", description="new"), "b" * 64)
    await client.runs.StartRun(start())
    assert [run.revision for run in executor.state.new_runs] == ["a" * 64, "b" * 64]


async def test_state_away_is_unavailable_and_says_who(executor: Executor, client: Client) -> None:
    await executor.stop_state()
    refused = await error(client.runs.StartRun(start()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STATE_UNAVAILABLE)


# --------------------------------------------------------------------------------------------------- look and cancel


@pytest.mark.parametrize(
    "run_id", ["nonsense", "01920000-0000-7000-8000-00000000000A", "01920000-0000-7000-8000-00000000000b"]
)
async def test_run_of_nobody_or_of_another_workspace_is_not_found(
    executor: Executor, client: Client, run_id: str
) -> None:
    foreign = executor.state.add_run("ws2").run.run_id
    for wanted in (run_id, foreign):
        for call in (
            client.runs.GetRun(api.GetRunRequest(run_id=wanted)),
            client.runs.CancelRun(api.CancelRunRequest(run_id=wanted)),
            collect(client.runs.WatchRun(api.WatchRunRequest(run_id=wanted))),
        ):
            assert (await error(call)).reason == Reason.RUN_NOT_FOUND


async def test_runs_come_in_pages_with_their_filters(executor: Executor, client: Client) -> None:
    ids = [executor.state.add_run("ws1", agent="support").run.run_id for _ in range(5)]
    executor.state.add_run("ws1", agent="other")
    executor.state.add_run("ws2", agent="support")
    request = api.ListRunsRequest(agent="support", page_size=2, states=[run_pb2.RUN_STATE_QUEUED])
    seen: list[str] = []
    while True:
        page = await client.runs.ListRuns(request)
        seen.extend(run.run_id for run in page.runs)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ids[::-1]
    first = await client.runs.ListRuns(api.ListRunsRequest(agent="support", page_size=2))
    other = api.ListRunsRequest(agent="other", page_token=first.next_page_token)
    assert (await error(client.runs.ListRuns(other))).reason == Reason.INVALID_PAGE_TOKEN


async def test_list_with_an_unknown_state_or_a_negative_size_is_refused(client: Client) -> None:
    unknown: Any = 99
    for request in (
        api.ListRunsRequest(states=[run_pb2.RUN_STATE_UNSPECIFIED]),
        api.ListRunsRequest(states=[unknown]),
        api.ListRunsRequest(page_size=-1),
    ):
        assert (await error(client.runs.ListRuns(request))).reason == Reason.INVALID_FIELD


async def test_cancel_says_who_asked_and_why(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    cancelled = await client.runs.CancelRun(api.CancelRunRequest(run_id=run.run.run_id, reason="enough"))
    assert cancelled.run.cancel_requested
    assert run.events[-1].changes[0].cancel_requested == run_pb2.CancelRequested(
        requested_by="key-ws1", reason="enough"
    )
    await client.runs.CancelRun(api.CancelRunRequest(run_id=run.run.run_id))
    assert len(run.events) == 2


async def test_ended_run_cannot_be_cancelled(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    await executor.state.end(run)
    refused = await error(client.runs.CancelRun(api.CancelRunRequest(run_id=run.run.run_id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.RUN_ENDED)


async def test_pause_and_resume_say_who_asked_and_why(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    run_id = run.run.run_id
    paused = await client.runs.PauseRun(api.PauseRunRequest(run_id=run_id, reason="lunch"))
    assert (paused.run.state, paused.run.pause_requested) == (run_pb2.RUN_STATE_PAUSED, True)
    assert run.events[-1].changes[0].pause_requested == run_pb2.PauseRequested(requested_by="key-ws1", reason="lunch")
    resumed = await client.runs.ResumeRun(api.ResumeRunRequest(run_id=run_id, reason="back"))
    assert (resumed.run.state, resumed.run.pause_requested) == (run_pb2.RUN_STATE_QUEUED, False)
    assert run.events[-1].changes[0].resume_requested == run_pb2.ResumeRequested(requested_by="key-ws1", reason="back")
    await executor.state.end(run)
    for refused in (
        client.runs.PauseRun(api.PauseRunRequest(run_id=run_id)),
        client.runs.ResumeRun(api.ResumeRunRequest(run_id=run_id)),
    ):
        assert (await error(refused)).reason == Reason.RUN_ENDED
    long = await error(client.runs.PauseRun(api.PauseRunRequest(run_id=run_id, reason="x" * 1_001)))
    assert long.reason == Reason.INVALID_FIELD


async def test_repeated_pauses_and_resumes_are_told_from_others(executor: Executor, client: Client) -> None:
    run_id = executor.state.add_run("ws1").run.run_id
    for reason, request_id in (("lunch", "p1"), ("lunch", "p1"), ("supper", "p1"), ("lunch", "p2")):
        await client.runs.PauseRun(api.PauseRunRequest(run_id=run_id, reason=reason, request_id=request_id))
    await client.runs.ResumeRun(api.ResumeRunRequest(run_id=run_id, reason="lunch", request_id="p1"))
    first, again, other, later = executor.state.of(run_store.RequestPauseRequest)
    [resumed] = executor.state.of(run_store.RequestResumeRequest)
    assert [each.request_id for each in (first, again, other, later, resumed)] == ["p1", "p1", "p1", "p2", "p1"]
    assert first.request_fingerprint == again.request_fingerprint == later.request_fingerprint
    assert len({each.request_fingerprint for each in (first, other, resumed)}) == 3


@pytest.mark.parametrize("ttl", [Duration(nanos=999_999_999), Duration(seconds=-5), Duration(seconds=34_560_001)])
async def test_time_of_a_run_has_limits(executor: Executor, client: Client, ttl: Duration) -> None:
    refused = await error(client.runs.StartRun(api.StartRunRequest(agent="support", text="hi", ttl=ttl)))
    assert refused.reason == Reason.INVALID_FIELD


# ------------------------------------------------------------------------------------------------------------ budget


def limited(**budget: int) -> agent_pb2.AgentSpec:
    model = agent_pb2.ModelSpec(provider="openai", name="gpt-4o")
    model.parameters.max_output_tokens = 100
    limits = agent_pb2.RunLimits(budget=agent_pb2.Budget(**budget) if budget else None)
    return agent_pb2.AgentSpec(name="support", model=model, limits=limits)


@pytest.mark.promise("P10")
async def test_budget_of_a_run_is_the_agents_narrowed_by_the_caller(executor: Executor, client: Client) -> None:
    executor.state.add_agent("ws1", limited(max_total_tokens=1_000, max_model_calls=5), "b" * 64)
    await client.runs.StartRun(start())
    narrower = agent_pb2.Budget(max_total_tokens=10, max_cost_usd_nanos=7)
    await client.runs.StartRun(start(budget=narrower))
    first, second = executor.state.new_runs
    assert first.budget == agent_pb2.Budget(max_total_tokens=1_000, max_model_calls=5)
    assert second.budget == agent_pb2.Budget(max_total_tokens=10, max_model_calls=5, max_cost_usd_nanos=7)


async def test_run_without_any_limit_has_no_budget(executor: Executor, client: Client) -> None:
    await client.runs.StartRun(start())
    await client.runs.StartRun(start(budget=agent_pb2.Budget()))
    assert not any(stored.HasField("budget") for stored in executor.state.new_runs)


@pytest.mark.parametrize(
    ("own", "asked", "field"),
    [
        ({"max_tool_calls": 5}, {"max_tool_calls": 6}, "budget.max_tool_calls"),
        ({}, {"max_model_calls": -1}, "budget.max_model_calls"),
    ],
    ids=["wider", "negative"],
)
async def test_budget_that_a_run_cannot_have_is_refused(
    executor: Executor, client: Client, own: dict[str, int], asked: dict[str, int], field: str
) -> None:
    executor.state.add_agent("ws1", limited(**own), "b" * 64)
    refused = await error(client.runs.StartRun(start(budget=agent_pb2.Budget(**asked))))
    assert [violation.field for violation in refused.field_violations] == [field]
    assert not executor.state.new_runs


async def test_budget_that_cannot_be_kept_is_refused(executor: Executor, client: Client) -> None:
    endless = limited()
    endless.model.ClearField("parameters")
    executor.state.add_agent("ws1", endless, "b" * 64)
    refused = await error(client.runs.StartRun(start(budget=agent_pb2.Budget(max_output_tokens=9))))
    assert "max_output_tokens" in refused.message and "longest answer" in refused.message
    unknown = limited()
    unknown.model.name = "llama-of-our-own"
    executor.state.add_agent("ws1", unknown, "c" * 64)
    refused = await error(client.runs.StartRun(start(revision="c" * 64, budget=agent_pb2.Budget(max_cost_usd_nanos=9))))
    assert "the price of openai/llama-of-our-own is not known" in refused.message
    unknown.limits.budget.max_cost_usd_nanos = 9
    refused = await error(client.agents.ApplyAgent(agent_api.ApplyAgentRequest(spec=unknown)))
    assert [violation.field for violation in refused.field_violations] == ["limits.budget.max_cost_usd_nanos"]
    unknown.model.price.input_usd_nanos_per_million_tokens = 10**9
    await client.agents.ApplyAgent(agent_api.ApplyAgentRequest(spec=unknown))


async def test_what_is_left_of_a_budget_is_read_from_the_journal(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    assert not (await client.runs.GetRunBudget(api.GetRunBudgetRequest(run_id=run.run.run_id))).lines
    run.events[0].changes[0].run_created.budget.max_model_calls = 2
    intent = run_pb2.ModelIntent(reserved=run_pb2.Reservation())
    await executor.state.append(run, run_pb2.Change(step_started=run_pb2.StepStarted(step=1, model=intent)))
    [line] = (await client.runs.GetRunBudget(api.GetRunBudgetRequest(run_id=run.run.run_id))).lines
    assert line == run_pb2.BudgetLine(limit="max_model_calls", max=2, reserved=1, left=1)
    missing = await error(client.runs.GetRunBudget(api.GetRunBudgetRequest(run_id=new_uuid7())))
    assert missing.reason == Reason.RUN_NOT_FOUND


# ------------------------------------------------------------------------------------------------------------- watch


async def collect(call: Any) -> list[api.WatchRunResponse]:
    return [response async for response in call]


def seqs(responses: list[api.WatchRunResponse]) -> list[int]:
    return [response.event.seq for response in responses if response.HasField("event")]


async def until_event(call: Any, seq: int) -> None:
    async for response in call:
        if response.event.seq == seq:
            return
    raise AssertionError("the stream has ended")


async def note(run: FakeRun, executor: Executor) -> None:
    await executor.state.append(run, run_pb2.Change(step_started=run_pb2.StepStarted(step=1)))


async def test_watch_replays_then_follows_to_the_end(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    await note(run, executor)
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    await until_event(call, 2)
    await note(run, executor)
    await executor.state.send_delta(run, "hel")
    await executor.state.end(run)
    rest = await collect(call)
    assert seqs(rest) == [3, 4]
    assert [response.delta.text for response in rest if response.HasField("delta")] in (["hel"], [])


async def test_pieces_of_answers_are_passed_on_unless_they_are_not_wanted(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    both = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    events = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id, events_only=True))
    await until_event(both, 1)
    await until_event(events, 1)
    await executor.state.send_delta(run, "hel")
    async for response in both:
        if response.HasField("delta"):
            assert response.delta.text == "hel"
            break
    await executor.state.end(run)
    assert not any(response.HasField("delta") for response in await collect(events))


async def test_watch_after_the_last_event_of_an_ended_run_ends_at_once(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    await executor.state.end(run)
    assert await collect(client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id, after_seq=2))) == []
    assert seqs(await collect(client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id, after_seq=1)))) == [2]


async def test_idle_stream_beats(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    beats = 0
    async for response in call:
        if response.HasField("beat"):
            assert response.beat.last_seq == 1
            beats += 1
            if beats == 2:
                break
    call.cancel()


async def test_client_sees_no_gap_and_no_repetition_when_state_restarts(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    await until_event(call, 1)
    await executor.stop_state()
    await note(run, executor)
    await executor.start_state()
    await note(run, executor)
    await executor.state.end(run)
    assert seqs(await collect(call)) == [2, 3, 4]
    assert [request.after_seq for request in executor.state.of(journal.WatchJournalRequest)][-1] >= 1


async def test_stream_that_state_ends_in_its_drain_goes_on(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    await until_event(call, 1)
    executor.state.watch_stopped.set()
    await executor.state.send_delta(run, "")
    await executor.state.until(lambda: len(executor.state.of(journal.WatchJournalRequest)) >= 2)
    executor.state.watch_stopped.clear()
    await note(run, executor)
    await executor.state.end(run)
    assert seqs(await collect(call)) == [2, 3]


async def test_client_that_goes_away_changes_nothing(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    await until_event(call, 1)
    call.cancel()
    await note(run, executor)
    await executor.state.end(run)
    again = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id, after_seq=1))
    assert seqs(await collect(again)) == [2, 3]
    assert not run.run.cancel_requested


async def test_drain_sends_watchers_elsewhere(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1")
    call = client.runs.WatchRun(api.WatchRunRequest(run_id=run.run.run_id))
    await until_event(call, 1)
    draining = asyncio.create_task(executor.server.drain())
    refused = await error(collect(call))
    assert isinstance(refused, Unavailable)
    assert refused.reason == Reason.DRAINING
    await draining


async def test_negative_position_is_refused(executor: Executor, client: Client) -> None:
    run = executor.state.add_run("ws1").run.run_id
    refused = await error(collect(client.runs.WatchRun(api.WatchRunRequest(run_id=run, after_seq=-1))))
    assert [violation.field for violation in refused.field_violations] == ["after_seq"]


# ------------------------------------------------------------------------------------------------------------- blobs


async def test_blob_comes_in_pieces_from_any_offset(executor: Executor, client: Client) -> None:
    body = bytes(range(256)) * 10
    body_hash = hashlib.sha256(body).digest()
    executor.state.blobs["ws1", body_hash] = body
    pieces = await collect(client.runs.GetBlob(api.GetBlobRequest(hash=body_hash)))
    assert len(pieces) == 3
    assert b"".join(piece.data for piece in pieces) == body  # type: ignore[attr-defined]
    rest = await collect(client.runs.GetBlob(api.GetBlobRequest(hash=body_hash, offset=2_000)))
    assert b"".join(piece.data for piece in rest) == body[2_000:]  # type: ignore[attr-defined]
    foreign = (await executor.client("ws2")).runs.GetBlob(api.GetBlobRequest(hash=body_hash))
    assert (await error(collect(foreign))).reason == Reason.BLOB_NOT_FOUND


async def test_blob_hash_of_another_length_is_refused(client: Client) -> None:
    refused = await error(collect(client.runs.GetBlob(api.GetBlobRequest(hash=b"short"))))
    assert [violation.field for violation in refused.field_violations] == ["hash"]


# ---------------------------------------------------------------------------------------------------------- sessions


async def test_session_is_made_listed_and_read_in_pages(client: Client) -> None:
    made = [
        (await client.sessions.CreateSession(session_api.CreateSessionRequest(user_id=user))).session
        for user in ("u1", "u2", "u1")
    ]
    found = await client.sessions.GetSession(session_api.GetSessionRequest(session_id=made[0].session_id))
    assert found.session == made[0]
    first = await client.sessions.ListSessions(session_api.ListSessionsRequest(page_size=2))
    rest = session_api.ListSessionsRequest(page_size=2, page_token=first.next_page_token)
    ids = [session.session_id for session in (*first.sessions, *(await client.sessions.ListSessions(rest)).sessions)]
    assert ids == [session.session_id for session in reversed(made)]
    of_user = await client.sessions.ListSessions(session_api.ListSessionsRequest(user_id="u2"))
    assert [session.session_id for session in of_user.sessions] == [made[1].session_id]

    request = session_api.ListMessagesRequest(session_id=made[0].session_id, page_size=2)
    texts: list[str] = []
    while True:
        page = await client.sessions.ListMessages(request)
        texts.extend(message.message.parts[0].text for message in page.messages)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert texts == [f"message {seq}" for seq in range(5)]


async def test_same_request_id_is_the_same_session(client: Client) -> None:
    request = session_api.CreateSessionRequest(user_id="u1", request_id="r1")
    assert await client.sessions.CreateSession(request) == await client.sessions.CreateSession(request)
    request.user_id = "u2"
    assert (await error(client.sessions.CreateSession(request))).reason == Reason.REQUEST_ID_REUSED


async def test_session_of_another_workspace_is_not_found(executor: Executor, client: Client) -> None:
    made = (await client.sessions.CreateSession(session_api.CreateSessionRequest())).session.session_id
    theirs = await executor.client("ws2")
    for call in (
        theirs.sessions.GetSession(session_api.GetSessionRequest(session_id=made)),
        theirs.sessions.ListMessages(session_api.ListMessagesRequest(session_id=made)),
        client.sessions.GetSession(session_api.GetSessionRequest(session_id="x")),
    ):
        assert (await error(call)).reason == Reason.SESSION_NOT_FOUND
