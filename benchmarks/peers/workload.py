"""The closed loop of the peers: C runs of ten steps in flight, one that ends is replaced at once.

Standard library only: it is imported inside every peer's environment. Holdfast's loop is benchmarks/steps.py.
"""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import statistics
import string
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.peers.task import STEPS, Task
from benchmarks.processes import CpuMeter

_random = random.Random(7)


def bodies(length: int) -> list[str]:
    """Texts of this length, of which no two neighbours are the same and none compresses to nothing."""
    letters = string.ascii_letters + string.digits
    return ["".join(_random.choices(letters, k=length)) for _ in range(64)]


def percentile_ms(seconds: Sequence[float], percent: int) -> float | None:
    """A percentile in milliseconds; None of fewer than two values."""
    if len(seconds) < 2:
        return None
    return round(statistics.quantiles(seconds, n=100)[percent - 1] * 1000, 2)


def free_ports(count: int) -> list[int]:
    """Ports of this machine at which nobody listens now."""
    # All are bound before any is let go, so that they differ.
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


@dataclass
class StepTimes:
    """How many bodies were entered in a window, and from the end of one body to the entry of the next."""

    steps: int
    p50_ms: float | None
    p99_ms: float | None


class Clock(Protocol):
    """Counts and times the steps of a window."""

    async def begin(self) -> None:
        """Starts the window."""

    async def end(self) -> StepTimes:
        """Ends it."""


@dataclass
class StepClock:
    """The clock of bodies in this process; each body calls `entered` and `left`, a run's end `ended`."""

    _left_at: dict[int, float] = field(default_factory=dict)
    _gaps: list[float] = field(default_factory=list)
    _steps: int = 0

    def entered(self, run: int) -> None:
        """A body of the run begins."""
        self._note_gap(self._left_at.get(run))

    def left(self, run: int) -> None:
        """A body of the run is through."""
        self._steps += 1
        self._left_at[run] = time.perf_counter()

    def ended(self, run: int) -> None:
        """The run's end is known to who started it."""
        self._note_gap(self._left_at.pop(run, None))

    def _note_gap(self, since: float | None) -> None:
        if since is not None:
            self._gaps.append(time.perf_counter() - since)

    async def begin(self) -> None:
        """Forgets what was before the window."""
        self._gaps.clear()
        self._steps = 0

    async def end(self) -> StepTimes:
        """What was in the window."""
        return StepTimes(self._steps, percentile_ms(self._gaps, 50), percentile_ms(self._gaps, 99))


class Counters(Protocol):
    """What the database wrote, as totals that only grow."""

    def read(self) -> Mapping[str, float]:
        """The totals now."""


async def closed_loop(
    task: Task,
    one_run: Callable[[int], Awaitable[None]],
    clock: Clock,
    processes: Mapping[str, int],
    counters: Counters | None = None,
) -> dict[str, Any]:
    """Keeps `task.concurrency` runs in flight and measures after the warm-up.

    Args:
        task: How many and how long.
        one_run: Runs the run with this number from its start to its result.
        clock: Times the steps.
        processes: Whose CPU is counted, by name.
        counters: What the database wrote, when the system uses PostgreSQL.

    Returns:
        The row, without its labels.
    """
    run_seconds: list[float] = []
    next_run = 0

    async def lane() -> None:
        nonlocal next_run
        while True:
            next_run += 1
            began = time.perf_counter()
            await one_run(next_run)
            run_seconds.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as lanes:
        tasks = [lanes.create_task(lane()) for _ in range(task.concurrency)]
        await asyncio.sleep(task.warm_up)
        gc.collect()
        meter = CpuMeter(processes)
        written = counters.read() if counters else {}
        run_seconds.clear()
        meter.start()
        await clock.begin()
        began = time.perf_counter()
        await asyncio.sleep(task.seconds)
        took = time.perf_counter() - began
        times = await clock.end()
        cpu = meter.stop()
        row = {
            **steps_row(times.steps, took, cpu),
            # Of the whole run, its start and the news of its end included, as Holdfast's is.
            "step_p50_ms": percentile_ms([run / STEPS for run in run_seconds], 50),
            "gap_p50_ms": times.p50_ms,
            "gap_p99_ms": times.p99_ms,
            "run_p50_ms": percentile_ms(run_seconds, 50),
            "run_p99_ms": percentile_ms(run_seconds, 99),
        }
        if counters:
            row |= per_step(written, counters.read(), times.steps)
        for lane_task in tasks:
            lane_task.cancel()
    return row


def steps_row(steps: int, seconds: float, cpu_seconds: Mapping[str, float]) -> dict[str, Any]:
    """Rate and CPU of so many steps."""
    per_thousand = {name: round(value * 1000 / max(steps, 1), 3) for name, value in cpu_seconds.items()}
    return {
        "steps_per_s": round(steps / seconds, 1),
        "cpu_s_per_1000_steps": round(sum(per_thousand.values()), 3),
        "of_it": per_thousand,
    }


def per_step(before: Mapping[str, float], after: Mapping[str, float], steps: int) -> dict[str, float]:
    """The growth of each counter by step."""
    return {f"{name}_per_step": round((after[name] - before[name]) / max(steps, 1), 3) for name in after}
