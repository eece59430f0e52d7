"""The seam through which domain code sees time, so that tests can supply it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Returns the current time, always aware and in UTC."""

    def monotonic(self) -> float:
        """Returns seconds from an arbitrary start that never step back; for measuring and for deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Returns when `seconds` have passed on this clock; at once, but through the event loop, for zero or less."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Returns the wall clock's time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Returns the monotonic clock's seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleeps in the event loop."""
        await asyncio.sleep(max(0.0, seconds))
