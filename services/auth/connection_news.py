"""News of connections: what becomes usable or stops to be is told to whoever follows, in every replica.

The events in the database are the source: whoever changes a connection writes one in the same transaction, and each
replica reads on from where it was, at once after a change of its own and every second otherwise. News are hints: one
that commits late may be missed, so followers also ask (`CheckSignIns`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from holdfast.errors import HoldfastError, Reason, Unavailable
from services.auth.connection_store import Connection, ConnectionStore
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

POLL_SECONDS: Final = 1.0
"""How far behind another replica's changes this one is at most."""

SIGN_OF_LIFE_SECONDS: Final = 10.0

_BATCH: Final = 500
_OVERLAP: Final = 64
"""So many ids before the last one are read again: transactions commit in another order than they took their ids."""

_REMEMBERED: Final = 1024
_QUEUE: Final = 1000
_CHECKS_AT_ONCE: Final = 8

log = get_logger(__name__)

Listener = Callable[[Connection], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """What a run waits for."""

    workspace_id: str
    user_id: str
    connection: str
    scopes: tuple[str, ...] = ()
    rejected_fingerprint: str = ""
    """Of a credential that does not count: the provider does not accept it."""


class ConnectionNews:
    """Tells listeners of this process and followers on the network.

    Args:
        store: Keeps connections and events.
        clock: For polling.
    """

    def __init__(self, store: ConnectionStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._listeners: list[Listener] = []
        self._queues: set[asyncio.Queue[Connection]] = set()
        self._lagging: set[asyncio.Queue[Connection]] = set()
        self._changed = asyncio.Event()
        self._published: OrderedDict[str, int] = OrderedDict()

    def listen(self, listener: Listener) -> None:
        """Adds a listener for the life of the process; it is quick, and raises nothing."""
        self._listeners.append(listener)

    def publish(self, connection: Connection) -> None:
        """Tells listeners at once of a change that this process has committed; followers hear of it in a moment."""
        self._published[connection.connection_id] = connection.version
        self._published.move_to_end(connection.connection_id)
        if len(self._published) > _REMEMBERED:
            self._published.popitem(last=False)
        for listener in self._listeners:
            listener(connection)
        self._changed.set()

    async def run(self) -> NoReturn:
        """Reads events until it is cancelled."""
        position: int | None = None
        seen: deque[int] = deque(maxlen=_REMEMBERED)
        while True:
            try:
                if position is None:
                    position = await self._store.last_event_id()
                    # What is in the overlap before the start is no news.
                    seen.extend(range(max(position - _OVERLAP, 0) + 1, position + 1))
                position = await self._read(position, seen)
            except HoldfastError as error:
                log.info("connection_news_delayed", reason=error.reason)
            await self._wait()

    async def _wait(self) -> None:
        pause = asyncio.ensure_future(self._clock.sleep(POLL_SECONDS))
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({pause, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            change.cancel()
        self._changed.clear()

    async def _read(self, position: int, seen: deque[int]) -> int:
        while True:
            events = await self._store.events_after(max(position - _OVERLAP, 0), limit=_BATCH)
            new = [event for event in events if event.event_id not in seen]
            # One look at each connection, as it is now: two changes in a row are one piece of news.
            changed = dict.fromkeys((event.workspace_id, event.connection_id) for event in new)
            for workspace_id, connection_id in changed:
                connection = await self._store.get_connection(workspace_id, connection_id)
                if connection is not None:
                    self._tell(connection)
            seen.extend(event.event_id for event in new)
            position = max([position, *(event.event_id for event in events)])
            if len(events) < _BATCH:
                return position

    def _tell(self, connection: Connection) -> None:
        # What this process did itself, its listeners know already.
        if self._published.get(connection.connection_id, 0) < connection.version:
            for listener in self._listeners:
                listener(connection)
        for queue in self._queues:
            try:
                queue.put_nowait(connection)
            except asyncio.QueueFull:
                self._lagging.add(queue)

    async def follow(self) -> AsyncIterator[Connection | None]:
        """Yields connections as they change, from now on; None is a sign of life.

        Raises:
            Unavailable: The follower is too slow; it begins again, and asks about what it waits for.
        """
        with self._queue() as queue:
            yield None
            while True:
                if queue in self._lagging:
                    raise Unavailable(
                        "the follower was too slow; follow again", reason=Reason.UNAVAILABLE, retry_delay_seconds=1.0
                    )
                yield await self._next(queue)

    async def _next(self, queue: asyncio.Queue[Connection]) -> Connection | None:
        pause = asyncio.ensure_future(self._clock.sleep(SIGN_OF_LIFE_SECONDS))
        item = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait({pause, item}, return_when=asyncio.FIRST_COMPLETED)
            return item.result() if item.done() else None
        finally:
            pause.cancel()
            item.cancel()

    @contextmanager
    def _queue(self) -> Iterator[asyncio.Queue[Connection]]:
        queue: asyncio.Queue[Connection] = asyncio.Queue(_QUEUE)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
            self._lagging.discard(queue)

    async def check(self, sign_ins: Sequence[SignIn]) -> list[bool]:
        """Tells for each sign-in whether a usable connection with its permissions exists."""
        turn = asyncio.Semaphore(_CHECKS_AT_ONCE)

        async def is_usable(sign_in: SignIn) -> bool:
            async with turn:
                found = await self._store.connections_for(sign_in.workspace_id, sign_in.user_id, sign_in.connection)
            return any(
                connection.is_usable
                and covers(connection, sign_in.scopes)
                and (not sign_in.rejected_fingerprint or connection.fingerprint != sign_in.rejected_fingerprint)
                for connection in found
            )

        distinct = list(dict.fromkeys(sign_ins))
        async with asyncio.TaskGroup() as group:
            tasks = {sign_in: group.create_task(is_usable(sign_in)) for sign_in in distinct}
        return [tasks[sign_in].result() for sign_in in sign_ins]


def covers(connection: Connection, scopes: Sequence[str]) -> bool:
    """Tells whether a connection has the permissions; one whose provider did not say is taken at its word."""
    return not connection.scopes or set(scopes) <= set(connection.scopes)
