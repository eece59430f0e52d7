"""State behind its real server, over real gRPC, as executors and trace use it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as calls_pb2
from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as runs_pb2
from holdfast.api.state.v1.call_queue_service_pb2_grpc import CallQueueServiceStub
from holdfast.api.state.v1.change_feed_service_pb2_grpc import ChangeFeedServiceStub
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub
from holdfast.errors import Reason, from_rpc_error
from holdfast.ids import new_uuid7
from services.shared.server import Process
from services.shared.telemetry import build_telemetry
from services.state.app import run as run_state
from services.state.settings import StateSettings
from tests.state.builders import (
    CANCELLED,
    WORKSPACE,
    call,
    ends,
    finishes,
    in_blob,
    late,
    model_says,
    new_run,
    starts,
    tool_result,
    transition,
    waits,
)
from tests.state.sql_store import sqlite

TOKEN = "a-service-token-of-enough-characters"
CHECKOUT = Path(__file__).resolve().parent.parent.parent
FUTURE = datetime.now(UTC) + timedelta(hours=1)

pytest_plugins = ["tests.state.sql_fixtures"]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Caller:
    """One service's connection to state."""

    def __init__(self, channel: grpc.aio.Channel, service: str, token: str) -> None:
        self.identity = (("authorization", f"Service {service}:{token}"),)
        self.journal = JournalServiceStub(channel)
        self.leases = LeaseServiceStub(channel)
        self.runs = RunStoreServiceStub(channel)
        self.calls = CallQueueServiceStub(channel)
        self.feed = ChangeFeedServiceStub(channel)

    async def create(self, **fields: Any) -> run_pb2.Run:
        request = journal_pb2.CreateRunRequest(new_run=new_run(**fields))
        return (await self.journal.CreateRun(request, metadata=self.identity, timeout=10)).run

    async def append(self, sent: journal_pb2.Transition) -> int:
        request = journal_pb2.AppendRequest(transition=sent)
        return (await self.journal.Append(request, metadata=self.identity, timeout=10)).committed.seq

    async def events(self, run_id: str, after_seq: int = 0) -> list[run_pb2.Event]:
        request = journal_pb2.ReadJournalRequest(workspace_id=WORKSPACE, run_id=run_id, after_seq=after_seq)
        frames = self.journal.ReadJournal(request, metadata=self.identity, timeout=30)
        return [event async for frame in frames for event in frame.events]

    async def run(self, run_id: str) -> run_pb2.Run:
        request = runs_pb2.GetRunRequest(workspace_id=WORKSPACE, run_id=run_id)
        return (await self.runs.GetRun(request, metadata=self.identity, timeout=10)).run

    async def cancel(self, run_id: str) -> None:
        request = runs_pb2.RequestCancelRequest(workspace_id=WORKSPACE, run_id=run_id)
        await self.runs.RequestCancel(request, metadata=self.identity, timeout=10)

    def watch(self, run_id: str, after_seq: int = 0) -> Any:
        request = journal_pb2.WatchJournalRequest(workspace_id=WORKSPACE, run_id=run_id, after_seq=after_seq)
        return self.journal.WatchJournal(request, metadata=self.identity)

    async def work(self, executor_id: str, free_slots: int = 10, held: Sequence[lease_pb2.HeldRun] = ()) -> Work:
        work = Work(self.leases.Work(metadata=self.identity))
        await work.send(executor_id=executor_id, free_slots=free_slots, held=held)
        return work


class Work:
    """An executor's lease stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.claims: dict[str, lease_pb2.Claim] = {}
        self.lost: list[str] = []
        self.nudged: list[str] = []
        self.calls_queued: list[str] = []

    async def send(self, **fields: Any) -> None:
        await self.stream.write(lease_pb2.WorkRequest(**fields))

    async def read(self) -> lease_pb2.WorkResponse:
        """The next response, which this object remembers."""
        response: Any = await self.stream.read()
        assert isinstance(response, lease_pb2.WorkResponse), "the stream has ended"
        self.claims.update({claim.run.run_id: claim for claim in response.claims})
        self.lost += [held.run_id for held in response.lost]
        self.nudged += response.nudged_run_ids
        self.calls_queued += [queued.tool for queued in response.calls_queued]
        return response

    async def claimed(self, run_id: str) -> int:
        """The epoch of a run, once it is claimed."""
        async with asyncio.timeout(10):
            while run_id not in self.claims:
                await self.read()
        return self.claims[run_id].epoch

    async def answered(self, **fields: Any) -> lease_pb2.WorkResponse:
        """The answer to a message."""
        await self.send(**fields)
        async with asyncio.timeout(10):
            return await self.read()

    def held(self, run_id: str) -> lease_pb2.HeldRun:
        return lease_pb2.HeldRun(run_id=run_id, epoch=self.claims[run_id].epoch)

    async def close(self) -> None:
        """Ends the stream in order, and returns when the server has ended it too."""
        await self.stream.done_writing()
        async with asyncio.timeout(10):
            while await self.stream.read() is not grpc.aio.EOF:
                pass

    def cut(self) -> None:
        """Breaks the stream."""
        self.stream.cancel()


@dataclass
class State:
    """A running state service."""

    address: str
    stack: AsyncExitStack

    async def caller(self, service: str = "executor", token: str = TOKEN) -> Caller:
        """A connection of its own."""
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(self.address))
        async with asyncio.timeout(10):
            await channel.channel_ready()
        return Caller(channel, service, token)


@asynccontextmanager
async def serving(database_url: str) -> AsyncIterator[State]:
    """The whole service in this process."""
    address = free_address()
    settings = StateSettings(
        listen=address, service_token=TOKEN, database_url=database_url, drain_seconds=1, migrate_on_start=True
    )
    process = Process(build_telemetry("state"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_state(settings, process))
        try:
            async with AsyncExitStack() as stack:
                yield State(address, stack)
        finally:
            process.stop.set()


@pytest.fixture(params=["sqlite", "postgresql"])
async def state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[State]:
    """The service on an empty database of each kind."""
    if request.param == "sqlite":
        url = sqlite(tmp_path)
    else:
        url = request.getfixturevalue("postgres_database").replace("postgresql+psycopg://", "postgresql://")
    async with serving(url) as served:
        yield served


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[State]:
    """The service on SQLite, for what does not depend on the database."""
    async with serving(sqlite(tmp_path)) as served:
        yield served


# ------------------------------------------------------------------------------------------------- the journal stream


class Checkpoints:
    """A journal stream that remembers what was answered."""

    def __init__(self, caller: Caller) -> None:
        self.stream = caller.journal.Checkpoint(metadata=caller.identity)
        self.answers: dict[int, journal_pb2.OperationResult] = {}

    async def send(self, *transitions: tuple[int, journal_pb2.Transition]) -> None:
        operations = [journal_pb2.Operation(id=number, transition=sent) for number, sent in transitions]
        await self.stream.write(journal_pb2.CheckpointRequest(operations=operations))

    async def read_until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.answers) < count:
                response: Any = await self.stream.read()
                assert response is not grpc.aio.EOF
                for result in response.results:
                    assert result.id not in self.answers, "answered twice"
                    self.answers[result.id] = result


async def claimed_runs(caller: Caller, count: int) -> tuple[Work, list[tuple[str, int]]]:
    created = await asyncio.gather(*(caller.create() for _ in range(count)))
    work = await caller.work(new_uuid7(), free_slots=count)
    return work, [(run.run_id, await work.claimed(run.run_id)) for run in created]


async def test_many_runs_share_one_stream(state: State) -> None:
    caller = await state.caller()
    _, runs = await claimed_runs(caller, 300)
    checkpoints = Checkpoints(caller)
    sent = [transition(run_id, epoch, seq) for seq in range(2, 6) for run_id, epoch in runs]
    for begin in range(0, len(sent), 100):
        await checkpoints.send(*list(enumerate(sent))[begin : begin + 100])
    await checkpoints.read_until(len(sent))
    assert [checkpoints.answers[number].committed.seq for number in range(len(sent))] == [one.seq for one in sent]
    for run_id, _ in runs[::50]:
        assert [event.seq for event in await caller.events(run_id)] == [1, 2, 3, 4, 5]
    await checkpoints.stream.done_writing()
    async with asyncio.timeout(10):
        assert await checkpoints.stream.read() is grpc.aio.EOF


@pytest.mark.promise("P2")
async def test_what_a_broken_stream_left_unanswered_is_applied_once(state: State) -> None:
    caller = await state.caller()
    _, runs = await claimed_runs(caller, 40)
    sent = list(enumerate(transition(run_id, epoch, seq) for seq in (2, 3) for run_id, epoch in runs))
    broken = Checkpoints(caller)
    await broken.send(*sent)
    await broken.read_until(1)
    broken.stream.cancel()
    again = Checkpoints(caller)
    await again.send(*sent)
    await again.read_until(len(sent))
    assert {answer.WhichOneof("kind") for answer in again.answers.values()} == {"committed"}
    for run_id, _ in runs:
        assert [event.seq for event in await caller.events(run_id)] == [1, 2, 3]


async def test_refusal_on_the_stream_has_the_code_of_the_unary_call(embedded: State) -> None:
    caller = await embedded.caller()
    _, [(run_id, epoch)] = await claimed_runs(caller, 1)
    checkpoints = Checkpoints(caller)
    await checkpoints.send((1, transition(run_id, epoch + 1, 2)), (2, transition(run_id, epoch, 2)))
    await checkpoints.read_until(2)
    refused = checkpoints.answers[1].refused
    assert (refused.reason, refused.code) == (Reason.LEASE_LOST, grpc.StatusCode.ABORTED.value[0])
    assert checkpoints.answers[2].committed.seq == 2
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await caller.append(transition(run_id, epoch + 1, 3))
    assert from_rpc_error(unary.value).reason == Reason.LEASE_LOST


# ---------------------------------------------------------------------------------------------------------- watching


@pytest.mark.promise("P12")
async def test_watchers_get_every_event_once_whenever_they_come(state: State) -> None:
    caller = await state.caller()
    _, [(run_id, epoch)] = await claimed_runs(caller, 1)
    last = 80

    async def watch(after_seq: int, seen_some: asyncio.Event) -> list[int]:
        seqs = []
        async for response in caller.watch(run_id, after_seq):
            if response.WhichOneof("kind") == "event":
                seqs.append(response.event.seq)
                seen_some.set()
        return seqs

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        watchers: list[tuple[int, asyncio.Task[list[int]]]] = []
        for seq in range(2, last + 1):
            if seq % 10 == 0:
                after_seq, seen_some = max(0, seq - 13), asyncio.Event()
                watchers.append((after_seq, tasks.create_task(watch(after_seq, seen_some))))
                # It is reading what is stored while the next ones are written.
                await seen_some.wait()
            await caller.append(transition(run_id, epoch, seq, *([ends()] if seq == last else [])))
    for after_seq, watcher in watchers:
        assert watcher.result() == list(range(after_seq + 1, last + 1))


async def test_delta_reaches_watchers_between_events(embedded: State) -> None:
    caller = await embedded.caller()
    _, [(run_id, epoch)] = await claimed_runs(caller, 1)
    watch = caller.watch(run_id, 1)
    beside = caller.watch(run_id, 0)
    # Once this one is served, so is the one before it.
    async with asyncio.timeout(10):
        assert (await beside.read()).event.seq == 1
    checkpoints = Checkpoints(caller)
    await checkpoints.send((1, transition(run_id, epoch, 2, starts(1))))
    async with asyncio.timeout(10):
        assert (await watch.read()).event.seq == 2
    delta = run_pb2.Delta(run_id=run_id, step=1, attempt=1, index=0, text="Hel")
    await checkpoints.stream.write(journal_pb2.CheckpointRequest(deltas=[delta]))
    async with asyncio.timeout(10):
        assert (await watch.read()).delta == delta
    await checkpoints.send((2, transition(run_id, epoch, 3, finishes(1, "Hello"), ends())))
    async with asyncio.timeout(10):
        assert (await watch.read()).event.seq == 3
        assert await watch.read() is grpc.aio.EOF


async def test_watch_of_an_ended_run_ends_whatever_its_reader_knows(state: State) -> None:
    caller = await state.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    await caller.append(
        transition(
            run_id,
            epoch,
            2,
            starts(1, tool="refund"),
            waits(run_pb2.WAIT_REASON_TOOL),
            calls=[call(start_deadline=FUTURE)],
        )
    )
    request = calls_pb2.LeaseCallsRequest(workspace_id=WORKSPACE, worker_id="w", tools=["refund"], max_calls=1)
    [leased] = (await caller.calls.LeaseCalls(request, metadata=caller.identity, timeout=10)).calls
    start = calls_pb2.StartCallRequest(workspace_id=WORKSPACE, worker_id="w", lease=leased.lease)
    await caller.calls.StartCall(start, metadata=caller.identity, timeout=10)
    work.claims.clear()
    await work.send(free_slots=1)
    await caller.cancel(run_id)
    newer = await work.claimed(run_id)
    await caller.append(transition(run_id, newer, 5, ends(CANCELLED)))
    report = calls_pb2.CompleteCallRequest(
        workspace_id=WORKSPACE, worker_id="w", lease=leased.lease, change=tool_result(1), late=late()
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await caller.calls.CompleteCall(report, metadata=caller.identity, timeout=10)
    for after_seq, expected in ((0, [1, 2, 3, 4, 5, 6]), (4, [5, 6]), (5, [6]), (6, [])):
        async with asyncio.timeout(10):
            seen = [response.event.seq async for response in caller.watch(run_id, after_seq)]
        # What comes after the end is evidence: a watcher may have left before it.
        assert seen in (expected, [seq for seq in expected if seq <= 5])


async def test_watch_of_an_unknown_run_is_refused(embedded: State) -> None:
    caller = await embedded.caller()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.watch(new_uuid7()).read()
    assert from_rpc_error(refused.value).reason == Reason.RUN_NOT_FOUND


# ------------------------------------------------------------------------------------------------------------ leases


async def test_claim_brings_the_short_journal(embedded: State) -> None:
    caller = await embedded.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    assert [event.seq for event in work.claims[run_id].events] == [1]
    assert epoch == 1


async def test_every_message_is_answered(embedded: State) -> None:
    caller = await embedded.caller()
    work = await caller.work(new_uuid7(), free_slots=0)
    first = await work.read()
    assert first.heartbeat_interval.ToTimedelta() < first.lease_duration.ToTimedelta()
    for _ in range(3):
        await work.answered(free_slots=0)


async def test_stream_that_ends_in_order_gives_its_runs_back(state: State) -> None:
    caller = await state.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    await work.close()
    other = await caller.work(new_uuid7())
    assert await other.claimed(run_id) == epoch + 1


async def test_runs_of_a_broken_stream_go_to_another_executor(state: State) -> None:
    caller = await state.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    other = await caller.work(new_uuid7())
    work.cut()
    assert await other.claimed(run_id) == epoch + 1


async def test_executor_that_comes_back_in_time_keeps_the_runs_it_names(state: State) -> None:
    caller = await state.caller()
    executor_id = new_uuid7()
    kept, forgotten = await caller.create(), await caller.create()
    work = await caller.work(executor_id)
    await work.claimed(kept.run_id)
    epoch = await work.claimed(forgotten.run_id)
    work.cut()
    stranger = lease_pb2.HeldRun(run_id=new_uuid7(), epoch=1)
    again = await caller.work(executor_id, held=[work.held(kept.run_id), stranger])
    # What it does not name never arrived: it is given again.
    assert await again.claimed(forgotten.run_id) == epoch + 1
    assert again.lost == [stranger.run_id]
    assert await caller.append(transition(kept.run_id, work.claims[kept.run_id].epoch, 2)) == 2


@pytest.mark.promise("P3")
async def test_end_of_an_older_stream_does_not_cost_the_newer_its_leases(state: State) -> None:
    caller, other_caller = await state.caller(), await state.caller()
    executor_id = new_uuid7()
    run = await caller.create()
    older = await caller.work(executor_id)
    epoch = await older.claimed(run.run_id)
    newer = await other_caller.work(executor_id, free_slots=0, held=[older.held(run.run_id)])
    await newer.read()
    older.cut()
    waiting = await caller.work(new_uuid7())
    await waiting.read()
    # This one ends when the run is given away, which must not happen.
    thief = asyncio.create_task(waiting.claimed(run.run_id))
    # Longer than the grace of a broken stream and the sweep after it; the newer stream renews before that.
    for _ in range(3):
        await newer.answered(free_slots=0)
        await asyncio.wait({thief}, timeout=0.6)
    assert not thief.done()
    thief.cancel()
    assert await caller.append(transition(run.run_id, epoch, 2)) == 2


async def test_released_run_is_ready_at_once(embedded: State) -> None:
    caller = await embedded.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    await work.send(free_slots=0, released=[work.held(run_id)])
    other = await caller.work(new_uuid7())
    assert await other.claimed(run_id) == epoch + 1


async def test_driver_is_nudged_when_somebody_outside_writes(embedded: State) -> None:
    caller = await embedded.caller()
    work, [(run_id, _)] = await claimed_runs(caller, 1)
    await caller.cancel(run_id)
    async with asyncio.timeout(10):
        while run_id not in work.nudged:
            await work.read()


async def test_executors_hear_of_workers_calls(embedded: State) -> None:
    caller = await embedded.caller()
    work, [(run_id, epoch)] = await claimed_runs(caller, 1)
    await caller.append(transition(run_id, epoch, 2, starts(1, tool="refund"), calls=[call(start_deadline=FUTURE)]))
    async with asyncio.timeout(10):
        while "refund" not in work.calls_queued:
            await work.read()


async def test_draining_executor_gets_no_new_run(embedded: State) -> None:
    caller = await embedded.caller()
    draining = await caller.work(new_uuid7(), free_slots=0)
    await draining.read()
    await draining.answered(draining=True, free_slots=10)
    run = await caller.create()
    other = await caller.work(new_uuid7())
    await other.claimed(run.run_id)
    assert draining.claims == {}


# ---------------------------------------------------------------------------------------------------- large journals


async def test_long_journal_is_read_in_frames_that_fit(embedded: State) -> None:
    caller = await embedded.caller()
    _, [(run_id, epoch)] = await claimed_runs(caller, 1)
    # Together more than any message may have.
    count, text = 24, "x" * 900_000
    for seq in range(2, count + 2):
        await caller.append(transition(run_id, epoch, seq, finishes(seq, text)))
    assert [event.seq for event in await caller.events(run_id)] == list(range(1, count + 2))
    await caller.append(transition(run_id, epoch, count + 2, ends()))
    async with asyncio.timeout(30):
        watched = [response.event.seq async for response in caller.watch(run_id)]
    assert watched == list(range(1, count + 3))
    trace = await embedded.caller("trace")
    follow = trace.feed.Follow(feed_pb2.FollowRequest(), metadata=trace.identity)
    fed: list[int] = []
    async with asyncio.timeout(30):
        while len(fed) < count + 2:
            frame: Any = await follow.read()
            fed += [entry.event.seq for entry in frame.entries]
    assert fed == list(range(1, count + 3))
    follow.cancel()
    request = runs_pb2.ListSessionMessagesRequest(
        workspace_id=WORKSPACE, session_id=(await caller.run(run_id)).session_id, page_size=1_000
    )
    messages = 0
    while True:
        page = await caller.runs.ListSessionMessages(request, metadata=caller.identity, timeout=10)
        messages += len(page.messages)
        if not page.next_position:
            break
        request.position = page.next_position
    assert messages == count + 1


async def test_messages_in_blobs_come_inline_where_they_are_asked_for(embedded: State) -> None:
    caller = await embedded.caller()
    _, [(run_id, epoch)] = await claimed_runs(caller, 1)
    stored, blob = in_blob(model_says("y" * 200_000))
    change = finishes(1)
    change.step_finished.message.CopyFrom(stored)
    await caller.append(transition(run_id, epoch, 2, change, blobs=[blob]))
    request = journal_pb2.ReadJournalRequest(workspace_id=WORKSPACE, run_id=run_id, after_seq=1, inline_messages=True)
    frames = caller.journal.ReadJournal(request, metadata=caller.identity, timeout=10)
    [event] = [event async for frame in frames for event in frame.events]
    inline = content_pb2.Message.FromString(blob.data)
    assert event.changes[0].step_finished.message.message == inline
    [plain] = await caller.events(run_id, 1)
    assert plain.changes[0].step_finished.message.blob == stored.blob
    read = journal_pb2.ReadBlobRequest(workspace_id=WORKSPACE, hash=blob.hash, offset=100)
    pieces = [piece async for piece in caller.journal.ReadBlob(read, metadata=caller.identity, timeout=10)]
    assert b"".join(piece.data for piece in pieces) == blob.data[100:]


# ------------------------------------------------------------------------------------------------- who may call what


@pytest.mark.parametrize(
    ("service", "token", "code"),
    [
        ("executor", "another-token-of-enough-characters", grpc.StatusCode.UNAUTHENTICATED),
        ("trace", TOKEN, grpc.StatusCode.PERMISSION_DENIED),
        ("auth", TOKEN, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_only_the_executor_writes(embedded: State, service: str, token: str, code: grpc.StatusCode) -> None:
    caller = await embedded.caller(service, token)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.create()
    assert refused.value.code() is code


async def test_trace_reads(embedded: State) -> None:
    executor, trace = await embedded.caller(), await embedded.caller("trace")
    run = await executor.create()
    assert (await trace.run(run.run_id)).run_id == run.run_id
    assert [event.seq for event in await trace.events(run.run_id)] == [1]


# ------------------------------------------------------------------------------------------------------------- crash


@asynccontextmanager
async def process(database_url: str, address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """State as a process of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        "HOLDFAST_DATABASE_URL": database_url,
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": address,
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.state",
        cwd=CHECKOUT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


@pytest.mark.slow
@pytest.mark.promise("P1")
async def test_everything_answered_is_there_after_kill_9(tmp_path: Path) -> None:
    url, address = sqlite(tmp_path), free_address()
    answered: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        async with process(url, address) as first:
            caller = await State(address, stack).caller()
            _, runs = await claimed_runs(caller, 20)
            checkpoints = Checkpoints(caller)
            sent = [transition(run_id, epoch, seq) for seq in range(2, 42) for run_id, epoch in runs]
            await checkpoints.send(*enumerate(sent))
            # In the middle of it: some are answered, some are not.
            await checkpoints.read_until(len(sent) // 4)
            for number in checkpoints.answers:
                answered[sent[number].run_id] = max(answered.get(sent[number].run_id, 0), sent[number].seq)
            first.send_signal(signal.SIGKILL)
            await first.wait()
        async with process(url, address):
            caller = await State(address, stack).caller()
            for run_id, seq in answered.items():
                stored = [event.seq for event in await caller.events(run_id)]
                assert stored == list(range(1, len(stored) + 1))
                assert len(stored) >= seq
            # What was not answered is sent again, and the same lease still counts.
            again = Checkpoints(caller)
            await again.send(*enumerate(sent))
            await again.read_until(len(sent))
            assert {answer.WhichOneof("kind") for answer in again.answers.values()} == {"committed"}
            for run_id, _ in runs:
                assert [event.seq for event in await caller.events(run_id)] == list(range(1, 42))
