"""An executor's stream: slots in, claims out; and the sweeper that returns what nobody holds any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.errors import HoldfastError, InvalidArgument
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import lease_store
from services.state.hub import Hub
from services.state.rows import run_of

HEARTBEAT_SECONDS = 1.0
SWEEP_SECONDS = 0.5
# How long an executor with free slots waits for the hint before it looks by itself: what another replica made ready.
CLAIM_POLL_SECONDS = 0.2
MAX_CLAIMS_AT_ONCE = 100
SHORT_JOURNAL_BYTES = 64 * 1024
HOUSEKEEPING_SWEEPS = 1_200

log = get_logger(__name__)


class Leases:
    """Claims, renewals and returns for the executors that are connected here."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub
        # Claims go one after the other: two at once would only lock each other's rows.
        self._claiming = asyncio.Lock()
        self._streams: dict[str, _Stream] = {}
        self.draining = asyncio.Event()

    async def work(self, requests: AsyncIterator[lease_pb2.WorkRequest]) -> AsyncIterator[lease_pb2.WorkResponse]:
        """Serves one executor's stream."""
        first = await anext(requests, None)
        if first is None:
            return
        if not is_uuid(first.executor_id):
            raise InvalidArgument("executor_id must be a UUID", field="executor_id")
        stream = _Stream(self._db, self._hub, first.executor_id, self._claiming, self.draining)
        before = self._streams.get(first.executor_id)
        if before is not None:
            # Its connection broke, and its end is noticed later than this beginning.
            before.is_superseded = True
        self._streams[first.executor_id] = stream
        try:
            with self._hub.executor(first.executor_id, stream.nudge, stream.calls_queued, stream.calls_cancelled):
                async for response in stream.serve(first, requests):
                    yield response
        finally:
            if self._streams.get(first.executor_id) is stream:
                del self._streams[first.executor_id]

    async def sweep_for_ever(self) -> None:
        """Returns what lost executors and workers held, and wakes what is due; until it is cancelled."""
        sweeps = 0
        is_first = True
        while True:
            try:
                if is_first:
                    # Nobody could renew while state was away: executors that are alive come back and find their runs.
                    await self._db.write(lease_store.extend_all, self._db, lease_store.LEASE_DURATION)
                    is_first = False
            except HoldfastError as error:
                log.warning("sweep_failed", reason=error.reason)
            await asyncio.sleep(SWEEP_SECONDS)
            if is_first:
                continue
            sweeps += 1
            try:
                found = await sweep_once(self._db)
                if sweeps % HOUSEKEEPING_SWEEPS == 0:
                    await self._db.write(lease_store.forget_old_requests, self._db)
                    await self._db.write(lease_store.forget_old_calls, self._db)
            except HoldfastError as error:
                log.warning("sweep_failed", reason=error.reason)
                continue
            if found.ready_runs:
                log.info("runs_returned_or_woken", runs=found.ready_runs)
                self._hub.runs_ready()
            for run_id, holder in found.events:
                self._hub.run_changed(run_id)
                self._hub.nudge(holder, run_id)
            for workspace_id, tool in found.calls_queued:
                self._hub.calls_queued(workspace_id, tool)
            if found.events:
                self._hub.feed_changed()


async def sweep_once(db: Database) -> lease_store.Sweep:
    """Does what time makes due."""
    found = await db.write(lease_store.sweep, db)
    for call in await db.read(lease_store.overdue_calls, db):
        # Order matters: a transaction that writes an event locks the run before anything else, so that its id is newer
        # than that of the event before, and the change feed has them in their order. So each is one of its own.
        lost = await db.write(lease_store.lose_call, db, call)
        if lost is not None:
            found.ready_runs += lost.became_ready
            found.events.append((call.run_id, lost.holder))
    return found


class _Stream:
    def __init__(
        self, db: Database, hub: Hub, executor_id: str, claiming: asyncio.Lock, draining: asyncio.Event
    ) -> None:
        self._db = db
        self._hub = hub
        self._executor_id = executor_id
        self._claiming = claiming
        self._draining = draining
        self._free_slots = 0
        self._is_draining = False
        self._has_ended = False
        self._news = asyncio.Event()
        self._out = lease_pb2.WorkResponse()
        self._must_answer = False
        self._renewed_at = 0.0
        # Invariant: a stream after which another of the same executor has begun claims and returns nothing any more.
        self.is_superseded = False

    # What others tell: gathered, and sent with the next response.

    def nudge(self, run_id: str) -> None:
        self._out.nudged_run_ids.append(run_id)
        self._news.set()

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        self._out.calls_queued.add(workspace_id=workspace_id, tool=tool)
        self._news.set()

    def calls_cancelled(self, leases: list[str]) -> None:
        self._out.cancelled_call_leases.extend(leases)
        self._news.set()

    async def serve(
        self, first: lease_pb2.WorkRequest, requests: AsyncIterator[lease_pb2.WorkRequest]
    ) -> AsyncIterator[lease_pb2.WorkResponse]:
        await self._renew()
        self._out.heartbeat_interval.CopyFrom(_duration(HEARTBEAT_SECONDS))
        self._out.lease_duration.CopyFrom(_duration(lease_store.LEASE_DURATION.total_seconds()))
        async with self._claiming:
            await self._check_held(first)
        await self._take(first)
        reader = asyncio.create_task(self._read(requests))  # ended below, on every path
        claimer = asyncio.create_task(self._claim_for_ever())
        graceful = False
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._out.ByteSize() or self._must_answer:
                    response, self._out = self._out, lease_pb2.WorkResponse()
                    self._must_answer = False
                    yield response
                if self._has_ended or self._draining.is_set():
                    graceful = self._has_ended
                    break
                for task in (reader, claimer):
                    # Without the one nothing renews the leases, without the other nothing is claimed: the executor
                    # has to begin again.
                    if task.done():
                        task.result()
        finally:
            reader.cancel()
            claimer.cancel()
            await asyncio.gather(reader, claimer, return_exceptions=True)
            await asyncio.shield(self._leave(graceful))

    async def _read(self, requests: AsyncIterator[lease_pb2.WorkRequest]) -> None:
        try:
            async for request in requests:
                await self._renew()
                await self._take(request)
                # Every message is answered, so that the executor knows that its leases hold.
                self._must_answer = True
                self._news.set()
            self._has_ended = True
        finally:
            self._news.set()

    async def _take(self, request: lease_pb2.WorkRequest) -> None:
        self._is_draining = request.draining
        self._free_slots = 0 if request.draining else request.free_slots
        if request.released:
            named = {held.run_id: held.epoch for held in request.released}
            if await self._db.write(lease_store.release, self._db, self._executor_id, named):
                self._hub.runs_ready()
        self._must_answer = True
        self._news.set()
        if self._free_slots:
            self._hub.runs_ready()

    async def _check_held(self, first: lease_pb2.WorkRequest) -> None:
        held = await self._db.read(lease_store.still_held, self._executor_id, [run.run_id for run in first.held])
        self._out.lost.extend(run for run in first.held if held.get(run.run_id) != run.epoch)
        named = {run.run_id: run.epoch for run in first.held}
        if await self._db.write(lease_store.release_unnamed, self._db, self._executor_id, named):
            self._hub.runs_ready()

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        # One row for all runs of the executor, at most once in half an interval.
        if now - self._renewed_at > HEARTBEAT_SECONDS / 2:
            await self._db.write(lease_store.renew, self._db, self._executor_id, lease_store.LEASE_DURATION)
            self._renewed_at = now

    async def _claim_for_ever(self) -> None:
        while True:
            if self._free_slots > 0:
                async with self._claiming:
                    claimed = await self._claim()
                if claimed:
                    continue
            await self._hub.wait_for_ready(CLAIM_POLL_SECONDS if self._db.dialect == "postgresql" else 1.0)

    async def _claim(self) -> int:
        limit = min(self._free_slots, MAX_CLAIMS_AT_ONCE)
        if limit <= 0 or self.is_superseded:
            return 0
        try:
            rows = await self._db.write(lease_store.claim, self._db, self._executor_id, limit)
        except HoldfastError as error:
            log.warning("claim_failed", reason=error.reason)
            await asyncio.sleep(CLAIM_POLL_SECONDS)
            return 0
        if not rows:
            return 0
        events: dict[str, list[run_pb2.Event]] = {}
        # Claimed is claimed: without the journals the executor reads them, but it has to know of its runs.
        with contextlib.suppress(HoldfastError):
            events = await self._db.read(lease_store.short_journals, [row.run_id for row in rows], SHORT_JOURNAL_BYTES)
        self._free_slots -= len(rows)
        for row in rows:
            journal_so_far = events.get(row.run_id, [])
            if len(journal_so_far) != row.last_seq:
                journal_so_far = []
            self._out.claims.append(
                lease_pb2.Claim(workspace_id=row.workspace_id, run=run_of(row), epoch=row.epoch, events=journal_so_far)
            )
        self._news.set()
        return len(rows)

    async def _leave(self, graceful: bool) -> None:
        """The stream is over: in order, so its runs are given back now; or broken, with a grace to come back."""
        if self.is_superseded:
            return
        with contextlib.suppress(HoldfastError):
            if graceful:
                if await self._db.write(lease_store.release, self._db, self._executor_id):
                    self._hub.runs_ready()
            elif not self._draining.is_set():
                await self._db.write(lease_store.renew, self._db, self._executor_id, lease_store.GRACE)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
