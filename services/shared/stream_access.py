"""Long streams and the credential that opened them: a stream ends when that has ended, not when its client likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from holdfast.errors import HoldfastError, PermissionDenied, Reason, Unauthenticated
from services.shared.clock import Clock

RECHECK_SECONDS: Final = 30.0
"""How often the credential of an open stream is looked at again."""


class StreamEnd:
    """Lets somebody else end the stream that a task serves, with an error of its own."""

    __slots__ = ("error", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.error: HoldfastError | None = None

    def now(self, error: HoldfastError) -> None:
        """Ends the stream; its client is told `error`."""
        if self.error is None:
            self.error = error
            self.task.cancel()


@asynccontextmanager
async def rechecked(
    end: StreamEnd,
    verify: Callable[[], Awaitable[datetime | None]],
    expire_time: datetime | None,
    clock: Clock,
) -> AsyncIterator[None]:
    """Looks at a credential again and again while the context is open, and ends the stream when it is not good.

    Args:
        end: The stream's.
        verify: Returns when the credential ends by itself, or raises what is wrong with it.
        expire_time: When it ends, as known by now.
        clock: Time.
    """
    # Beside the stream, in whose task nothing but the handler runs; it ends with the context.
    task = asyncio.create_task(_recheck(end, verify, expire_time, clock))
    try:
        yield
    finally:
        task.cancel()


async def _recheck(
    end: StreamEnd, verify: Callable[[], Awaitable[datetime | None]], expire_time: datetime | None, clock: Clock
) -> None:
    while True:
        remaining = (expire_time - clock.now()).total_seconds() if expire_time is not None else RECHECK_SECONDS
        await clock.sleep(min(max(remaining, 0.0), RECHECK_SECONDS))
        try:
            expire_time = await verify()
        except (Unauthenticated, PermissionDenied) as error:
            if error.reason not in (Reason.SERVICE_TOKEN_INVALID, Reason.SERVICE_CERTIFICATE_INVALID):
                end.now(error)
                return
        except HoldfastError:
            # It cannot be told at the moment. What is known holds until its end.
            pass
        if expire_time is not None and expire_time <= clock.now():
            end.now(Unauthenticated("the credential that opened the stream has expired", reason=Reason.API_KEY_EXPIRED))
            return
