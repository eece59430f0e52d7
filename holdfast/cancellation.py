"""Cancelled tasks that wait for gRPC."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raises `asyncio.CancelledError` when the current task was cancelled.

    A call of grpc.aio that ends in the moment in which its task is cancelled raises the call's status, and the
    cancellation is lost. Whoever goes on after a failed call asks here first; otherwise the task would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
