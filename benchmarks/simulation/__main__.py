"""`make simulate`: leases, fairness and wake-ups with 1,000 executors and 1,000,000 waiting runs on a virtual clock.

`python -m benchmarks.simulation --help`. The same seed gives the same figures; only the real time of
statements differs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from benchmarks.simulation.report import plot, tables
from benchmarks.simulation.scenarios import SCENARIOS, Result, Size


def main() -> None:
    """Runs the scenarios and prints and writes what they showed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--executors", type=int, default=Size.executors)
    parser.add_argument("--runs", type=int, default=Size.runs, help="waiting runs; a tenth of them bursts or is due")
    parser.add_argument("--replicas", type=int, default=Size.replicas, help="processes of state")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="default: all")
    parser.add_argument("--output", type=Path, default=Path(".bench"), help="folder for simulation.{md,svg}")
    given = parser.parse_args()
    size = Size(
        executors=given.executors, runs=given.runs, replicas=given.replicas, tenants=max(5, min(1_000, given.executors))
    )
    results = asyncio.run(simulate(size, given.seed, given.scenario or list(SCENARIOS)))
    text = f"Seed {given.seed}, {size.executors:,} executors of {size.slots} slots, {size.runs:,} waiting runs.\n\n"
    text += tables(results) + "\n"
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "simulation.md").write_text(text)
    (given.output / "simulation.svg").write_text(plot(results))
    print(f"The plot: {given.output / 'simulation.svg'}")


async def simulate(size: Size, seed: int, names: list[str]) -> list[Result]:
    """Returns the results of scenarios, one after the other."""
    results = []
    for name in names:
        began = time.perf_counter()
        results.append(await SCENARIOS[name](size, seed))
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
