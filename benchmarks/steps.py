"""Steps a second through the whole suite: runs started over the public API, the real loop, every checkpoint.

One run is eleven steps: five turns of the scripted model that each call the built-in `noop`, and a last answer. C runs
are in flight at any time: one that ends is replaced at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import Any

from google.protobuf import json_format

from benchmarks.peers.workload import bodies
from benchmarks.processes import CpuMeter
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.runs import RunEvent
from holdfast.testing import Suite

TURNS = 5
SAMPLED_RUNS = 50
# Of each turn the model's and the tool's, and at the end the model's last.
STEPS = 2 * TURNS + 1
_SLOW_AGENTS = 32
_PATIENCE_SECONDS = 60.0


def noop_agent(
    body_bytes: int, *, name: str = "bench", delays: Sequence[float] = (0.0,) * (TURNS + 1)
) -> agent_pb2.AgentSpec:
    """An agent of the benchmark.

    Args:
        body_bytes: Length of what each tool is called with, and returns.
        name: Its name.
        delays: How many seconds the model takes in each turn.
    """
    texts = bodies(body_bytes)[:TURNS]
    turns: list[dict[str, Any]] = [
        {"tool_calls": [{"tool": "noop", "arguments": {"text": text} if text else {}}]} for text in texts
    ]
    turns.append({"text": "done"})
    for turn, delay in zip(turns, delays, strict=True):
        if delay:
            turn["delay"] = f"{delay:.3f}s"
    definition = {
        "name": name,
        "model": {"provider": "scripted", "script": {"turns": turns}},
        "tools": [{"name": "noop", "builtin": {"name": "noop"}}],
    }
    return json_format.ParseDict(definition, agent_pb2.AgentSpec())


def slow_agents(body_bytes: int, model_ms: float) -> list[agent_pb2.AgentSpec]:
    """Agents whose models take a random time, from nothing to `model_ms`, in each turn; one agent when that is 0."""
    if not model_ms:
        return [noop_agent(body_bytes)]
    chosen = random.Random(7)
    return [
        noop_agent(
            body_bytes,
            name=f"bench-{number}",
            delays=[chosen.uniform(0.001, model_ms / 1000) for _ in range(TURNS + 1)],
        )
        for number in range(_SLOW_AGENTS)
    ]


@dataclass
class Measured:
    """What one closed loop found.

    Attributes:
        runs: How many were made in the time; one that was in flight at its beginning or its end counts in part, as
            its own time is divided. Many that go at one pace end together, and to count ends would be to count waves.
        seconds: The time.
        run_seconds: How long each run took that ended in the time.
        step_gaps: From the commit of one step to that of the next, of some of the runs, in seconds.
        cpu_seconds: What the processes used.
    """

    runs: float = 0.0
    seconds: float = 0.0
    run_seconds: list[float] = field(default_factory=list)
    step_gaps: list[float] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def row(self, **labels: Any) -> dict[str, Any]:
        """As a line of the report."""
        steps = self.runs * STEPS
        per_thousand = {name: round(value * 1000 / max(steps, 1), 3) for name, value in self.cpu_seconds.items()}
        return {
            **labels,
            "steps_per_s": round(steps / self.seconds, 1),
            # Of the whole run, its acceptance and the news of its end included.
            "step_p50_ms": _milliseconds([seconds / STEPS for seconds in self.run_seconds], 50),
            # Without the run's start and end: what lies between two bodies, as these take no time.
            "gap_p50_ms": _milliseconds(self.step_gaps, 50),
            "gap_p99_ms": _milliseconds(self.step_gaps, 99),
            "run_p50_ms": _milliseconds(self.run_seconds, 50),
            "run_p99_ms": _milliseconds(self.run_seconds, 99),
            "cpu_s_per_1000_steps": round(sum(per_thousand.values()), 3),
            "of_it": per_thousand,
        }


async def closed_loop(
    suite: Suite,
    concurrency: int,
    seconds: float,
    *,
    body_bytes: int = 0,
    model_ms: float = 0.0,
    postgres_pid: int | None = None,
) -> Measured:
    """Keeps `concurrency` runs in flight for some seconds, after a warm-up of the same loop."""
    async with suite.client() as client, client.run_stream() as stream:
        agents = slow_agents(body_bytes, model_ms)
        for agent in agents:
            await client.apply(agent)
        names = cycle([agent.name for agent in agents])
        found = Measured()
        sampled: list[str] = []
        # When each run began and ended that was not over as the measuring began.
        spans: list[tuple[float, float]] = []
        measuring = asyncio.Event()
        is_stopping = False
        in_flight: set[asyncio.Task[None]] = set()

        async def one_run() -> None:
            began = time.perf_counter()
            run = await stream.run(next(names), "go")
            if run.state != run_pb2.RUN_STATE_SUCCEEDED or run.step_count != STEPS:
                raise RuntimeError(f"run {run.run_id} ended as {run_pb2.RunState.Name(run.state)}")
            if measuring.is_set():
                spans.append((began, time.perf_counter()))
                if len(sampled) < SAMPLED_RUNS:
                    sampled.append(run.run_id)

        async def lane() -> None:
            while not is_stopping:
                run = asyncio.create_task(one_run())
                in_flight.add(run)
                run.add_done_callback(in_flight.discard)
                await run

        roots = {name: suite.process_id(name) for name in ("executor", "state", "auth", "trace")}
        if postgres_pid is not None:
            roots["postgres"] = postgres_pid
        roots["client"] = os.getpid()
        meter = CpuMeter(roots)
        # A suite that lost a process would be waited for, for ever.
        async with asyncio.timeout(seconds + _PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(lane())
            await asyncio.sleep(min(2.0, seconds / 2))
            measuring.set()
            meter.start()
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            ended = time.perf_counter()
            found.cpu_seconds = meter.stop()
            # The load stays what it is until those are over of which a part is counted.
            await asyncio.wait(tuple(in_flight))
            is_stopping = True
        found.seconds = ended - began
        found.runs = sum((min(end, ended) - max(start, began)) / (end - start) for start, end in spans if start < ended)
        found.run_seconds = [end - start for start, end in spans if end <= ended]
        for run_id in sampled:
            events = (await client.run(run_id)).events(deltas=False)
            times = [event.time.timestamp() async for event in events if isinstance(event, RunEvent)]
            found.step_gaps.extend(after - before for before, after in pairwise(times[1:]))
    return found


def _milliseconds(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.quantiles(values, n=100)[percent - 1] * 1000, 2)
