"""`make bench-peers`: Holdfast beside DBOS, LangGraph and Restate; docs/benchmarks.md says how to read it.

Every measurement is a process of its own with a time limit; a peer that fails is reported as missing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.children import MeasurementFailed, measure
from benchmarks.peers.environments import NotInstalled, python_of, restate_server
from benchmarks.peers.figures import Row, limit_table, median_table, ratio_table
from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.server import Postgres, postgres
from benchmarks.peers.task import Task

CHECKOUT: Final = Path(__file__).resolve().parents[2]
SYSTEMS: Final = ("holdfast", "dbos", "langgraph", "restate")
MEASURES: Final = ("steps", "limits", "recovery", "parked", "approvals")
# Whom a measure is taken of; nothing resumes a thread of LangGraph by itself.
TAKEN_OF: Final = {
    "steps": SYSTEMS,
    "limits": ("holdfast",),
    "recovery": ("holdfast", "dbos", "restate"),
    "parked": SYSTEMS,
    "approvals": ("holdfast",),
}
RECOVERY_RUNS: Final = 200


@dataclass(frozen=True, slots=True)
class Installed:
    """A system that can be measured here."""

    name: str
    python: Path
    restate_server: str = ""


def install(names: Sequence[str], cache: Path, report: Callable[[Row], None]) -> list[Installed]:
    """Returns those of the systems that could be installed, and reports the others."""
    installed: list[Installed] = []
    for name in names:
        try:
            server = str(restate_server(cache)) if name == "restate" else ""
            installed.append(Installed(name, python_of(name, cache), server))
        except NotInstalled as error:
            report({"measure": "install", "system": name, "missing": str(error)})
    return installed


def seconds_of(system: str, concurrency: int, seconds: float) -> tuple[float, float]:
    """Warm-up and measured seconds: longer where a run takes long, so that runs begin and end in both."""
    if system in ("dbos", "langgraph"):
        if concurrency >= 128:
            return 2.0 * seconds, 4.0 * seconds
        if concurrency >= 16:
            return seconds, 1.5 * seconds
    return max(1.5, seconds / 2), seconds


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    """What is measured, in its order: measure, round, system, runs in flight."""
    concurrencies = [int(text) for text in arguments.concurrency.split(",")]
    for number in range(arguments.rounds):
        for name in arguments.measures.split(","):
            loads = concurrencies if name == "steps" else [0]
            # Systems innermost: what a ratio compares stands side by side in time.
            for concurrency, system in itertools.product(loads, arguments.systems.split(",")):
                if system in TAKEN_OF[name]:
                    yield name, number, system, concurrency


def task_of(
    name: str, system: Installed, concurrency: int, server: Postgres, folder: str, arguments: argparse.Namespace
) -> tuple[Task, float]:
    """The task of one cell and its time limit."""
    warm_up, seconds = seconds_of(system.name, concurrency, arguments.seconds)
    if name in ("recovery", "parked", "approvals"):
        # Their own time limit: as long as the slowest peer was seen to need, with room.
        seconds = 90.0 if name == "recovery" else 240.0
    task = Task(
        measure=name,
        concurrency=concurrency,
        seconds=seconds,
        warm_up=warm_up,
        body_bytes=arguments.body_bytes,
        runs=RECOVERY_RUNS if name == "recovery" else arguments.parked_runs,
        database_url=server.database_url(f"bench_{system.name}"),
        postgres_pid=server.pid,
        folder=folder,
        restate_server=system.restate_server,
    )
    return task, 90 + 3 * (warm_up + seconds)


async def run_rounds(arguments: argparse.Namespace, report: Callable[[Row], None]) -> None:
    """Takes every measure of every system, round by round."""
    cache: Path = arguments.cache
    # What is measured and thrown away lies beside the environments: on a disk, as databases are.
    scratch = cache / "data"
    installed = {system.name: system for system in install(arguments.systems.split(","), cache, report)}
    with postgres(scratch) as server:
        counters = WalCounters(server.url)
        for name, number, system, concurrency in cells(arguments):
            if system not in installed:
                continue
            labels = {"measure": name, "system": system, "round": number, "concurrency": concurrency}
            counters.create_database(f"bench_{system}")
            with tempfile.TemporaryDirectory(prefix=f"{system}-", dir=scratch, ignore_cleanup_errors=True) as folder:
                task, limit = task_of(name, installed[system], concurrency, server, folder, arguments)
                try:
                    python, module = installed[system].python, f"benchmarks.peers.systems.{system}"
                    row = await measure(python, module, task.to_argument(), limit=limit)
                    report({**labels, "body_bytes": task.body_bytes, **row})
                except MeasurementFailed as error:
                    report({**labels, "missing": str(error)})
            counters.drop_database(f"bench_{system}")


def print_tables(rows: Sequence[Row]) -> None:
    """Medians over the rounds, and the medians of the ratios inside a round."""
    steps = [row for row in rows if row["measure"] == "steps" and "missing" not in row]
    if steps:
        print(f"\n10 durable steps a run, in a closed loop: medians (range)\n\n{median_table(steps)}")
        if len({row["system"] for row in steps}) > 1:
            print(f"\nHoldfast ahead by the factor of, inside the same round: medians (range)\n\n{ratio_table(steps)}")
    limits = [row for row in rows if row["measure"] == "limits" and "missing" not in row]
    if limits and steps:
        print(f"\nHoldfast's steps/s over the rows/s of psycopg alone\n\n{limit_table(steps, limits)}")
    for name in MEASURES[1:]:
        found = [row for row in rows if row["measure"] == name and "missing" not in row]
        if found:
            print(f"\n{name}\n")
            for row in found:
                print("  " + json.dumps({key: row[key] for key in row if key not in ("measure", "concurrency")}))
    for row in rows:
        if "missing" in row:
            labels = " ".join(f"{name} {row[name]}" for name in row if name != "missing")
            print(f"\nmissing: {labels}: {row['missing']}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--concurrency", default="1,32,256", help="runs in flight, comma-separated")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured seconds of a closed loop (default 4)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated, in the order of measuring")
    parser.add_argument("--measures", default="steps,limits", help=f"comma-separated, of {', '.join(MEASURES)}")
    parser.add_argument("--body-bytes", type=int, default=0, help="length of each step's result (default 0)")
    parser.add_argument("--parked-runs", type=int, default=10_000, help="how many runs `parked` and `approvals` park")
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".bench", help="folder of the peers' environments")
    parser.add_argument("--output", default="", help="file of the raw rows (default: a new one in the cache)")
    parser.add_argument("--tables", default="", metavar="FILE", help="only print the tables of an earlier run's rows")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    for name, known in (("systems", SYSTEMS), ("measures", MEASURES)):
        unknown = set(getattr(arguments, name).split(",")) - set(known)
        if unknown:
            parser.error(f"--{name}: unknown: {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    """Measures, writes the raw rows and prints the tables, also of what there is when it is interrupted."""
    arguments = parse_arguments()
    if arguments.tables:
        print_tables([json.loads(line) for line in Path(arguments.tables).read_text().splitlines()])
        return
    # SIGTERM ends it as Ctrl-C does: with everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = Path(arguments.cache, "results")
    results.mkdir(parents=True, exist_ok=True)
    output = Path(arguments.output or results / f"peers-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl")
    rows: list[Row] = []
    code = 0

    with open(output, "a") as file:

        def report(row: dict[str, Any]) -> None:
            rows.append(row)
            line = json.dumps(row)
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()

        try:
            asyncio.run(run_rounds(arguments, report))
        except KeyboardInterrupt:
            print("\ninterrupted", flush=True)
            code = 130
    print_tables(rows)
    print(f"\nraw rows: {output}")
    sys.exit(code)


if __name__ == "__main__":
    main()
