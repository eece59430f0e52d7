"""The public servicers in front of the real state service on SQLite: what both sides agree about, end to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.executor.v1 import agent_service_pb2, approval_service_pb2, run_service_pb2, session_service_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal
from holdfast.api.state.v1 import lease_service_pb2 as leases
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.errors import Reason, from_rpc_error
from holdfast.ids import new_uuid7
from services.shared.server import Process
from services.shared.telemetry import build_telemetry
from services.state.app import run as run_state
from services.state.settings import StateSettings
from tests.executor.servicers.conftest import TOKEN, Client, Executor
from tests.executor.servicers.test_tool_workers import Worker

WORKSPACE = new_uuid7()
SPEC = {
    "name": "support",
    "model": {"provider": "scripted", "script": {"turns": [{"text": "hello"}]}},
    "tools": [{"name": "refund", "worker": {}}, {"name": "ask", "builtin": {"name": "ask_user"}}],
}


@dataclass
class Suite:
    executor: Executor
    client: Client
    journal: JournalServiceStub
    leases: LeaseServiceStub

    async def claimed_run(self) -> tuple[run_pb2.Run, int]:
        """A run that a driver holds."""
        started = await self.client.runs.StartRun(run_service_pb2.StartRunRequest(agent="support", text="hello"))
        stream = self.leases.Work()
        await stream.write(leases.WorkRequest(executor_id=new_uuid7(), free_slots=1))
        while True:
            response = await stream.read()
            assert isinstance(response, leases.WorkResponse)
            if response.claims:
                assert response.claims[0].run.run_id == started.run.run_id
                return started.run, response.claims[0].epoch

    async def append(self, run: run_pb2.Run, epoch: int, seq: int, *changes: run_pb2.Change, **more: object) -> None:
        transition = journal.Transition(
            workspace_id=WORKSPACE, run_id=run.run_id, epoch=epoch, seq=seq, changes=changes
        )
        for call in more.get("calls", ()):  # type: ignore[attr-defined]
            transition.calls.append(call)
        await self.journal.Append(journal.AppendRequest(transition=transition))

    async def changes(self, run: run_pb2.Run) -> list[run_pb2.Change]:
        request = journal.ReadJournalRequest(workspace_id=WORKSPACE, run_id=run.run_id)
        return [
            change
            async for frame in self.journal.ReadJournal(request)
            for event in frame.events
            for change in event.changes
        ]


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = StateSettings(
        listen=address, service_token=TOKEN, drain_seconds=1, database_url=f"sqlite:///{tmp_path / 'state.db'}"
    )
    process = Process(build_telemetry("state"))
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(run_state(settings, process))
        try:
            async with AsyncExitStack() as stack:
                executor = Executor(stack)
                await executor.start(address)
                await executor.state_channel.channel_ready()
                client = await executor.client(WORKSPACE)
                spec = json_format.ParseDict(SPEC, agent_pb2.AgentSpec())
                await client.agents.ApplyAgent(agent_service_pb2.ApplyAgentRequest(spec=spec))
                yield Suite(
                    executor,
                    client,
                    JournalServiceStub(executor.state_channel),
                    LeaseServiceStub(executor.state_channel),
                )
        finally:
            process.stop.set()


def tool_step(step: int, tool: str) -> run_pb2.Change:
    intent = run_pb2.ToolIntent(tool=tool, call_id=f"c{step}", idempotency_key="k", tool_kind="worker")
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent))


def new_call(step: int, revision: str) -> journal.NewCall:
    call = journal.NewCall(
        step=step, attempt=1, tool="refund", arguments_json="{}", idempotency_key="k", agent="support",
        revision=revision, call_id=f"c{step}",
    )  # fmt: skip
    call.timeout.FromSeconds(60)
    call.heartbeat_timeout.FromSeconds(30)
    call.start_deadline.GetCurrentTime()
    call.start_deadline.seconds += 60
    return call


async def test_workers_call_goes_into_the_journal_once(suite: Suite) -> None:
    run, epoch = await suite.claimed_run()
    await suite.append(run, epoch, 2, tool_step(1, "refund"), calls=[new_call(1, run.revision)])
    worker = Worker(await suite.executor.client(f"{WORKSPACE}/worker"))
    await worker.connect()
    offer = await worker.accept()
    assert (offer.run_id, offer.step, offer.tool) == (run.run_id, 1, "refund")
    await worker.beat()
    await worker.complete(offer.lease, {"refunded": 12.0})
    await worker.complete(offer.lease, {"refunded": 12.0})
    kinds = [change.WhichOneof("kind") for change in await suite.changes(run)]
    assert kinds == ["run_created", "step_started", "call_started", "step_finished"]
    finished = (await suite.changes(run))[-1].step_finished
    assert finished.message.message.parts[0].tool_result == content_pb2.ToolResult(
        call_id="c1", tool="refund", content='{"refunded":12}'
    )
    # Another word on the same call is too late: it is kept, and counts for nothing.
    with pytest.raises(grpc.RpcError) as caught:
        await worker.complete(offer.lease, "something else")
    assert from_rpc_error(caught.value).reason == Reason.CALL_LEASE_LOST
    late = (await suite.changes(run))[-1].late_result
    assert (late.worker_id, late.content) == (worker.worker_id, '"something else"')


async def test_offer_of_a_broken_stream_goes_to_another_worker(suite: Suite) -> None:
    run, epoch = await suite.claimed_run()
    await suite.append(run, epoch, 2, tool_step(1, "refund"), calls=[new_call(1, run.revision)])
    client = await suite.executor.client(f"{WORKSPACE}/worker")
    first, second = Worker(client), Worker(client)
    await first.connect()
    lease = (await first.next("offer")).offer.lease
    first.break_off()
    await second.connect()
    async with asyncio.timeout(10):
        assert (await second.accept()).lease != lease
    starts = [change for change in await suite.changes(run) if change.HasField("call_started")]
    assert [start.call_started.worker_id for start in starts] == [second.worker_id]


async def test_cancel_reaches_the_worker_that_executes(suite: Suite) -> None:
    run, epoch = await suite.claimed_run()
    await suite.append(run, epoch, 2, tool_step(1, "refund"), calls=[new_call(1, run.revision)])
    worker = Worker(await suite.executor.client(f"{WORKSPACE}/worker"))
    await worker.connect()
    offer = await worker.accept()
    await suite.client.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=run.run_id))
    await worker.beat()
    assert (await worker.next("cancel")).cancel.reason == "CANCELLED"
    await worker.complete(offer.lease, "stopped")


async def test_watch_follows_the_journal_and_the_answer_to_a_question(suite: Suite) -> None:
    run, epoch = await suite.claimed_run()
    watching = suite.client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run.run_id))
    approval = run_pb2.Approval(
        approval_id=new_uuid7(), run_id=run.run_id, step=1, kind=run_pb2.APPROVAL_KIND_QUESTION, prompt="Really?"
    )
    approval.answer_schema.update({"type": "boolean"})
    approval.expire_time.GetCurrentTime()
    approval.expire_time.seconds += 3_600
    waits = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT)
    await suite.append(
        run,
        epoch,
        2,
        tool_step(1, "ask"),
        run_pb2.Change(approval_requested=run_pb2.ApprovalRequested(approval=approval)),
        run_pb2.Change(run_state_changed=waits),
    )
    request = approval_service_pb2.DecideApprovalRequest(approval_id=approval.approval_id, answer_json="1")
    with pytest.raises(grpc.RpcError):
        await suite.client.approvals.DecideApproval(request)
    request.answer_json = "true"
    decided = (await suite.client.approvals.DecideApproval(request)).approval
    assert (decided.state, decided.decision.answer_json) == (run_pb2.APPROVAL_STATE_DECIDED, "true")
    seqs: list[int] = []
    async for response in watching:
        if response.HasField("event"):
            seqs.append(response.event.seq)
            if any(change.HasField("approval_decided") for change in response.event.changes):
                break
    assert seqs == list(range(1, len(seqs) + 1))


async def test_lists_and_sessions_are_read_back(suite: Suite) -> None:
    started = [
        (await suite.client.runs.StartRun(run_service_pb2.StartRunRequest(agent="support", text=str(n)))).run
        for n in range(3)
    ]
    request = run_service_pb2.ListRunsRequest(page_size=2, agent="support")
    first = await suite.client.runs.ListRuns(request)
    request.page_token = first.next_page_token
    runs = [*first.runs, *(await suite.client.runs.ListRuns(request)).runs]
    assert [run.run_id for run in runs] == [run.run_id for run in reversed(started)]
    messages = await suite.client.sessions.ListMessages(
        session_service_pb2.ListMessagesRequest(session_id=started[1].session_id)
    )
    assert [message.message.parts[0].text for message in messages.messages] == ["1"]


async def test_reused_request_id_is_refused_by_state(suite: Suite) -> None:
    request = run_service_pb2.StartRunRequest(agent="support", text="a", request_id="r1")
    first = await suite.client.runs.StartRun(request)
    assert (await suite.client.runs.StartRun(request)).run.run_id == first.run.run_id
    request.text = "b"
    with pytest.raises(grpc.RpcError) as caught:
        await suite.client.runs.StartRun(request)
    assert from_rpc_error(caught.value).reason == Reason.REQUEST_ID_REUSED
