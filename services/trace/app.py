"""Composition root of the trace service: the only place that builds, and the one that closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.api.trace.v1.query_service_pb2_grpc import add_QueryServiceServicer_to_server
from services.shared.api_keys import RemoteAuthenticator
from services.shared.channels import open_channel
from services.shared.clock import Clock, SystemClock
from services.shared.database import Database
from services.shared.identity import Authenticator
from services.shared.migrations import make_ready, upgrade, wait_for_database
from services.shared.paging import page_key
from services.shared.server import Process, Server
from services.shared.telemetry import Telemetry
from services.trace.feed import FOLLOW_METHOD, FeedMetrics, Follower
from services.trace.progress import Progress
from services.trace.query import Queries
from services.trace.servicer import ACCESS, QueryServicer
from services.trace.settings import TraceSettings
from services.trace.state_client import StateClient
from services.trace.store_sql import SqlTraceStore

SERVICE: Final = "trace"
MIGRATIONS: Final = Path(__file__).parent / "migrations"


@dataclass(slots=True)
class App:
    """The service while it serves."""

    server: Server
    store: SqlTraceStore


def open_database(settings: TraceSettings) -> Database:
    """Opens the database of trace."""
    # NORMAL: what a power cut could take from SQLite takes the cursor with it, and is read again from state.
    return Database(settings.database_url, schema=SERVICE, pool_size=settings.database_pool_size, synchronous="NORMAL")


@asynccontextmanager
async def serving(
    settings: TraceSettings,
    telemetry: Telemetry,
    stop: asyncio.Event,
    *,
    authenticator: Authenticator | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[App]:
    """Builds the service, serves while the block runs, then drains and closes.

    Args:
        settings: Its settings.
        telemetry: The process's telemetry.
        stop: Ends the wait for the database.
        authenticator: Verifies API keys; the auth service does unless a test gives one.
        clock: Time; the real one unless a test gives one.
    """
    clock = SystemClock() if clock is None else clock
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings))
        await make_ready(db, MIGRATIONS, migrate_on_start=settings.migrate_on_start, stop=stop)
        state = await stack.enter_async_context(
            open_channel(
                settings.state_address,
                service=SERVICE,
                settings=settings,
                telemetry=telemetry,
                peer="state",
                untraced=frozenset({FOLLOW_METHOD}),
            )
        )
        if authenticator is None:
            auth = await stack.enter_async_context(
                open_channel(
                    settings.auth_address, service=SERVICE, settings=settings, telemetry=telemetry, peer="auth"
                )
            )
            authenticator = RemoteAuthenticator(auth)
        store = SqlTraceStore(db)
        progress = Progress()
        follower = Follower(
            state,
            address=settings.state_address,
            store=store,
            progress=progress,
            metrics=FeedMetrics(telemetry.registry),
            clock=clock,
            max_entries=settings.feed_max_entries,
        )
        server = Server(settings, service=SERVICE, access=ACCESS, telemetry=telemetry, authenticator=authenticator)
        server.add(
            add_QueryServiceServicer_to_server,
            QueryServicer(
                Queries(store, StateClient(state), progress, clock),
                page_key=page_key(settings.service_token),
                default_deadline_seconds=settings.default_deadline_seconds,
            ),
        )
        # Outside the task group, so that a port in use is told as it is.
        stack.push_async_callback(server.drain)
        await server.start()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.run())
            try:
                yield App(server, store)
            finally:
                # Order matters: readers who wait for an event still get it while the server drains.
                await server.drain()
                following.cancel()


async def run(settings: TraceSettings, process: Process) -> None:
    """Serves until the process is told to stop."""
    async with serving(settings, process.telemetry, process.stop):
        await process.stop.wait()


async def migrate(settings: TraceSettings) -> None:
    """Brings the schema up to date."""
    async with open_database(settings) as db:
        await wait_for_database(db, asyncio.Event())
        await upgrade(db, MIGRATIONS)
