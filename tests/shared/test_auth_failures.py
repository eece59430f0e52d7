"""Guessing is slowed, and who had a good key goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from holdfast.errors import HoldfastError, Reason, ResourceExhausted, Unauthenticated, from_rpc_error
from services.shared.access import Access, service_access
from services.shared.auth_failures import _MAX_SOURCES, GOOD_SECONDS, FailureLimiter
from services.shared.identity import Identity
from services.shared.peers import address_of, is_within, source_of
from tests.fakes.clock import FakeClock
from tests.shared.conftest import KINDS, SERVICE, Suite, call

ACCESS = service_access(SERVICE, {name: Access(scope="runs:read", services=("executor",)) for name in (*KINDS, "Held")})
PEER = "ipv4:192.0.2.1:5000"


class Keys:
    def __init__(self) -> None:
        self.good = {"good", "late"}
        self.asked = 0

    async def verify(self, api_key: str) -> Identity:
        self.asked += 1
        if api_key not in self.good:
            raise Unauthenticated("no", reason=Reason.API_KEY_INVALID)
        return Identity("api_key", workspace_id="w1", key_id=api_key, scopes=frozenset({"runs:read"}))


async def show(channel: grpc.aio.Channel, authorization: str) -> HoldfastError | None:
    options: dict[str, Any] = {"metadata": (("authorization", authorization),)}
    try:
        await call(channel, "UnaryUnary", "x", **options)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def test_after_too_many_wrong_keys_only_those_that_were_good_are_looked_at(suite: Suite) -> None:
    keys = Keys()
    server = await suite.serve(access=ACCESS, authenticator=keys, auth_failures_per_minute=10)
    channel = await suite.connect_bare(server)
    assert await show(channel, "Bearer good") is None
    answers = [await show(channel, f"Bearer wrong-{number}") for number in range(14)]

    assert {type(answer) for answer in answers[:10]} == {Unauthenticated}
    assert type(answers[-1]) is ResourceExhausted
    assert answers[-1].reason == Reason.TOO_MANY_AUTH_FAILURES
    assert 0 < (answers[-1].retry_delay_seconds or 0) <= 6.1
    asked = keys.asked
    assert type(await show(channel, "Bearer late")) is ResourceExhausted
    assert type(await show(channel, "Service executor:" + "x" * 40)) is ResourceExhausted
    assert keys.asked == asked, "nothing is looked up"
    assert await show(channel, "Bearer good") is None
    assert await show(channel, f"Service executor:{suite.settings.service_token}") is None


async def test_a_source_is_forgiven_with_time(suite: Suite) -> None:
    clock = FakeClock()
    limiter = FailureLimiter(60, clock)
    for _ in range(1000):
        limiter.failed(PEER, "id")
    with pytest.raises(ResourceExhausted) as caught:
        limiter.check(PEER, None, b"new")
    assert caught.value.retry_delay_seconds == pytest.approx(1.0)
    with pytest.raises(ResourceExhausted):
        limiter.check("ipv4:198.51.100.7:1", "id", b"new")
    limiter.check("ipv4:198.51.100.7:1", "another", b"new")
    await clock.advance(1.01)
    limiter.check(PEER, "id", b"new")
    await clock.advance(60)
    limiter.check(PEER, "id", b"new")
    assert not limiter.is_counting


async def test_a_good_credential_is_good_for_minutes_only() -> None:
    clock = FakeClock()
    limiter = FailureLimiter(1, clock)
    limiter.succeeded(b"good")
    await clock.advance(GOOD_SECONDS - 1)
    for _ in range(3):
        limiter.failed(PEER)
    limiter.check(PEER, None, b"good")
    await clock.advance(2)
    for _ in range(3):
        limiter.failed(PEER)
    with pytest.raises(ResourceExhausted):
        limiter.check(PEER, None, b"good")


def test_memory_is_bounded_whoever_fails() -> None:
    limiter = FailureLimiter(60, FakeClock())
    for number in range(_MAX_SOURCES + 500):
        limiter.failed(f"ipv6:[2001:db8:{number % 65536:x}:{number // 65536:x}::1]:5000")
        limiter.succeeded(str(number).encode())
    assert len(limiter._forgotten) == len(limiter._good) == _MAX_SOURCES


@pytest.mark.parametrize(
    ("peer", "address", "source"),
    [
        ("ipv4:10.1.2.3:5000", "10.1.2.3", "10.1.2.3"),
        ("ipv6:%5B::1%5D:5000", "::1", "::/64"),
        ("ipv6:[2001:db8:1:2:3::4]:5000", "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:5000", "10.1.2.3", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::1", "fe80::/64"),
        ("unix:/tmp/socket", "None", "unix"),
        ("ipv4:nonsense", "None", "ipv4"),
    ],
)
def test_peers_are_counted_by_their_address(peer: str, address: str, source: str) -> None:
    assert str(address_of(peer)) == address
    assert source_of(peer) == source
    assert not is_within(peer, ())


async def test_failures_of_many_at_once_are_all_counted(suite: Suite) -> None:
    server = await suite.serve(access=ACCESS, authenticator=Keys(), auth_failures_per_minute=5)
    channel = await suite.connect_bare(server)
    await asyncio.gather(*(show(channel, f"Bearer wrong-{number}") for number in range(20)))
    assert type(await show(channel, "Bearer wrong")) is ResourceExhausted
