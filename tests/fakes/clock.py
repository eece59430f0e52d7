"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time as the test says. `advance` wakes the sleepers whose time has come, in order."""

    def __init__(self, now: datetime | None = None) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC) if now is None else now
        # Far from the real clock's, so that a comparison across clocks shows.
        self._monotonic = 1_000_000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        """Returns the time that the test has set."""
        return self._now

    def monotonic(self) -> float:
        """Returns seconds that only `advance` moves."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Returns when the test has advanced the clock by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), sleeper))
        self._changed.set()
        await sleeper

    @property
    def sleeping(self) -> int:
        """How many tasks sleep on this clock."""
        return sum(not sleeper.done() for _, _, sleeper in self._sleepers)

    async def wait_for_sleepers(self, count: int = 1) -> None:
        """Returns when at least `count` tasks sleep on this clock: then it is safe to advance."""
        async with asyncio.timeout(20):
            while self.sleeping < count:
                self._changed.clear()
                await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Moves the time forward, waking each sleeper at its moment."""
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, sleeper = heapq.heappop(self._sleepers)
            self._move(due)
            if not sleeper.done():
                sleeper.set_result(None)
            # The woken task runs before the next one, and may sleep again.
            for _ in range(5):
                await asyncio.sleep(0)
        self._move(end)

    def _move(self, to: float) -> None:
        self._now += timedelta(seconds=to - self._monotonic)
        self._monotonic = to
