"""What is wrong is said at the edge, by name, and nothing is half-done or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast import Agent, Client
from holdfast.agent import Limits
from holdfast.api.auth.v1 import api_key_service_pb2, connection_service_pb2
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import agent_service_pb2, approval_service_pb2, run_service_pb2, session_service_pb2
from holdfast.api.executor.v1.agent_service_pb2_grpc import AgentServiceStub
from holdfast.api.executor.v1.approval_service_pb2_grpc import ApprovalServiceStub
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.api.executor.v1.session_service_pb2_grpc import SessionServiceStub
from holdfast.api.trace.v1 import query_service_pb2
from holdfast.api.trace.v1.query_service_pb2_grpc import QueryServiceStub
from holdfast.errors import HoldfastError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from holdfast.ids import new_uuid7
from holdfast.testing import SuiteError, call, scripted
from holdfast.transport import Service
from tests.fakes.provider import Ending, FakeProvider, Reply, chunk, event_stream, json_reply, openai_text
from tests.suite.effects import Answer, HttpCall
from tests.suite.histories import changes_of, check_history, read_history
from tests.suite.stages import Stage, open_stage, question_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

HELLO = Agent("hello", model=scripted("Hello, {{input}}!"))


# --------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("size", [1_100_000, 17_000_000, 70_000_000])
async def test_an_input_that_is_too_large_is_refused_with_the_limit(stage: Stage, size: int) -> None:
    await stage.client.apply(HELLO)
    before = [run.run_id async for run in stage.client.runs.list()]
    with pytest.raises(InvalidArgument) as refused:
        await stage.client.start(HELLO, "x" * size)
    assert refused.value.reason == "MESSAGE_TOO_LARGE"
    assert any(limit in str(refused.value) for limit in ("1048576", "16777216", "67108864"))
    assert [run.run_id async for run in stage.client.runs.list()] == before


async def test_a_result_that_cannot_be_stored_ends_the_run_and_is_not_tried_for_ever() -> None:
    async def large(made: HttpCall) -> Answer:
        return Answer("x" * 3_000_000)

    async with asyncio.timeout(60), open_stage({"HOLDFAST_MAX_MESSAGE_BYTES": str(1024 * 1024)}) as stage:
        stage.http.on("/large", large)
        agent = Agent("swamped", model=scripted(call("large"), "done"), tools=[stage.tool("large")])
        handle = await stage.start(agent)
        run = await handle.wait()
        check_history(await read_history(handle))
        assert run.state == run_pb2.RUN_STATE_FAILED
        assert "limit is" in run.failure.message
        assert len(stage.http.of(run.run_id, "/large")) == 1
        # Others are not in the way of it.
        assert await (await stage.start(HELLO, "world")).result() == "Hello, world!"


# -------------------------------------------------------------------------------------------------------- page tokens

Lists = dict[str, tuple[Service, Any, str, Callable[[str], Any]]]

LISTS: Lists = {
    "agents": ("executor", AgentServiceStub, "ListAgents", lambda t: agent_service_pb2.ListAgentsRequest(page_token=t)),
    "revisions": (
        "executor",
        AgentServiceStub,
        "ListAgentRevisions",
        lambda t: agent_service_pb2.ListAgentRevisionsRequest(agent="hello", page_token=t),
    ),
    "runs": ("executor", RunServiceStub, "ListRuns", lambda t: run_service_pb2.ListRunsRequest(page_token=t)),
    "sessions": (
        "executor",
        SessionServiceStub,
        "ListSessions",
        lambda t: session_service_pb2.ListSessionsRequest(page_token=t),
    ),
    "approvals": (
        "executor",
        ApprovalServiceStub,
        "ListApprovals",
        lambda t: approval_service_pb2.ListApprovalsRequest(page_token=t),
    ),
    "keys": ("auth", ApiKeyServiceStub, "ListApiKeys", lambda t: api_key_service_pb2.ListApiKeysRequest(page_token=t)),
    "connections": (
        "auth",
        ConnectionServiceStub,
        "ListConnections",
        lambda t: connection_service_pb2.ListConnectionsRequest(page_token=t),
    ),
    "traces": ("trace", QueryServiceStub, "ListRuns", lambda t: query_service_pb2.ListRunsRequest(page_token=t)),
}


@pytest.mark.parametrize("kind", sorted(LISTS))
async def test_a_page_token_that_nobody_gave_is_refused(stage: Stage, kind: str) -> None:
    await stage.client.apply(HELLO)
    service, stub, method, request = LISTS[kind]
    rpc = getattr(stage.client.transport.stub(service, stub), method)
    for token in ("x", "AAAA", "a" * 5_000, "../../etc/passwd"):
        with pytest.raises(InvalidArgument) as refused:
            await stage.client.transport.call(service, rpc, request(token))
        assert refused.value.reason == "INVALID_PAGE_TOKEN"


async def test_a_page_token_of_another_question_is_refused(stage: Stage) -> None:
    for number in range(3):
        await stage.start(HELLO, str(number))
    runs = stage.client.transport.stub("executor", RunServiceStub)
    page = await stage.client.transport.call("executor", runs.ListRuns, run_service_pb2.ListRunsRequest(page_size=1))
    assert page.next_page_token
    other = run_service_pb2.ListRunsRequest(page_size=1, agent="hello", page_token=page.next_page_token)
    with pytest.raises(InvalidArgument) as refused:
        await stage.client.transport.call("executor", runs.ListRuns, other)
    assert refused.value.reason == "INVALID_PAGE_TOKEN"


# --------------------------------------------------------------------------------------------------------------- keys


async def ask_all(client: Client) -> list[HoldfastError]:
    """Asks each service for something and returns the refusals."""
    asked: list[Awaitable[Any]] = [
        anext(client.agents.list(), None),
        anext(client.connections.list(), None),
        anext(client.trace.list(), None),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, HoldfastError)]


@pytest.mark.parametrize("key", ["hf_wrong", "hfk_" + "A" * 43, "h\u00e9", "two words", "a" * 5_000])
async def test_a_wrong_key_is_refused_by_every_service_and_nothing_is_said_about_it(stage: Stage, key: str) -> None:
    async with stage.suite.client(api_key=key) as client:
        refusals = await ask_all(client)
    assert len(refusals) == 3
    for refused in refusals:
        assert isinstance(refused, Unauthenticated), refused
        assert key not in str(refused)


async def test_a_missing_key_is_refused_by_every_service(stage: Stage) -> None:
    for service in ("executor", "auth", "trace"):
        async with grpc.aio.insecure_channel(
            stage.suite.address(service), options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            stub = {"executor": AgentServiceStub, "auth": ConnectionServiceStub, "trace": QueryServiceStub}[service]
            method, request = {
                "executor": ("ListAgents", agent_service_pb2.ListAgentsRequest()),
                "auth": ("ListConnections", connection_service_pb2.ListConnectionsRequest()),
                "trace": ("ListRuns", query_service_pb2.ListRunsRequest()),
            }[service]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await getattr(stub(channel), method)(request, timeout=15)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_is_useless_soon_after_it_is_revoked_or_has_expired(stage: Stage) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    scopes = ["agents:read", "connections:read", "trace:read"]
    revoked, revoked_secret = await stage.client.keys.create("revoked", scopes)
    _, expiring_secret = await stage.client.keys.create("expiring", scopes, expire_time=soon)
    async with (
        asyncio.timeout(40),
        stage.suite.client(api_key=revoked_secret) as first,
        stage.suite.client(api_key=expiring_secret) as second,
    ):
        assert await ask_all(first) == []
        await stage.client.keys.revoke(revoked.api_key_id)
        for client in (first, second):
            while len(refusals := await ask_all(client)) < 3:
                await asyncio.sleep(0.1)
            assert {type(refused) for refused in refusals} == {Unauthenticated}


async def test_a_key_without_the_scope_is_told_which_one_is_missing(stage: Stage) -> None:
    _, secret = await stage.client.keys.create("reader", ["agents:read"])
    await stage.client.apply(HELLO)
    async with stage.suite.client(api_key=secret) as client:
        assert (await client.agents.get("hello")).name == "hello"
        with pytest.raises(PermissionDenied) as refused:
            await client.start(HELLO, "world")
        assert refused.value.reason == "SCOPE_MISSING"
        assert "runs:write" in str(refused.value)
        # Nobody makes a key that may do more than their own.
        with pytest.raises(PermissionDenied):
            await client.keys.create("more", ["runs:write"])


# -------------------------------------------------------------------------------------------------------------- names

UUID = new_uuid7()
UNKNOWN: dict[str, tuple[str, Callable[[Client], Awaitable[Any]]]] = {
    "agent": ("AGENT_NOT_FOUND", lambda client: client.start("nobody", "hi")),
    "label": ("LABEL_NOT_FOUND", lambda client: client.start("hello", "hi", revision="production")),
    "revision": ("REVISION_NOT_FOUND", lambda client: client.start("hello", "hi", revision="0" * 64)),
    "session": ("SESSION_NOT_FOUND", lambda client: client.start("hello", "hi", session_id=UUID)),
    "session to read": ("SESSION_NOT_FOUND", lambda client: client.sessions.get(UUID)),
    "run": ("RUN_NOT_FOUND", lambda client: client.run(UUID)),
    "run that is no id": ("RUN_NOT_FOUND", lambda client: client.run("not-an-id")),
    "question": ("APPROVAL_NOT_FOUND", lambda client: client.approvals.answer(UUID, "yes")),
    "call to approve": ("APPROVAL_NOT_FOUND", lambda client: client.approvals.approve(UUID, arguments={"a": 1})),
    "call to reject": ("APPROVAL_NOT_FOUND", lambda client: client.approvals.reject(UUID, "no")),
    "trace": ("RUN_NOT_FOUND", lambda client: client.trace.tree(UUID)),
    "connection": ("CONNECTION_NOT_FOUND", lambda client: client.connections.revoke("nothing")),
    "key": ("API_KEY_NOT_FOUND", lambda client: client.keys.revoke(UUID)),
    "agent to label": ("AGENT_NOT_FOUND", lambda client: client.agents.set_label("nobody", "x", "0" * 64)),
}


@pytest.mark.parametrize("kind", sorted(UNKNOWN))
async def test_what_is_unknown_is_said_to_be_by_its_reason(stage: Stage, kind: str) -> None:
    await stage.client.apply(HELLO)
    reason, ask = UNKNOWN[kind]
    with pytest.raises(NotFound) as refused:
        await ask(stage.client)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("   ", {}),
        ("hi", {"request_id": "x" * 65}),
        ("hi", {"request_id": "line\nbreak"}),
        ("hi", {"user_id": "u" * 257}),
        ("hi\x00there", {"user_id": "u\x00"}),
    ],
)
async def test_a_run_that_makes_no_sense_is_not_accepted(stage: Stage, text: str, options: dict[str, str]) -> None:
    await stage.client.apply(HELLO)
    with pytest.raises(InvalidArgument):
        await stage.client.start(HELLO, text, **options)  # type: ignore[arg-type]


def spec(**fields: Any) -> agent_pb2.AgentSpec:
    made = agent_pb2.AgentSpec(name="bad", model=scripted("x"))
    made.MergeFrom(agent_pb2.AgentSpec(**fields))
    return made


BAD_SPECS = {
    "model.provider": spec(model=agent_pb2.ModelSpec(provider="deepmind")),
    "tools[0].builtin.name": spec(tools=[agent_pb2.ToolSpec(name="x", builtin=agent_pb2.BuiltinTool(name="fly"))]),
    "tools[0].http.url": spec(tools=[agent_pb2.ToolSpec(name="x", http=agent_pb2.HttpTool(url="ftp://x"))]),
    "tools[0].name": spec(tools=[agent_pb2.ToolSpec(name="no spaces", worker=agent_pb2.WorkerTool())]),
    "limits.max_steps": Agent("bad", model=scripted("x"), limits=Limits(max_steps=-1)).spec,
}


@pytest.mark.parametrize("field", sorted(BAD_SPECS))
async def test_a_definition_that_is_wrong_is_refused_with_the_field(stage: Stage, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stage.client.agents.apply(BAD_SPECS[field])
    assert field in str(refused.value)
    with pytest.raises(NotFound):
        await stage.client.agents.get("bad")


# ---------------------------------------------------------------------------------------------------------- providers


async def test_a_provider_that_stumbles_is_asked_again_until_it_answers(stage: Stage) -> None:
    half = event_stream(chunk({"role": "assistant", "content": "Half a"}), ending=Ending.CLOSE)
    async with asyncio.timeout(60), FakeProvider() as provider:
        provider.will_reply(
            json_reply(429, {"error": {"message": "slow down"}}, Retry_After="1"),
            json_reply(500, {"error": {"message": "oops"}}),
            half,
            Reply(with_head=False, ending=Ending.CLOSE),
            openai_text("A whole answer."),
        )
        await stage.client.connections.create("openai", "sk-test", name="stumbling", base_url=provider.url)
        model = agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="stumbling")
        model.retry.max_attempts = 5
        model.retry.initial_interval.FromMilliseconds(10)
        handle = await stage.start(Agent("patient", model=model))
        assert await handle.result() == "A whole answer."
    events = await read_history(handle)
    check_history(events)
    assert len(provider.requests) == 5
    assert len(changes_of(events, "attempt_failed")) == 4
    limited = changes_of(events, "attempt_failed")[0].attempt_failed.failure
    assert limited.retry_after_millis == 1_000


async def test_a_connection_that_does_not_exist_is_asked_for_by_its_name(stage: Stage) -> None:
    model = agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="missing")
    async with asyncio.timeout(20):
        handle = await stage.start(Agent("unconnected", model=model))
        question = await question_of(handle)
        assert question.sign_in.connection == "missing"
        await stage.client.approvals.resolve(question.approval_id, "fail_run")
        run = await handle.wait()
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert "missing" in run.failure.message


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"HOLDFAST_MAX_RUNS": "lots"}, "HOLDFAST_MAX_RUNS"),
        ({"HOLDFAST_MAX_RUNS": "0"}, "HOLDFAST_MAX_RUNS"),
        ({"HOLDFAST_PARK_AFTER": "-3"}, "HOLDFAST_PARK_AFTER"),
        ({"HOLDFAST_LISTEN": "nowhere"}, "HOLDFAST_LISTEN"),
        ({"HOLDFAST_STATE_ADDRESS": "127.0.0.1"}, "HOLDFAST_STATE_ADDRESS"),
        ({"HOLDFAST_HTTP_TOOLS_ALLOW": "10.0.0.0/99"}, "HOLDFAST_HTTP_TOOLS_ALLOW"),
        ({"HOLDFAST_SERVICE_TOKEN_FILE": "/does/not/exist"}, "HOLDFAST_SERVICE_TOKEN_FILE"),
    ],
)
async def test_a_setting_that_is_wrong_is_named_and_the_service_does_not_start(
    stage: Stage, settings: dict[str, str], says: str
) -> None:
    with pytest.raises(SuiteError) as refused:
        await stage.suite.start_executor(settings=settings)
    assert says in str(refused.value)
    assert "Traceback" not in str(refused.value)


async def test_a_port_that_is_in_use_is_named_and_the_service_does_not_start(stage: Stage) -> None:
    address = stage.suite.address()
    with pytest.raises(SuiteError) as refused:
        await stage.suite.start_executor(settings={"HOLDFAST_LISTEN": address})
    assert address.rpartition(":")[2] in str(refused.value)
    assert "in use" in str(refused.value)
    assert "Traceback" not in str(refused.value)
