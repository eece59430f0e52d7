"""Work beside a service's server: all of it runs, or none of it and no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Runs `work` beside the body; if any of it fails, the body is cancelled: the service does not live on halves."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part) for part in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
