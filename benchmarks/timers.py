"""Many timers due in the same minute: how long until all have fired, and how late each was.

`python -m benchmarks.timers --help`. On PostgreSQL, through the whole suite: each run's model calls `sleep_until`, the
run becomes rows, and it goes on when its time has come. Late is the step's result in the journal after the due time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from google.protobuf import json_format

from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.server import Postgres, postgres
from benchmarks.peers.workload import percentile_ms
from benchmarks.processes import CpuMeter
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.client import Client
from holdfast.testing import Suite
from services.shared.seals import opened

CHECKOUT: Final = Path(__file__).resolve().parents[1]
SERVICES: Final = ("executor", "state", "auth", "trace")
REHEARSAL: Final = 500
FIRE_SECONDS: Final = 900.0

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def sleeper(name: str, due: datetime) -> agent_pb2.AgentSpec:
    """An agent whose runs sleep until then."""
    sleep = {"tool": "sleep_until", "arguments": {"time": due.isoformat()}}
    definition = {
        "name": name,
        "model": {"provider": "scripted", "script": {"turns": [{"tool_calls": [sleep]}, {"text": "done"}]}},
        "tools": [{"name": "sleep_until", "builtin": {"name": "sleep_until"}}],
    }
    return json_format.ParseDict(definition, agent_pb2.AgentSpec())


async def park(client: Client, connection: Connection, agents: list[str], timers: int) -> float:
    """Starts so many runs, spread over the agents, and returns the seconds until the last one waits."""
    before = await count(connection, run_pb2.RUN_STATE_WAITING)
    began = time.perf_counter()
    async with client.run_stream() as stream:
        # In portions: a task for each of 100,000 timers would be memory of this process only.
        for first in range(0, timers, 1_000):
            numbers = range(first, min(first + 1_000, timers))
            await asyncio.gather(*(stream.start(agents[number % len(agents)], "go") for number in numbers))
    async with asyncio.timeout(FIRE_SECONDS):
        # The database is asked and not the suite, which has other things to do.
        while await count(connection, run_pb2.RUN_STATE_WAITING) < before + timers:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return time.perf_counter() - began


async def count(connection: Connection, state: int) -> int:
    """How many runs are in this state."""
    row = await (await connection.execute("SELECT count(*) FROM state.runs WHERE state = %s", (state,))).fetchone()
    return int(row[0]) if row else 0


async def measure(suite: Suite, server: Postgres, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Parks the timers, lets them fire, and reads from the journal when each did."""
    async with (
        suite.client(timeout=60) as client,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
    ):
        # How fast runs can be parked decides how far ahead the due times have to be.
        await client.apply(sleeper("rehearsal", datetime.now(UTC) + timedelta(days=1)))
        # The first ones begin in a suite that has only just started.
        await park(client, connection, ["rehearsal"], REHEARSAL)
        rate = REHEARSAL / await park(client, connection, ["rehearsal"], REHEARSAL)
        first_due = datetime.now(UTC) + timedelta(seconds=10 + 1.5 * arguments.timers / rate)
        dues = {
            f"sleeper-{second}": first_due + timedelta(seconds=second) for second in range(max(1, arguments.spread))
        }
        for name, due in dues.items():
            await client.apply(sleeper(name, due))
        parked = await park(client, connection, list(dues), arguments.timers)
        early = (first_due - datetime.now(UTC)).total_seconds()
        if early < 0:
            raise SystemExit(f"parking took {parked:.0f} s, {-early:.0f} s longer than planned: nothing measured")
        await asyncio.sleep(max(0.0, early - 1))
        meter = CpuMeter({**{name: suite.process_id(name) for name in SERVICES}, "postgres": server.pid})
        meter.start()
        async with asyncio.timeout(FIRE_SECONDS):
            # The rehearsal's sleep on. Seldom: each look reads all runs, and would be a part of what is measured.
            while await count(connection, run_pb2.RUN_STATE_SUCCEEDED) < arguments.timers:  # noqa: ASYNC110
                await asyncio.sleep(5.0)
        cpu = meter.stop()
        fired = await _fired_at(connection, dues)
    late = [at - dues[agent].timestamp() for agent, at in fired]
    return {
        "timers": len(fired),
        "due_within_s": max(1, arguments.spread),
        "parked_per_s": round(arguments.timers / parked, 1),
        "all_fired_after_s": round(max(at for _, at in fired) - first_due.timestamp(), 1),
        "late_p50_ms": percentile_ms(late, 50),
        "late_p99_ms": percentile_ms(late, 99),
        "late_max_ms": round(max(late) * 1000, 1),
        "early": sum(seconds < 0 for seconds in late),
        "cpu_s_per_1000_timers": {name: round(1000 * used / len(fired), 3) for name, used in cpu.items()},
    }


async def _fired_at(connection: Connection, dues: dict[str, datetime]) -> list[tuple[str, float]]:
    """Agent and time of each sleep's result."""
    query = (
        "SELECT r.agent, j.at, j.body FROM state.runs AS r JOIN state.journal AS j USING (run_id)"
        " WHERE r.agent = ANY(%s) AND j.seq > 1"
    )
    return [
        (agent, at.timestamp())
        async for agent, at, body in await connection.execute(query, (list(dues),))
        for change in run_pb2.Event.FromString(opened(body)).changes
        # Step 1 is the model's that asks for the sleep, step 2 the sleep.
        if change.WhichOneof("kind") == "step_finished" and change.step_finished.step == 2
    ]


async def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timers", type=int, default=10_000, help="how many runs sleep (default 10,000)")
    parser.add_argument("--spread", type=int, default=60, help="due evenly over so many seconds; 0 is all at once")
    parser.add_argument("--executors", type=int, default=1, help="executors that go on with the runs")
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".bench", help="folder, for the data of PostgreSQL")
    arguments = parser.parse_args()
    with postgres(arguments.cache / "data") as server:
        WalCounters(server.url).create_database("timers")
        url = server.database_url("timers")
        async with Suite(database_url=url, executors=arguments.executors, warm=False) as suite:
            print(json.dumps(await measure(suite, server, url, arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
