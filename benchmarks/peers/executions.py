"""Which step bodies began, noted so that it outlives a kill: the evidence of the recovery measurement.

Standard library only: it is imported inside every peer's environment.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.peers.task import STEPS

BODY_SECONDS = 0.05
PAUSE_SECONDS = 0.5
_LIMIT_SECONDS = 90.0


class ExecutionLog:
    """A file with a line for each body that began; several processes may append to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "executions.log"
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, run: object, step: object) -> None:
        """A body of this step begins."""
        os.write(self._file, f"{run},{step}\n".encode())

    def counts(self) -> Counter[str]:
        """How often the body of each step began."""
        return Counter(self._path.read_text().split())


async def wait_until_half(log: ExecutionLog, runs: int) -> None:
    """Returns when half of all steps began."""
    async with asyncio.timeout(_LIMIT_SECONDS):
        # Another process writes it: there is nothing else to wait on.
        while log.counts().total() < runs * STEPS // 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def recovery_row(
    runs: int, restarted_at: float, log: ExecutionLog, at_kill: int, *, recovered_at: float | None = None
) -> dict[str, Any]:
    """The row of a recovery that is complete.

    Args:
        runs: How many there were.
        restarted_at: `time.perf_counter()` of the restart.
        log: What began.
        at_kill: How many bodies had begun when the process was killed.
        recovered_at: `time.perf_counter()` of the last run's end; now when it is not given.
    """
    recovered_at = time.perf_counter() if recovered_at is None else recovered_at
    counts = log.counts()
    return {
        "runs": runs,
        "recovered_after_s": round(recovered_at - restarted_at, 2),
        "steps_begun_at_kill": at_kill,
        "steps_missing": runs * STEPS - len(counts),
        "steps_repeated": sum(count > 1 for count in counts.values()),
        "most_repeats_of_a_step": max(counts.values()) - 1,
    }
