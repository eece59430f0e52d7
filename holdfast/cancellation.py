"""Cancelled tasks that wait for gRPC."""

from __future__ import annotations

import asyncio


def cancellations() -> int:
    """Returns how often the current task was cancelled: what `raise_if_cancelled` compares with."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_if_cancelled(since: int = 0) -> None:
    """Raises `asyncio.CancelledError` when the current task was cancelled during a call that has failed.

    A call of grpc.aio that ends in the moment in which its task is cancelled raises the call's status, and the
    cancellation is lost. Whoever goes on after a failed call asks here first; otherwise the task would never end.

    Args:
        since: `cancellations()` from before the call; a task that was cancelled earlier is cleaning up, and is to be
            told how its calls end.
    """
    if cancellations() > since:
        raise asyncio.CancelledError
