"""The blocking facade does what the async client does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from holdfast import RunEvent, SyncClient
from holdfast.errors import NotFound
from tests.fakes.executor import API_KEY, FakeExecutor, ended, event


@pytest.fixture
def address() -> Iterator[str]:
    """An executor with one run, in a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> FakeExecutor:
        executor = await FakeExecutor().__aenter__()
        executor.add_run("r", [event("r", 1), event("r", 2), ended("r", 3)])
        return executor

    executor = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield executor.address
    asyncio.run_coroutine_threadsafe(executor.__aexit__(None, None, None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_run_is_started_followed_and_awaited(address: str) -> None:
    with SyncClient(address, API_KEY) as client:
        run = client.start("agent", "hello")
        assert run.id == "r"
        assert [item.seq for item in run.events() if isinstance(item, RunEvent)] == [1, 2, 3]
        assert run.result(timeout=10) == ""
        assert [found.run_id for found in client.iterate(lambda inner: inner.runs.list())] == ["r"]


def test_events_may_be_left_early(address: str) -> None:
    with SyncClient(address, API_KEY) as client:
        for item in client.run("r").events():
            assert item.seq == 1
            break


def test_errors_are_the_same_classes(address: str) -> None:
    with SyncClient(address, API_KEY) as client, pytest.raises(NotFound):
        client.run("other")
