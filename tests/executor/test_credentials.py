"""Credentials for model calls: who gets which, for how long, and what a run is told when there is none."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.credential_service_pb2_grpc import (
    CredentialServiceServicer,
    CredentialServiceStub,
    add_CredentialServiceServicer_to_server,
)
from holdfast.api.common.v1 import content_pb2
from holdfast.errors import Internal, NotFound, Reason, Unavailable
from services.executor.credentials import TTL_SECONDS, Credentials
from services.executor.models.protocol import ModelFailed
from services.shared.channels import open_channel
from services.shared.interceptors import Access
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import build_telemetry
from tests.fakes.clock import FakeClock

SETTINGS = CommonSettings(listen="127.0.0.1:0", service_token="a-service-token-of-enough-characters", drain_seconds=0)
METHOD = "/holdfast.api.auth.v1.CredentialService/ResolveCredential"


class FakeAuth(CredentialServiceServicer):
    """Hands out a new secret each time it is asked."""

    def __init__(self) -> None:
        self.requests: list[pb.ResolveCredentialRequest] = []
        self.failure: Callable[[], Exception] | None = None

    async def ResolveCredential(
        self, request: pb.ResolveCredentialRequest, context: Any
    ) -> pb.ResolveCredentialResponse:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure()
        return pb.ResolveCredentialResponse(
            connection_id="c1",
            provider="openai",
            secret=f"sk-{request.workspace_id}-{len(self.requests)}",
            base_url="http://localhost:9",
            version=3,
        )


@pytest.fixture
async def auth() -> FakeAuth:
    return FakeAuth()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def server(auth: FakeAuth) -> AsyncIterator[Server]:
    made = Server(
        SETTINGS,
        service="auth",
        access={METHOD: Access(services=("executor",))},
        telemetry=build_telemetry("auth"),
    )
    made.add(add_CredentialServiceServicer_to_server, auth)
    async with made:
        yield made


@pytest.fixture
async def credentials(server: Server, clock: FakeClock) -> AsyncIterator[Credentials]:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(
            open_channel(server.address, service="executor", settings=SETTINGS, unary_deadline_seconds=5)
        )
        yield Credentials(CredentialServiceStub(channel), clock=clock)


async def failure(credentials: Credentials) -> content_pb2.Failure:
    with pytest.raises(ModelFailed) as caught:
        await credentials.resolve("ws1", "openai", "run", 1)
    text = "".join(traceback.format_exception(caught.value))
    assert "sk-" not in text
    return caught.value.failure


async def test_credential_is_asked_for_the_step_and_remembered_for_seconds(
    credentials: Credentials, auth: FakeAuth, clock: FakeClock
) -> None:
    first = await credentials.resolve("ws1", "openai", "run", 1)
    assert (first.secret, first.base_url, first.connection_id, first.version) == (
        "sk-ws1-1",
        "http://localhost:9",
        "c1",
        3,
    )
    assert auth.requests == [pb.ResolveCredentialRequest(workspace_id="ws1", connection="openai", run_id="run", step=1)]
    assert await credentials.resolve("ws1", "openai", "run", 2) is first
    await clock.advance(TTL_SECONDS)
    assert (await credentials.resolve("ws1", "openai", "run", 3)).secret == "sk-ws1-2"


async def test_no_workspace_is_given_what_another_one_resolved(credentials: Credentials) -> None:
    await credentials.resolve("ws1", "openai", "run", 1)
    assert (await credentials.resolve("ws2", "openai", "run", 1)).secret == "sk-ws2-2"


async def test_secret_is_in_no_representation(credentials: Credentials) -> None:
    credential = await credentials.resolve("ws1", "openai", "run", 1)
    assert credential.secret not in repr(credential)


async def test_missing_connection_says_how_to_make_one_and_is_not_remembered(
    credentials: Credentials, auth: FakeAuth
) -> None:
    auth.failure = lambda: NotFound("no", reason=Reason.CONNECTION_NOT_FOUND)
    failed = await failure(credentials)
    assert (failed.reason, failed.failure_class) == ("CONNECTION_NOT_FOUND", content_pb2.FAILURE_CLASS_AUTH)
    assert "`holdfast connections create openai`" in failed.message
    auth.failure = None
    assert (await credentials.resolve("ws1", "openai", "run", 1)).secret


@pytest.mark.parametrize(
    ("error", "reason", "failure_class"),
    [
        (Unavailable("sealed"), "AUTH_UNAVAILABLE", content_pb2.FAILURE_CLASS_RETRYABLE),
        (Internal("a bug"), "INTERNAL", content_pb2.FAILURE_CLASS_AUTH),
    ],
)
async def test_auth_in_trouble_is_classified(
    credentials: Credentials,
    auth: FakeAuth,
    error: Exception,
    reason: str,
    failure_class: content_pb2.FailureClass,
) -> None:
    auth.failure = lambda: error
    failed = await failure(credentials)
    assert (failed.reason, failed.failure_class) == (reason, failure_class)


async def test_auth_that_is_away_may_be_asked_again(credentials: Credentials, server: Server) -> None:
    await server.drain()
    failed = await failure(credentials)
    assert (failed.reason, failed.failure_class) == ("AUTH_UNAVAILABLE", content_pb2.FAILURE_CLASS_RETRYABLE)
