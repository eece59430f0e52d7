"""Effects that tests count: an HTTP endpoint of the test's own, and a log of what workers executed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request that arrived."""

    path: str
    key: str
    run_id: str
    body: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint says."""

    body: Any = "fine"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[HttpCall], Awaitable[Answer]]


class HttpEffects:
    """Answers calls of `http` tools on loopback and keeps every one of them.

    Attributes:
        calls: What arrived, in order.
        arrived: Set at each arrival.
    """

    def __init__(self) -> None:
        self.calls: list[HttpCall] = []
        self.arrived = asyncio.Event()
        self._handlers: dict[str, Handler] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        # A task of a connection accepted just now has not begun: cancelled, it would never close what it was given.
        await asyncio.sleep(0)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str) -> str:
        """Where a path is served."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{path}"

    def on(self, path: str, handler: Handler) -> None:
        """Lets a handler answer at a path, from now on."""
        self._handlers[path] = handler

    def of(self, run_id: str, path: str) -> list[HttpCall]:
        """The calls that a run made at a path."""
        return [call for call in self.calls if call.run_id == run_id and call.path == path]

    def of_any(self, path: str) -> list[HttpCall]:
        """The calls of any run to a path."""
        return [made for made in self.calls if made.path == path]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Waits for arrivals until something is so."""
        while not is_so():
            self.arrived.clear()
            await self.arrived.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # A caller that was killed, or the end of the test.
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.decode().rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        call = HttpCall(
            path=first.split(" ")[1].partition("?")[0],
            key=headers.get("idempotency-key", ""),
            run_id=headers.get("x-holdfast-run-id", ""),
            body=json.loads(body) if body else None,
        )
        self.calls.append(call)
        self.arrived.set()
        handler = self._handlers.get(call.path)
        answer = await handler(call) if handler is not None else Answer()
        content = json.dumps(answer.body).encode()
        lines = [
            f"HTTP/1.1 {answer.status} Status",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        lines.extend(f"{name}: {value}" for name, value in answer.headers.items())
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        return True


class Executions:
    """What workers executed: idempotency keys by run, one for each time."""

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {}

    def note(self, run_id: str, key: str) -> None:
        """A call was executed."""
        self._keys.setdefault(run_id, []).append(key)

    def of(self, run_id: str) -> list[str]:
        """The keys of a run's executions."""
        return self._keys.get(run_id, [])


class Gate:
    """A handler whose answers wait until it is opened."""

    def __init__(self, body: Any = "fine") -> None:
        self._body = body
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Lets all calls be answered, those that wait and those to come."""
        self._opened.set()

    async def answer(self, made: HttpCall) -> Answer:
        """Answers once the gate is open."""
        await self._opened.wait()
        return Answer(self._body)
