"""Credentials for workers' calls over gRPC: who is handed one, and what becomes of a call that lacks a sign-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from holdfast.api.auth.v1 import credential_service_pb2 as credentials
from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.executor.v1 import tool_worker_service_pb2 as api
from holdfast.errors import (
    FailedPrecondition,
    HoldfastError,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
)
from tests.executor.servicers.conftest import Client, Executor
from tests.executor.servicers.test_tool_workers import Worker, error
from tests.fakes.state_services import FakeCall

pytestmark = pytest.mark.promise("P8")

EXPIRE = datetime(2030, 1, 2, tzinfo=UTC)


@dataclass
class Stage:
    """A worker with a running call."""

    executor: Executor
    client: Client
    worker: Worker
    calls: list[FakeCall] = field(default_factory=list)

    async def running(self, tool: str = "look") -> str:
        """Lets the worker begin a call, and returns its lease."""
        call = await self.executor.state.queue_call("ws1", tool, user_id="u1")
        run = self.executor.state.add_run("ws1")
        call.call.run_id = run.run.run_id
        self.calls.append(call)
        return (await self.worker.accept()).lease

    async def ask(self, lease: str, **fields: str) -> api.GetCallCredentialResponse:
        """Asks for the credential of a call."""
        request = api.GetCallCredentialRequest(**{"worker_id": self.worker.worker_id, "lease": lease, **fields})
        return await self.client.workers.GetCallCredential(request)

    def ended(self) -> run_pb2.AttemptFailed:
        """How the last call ended."""
        change = self.calls[-1].ended_with
        assert change is not None
        return change.attempt_failed


@pytest.fixture
async def stage(executor: Executor) -> Stage:
    auth = agent_pb2.ToolAuth(connection="crm", scopes=["read"])
    tools = [
        agent_pb2.ToolSpec(name="look", worker=agent_pb2.WorkerTool(), auth=auth),
        agent_pb2.ToolSpec(name="plain", worker=agent_pb2.WorkerTool()),
    ]
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="support", tools=tools))
    client = await executor.client("ws1/worker")
    worker = Worker(client, tools=("look", "plain"))
    await worker.connect()
    return Stage(executor, client, worker)


def answer(executor: Executor) -> credentials.ResolveCredentialResponse:
    """What auth answers with everything set."""
    number = len(executor.auth.requests)
    response = credentials.ResolveCredentialResponse(
        connection_id="c1", secret=f"canary-{number}", fingerprint=f"f{number}", base_url="https://crm.example"
    )
    response.headers.add(name="x-key", value=f"canary-{number}")
    response.query.add(name="key", value=f"canary-{number}")
    response.expire_time.FromDatetime(EXPIRE)
    return response


async def test_running_call_is_handed_what_its_tool_declares(stage: Stage) -> None:
    stage.executor.auth.answer = lambda _: answer(stage.executor)
    lease = await stage.running()
    handed = await stage.ask(lease)
    assert (handed.secret, handed.fingerprint, handed.base_url) == ("canary-1", "f1", "https://crm.example")
    assert [(item.name, item.value) for item in handed.headers] == [("x-key", "canary-1")]
    assert [(item.name, item.value) for item in handed.query] == [("key", "canary-1")]
    assert handed.expire_time.ToDatetime(tzinfo=UTC) == EXPIRE
    [request] = stage.executor.auth.requests
    assert request.mode == credentials.CREDENTIAL_MODE_RAW
    assert (request.connection, list(request.scopes), request.tool, request.step) == ("crm", ["read"], "look", 1)
    assert (request.run_id, request.target) == (stage.calls[0].call.run_id, "")


async def test_refused_credential_is_renewed(stage: Stage) -> None:
    stage.executor.auth.answer = lambda _: answer(stage.executor)
    lease = await stage.running()
    first = await stage.ask(lease)
    assert (await stage.ask(lease)).secret == first.secret, "remembered for seconds"
    second = await stage.ask(lease, rejected_fingerprint=first.fingerprint)
    assert second.secret == "canary-2"
    assert [request.rejected_fingerprint for request in stage.executor.auth.requests] == ["", "f1"]


async def test_nobody_else_and_no_call_that_is_over_is_handed_anything(stage: Stage) -> None:
    lease = await stage.running()
    other = Stage(stage.executor, await stage.executor.client("ws2/worker"), stage.worker)
    for refused in (
        await error(stage.ask(lease, worker_id="somebody-else")),
        await error(stage.ask("unknown")),
        await error(other.ask(lease)),
    ):
        assert refused.reason == Reason.CALL_LEASE_LOST
    person = Stage(stage.executor, await stage.executor.client("ws1"), stage.worker)
    assert (await error(person.ask(lease))).reason == Reason.SCOPE_MISSING
    await stage.worker.complete(lease, "done")
    assert (await error(stage.ask(lease))).reason == Reason.CALL_LEASE_LOST
    await stage.executor.state.queue_call("ws1", "look")
    offered = (await stage.worker.next("offer")).offer.lease
    assert (await error(stage.ask(offered))).reason == Reason.CALL_LEASE_LOST
    assert stage.executor.auth.requests == []


async def test_tool_that_declares_no_connection_is_told_so(stage: Stage) -> None:
    refused = await error(stage.ask(await stage.running("plain")))
    assert (refused.reason, refused.metadata["tool"]) == (Reason.CREDENTIAL_NOT_DECLARED, "plain")
    assert stage.executor.auth.requests == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (PermissionDenied("no", reason=Reason.RAW_TOKEN_NOT_ALLOWED), Reason.RAW_TOKEN_NOT_ALLOWED),
        (NotFound("no", reason=Reason.CONNECTION_NOT_FOUND), Reason.CONNECTION_NOT_FOUND),
        (Unavailable("away", reason=Reason.CREDENTIAL_UNAVAILABLE), Reason.CREDENTIAL_UNAVAILABLE),
        # That is not about the worker's key.
        (Unauthenticated("no", reason=Reason.SERVICE_TOKEN_INVALID), Reason.AUTH_UNAVAILABLE),
    ],
)
async def test_worker_is_told_what_auth_says(stage: Stage, said: HoldfastError, reason: Reason) -> None:
    stage.executor.auth.failure = lambda: said
    assert (await error(stage.ask(await stage.running()))).reason == reason


async def test_missing_sign_in_is_stored_with_what_a_person_has_to_do(stage: Stage) -> None:
    stage.executor.auth.failure = lambda: NotFound("no", reason=Reason.CONNECTION_NOT_FOUND)
    lease = await stage.running()
    await error(stage.ask(lease))
    assert stage.executor.auth.sign_ins_requested == [], "a link is made for a run that waits"
    for _ in range(2):  # The same report twice is answered the same.
        await stage.worker.complete(lease, error=api.CallError(message="no account", needs_sign_in=True))
    failed = stage.ended()
    assert failed.failure.reason == Reason.CONNECTION_NOT_FOUND
    assert failed.sign_in == run_pb2.SignInNeeded(
        connection="crm",
        user_id="u1",
        scopes=["read"],
        reason="connection_missing",
        connect_url="https://example.com/connect/1",
        connect_session_id="session-1",
    )
    assert stage.executor.state.late == []


async def test_sign_in_that_came_meanwhile_makes_the_call_again(stage: Stage) -> None:
    lease = await stage.running()
    await stage.worker.complete(lease, error=api.CallError(message="no account", needs_sign_in=True))
    assert not stage.ended().HasField("sign_in")
    assert stage.ended().failure.failure_class == content_pb2.FAILURE_CLASS_RETRYABLE


async def test_key_that_the_other_side_refuses_counts_as_missing_until_there_is_another(stage: Stage) -> None:
    key = credentials.ResolveCredentialResponse(connection_id="c1", secret="canary", fingerprint="f1")
    stage.executor.auth.answer = lambda _: key
    lease = await stage.running()
    await stage.ask(lease)
    # It cannot be renewed: auth has nothing else.
    assert (await stage.ask(lease, rejected_fingerprint="f1")).fingerprint == "f1"
    await stage.worker.complete(lease, error=api.CallError(message="401", needs_sign_in=True))
    failed = stage.ended()
    assert (failed.failure.reason, failed.failure.failure_class) == (
        "CREDENTIAL_REJECTED",
        content_pb2.FAILURE_CLASS_AUTH,
    )
    assert (failed.sign_in.reason, failed.sign_in.rejected_fingerprint) == ("credential_rejected", "f1")


async def test_key_that_was_replaced_since_it_was_refused_makes_the_call_again(stage: Stage) -> None:
    key = credentials.ResolveCredentialResponse(connection_id="c1", secret="canary", fingerprint="f1")
    stage.executor.auth.answer = lambda _: key
    lease = await stage.running()
    await stage.ask(lease, rejected_fingerprint="f1")
    stage.executor.auth.answer = lambda _: credentials.ResolveCredentialResponse(secret="other", fingerprint="f2")
    await stage.worker.complete(lease, error=api.CallError(message="401", needs_sign_in=True))
    assert not stage.ended().HasField("sign_in")


async def test_only_auth_says_what_is_missing(stage: Stage) -> None:
    stage.executor.auth.failure = lambda: FailedPrecondition("no", reason=Reason.INTEGRATION_DISABLED)
    lease = await stage.running()
    await stage.worker.complete(lease, error=api.CallError(message="no account", needs_sign_in=True))
    assert not stage.ended().HasField("sign_in")
    assert stage.ended().failure.reason == Reason.INTEGRATION_DISABLED


@pytest.mark.parametrize(
    ("tool", "call_error", "failure_class"),
    [
        ("plain", api.CallError(message="no", needs_sign_in=True), content_pb2.FAILURE_CLASS_PERMANENT),
        (
            "look",
            api.CallError(message="no", needs_sign_in=True, is_outcome_unknown=True),
            content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME,
        ),
    ],
)
async def test_call_that_may_have_had_an_effect_does_not_wait(
    stage: Stage, tool: str, call_error: api.CallError, failure_class: content_pb2.FailureClass
) -> None:
    stage.executor.auth.failure = lambda: NotFound("no", reason=Reason.CONNECTION_NOT_FOUND)
    lease = await stage.running(tool)
    await stage.worker.complete(lease, error=call_error)
    assert not stage.ended().HasField("sign_in")
    assert stage.ended().failure.failure_class == failure_class
    assert stage.executor.auth.requests == []
