"""Builds state from its settings, serves, drains, closes. The only place that constructs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from holdfast.api.state.v1.agent_store_service_pb2_grpc import add_AgentStoreServiceServicer_to_server
from holdfast.api.state.v1.call_queue_service_pb2_grpc import add_CallQueueServiceServicer_to_server
from holdfast.api.state.v1.change_feed_service_pb2_grpc import add_ChangeFeedServiceServicer_to_server
from holdfast.api.state.v1.journal_service_pb2_grpc import add_JournalServiceServicer_to_server
from holdfast.api.state.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from holdfast.api.state.v1.run_store_service_pb2_grpc import add_RunStoreServiceServicer_to_server
from holdfast.errors import HoldfastError
from services.shared.clock import SystemClock
from services.shared.database import Database
from services.shared.migrations import make_ready, upgrade, wait_for_database
from services.shared.server import Process, Server
from services.shared.telemetry import get_logger
from services.state.access import ACCESS
from services.state.group_commit import GroupCommit
from services.state.hub import Hub
from services.state.leases import Leases
from services.state.servicers.agents import AgentStoreServicer
from services.state.servicers.calls import CallQueueServicer
from services.state.servicers.change_feed import ChangeFeedServicer
from services.state.servicers.journal import JournalServicer
from services.state.servicers.leases import LeaseServicer
from services.state.servicers.runs import RunStoreServicer
from services.state.settings import StateSettings
from services.state.watch import Watching

SERVICE: Final = "state"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEALTH_CHECK_SECONDS: Final = 1.0

log = get_logger(__name__)


async def run(settings: StateSettings, process: Process) -> None:
    """Serves until `process.stop` is set."""
    async with AsyncExitStack() as closing:
        db = await closing.enter_async_context(
            Database(settings.database_url, schema=SERVICE, pool_size=settings.database_pool_size, clock=SystemClock())
        )
        await make_ready(db, MIGRATIONS, migrate_on_start=settings.migrate_on_start, stop=process.stop)
        if process.stop.is_set():
            return
        if db.dialect == "sqlite":
            log.warning("embedded storage: this service can run once, on this machine", database=db.location)
        hub = Hub()
        commits = GroupCommit(db, hub)
        leases = Leases(db, hub)
        watching = Watching(db, hub)
        server = Server(settings, service=SERVICE, access=ACCESS, telemetry=process.telemetry)
        journal = JournalServicer(db, commits, hub, watching)
        feed = ChangeFeedServicer(db, hub)
        for part in (journal, feed, leases, watching):
            part.draining = server.draining
        server.add(add_JournalServiceServicer_to_server, journal)
        server.add(add_LeaseServiceServicer_to_server, LeaseServicer(leases))
        server.add(add_CallQueueServiceServicer_to_server, CallQueueServicer(db, hub))
        server.add(add_AgentStoreServiceServicer_to_server, AgentStoreServicer(db))
        server.add(add_RunStoreServiceServicer_to_server, RunStoreServicer(db, hub))
        server.add(add_ChangeFeedServiceServicer_to_server, feed)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(work) for work in (commits.run(), leases.sweep_for_ever(), _report_health(db, server))
            ]
            try:
                await server.run(process.stop)
            finally:
                for task in background:
                    task.cancel()


async def _report_health(db: Database, server: Server) -> None:
    """NOT_SERVING while the database does not answer; nothing is restarted for it."""
    is_serving = True
    while not server.draining.is_set():
        await asyncio.sleep(HEALTH_CHECK_SECONDS)
        try:
            async with asyncio.timeout(2 * HEALTH_CHECK_SECONDS):
                await db.ping()
            answers = True
        except (HoldfastError, TimeoutError):
            answers = False
        if answers != is_serving and not server.draining.is_set():
            is_serving = answers
            log.warning("database_answers" if answers else "database_does_not_answer", database=db.location)
            await server.health.set(answers)


async def migrate(settings: StateSettings) -> None:
    """Brings the schema up to date."""
    async with Database(settings.database_url, schema=SERVICE, clock=SystemClock()) as db:
        await wait_for_database(db, asyncio.Event())
        await upgrade(db, MIGRATIONS)
