"""State as processes: killed in the middle of its work, and alone with nothing to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.processes import CpuMeter
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.ids import new_uuid7
from tests.repository.tree import ROOT
from tests.state.served import TOKEN, Client
from tests.state.support import finished, new_run, started

WORKSPACE = new_uuid7()


@asynccontextmanager
async def process(database_url: str, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of state, and its address; killed at the end if it still lives."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "services.state",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_SERVICE_TOKEN": TOKEN,
            "HOLDFAST_LISTEN": "127.0.0.1:0",
            "HOLDFAST_LOG_FORMAT": "json",
            "HOLDFAST_MIGRATE_ON_START": "true",
            **settings,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with asyncio.timeout(30):
            while True:
                line = await child.stderr.readline()
                assert line, "the process ended before it listened"
                entry = json.loads(line)
                if entry["event"] == "listening":
                    break
        yield child, entry["address"]
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


class Checkpoints:
    """A journal stream and the answers that came on it."""

    def __init__(self, client: Client) -> None:
        self._call = client.journal.Checkpoint()
        self.answers: dict[int, pb.OperationResult] = {}

    async def send(self, *operations: pb.Operation) -> None:
        await self._call.write(pb.CheckpointRequest(operations=operations))

    async def read_until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.answers) < count:
                response = await self._call.read()
                assert isinstance(response, pb.CheckpointResponse), "the stream has ended"
                self.answers |= {result.id: result for result in response.results}

    def close(self) -> None:
        self._call.cancel()


@pytest.mark.slow
@pytest.mark.promise("P1")
async def test_what_one_replica_answered_before_it_was_killed_the_other_has(postgres_database: str) -> None:
    async with process(postgres_database) as (first, here), process(postgres_database) as (_, there):
        killed, other = Client(here, "executor"), Client(there, "executor")
        working = await killed.work(new_uuid7(), free_slots=30)
        new = [pb.Operation(id=n, new_run=new_run(WORKSPACE)) for n in range(30)]
        checkpoints = Checkpoints(killed)
        await checkpoints.send(*new)
        await checkpoints.read_until(30)
        await working.until_held(30)
        sent = [
            pb.Operation(
                id=1_000 * seq + n,
                transition=pb.Transition(
                    workspace_id=WORKSPACE,
                    run_id=run.new_run.run_id,
                    epoch=1,
                    seq=seq,
                    changes=[finished(seq), started(seq + 1)],
                ),
            )
            for seq in range(2, 42)
            for n, run in enumerate(new)
        ]
        await checkpoints.send(*sent)
        # In the middle of it: some are answered, some are not.
        await checkpoints.read_until(30 + len(sent) // 4)
        first.kill()
        answered = {operation.id: checkpoints.answers.get(operation.id) for operation in sent}
        await first.wait()

        again = Checkpoints(other)
        await again.send(*sent)
        await again.read_until(len(sent))
        assert {answer.WhichOneof("kind") for answer in again.answers.values()} == {"committed"}
        for number, answer in answered.items():
            if answer is not None:
                assert again.answers[number] == answer, "sent again, it is answered the same"
        for run in new:
            events = await other.events(WORKSPACE, run.new_run.run_id)
            assert [event.seq for event in events] == list(range(1, 42))
        again.close()
        for client in (killed, other):
            await client.channel.close()


@pytest.mark.slow
async def test_process_with_nothing_to_do_hardly_uses_the_processor(database_url: str) -> None:
    async with process(database_url) as (child, address):
        # Connected like the suite at rest: an executor with free slots, a follower, a watcher of a run that waits.
        executor, trace = Client(address, "executor"), Client(address, "trace")
        await executor.work(new_uuid7(), free_slots=0)
        run = await executor.create(WORKSPACE)
        watching, following = executor.watch(WORKSPACE, run.run_id), trace.follow()
        await watching.read()
        await following.read()
        meter = CpuMeter({"state": child.pid})
        meter.start()
        await asyncio.sleep(4)
        used = meter.stop()["state"] / 4
        # About 1 %; the bound says only that nothing spins.
        assert used < 0.1
        watching.cancel()
        following.cancel()
        for client in (executor, trace):
            await client.channel.close()
