"""A service with a method of each RPC kind, behind the real server and the real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from services.shared.access import Access, service_access
from services.shared.channels import ServiceChannel, open_channel
from services.shared.clock import Clock
from services.shared.identity import Authenticator
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import Telemetry, build_telemetry

TOKEN = "a-service-token-of-enough-characters"
SERVICE = "test.v1.EchoService"

KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


class Echo:
    """Each method calls `act` with the text it was sent; a test replaces `act`."""

    def __init__(self) -> None:
        self.act: Callable[[str], Awaitable[str]] = self._echo
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def _echo(self, text: str) -> str:
        return text

    async def UnaryUnary(self, request: StringValue, context: Any) -> StringValue:
        self.started.set()
        try:
            return StringValue(value=await self.act(request.value))
        finally:
            self.closed.set()

    async def UnaryStream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        self.started.set()
        try:
            yield StringValue(value="first")
            yield StringValue(value=await self.act(request.value))
        finally:
            self.closed.set()

    async def StreamUnary(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        answer = ""
        async for request in requests:
            answer = await self.act(request.value)
        return StringValue(value=answer)

    async def StreamStream(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.act(request.value))

    async def Held(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.act(request.value))


def add_echo_to_server(servicer: Echo, server: Any) -> None:
    """Registers the methods as generated code does."""
    makers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler,
        "UnaryStream": grpc.unary_stream_rpc_method_handler,
        "StreamUnary": grpc.stream_unary_rpc_method_handler,
        "StreamStream": grpc.stream_stream_rpc_method_handler,
        "Held": grpc.unary_unary_rpc_method_handler,
    }
    handlers = {
        name: make(
            getattr(servicer, name),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
        for name, make in makers.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


async def call(channel: grpc.aio.Channel, kind: str, text: str, **options: Any) -> list[str]:
    """Calls the method of one kind with one message and returns all answers."""
    path = f"/{SERVICE}/{kind}"
    codec: dict[str, Any] = {
        "request_serializer": StringValue.SerializeToString,
        "response_deserializer": StringValue.FromString,
    }
    request = StringValue(value=text)
    async with asyncio.timeout(10):
        match kind:
            case "UnaryUnary" | "Held" | "Missing":
                return [(await channel.unary_unary(path, **codec)(request, **options)).value]
            case "UnaryStream":
                return [item.value async for item in channel.unary_stream(path, **codec)(request, **options)]
            case "StreamUnary":
                return [(await channel.stream_unary(path, **codec)(iter([request]), **options)).value]
            case _:
                return [item.value async for item in channel.stream_stream(path, **codec)(iter([request]), **options)]


INTERNAL_ACCESS = service_access(SERVICE, {name: Access(services=("executor",)) for name in (*KINDS, "Held")})


class Spans(SpanProcessor):
    """Keeps what ended."""

    def __init__(self) -> None:
        self.finished: list[ReadableSpan] = []
        self._ended = asyncio.Event()

    def on_end(self, span: ReadableSpan) -> None:
        self.finished.append(span)
        self._ended.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.finished) < count:
                self._ended.clear()
                await self._ended.wait()


class Suite:
    """Starts echo servers and channels, and closes them in order."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.spans = Spans()
        self.telemetry: Telemetry = build_telemetry("test", span_processor=self.spans)
        self.settings = CommonSettings(listen="127.0.0.1:0", service_token=TOKEN, drain_seconds=5)
        self.echo = Echo()

    async def serve(
        self,
        *,
        access: dict[str, Access] | None = None,
        authenticator: Authenticator | None = None,
        clock: Clock | None = None,
        **changes: Any,
    ) -> Server:
        self.settings = replace(self.settings, **changes)
        server = Server(
            self.settings,
            service="test",
            access=INTERNAL_ACCESS if access is None else access,
            telemetry=self.telemetry,
            authenticator=authenticator,
            clock=clock,
        )
        server.add(add_echo_to_server, self.echo)
        await self._stack.enter_async_context(server)
        return server

    async def connect(self, server: Server, *, service: str = "executor", **options: Any) -> ServiceChannel:
        channel = open_channel(server.address, service=service, settings=self.settings, **options)
        return await self._stack.enter_async_context(channel)

    async def connect_bare(self, server: Server) -> grpc.aio.Channel:
        """A channel without any identity, as a foreign client has it."""
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(server.address))


@pytest.fixture
async def suite() -> AsyncIterator[Suite]:
    async with AsyncExitStack() as stack:
        yield Suite(stack)
