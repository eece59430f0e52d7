"""Builds the executor from its settings, serves, drains, closes. The only place that constructs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceStub
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.executor.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from holdfast.api.executor.v1.approval_service_pb2_grpc import add_ApprovalServiceServicer_to_server
from holdfast.api.executor.v1.run_service_pb2_grpc import add_RunServiceServicer_to_server
from holdfast.api.executor.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import add_ToolWorkerServiceServicer_to_server
from holdfast.api.executor.v1.workspace_service_pb2_grpc import add_WorkspaceServiceServicer_to_server
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.ids import new_uuid7
from services.executor.access import ACCESS
from services.executor.call_credentials import CallCredentials
from services.executor.call_results import CallResults
from services.executor.child_runs import ChildRuns
from services.executor.credential_uses import CredentialUses
from services.executor.credentials import Credentials
from services.executor.driver import DriverParts
from services.executor.egress.proxy import MAX_HEAD_BYTES, EgressProxy
from services.executor.local_calls import LocalCalls
from services.executor.models import ModelRegistry
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants
from services.executor.scheduler import Scheduler
from services.executor.servicers.agents import AgentServicer
from services.executor.servicers.approvals import ApprovalServicer
from services.executor.servicers.runs import RunServicer
from services.executor.servicers.sessions import SessionServicer
from services.executor.servicers.tool_workers import ToolWorkerServicer
from services.executor.servicers.workspaces import WorkspaceServicer
from services.executor.settings import ExecutorSettings
from services.executor.sign_ins import SignIns
from services.executor.starts import RunStarter
from services.executor.state_client import JournalClient, StateReader
from services.executor.state_stubs import StateStubs
from services.executor.tools.http import HttpTools
from services.executor.tools.pools import ConnectionPools
from services.executor.watch import RunWatcher
from services.executor.worker_hub import WorkerHub
from services.shared.api_keys import RemoteAuthenticator
from services.shared.channels import open_channel, wait_for_channel_ready
from services.shared.clock import SystemClock
from services.shared.http_listener import listen, serving
from services.shared.paging import page_key
from services.shared.server import Process, Server
from services.shared.telemetry import get_logger

log = get_logger(__name__)

# Streams that live as long as the process: a span of each would never end.
UNTRACED = frozenset(
    {
        "/holdfast.api.auth.v1.ConnectionFeedService/WatchConnections",
        "/holdfast.api.state.v1.JournalService/Checkpoint",
        "/holdfast.api.state.v1.JournalService/WatchJournal",
        "/holdfast.api.state.v1.LeaseService/Work",
    }
)


async def run(settings: ExecutorSettings, process: Process) -> None:
    """Serves until `process.stop` is set."""
    clock = SystemClock()
    async with AsyncExitStack() as closing:
        state_channel = await closing.enter_async_context(
            open_channel(
                settings.state_address,
                service="executor",
                settings=settings,
                telemetry=process.telemetry,
                peer="state",
                untraced=UNTRACED,
            )
        )
        auth_channel = await closing.enter_async_context(
            open_channel(
                settings.auth_address,
                service="executor",
                settings=settings,
                telemetry=process.telemetry,
                peer="auth",
                untraced=UNTRACED,
            )
        )
        for channel, name in ((state_channel, "state"), (auth_channel, "auth")):
            if not await wait_for_channel_ready(channel, name, process.stop):
                return
        stubs = StateStubs.on(state_channel)
        journal = JournalClient(state_channel, max_message_bytes=settings.max_message_bytes)
        revisions = RevisionCache(stubs.agents)
        models = ModelRegistry(clock)
        closing.push_async_callback(models.close)
        http_tools = HttpTools(settings.http_tools_allow, clock=clock)
        closing.push_async_callback(http_tools.close)
        grants = RunGrants(GrantServiceStub(auth_channel), stubs.runs, revisions)
        connect = ConnectServiceStub(auth_channel)
        uses = CredentialUses(CredentialServiceStub(auth_channel), clock)
        closing.push_async_callback(uses.close)
        credentials = Credentials(CredentialServiceStub(auth_channel), connect, grants, uses, clock=clock)
        call_credentials = CallCredentials(stubs, revisions, credentials)
        sign_ins = SignIns(ConnectionFeedServiceStub(auth_channel), stubs.runs, clock)
        egress_base = ""
        if settings.egress_listen:
            listener = closing.enter_context(listen(settings.egress_listen, "HOLDFAST_EGRESS_LISTEN"))
            egress_base = settings.egress_url or f"http://{listener.address}"
            pools = ConnectionPools(settings.http_tools_allow)
            closing.push_async_callback(pools.close)
            await closing.enter_async_context(
                serving(
                    EgressProxy(call_credentials, pools),
                    listener,
                    drain_seconds=settings.drain_seconds,
                    max_head_bytes=MAX_HEAD_BYTES,
                )
            )
            log.info("egress_listening", address=listener.address, egress_url=egress_base)
        hub = WorkerHub(stubs.calls, egress_base=egress_base, clock=clock)
        parts = DriverParts(
            executor_id=new_uuid7(),
            journal=journal,
            reader=StateReader(stubs),
            revisions=revisions,
            local_calls=LocalCalls(
                models=models,
                credentials=credentials,
                http_tools=http_tools,
                journal=journal,
                clock=clock,
            ),
            child_runs=ChildRuns(revisions, grants),
            clock=clock,
            park_after_seconds=settings.park_after_seconds,
        )
        scheduler = Scheduler(LeaseServiceStub(state_channel), parts, hub, max_runs=settings.max_runs)
        server = Server(
            settings,
            service="executor",
            access=ACCESS,
            telemetry=process.telemetry,
            authenticator=RemoteAuthenticator(auth_channel, clock=clock),
        )
        key = page_key(settings.service_token)
        watcher = RunWatcher(stubs, server.draining, clock=clock)
        starter = RunStarter(revisions, journal, scheduler, grants)
        server.add(add_AgentServiceServicer_to_server, AgentServicer(stubs, revisions, page_key=key))
        server.add(add_SessionServiceServicer_to_server, SessionServicer(stubs, page_key=key))
        server.add(add_RunServiceServicer_to_server, RunServicer(stubs, starter, journal, watcher, page_key=key))
        server.add(add_ApprovalServiceServicer_to_server, ApprovalServicer(stubs, revisions, connect, page_key=key))
        results = CallResults(stubs, revisions, call_credentials)
        server.add(add_ToolWorkerServiceServicer_to_server, ToolWorkerServicer(hub, results, call_credentials))
        server.add(
            add_WorkspaceServiceServicer_to_server, WorkspaceServicer(stubs, ConnectionServiceStub(auth_channel))
        )
        # Order matters: workers first, so that what they finish while the runs drain is still stored.
        server.on_drain(hub.drain)
        server.on_drain(scheduler.drain)
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(part.run()) for part in (journal, scheduler, uses, sign_ins)]
            try:
                await server.run(process.stop)
            finally:
                for task in background:
                    task.cancel()
