"""Builds state from its settings, serves, drains, closes. The only place that constructs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from holdfast.api.state.v1.agent_store_service_pb2_grpc import add_AgentStoreServiceServicer_to_server
from holdfast.api.state.v1.call_queue_service_pb2_grpc import add_CallQueueServiceServicer_to_server
from holdfast.api.state.v1.change_feed_service_pb2_grpc import add_ChangeFeedServiceServicer_to_server
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import add_HousekeepingServiceServicer_to_server
from holdfast.api.state.v1.journal_service_pb2_grpc import add_JournalServiceServicer_to_server
from holdfast.api.state.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from holdfast.api.state.v1.operator_service_pb2_grpc import add_OperatorServiceServicer_to_server
from holdfast.api.state.v1.run_store_service_pb2_grpc import add_RunStoreServiceServicer_to_server
from holdfast.errors import HoldfastError
from services.shared.background import background
from services.shared.channels import open_channel
from services.shared.clock import Clock, SystemClock
from services.shared.database import Database
from services.shared.migrations import make_ready, upgrade, wait_for_database
from services.shared.seals import Seals
from services.shared.server import Process, Server
from services.shared.telemetry import Telemetry, get_logger
from services.state.access import ACCESS
from services.state.data_keys import DataKeys, keep_fresh
from services.state.ends import Ends
from services.state.feed_lag import FeedLag
from services.state.feed_origin import settle_feed
from services.state.group_commit import GroupCommit
from services.state.housekeeping import Housekeeping
from services.state.housekeeping_erase import Erasing
from services.state.hub import Hub
from services.state.leases import Leases
from services.state.pulse import Pulse
from services.state.servicers.agents import AgentStoreServicer
from services.state.servicers.calls import CallQueueServicer
from services.state.servicers.change_feed import ChangeFeedServicer
from services.state.servicers.housekeeping import HousekeepingServicer
from services.state.servicers.journal import JournalServicer
from services.state.servicers.leases import LeaseServicer
from services.state.servicers.operator import OperatorServicer
from services.state.servicers.runs import RunStoreServicer
from services.state.settings import StateSettings
from services.state.signals import Signals
from services.state.status import warnings_about
from services.state.watch import Watching

SERVICE: Final = "state"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEALTH_CHECK_SECONDS: Final = 1.0

log = get_logger(__name__)


@asynccontextmanager
async def state_server(
    settings: StateSettings, telemetry: Telemetry, stop: asyncio.Event, *, clock: Clock | None = None
) -> AsyncIterator[Server]:
    """Serves while the context is open.

    Args:
        settings: The service's settings.
        telemetry: The process's telemetry.
        stop: Ends the wait for a database that is away.
        clock: Where time comes from; the machine's when not given. PostgreSQL has its own.

    Raises:
        StartupError: The schema is not current, or the address cannot be used.
    """
    clock = SystemClock() if clock is None else clock
    async with AsyncExitStack() as closing:
        auth = open_channel(
            settings.auth_address, service=SERVICE, settings=settings, telemetry=telemetry, peer="auth", clock=clock
        )
        data_keys = DataKeys(await closing.enter_async_context(auth))
        seals = Seals(data_keys, is_on=settings.seal_payloads)
        db = await closing.enter_async_context(
            Database(
                settings.database_url,
                schema=SERVICE,
                pool_size=settings.database_pool_size,
                clock=clock,
                seals=seals,
            )
        )
        data_keys.db = db
        await make_ready(db, MIGRATIONS, migrate_on_start=settings.migrate_on_start, stop=stop)
        # Order matters: before anything is written in an order that a restored journal has left behind.
        await settle_feed(db)
        if db.dialect == "sqlite":
            log.warning("embedded storage: this service can run once, on this machine", database=db.location)
        hub = Hub()
        commits = GroupCommit(db, hub, clock=clock)
        leases = Leases(db, hub)
        watching = Watching(db, hub)
        server = Server(settings, service=SERVICE, access=ACCESS, telemetry=telemetry)
        ends = Ends(db, hub, clock)
        journal = JournalServicer(db, commits, ends, hub, watching)
        feed = ChangeFeedServicer(db, hub)
        for part in (journal, feed, leases, watching):
            part.draining = server.draining
        server.add(add_JournalServiceServicer_to_server, journal)
        server.add(add_LeaseServiceServicer_to_server, LeaseServicer(leases))
        server.add(add_CallQueueServiceServicer_to_server, CallQueueServicer(db, hub))
        server.add(add_AgentStoreServiceServicer_to_server, AgentStoreServicer(db))
        server.add(add_RunStoreServiceServicer_to_server, RunStoreServicer(db, hub))
        server.add(add_ChangeFeedServiceServicer_to_server, feed)

        def waiting() -> int:
            return commits.pending

        housekeeping = Housekeeping(db, clock, waiting, interval_seconds=settings.housekeeping_interval_seconds)
        erasing = Erasing(db, hub, clock, waiting)
        server.add(add_HousekeepingServiceServicer_to_server, HousekeepingServicer(db, erasing))
        warnings = warnings_about(
            service_token=settings.service_token,
            crash_point=settings.crash_point,
            allow_plaintext=settings.allow_plaintext,
        )
        server.add(add_OperatorServiceServicer_to_server, OperatorServicer(db, clock, MIGRATIONS, warnings))
        server.on_drain(hub.wake_everybody)
        # Order matters: it is undone from the end. The last calls are answered, then the streams that ended have given
        # their runs back, then the group commit stops, then the database is closed.
        await closing.enter_async_context(
            background(
                commits.run(),
                ends.run(),
                Pulse(db, hub, clock).run(),
                Signals(db, hub, leases.claiming).run(),
                housekeeping.run(),
                _report_health(db, server),
                keep_fresh(seals, clock),
                FeedLag(db, clock, telemetry.registry).run(),
            )
        )
        closing.push_async_callback(leases.close)
        await closing.enter_async_context(server)
        yield server


async def run(settings: StateSettings, process: Process) -> None:
    """Serves until the process is told to stop."""
    async with state_server(settings, process.telemetry, process.stop):
        await process.stop.wait()


async def _report_health(db: Database, server: Server) -> None:
    """NOT_SERVING while the database does not answer; nothing is restarted for it."""
    is_serving = True
    while not server.draining.is_set():
        await asyncio.sleep(HEALTH_CHECK_SECONDS)
        try:
            async with asyncio.timeout(2 * HEALTH_CHECK_SECONDS):
                await db.ping()
            answers, why = True, ""
        except HoldfastError as error:
            answers, why = False, error.message
        except TimeoutError:
            answers, why = False, "no answer in time"
        if answers != is_serving and not server.draining.is_set():
            is_serving = answers
            log.warning("database_answers" if answers else "database_does_not_answer", database=db.location, detail=why)
            await server.health.set(answers)


async def migrate(settings: StateSettings) -> None:
    """Brings the schema up to date."""
    async with Database(settings.database_url, schema=SERVICE, clock=SystemClock()) as db:
        await wait_for_database(db, asyncio.Event())
        await upgrade(db, MIGRATIONS)
        await settle_feed(db)
