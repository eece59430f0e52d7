"""Many runs over one stream, for programs that start hundreds of them a second: a call for each costs too much."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc

from holdfast.agent import Agent
from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2 as api
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.cancellation import raise_if_cancelled
from holdfast.errors import HoldfastError, Unavailable, error_from_code
from holdfast.ids import new_uuid7
from holdfast.runs import DEFAULT_REATTACH_SECONDS, backoff_seconds, is_worth_reattaching
from holdfast.transport import Transport, cancelling

# Orders of one frame; the service takes up to 1,000.
_MAX_ORDERS: Final = 500


@dataclass(slots=True)
class _Order:
    request: api.RunOrder
    accepted: asyncio.Future[run_pb2.Run]
    ended: asyncio.Future[run_pb2.Run] | None
    # Refusals in a row that may pass, and when the first of them came.
    refusals: int = 0
    refused_since: float = 0.0

    def fail(self, error: HoldfastError) -> None:
        """Nothing more comes."""
        for future in (self.accepted, self.ended):
            if future is not None and not future.done():
                future.set_exception(error)
                # Its order may be waited for by one of the two only.
                future.exception()


class RunStream:
    """Starts runs, and tells of their ends, over one stream; what is pending shares its frames.

    A stream that breaks is opened again, and what has no answer is sent again under the same request id: each order
    is one run, however often that happens.

    Example:
        async with client.run_stream() as runs:
            async with asyncio.TaskGroup() as tasks:
                for ticket in tickets:
                    tasks.create_task(runs.run("support", ticket))

    Args:
        transport: The channels of the client.
        reattach_seconds: How long no executor may be reached before what waits fails.
    """

    def __init__(self, transport: Transport, *, reattach_seconds: float = DEFAULT_REATTACH_SECONDS) -> None:
        self._transport = transport
        self._reattach_seconds = reattach_seconds
        self._orders: dict[int, _Order] = {}
        self._next_id = 0
        self._unsent: list[api.RunOrder] = []
        self._has_orders = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, agent: str | Agent, text: str, *, user_id: str = "", request_id: str = "") -> run_pb2.Run:
        """Starts a run; returns when it is stored.

        Raises:
            HoldfastError: It was refused, as by `Client.start`.
        """
        order = self._send(agent, text, user_id, request_id, await_end=False)
        return await order.accepted

    async def run(self, agent: str | Agent, text: str, *, user_id: str = "", request_id: str = "") -> run_pb2.Run:
        """Starts a run; returns when it has ended, however it ends, with its output.

        Raises:
            HoldfastError: It was refused, as by `Client.start`.
        """
        order = self._send(agent, text, user_id, request_id, await_end=True)
        assert order.ended is not None
        return await order.ended

    def _send(self, agent: str | Agent, text: str, user_id: str, request_id: str, *, await_end: bool) -> _Order:
        if self._task is None or self._task.done():
            raise RuntimeError("the stream is not open: use it as an async context manager")
        self._next_id += 1
        request = api.StartRunRequest(
            agent=agent.name if isinstance(agent, Agent) else agent,
            text=text,
            user_id=user_id,
            request_id=request_id or new_uuid7(),
        )
        loop = asyncio.get_running_loop()
        order = _Order(
            api.RunOrder(id=self._next_id, run=request, await_end=await_end),
            loop.create_future(),
            loop.create_future() if await_end else None,
        )
        self._orders[self._next_id] = order
        self._unsent.append(order.request)
        self._has_orders.set()
        return order

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())  # ended by __aexit__
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail_all(Unavailable("the stream was closed"))

    def _fail_all(self, error: HoldfastError) -> None:
        orders = list(self._orders.values())
        self._orders.clear()
        for order in orders:
            order.fail(error)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        failing_since = 0.0
        while True:
            was_answered = False
            failure: HoldfastError
            try:
                was_answered = await self._serve_stream()
                failure = Unavailable("the executor ended the stream", reason="EXECUTOR_UNAVAILABLE")
            except grpc.RpcError as error:
                failure = self._transport.error("executor", error)
            except HoldfastError as error:
                failure = error
            if was_answered:
                failures = 0
            if failures == 0:
                failing_since = loop.time()
            failures += 1
            if not is_worth_reattaching(failure) or loop.time() - failing_since >= self._reattach_seconds:
                self._fail_all(failure)
                # What is ordered from now on is tried again.
                failures = 0
                await self._has_orders.wait()
            await asyncio.sleep(backoff_seconds(failures, failure))

    async def _serve_stream(self) -> bool:
        """Carries orders and answers until the stream ends; tells whether anything was answered."""
        call = self._transport.stub("executor", RunServiceStub).StartRuns(metadata=self._transport.metadata())
        self._unsent = [order.request for order in self._orders.values()]
        self._has_orders.set()
        was_answered = False
        writer = asyncio.create_task(self._write(call))  # ended below, on every path
        try:
            async with cancelling(call):
                async for frame in call:
                    was_answered = True
                    for answer in frame.answers:
                        self._take(answer)
        except grpc.RpcError:
            raise_if_cancelled()
            if not was_answered:
                raise
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return was_answered

    async def _write(self, call: grpc.aio.StreamStreamCall[api.StartRunsRequest, api.StartRunsResponse]) -> None:
        while True:
            await self._has_orders.wait()
            self._has_orders.clear()
            while self._unsent:
                orders, self._unsent = self._unsent[:_MAX_ORDERS], self._unsent[_MAX_ORDERS:]
                await call.write(api.StartRunsRequest(runs=orders))

    def _take(self, answer: api.RunAnswer) -> None:
        order = self._orders.get(answer.id)
        if order is None:
            return
        match answer.WhichOneof("kind"):
            case "accepted":
                order.refusals = 0
                if not order.accepted.done():
                    order.accepted.set_result(answer.accepted)
                if order.ended is None:
                    del self._orders[answer.id]
            case "ended":
                del self._orders[answer.id]
                if order.ended is not None and not order.ended.done():
                    order.ended.set_result(answer.ended)
            case "refused":
                self._after_refusal(order, _error_of(answer.refused))

    def _after_refusal(self, order: _Order, error: HoldfastError) -> None:
        """Nothing was stored. What is only unavailable is ordered again after a while."""
        loop = asyncio.get_running_loop()
        if order.refusals == 0:
            order.refused_since = loop.time()
        order.refusals += 1
        if isinstance(error, Unavailable) and loop.time() - order.refused_since < self._reattach_seconds:
            loop.call_later(backoff_seconds(order.refusals, error), self._send_again, order)
            return
        del self._orders[order.request.id]
        order.fail(error)

    def _send_again(self, order: _Order) -> None:
        if order.request.id in self._orders and order.request not in self._unsent:
            self._unsent.append(order.request)
            self._has_orders.set()


def _error_of(refusal: api.RunRefusal) -> HoldfastError:
    delay = refusal.retry_delay.ToTimedelta().total_seconds() if refusal.HasField("retry_delay") else None
    return error_from_code(
        refusal.code, refusal.message, reason=refusal.reason, field=refusal.field or None, retry_delay_seconds=delay
    )
