"""How much of the providers' patience background work may use: calls at the same time, and calls a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from services.shared.clock import Clock

CONCURRENT_CALLS: Final = 16
"""At the same time, for one integration and from one replica."""

BACKGROUND_CALLS: Final = 12
"""Of those, so that callers who wait always find a free one soon."""

CALLS_PER_SECOND: Final = 50.0
"""Begun in the background, for one integration and by one replica."""

_BURST: Final = 16.0


class _Gate:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.all = asyncio.Semaphore(CONCURRENT_CALLS)
        self.background = asyncio.Semaphore(BACKGROUND_CALLS)
        self._tokens = _BURST
        self._filled_at = clock.monotonic()

    async def take_turn(self) -> None:
        now = self._clock.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * CALLS_PER_SECOND)
        self._filled_at = now
        # Taken before the wait, so that those who come later wait longer.
        self._tokens -= 1.0
        if self._tokens < 0.0:
            await self._clock.sleep(-self._tokens / CALLS_PER_SECOND)


class RefreshLimits:
    """Slots for calls to providers, apart for each integration."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gates: WeakValueDictionary[str, _Gate] = WeakValueDictionary()

    @asynccontextmanager
    async def call(self, integration: str) -> AsyncIterator[None]:
        """Waits for a free call to an integration, and holds it."""
        gate = self._gate(integration)
        async with gate.all:
            yield

    @asynccontextmanager
    async def background(self, integration: str) -> AsyncIterator[None]:
        """Waits until background work may call an integration, and holds its place."""
        gate = self._gate(integration)
        async with gate.background:
            await gate.take_turn()
            yield

    def _gate(self, integration: str) -> _Gate:
        gate = self._gates.get(integration)
        if gate is None:
            gate = self._gates[integration] = _Gate(self._clock)
        return gate
