"""Records that are written a moment later: together, again after a failure, and at the end."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.errors import Unavailable
from services.shared.lingering import LingeringWriter
from tests.fakes.clock import FakeClock


class Storage:
    """Keeps what is written, unless it is away."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pending: list[str] = []
        self.written: list[list[str]] = []
        self.attempts = 0
        self.is_away = False
        self.writer = LingeringWriter(
            self.flush,
            self.pending,
            self.clock,
            linger_seconds=0.2,
            retry_seconds=1.0,
            delayed="records_delayed",
            lost="records_lost",
        )

    def add(self, record: str) -> None:
        self.pending.append(record)
        self.writer.notice()

    async def flush(self) -> None:
        self.attempts += 1
        if self.is_away:
            raise Unavailable("the storage is away")
        self.written.append(list(self.pending))
        self.pending.clear()


async def pass_by(storage: Storage, seconds: float) -> None:
    """Lets the writer sleep, and time pass."""
    await storage.clock.wait_for_sleepers()
    await storage.clock.advance(seconds)


async def test_records_of_a_moment_are_written_together() -> None:
    storage = Storage()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(storage.writer.run())
        storage.add("a")
        await storage.clock.wait_for_sleepers()
        storage.add("b")
        await pass_by(storage, 0.2)
        storage.add("c")
        await pass_by(storage, 0.2)
        running.cancel()
    assert storage.written == [["a", "b"], ["c"]]


async def test_records_that_cannot_be_written_are_written_later() -> None:
    storage = Storage()
    storage.is_away = True
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(storage.writer.run())
        storage.add("a")
        await pass_by(storage, 0.2)
        storage.is_away = False
        await pass_by(storage, 1.0)
        # Nobody has to come with another record.
        await pass_by(storage, 0.2)
        running.cancel()
    assert storage.written == [["a"]]


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_is_left_at_the_end_is_written_or_said_to_be_lost(
    is_away: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage()
    storage.is_away = is_away
    storage.add("a")
    async with asyncio.timeout(20):
        closing = asyncio.create_task(storage.writer.close())
        for _ in range(3 if is_away else 0):
            await pass_by(storage, 1.0)
        await closing
    said = [record.getMessage() for record in caplog.records]
    assert said == (["records_delayed"] * 3 + ["records_lost"] if is_away else [])
    assert storage.attempts == (3 if is_away else 1)
    assert storage.written == ([] if is_away else [["a"]])
    assert storage.pending == (["a"] if is_away else [])
