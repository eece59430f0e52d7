"""The change feed while transactions commit out of order: no follower passes over an event or is told of one twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.shared.telemetry import build_telemetry
from services.state.change_feed import read_feed
from services.state.feed_lag import WARN_SECONDS, FeedLag
from tests.fakes.clock import FakeClock
from tests.state.served import replica
from tests.state.support import migrated, opened

pytestmark = pytest.mark.promise("P9")

INSERT = (
    "INSERT INTO state.journal (run_id, seq, workspace_id, epoch, at, body) "
    "VALUES (%s, %s, %s, 1, clock_timestamp(), '')"
)
Place = tuple[str, int]


class Writer:
    """One connection with at most one open transaction, whose events are in the feed when it commits."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.open: list[Place] = []

    async def write(self) -> None:
        """Writes an event of a new run in the open transaction."""
        place = (new_uuid7(), 1)
        await self._connection.execute(INSERT, (*place, new_uuid7()))
        self.open.append(place)

    async def commit(self) -> list[Place]:
        """Commits, and returns what."""
        await self._connection.commit()
        done, self.open = self.open, []
        return done

    async def roll_back(self) -> None:
        """Gives up what was written."""
        await self._connection.rollback()
        self.open = []


class Follower:
    """What one follower was told."""

    def __init__(self) -> None:
        self.cursor = b""
        self.told: list[Place] = []

    async def read(self, db: Database, limit: int) -> bool:
        """Reads once; tells whether that was the end for now."""
        entries, self.cursor, is_caught_up = await db.read(read_feed, db, self.cursor, limit)
        self.told += [(entry.event.run_id, entry.event.seq) for entry in entries]
        return is_caught_up

    async def read_to_the_end(self, db: Database) -> None:
        """Reads what there is."""
        while not await self.read(db, 7):
            pass


@asynccontextmanager
async def writers(url: str, count: int) -> AsyncIterator[list[Writer]]:
    """Connections of their own, as other replicas have."""
    async with AsyncExitStack() as stack:
        yield [
            Writer(await stack.enter_async_context(await psycopg.AsyncConnection.connect(url))) for _ in range(count)
        ]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "commit", "roll_back"]), st.integers(0, 3)),
        st.tuples(st.just("read"), st.integers(0, 1)),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def feed_database(postgres_url: str) -> Any:
    """An empty database for all examples."""
    name = f"feed_{new_uuid7().replace('-', '')}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        from sqlalchemy.engine import make_url

        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(actions=ACTIONS)
def test_no_order_of_commits_makes_a_follower_miss_an_event(feed_database: str, actions: list[tuple[str, int]]) -> None:
    async def play() -> None:
        async with migrated(feed_database) as db, writers(feed_database, 4) as connections:
            before = Follower()
            await before.read_to_the_end(db)
            followers = [Follower(), Follower()]
            for follower in followers:
                follower.cursor = before.cursor
            committed: set[Place] = set()
            for action, index in actions:
                if action == "read":
                    # Small pages: a cursor in the middle of a transaction is a place like any other.
                    await followers[index].read(db, 1 + index * 3)
                elif action == "commit":
                    committed.update(await connections[index].commit())
                elif action == "write":
                    await connections[index].write()
                else:
                    await connections[index].roll_back()
                assert {place for follower in followers for place in follower.told} <= committed
            for connection in connections:
                await connection.roll_back()
            for follower in followers:
                await follower.read_to_the_end(db)
                assert len(follower.told) == len(set(follower.told))
                assert set(follower.told) == committed
            assert followers[0].told == followers[1].told, "all followers see one order"

    asyncio.run(play())


async def test_followers_of_two_replicas_see_one_order_while_transactions_stay_open(postgres_database: str) -> None:
    async with AsyncExitStack() as stack:
        states = [await stack.enter_async_context(replica(postgres_database)) for _ in range(2)]
        connections = await stack.enter_async_context(writers(postgres_database, 6))
        committed: list[Place] = []
        told: list[list[Place]] = [[], [], []]
        goal = 6 * 30

        async def write(writer: Writer, pace: int) -> None:
            for number in range(30):
                await writer.write()
                # Each has another number of events in a transaction, and holds it open for another time.
                if number % pace == pace - 1:
                    await asyncio.sleep(0.002 * pace)
                    committed.extend(await writer.commit())
            committed.extend(await writer.commit())

        async def follow(index: int) -> None:
            cursor = b""
            while len(told[index]) < goal:
                call = states[index % 2].trace.follow(cursor)
                async for frame in call:
                    told[index] += [(entry.event.run_id, entry.event.seq) for entry in frame.entries]
                    cursor = frame.cursor
                    # A follower that comes back again and again goes on where it was.
                    if index == 2 or len(told[index]) >= goal:
                        break
                call.cancel()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for index in range(3):
                group.create_task(follow(index))
            for pace, writer in enumerate(connections, start=1):
                group.create_task(write(writer, pace))
        assert sorted(told[0]) == sorted(committed)
        assert told[0] == told[1] == told[2]


async def test_a_transaction_of_another_database_holds_the_feed_back_and_is_named(
    postgres_database: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    async with opened(postgres_database) as store:
        lag = FeedLag(store.db, clock, build_telemetry("state").registry)
        assert await lag.look() == 0
        elsewhere = await psycopg.AsyncConnection.connect(postgres_url)
        async with elsewhere:
            # Only what has written has a transaction id.
            await elsewhere.execute("SELECT 1")
            await store.create()
            follower = Follower()
            await follower.read_to_the_end(store.db)
            assert len(follower.told) == 1
            await elsewhere.execute("SELECT pg_current_xact_id()")
            await store.create()
            await follower.read_to_the_end(store.db)
            assert len(follower.told) == 1
            await lag.look()
            await clock.advance(WARN_SECONDS + 1)
            assert await lag.look() > WARN_SECONDS
            (said,) = [record for record in caplog.records if record.getMessage() == "feed_held_back"]
            assert f"process {elsewhere.info.backend_pid}" in str(vars(said))
        await follower.read_to_the_end(store.db)
        assert len(follower.told) == 2
        assert await lag.look() == 0
