"""The executor's public servicers behind the real server, in front of a state service kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import grpc.aio
import pytest

from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1.agent_service_pb2_grpc import AgentServiceStub, add_AgentServiceServicer_to_server
from holdfast.api.executor.v1.approval_service_pb2_grpc import (
    ApprovalServiceStub,
    add_ApprovalServiceServicer_to_server,
)
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub, add_RunServiceServicer_to_server
from holdfast.api.executor.v1.session_service_pb2_grpc import SessionServiceStub, add_SessionServiceServicer_to_server
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import (
    ToolWorkerServiceStub,
    add_ToolWorkerServiceServicer_to_server,
)
from holdfast.api.executor.v1.workspace_service_pb2_grpc import add_WorkspaceServiceServicer_to_server
from holdfast.api.state.v1 import journal_service_pb2 as journal
from holdfast.api.state.v1.lease_service_pb2 import Claim
from holdfast.api.state.v1.run_store_service_pb2 import GetRunRequest
from holdfast.errors import Reason, Unauthenticated
from holdfast.ids import is_uuid
from services.executor.access import ACCESS
from services.executor.call_credentials import CallCredentials
from services.executor.call_results import CallResults
from services.executor.credential_uses import CredentialUses
from services.executor.credentials import Credentials
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants
from services.executor.servicers.agents import AgentServicer
from services.executor.servicers.approvals import ApprovalServicer
from services.executor.servicers.runs import RunServicer
from services.executor.servicers.sessions import SessionServicer
from services.executor.servicers.tool_workers import ToolWorkerServicer
from services.executor.servicers.workspaces import WorkspaceServicer
from services.executor.starts import RunStarter
from services.executor.state_stubs import StateStubs
from services.executor.watch import RunWatcher
from services.executor.worker_hub import WorkerHub
from services.shared.channels import ServiceChannel, calling, open_channel
from services.shared.clock import SystemClock
from services.shared.identity import Identity
from services.shared.paging import page_key
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import build_telemetry
from tests.fakes.auth_services import FakeAuth
from tests.fakes.state_services import FakeState

TOKEN = "a-service-token-of-enough-characters"
SCOPES = frozenset({"agents:read", "agents:write", "runs:read", "runs:write", "approvals:read", "approvals:write"})


class FakeKeys:
    """Keys are `<workspace>`, with all scopes of people, and `<workspace>/worker`, with that of workers."""

    async def verify(self, api_key: str) -> Identity:
        workspace, _, kind = api_key.partition("/")
        if not (workspace.startswith("ws") or is_uuid(workspace)):
            raise Unauthenticated("no", reason=Reason.API_KEY_INVALID)
        scopes = frozenset({"workers"}) if kind == "worker" else SCOPES
        return Identity("api_key", workspace_id=workspace, key_id=f"key-{workspace}", scopes=scopes)


@dataclass
class UnaryCreator:
    """Stores new runs by the unary call, which has the rules of the stream."""

    state: StateStubs

    async def create_run(self, new_run: journal.NewRun) -> tuple[run_pb2.Run, bool]:
        with calling("state"):
            return (await self.state.journal.CreateRun(journal.CreateRunRequest(new_run=new_run))).run, False

    async def await_end(self, workspace_id: str, run_id: str) -> run_pb2.Run:
        """Watches, as the stream's own operation would."""
        watch = journal.WatchJournalRequest(workspace_id=workspace_id, run_id=run_id, events_only=True)
        with calling("state"):
            async for _ in self.state.journal.WatchJournal(watch):
                pass
            return (await self.state.runs.GetRun(GetRunRequest(workspace_id=workspace_id, run_id=run_id))).run


class NoSlots:
    """Drives nothing."""

    executor_id = "01900000-0000-7000-8000-000000000000"

    def reserve(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("nothing was reserved")

    def begin(self, claim: Claim) -> None:
        raise AssertionError("nothing was reserved")


class Client:
    """Stubs that carry one key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.agents = AgentServiceStub(channel)
        self.sessions = SessionServiceStub(channel)
        self.runs = RunServiceStub(channel)
        self.approvals = ApprovalServiceStub(channel)
        self.workers = ToolWorkerServiceStub(channel)


class Executor:
    """The servers, and clients of them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.state = FakeState()
        self.auth = FakeAuth()
        self.telemetry = build_telemetry("test")
        self.settings = CommonSettings(listen="127.0.0.1:0", service_token=TOKEN, drain_seconds=2)
        self._state_address = "127.0.0.1:0"
        self.state_server: Server
        self.state_channel: ServiceChannel
        self.server: Server
        self.hub: WorkerHub

    async def start(self, state_address: str | None = None) -> None:
        """Starts the executor's servicers, and the state service in memory unless there is another one."""
        if state_address is None:
            await self.start_state()
            state_address = self.state_server.address
        channel = open_channel(state_address, service="executor", settings=self.settings)
        self.state_channel = await self._stack.enter_async_context(channel)
        stubs = StateStubs.on(channel)
        auth_channel = await self._stack.enter_async_context(
            open_channel(await self._start_auth(), service="executor", settings=self.settings)
        )
        revisions = RevisionCache(stubs.agents)
        grants = RunGrants(GrantServiceStub(auth_channel), stubs.runs, revisions)
        self.server = Server(
            self.settings, service="executor", access=ACCESS, telemetry=self.telemetry, authenticator=FakeKeys()
        )
        self.hub = WorkerHub(stubs.calls, heartbeat_seconds=0.2, poll_seconds=0.2, offer_seconds=20)
        watcher = RunWatcher(stubs, self.server.draining, beat_seconds=0.2, reattach_seconds=10)
        key = page_key(TOKEN)
        self.server.add(add_AgentServiceServicer_to_server, AgentServicer(stubs, revisions, page_key=key))
        self.server.add(add_SessionServiceServicer_to_server, SessionServicer(stubs, page_key=key))
        creator = UnaryCreator(stubs)
        self.server.add(
            add_RunServiceServicer_to_server,
            RunServicer(stubs, RunStarter(revisions, creator, NoSlots(), grants), creator, watcher, page_key=key),
        )
        self.server.add(
            add_ApprovalServiceServicer_to_server,
            ApprovalServicer(stubs, revisions, ConnectServiceStub(auth_channel), page_key=key),
        )
        connections = ConnectionServiceStub(auth_channel)
        self.server.add(add_WorkspaceServiceServicer_to_server, WorkspaceServicer(stubs, connections))
        stub, connect = CredentialServiceStub(auth_channel), ConnectServiceStub(auth_channel)
        credentials = Credentials(stub, connect, grants, CredentialUses(stub, SystemClock()))
        call_credentials = CallCredentials(stubs, revisions, credentials)
        self.server.add(
            add_ToolWorkerServiceServicer_to_server,
            ToolWorkerServicer(self.hub, CallResults(stubs, revisions, call_credentials), call_credentials),
        )
        self.server.on_drain(self.hub.drain)
        await self._stack.enter_async_context(self.server)

    async def _start_auth(self) -> str:
        server = Server(
            replace(self.settings, drain_seconds=0),
            service="auth",
            access=self.auth.access(),
            telemetry=build_telemetry("auth"),
        )
        self.auth.add_to(server)
        return (await self._stack.enter_async_context(server)).address

    async def start_state(self) -> None:
        """Starts the state service, at its address of before if it had one."""
        self.state_server = Server(
            replace(self.settings, listen=self._state_address, drain_seconds=0),
            service="state",
            access=self.state.access(),
            telemetry=build_telemetry("state"),
        )
        self.state.add_to(self.state_server)
        await self._stack.enter_async_context(self.state_server)
        self._state_address = self.state_server.address

    async def stop_state(self) -> None:
        """Stops the state service; its streams break."""
        await self.state_server.drain()

    async def client(self, key: str = "ws1") -> Client:
        """A client with a key of a workspace."""
        bare = grpc.aio.insecure_channel(self.server.address, options=(("grpc.enable_retries", 0),))
        channel = ServiceChannel(bare, address=self.server.address, identity=f"Bearer {key}", unary_deadline_seconds=20)
        return Client(await self._stack.enter_async_context(channel))


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    async with AsyncExitStack() as stack:
        made = Executor(stack)
        await made.start()
        async with asyncio.timeout(60):
            yield made
