"""DBOS Transact for Python: an async workflow of ten steps in one process, started with `start_workflow_async`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import psycopg
import uvloop
from dbos import DBOS, DBOSConfig  # type: ignore[import-not-found]

from benchmarks.peers.executions import BODY_SECONDS, PAUSE_SECONDS, ExecutionLog, recovery_row, wait_until_half
from benchmarks.peers.parking import PARKED_BEFORE, idle_percent, parked_row
from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.task import STEPS, Task, run_program
from benchmarks.peers.workload import StepClock, bodies, closed_loop
from benchmarks.processes import resident_megabytes


def _launch(task: Task) -> None:
    """Configured for speed: a pool as large as its threads, no ping before each use of a connection, no telemetry."""
    config = DBOSConfig(
        name="bench",
        system_database_url=task.database_url.replace("postgresql://", "postgresql+psycopg://"),
        sys_db_pool_size=64,
        max_executor_threads=64,
        db_engine_kwargs={"pool_pre_ping": False},
        log_level="ERROR",
        enable_otlp=False,
        # A process that is started again is the same executor with the same code: it recovers its own workflows.
        executor_id="local",
        application_version="1",
    )
    DBOS(config=config)
    DBOS.launch()


def steps(task: Task) -> dict[str, Any]:
    """Steps a second."""
    clock = StepClock()
    texts = bodies(task.body_bytes)

    async def body(run: int, step: int) -> str:
        clock.entered(run)
        text = texts[(run + step) % len(texts)]
        clock.left(run)
        return text

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def model(run: int, step: int) -> str:
        return await body(run, step)

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def tool(run: int, step: int) -> str:
        return await body(run, step)

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def agent(run: int) -> str:
        answer = ""
        for step in range(1, STEPS + 1):
            answer = await (model if step % 2 else tool)(run, step)
        return answer

    async def one_run(run: int) -> None:
        handle = await DBOS.start_workflow_async(agent, run)
        await handle.get_result()
        clock.ended(run)

    async def measure() -> dict[str, Any]:
        _launch(task)
        processes = {"worker": os.getpid(), "postgres": task.postgres_pid}
        return await closed_loop(task, one_run, clock, processes, WalCounters(task.database_url))

    return uvloop.run(measure())


def recovery(task: Task) -> dict[str, Any]:
    """A process that is killed with all runs half-way, and started again."""
    return asyncio.run(_recovery(task))


async def _recovery(task: Task) -> dict[str, Any]:
    log = ExecutionLog(task.path)
    process = _worker(task, "recovery-first")
    await wait_until_half(log, task.runs)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at_kill = log.counts().total()
    await asyncio.sleep(PAUSE_SECONDS)
    restarted_at = time.perf_counter()
    process = _worker(task, "recovery-again")
    async with (
        asyncio.timeout(task.seconds),
        await psycopg.AsyncConnection.connect(task.database_url, autocommit=True) as connection,
    ):
        while True:
            found = await connection.execute("SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'")
            row = await found.fetchone()
            if row is not None and row[0] >= task.runs:
                break
            await asyncio.sleep(0.02)
    result = recovery_row(task.runs, restarted_at, log, at_kill)
    process.kill()
    return result


def _worker(task: Task, measure: str) -> subprocess.Popen[bytes]:
    argument = replace(task, measure=measure).to_argument()
    return subprocess.Popen([sys.executable, "-m", "benchmarks.peers.systems.dbos", argument], stdin=subprocess.PIPE)


def recovery_worker(task: Task) -> dict[str, Any]:
    """The process that is killed: starts the runs, or finds at its launch that they are not finished."""
    log = ExecutionLog(task.path)
    texts = bodies(task.body_bytes)

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def body(run: int, step: int) -> str:
        log.note(run, step)
        await asyncio.sleep(BODY_SECONDS)
        return texts[step]

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def agent(run: int) -> None:
        for step in range(1, STEPS + 1):
            await body(run, step)

    async def serve() -> None:
        _launch(task)
        if task.measure == "recovery-first":
            await asyncio.gather(*(DBOS.start_workflow_async(agent, run) for run in range(task.runs)))
        await asyncio.Event().wait()

    uvloop.run(serve())
    return {}


def parked(task: Task) -> dict[str, Any]:
    """Workflows that wait in `recv_async` for an approval."""

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def agent(run: int) -> str:
        return str(await DBOS.recv_async("approve", timeout_seconds=3600))

    async def measure() -> dict[str, Any]:
        _launch(task)
        started = 0
        slots = asyncio.Semaphore(32)

        async def park(run: int) -> None:
            nonlocal started
            async with slots:
                await DBOS.start_workflow_async(agent, run)
                started += 1

        await asyncio.gather(*(park(-run) for run in range(1, PARKED_BEFORE + 1)))
        await asyncio.sleep(2)
        started = 0
        before = resident_megabytes(os.getpid())
        began = time.perf_counter()
        try:
            async with asyncio.timeout(task.seconds):
                await asyncio.gather(*(park(run) for run in range(task.runs)))
        except TimeoutError:
            # Slow is a finding as well: as many as could be parked.
            pass
        took = time.perf_counter() - began
        await asyncio.sleep(5)
        grown = {"worker": resident_megabytes(os.getpid()) - before}
        idle = await idle_percent({"worker": os.getpid(), "postgres": task.postgres_pid})
        return parked_row(started, took, grown, idle)

    return uvloop.run(measure())


if __name__ == "__main__":
    run_program(
        {
            "steps": steps,
            "recovery": recovery,
            "recovery-first": recovery_worker,
            "recovery-again": recovery_worker,
            "parked": parked,
        }
    )
