"""A blocking facade over `Client` for programs without an event loop. It holds no logic of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from holdfast.agent import Agent, Budget
from holdfast.api.auth.v1 import workspace_service_pb2
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.client import Client
from holdfast.resources import Priority
from holdfast.runs import DEFAULT_REATTACH_SECONDS, RunEvent, RunHandle, TextDelta
from holdfast.transport import DEFAULT_TIMEOUT_SECONDS

P = ParamSpec("P")
T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast-sync", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for a coroutine; an interrupt of the waiting thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yields the items of an async iterator, and closes it when the reader leaves."""
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        async def close() -> None:
            closing = getattr(items, "aclose", None)
            if closing is not None:
                await closing()

        try:
            while (item := self.call(following())) is not end:
                yield item
        finally:
            self.call(close())

    def stop(self) -> None:
        """Ends the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class SyncRunHandle:
    """A blocking `RunHandle`.

    Attributes:
        id: The run's id.
    """

    def __init__(self, handle: RunHandle, loop: _Loop) -> None:
        self.id = handle.id
        self._handle = handle
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def run(self) -> run_pb2.Run:
        """The run as it was last seen."""
        return self._handle.run

    def get(self) -> run_pb2.Run:
        """As `RunHandle.get`."""
        return self._loop.call(self._handle.get())

    def budget(self) -> list[run_pb2.BudgetLine]:
        """As `RunHandle.budget`."""
        return self._loop.call(self._handle.budget())

    def cancel(self, reason: str = "") -> run_pb2.Run:
        """As `RunHandle.cancel`."""
        return self._loop.call(self._handle.cancel(reason))

    def pause(self, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `RunHandle.pause`."""
        return self._loop.call(self._handle.pause(reason, request_id=request_id))

    def resume(self, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `RunHandle.resume`."""
        return self._loop.call(self._handle.resume(reason, request_id=request_id))

    def wait(self) -> run_pb2.Run:
        """As `RunHandle.wait`."""
        return self._loop.call(self._handle.wait())

    def result(self, *, timeout: float | None = None) -> str:
        """As `RunHandle.result`."""
        return self._loop.call(self._handle.result(timeout=timeout))

    def events(
        self, after_seq: int = 0, *, deltas: bool = True, reattach_seconds: float = DEFAULT_REATTACH_SECONDS
    ) -> Iterator[RunEvent | TextDelta]:
        """As `RunHandle.events`."""
        return self._loop.iterate(self._handle.events(after_seq, deltas=deltas, reattach_seconds=reattach_seconds))


class SyncClient:
    """A blocking `Client`. Close it, or use it as a context manager.

    Example:
        with SyncClient() as client:
            print(client.start("support", "Where is my order?").result())

    Args:
        address: As for `Client`.
        api_key: As for `Client`.
        auth_address: As for `Client`.
        trace_address: As for `Client`.
        ca_file: As for `Client`.
        profile: As for `Client`.
        timeout: As for `Client`.
    """

    def __init__(
        self,
        address: str | None = None,
        api_key: str | None = None,
        *,
        auth_address: str | None = None,
        trace_address: str | None = None,
        ca_file: str | None = None,
        profile: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        async def make() -> Client:
            # In the loop's own thread, because channels belong to a loop.
            return Client(
                address,
                api_key,
                auth_address=auth_address,
                trace_address=trace_address,
                ca_file=ca_file,
                profile=profile,
                timeout=timeout,
            )

        self._loop = _Loop()
        try:
            self._client = self._loop.call(make())
        except BaseException:
            self._loop.stop()
            raise

    def apply(self, agent: Agent | agent_pb2.AgentSpec) -> agent_pb2.AgentRevision:
        """As `Client.apply`."""
        return self._loop.call(self._client.apply(agent))

    def start(
        self,
        agent: str | Agent,
        text: str,
        *,
        revision: str = "",
        session_id: str = "",
        user_id: str = "",
        reject_when_busy: bool = False,
        priority: Priority = "interactive",
        ttl: timedelta | float | None = None,
        budget: Budget | None = None,
        request_id: str | None = None,
    ) -> SyncRunHandle:
        """As `Client.start`."""
        handle = self._loop.call(
            self._client.start(
                agent,
                text,
                revision=revision,
                session_id=session_id,
                user_id=user_id,
                reject_when_busy=reject_when_busy,
                priority=priority,
                ttl=ttl,
                budget=budget,
                request_id=request_id,
            )
        )
        return SyncRunHandle(handle, self._loop)

    def run(self, run_id: str) -> SyncRunHandle:
        """As `Client.run`."""
        return SyncRunHandle(self._loop.call(self._client.run(run_id)), self._loop)

    def pause(self, run_id: str, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `Client.pause`."""
        return self._loop.call(self._client.pause(run_id, reason, request_id=request_id))

    def resume(self, run_id: str, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `Client.resume`."""
        return self._loop.call(self._client.resume(run_id, reason, request_id=request_id))

    def workspace(self) -> workspace_service_pb2.Workspace:
        """As `Client.workspace`."""
        return self._loop.call(self._client.workspace())

    def seal_payloads(self, is_on: bool | None = True) -> workspace_service_pb2.Workspace:
        """As `Client.seal_payloads`."""
        return self._loop.call(self._client.seal_payloads(is_on))

    def call(
        self, method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Waits for any coroutine over the async client: `call(lambda client: client.approvals.get(approval_id))`."""
        return self._loop.call(method(self._client, *args, **kwargs))

    def iterate(self, items: Callable[[Client], AsyncIterator[T]]) -> Iterator[T]:
        """Yields the items of any list of the async client: `iterate(lambda client: client.sessions.list())`."""
        return self._loop.iterate(items(self._client))

    def close(self) -> None:
        """Closes the connections and ends the background thread."""
        self._loop.call(self._client.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()
