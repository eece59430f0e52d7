"""A stream does not outlive the credential that opened it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from holdfast.errors import HoldfastError, Reason, Unauthenticated, Unavailable, from_rpc_error
from services.shared.access import Access, service_access
from services.shared.identity import Identity
from services.shared.peers import IPNetwork
from services.shared.stream_access import RECHECK_SECONDS
from tests.fakes.clock import FakeClock
from tests.shared.conftest import KINDS, SERVICE, Suite, call

ACCESS = service_access(SERVICE, {name: Access(scope="runs:read") for name in (*KINDS, "Held")})


class Keys:
    """One key, whose answer the test changes."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.error: HoldfastError | None = None
        self.looks = 0

    async def verify(self, api_key: str) -> Identity:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Identity(
            "api_key", **{"workspace_id": "w1", "key_id": "k1", "scopes": frozenset({"runs:read"}), **self.fields}
        )


async def held(suite: Suite, kind: str, keys: Keys, clock: FakeClock) -> Any:
    """An open stream whose handler waits."""

    async def wait(text: str) -> str:
        suite.echo.started.set()
        await asyncio.Event().wait()
        return text

    suite.echo.act = wait
    channel = await suite.connect_bare(await suite.serve(access=ACCESS, authenticator=keys, clock=clock))
    codec: dict[str, Any] = {
        "request_serializer": StringValue.SerializeToString,
        "response_deserializer": StringValue.FromString,
    }
    options: dict[str, Any] = {"metadata": (("authorization", "Bearer key"),), "timeout": 30}
    path = f"/{SERVICE}/{kind}"
    match kind:
        case "UnaryStream":
            stream: Any = channel.unary_stream(path, **codec)(StringValue(), **options)
            await stream.read()
        case "StreamUnary":
            stream = channel.stream_unary(path, **codec)(iter([StringValue()]), **options)
        case _:
            stream = channel.stream_stream(path, **codec)(iter([StringValue()]), **options)
    await asyncio.wait_for(suite.echo.started.wait(), 5)
    await clock.wait_for_sleepers()
    return stream


async def end_of(stream: Any) -> HoldfastError:
    async with asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if hasattr(stream, "read"):
                while await stream.read() is not grpc.aio.EOF:
                    pass
                raise AssertionError("the stream ended without an error")
            await stream
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("kind", ["UnaryStream", "StreamUnary", "StreamStream"])
async def test_a_stream_ends_when_its_credential_does(suite: Suite, kind: str) -> None:
    clock = FakeClock()
    keys = Keys(expire_time=clock.now() + timedelta(seconds=10))
    stream = await held(suite, kind, keys, clock)
    keys.error = Unauthenticated("ended", reason=Reason.TOKEN_EXPIRED)
    await clock.advance(9)
    assert keys.looks == 1
    await clock.advance(1.1)

    error = await end_of(stream)
    assert type(error) is Unauthenticated
    assert error.reason == Reason.TOKEN_EXPIRED


async def test_a_credential_may_end_in_any_moment_of_its_stream(suite: Suite) -> None:
    """Also in the middle of sending the first response, which a client hears of as of any other moment."""

    class Ending(Keys):
        turns = 0

        async def verify(self, api_key: str) -> Identity:
            if self.looks % 2 == 0:
                return await super().verify(api_key)
            self.looks += 1
            for _ in range(self.turns):
                await asyncio.sleep(0)
            raise Unauthenticated("ended", reason=Reason.TOKEN_EXPIRED)

    async def wait(text: str) -> str:
        await asyncio.Event().wait()
        return text

    clock = FakeClock()
    keys = Ending(expire_time=clock.now())
    suite.echo.act = wait
    channel = await suite.connect_bare(await suite.serve(access=ACCESS, authenticator=keys, clock=clock))
    opened: Any = channel.unary_stream(
        f"/{SERVICE}/UnaryStream",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    for keys.turns in range(25):
        error = await end_of(opened(StringValue(), metadata=(("authorization", "Bearer key"),), timeout=30))
        assert (type(error), error.reason) == (Unauthenticated, Reason.TOKEN_EXPIRED)


async def test_a_stream_ends_soon_after_its_key_is_revoked(suite: Suite) -> None:
    clock, keys = FakeClock(), Keys()
    stream = await held(suite, "UnaryStream", keys, clock)
    await clock.advance(RECHECK_SECONDS)
    await clock.wait_for_sleepers()
    assert keys.looks == 2
    keys.error = Unauthenticated("revoked", reason=Reason.API_KEY_REVOKED)
    await clock.advance(RECHECK_SECONDS)

    error = await end_of(stream)
    assert (type(error), error.reason) == (Unauthenticated, Reason.API_KEY_INVALID)


async def test_while_auth_is_away_streams_go_on_until_their_credentials_end(suite: Suite) -> None:
    clock = FakeClock()
    keys = Keys(expire_time=clock.now() + timedelta(seconds=RECHECK_SECONDS * 2))
    stream = await held(suite, "UnaryStream", keys, clock)
    keys.error = Unavailable("auth is away")
    await clock.advance(RECHECK_SECONDS)
    await clock.wait_for_sleepers()
    assert not stream.done()
    await clock.advance(RECHECK_SECONDS + 1)

    assert type(await end_of(stream)) is Unauthenticated


async def test_nothing_is_left_behind_by_streams_that_end(suite: Suite) -> None:
    clock, keys = FakeClock(), Keys()
    channel = await suite.connect_bare(await suite.serve(access=ACCESS, authenticator=keys, clock=clock))
    for _ in range(5):
        await call(channel, "UnaryStream", "x", metadata=(("authorization", "Bearer key"),))
    async with asyncio.timeout(20):
        while clock.sleeping:
            await asyncio.sleep(0)


async def test_a_key_is_good_in_its_networks_only(suite: Suite) -> None:
    import ipaddress

    def network(text: str) -> IPNetwork:
        return ipaddress.ip_network(text)

    keys = Keys(networks=(network("10.0.0.0/8"), network("2001:db8::/32")))
    channel = await suite.connect_bare(await suite.serve(access=ACCESS, authenticator=keys))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", "x", metadata=(("authorization", "Bearer key"),))
    assert from_rpc_error(caught.value).reason == Reason.ADDRESS_NOT_ALLOWED
    keys.fields["networks"] = (network("127.0.0.0/8"),)
    assert await call(channel, "UnaryUnary", "x", metadata=(("authorization", "Bearer key"),)) == ["x"]
