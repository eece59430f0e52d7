"""Trace's databases, and the whole service behind its real server with a state that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from holdfast.api.common.v1.agent_pb2 import AgentSpec, ModelSpec
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from holdfast.api.trace.v1 import query_service_pb2 as pb
from holdfast.api.trace.v1.query_service_pb2_grpc import QueryServiceStub
from services.shared.channels import open_channel
from services.shared.clock import SystemClock
from services.shared.database import Database
from services.shared.migrations import upgrade
from services.shared.server import Server
from services.shared.telemetry import Telemetry, build_telemetry
from services.trace.app import MIGRATIONS, App, serving
from services.trace.feed import FeedMetrics, Follower
from services.trace.progress import Progress
from services.trace.settings import TraceSettings
from services.trace.store_sql import SqlTraceStore, events_in
from services.trace.tables import chunks, feeds, runs
from tests.fakes.feed import FakePeers
from tests.trace.journals import OTHER_WORKSPACE, REVISION, WORKSPACE, Journal, in_feed_order

TOKEN = "a-service-token-of-enough-characters"
# In the form of persons' tokens: what has the form of no credential is refused before anybody asks auth.
KEY, OTHER_KEY, KEY_WITHOUT_SCOPE = "key.of.ada", "key.of.bob", "key.that.only-runs"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/trace.db"
    return sync_url(request.getfixturevalue("postgres_database"))


def sync_url(url: str) -> str:
    """The URL as an operator writes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Database]:
    """Opens a database that has trace's schema."""
    async with Database(url, schema="trace", pool_size=4, synchronous="NORMAL") as db:
        await upgrade(db, MIGRATIONS)
        yield db


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with migrated(database_url) as opened:
        yield opened


def copies(entries: Sequence[FeedEntry]) -> list[FeedEntry]:
    """The same events as if they had arrived anew; the store takes apart what it is given."""
    return [FeedEntry.FromString(entry.SerializeToString()) for entry in entries]


async def rows(db: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that trace knows of runs."""
    return await db.read(_rows)


def _rows(connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
    events = [
        (run_id, event.seq, event.SerializeToString())
        for run_id, body in connection.execute(sa.select(chunks.c.run_id, chunks.c.body))
        for event in events_in(body)
    ]
    summaries = [
        tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
        for row in connection.execute(sa.select(runs).order_by(runs.c.run_id))
    ]
    # Which events came together is no part of what is known.
    return {"events": sorted(events), "runs": summaries}


async def stored_cursor(db: Database) -> bytes:
    """Where the feed goes on."""
    return await db.read(lambda connection: bytes(connection.execute(sa.select(feeds.c.cursor)).scalar_one()))


async def ingest(db: Database, journals: Sequence[Journal]) -> None:
    """Stores journals at once, without a feed."""
    async with SqlTraceStore(db).projection() as projection:
        await projection.store(copies(in_feed_order(journals)), after=await projection.cursor(), cursor=b"all")


class Suite:
    """A trace service and what it calls; a test starts and stops them in any order."""

    def __init__(self, stack: AsyncExitStack, database_url: str) -> None:
        self.stack = stack
        self.peers = FakePeers()
        self.peers.keys.known = {
            KEY: (WORKSPACE, ("trace:read",)),
            OTHER_KEY: (OTHER_WORKSPACE, ("trace:read",)),
            KEY_WITHOUT_SCOPE: (WORKSPACE, ("runs:write",)),
        }
        self.peers.agents.specs[WORKSPACE, "support", REVISION] = AgentSpec(
            name="support", instructions="be kind", model=ModelSpec(provider="openai", name="gpt-5-mini")
        )
        self.settings = TraceSettings(
            listen="127.0.0.1:0",
            service_token=TOKEN,
            database_url=database_url,
            migrate_on_start=True,
            drain_seconds=1.0,
        )
        self.peers_server: Server | None = None

    async def start_peers(self, listen: str = "127.0.0.1:0") -> Server:
        """Starts state and auth."""
        server = self.peers.server(replace(self.settings, listen=listen, drain_seconds=0.0), build_telemetry("state"))
        self.peers_server = await self.stack.enter_async_context(server)
        self.settings = replace(self.settings, state_address=server.address, auth_address=server.address)
        return server

    async def start_trace(self) -> App:
        """Starts the service under test."""
        return await self.stack.enter_async_context(serving(self.settings, build_telemetry("trace"), asyncio.Event()))

    async def connect(self, app: App) -> Client:
        """Opens a client of the service under test."""
        channel = grpc.aio.insecure_channel(app.server.address)
        return Client(await self.stack.enter_async_context(channel))


class Client:
    """Calls with an API key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = QueryServiceStub(channel)

    async def list_runs(self, *, key: str = KEY, **request: Any) -> pb.ListRunsResponse:
        return await self._stub.ListRuns(pb.ListRunsRequest(**request), timeout=20, metadata=_metadata(key))

    async def tree(
        self, run_id: str, *, min_seq: int = 0, key: str = KEY, timeout: float | None = 20
    ) -> pb.GetRunTreeResponse:
        request = pb.GetRunTreeRequest(run_id=run_id, min_seq=min_seq)
        return await self._stub.GetRunTree(request, timeout=timeout, metadata=_metadata(key))

    async def step(self, run_id: str, step: int, *, key: str = KEY) -> pb.GetStepResponse:
        return await self._stub.GetStep(
            pb.GetStepRequest(run_id=run_id, step=step), timeout=20, metadata=_metadata(key)
        )


def _metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


@pytest.fixture
async def suite(database_url: str) -> AsyncIterator[Suite]:
    async with AsyncExitStack() as stack:
        yield Suite(stack, database_url)


@pytest.fixture
async def sqlite_suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """The same on SQLite only, for what has nothing to do with the database."""
    async with AsyncExitStack() as stack:
        yield Suite(stack, f"sqlite:///{tmp_path}/trace.db")


@pytest.fixture
async def postgres_suite(postgres_database: str) -> AsyncIterator[Suite]:
    """The same on PostgreSQL only, which is what several replicas need."""
    async with AsyncExitStack() as stack:
        yield Suite(stack, sync_url(postgres_database))


class Following:
    """A follower of its own, on a database that a test looks into."""

    def __init__(self, suite: Suite, db: Database) -> None:
        self._suite = suite
        self.store = SqlTraceStore(db)
        self.telemetry: Telemetry = build_telemetry("trace")
        self.metrics = FeedMetrics(self.telemetry.registry)
        self.progress = Progress()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows while the block runs."""
        settings = self._suite.settings
        async with open_channel(settings.state_address, service="trace", settings=settings) as channel:
            follower = Follower(
                channel,
                address=settings.state_address,
                store=self.store,
                progress=self.progress,
                metrics=self.metrics,
                clock=SystemClock(),
                max_entries=500,
            )
            async with asyncio.TaskGroup() as group:
                task = group.create_task(follower.run())
                try:
                    yield
                finally:
                    task.cancel()

    async def wait_until_stored(self, journal: Journal, *, seq: int | None = None) -> None:
        """Returns when an event of a journal is stored: its last one unless said otherwise."""
        wanted = len(journal.events) if seq is None else seq
        async with asyncio.timeout(30):
            with self.progress.watch(journal.run_id) as changed:
                while True:
                    changed.clear()
                    run = await self.store.find_run(journal.workspace_id, journal.run_id)
                    if run is not None and run.last_seq >= wanted:
                        return
                    await changed.wait()
