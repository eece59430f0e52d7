"""`ToolWorkerService` over gRPC: the life of a call, and what happens when a worker, state or the executor fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.executor.v1 import tool_worker_service_pb2 as api
from holdfast.api.state.v1 import call_queue_service_pb2 as queue
from holdfast.errors import HoldfastError, Reason, Unavailable, from_rpc_error
from holdfast.ids import new_uuid7
from tests.executor.servicers.conftest import Client, Executor
from tests.fakes.state_services import FakeCall

UNKNOWN = content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
RETRYABLE = content_pb2.FAILURE_CLASS_RETRYABLE
PERMANENT = content_pb2.FAILURE_CLASS_PERMANENT


class Worker:
    """A worker process as the executor sees it."""

    def __init__(self, client: Client, *, tools: tuple[str, ...] = ("refund",), slots: int = 1) -> None:
        self.worker_id = new_uuid7()
        self.client = client
        self.tools = tools
        self.slots = slots
        self.running: dict[str, str] = {}
        self.unread: list[api.WorkResponse] = []
        self._call: Any = None

    async def connect(self) -> api.WorkerWelcome:
        self.unread.clear()
        self._call = self.client.workers.Work()
        hello = api.WorkerHello(
            worker_id=self.worker_id,
            tools=[api.ServedTool(name=name) for name in self.tools],
            slots=self.slots,
            running_leases=list(self.running),
        )
        await self._call.write(api.WorkRequest(hello=hello))
        return (await self.next("welcome")).welcome

    async def next(self, kind: str) -> api.WorkResponse:
        """The next message of this kind; others are kept for later, since offers and answers come as they come."""
        for index, kept in enumerate(self.unread):
            if kept.WhichOneof("kind") == kind:
                return self.unread.pop(index)
        async with asyncio.timeout(10):
            while True:
                response: Any = await self._call.read()
                assert response is not grpc.aio.EOF, "the stream has ended"
                if response.WhichOneof("kind") == kind:
                    return response
                self.unread.append(response)

    async def accept(self) -> api.CallOffer:
        """Takes the next offer and returns it once it may be executed."""
        offer = (await self.next("offer")).offer
        await self.start(offer.lease)
        assert (await self.next("go")).go.lease == offer.lease
        self.running[offer.lease] = ""
        return offer

    async def start(self, lease: str) -> None:
        await self._call.write(api.WorkRequest(start=api.StartCall(lease=lease)))

    async def beat(self) -> None:
        await self._call.write(api.WorkRequest(heartbeat=api.WorkerHeartbeat(running=self.running)))

    async def drain(self) -> None:
        await self._call.write(api.WorkRequest(drain=api.WorkerDrain()))

    async def complete(self, lease: str, result: Any = None, **outcome: Any) -> None:
        fields = outcome or {"result_json": json.dumps(result)}
        await self.client.workers.CompleteCall(api.CompleteCallRequest(worker_id=self.worker_id, lease=lease, **fields))
        self.running.pop(lease, None)

    async def end(self) -> HoldfastError | None:
        """How the stream ends."""
        try:
            async with asyncio.timeout(10):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        except grpc.RpcError as error:
            return from_rpc_error(error)
        return None

    async def leave(self) -> None:
        await self._call.done_writing()

    def break_off(self) -> None:
        self._call.cancel()


@pytest.fixture
async def client(executor: Executor) -> Client:
    tool = agent_pb2.ToolSpec(name="refund", worker=agent_pb2.WorkerTool(), max_output_bytes=1_000)
    tool.output_schema.update({"not": {"type": "integer"}})
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="support", tools=[tool]))
    return await executor.client("ws1/worker")


async def error(awaitable: Any) -> HoldfastError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


async def until(executor: Executor, known: FakeCall, state: str) -> None:
    # State notes every request, so that its waiters look again whenever something may have changed.
    await executor.state.until(lambda: known.state == state)


# ------------------------------------------------------------------------------------------------ the life of a call


async def test_call_is_offered_accepted_executed_and_stored(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    welcome = await worker.connect()
    assert welcome.workspace_id == "ws1"
    assert welcome.heartbeat_interval.ToMilliseconds() == 200
    known = await executor.state.queue_call("ws1", "refund", '{"order":1}', user_id="u1", last_heartbeat_details="d")
    executor.hub.calls_queued("ws1", "refund")
    offer = (await worker.next("offer")).offer
    assert (offer.tool, offer.arguments_json, offer.idempotency_key) == ("refund", '{"order":1}', "key")
    assert (offer.step, offer.attempt, offer.agent, offer.user_id) == (1, 1, "support", "u1")
    assert offer.last_heartbeat_details == "d"
    assert offer.expire_time == known.call.offer_expire_time
    assert offer.traceparent.split("-")[1] == known.call.run_id.replace("-", "")
    assert known.state == "OFFERED", "an offer is not yet executed"
    await worker.start(offer.lease)
    assert (await worker.next("go")).go.lease == offer.lease
    assert known.state == "STARTED", "stored before the worker may execute"
    await worker.complete(offer.lease, {"ok": True})
    assert known.ended_with is not None
    finished = known.ended_with.step_finished
    assert finished.state == run_pb2.STEP_STATE_SUCCEEDED
    [part] = finished.message.message.parts
    assert part.tool_result == content_pb2.ToolResult(call_id="c1", tool="refund", content='{"ok":true}')


async def test_calls_are_found_without_any_hint(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    await executor.state.queue_call("ws1", "refund")
    await worker.accept()


async def test_no_more_is_offered_than_there_are_slots(executor: Executor, client: Client) -> None:
    worker = Worker(client, slots=2)
    for _ in range(5):
        await executor.state.queue_call("ws1", "refund")
    await worker.connect()
    first, second = await worker.accept(), await worker.accept()
    await executor.state.until(lambda: executor.state.lease_requests >= 1)
    assert sum(known.state == "QUEUED" for known in executor.state.calls) == 3
    await worker.complete(first.lease)
    await worker.complete(second.lease)
    for _ in range(3):
        await worker.complete((await worker.accept()).lease)
    assert all(known.state == "ENDED" for known in executor.state.calls)


async def test_worker_gets_only_calls_of_its_tools_and_its_workspace(executor: Executor, client: Client) -> None:
    mine = await executor.state.queue_call("ws1", "refund")
    await executor.state.queue_call("ws1", "other")
    await executor.state.queue_call("ws2", "refund")
    worker = Worker(client, slots=3)
    await worker.connect()
    assert (await worker.accept()).run_id == mine.call.run_id
    asked = executor.state.lease_requests
    await executor.state.until(lambda: executor.state.lease_requests > asked + 1)
    assert [known.state for known in executor.state.calls] == ["STARTED", "QUEUED", "QUEUED"]


async def test_finished_call_makes_room_at_once(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    for _ in range(100):
        await executor.state.queue_call("ws1", "refund")
    # A hundred polls would take longer than the time that is given here.
    async with asyncio.timeout(15):
        for _ in range(100):
            await worker.complete((await worker.accept()).lease)


async def test_same_start_twice_is_answered_twice(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    await worker.start(offer.lease)
    assert (await worker.next("go")).go.lease == offer.lease


async def test_heartbeats_are_stored_with_their_details(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    worker.running[offer.lease] = "half" + "ü" * 4_096
    await worker.beat()
    await executor.state.until(lambda: known.details)
    assert known.details.startswith("halfü")
    assert len(known.details.encode()) <= 4_096


async def test_cancelled_call_is_told_once_and_still_reports(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    known.is_cancelled = True
    executor.hub.cancel_leases([offer.lease, "of somebody else"])
    cancel = (await worker.next("cancel")).cancel
    assert (cancel.lease, cancel.reason) == (offer.lease, "CANCELLED")
    for _ in range(2):
        count = len(executor.state.of(queue.RenewCallsRequest))
        await worker.beat()
        await executor.state.until(lambda: len(executor.state.of(queue.RenewCallsRequest)) > count)  # noqa: B023
    await worker.complete(offer.lease, "stopped half way")
    await executor.state.queue_call("ws1", "refund")
    await worker.accept()
    assert worker.unread == []


async def test_cancel_that_only_state_knows_of_comes_with_the_heartbeat(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    known.is_cancelled = True
    await worker.beat()
    assert (await worker.next("cancel")).cancel == api.CallCancel(lease=offer.lease, reason="CANCELLED")


async def test_lost_call_is_told_and_makes_room(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    known.state = "ENDED"
    await worker.beat()
    assert (await worker.next("cancel")).cancel == api.CallCancel(lease=offer.lease, reason="CALL_LEASE_LOST")
    await executor.state.queue_call("ws1", "refund")
    await worker.accept()


async def test_start_of_a_void_offer_is_refused(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = (await worker.next("offer")).offer
    known.state = "ENDED"
    await worker.start(offer.lease)
    assert (await worker.next("cancel")).cancel == api.CallCancel(lease=offer.lease, reason="CALL_LEASE_LOST")


# --------------------------------------------------------------------------------------------------------- disasters


@pytest.mark.parametrize("way", ["break_off", "leave"])
async def test_offer_that_was_not_started_goes_to_another_worker_at_once(
    executor: Executor, client: Client, way: str
) -> None:
    first, second = Worker(client), Worker(client)
    await first.connect()
    await executor.state.queue_call("ws1", "refund")
    await first.next("offer")
    await second.connect()
    if way == "leave":
        await first.leave()
        assert await first.end() is None
    else:
        first.break_off()
    # Offers hold for 20 s here; without the return this would wait for that.
    async with asyncio.timeout(10):
        await second.accept()


async def test_call_that_state_leased_while_the_stream_broke_is_returned(executor: Executor, client: Client) -> None:
    executor.state.leasing_paused.clear()
    known = await executor.state.queue_call("ws1", "refund")
    worker = Worker(client)
    await worker.connect()
    await until(executor, known, "OFFERED")
    worker.break_off()
    executor.state.leasing_paused.set()
    await until(executor, known, "QUEUED")


async def test_running_call_survives_a_broken_stream(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    worker.break_off()
    await worker.connect()
    await executor.state.until(lambda: executor.state.of(queue.RenewCallsRequest))
    await executor.state.queue_call("ws1", "refund")
    await worker.complete(offer.lease, "done")
    assert known.state == "ENDED"
    await worker.accept()


async def test_reconnected_worker_holds_its_slots_with_what_it_still_runs(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    await executor.state.queue_call("ws1", "refund")
    await worker.accept()
    waiting = await executor.state.queue_call("ws1", "refund")
    worker.break_off()
    await worker.connect()
    await executor.state.until(lambda: executor.state.of(queue.RenewCallsRequest))
    for _ in range(3):
        count = len(executor.state.of(queue.RenewCallsRequest))
        await worker.beat()
        await executor.state.until(lambda: len(executor.state.of(queue.RenewCallsRequest)) > count)  # noqa: B023
    assert waiting.state == "QUEUED"


async def test_call_lost_while_the_worker_was_away_is_told_when_it_comes_back(
    executor: Executor, client: Client
) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    worker.break_off()
    known.state = "ENDED"
    await worker.connect()
    assert (await worker.next("cancel")).cancel == api.CallCancel(lease=offer.lease, reason="CALL_LEASE_LOST")


async def test_second_stream_of_a_worker_ends_the_first(executor: Executor, client: Client) -> None:
    first, second = Worker(client), Worker(client)
    second.worker_id = first.worker_id
    await first.connect()
    await second.connect()
    ended = await first.end()
    assert ended is not None
    assert ended.code == grpc.StatusCode.ABORTED
    await executor.state.queue_call("ws1", "refund")
    await second.accept()


async def test_start_waits_for_state_to_come_back(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = (await worker.next("offer")).offer
    executor.state.fail("StartCall", lambda: Unavailable("the database is away"), times=6)
    await worker.start(offer.lease)
    assert (await worker.next("go")).go.lease == offer.lease
    assert known.state == "STARTED"


async def test_worker_stays_connected_while_state_restarts(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    await executor.stop_state()
    await executor.state.queue_call("ws1", "refund")
    await worker.beat()
    await executor.start_state()
    offer = await worker.accept()
    await worker.complete(offer.lease, "done")


async def test_drained_worker_gets_nothing_new_and_gives_offers_back(executor: Executor, client: Client) -> None:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = (await worker.next("offer")).offer
    await worker.drain()
    assert (await worker.next("cancel")).cancel.lease == offer.lease
    await until(executor, known, "QUEUED")
    other = Worker(client)
    await other.connect()
    await other.accept()


async def test_drain_of_the_executor_sends_workers_elsewhere(executor: Executor, client: Client) -> None:
    worker = Worker(client, slots=2)
    await worker.connect()
    running = await executor.state.queue_call("ws1", "refund")
    await worker.accept()
    offered = await executor.state.queue_call("ws1", "refund")
    await worker.next("offer")
    draining = asyncio.create_task(executor.server.drain())
    ended = await worker.end()
    assert isinstance(ended, Unavailable)
    assert ended.reason == Reason.DRAINING
    await draining
    assert (running.state, offered.state) == ("STARTED", "QUEUED")
    assert executor.hub.connected_workers == 0


# -------------------------------------------------------------------------------------------------------- the results


async def running_call(executor: Executor, client: Client) -> tuple[Worker, FakeCall, str]:
    worker = Worker(client)
    await worker.connect()
    known = await executor.state.queue_call("ws1", "refund")
    offer = await worker.accept()
    return worker, known, offer.lease


@pytest.mark.parametrize(
    ("outcome", "reason", "failure_class", "message"),
    [
        ({"error": api.CallError(message="no card")}, "TOOL_FAILED", PERMANENT, "no card"),
        ({"error": api.CallError(message="busy", is_retryable=True)}, "TOOL_FAILED", RETRYABLE, "busy"),
        ({"error": api.CallError(message="?", is_outcome_unknown=True)}, "TOOL_FAILED", UNKNOWN, "?"),
        (
            {"error": api.CallError(message="?", is_retryable=True, is_outcome_unknown=True)},
            "TOOL_FAILED",
            UNKNOWN,
            "?",
        ),
        ({"error": api.CallError()}, "TOOL_FAILED", PERMANENT, "did not say why"),
        ({"result_json": "{oops"}, "INVALID_RESULT", PERMANENT, "not valid JSON"),
        ({"result_json": ""}, "INVALID_RESULT", PERMANENT, "not valid JSON"),
    ],
)
async def test_failure_is_stored_by_what_may_be_done_about_it(
    executor: Executor,
    client: Client,
    outcome: dict[str, Any],
    reason: str,
    failure_class: content_pb2.FailureClass,
    message: str,
) -> None:
    worker, known, lease = await running_call(executor, client)
    await worker.complete(lease, **outcome)
    assert known.ended_with is not None
    failed = known.ended_with.attempt_failed
    assert (failed.step, failed.attempt) == (1, 1)
    assert (failed.failure.reason, failed.failure.failure_class) == (reason, failure_class)
    assert message in failed.failure.message


async def test_result_that_does_not_fit_its_schema_ends_the_step_and_tells_the_model(
    executor: Executor, client: Client
) -> None:
    worker, known, lease = await running_call(executor, client)
    await worker.complete(lease, 42)
    assert known.ended_with is not None
    finished = known.ended_with.step_finished
    assert (finished.state, finished.failure.reason) == (run_pb2.STEP_STATE_FAILED, "INVALID_RESULT")
    assert finished.message.message.parts[0].tool_result.is_error


async def test_long_result_is_shortened_for_the_model_and_kept_whole(executor: Executor, client: Client) -> None:
    worker, known, lease = await running_call(executor, client)
    await worker.complete(lease, "x" * 5_000)
    assert known.ended_with is not None
    finished = known.ended_with.step_finished
    assert len(finished.message.message.parts[0].tool_result.content) <= 1_000
    assert executor.state.blobs["ws1", finished.output.hash] == b"x" * 5_000


async def test_result_that_is_too_large_is_refused_but_does_not_leave_the_call_open(
    executor: Executor, client: Client
) -> None:
    worker, known, lease = await running_call(executor, client)
    refused = await error(worker.complete(lease, "x" * (8 * 1024 * 1024)))
    assert (refused.reason, refused.metadata["limit_bytes"]) == (Reason.MESSAGE_TOO_LARGE, str(8 * 1024 * 1024))
    assert known.ended_with is not None
    assert known.ended_with.attempt_failed.failure.reason == "RESULT_TOO_LARGE"


async def test_same_report_twice_is_answered_the_same(executor: Executor, client: Client) -> None:
    worker, _, lease = await running_call(executor, client)
    await worker.complete(lease, "done")
    await worker.complete(lease, "done")
    assert executor.state.late == []


async def test_late_result_is_refused_and_kept(executor: Executor, client: Client) -> None:
    worker, known, lease = await running_call(executor, client)
    known.state = "ENDED"
    refused = await error(worker.complete(lease, "x" * 10_000))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, Reason.CALL_LEASE_LOST)
    [late] = executor.state.late
    assert (late.step, late.attempt, late.worker_id, late.is_error) == (1, 1, worker.worker_id, False)
    assert len(late.content.encode()) <= 4_096


async def test_unknown_and_foreign_leases_are_refused_alike(executor: Executor, client: Client) -> None:
    _, known, lease = await running_call(executor, client)
    stranger = Worker(await executor.client("ws2/worker"))
    for wrong in (stranger.complete(lease, "mine"), stranger.complete("x", "mine")):
        assert (await error(wrong)).reason == Reason.CALL_LEASE_LOST
    assert known.state == "STARTED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"lease": "x", "result_json": "1"}, "worker_id"),
        ({"worker_id": "w", "result_json": "1"}, "lease"),
        ({"worker_id": "w", "lease": "x"}, "outcome"),
    ],
)
async def test_report_that_is_none_is_refused(client: Client, fields: dict[str, Any], field: str) -> None:
    refused = await error(client.workers.CompleteCall(api.CompleteCallRequest(**fields)))
    assert [violation.field for violation in refused.field_violations] == [field]


# -------------------------------------------------------------------------------------------------------- the protocol

HELLO = api.WorkerHello(worker_id="w", tools=[api.ServedTool(name="t")], slots=1)


def hello(change: Callable[[api.WorkerHello], Any]) -> api.WorkRequest:
    changed = api.WorkerHello()
    changed.CopyFrom(HELLO)
    change(changed)
    return api.WorkRequest(hello=changed)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "hello"),
        ([api.WorkRequest(start=api.StartCall(lease="x"))], "hello"),
        ([hello(lambda it: it.ClearField("worker_id"))], "hello.worker_id"),
        ([hello(lambda it: it.ClearField("tools"))], "hello.tools"),
        ([hello(lambda it: it.ClearField("slots"))], "hello.slots"),
        ([hello(lambda it: it.tools.add())], "hello.tools[1].name"),
        ([api.WorkRequest(hello=HELLO), api.WorkRequest(hello=HELLO)], "hello"),
        ([api.WorkRequest(hello=HELLO), api.WorkRequest()], "kind"),
        ([api.WorkRequest(hello=HELLO), api.WorkRequest(start=api.StartCall())], "start.lease"),
    ],
)
async def test_message_that_the_protocol_does_not_know_ends_the_stream(
    client: Client, messages: list[api.WorkRequest], field: str
) -> None:
    async def sent() -> AsyncIterator[api.WorkRequest]:
        for message in messages:
            yield message

    async def read() -> None:
        async for _ in client.workers.Work(sent()):
            pass

    refused = await error(read())
    assert [violation.field for violation in refused.field_violations] == [field]


async def test_person_without_the_workers_scope_serves_nothing(executor: Executor) -> None:
    person = Worker(await executor.client("ws1"))
    assert (await error(person.connect())).reason == Reason.SCOPE_MISSING
