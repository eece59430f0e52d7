"""Callers' keys, asked of a real auth server that knows two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.api.auth.v1 import api_key_service_pb2 as pb
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer, add_ApiKeyServiceServicer_to_server
from holdfast.errors import Reason, Unauthenticated, Unavailable
from services.shared.access import Access, service_access
from services.shared.api_keys import INVALID_SECONDS, VALID_SECONDS, RemoteAuthenticator
from services.shared.channels import open_channel
from services.shared.identity import Identity
from services.shared.key_form import checksum
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import build_telemetry
from tests.fakes.clock import FakeClock
from tests.shared.conftest import TOKEN


def key_of(name: str) -> str:
    """A well-formed key; the others are not even asked about."""
    body = f"hfst_{name:0>12}_{'0' * 43}"
    return body + checksum(body)


GOOD, SHORT, NEW = key_of("good"), key_of("short"), key_of("new")
METHODS = ("CreateApiKey", "ListApiKeys", "RevokeApiKey", "VerifyApiKey")
ACCESS = service_access("holdfast.api.auth.v1.ApiKeyService", {name: Access(services=("trace",)) for name in METHODS})


class Auth(ApiKeyServiceServicer):
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.asked: list[str] = []
        self.valid = {GOOD, SHORT}
        self.persons: dict[str, pb.VerifyApiKeyResponse] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def CreateApiKey(self, request: Any, context: Any) -> Any:
        return pb.CreateApiKeyResponse()

    async def ListApiKeys(self, request: Any, context: Any) -> Any:
        return pb.ListApiKeysResponse()

    async def RevokeApiKey(self, request: Any, context: Any) -> Any:
        return pb.RevokeApiKeyResponse()

    async def VerifyApiKey(self, request: pb.VerifyApiKeyRequest, context: Any) -> pb.VerifyApiKeyResponse:
        self.asked.append(request.secret)
        await self.gate.wait()
        if request.secret in self.persons:
            return self.persons[request.secret]
        if request.secret not in self.valid:
            raise Unauthenticated("the API key is not valid", reason=Reason.API_KEY_INVALID)
        answer = pb.VerifyApiKeyResponse(workspace_id="w1", api_key_id="k1", scopes=["runs:read"])
        if request.secret == SHORT:
            answer.expire_time.FromDatetime(self.clock.now() + timedelta(seconds=2))
        return answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def auth(clock: FakeClock) -> Auth:
    return Auth(clock)


@pytest.fixture
async def keys(auth: Auth, clock: FakeClock) -> AsyncIterator[RemoteAuthenticator]:
    settings = CommonSettings(listen="127.0.0.1:0", service_token=TOKEN, drain_seconds=0)
    server = Server(settings, service="auth", access=ACCESS, telemetry=build_telemetry("auth"))
    server.add(add_ApiKeyServiceServicer_to_server, auth)
    async with server, open_channel(server.address, service="trace", settings=settings) as channel:
        yield RemoteAuthenticator(channel, clock=clock)


async def test_a_valid_key_is_asked_for_once_in_its_seconds(
    keys: RemoteAuthenticator, auth: Auth, clock: FakeClock
) -> None:
    expected = Identity("api_key", workspace_id="w1", key_id="k1", scopes=frozenset({"runs:read"}))
    assert await keys.verify(GOOD) == expected
    await clock.advance(VALID_SECONDS - 0.1)
    assert await keys.verify(GOOD) == expected
    assert auth.asked == [GOOD]

    auth.valid.clear()
    await clock.advance(0.2)
    with pytest.raises(Unauthenticated) as caught:
        await keys.verify(GOOD)
    assert caught.value.reason == Reason.API_KEY_INVALID


async def test_a_wrong_key_is_asked_for_again_after_a_second(
    keys: RemoteAuthenticator, auth: Auth, clock: FakeClock
) -> None:
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await keys.verify(NEW)
    assert auth.asked == [NEW]

    auth.valid.add(NEW)
    await clock.advance(INVALID_SECONDS)
    assert (await keys.verify(NEW)).key_id == "k1"


async def test_a_key_is_never_remembered_beyond_its_end(
    keys: RemoteAuthenticator, auth: Auth, clock: FakeClock
) -> None:
    await keys.verify(SHORT)
    auth.valid.clear()
    await clock.advance(2.1)
    with pytest.raises(Unauthenticated):
        await keys.verify(SHORT)


async def test_a_burst_of_calls_asks_once_even_when_the_first_is_cancelled(
    keys: RemoteAuthenticator, auth: Auth
) -> None:
    auth.gate.clear()
    first = asyncio.ensure_future(keys.verify(GOOD))
    others = [asyncio.ensure_future(keys.verify(GOOD)) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    auth.gate.set()
    async with asyncio.timeout(20):
        assert {(await other).key_id for other in others} == {"k1"}
    assert len(auth.asked) <= 2
    assert first.cancelled()


async def test_auth_being_away_is_unavailable_and_not_remembered(unused_tcp_port: int, clock: FakeClock) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
        keys = RemoteAuthenticator(channel, clock=clock)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await keys.verify(GOOD)
            assert caught.value.reason == Reason.AUTH_UNAVAILABLE


async def test_a_wrong_service_token_is_not_blamed_on_the_key(auth: Auth) -> None:
    settings = CommonSettings(listen="127.0.0.1:0", service_token="another-token-of-enough-characters", drain_seconds=0)
    server = Server(settings, service="auth", access=ACCESS, telemetry=build_telemetry("auth"))
    server.add(add_ApiKeyServiceServicer_to_server, auth)
    wrong = CommonSettings(service_token=TOKEN)
    async with server, open_channel(server.address, service="trace", settings=wrong) as channel:
        with pytest.raises(Unauthenticated) as caught:
            await RemoteAuthenticator(channel).verify(GOOD)
    assert caught.value.reason == Reason.SERVICE_TOKEN_INVALID


async def test_what_is_no_key_is_refused_without_asking(keys: RemoteAuthenticator, auth: Auth) -> None:
    for text in ("", "good", GOOD[:-1], GOOD[:-1] + "!", GOOD.lower(), "a.b", "a..b", "a.b.c.d", "a.b.c\n", "é.b.c"):
        with pytest.raises(Unauthenticated) as caught:
            await keys.verify(text)
        assert caught.value.reason == Reason.API_KEY_INVALID
    assert auth.asked == []


async def test_a_persons_token_becomes_a_person_until_it_ends(
    keys: RemoteAuthenticator, auth: Auth, clock: FakeClock
) -> None:
    end = clock.now() + timedelta(seconds=3)
    answer = pb.VerifyApiKeyResponse(workspace_id="w1", user_id="ada", scopes=["runs:read"], networks=["10.0.0.0/8"])
    answer.expire_time.FromDatetime(end)
    auth.persons["a.b.c"] = answer

    person = await keys.verify("a.b.c")
    assert (person.kind, person.name, person.user_id, person.key_id) == ("person", "user:ada", "ada", None)
    assert person.expire_time == end
    assert [str(network) for network in person.networks] == ["10.0.0.0/8"]
    await clock.advance(3.1)
    auth.persons.clear()
    with pytest.raises(Unauthenticated):
        await keys.verify("a.b.c")
