"""The deadline of a request: by the clock until something is sent, from then on in time that this process has run.

A process that was stopped (SIGSTOP, a suspended machine, a frozen container) and goes on much later must not send what
it was about to send: somebody else may have done it meanwhile. But if it had sent it already, the answer lies in its
socket, and with it, say, the only refresh token there is: a deadline by the clock would be past at that moment and
throw it away. So the time in which nothing ran does not count once the other side may have the request.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

_TICK_SECONDS: Final = 0.25
# What passes between two ticks beyond this is time in which nothing ran.
_LONGEST_TICK_SECONDS: Final = 1.0


class RequestDeadline:
    """Limits a body; an async context manager.

    Args:
        seconds: How long the body may take.

    Raises:
        TimeoutError: The time is up; raised by the end of the body.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._limit = asyncio.timeout(seconds)
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def sent(self) -> None:
        """The other side may have the request: from now on only time counts in which this process runs."""
        if self._timer is None and not self._limit.expired():
            loop = asyncio.get_running_loop()
            when = self._limit.when()
            assert when is not None
            self._last = loop.time()
            self._left = when - self._last
            self._limit.reschedule(None)
            self._timer = loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._left -= min(now - self._last, _LONGEST_TICK_SECONDS)
        self._last = now
        if self._left <= 0:
            self._limit.reschedule(now)
        else:
            self._timer = loop.call_later(min(_TICK_SECONDS, self._left), self._tick)

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Raises what it has to, and swallows nothing.
        await self._limit.__aexit__(exc_type, exc_val, exc_tb)
