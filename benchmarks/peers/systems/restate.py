"""Restate: its server with two partitions, a handler of ten `ctx.run` under hypercorn, and a client of the ingress."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp  # type: ignore[import-not-found]
import restate  # type: ignore[import-not-found]
import uvloop
from hypercorn.asyncio import serve  # type: ignore[import-not-found]
from hypercorn.config import Config  # type: ignore[import-not-found]

from benchmarks.peers.executions import BODY_SECONDS, PAUSE_SECONDS, ExecutionLog, recovery_row, wait_until_half
from benchmarks.peers.parking import PARKED_BEFORE, idle_percent, parked_row
from benchmarks.peers.task import STEPS, Task, run_program
from benchmarks.peers.workload import StepClock, StepTimes, bodies, closed_loop, free_ports
from benchmarks.processes import resident_megabytes

_UNLIMITED = 2**31 - 1
_READY_SECONDS = 40.0
# The worker's port: the driver takes a free one and hands it on.
_WORKER_PORT = "BENCH_WORKER_PORT"


# ------------------------------------------------------------------------------------------------------- the worker


def _serve(service: Any, control: Callable[[], Coroutine[Any, Any, None]] | None = None) -> dict[str, Any]:
    async def main() -> None:
        config = Config()
        config.bind = [f"127.0.0.1:{os.environ[_WORKER_PORT]}"]
        config.h2_max_concurrent_streams = _UNLIMITED
        config.keep_alive_max_requests = _UNLIMITED
        config.keep_alive_timeout = _UNLIMITED
        config.accesslog = config.errorlog = None
        async with asyncio.TaskGroup() as tasks:
            if control is not None:
                tasks.create_task(control())
            # A trigger that never comes: the SDK takes SIGTERM for itself, so that the process is killed instead.
            tasks.create_task(serve(restate.app(services=[service]), config, shutdown_trigger=asyncio.Event().wait))

    uvloop.run(main())
    return {}


def steps_worker(task: Task) -> dict[str, Any]:
    """Ten no-op bodies a run; two signals begin and end the window."""
    service = restate.Service("agent")
    clock = StepClock()
    texts = bodies(task.body_bytes)

    async def body(run: int, step: int) -> str:
        clock.entered(run)
        text = texts[(run + step) % len(texts)]
        clock.left(run)
        return text

    @service.handler()  # type: ignore[untyped-decorator]
    async def run(ctx: restate.Context, number: int) -> str:
        answer = ""
        for step in range(1, STEPS + 1):
            answer = await ctx.run_typed("model" if step % 2 else "tool", body, run=number, step=step)
        clock.ended(number)
        return answer

    async def control() -> None:
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, signals.put_nowait, number)
        while True:
            if await signals.get() == signal.SIGUSR1:
                await clock.begin()
            else:
                times = await clock.end()
                print(json.dumps([times.steps, times.p50_ms, times.p99_ms]), flush=True)

    return _serve(service, control)


def recovery_worker(task: Task) -> dict[str, Any]:
    """Ten bodies of 50 ms a run, each noted."""
    service = restate.Service("agent")
    log = ExecutionLog(task.path)
    texts = bodies(task.body_bytes)

    async def body(run: int, step: int) -> str:
        log.note(run, step)
        await asyncio.sleep(BODY_SECONDS)
        return texts[step]

    @service.handler()  # type: ignore[untyped-decorator]
    async def run(ctx: restate.Context, number: int) -> None:
        for step in range(1, STEPS + 1):
            await ctx.run_typed("step", body, run=number, step=step)

    return _serve(service)


def parked_worker(task: Task) -> dict[str, Any]:
    """A run that waits for an awakeable."""
    service = restate.Service("agent")

    @service.handler()  # type: ignore[untyped-decorator]
    async def run(ctx: restate.Context, number: int) -> str:
        _, promise = ctx.awakeable()
        return str(await promise)

    return _serve(service)


# ------------------------------------------------------------------------------------------------------- the driver


@dataclass
class Installation:
    """A server and a worker that are running, and a session to talk to them."""

    task: Task
    server: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    ingress: str
    session: Any

    async def call(self, run: int, *, wait: bool = True) -> None:
        """Starts a run and returns after its end, or when it is accepted."""
        url = f"{self.ingress}/agent/run" if wait else f"{self.ingress}/agent/run/send"
        async with self.session.post(url, json=run) as response:
            text = await response.text()
            if response.status >= 300:
                raise RuntimeError(f"Restate answered {response.status}: {text[:300]}")

    def restart_worker(self) -> None:
        """Starts a new process of the worker at the same port."""
        self.worker = _start_worker(self.task)


@asynccontextmanager
async def _installation(task: Task) -> AsyncIterator[Installation]:
    node, ingress, admin, worker_port = free_ports(4)
    os.environ[_WORKER_PORT] = str(worker_port)
    settings = {
        "RESTATE_BASE_DIR": str(task.path / "data"),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_CLUSTER_NAME": "bench",
        "RESTATE_NODE_NAME": "n1",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        # Two for two cores: the default of 24 is slower at every concurrency.
        "RESTATE_DEFAULT_NUM_PARTITIONS": "2",
        "RESTATE_LOG_FILTER": "warn",
        "DO_NOT_TRACK": "1",
    }
    connector = aiohttp.TCPConnector(limit=0)
    server = _start_server(task, settings)
    worker = _start_worker(task)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(150)) as session:
        installation = Installation(task, server, worker, f"http://127.0.0.1:{ingress}", session)
        async with asyncio.timeout(_READY_SECONDS):
            deployment = {"uri": f"http://127.0.0.1:{worker_port}", "force": True}
            await _until_accepted(session, f"http://127.0.0.1:{admin}/deployments", deployment)
            # Registered is not yet routed: the ingress learns of the service a moment later.
            await _until_accepted(session, f"{installation.ingress}/restate/health", None)
        try:
            yield installation
        finally:
            installation.worker.kill()
            server.kill()


async def _until_accepted(session: Any, url: str, body: object) -> None:
    while True:
        try:
            call = session.get(url) if body is None else session.post(url, json=body)
            async with call as response:
                if response.status < 300:
                    return
        except aiohttp.ClientError:
            # Not listening yet, which is what we wait for.
            pass
        await asyncio.sleep(0.2)


def _start_server(task: Task, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with open(task.path / "server.log", "wb") as log:
        return subprocess.Popen(
            [task.restate_server], env={**os.environ, **settings}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _start_worker(task: Task) -> subprocess.Popen[bytes]:
    argument = replace(task, measure=f"{task.measure}-worker").to_argument()
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.systems.restate", argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


class _WorkerClock:
    """The clock of bodies that run in the worker's process."""

    def __init__(self, worker: subprocess.Popen[bytes]) -> None:
        self._worker = worker

    async def begin(self) -> None:
        self._worker.send_signal(signal.SIGUSR1)

    async def end(self) -> StepTimes:
        assert self._worker.stdout is not None
        self._worker.send_signal(signal.SIGUSR2)
        return StepTimes(*json.loads(await asyncio.to_thread(self._worker.stdout.readline)))


def steps(task: Task) -> dict[str, Any]:
    """Steps a second."""

    async def measure() -> dict[str, Any]:
        async with _installation(task) as running:
            processes = {"driver": os.getpid(), "worker": running.worker.pid, "server": running.server.pid}
            return await closed_loop(task, running.call, _WorkerClock(running.worker), processes)

    return uvloop.run(measure())


def recovery(task: Task) -> dict[str, Any]:
    """A worker that is killed with all runs half-way, and started again; the server keeps running."""

    async def measure() -> dict[str, Any]:
        log = ExecutionLog(task.path)
        async with _installation(task) as running, asyncio.timeout(task.seconds), asyncio.TaskGroup() as runs:
            calls = [runs.create_task(running.call(run)) for run in range(task.runs)]
            await wait_until_half(log, task.runs)
            running.worker.kill()
            running.worker.wait()
            at_kill = log.counts().total()
            await asyncio.sleep(PAUSE_SECONDS)
            restarted_at = time.perf_counter()
            running.restart_worker()
            await asyncio.wait(calls)
            return recovery_row(task.runs, restarted_at, log, at_kill)

    return uvloop.run(measure())


def parked(task: Task) -> dict[str, Any]:
    """Runs that wait for an awakeable, with their connection still open (the default inactivity timeout)."""

    async def measure() -> dict[str, Any]:
        async with _installation(task) as running:
            processes = {"worker": running.worker.pid, "server": running.server.pid}
            await asyncio.gather(*(running.call(-run, wait=False) for run in range(1, PARKED_BEFORE + 1)))
            await asyncio.sleep(2)
            before = {name: resident_megabytes(pid) for name, pid in processes.items()}
            began, done = time.perf_counter(), 0
            while done < task.runs and time.perf_counter() - began < task.seconds:
                await asyncio.gather(*(running.call(done + index, wait=False) for index in range(200)))
                done += 200
            took = time.perf_counter() - began
            await asyncio.sleep(6)
            grown = {name: resident_megabytes(pid) - before[name] for name, pid in processes.items()}
            return parked_row(done, took, grown, await idle_percent(processes))

    return uvloop.run(measure())


if __name__ == "__main__":
    run_program(
        {
            "steps": steps,
            "steps-worker": steps_worker,
            "recovery": recovery,
            "recovery-worker": recovery_worker,
            "parked": parked,
            "parked-worker": parked_worker,
        }
    )
