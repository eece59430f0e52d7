"""Does a step cost more in a long run, or in a database that holds a lot?

`python -m benchmarks.growth --help`. On PostgreSQL, through the whole suite. A run's 1,000th step is compared with its
own 10th; the closed loop of `make bench` on a database with a million journal rows is compared with the same loop on
an empty one, in turns. More than 1 means that growth made it slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psycopg
from google.protobuf import json_format
from psycopg.sql import SQL, Composable, Identifier, Placeholder

from benchmarks.peers.figures import spread
from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.server import Postgres, postgres
from benchmarks.steps import closed_loop
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.runs import RunFailed
from holdfast.testing import Suite
from services.shared.seals import opened

CHECKOUT: Final = Path(__file__).resolve().parents[1]
EARLY_STEP: Final = 10
LATE_STEP: Final = 1_000
# A step alone is mostly noise: so many that begin with the 10th and with the 1,000th.
WINDOW: Final = 200
# What follows a run, trace above all, is a moment behind it. So runs come one after the other, and the first of each
# lane, which begins while nobody else works, is left out.
MEASURED_RUNS: Final = 10
_CLONES: Final = 5_000

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def measure_long_runs(suite: Suite, connection: Connection, concurrency: int) -> list[dict[str, Any]]:
    """Time of a late step over that of an early one, in runs of more than a thousand steps: alone and together."""
    definition = {
        "name": "long",
        "model": {"provider": "scripted", "script": {"turns": [{"tool_calls": [{"tool": "noop"}]}], "loop": True}},
        "tools": [{"name": "noop", "builtin": {"name": "noop"}}],
        "limits": {"max_steps": LATE_STEP + WINDOW + 10},
    }
    rows: list[dict[str, Any]] = []
    async with suite.client(timeout=60) as client:
        await client.apply(json_format.ParseDict(definition, agent_pb2.AgentSpec()))
        for together in dict.fromkeys((1, concurrency)):
            ids: list[str] = []

            async def lane(together: int = together, ids: list[str] = ids) -> None:
                for number in range(1 + max(2, MEASURED_RUNS // together)):
                    run = await client.start("long", "go")
                    if number:
                        ids.append(run.id)
                    with suppress(RunFailed):
                        # It ends at its limit of steps.
                        await run.result()

            await asyncio.gather(*(lane() for _ in range(together)))
            early, late = [], []
            for run_id in ids:
                times = await _step_times(connection, run_id)
                early.append((times[EARLY_STEP + WINDOW] - times[EARLY_STEP]) / WINDOW)
                late.append((times[LATE_STEP + WINDOW] - times[LATE_STEP]) / WINDOW)
            rows.append(
                {
                    "measure": "long runs",
                    "runs": together,
                    "early_step_ms": round(statistics.median(early) * 1000, 2),
                    "late_step_ms": round(statistics.median(late) * 1000, 2),
                    "late_over_early": round(statistics.median(late) / statistics.median(early), 2),
                }
            )
    return rows


async def _step_times(connection: Connection, run_id: str) -> dict[int, float]:
    """When the result of each step was stored."""
    found = await connection.execute("SELECT at, body FROM state.journal WHERE run_id = %s ORDER BY seq", (run_id,))
    return {
        change.step_finished.step: at.timestamp()
        async for at, body in found
        for change in run_pb2.Event.FromString(opened(body)).changes
        if change.WhichOneof("kind") == "step_finished"
    }


# ----------------------------------------------------------------------------------------------------- a full database


async def fill(connection: Connection, rows: int) -> int:
    """Copies an ended run of the loop until the journal has that many rows more, and returns how many it has then.

    The copies stand before everything that the change feed's followers have still to read, as old runs do: trace has
    nothing to catch up with while it is measured.
    """
    template = await (
        await connection.execute(
            "SELECT r.run_id, r.last_seq, (SELECT min(txid)::text::bigint FROM state.journal)"
            " FROM state.runs AS r WHERE r.ended_at IS NOT NULL AND r.agent = 'bench' ORDER BY r.run_id LIMIT 1"
        )
    ).fetchone()
    assert template is not None, "no run has ended yet"
    run_id, events, first_txid = template
    await connection.execute("CREATE TEMP TABLE clones (number int, run_id uuid, session_id uuid)")
    written = 0
    while written < rows:
        await connection.execute("TRUNCATE clones")
        await connection.execute(
            "INSERT INTO clones SELECT n, uuidv7(), uuidv7() FROM generate_series(1, %s) AS n", (_CLONES,)
        )
        for table, of_template in (
            ("sessions", SQL("s.session_id = (SELECT session_id FROM state.runs WHERE run_id = {})")),
            ("runs", SQL("s.run_id = {}")),
            ("journal", SQL("s.run_id = {}")),
        ):
            columns = await _columns(connection, table)
            values: dict[str, Composable] = {name: SQL("s.{}").format(Identifier(name)) for name in columns}
            ids = {"run_id": "run_id", "session_id": "session_id", "last_run_id": "run_id"}
            values |= {name: SQL("c.{}").format(Identifier(of)) for name, of in ids.items() if name in columns}
            if "txid" in columns:
                values["txid"] = SQL("CAST((1 + mod(c.number, {}))::text AS xid8)").format(SQL(str(first_txid)))
            statement = SQL("INSERT INTO {} ({}) SELECT {} FROM {} AS s, clones AS c WHERE {}").format(
                Identifier("state", table),
                SQL(", ").join(map(Identifier, values)),
                SQL(", ").join(values.values()),
                Identifier("state", table),
                of_template.format(Placeholder()),
            )
            await connection.execute(statement, (run_id,))
        written += _CLONES * events
    await connection.execute("DROP TABLE clones")
    for table in ("sessions", "runs", "journal"):
        await connection.execute(SQL("VACUUM ANALYZE {}").format(Identifier("state", table)))
    await connection.execute("CHECKPOINT")
    row = await (await connection.execute("SELECT count(*) FROM state.journal")).fetchone()
    return int(row[0]) if row else 0


async def _columns(connection: Connection, table: str) -> list[str]:
    found = await connection.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'state' AND table_name = %s AND is_generated = 'NEVER'",
        (table,),
    )
    return [str(name) async for (name,) in found]


async def measure_full_database(
    empty: Suite, full: Suite, connection: Connection, server: Postgres, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Steps a second on the empty database over those on the full one, inside the same round."""
    await closed_loop(empty, 4, 1.0, postgres_pid=server.pid)
    began = time.perf_counter()
    held = await fill(connection, arguments.rows)
    print(
        json.dumps({"measure": "fill", "journal_rows": held, "seconds": round(time.perf_counter() - began, 1)}),
        flush=True,
    )
    rates: dict[str, list[float]] = {"empty": [], "full": []}
    for _ in range(arguments.rounds):
        for name, suite in (("empty", empty), ("full", full)):
            found = await closed_loop(suite, arguments.concurrency, arguments.seconds, postgres_pid=server.pid)
            rates[name].append(found.row()["steps_per_s"])
    ratios = spread(one / other for one, other in zip(rates["empty"], rates["full"], strict=True))
    assert ratios is not None
    return {
        "measure": "full database",
        "journal_rows": held,
        "runs": arguments.concurrency,
        "steps_per_s_empty": rates["empty"],
        "steps_per_s_full": rates["full"],
        "empty_over_full": ratios.text(2),
    }


async def main() -> None:
    """Measures and prints one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="journal rows of the full database; 0: leave it out"
    )
    parser.add_argument("--rounds", type=int, default=3, help="loops on each of the two databases")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured seconds of each loop")
    parser.add_argument("--concurrency", type=int, default=32, help="runs in flight")
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".bench", help="folder, for the data of PostgreSQL")
    arguments = parser.parse_args()
    with postgres(arguments.cache / "data") as server:
        counters = WalCounters(server.url)
        for name in ("growth_empty", "growth_full"):
            counters.create_database(name)
        urls = {name: server.database_url(f"growth_{name}") for name in ("empty", "full")}
        async with (
            Suite(database_url=urls["full"], warm=False) as full,
            await psycopg.AsyncConnection.connect(urls["full"], autocommit=True) as connection,
        ):
            # Makes the run that is copied, and warms the suite up.
            await closed_loop(full, 4, 1.0, postgres_pid=server.pid)
            for row in await measure_long_runs(full, connection, arguments.concurrency):
                print(json.dumps(row), flush=True)
            if arguments.rows:
                async with Suite(database_url=urls["empty"], warm=False) as empty:
                    row = await measure_full_database(empty, full, connection, server, arguments)
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
