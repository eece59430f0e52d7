"""Waiting for what has no event to wait on: another process's log or files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_POLL_SECONDS = 0.05


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when something is so; the caller sets the time limit."""
    while not is_so():
        await asyncio.sleep(_POLL_SECONDS)
