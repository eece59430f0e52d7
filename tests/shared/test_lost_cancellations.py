"""What follows a stream ends when it is cancelled, also when the stream breaks in that very moment.

A call of grpc.aio raises its status then, and the cancellation is lost with it: who takes that for one more broken
stream opens the next one, and never ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, Self, cast

import grpc
import grpc.aio
import pytest

from holdfast import tool, transport
from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.cancellation import raise_if_cancelled
from holdfast.errors import Unavailable
from holdfast.run_stream import RunStream
from holdfast.runs import RunHandle
from holdfast.settings import ClientSettings
from holdfast.transport import Transport
from holdfast.worker import Worker
from services.executor.scheduler import Scheduler
from services.executor.state_client import JournalClient
from services.shared.channels import calling
from services.shared.clock import SystemClock
from services.shared.telemetry import build_telemetry
from services.trace.feed import FeedMetrics, Follower
from services.trace.progress import Progress

BROKEN: Final = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the connection is lost"
)


class BreakingCall:
    """A call that goes on until its reader is cancelled, and breaks in that moment."""

    def __init__(self, reading: asyncio.Event) -> None:
        self._reading = reading

    async def read(self) -> Any:
        self._reading.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise BROKEN from None

    def __await__(self) -> Any:
        return self.read().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self.read()

    async def write(self, message: Any) -> None:
        """Takes everything."""

    def cancel(self) -> None:
        """It is over already."""

    def cancelled(self) -> bool:
        """The task was cancelled, not the call."""
        return False


class BreakingChannel:
    """Every call of it is a `BreakingCall`."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.opened = 0

    def _method(self, *args: Any, **kwargs: Any) -> Callable[..., BreakingCall]:
        def call(*args: Any, **kwargs: Any) -> BreakingCall:
            self.opened += 1
            return BreakingCall(self.reading)

        return call

    unary_unary = unary_stream = stream_unary = stream_stream = _method

    async def close(self) -> None:
        """Nothing is open."""


@tool(effect="read_only")
def nothing() -> None:
    """Does nothing."""


def client_transport() -> Transport:
    nobody = "127.0.0.1:1"
    return Transport(ClientSettings(address=nobody, auth_address=nobody, trace_address=nobody, api_key="hfst_test_key"))


async def serve_tools(channel: Any) -> None:
    await Worker([nothing], address="127.0.0.1:1", api_key="hfst_test_key").run()


async def read_events(channel: Any) -> None:
    async for _ in RunHandle(client_transport(), run_pb2.Run(run_id="run")).events():
        pass


async def write_journals(channel: Any) -> None:
    await JournalClient(channel).run()


async def hold_leases(channel: Any) -> None:
    parts = SimpleNamespace(executor_id="executor")
    hub = SimpleNamespace()
    await Scheduler(LeaseServiceStub(channel), cast(Any, parts), cast(Any, hub), max_runs=1).run()


class LeadingStore:
    """A trace store whose projection leads at once."""

    @asynccontextmanager
    async def projection(self) -> AsyncIterator[Self]:
        yield self

    async def try_to_lead(self) -> bool:
        return True

    async def cursor(self) -> bytes:
        return b""


async def follow_feed(channel: Any) -> None:
    follower = Follower(
        channel,
        address="127.0.0.1:1",
        store=cast(Any, LeadingStore()),
        progress=Progress(),
        metrics=FeedMetrics(build_telemetry("trace").registry),
        clock=SystemClock(),
        max_entries=10,
    )
    await follower.run()


async def ask_again(channel: Any) -> None:
    """As services ask a peer that may be away."""
    while True:
        try:
            with calling("state"):
                await channel.unary_unary("/state/Get")()
        except Unavailable:
            await asyncio.sleep(0)


FOLLOWERS: Final[list[Callable[[Any], Coroutine[Any, Any, None]]]] = [
    serve_tools,
    read_events,
    write_journals,
    hold_leases,
    follow_feed,
    ask_again,
]


@pytest.mark.parametrize("follow", FOLLOWERS, ids=lambda follow: follow.__name__)
async def test_a_follower_that_is_cancelled_as_its_stream_breaks_ends(
    follow: Callable[[Any], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = BreakingChannel()
    monkeypatch.setattr(transport, "open_channel", lambda *_: channel)
    async with asyncio.timeout(20):
        following = asyncio.create_task(follow(channel))
        await channel.reading.wait()
        opened = channel.opened
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
    assert channel.opened == opened


async def test_a_stream_of_starts_closes_although_it_breaks_as_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = BreakingChannel()
    monkeypatch.setattr(transport, "open_channel", lambda *_: channel)
    async with asyncio.timeout(20):
        async with RunStream(client_transport()):
            await channel.reading.wait()
    assert channel.opened == 1


async def test_a_cancelled_task_that_cleans_up_is_told_how_its_calls_end() -> None:
    async def cleaning_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(Unavailable), calling("state"):
                raise BROKEN

    task = asyncio.create_task(cleaning_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_was_not_cancelled_goes_on() -> None:
    raise_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    raise_if_cancelled()
