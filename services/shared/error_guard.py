"""The outermost interceptor: no exception's text reaches a caller, and streams are closed by the task that ran them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from services.shared.handlers import HandlerWrapper, behaviour_of, handler_like
from services.shared.rpc_errors import Context, abort, public_error
from services.shared.stream_access import StreamEnd

# Of the RPC of the current task: generators that layers below have opened, outermost first, and how to end its stream.
_open_generators: ContextVar[list[Any]] = ContextVar("holdfast_open_generators")
_stream_end: ContextVar[StreamEnd] = ContextVar("holdfast_stream_end")


def close_at_end(generator: Any) -> None:
    """Has a generator of the current task's response stream closed before its RPC ends."""
    _open_generators.get().append(generator)


def stream_end() -> StreamEnd | None:
    """By what a layer below may end the stream of the current task; None for a unary call."""
    return _stream_end.get(None)


class ErrorGuard(HandlerWrapper):
    """Lets nothing reach the library that it would send to the caller as text, whichever layer below has raised it.

    It also drives response streams itself. The library drops the generator of a cancelled call; the garbage
    collector then closes it in another task, where the tracing context cannot be detached and a handler's task
    groups and timeouts fail. Here every generator is closed by the task that ran it, before the RPC ends.
    """

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = behaviour_of(handler)

        async def unary(request: Any, context: Context) -> Any:
            end = _begin_stream() if handler.request_streaming else None
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await abort(context, public_error(error, method))
            except asyncio.CancelledError:
                await _abort_ended(context, end)
                raise

        async def stream(request: Any, context: Context) -> None:
            opened: list[Any] = []
            _open_generators.set(opened)
            end = _begin_stream()
            try:
                responses = behaviour(request, context)
                try:
                    has_begun = False
                    async for response in responses:
                        if not has_begun:
                            await _send_headers(context)
                            has_begun = True
                        await context.write(response)
                finally:
                    await responses.aclose()
                    for generator in opened:
                        await generator.aclose()
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await abort(context, public_error(error, method))
            except asyncio.CancelledError:
                await _abort_ended(context, end)
                raise

        return handler_like(handler, stream if handler.response_streaming else unary, handler.request_deserializer)


async def _send_headers(context: Context) -> None:
    """Sends a stream's initial metadata, whole.

    The library sends it with the first response; when it is cancelled there, it does not know that it has sent it, and
    can't send the stream's status any more.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait((sending,))
        raise


def _begin_stream() -> StreamEnd:
    task = asyncio.current_task()
    assert task is not None
    end = StreamEnd(task)
    _stream_end.set(end)
    return end


async def _abort_ended(context: Context, end: StreamEnd | None) -> None:
    """Tells the client why its stream was ended; returns when it was cancelled for another reason."""
    if end is not None and end.error is not None:
        end.task.uncancel()
        await abort(context, end.error)
