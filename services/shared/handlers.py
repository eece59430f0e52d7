"""Handlers of RPCs as the interceptors put their own behaviour around them."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

from services.shared.rpc_errors import Context

Behaviour = Callable[[Any, Context], Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


class HandlerWrapper(grpc.aio.ServerInterceptor):
    """An interceptor that puts its own behaviour around each handler, once per method."""

    def __init__(self) -> None:
        # The server looks up the same handler object for every call of a method, so that it is wrapped once; only a
        # handler that an interceptor below makes anew for each call is wrapped again.
        self._wrapped: dict[str, tuple[grpc.RpcMethodHandler[Any, Any], grpc.RpcMethodHandler[Any, Any]]] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the wrapped handler, or None for a method that the server does not have."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = self.wrap(method, handler)
        self._wrapped[method] = (handler, wrapped)
        return wrapped

    @abstractmethod
    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns the handler with this interceptor's behaviour around its own."""


def behaviour_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Behaviour:
    """What a handler does, whatever its kind."""
    # The handler's type describes the blocking server; grpc.aio puts coroutine and generator functions in its place.
    behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert behaviour is not None
    return cast(Behaviour, behaviour)


def handler_like(
    handler: grpc.RpcMethodHandler[Any, Any], behaviour: Behaviour, deserializer: Callable[[bytes], Any] | None
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind with another behaviour."""
    make: Any
    match (handler.request_streaming, handler.response_streaming):
        case (False, False):
            make = grpc.unary_unary_rpc_method_handler
        case (False, True):
            make = grpc.unary_stream_rpc_method_handler
        case (True, False):
            make = grpc.stream_unary_rpc_method_handler
        case _:
            make = grpc.stream_stream_rpc_method_handler
    made: grpc.RpcMethodHandler[Any, Any] = make(
        behaviour, request_deserializer=deserializer, response_serializer=handler.response_serializer
    )
    return made


def check_handler(method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
    """Refuses a handler that grpc.aio would run in a thread, or that writes its stream by hand.

    Raises:
        TypeError: A unary handler is no coroutine function, or a streaming one is no async generator function.
    """
    behaviour = behaviour_of(handler)
    if handler.response_streaming and not inspect.isasyncgenfunction(behaviour):
        raise TypeError(f"{method}: a handler with a response stream must be an async generator function")
    if not handler.response_streaming and not inspect.iscoroutinefunction(behaviour):
        raise TypeError(f"{method}: a handler must be a coroutine function")
