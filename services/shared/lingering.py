"""Writes what has arrived a moment later, so that many records are one write, and what is left at the end.

Whoever keeps the records loses none while the process lives: a write that fails leaves them where they are, and comes
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Final, NoReturn

from holdfast.errors import HoldfastError
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

_CLOSE_ATTEMPTS: Final = 3

log = get_logger(__name__)


class LingeringWriter:
    """Decides when records are written.

    Args:
        flush: Writes what is pending; raises a HoldfastError where it cannot, and keeps it.
        pending: The records, to be counted.
        clock: For pauses.
        linger_seconds: How long a record waits for others.
        retry_seconds: How long after a failure it is tried again.
        delayed: What the log calls it when the records have to wait.
        lost: What it calls it when the process ends with some of them.
    """

    def __init__(
        self,
        flush: Callable[[], Awaitable[None]],
        pending: Sized,
        clock: Clock,
        *,
        linger_seconds: float,
        retry_seconds: float,
        delayed: str,
        lost: str,
    ) -> None:
        self._flush = flush
        self._pending = pending
        self._clock = clock
        self._linger_seconds = linger_seconds
        self._retry_seconds = retry_seconds
        self._delayed = delayed
        self._lost = lost
        self._arrived = asyncio.Event()

    def notice(self) -> None:
        """There is a record more."""
        self._arrived.set()

    async def run(self) -> NoReturn:
        """Writes what arrives, until it is cancelled."""
        while True:
            await self._arrived.wait()
            await self._clock.sleep(self._linger_seconds)
            # Order matters: a record that comes while the others are written sets it again.
            self._arrived.clear()
            try:
                await self._flush()
            except HoldfastError as error:
                log.warning(self._delayed, reason=error.reason, pending=len(self._pending))
                self._arrived.set()
                await self._clock.sleep(self._retry_seconds)

    async def close(self) -> None:
        """Writes what is left, after the last record."""
        for _ in range(_CLOSE_ATTEMPTS):
            try:
                await self._flush()
                return
            except HoldfastError as error:
                log.warning(self._delayed, reason=error.reason, pending=len(self._pending))
                await self._clock.sleep(self._retry_seconds)
        if self._pending:
            log.error(self._lost, records=len(self._pending))
