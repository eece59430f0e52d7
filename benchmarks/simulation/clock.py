"""Virtual time: events in the order of their moments, and a clock that stands still between them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = datetime(2026, 1, 1, tzinfo=UTC)

Event = Callable[[], Awaitable[None]]


class VirtualClock:
    """The clock of the database and of every process in it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        """Returns the moment of the event that is under way."""
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        """Returns the seconds since the beginning."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Nothing here waits; events are planned."""
        raise AssertionError("plan an event instead")

    def at(self, seconds: float, event: Event) -> None:
        """Plans an event; those of one moment happen in the order in which they were planned."""
        heapq.heappush(self._events, (max(seconds, self.seconds), next(self._order), event))

    def after(self, seconds: float, event: Event) -> None:
        """Plans an event from now."""
        self.at(self.seconds + seconds, event)

    async def run(self, until: float) -> None:
        """Lets everything happen that is planned before `until`."""
        while self._events and self._events[0][0] < until:
            self.seconds, _, event = heapq.heappop(self._events)
            await event()
        self.seconds = until
