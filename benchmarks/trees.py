"""Runs a second that call another agent: a closed loop on PostgreSQL, through the whole suite.

`python -m benchmarks.trees --help`. A run's model calls another agent in its first turn, whose model answers at once,
and answers in its second. One that ends is replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from benchmarks.peers.server import Postgres, postgres
from benchmarks.processes import CpuMeter
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.testing import Suite

CHECKOUT: Final = Path(__file__).resolve().parents[1]
SERVICES: Final = ("executor", "state", "auth", "trace")
WARM_UP_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 60.0
# As many as a run may start unless its agent says otherwise.
MAX_CALLS: Final = 50


def agents(calls: int) -> list[agent_pb2.AgentSpec]:
    """The agent that is called, and the one that calls it, so many times in one turn."""
    turns: list[dict[str, Any]] = [
        {"tool_calls": [{"tool": "leaf", "arguments": {"input": f"part {number}"}} for number in range(calls)]},
        {"text": "done"},
    ]
    definitions: list[dict[str, Any]] = [
        {"name": "leaf", "model": {"provider": "scripted", "script": {"turns": [{"text": "42"}]}}},
        {
            "name": "root",
            "model": {"provider": "scripted", "script": {"turns": turns}},
            "tools": [{"name": "leaf", "agent": {"agent": "leaf"}}],
        },
    ]
    return [json_format.ParseDict(definition, agent_pb2.AgentSpec()) for definition in definitions]


async def measure(server: Postgres, concurrency: int, seconds: float, calls: int) -> dict[str, Any]:
    """Keeps so many of them in flight for some seconds, after a warm-up."""
    async with Suite(database_url=server.url, warm=False) as suite, suite.client() as client:
        for spec in agents(calls):
            await client.apply(spec)
        ended: list[tuple[float, float]] = []
        is_stopping = False
        async with client.run_stream() as stream:

            async def lane() -> None:
                while not is_stopping:
                    began = time.perf_counter()
                    run = await stream.run("root", "go")
                    if run.state != run_pb2.RUN_STATE_SUCCEEDED:
                        raise RuntimeError(f"run {run.run_id} ended as {run_pb2.RunState.Name(run.state)}")
                    ended.append((began, time.perf_counter()))

            roots = {name: suite.process_id(name) for name in SERVICES}
            meter = CpuMeter({**roots, "postgres": server.pid, "client": os.getpid()})
            async with asyncio.timeout(WARM_UP_SECONDS + seconds + PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
                for _ in range(concurrency):
                    tasks.create_task(lane())
                await asyncio.sleep(WARM_UP_SECONDS)
                ended.clear()
                meter.start()
                began = time.perf_counter()
                await asyncio.sleep(seconds)
                took = time.perf_counter() - began
                cpu = meter.stop()
                measured = list(ended)
                is_stopping = True
    trees = len(measured)
    return {
        "concurrency": concurrency,
        "calls": calls,
        "trees_per_s": round(trees / took, 1),
        "tree_p50_ms": round(statistics.median(end - start for start, end in measured) * 1000, 1) if trees else None,
        "cpu_ms_per_tree": {name: round(value * 1000 / max(trees, 1), 2) for name, value in cpu.items()},
    }


def counts(text: str) -> list[int]:
    """Reads whole numbers above 0.

    Raises:
        ArgumentTypeError: There is something else.
    """
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers above 0, comma-separated")
    return numbers


async def main() -> None:
    """Measures and prints one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--concurrency", type=counts, default=[1, 32], help="runs in flight, comma-separated: 1,32")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of each closed loop")
    parser.add_argument(
        "--calls",
        type=int,
        choices=range(1, MAX_CALLS + 1),
        default=1,
        metavar=f"1…{MAX_CALLS}",
        help="calls of the other agent in one turn",
    )
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".bench", help="folder of the database")
    arguments = parser.parse_args()
    for concurrency in arguments.concurrency:
        with postgres(arguments.cache / "data") as server:
            print(json.dumps(await measure(server, concurrency, arguments.seconds, arguments.calls)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
