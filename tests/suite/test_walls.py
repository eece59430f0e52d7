"""Two workspaces: what one has does not exist for the other, whatever it asks (P11)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from holdfast import Agent, Client, agent_tool
from holdfast.api.auth.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    connect_service_pb2,
    connection_feed_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    data_key_service_pb2,
    grant_service_pb2,
    integration_service_pb2,
)
from holdfast.api.auth.v1 import workspace_service_pb2 as auth_workspace_pb2
from holdfast.api.auth.v1 import workspace_service_pb2_grpc as auth_workspace_grpc
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from holdfast.api.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceStub
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.data_key_service_pb2_grpc import DataKeyServiceStub
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.auth.v1.integration_service_pb2_grpc import IntegrationServiceStub
from holdfast.api.common.v1 import agent_pb2, run_pb2, workspace_pb2
from holdfast.api.executor.v1 import (
    agent_service_pb2,
    approval_service_pb2,
    run_service_pb2,
    session_service_pb2,
    tool_worker_service_pb2,
    workspace_service_pb2,
)
from holdfast.api.executor.v1.agent_service_pb2_grpc import AgentServiceStub
from holdfast.api.executor.v1.approval_service_pb2_grpc import ApprovalServiceStub
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.api.executor.v1.session_service_pb2_grpc import SessionServiceStub
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import ToolWorkerServiceStub
from holdfast.api.executor.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.api.trace.v1 import query_service_pb2
from holdfast.api.trace.v1.query_service_pb2_grpc import QueryServiceStub
from holdfast.cli.launch import suite_root
from holdfast.errors import NotFound
from holdfast.ids import new_uuid7
from holdfast.testing import Suite, call, scripted, turn
from services.auth.access import ACCESS as AUTH_ACCESS
from services.executor.access import ACCESS as EXECUTOR_ACCESS
from services.trace.servicer import ACCESS as TRACE_ACCESS
from tests.suite.raw_worker import RawWorker
from tests.suite.stages import Stage, question_of, until_change, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P11")]

REVISION = "0" * 64


async def create_key(suite: Suite, workspace: str) -> str:
    """Makes a workspace and a key of it, as an operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.auth",
        "create-key",
        "--workspace",
        workspace,
        cwd=suite_root(),
        env={**suite.plan.environment("auth"), "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


@dataclass
class Walls:
    """What the first workspace has, and the second one's key."""

    stage: Stage
    foreign_key: str
    agent: str = "treasure"
    revision: str = ""
    run_id: str = ""
    session_id: str = ""
    approval_id: str = ""
    blob: bytes = b""
    lease: str = ""
    worker_id: str = ""
    key_id: str = ""
    connection: str = "vault"
    integration: str = "app"
    connect_session_id: str = ""
    before: dict[str, Any] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def walls(stage: Stage) -> AsyncIterator[Walls]:
    found = Walls(stage, await create_key(stage.suite, "neighbours"))
    client = stage.client
    agent = Agent(
        found.agent,
        model=scripted(
            call("noop", map="x" * 50_000),
            turn("", call("open_chest"), call("ask_user", question="Which chest?")),
            "the treasure",
        ),
        tools=["noop", "ask_user", agent_pb2.ToolSpec(name="open_chest", worker=agent_pb2.WorkerTool())],
    )
    found.revision = (await client.apply(agent)).revision
    async with RawWorker(stage.suite.address(), stage.suite.api_key, "open_chest") as worker:
        handle = await client.start(agent, "find the treasure")
        offer = await worker.offered()
        await worker.begin(offer)
        found.run_id, found.session_id = handle.id, handle.run.session_id
        found.lease, found.worker_id = offer.lease, worker.worker_id
        found.approval_id = (await question_of(handle)).approval_id
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        stored = await until_change(handle, lambda change: change.step_finished.HasField("output"))
        found.blob = stored.step_finished.output.hash
        found.key_id = (await anext(client.keys.list())).api_key_id
        await client.connections.create("openai", "sk-the-key-to-the-vault", name=found.connection)
        await client.integrations.create("github", name=found.integration, client_id="app", client_secret="shh")
        found.connect_session_id = await begin_connect(stage, found.integration)
        found.before = await contents_of(client, found)
        yield found
        assert await contents_of(client, found) == found.before, "nobody else has changed anything"


async def contents_of(client: Client, walls: Walls) -> dict[str, Any]:
    """All that the first workspace has, to see that nobody changed it."""
    return {
        "agent": await client.agents.get(walls.agent),
        "run": (await client.run(walls.run_id)).run,
        "approval": await client.approvals.get(walls.approval_id),
        "messages": [message async for message in client.sessions.messages(walls.session_id)],
        "keys": [key.api_key_id async for key in client.keys.list() if not key.HasField("revoke_time")],
        "connections": [connection async for connection in client.connections.list()],
        "integrations": [integration async for integration in client.integrations.list()],
    }


async def begin_connect(stage: Stage, integration: str) -> str:
    """Begins a sign-in and returns its id."""
    async with grpc.aio.insecure_channel(
        stage.suite.address("auth"), options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        started = await ConnectServiceStub(channel).StartConnect(
            connect_service_pb2.StartConnectRequest(integration=integration),
            metadata=(("authorization", f"Bearer {stage.suite.api_key}"),),
        )
    return started.session.session_id


def requests_of(walls: Walls, absent: bool) -> dict[str, tuple[Any, Message]]:
    """For each public method that names a thing: its stub and a request for the neighbours' thing, or for none."""
    uuid = new_uuid7()

    def pick(real: Any, nothing: Any) -> Any:
        return nothing if absent else real

    agent, run_id = pick(walls.agent, "nothing"), pick(walls.run_id, uuid)
    session_id, approval_id = pick(walls.session_id, uuid), pick(walls.approval_id, uuid)
    lease, blob, connection = (
        pick(walls.lease, "x" * 32),
        pick(walls.blob, b"x" * 32),
        pick(walls.connection, "nothing"),
    )
    executor, auth, trace = "executor", "auth", "trace"
    a, r, s, q, w = (
        agent_service_pb2,
        run_service_pb2,
        session_service_pb2,
        approval_service_pb2,
        tool_worker_service_pb2,
    )
    k, c, t = api_key_service_pb2, connection_service_pb2, query_service_pb2
    i, o = integration_service_pb2, connect_service_pb2
    integration, connect_session_id = pick(walls.integration, "nothing"), pick(walls.connect_session_id, uuid)
    agents = FieldMask(paths=["agents"])
    return {
        "AgentService/GetAgent": ((executor, AgentServiceStub), a.GetAgentRequest(agent=agent)),
        "AgentService/GetAgentRevision": ((executor, AgentServiceStub), a.GetAgentRevisionRequest(agent=agent)),
        "AgentService/ListAgentRevisions": ((executor, AgentServiceStub), a.ListAgentRevisionsRequest(agent=agent)),
        "AgentService/SetAgentLabel": (
            (executor, AgentServiceStub),
            a.SetAgentLabelRequest(agent=agent, label="mine", revision=pick(walls.revision, REVISION)),
        ),
        "RunService/StartRun": (
            (executor, RunServiceStub),
            r.StartRunRequest(agent=agent, text="give it to me", session_id=session_id),
        ),
        "RunService/GetRun": ((executor, RunServiceStub), r.GetRunRequest(run_id=run_id)),
        "RunService/GetRunBudget": ((executor, RunServiceStub), r.GetRunBudgetRequest(run_id=run_id)),
        "RunService/WaitRun": ((executor, RunServiceStub), r.WaitRunRequest(run_id=run_id)),
        "RunService/WatchRun": ((executor, RunServiceStub), r.WatchRunRequest(run_id=run_id)),
        "RunService/CancelRun": ((executor, RunServiceStub), r.CancelRunRequest(run_id=run_id)),
        "RunService/PauseRun": ((executor, RunServiceStub), r.PauseRunRequest(run_id=run_id)),
        "RunService/ResumeRun": ((executor, RunServiceStub), r.ResumeRunRequest(run_id=run_id)),
        "RunService/GetBlob": ((executor, RunServiceStub), r.GetBlobRequest(hash=blob)),
        "SessionService/GetSession": ((executor, SessionServiceStub), s.GetSessionRequest(session_id=session_id)),
        "SessionService/ListMessages": ((executor, SessionServiceStub), s.ListMessagesRequest(session_id=session_id)),
        "ApprovalService/GetApproval": (
            (executor, ApprovalServiceStub),
            q.GetApprovalRequest(approval_id=approval_id),
        ),
        "ApprovalService/DecideApproval": (
            (executor, ApprovalServiceStub),
            q.DecideApprovalRequest(approval_id=approval_id, answer_json="mine"),
        ),
        "ToolWorkerService/CompleteCall": (
            (executor, ToolWorkerServiceStub),
            w.CompleteCallRequest(worker_id=walls.worker_id, lease=lease, result_json='"stolen"'),
        ),
        "WorkspaceService/ExportWorkspaceData": (
            (executor, WorkspaceServiceStub),
            workspace_service_pb2.ExportWorkspaceDataRequest(scope=workspace_pb2.DataScope(session_id=session_id)),
        ),
        "WorkspaceService/EraseWorkspaceData": (
            (executor, WorkspaceServiceStub),
            workspace_service_pb2.EraseWorkspaceDataRequest(scope=workspace_pb2.DataScope(session_id=session_id)),
        ),
        "ApiKeyService/RevokeApiKey": (
            (auth, ApiKeyServiceStub),
            k.RevokeApiKeyRequest(api_key_id=pick(walls.key_id, uuid)),
        ),
        "ConnectionService/GetConnection": (
            (auth, ConnectionServiceStub),
            c.GetConnectionRequest(name=connection),
        ),
        "ConnectionService/RevokeConnection": (
            (auth, ConnectionServiceStub),
            c.RevokeConnectionRequest(name=connection),
        ),
        "ConnectionService/UpdateConnection": (
            (auth, ConnectionServiceStub),
            c.UpdateConnectionRequest(name=connection, update_mask=agents),
        ),
        "ConnectionService/RefreshConnection": (
            (auth, ConnectionServiceStub),
            c.RefreshConnectionRequest(name=connection),
        ),
        "IntegrationService/GetIntegration": (
            (auth, IntegrationServiceStub),
            i.GetIntegrationRequest(name=integration),
        ),
        "IntegrationService/UpdateIntegration": (
            (auth, IntegrationServiceStub),
            i.UpdateIntegrationRequest(name=integration, update_mask=agents),
        ),
        "IntegrationService/DeleteIntegration": (
            (auth, IntegrationServiceStub),
            i.DeleteIntegrationRequest(name=integration),
        ),
        "ConnectService/StartConnect": (
            (auth, ConnectServiceStub),
            o.StartConnectRequest(integration=integration),
        ),
        "ConnectService/GetConnectSession": (
            (auth, ConnectServiceStub),
            o.GetConnectSessionRequest(session_id=connect_session_id),
        ),
        "ConnectService/ConfirmConnect": (
            (auth, ConnectServiceStub),
            o.ConfirmConnectRequest(session_id=connect_session_id, confirm_code="ABCD-EFGH"),
        ),
        "ConnectService/CancelConnect": (
            (auth, ConnectServiceStub),
            o.CancelConnectRequest(session_id=connect_session_id),
        ),
        "ToolWorkerService/GetCallCredential": (
            (executor, ToolWorkerServiceStub),
            w.GetCallCredentialRequest(worker_id=walls.worker_id, lease=lease),
        ),
        "QueryService/GetRunTree": ((trace, QueryServiceStub), t.GetRunTreeRequest(run_id=run_id)),
        "QueryService/GetStep": ((trace, QueryServiceStub), t.GetStepRequest(run_id=run_id, step=1)),
    }


def lists_of(walls: Walls) -> dict[str, tuple[Any, Message, str]]:
    """Methods that list, with filters that name the neighbours' things, and the field of the answer."""
    executor, auth, trace = "executor", "auth", "trace"
    return {
        "AgentService/ListAgents": ((executor, AgentServiceStub), agent_service_pb2.ListAgentsRequest(), "agents"),
        "RunService/ListRuns": (
            (executor, RunServiceStub),
            run_service_pb2.ListRunsRequest(agent=walls.agent, session_id=walls.session_id),
            "runs",
        ),
        "SessionService/ListSessions": (
            (executor, SessionServiceStub),
            session_service_pb2.ListSessionsRequest(),
            "sessions",
        ),
        "ApprovalService/ListApprovals": (
            (executor, ApprovalServiceStub),
            approval_service_pb2.ListApprovalsRequest(run_id=walls.run_id),
            "approvals",
        ),
        "ConnectionService/ListConnections": (
            (auth, ConnectionServiceStub),
            connection_service_pb2.ListConnectionsRequest(),
            "connections",
        ),
        "IntegrationService/ListIntegrations": (
            (auth, IntegrationServiceStub),
            integration_service_pb2.ListIntegrationsRequest(),
            "integrations",
        ),
        "AuditService/ListAuditRecords": (
            (auth, AuditServiceStub),
            audit_service_pb2.ListAuditRecordsRequest(
                filter=audit_service_pb2.AuditFilter(connection=walls.connection)
            ),
            "records",
        ),
        "QueryService/ListRuns": (
            (trace, QueryServiceStub),
            query_service_pb2.ListRunsRequest(agent=walls.agent, session_id=walls.session_id),
            "runs",
        ),
    }


# These name nothing of anybody's: they make something, or answer about the caller; each has its own test below.
OWN = {
    "AgentService/ApplyAgent",
    # Its orders are StartRun's requests: tests/suite/test_run_streams.py.
    "RunService/StartRuns",
    "SessionService/CreateSession",
    "ToolWorkerService/Work",
    "ApiKeyService/CreateApiKey",
    "ApiKeyService/ListApiKeys",
    "AuditService/ExportAuditRecords",
    "AuditService/VerifyAuditTrail",
    "ConnectionService/CreateConnection",
    "IntegrationService/CreateIntegration",
    "IntegrationService/ListProviders",
    "WorkspaceService/GetWorkspace",
    "WorkspaceService/SetPayloadSealing",
    "WorkspaceService/GetWorkspaceSettings",
    "WorkspaceService/UpdateWorkspaceSettings",
    "WorkspaceService/GetWorkspaceStorage",
}
INTERNAL = {
    "ApiKeyService/VerifyApiKey",
    "AuditService/CheckAuditTrails",
    "ConnectService/RequestSignIn",
    "ConnectionFeedService/CheckSignIns",
    "ConnectionFeedService/WatchConnections",
    "ConnectionService/EraseUserConnections",
    "CredentialService/RecordCredentialUses",
    "CredentialService/ResolveCredential",
    "DataKeyService/CheckPayloadSealing",
    "DataKeyService/CreateDataKey",
    "DataKeyService/UnwrapDataKey",
    "GrantService/DeriveRunGrant",
    "GrantService/IssueRunGrant",
    "WorkspaceService/CloseWorkspace",
    "WorkspaceService/DeleteWorkspace",
}


async def ask(walls: Walls, target: tuple[Any, Any], method: str, request: Message) -> Message | grpc.aio.AioRpcError:
    """Makes a call with the second workspace's key and returns the answer or the refusal."""
    service, stub_class = target
    async with grpc.aio.insecure_channel(
        walls.stage.suite.address(service), options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        rpc = getattr(stub_class(channel), method.partition("/")[2])
        made = rpc(request, metadata=(("authorization", f"Bearer {walls.foreign_key}"),), timeout=15)
        try:
            if hasattr(made, "read"):
                answer = await made.read()
                assert answer is not grpc.aio.EOF
                return answer
            return await made
        except grpc.aio.AioRpcError as error:
            return error


async def test_every_public_method_is_looked_at() -> None:
    walls = Walls(None, "")  # type: ignore[arg-type]
    looked_at = requests_of(walls, True).keys() | lists_of(walls).keys() | OWN | INTERNAL
    declared = {
        method.rpartition("holdfast.api.")[2].rpartition(".")[2]
        for access in (EXECUTOR_ACCESS, AUTH_ACCESS, TRACE_ACCESS)
        for method in access
    }
    assert looked_at == declared


async def test_a_neighbours_tree_and_agent_are_nobody_elses(walls: Walls) -> None:
    executor, trace = ("executor", RunServiceStub), ("trace", QueryServiceStub)
    approvals = ("executor", ApprovalServiceStub)
    run_id = walls.run_id
    calls: list[tuple[Any, str, Message, str]] = [
        (executor, "RunService/ListRuns", run_service_pb2.ListRunsRequest(root_run_id=run_id), "runs"),
        (executor, "RunService/ListRuns", run_service_pb2.ListRunsRequest(parent_run_id=run_id), "runs"),
        (trace, "QueryService/ListRuns", query_service_pb2.ListRunsRequest(root_run_id=run_id), "runs"),
        (trace, "QueryService/ListRuns", query_service_pb2.ListRunsRequest(parent_run_id=run_id), "runs"),
        (
            approvals,
            "ApprovalService/ListApprovals",
            approval_service_pb2.ListApprovalsRequest(root_run_id=run_id),
            "approvals",
        ),
    ]
    for target, method, request, field_ in calls:
        answered = await ask(walls, target, method, request)
        assert isinstance(answered, Message), answered
        assert not getattr(answered, field_), method
    spec = agent_pb2.AgentSpec(name="thief", model=scripted("x"), tools=[agent_tool(walls.agent)])
    apply = agent_service_pb2.ApplyAgentRequest(spec=spec)
    refused = await ask(walls, ("executor", AgentServiceStub), "AgentService/ApplyAgent", apply)
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", sorted(requests_of(Walls(None, ""), True)))  # type: ignore[arg-type]
async def test_a_neighbours_thing_is_answered_as_one_that_does_not_exist(walls: Walls, method: str) -> None:
    target, foreign = requests_of(walls, False)[method]
    _, absent = requests_of(walls, True)[method]
    refused, unknown = await ask(walls, target, method, foreign), await ask(walls, target, method, absent)
    assert isinstance(refused, grpc.aio.AioRpcError), refused
    assert isinstance(unknown, grpc.aio.AioRpcError), unknown
    is_of_a_lease = method.startswith("ToolWorkerService/")
    expected = grpc.StatusCode.ABORTED if is_of_a_lease else grpc.StatusCode.NOT_FOUND
    assert refused.code() == unknown.code() == expected
    assert neutral(refused.details(), foreign) == neutral(unknown.details(), absent)


def neutral(text: str | None, request: Message) -> str:
    """The text without what the caller itself has named."""
    text = text or ""
    for field_, value in request.ListFields():
        if isinstance(value, str) and field_.name in (
            "agent",
            "run_id",
            "session_id",
            "approval_id",
            "name",
            "integration",
        ):
            text = text.replace(value, "…")
    return text


@pytest.mark.parametrize("method", sorted(lists_of(Walls(None, ""))))  # type: ignore[arg-type]
async def test_lists_hold_nothing_of_a_neighbours(walls: Walls, method: str) -> None:
    target, request, field_ = lists_of(walls)[method]
    answer = await ask(walls, target, method, request)
    assert isinstance(answer, Message), answer
    assert list(getattr(answer, field_)) == []


async def test_names_are_the_workspaces_own(walls: Walls) -> None:
    suite = walls.stage.suite
    key = await create_key(suite, "namesakes")
    async with asyncio.timeout(30), suite.client(api_key=key) as client:
        assert (await client.workspace()).name == "namesakes"
        # The same names, the same request ids: other things.
        agent = Agent(walls.agent, model=scripted("nothing here"))
        await client.apply(agent)
        request_id = new_uuid7()
        mine = await client.start(agent, "hello", request_id=request_id)
        assert await mine.result() == "nothing here"
        ours = await walls.stage.client.start(walls.agent, "hello", request_id=request_id)
        assert ours.id != mine.id
        await ours.cancel()
        await client.connections.create("openai", "sk-other", name=walls.connection)
        _, _ = await client.keys.create("theirs", ["runs:read"])
        keys = [key.api_key_id async for key in client.keys.list()]
        assert walls.key_id not in keys
        assert (await client.sessions.create()).session_id != walls.session_id


async def test_a_workspace_is_kept_exported_and_erased_alone(walls: Walls) -> None:
    before = await walls.stage.client.housekeeping.storage()
    settings = await walls.stage.client.housekeeping.settings()
    key = await create_key(walls.stage.suite, "tidy")
    async with asyncio.timeout(30), walls.stage.suite.client(api_key=key) as client:
        await client.housekeeping.keep(ended_runs=timedelta(hours=1))
        assert (await client.housekeeping.storage()).events == 0
        exported = [frame async for frame in client.housekeeping.export()]
        assert [record for frame in exported for record in frame.records] == []
        erased = [frame async for frame in client.housekeeping.erase(everything=True, cancel_first=True)]
        assert erased[-1].is_done and erased[-1].erased.runs == 0
    assert await walls.stage.client.housekeeping.settings() == settings
    after = await walls.stage.client.housekeeping.storage()
    assert (after.events, after.sessions, after.blobs) == (before.events, before.sessions, before.blobs)


async def test_a_neighbours_conversation_is_not_gone_on_with(walls: Walls) -> None:
    async with walls.stage.suite.client(api_key=walls.foreign_key) as client:
        agent = Agent("eavesdropper", model=scripted("{{input}}"))
        await client.apply(agent)
        refusals = []
        for session_id in (walls.session_id, new_uuid7()):
            with pytest.raises(NotFound) as refused:
                await client.start(agent, "what was said?", session_id=session_id)
            refusals.append((refused.value.reason, refused.value.message.replace(session_id, "…")))
    assert refusals[0] == refusals[1]
    assert refusals[0][0] == "SESSION_NOT_FOUND"


async def test_calls_are_offered_to_workers_of_their_own_workspace_only(walls: Walls) -> None:
    stage = walls.stage
    agent = Agent(
        "fetcher",
        model=scripted(call("fetch"), "{{result}}"),
        tools=[agent_pb2.ToolSpec(name="fetch", worker=agent_pb2.WorkerTool())],
    )
    async with (
        asyncio.timeout(30),
        RawWorker(stage.suite.address(), walls.foreign_key, "fetch", "open_chest") as stranger,
    ):
        handle = await stage.start(agent)
        offering = asyncio.create_task(stranger.offered())
        async with RawWorker(stage.suite.address(), stage.suite.api_key, "fetch") as own:
            offer = await own.offered()
            await own.begin(offer)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stranger.complete(offer.lease, result_json='"stolen"')
            assert refused.value.code() == grpc.StatusCode.ABORTED
            await own.complete(offer.lease, result_json='"fetched"')
            assert await handle.result() == "fetched"
        assert not offering.done()
        offering.cancel()
        await asyncio.gather(offering, return_exceptions=True)


async def test_the_services_own_calls_accept_no_key_at_all(walls: Walls) -> None:
    verify = api_key_service_pb2.VerifyApiKeyRequest()
    resolve = credential_service_pb2.ResolveCredentialRequest()
    grant, sign_in = grant_service_pb2.IssueRunGrantRequest(), connect_service_pb2.RequestSignInRequest()
    check, watch = (
        connection_feed_service_pb2.CheckSignInsRequest(),
        connection_feed_service_pb2.WatchConnectionsRequest(),
    )
    record = credential_service_pb2.RecordCredentialUsesRequest()
    trails = audit_service_pb2.CheckAuditTrailsRequest()
    calls = {
        "ApiKeyService/VerifyApiKey": (("auth", ApiKeyServiceStub), verify),
        "AuditService/CheckAuditTrails": (("auth", AuditServiceStub), trails),
        "ConnectService/RequestSignIn": (("auth", ConnectServiceStub), sign_in),
        "ConnectionFeedService/CheckSignIns": (("auth", ConnectionFeedServiceStub), check),
        "ConnectionFeedService/WatchConnections": (("auth", ConnectionFeedServiceStub), watch),
        "ConnectionService/EraseUserConnections": (
            ("auth", ConnectionServiceStub),
            connection_service_pb2.EraseUserConnectionsRequest(user_id="ann"),
        ),
        "CredentialService/RecordCredentialUses": (("auth", CredentialServiceStub), record),
        "CredentialService/ResolveCredential": (("auth", CredentialServiceStub), resolve),
        "DataKeyService/CheckPayloadSealing": (
            ("auth", DataKeyServiceStub),
            data_key_service_pb2.CheckPayloadSealingRequest(),
        ),
        "DataKeyService/CreateDataKey": (("auth", DataKeyServiceStub), data_key_service_pb2.CreateDataKeyRequest()),
        "DataKeyService/UnwrapDataKey": (("auth", DataKeyServiceStub), data_key_service_pb2.UnwrapDataKeyRequest()),
        "GrantService/DeriveRunGrant": (("auth", GrantServiceStub), grant_service_pb2.DeriveRunGrantRequest()),
        "GrantService/IssueRunGrant": (("auth", GrantServiceStub), grant),
        "WorkspaceService/CloseWorkspace": (
            ("auth", auth_workspace_grpc.WorkspaceServiceStub),
            auth_workspace_pb2.CloseWorkspaceRequest(),
        ),
        "WorkspaceService/DeleteWorkspace": (
            ("auth", auth_workspace_grpc.WorkspaceServiceStub),
            auth_workspace_pb2.DeleteWorkspaceRequest(),
        ),
    }
    assert calls.keys() == INTERNAL
    for method, (target, request) in calls.items():
        refused = await ask(walls, target, method, request)
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert refused.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_state_accepts_no_key_at_all(walls: Walls) -> None:
    from holdfast.api.state.v1 import run_store_service_pb2
    from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub

    request = run_store_service_pb2.GetRunRequest(workspace_id=new_uuid7(), run_id=walls.run_id)
    refused = await ask(walls, ("state", RunStoreServiceStub), "RunStoreService/GetRun", request)
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert refused.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
