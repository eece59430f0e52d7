"""The way out for tools in workers: whose requests are forwarded where, with which credential, and what comes back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2
import pytest
from google.protobuf.duration_pb2 import Duration

from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import HoldfastError, NotFound, PermissionDenied, Reason, Unavailable
from holdfast.tool import SignInNeeded, ToolContext
from services.executor.call_credentials import CallCredentials
from services.executor.credential_uses import CredentialUses
from services.executor.credentials import Credentials
from services.executor.egress.proxy import MAX_BODY_BYTES, MAX_HEAD_BYTES, EgressProxy, egress_url
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants
from services.executor.settings import ExecutorSettings
from services.executor.state_stubs import StateStubs
from services.executor.tools.pools import ConnectionPools
from services.shared.auth_failure_signals import SIGNAL_BODY_BYTES
from services.shared.channels import open_channel
from services.shared.clock import SystemClock
from services.shared.http_listener import listen, serving
from services.shared.server import Server
from services.shared.settings import SettingsError, load
from services.shared.telemetry import build_telemetry
from tests.executor.test_credentials import SETTINGS, WORKSPACE
from tests.executor.tools.test_http import Endpoint, Reply, answer
from tests.executor.tools.test_http import serving as endpoint
from tests.fakes.auth_services import FakeAuth
from tests.fakes.state_services import FakeCall, FakeState

pytestmark = pytest.mark.promise("P8")

WORKER = "a worker/1"


@dataclass
class Stage:
    """A proxy, a running call, and a third party."""

    auth: FakeAuth
    call: FakeCall
    base: str
    client: httpx2.AsyncClient
    api: Endpoint
    signals: list[pb.AuthFailureSignal]
    """How the third party says that a credential is over."""

    @property
    def url(self) -> str:
        """Where the call's requests are taken."""
        return egress_url(self.base, WORKSPACE, WORKER, self.call.call.lease)

    async def send(self, method: str = "GET", path: str = "/v1/items", **options: object) -> httpx2.Response:
        """Sends a request to the third party, by the proxy."""
        return await self.client.request(method, f"{self.url}/http/127.0.0.1:{self.api.port}{path}", **options)  # type: ignore[arg-type]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    auth, state = FakeAuth(), FakeState()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(60))
        channels = []
        for name, fake in (("auth", auth), ("state", state)):
            server = Server(SETTINGS, service=name, access=fake.access(), telemetry=build_telemetry(name))
            fake.add_to(server)
            await stack.enter_async_context(server)
            channels.append(
                await stack.enter_async_context(open_channel(server.address, service="executor", settings=SETTINGS))
            )
        api = await stack.enter_async_context(endpoint(answer(body=b'{"items": 3}')))

        signals: list[pb.AuthFailureSignal] = []

        def resolved(count: int) -> pb.ResolveCredentialResponse:
            response = pb.ResolveCredentialResponse(secret=f"canary-{count}", fingerprint=f"f{count}")
            response.auth_failure_signals.extend(signals)
            response.headers.add(name="X-Key", value=f"canary-{count}")
            response.query.add(name="key", value=f"canary-{count}")
            response.allowed_targets.add(scheme="http", host="127.0.0.1", port=api.port, path_prefix="/v1")
            return response

        auth.answer = resolved
        auth_tool = agent_pb2.ToolAuth(connection="crm", scopes=["read"])
        tools = [
            agent_pb2.ToolSpec(name="look", worker=agent_pb2.WorkerTool(), auth=auth_tool),
            agent_pb2.ToolSpec(
                name="hasty", worker=agent_pb2.WorkerTool(), auth=auth_tool, timeout=Duration(nanos=200_000_000)
            ),
            agent_pb2.ToolSpec(name="plain", worker=agent_pb2.WorkerTool()),
        ]
        state.add_agent(WORKSPACE, agent_pb2.AgentSpec(name="support", tools=tools))
        call = await state.queue_call(WORKSPACE, "look", user_id="u1")
        call.call.run_id = state.add_run(WORKSPACE).run.run_id
        call.call.lease, call.state, call.worker_id = "the-lease", "STARTED", WORKER

        stubs, stub = StateStubs.on(channels[1]), CredentialServiceStub(channels[0])
        grants = RunGrants(GrantServiceStub(channels[0]), stubs.runs, RevisionCache(stubs.agents))
        credentials = Credentials(
            stub, ConnectServiceStub(channels[0]), grants, CredentialUses(stub, SystemClock()), clock=SystemClock()
        )
        pools = ConnectionPools(("127.0.0.0/8",))
        stack.push_async_callback(pools.close)
        listener = stack.enter_context(listen("127.0.0.1:0", "HOLDFAST_EGRESS_LISTEN"))
        proxy = EgressProxy(CallCredentials(stubs, RevisionCache(stubs.agents), credentials), pools)
        await stack.enter_async_context(serving(proxy, listener, drain_seconds=2, max_head_bytes=MAX_HEAD_BYTES))
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False))
        yield Stage(auth, call, f"http://{listener.address}", client, api, signals)


async def test_request_goes_on_with_the_credential_and_without_what_the_tool_has_no_say_in(stage: Stage) -> None:
    response = await stage.send(
        "POST",
        "/v1/items%2F1?a=1&key=mine&b=%20",
        content=b'{"name": "x"}',
        headers={
            "Authorization": "Bearer mine",
            "X-Key": "mine",
            "Cookie": "a=b",
            "Connection": "keep-alive, x-hop",
            "X-Hop": "1",
            "X-Kept": "yes",
            "X-Forwarded-For": "10.0.0.1",
            "Content-Type": "application/json",
        },
    )
    assert (response.status_code, response.json()) == (200, {"items": 3})
    [sent] = stage.api.received
    assert (sent.method, sent.target) == ("POST", "/v1/items%2F1?a=1&b=%20&key=canary-1")
    assert sent.body == b'{"name": "x"}'
    assert (sent.headers["x-key"], sent.headers["x-kept"]) == ("canary-1", "yes")
    assert sent.headers["host"] == f"127.0.0.1:{stage.api.port}"
    assert not {"authorization", "cookie", "x-hop", "x-forwarded-for"} & set(sent.headers)
    [asked] = stage.auth.requests
    assert asked.mode == pb.CREDENTIAL_MODE_INJECT
    assert (asked.connection, asked.tool, asked.method, asked.run_id) == (
        "crm",
        "look",
        "POST",
        stage.call.call.run_id,
    )
    assert asked.target == f"http://127.0.0.1:{stage.api.port}"


async def test_nothing_is_forwarded_but_for_a_running_call_whose_tool_declares_it(stage: Stage) -> None:
    target = f"http/127.0.0.1:{stage.api.port}/v1/items"
    other = "0198c0de-0000-7000-8000-00000000000f"
    for url, status, reason in (
        (egress_url(stage.base, WORKSPACE, WORKER, "guessed"), 409, Reason.CALL_LEASE_LOST),
        (egress_url(stage.base, WORKSPACE, "another", "the-lease"), 409, Reason.CALL_LEASE_LOST),
        (egress_url(stage.base, other, WORKER, "the-lease"), 409, Reason.CALL_LEASE_LOST),
    ):
        response = await stage.client.get(f"{url}/{target}")
        assert (response.status_code, response.headers["holdfast-error"]) == (status, reason)
    response = await stage.client.get(f"{stage.url}/https")
    assert (response.status_code, response.headers["holdfast-error"]) == (404, Reason.NOT_FOUND)
    stage.call.call.tool = "plain"
    assert (await stage.send()).headers["holdfast-error"] == Reason.CREDENTIAL_NOT_DECLARED
    stage.call.state = "ENDED"
    assert (await stage.send()).headers["holdfast-error"] == Reason.CALL_LEASE_LOST
    assert not stage.api.received
    assert not stage.auth.requests


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/items", 403),
        ("/v1/%2e%2e/admin", 400),
        ("/v10", 403),
    ],
)
async def test_credential_goes_where_it_may_and_nowhere_else(stage: Stage, path: str, status: int) -> None:
    response = await stage.send(path=path)
    assert response.status_code == status
    async with endpoint(answer()) as elsewhere:
        response = await stage.client.get(f"{stage.url}/http/127.0.0.1:{elsewhere.port}/v1/items")
        assert (response.status_code, response.headers["holdfast-error"]) == (403, Reason.HOST_NOT_ALLOWED)
        response = await stage.client.get(f"{stage.url}/http/u:p@127.0.0.1:{stage.api.port}/v1/items")
        assert response.status_code == 400
        assert not elsewhere.received
    assert not stage.api.received


async def test_network_of_the_operators_is_not_reached_unless_allowed(stage: Stage) -> None:
    def resolved(_: int) -> pb.ResolveCredentialResponse:
        response = pb.ResolveCredentialResponse(secret="canary-1", fingerprint="f1")
        response.allowed_targets.add(scheme="http", host="169.254.169.254")
        return response

    stage.auth.answer = resolved
    response = await stage.client.get(f"{stage.url}/http/169.254.169.254/latest")
    assert (response.status_code, response.headers["holdfast-error"]) == (403, "TOOL_TARGET_REFUSED")


async def test_answer_comes_without_secrets_cookies_and_what_only_the_proxy_may_say(stage: Stage) -> None:
    body = b'{"you sent": "canary-1"}'
    stage.api.reply = answer(
        201, body, Set_Cookie="a=b", X_Echo="canary-1", Holdfast_Error="CONNECTION_NOT_FOUND", X_Kept="yes"
    )
    response = await stage.send()
    assert (response.status_code, response.json()) == (201, {"you sent": "[[secret:f1]]"})
    assert (response.headers["x-echo"], response.headers["x-kept"]) == ("[[secret:f1]]", "yes")
    assert not {"set-cookie", "holdfast-error"} & set(response.headers)
    stage.api.reply = answer(200, gzip.compress(body), Content_Encoding="gzip")
    assert (await stage.send()).json() == {"you sent": "[[secret:f1]]"}
    stage.api.reply = answer(200, b"xx", Content_Encoding="br")
    assert (await stage.send()).status_code == 502


async def test_redirect_is_not_followed(stage: Stage) -> None:
    stage.api.reply = answer(302, b"", Location="https://elsewhere.example/")
    response = await stage.send()
    assert (response.status_code, response.headers["location"]) == (302, "https://elsewhere.example/")
    assert len(stage.api.received) == 1


UNAUTHORIZED = answer(401, b"{}", WWW_Authenticate="Bearer")
SLACK = pb.AuthFailureSignal(status=200, pointer="/error", equals="invalid_auth")
OVER = b'{"ok": false, "error": "invalid_auth"}'


def refusing(refused: int, *, then: Reply, refusal: Reply = UNAUTHORIZED) -> Reply:
    """Refuses the first requests."""
    left = [refusal] * refused

    async def reply(writer: asyncio.StreamWriter) -> None:
        await (left.pop() if left else then)(writer)

    return reply


@pytest.mark.parametrize(("refused", "status"), [(1, 200), (2, 401)])
async def test_refused_credential_is_renewed_once_and_the_same_request_sent_again(
    stage: Stage, refused: int, status: int
) -> None:
    stage.api.reply = refusing(refused, then=answer())
    response = await stage.send("POST", content=b"the body")
    assert response.status_code == status
    # What a new one does not open either, a person has to look at.
    assert response.headers.get("holdfast-error") == (None if status == 200 else "CREDENTIAL_REJECTED")
    assert [(sent.headers["x-key"], sent.body) for sent in stage.api.received] == [
        ("canary-1", b"the body"),
        ("canary-2", b"the body"),
    ]
    assert [request.rejected_fingerprint for request in stage.auth.requests] == ["", "f1"]


async def test_refused_key_that_cannot_be_renewed_is_the_answer_of_the_other_side_with_the_reason(stage: Stage) -> None:
    made = stage.auth.answer
    stage.auth.answer = lambda _: made(1)
    stage.api.reply = answer(401, b"who are you?")
    response = await stage.send()
    assert (response.status_code, response.content) == (401, b"who are you?")
    assert response.headers["holdfast-error"] == "CREDENTIAL_REJECTED"
    assert len(stage.api.received) == 1
    with pytest.raises(SignInNeeded):
        ToolContext(idempotency_key="k").check_egress(response.headers)


@pytest.mark.parametrize(
    ("signal", "refusal"),
    [
        (SLACK, answer(200, OVER)),
        (SLACK, answer(200, b"\r\n " + OVER)),
        (SLACK, answer(200, gzip.compress(OVER), Content_Encoding="gzip")),
        (
            pb.AuthFailureSignal(status=403, header="x-reason", contains="expired"),
            answer(403, b"no", X_Reason="expired"),
        ),
        (pb.AuthFailureSignal(status=418), answer(418, b"")),
    ],
    ids=["body", "after-blanks", "compressed", "header", "status"],
)
async def test_api_that_says_in_its_own_way_that_the_credential_is_over_is_understood(
    stage: Stage, signal: pb.AuthFailureSignal, refusal: Reply
) -> None:
    stage.signals.append(signal)
    stage.api.reply = refusing(1, then=answer(201), refusal=refusal)
    response = await stage.send("POST", content=b"the body")
    assert (response.status_code, response.content) == (201, b"{}")
    assert [(sent.headers["x-key"], sent.body) for sent in stage.api.received] == [
        ("canary-1", b"the body"),
        ("canary-2", b"the body"),
    ]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"ok": false, "error": "not_in_channel", "you sent": "canary-1"}'),
        (201, OVER),
        (200, b'{"error": "invalid_auth", "padding": "' + b"x" * SIGNAL_BODY_BYTES + b'"}'),
        (200, b"error: invalid_auth"),
        (200, b""),
    ],
    ids=["other-error", "other-status", "long", "text", "empty"],
)
async def test_answer_that_only_resembles_a_signal_is_passed_on_whole(stage: Stage, status: int, body: bytes) -> None:
    stage.signals.append(SLACK)
    stage.api.reply = answer(status, body)
    response = await stage.send()
    assert (response.status_code, response.content) == (status, body.replace(b"canary-1", b"[[secret:f1]]"))
    assert len(stage.api.received) == 1


async def test_events_are_not_held_back_for_a_signal_that_might_come(stage: Stage) -> None:
    has_arrived = asyncio.Event()

    async def events(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b"data: the first event\n\n")
        await has_arrived.wait()
        writer.close()

    stage.signals.append(SLACK)
    stage.api.reply = events
    target = f"http/127.0.0.1:{stage.api.port}/v1/events"
    async with stage.client.stream("GET", f"{stage.url}/{target}") as response:
        received = b""
        async for piece in response.aiter_bytes():
            received += piece
            has_arrived.set()
    assert received == b"data: the first event\n\n"


async def test_long_body_is_streamed_and_sent_once_and_the_next_request_goes_with_a_renewed_credential(
    stage: Stage,
) -> None:
    stage.api.reply = refusing(1, then=answer())
    body = b"x" * (3 * 1024 * 1024)
    assert (await stage.send("PUT", content=body)).status_code == 401
    assert (await stage.send("PUT", content=body)).status_code == 200
    assert [(sent.headers["x-key"], sent.body == body) for sent in stage.api.received] == [
        ("canary-1", True),
        ("canary-2", True),
    ]
    assert [request.rejected_fingerprint for request in stage.auth.requests] == ["", "f1"]


async def test_body_has_a_limit(stage: Stage) -> None:
    response = await stage.send("PUT", content=b"x" * (MAX_BODY_BYTES + 1))
    assert (response.status_code, response.headers["holdfast-error"]) == (413, Reason.MESSAGE_TOO_LARGE)
    assert not stage.api.received


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (NotFound("no", reason=Reason.CONNECTION_NOT_FOUND), 424),
        (PermissionDenied("no", reason=Reason.HOST_NOT_ALLOWED), 403),
        (Unavailable("away", reason=Reason.CREDENTIAL_UNAVAILABLE), 503),
    ],
)
async def test_tool_learns_why_there_is_no_credential(stage: Stage, said: HoldfastError, status: int) -> None:
    stage.auth.failure = lambda: said
    response = await stage.send()
    assert (response.status_code, response.json()["reason"]) == (status, said.reason)


async def test_other_side_that_is_away_or_breaks_off_is_told_apart(stage: Stage) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    stage.api.reply = hang_up
    response = await stage.send("POST", content=b"x")
    assert (response.status_code, response.headers["holdfast-error"]) == (502, "TOOL_CONNECTION_BROKEN")


async def test_answer_that_does_not_end_is_waited_for_no_longer_than_the_call_may_take(stage: Stage) -> None:
    async def begin(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")

    async def silence(writer: asyncio.StreamWriter) -> None:
        """Goes on listening."""

    stage.call.call.tool = "hasty"
    stage.api.reply = silence
    response = await stage.send()
    assert (response.status_code, response.headers["holdfast-error"]) == (504, "CALL_TIMEOUT")
    stage.api.reply = begin
    with pytest.raises(httpx2.RemoteProtocolError):
        await stage.send()


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"HOLDFAST_EGRESS_LISTEN": "0.0.0.0:7405", "HOLDFAST_EGRESS_URL": "https://out.example"}, "ALLOW_PLAINTEXT"),
        ({"HOLDFAST_EGRESS_LISTEN": "0.0.0.0:7405", "HOLDFAST_ALLOW_PLAINTEXT": "true"}, "HOLDFAST_EGRESS_URL"),
        ({"HOLDFAST_EGRESS_URL": "https://out.example"}, "HOLDFAST_EGRESS_LISTEN"),
        ({"HOLDFAST_EGRESS_URL": "https://out.example/path"}, "HOLDFAST_EGRESS_URL"),
    ],
)
def test_settings_that_do_not_fit_are_refused(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(ExecutorSettings, {"HOLDFAST_SERVICE_TOKEN": "a-service-token-of-enough-characters", **environ})
