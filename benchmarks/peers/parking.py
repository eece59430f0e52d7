"""What parked runs cost while nothing happens: memory that stays and CPU.

Standard library only: it is imported inside every peer's environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from benchmarks.processes import CpuMeter

# Parked before the first reading of the memory, so that what is allocated once is in it.
PARKED_BEFORE = 200
IDLE_SECONDS = 15.0


async def idle_percent(processes: Mapping[str, int]) -> dict[str, float]:
    """Percent of one core that each process uses while nothing is asked of it."""
    meter = CpuMeter(processes)
    meter.start()
    await asyncio.sleep(IDLE_SECONDS)
    return {name: round(100 * seconds / IDLE_SECONDS, 1) for name, seconds in meter.stop().items()}


def parked_row(
    runs: int, seconds: float, grown_megabytes: Mapping[str, float], idle: Mapping[str, float]
) -> dict[str, Any]:
    """The row of so many runs that were parked in so many seconds."""
    return {
        "runs": runs,
        "parked_per_s": round(runs / seconds, 1),
        "rss_kb_per_run": {name: round(grown * 1024 / max(runs, 1), 2) for name, grown in grown_megabytes.items()},
        "idle_cpu_percent": dict(idle),
    }
