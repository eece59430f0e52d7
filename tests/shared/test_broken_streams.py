"""Streams to which both sides write end when their connection breaks: what is lost is sent again by who opened them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor

from holdfast import transport
from holdfast.api.executor.v1 import run_service_pb2, tool_worker_service_pb2
from holdfast.api.state.v1 import journal_service_pb2, lease_service_pb2
from services.shared import channels
from services.shared.settings import CommonSettings
from tests.shared.conftest import TOKEN

FILES: Final = (run_service_pb2, tool_worker_service_pb2, journal_service_pb2, lease_service_pb2)
METHODS: Final[list[MethodDescriptor]] = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.client_streaming and method.server_streaming
]


class Breaking(grpc.GenericRpcHandler):
    """Takes each stream's first message, answers nothing, and is away."""

    def __init__(self) -> None:
        self.calls = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._take)

    async def _take(
        self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        self.calls += 1
        async for _ in messages:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        yield b""


@asynccontextmanager
async def breaking(options: list[tuple[str, Any]]) -> AsyncIterator[tuple[Breaking, grpc.aio.Channel]]:
    server, handler = grpc.aio.server(), Breaking()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield handler, channel
    finally:
        await server.stop(None)


def options_of(method: MethodDescriptor) -> list[tuple[str, Any]]:
    """Those of who calls it: services call state, everybody else calls the executor."""
    if ".state." in method.full_name:
        return channels.channel_options(CommonSettings(listen="127.0.0.1:0", service_token=TOKEN))
    return transport.channel_options()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name.rsplit(".v1.", 1)[1])
async def test_a_stream_that_broke_unanswered_is_not_sent_again_by_its_channel(method: MethodDescriptor) -> None:
    async with asyncio.timeout(20), breaking(options_of(method)) as (handler, channel):
        opened: Callable[..., Any] = channel.stream_stream(f"/{method.containing_service.full_name}/{method.name}")
        call = opened()
        await call.write(b"")
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert handler.calls == 1


def test_all_streams_of_both_sides_are_looked_at() -> None:
    assert {method.name for method in METHODS} == {"StartRuns", "Work", "Checkpoint"}
    assert len(METHODS) == 4
