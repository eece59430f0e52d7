"""`RunService.StartRuns`: many runs over one stream, their answers gathered into frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, Final, Protocol, TypeVar

from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2 as api
from holdfast.errors import HoldfastError, InvalidArgument, Reason, Unavailable
from services.executor.starts import RunStarter, Starting
from services.shared.rpc_errors import public_error

MAX_ORDERS_IN_FRAME: Final = 1_000
# Orders of one stream that are not answered yet, not counting those that wait for an end; beyond it nothing is read.
MAX_UNANSWERED: Final = 2_000
MAX_AWAITED: Final = 10_000
MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
_METHOD: Final = "/holdfast.api.executor.v1.RunService/StartRuns"


T = TypeVar("T")


class EndSource(Protocol):
    """Tells of the ends of runs."""

    async def await_end(self, workspace_id: str, run_id: str) -> run_pb2.Run:
        """Returns a run once it has ended."""


class RunStream:
    """One stream of orders.

    Args:
        starter: Stores runs.
        ends: Tells of their ends.
        starting: Who starts them.
        draining: Set when this executor shuts down: the stream then ends, and the client goes on with another one.
    """

    def __init__(self, starter: RunStarter, ends: EndSource, starting: Starting, draining: asyncio.Event) -> None:
        self._starter = starter
        self._ends = ends
        self._starting = starting
        self._draining = draining
        self._answers: list[api.RunAnswer] = []
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._unanswered = 0
        self._awaited = 0
        self._has_ended = False

    async def serve(self, frames: AsyncIterator[api.StartRunsRequest]) -> AsyncGenerator[api.StartRunsResponse, None]:
        """Yields answers until every order of the stream has its last one.

        Raises:
            InvalidArgument: A frame is not one.
            Unavailable: The executor drains.
        """
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(frames, tasks))
            stopper = tasks.create_task(self._wake_on_drain())
            try:
                while True:
                    await self._news.wait()
                    self._news.clear()
                    while self._answers:
                        yield self._take_frame()
                    if self._draining.is_set() and self._unanswered == 0:
                        raise Unavailable(
                            "the executor is shutting down; send again what has no last answer", reason=Reason.DRAINING
                        )
                    if self._has_ended and self._unanswered == 0 and self._awaited == 0:
                        return
            finally:
                reader.cancel()
                stopper.cancel()

    async def _wake_on_drain(self) -> None:
        await self._draining.wait()
        self._news.set()

    async def _read(self, frames: AsyncIterator[api.StartRunsRequest], tasks: asyncio.TaskGroup) -> None:
        async for frame in frames:
            if len(frame.runs) > MAX_ORDERS_IN_FRAME:
                raise InvalidArgument(f"expected at most {MAX_ORDERS_IN_FRAME} runs in a frame", field="runs")
            for order in frame.runs:
                self._unanswered += 1
                tasks.create_task(self._execute(order))
            while self._unanswered >= MAX_UNANSWERED or self._awaited >= MAX_AWAITED:
                self._has_room.clear()
                await self._has_room.wait()
        self._has_ended = True
        self._news.set()

    async def _execute(self, order: api.RunOrder) -> None:
        try:
            run = await self._starter.start(self._starting, order.run)
        except Exception as error:
            self._unanswered -= 1
            self._answer(api.RunAnswer(id=order.id, refused=_refusal(error)))
            return
        self._unanswered -= 1
        self._awaited += order.await_end
        self._answer(api.RunAnswer(id=order.id, accepted=run))
        if not order.await_end:
            return
        try:
            ended = await self._ends.await_end(self._starting.workspace_id, run.run_id)
        except HoldfastError as error:
            self._awaited -= 1
            self._answer(api.RunAnswer(id=order.id, refused=_refusal(error)))
            return
        self._awaited -= 1
        self._answer(api.RunAnswer(id=order.id, ended=ended))

    def _answer(self, answer: api.RunAnswer) -> None:
        self._answers.append(answer)
        self._news.set()
        self._has_room.set()

    def _take_frame(self) -> api.StartRunsResponse:
        answers, self._answers = self._answers, []
        size = 0
        for index, answer in enumerate(answers):
            size += answer.ByteSize()
            if size > MAX_FRAME_BYTES and index > 0:
                answers, self._answers = answers[:index], answers[index:]
                break
        return api.StartRunsResponse(answers=answers)


async def until_drained(waiting: Coroutine[Any, Any, T], draining: asyncio.Event) -> T:
    """Returns what is waited for, unless this executor shuts down first.

    Raises:
        Unavailable: It does.
    """
    # Bare tasks, ended below on every path.
    work, drained = asyncio.create_task(waiting), asyncio.create_task(draining.wait())
    try:
        await asyncio.wait((work, drained), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Unavailable("the executor is shutting down; call again", reason=Reason.DRAINING)
        return work.result()
    finally:
        work.cancel()
        drained.cancel()
        await asyncio.gather(work, drained, return_exceptions=True)


def _refusal(error: Exception) -> api.RunRefusal:
    public = public_error(error, _METHOD)
    refusal = api.RunRefusal(
        code=public.code.value[0],
        reason=public.reason,
        message=public.message,
        field=public.field_violations[0].field if public.field_violations else "",
    )
    if public.retry_delay_seconds is not None:
        refusal.retry_delay.FromNanoseconds(int(public.retry_delay_seconds * 1e9))
    return refusal
