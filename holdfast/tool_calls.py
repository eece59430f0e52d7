"""A call of a tool that is with a worker: what the worker knows of it, and its execution."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import json
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

from holdfast.api.executor.v1 import tool_worker_service_pb2 as pb
from holdfast.credential import HandedOut
from holdfast.schema import encode_json
from holdfast.tool import SignInNeeded, Tool, ToolContext, ToolError

MAX_RESULT_BYTES: Final = 8 * 1024 * 1024
MAX_ERROR_CHARACTERS: Final = 4_000

log = logging.getLogger("holdfast.worker")


class Phase(enum.Enum):
    """How far a call is."""

    OFFERED = "offered"  # `start` was sent, `go` has not come
    RUNNING = "running"
    REPORTING = "reporting"


class Call:
    """A call that is with this worker.

    Attributes:
        offer: What the executor asks for.
        tool: The tool that it names.
        context: What the tool is given.
        phase: How far it is.
        details: Of the tool's last heartbeat.
        task: Executes it, and reports how it ended.
        is_stopped: The run was cancelled, and its task with it.
        offered_at: On the loop's clock.
    """

    def __init__(self, offer: pb.CallOffer, tool: Tool[Any, Any], context: ToolContext) -> None:
        self.offer = offer
        self.tool = tool
        self.context = context
        self.phase = Phase.OFFERED
        self.details = ""
        self.task: asyncio.Task[None] | None = None
        self.is_stopped = False
        self.offered_at = asyncio.get_running_loop().time()

    @property
    def lease(self) -> str:
        """What the executor calls it by: one attempt of one call."""
        return self.offer.lease

    def __str__(self) -> str:
        return f"{self.tool.name} (run {self.offer.run_id}, step {self.offer.step}, attempt {self.offer.attempt})"


class CallFailed(Exception):
    """A call that has no result.

    Attributes:
        error: What the executor is told.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, outcome_unknown: bool = False, needs_sign_in: bool = False
    ) -> None:
        super().__init__(message)
        shown = message if len(message) <= MAX_ERROR_CHARACTERS else f"{message[: MAX_ERROR_CHARACTERS - 1]}…"
        self.error = pb.CallError(
            message=shown,
            is_retryable=retryable,
            is_outcome_unknown=outcome_unknown,
            needs_sign_in=needs_sign_in,
        )


async def execute(call: Call, handed_out: HandedOut) -> str:
    """Executes the tool and returns its result as JSON text, without the credentials that the worker was handed.

    Raises:
        CallFailed: The tool failed, or its result is not usable.
    """
    try:
        function = call.tool.bind(call.offer.arguments_json, call.context)
        value = await function() if call.tool.is_async else await _in_thread(function)
    except ToolError as error:
        raise CallFailed(
            handed_out.scrubbed(error.message),
            retryable=error.retryable,
            outcome_unknown=error.outcome_unknown,
            needs_sign_in=isinstance(error, SignInNeeded),
        ) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        if task.cancelling() > (1 if call.is_stopped else 0):
            # The worker itself is ending, whatever else happened to the call.
            raise
        if not call.is_stopped:
            raise CallFailed("CancelledError") from None
        # Stopped by the run's cancel: that is reported like any other outcome.
        task.uncancel()
        raise CallFailed("the tool was stopped because its call was cancelled") from None
    except (Exception, SystemExit) as error:
        # The class and the message, never a traceback: the model and the journal get this.
        log.error("the tool %s failed\n%s", call, handed_out.scrubbed(traceback.format_exc()).rstrip())
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CallFailed(handed_out.scrubbed(text)) from error
    try:
        result = encode_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CallFailed(f"the tool ran, but its result can't be written as JSON: {error}") from error
    result = _without_credentials(result, handed_out)
    size = len(result.encode(errors="surrogatepass"))
    if size > MAX_RESULT_BYTES:
        raise CallFailed(f"the tool ran, but its result has {size} bytes; at most {MAX_RESULT_BYTES} are allowed")
    return result


def _without_credentials(result: str, handed_out: HandedOut) -> str:
    scrubbed = handed_out.scrubbed(result)
    if scrubbed == result:
        return result
    log.error("a credential was taken out of a tool's result")
    try:
        json.loads(scrubbed)
    except ValueError:
        # It stood there as a number.
        raise CallFailed("the tool ran, but its result held a credential") from None
    return scrubbed


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs a sync tool in a thread of its own: the slots bound their number, and none keeps the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = context.run(function)
        except StopIteration as stop:
            # A future can't carry it.
            error = RuntimeError(f"StopIteration: {stop.value!r}")
        except BaseException as raised:
            error = raised if isinstance(raised, Exception) else RuntimeError(f"{type(raised).__name__}: {raised}")
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The loop is closed: the worker was stopped, and nobody waits for this.
            pass

    threading.Thread(target=run, name="holdfast-tool", daemon=True).start()
    return await future
