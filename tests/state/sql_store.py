"""The real store behind the protocol of tests/fakes/state_store.py, and the databases it runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as calls_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import HoldfastError
from holdfast.ids import new_uuid7
from services.shared.clock import Clock
from services.shared.database import Database
from services.shared.migrations import upgrade
from services.state import (
    approval_store,
    call_store,
    change_feed,
    claims,
    expiry,
    journal,
    lease_store,
    pauses,
    run_store,
    tables,
)
from services.state.app import MIGRATIONS
from services.state.group_commit import GroupCommit
from services.state.hub import Hub
from services.state.operations import Committed
from services.state.pauses import Asked
from tests.fakes.state_store import Answer, Operation
from tests.state.builders import WORKSPACE


class SqlStateStore:
    """State's own functions on a database, its group commit running."""

    def __init__(self, db: Database, commits: GroupCommit) -> None:
        self.db = db
        self.commits = commits
        self._streams: dict[str, str] = {}

    async def commit(self, *operations: Operation) -> list[Answer]:
        # All are handed over before the writer gets its turn, so that they meet in one batch.
        return list(await asyncio.gather(*(self._commit(operation) for operation in operations)))

    async def _commit(self, operation: Operation) -> Answer:
        try:
            if isinstance(operation, journal_pb2.NewRun):
                return await self.commits.create_run(operation)
            committed = await self.commits.commit(operation)
        except HoldfastError as error:
            return error
        assert isinstance(committed, Committed)
        return committed.seq

    async def run(self, run_id: str, workspace_id: str = WORKSPACE) -> run_pb2.Run:
        return await self.db.read(run_store.get_run, workspace_id, run_id)

    async def events(self, run_id: str, after_seq: int = 0) -> list[run_pb2.Event]:
        return await self.db.read(journal.read_events, WORKSPACE, run_id, after_seq, 1_000)

    async def feed(self, cursor: bytes = b"", limit: int = 500) -> tuple[list[tuple[str, int]], bytes]:
        entries, cursor, _ = await self.db.read(change_feed.read_feed, self.db, cursor, limit)
        return [(entry.event.run_id, entry.event.seq) for entry in entries], cursor

    async def blob(self, blob_hash: bytes, workspace_id: str = WORKSPACE) -> bytes | None:
        return (await self.db.read(journal.read_blobs, workspace_id, [blob_hash])).get(blob_hash)

    async def renew(self, executor_id: str) -> None:
        if executor_id in self._streams:
            stream = self._streams[executor_id]
            if await self.db.write(lease_store.renew, self.db, executor_id, stream) is not None:
                return
        stream = self._streams[executor_id] = new_uuid7()
        await self.db.write(lease_store.open_stream, self.db, executor_id, stream, {})

    async def lose(self, executor_id: str) -> None:
        e = tables.executors.c
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)

        def silence(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(tables.executors).where(e.executor_id == executor_id).values(expires_at=long_ago)
            )

        await self.db.write(silence)

    async def leave(self, executor_id: str) -> None:
        stream = self._streams.pop(executor_id, new_uuid7())
        await self.db.write(lease_store.close_stream, self.db, executor_id, stream, in_order=True)

    async def give_back(self, executor_id: str, runs: Mapping[str, int]) -> None:
        await self.db.write(lease_store.release, self.db, executor_id, dict(runs))

    async def claim(self, executor_id: str, limit: int = 100) -> dict[str, int]:
        if executor_id not in self._streams:
            await self.renew(executor_id)
        claimed = await self.db.write(claims.claim, self.db, executor_id, self._streams[executor_id], limit)
        return {row.run_id: row.epoch for row in claimed.rows} if claimed is not None else {}

    async def sweep(self) -> None:
        await self.db.write(lease_store.sweep, self.db)
        for lost in await self.db.read(lease_store.lost_calls, self.db):
            await self.db.write(lease_store.lose_call, self.db, lost)
        for expired in await self.db.read(expiry.expired_runs, self.db):
            await self.db.write(expiry.expire_run, self.db, expired)

    async def cancel(self, run_id: str, workspace_id: str = WORKSPACE) -> run_pb2.Run:
        run, _ = await self.db.write(run_store.request_cancel, self.db, workspace_id, run_id, "key-1", "enough")
        return run

    async def pause(self, run_id: str, workspace_id: str = WORKSPACE) -> run_pb2.Run:
        run, _ = await self.db.write(pauses.request_pause, self.db, workspace_id, run_id, Asked("key-1", "lunch"))
        return run

    async def resume(self, run_id: str, workspace_id: str = WORKSPACE) -> run_pb2.Run:
        run, _ = await self.db.write(pauses.request_resume, self.db, workspace_id, run_id, Asked("key-1", "back"))
        return run

    async def decide(self, decision: run_pb2.ApprovalDecided, workspace_id: str = WORKSPACE) -> run_pb2.Approval:
        approval, _ = await self.db.write(approval_store.decide_approval, self.db, workspace_id, decision)
        return approval

    async def approval(self, approval_id: str, workspace_id: str = WORKSPACE) -> run_pb2.Approval:
        return await self.db.read(approval_store.get_approval, workspace_id, approval_id)

    async def lease_calls(
        self, worker_id: str, tools: Sequence[str], limit: int = 10, offer: timedelta = timedelta(seconds=60)
    ) -> list[calls_pb2.LeasedCall]:
        return await self.db.write(call_store.lease_calls, self.db, WORKSPACE, worker_id, tools, limit, offer)

    async def start_call(self, worker_id: str, lease: str) -> None:
        await self.db.write(call_store.start_call, self.db, WORKSPACE, worker_id, lease)

    async def renew_calls(self, worker_id: str, running: Mapping[str, str]) -> tuple[list[str], list[str]]:
        return await self.db.write(call_store.renew_calls, self.db, WORKSPACE, worker_id, running)

    async def return_calls(self, worker_id: str, leases: Sequence[str]) -> None:
        await self.db.write(call_store.return_calls, WORKSPACE, worker_id, leases)

    async def complete_call(self, worker_id: str, lease: str, change: run_pb2.Change, late: run_pb2.LateResult) -> int:
        done = await self.db.write(call_store.complete_call, self.db, WORKSPACE, worker_id, lease, change, [], late)
        if done.is_late:
            raise call_store.lost()
        return done.seq


def postgres(url: str) -> str:
    """The URL as an operator writes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def sqlite(folder: Path) -> str:
    """A file in a folder of the test."""
    return f"sqlite:///{folder}/state.db"


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Database]:
    """Opens a database that has state's schema."""
    # NORMAL: what a power cut would lose is no subject here, and each commit is faster.
    async with Database(url, schema="state", pool_size=6, synchronous="NORMAL") as db:
        await upgrade(db, MIGRATIONS)
        yield db


@asynccontextmanager
async def opened(db: Database, clock: Clock | None = None) -> AsyncIterator[SqlStateStore]:
    """The store on a database, with its group commit."""
    commits = GroupCommit(db, Hub(), clock=clock)
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(commits.run())
        try:
            yield SqlStateStore(db, commits)
        finally:
            writer.cancel()


def empty(connection: sa.Connection) -> None:
    """Deletes every row, so that tests can share a database."""
    for table in tables.metadata.sorted_tables:
        connection.execute(sa.delete(table))
