"""The process as an operator runs it: killed without warning, stopped, and refused (P9)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from services.shared.database import Database
from services.shared.server import EXIT_CONFIGURATION, EXIT_OK, EXIT_TEMPORARY
from services.trace.tables import chunks, runs
from tests.repository.tree import ROOT
from tests.trace.conftest import TOKEN, Client, Suite, ingest, migrated, rows
from tests.trace.journals import cancelled_run, in_feed_order, parallel_run, simple_run, timer_run, troubled_run


class Process:
    """`python -m services.trace`, with its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._grown = asyncio.Condition()

    async def read_log(self) -> None:
        """Collects the log until the process ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._grown:
                self.lines.append(line.decode())
                self._grown.notify_all()

    async def logged(self, event: str) -> dict[str, Any]:
        """Returns the first log record of an event, once it is there."""
        async with asyncio.timeout(30), self._grown:
            while True:
                for line in self.lines:
                    if line.startswith("{") and (record := json.loads(line))["event"] == event:
                        return record
                await self._grown.wait()

    async def ended(self) -> int:
        """Returns the exit code, once there is one."""
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def started(suite: Suite, *arguments: str, **changes: str) -> AsyncIterator[Process]:
    """Starts the process; kills it at the end of the block if it is still there."""
    settings = {
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_DATABASE_URL": suite.settings.database_url,
        "HOLDFAST_MIGRATE_ON_START": "true",
        "HOLDFAST_STATE_ADDRESS": suite.settings.state_address,
        "HOLDFAST_AUTH_ADDRESS": suite.settings.auth_address,
        "HOLDFAST_LOG_FORMAT": "json",
        "HOLDFAST_DRAIN_SECONDS": "1",
        **changes,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.trace",
        *arguments,
        cwd=ROOT,
        env={**os.environ, **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    running = Process(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(running.read_log())
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.promise("P9")
async def test_process_killed_while_it_stores_loses_and_doubles_nothing(suite: Suite) -> None:
    await suite.start_peers()
    feed = suite.peers.feed
    feed.frame_size = 7
    kinds = (simple_run, parallel_run, troubled_run, cancelled_run, timer_run)
    journals = [kinds[number % len(kinds)](begin=number * 0.01) for number in range(200)]
    entries = in_feed_order(journals)
    await feed.add(*entries)
    await feed.allow_frames(0)
    for frames in (1, 40, 90):
        async with started(suite) as trace:
            await feed.wait_for_streams(1)
            await feed.allow_frames(frames)
            await feed.wait_for_frames(feed.frames_sent + frames)
            if frames > 1:
                # What was sent may not be stored yet; a kill that finds something stored is the one that matters.
                await _something_is_stored(suite.settings.database_url)
            trace.process.send_signal(signal.SIGKILL)
            assert await trace.ended() == -signal.SIGKILL
        await feed.wait_for_streams(0)
        await feed.allow_frames(0)
    await feed.allow_frames(None)
    async with started(suite) as trace:
        address = (await trace.logged("listening"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            client = Client(channel)
            for journal in journals:
                await client.tree(journal.run_id, min_seq=len(journal.events), timeout=30)
        trace.process.terminate()
        assert await trace.ended() == EXIT_OK
    assert feed.starts[0] == b""
    assert len(set(feed.starts)) > 1, "a later process went on where an earlier one was killed"
    async with migrated(suite.settings.database_url) as db:
        found = await rows(db)
        await db.write(lambda connection: [connection.execute(table.delete()) for table in (chunks, runs)])
        await ingest(db, journals)
        assert found == await rows(db)
        assert len(found["events"]) == len(entries)


async def _something_is_stored(url: str) -> None:
    async with asyncio.timeout(30), Database(url, schema="trace") as db:
        while not (await rows(db))["events"]:
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_process_starts_before_state_and_auth_and_says_so(suite: Suite) -> None:
    peers = await suite.start_peers()
    await peers.drain()
    async with started(suite) as trace:
        await trace.logged("listening")
        await trace.logged("waiting for state")
        await suite.start_peers(listen=suite.settings.state_address)
        journal = simple_run()
        await suite.peers.feed.add(*journal.entries)
        async with grpc.aio.insecure_channel((await trace.logged("listening"))["address"]) as channel:
            tree = await Client(channel).tree(journal.run_id, min_seq=4)
        assert len(tree.spans) == 3
        await trace.logged("following")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"HOLDFAST_SERVICE_TOKEN": ""}, "HOLDFAST_SERVICE_TOKEN is required"),
        ({"HOLDFAST_DATABASE_URL": "mysql://x"}, "HOLDFAST_DATABASE_URL"),
        ({"HOLDFAST_FEED_MAX_ENTRIES": "0"}, "HOLDFAST_FEED_MAX_ENTRIES='0'"),
        ({"HOLDFAST_STATE_ADDRESS": "state.example:7401"}, "HOLDFAST_STATE_ADDRESS"),
    ],
)
async def test_bad_setting_is_refused_by_name(sqlite_suite: Suite, changes: dict[str, str], complaint: str) -> None:
    async with started(sqlite_suite, **changes) as trace:
        assert await trace.ended() == EXIT_CONFIGURATION
    assert complaint in "".join(trace.lines)


async def test_port_in_use_is_one_sentence(sqlite_suite: Suite) -> None:
    peers = await sqlite_suite.start_peers()
    async with started(sqlite_suite, HOLDFAST_LISTEN=peers.address) as trace:
        assert await trace.ended() == EXIT_TEMPORARY
    assert trace.lines[-1].startswith("trace: ")
    assert "already in use" in trace.lines[-1]
    assert "Traceback" not in "".join(trace.lines)


@pytest.mark.slow
async def test_schema_is_migrated_by_an_explicit_command(postgres_suite: Suite) -> None:
    changes = {"HOLDFAST_MIGRATE_ON_START": "false"}
    async with started(postgres_suite, **changes) as trace:
        assert await trace.ended() == EXIT_CONFIGURATION
    assert "python -m services.trace migrate" in trace.lines[-1]
    async with started(postgres_suite, "migrate", **changes) as trace:
        assert await trace.ended() == EXIT_OK
    async with started(postgres_suite, **changes) as trace:
        await trace.logged("listening")
        trace.process.terminate()
        assert await trace.ended() == EXIT_OK
