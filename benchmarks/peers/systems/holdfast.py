"""Holdfast: its four services on the same PostgreSQL, runs started over the public API, trace following."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import uvloop
from google.protobuf import json_format

from benchmarks.peers.counting_server import counting_server
from benchmarks.peers.executions import BODY_SECONDS, PAUSE_SECONDS, ExecutionLog, recovery_row
from benchmarks.peers.parking import PARKED_BEFORE, idle_percent, parked_row
from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.task import STEPS, Task, run_program
from benchmarks.peers.workload import bodies, per_step
from benchmarks.processes import resident_megabytes
from benchmarks.steps import closed_loop
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.client import Client
from holdfast.testing import Suite
from services.shared.seals import opened

_SERVICES = ("executor", "state", "auth", "trace")
_TURNS = STEPS // 2
# Rows in a commit of `limits`.
_BATCH = 100
# Backends report their syncs once a second.
_REPORTED_SECONDS = 1.5


def steps(task: Task) -> dict[str, Any]:
    """Steps a second, in the loop of `make bench`.

    What PostgreSQL wrote is counted over the whole loop, its warm-up and its end included, by the steps that are in
    the journal then; WAL of trace's tables is in it.
    """

    async def measure() -> dict[str, Any]:
        async with Suite(database_url=task.database_url, warm=False) as suite:
            counters = WalCounters(task.database_url)
            counters.checkpoint()
            before, shares = counters.read(), counters.wal_bytes_by_application("holdfast-")
            found = await closed_loop(
                suite, task.concurrency, task.seconds, body_bytes=task.body_bytes, postgres_pid=task.postgres_pid
            )
            await asyncio.sleep(_REPORTED_SECONDS)
            after, grown = counters.read(), counters.wal_bytes_by_application("holdfast-")
            executed = await _count(task, "sum(step_count)", "true")
            row = found.row() | per_step(before, after, executed)
            row["wal_bytes_of_it"] = per_step({**dict.fromkeys(grown, 0.0), **shares}, grown, executed)
            return row

    return uvloop.run(measure())


def recovery(task: Task) -> dict[str, Any]:
    """The only executor is killed with all runs half-way, and started again.

    A model step takes its 50 ms in the scripted model, a tool step in an `http` tool that is declared idempotent, as
    the peers' steps have to be. The endpoint counts calls; repeated model steps are counted in the journal.
    """
    return asyncio.run(_recovery(task))


async def _recovery(task: Task) -> dict[str, Any]:
    log = ExecutionLog(task.path)
    async with (
        # Half of the calls: each step of the model before them has been made as well.
        counting_server(log, task.runs * _TURNS // 2) as (url, is_half),
        Suite(database_url=task.database_url, warm=False) as suite,
        suite.client() as client,
    ):
        turn = {"tool_calls": [{"tool": "work"}], "delay": f"{BODY_SECONDS}s"}
        # The answer after the ten steps takes no time.
        definition = {
            "name": "bench",
            "model": {"provider": "scripted", "script": {"turns": [turn] * _TURNS + [{"text": "done"}]}},
            "tools": [{"name": "work", "http": {"url": url}, "effect": "EFFECT_CLASS_IDEMPOTENT"}],
        }
        await client.apply(json_format.ParseDict(definition, agent_pb2.AgentSpec()))
        await asyncio.gather(*(client.start("bench", "go") for _ in range(task.runs)))
        async with asyncio.timeout(task.seconds):
            await is_half.wait()
        await suite.kill("executor")
        at_kill = 2 * log.counts().total()
        await asyncio.sleep(PAUSE_SECONDS)
        restarted_at = time.perf_counter()
        restart = asyncio.create_task(suite.restart("executor"))
        async with asyncio.timeout(task.seconds):
            succeeded = f"state = {run_pb2.RUN_STATE_SUCCEEDED}"
            # As with the peers, the ends are looked for in the database.
            while await _count(task, "count(*)", succeeded) < task.runs:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        recovered_at = time.perf_counter()
        await restart
        await _note_model_steps(task, log)
        return recovery_row(task.runs, restarted_at, log, at_kill, recovered_at=recovered_at)


async def _note_model_steps(task: Task, log: ExecutionLog) -> None:
    """Adds each attempt of a model's step to the log, but for the answers at the end, which the peers don't have."""
    async with await psycopg.AsyncConnection.connect(task.database_url) as connection:
        found = await connection.execute("SELECT run_id, body FROM state.journal ORDER BY run_id, seq")
        models: set[tuple[object, int]] = set()
        async for run_id, body in found:
            for change in run_pb2.Event.FromString(opened(body)).changes:
                match change.WhichOneof("kind"):
                    case "step_started" if change.step_started.kind == run_pb2.STEP_KIND_MODEL:
                        if change.step_started.step <= STEPS:
                            models.add((run_id, change.step_started.step))
                            log.note(run_id, change.step_started.step)
                    case "attempt_started" if (run_id, change.attempt_started.step) in models:
                        log.note(run_id, change.attempt_started.step)


def parked(task: Task) -> dict[str, Any]:
    """Runs that wait for a person's answer."""
    question = {"tool": "ask_user", "arguments": {"question": "Approve?"}}
    return _parked(task, question, {"name": "ask_user", "builtin": {"name": "ask_user"}})


def approvals(task: Task) -> dict[str, Any]:
    """Runs that wait for a person's approval of a call, by a condition on its arguments."""
    payment = {"tool": "pay", "arguments": {"to": "ada", "amount": 500}}
    policy = {"condition": "args.amount > 100"}
    return _parked(task, payment, {"name": "pay", "builtin": {"name": "noop"}, "approval": policy})


def _parked(task: Task, call: dict[str, Any], tool: dict[str, Any]) -> dict[str, Any]:
    async def measure() -> dict[str, Any]:
        async with Suite(database_url=task.database_url, warm=False) as suite, suite.client() as client:
            definition = {
                "name": "bench",
                "model": {"provider": "scripted", "script": {"turns": [{"tool_calls": [call]}, {"text": "done"}]}},
                "tools": [tool],
            }
            await client.apply(json_format.ParseDict(definition, agent_pb2.AgentSpec()))
            await _park(task, client, PARKED_BEFORE, PARKED_BEFORE, time.perf_counter() + task.seconds)
            processes = {name: suite.process_id(name) for name in _SERVICES}
            await asyncio.sleep(2)
            before = {name: resident_megabytes(processes[name]) for name in ("executor", "state")}
            began = time.perf_counter()
            parked_runs = await _park(task, client, task.runs, PARKED_BEFORE + task.runs, began + task.seconds)
            took = time.perf_counter() - began
            await asyncio.sleep(5)
            grown = {name: resident_megabytes(processes[name]) - before[name] for name in before}
            idle = await idle_percent({**processes, "postgres": task.postgres_pid})
            return parked_row(parked_runs - PARKED_BEFORE, took, grown, idle)

    return uvloop.run(measure())


async def _park(task: Task, client: Client, runs: int, expected: int, until: float) -> int:
    """Starts so many runs and returns how many wait: all that are expected, or what was reached in time."""
    slots = asyncio.Semaphore(64)

    async def start() -> None:
        async with slots:
            await client.start("bench", "go")

    waiting = 0
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.perf_counter()):
            await asyncio.gather(*(start() for _ in range(runs)))
            while waiting < expected:
                waiting = await _count(task, "count(*)", f"state = {run_pb2.RUN_STATE_WAITING}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        waiting = await _count(task, "count(*)", f"state = {run_pb2.RUN_STATE_WAITING}")
    return waiting


async def _count(task: Task, what: str, condition: str) -> int:
    async with await psycopg.AsyncConnection.connect(task.database_url, autocommit=True) as connection:
        found = await connection.execute(f"SELECT {what} FROM state.runs WHERE {condition}".encode())
        row = await found.fetchone()
        return int(row[0] or 0) if row else 0


def limits(task: Task) -> dict[str, Any]:
    """Rows a second of psycopg alone, one connection, 100 rows in a commit: what the database allows in Python."""

    async def measure() -> dict[str, Any]:
        counters = WalCounters(task.database_url)
        row: dict[str, Any] = {}
        for length in dict.fromkeys((task.body_bytes, 1024)):
            counters.checkpoint()
            row[f"rows_per_s_of_{length}_bytes"] = round(await _unnest_rows_per_second(task, bodies(length)))
        return row

    return uvloop.run(measure())


async def _unnest_rows_per_second(task: Task, texts: Sequence[str]) -> float:
    numbers = list(range(_BATCH))
    async with await psycopg.AsyncConnection.connect(task.database_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE bare (id bigserial PRIMARY KEY, run int, seq int, body text)")
        written, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < task.seconds:
            await connection.execute(
                "INSERT INTO bare (run, seq, body) SELECT * FROM unnest(%b::int[], %b::int[], %b::text[])",
                (numbers, numbers, [texts[(written + number) % len(texts)] for number in numbers]),
                prepare=True,
            )
            written += _BATCH
        await connection.execute("DROP TABLE bare")
    return written / took


if __name__ == "__main__":
    run_program({"steps": steps, "recovery": recovery, "parked": parked, "approvals": approvals, "limits": limits})
