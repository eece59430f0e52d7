"""An executor's stream: slots in, claims out. A stream that ends says what becomes of its executor's runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.errors import HoldfastError, InvalidArgument, LeaseLost
from holdfast.ids import is_uuid, new_uuid7
from holdfast.times import to_duration
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import claims, lease_store
from services.state.claiming import Claiming
from services.state.hub import Hub
from services.state.rows import run_of

HEARTBEAT_SECONDS = 1.0
BREAK_SHOWS_SECONDS = 0.1
SHORT_JOURNAL_BYTES = 64 * 1024
# Longer journals are not even looked at: the executor reads them itself.
SHORT_JOURNAL_EVENTS = 64

log = get_logger(__name__)


class Leases:
    """Claims, renewals and returns for the executors that are connected here."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub
        self.claiming = Claiming(db, hub)
        self._leaving: set[asyncio.Task[None]] = set()
        self.draining = asyncio.Event()

    async def work(self, requests: AsyncIterator[lease_pb2.WorkRequest]) -> AsyncIterator[lease_pb2.WorkResponse]:
        """Serves one executor's stream.

        Raises:
            InvalidArgument: The first message does not name the executor.
            LeaseLost: Another stream speaks for the executor now, or its leases ran out: it may come back.
            Unavailable: The storage is away, so that the leases cannot be renewed.
        """
        first = await anext(requests, None)
        if first is None:
            return
        if not is_uuid(first.executor_id):
            raise InvalidArgument("executor_id must be a UUID", field="executor_id")
        stream = _Stream(self._db, self._hub, first.executor_id, self.claiming, self.draining)
        with self._hub.executor(first.executor_id, stream):
            await stream.open(first)
            try:
                async for response in stream.serve(requests):
                    yield response
            finally:
                # A task of its own: the stream may be cancelled once more while its runs are given back.
                await asyncio.shield(self._spawn(stream.leave()))

    async def close(self) -> None:
        """Returns when all streams that have ended have given their runs back."""
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task


class _Stream:
    def __init__(self, db: Database, hub: Hub, executor_id: str, claiming: Claiming, draining: asyncio.Event) -> None:
        self._db = db
        self._hub = hub
        self._executor_id = executor_id
        self._stream_id = new_uuid7()
        self._claiming = claiming
        self._draining = draining
        self._has_ended = False
        self._ended_in_order = False
        self._may_claim = asyncio.Event()
        self._news = asyncio.Event()
        # What the next response tells.
        self._out = lease_pb2.WorkResponse()
        self._nudged: set[str] = set()
        self._queued: set[tuple[str, str]] = set()
        self._must_answer = False
        self._renewed_at = 0.0

    # --- what others tell: gathered, and sent with the next response -------------------------------------------

    def runs_ready(self) -> None:
        self._may_claim.set()

    def nudge(self, run_id: str) -> None:
        self._nudged.add(run_id)
        self._news.set()

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        self._queued.add((workspace_id, tool))
        self._news.set()

    def calls_cancelled(self, leases: list[str]) -> None:
        self._out.cancelled_call_leases.extend(leases)
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    # --- the stream's life ---------------------------------------------------------------------------------------

    async def open(self, first: lease_pb2.WorkRequest) -> None:
        """Takes over for the executor and tells it which of the runs that it named are lost."""
        held = {run.run_id: run.epoch for run in first.held}
        kept, freed = await self._db.write(lease_store.open_stream, self._db, self._executor_id, self._stream_id, held)
        self._renewed_at = asyncio.get_running_loop().time()
        if freed:
            log.info("undelivered_runs_returned", executor_id=self._executor_id, runs=freed)
            self._hub.runs_ready()
        self._out.heartbeat_interval.CopyFrom(to_duration(HEARTBEAT_SECONDS))
        self._out.lease_duration.CopyFrom(to_duration(lease_store.LEASE_DURATION.total_seconds()))
        self._out.lost.extend(run for run in first.held if run.run_id not in kept)
        await self._take(first)

    async def serve(self, requests: AsyncIterator[lease_pb2.WorkRequest]) -> AsyncIterator[lease_pb2.WorkResponse]:
        """Answers until the executor half-closes, the server drains, or something fails."""
        parts = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._claim_for_ever())]
        for part in parts:
            part.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                response = self._take_response()
                if response is not None:
                    yield response
                for part in parts:
                    if part.done():
                        part.result()
                if self._has_ended:
                    # A connection that breaks looks like an end in order at first; the cancellation comes right after.
                    await asyncio.sleep(BREAK_SHOWS_SECONDS)
                    self._ended_in_order = True
                    return
                if self._draining.is_set():
                    return
        finally:
            for part in parts:
                part.cancel()
            self._claiming.set_free_slots(self._stream_id, 0)
            await asyncio.gather(*parts, return_exceptions=True)

    async def leave(self) -> None:
        """The stream is over: in order, or broken. A server that drains leaves the leases as they are.

        What was claimed and never sent is returned in either case: now, when the executor comes back and does not name
        it, or when the grace is over.
        """
        if self._draining.is_set() and not self._ended_in_order:
            return
        try:
            freed = await self._db.write(
                lease_store.close_stream, self._db, self._executor_id, self._stream_id, in_order=self._ended_in_order
            )
        except HoldfastError as error:
            # The lease runs out by itself.
            log.warning("runs_not_returned", executor_id=self._executor_id, reason=error.reason)
            return
        if freed:
            self._hub.runs_ready()

    def _take_response(self) -> lease_pb2.WorkResponse | None:
        response, self._out = self._out, lease_pb2.WorkResponse()
        response.nudged_run_ids.extend(self._nudged)
        for workspace_id, tool in self._queued:
            response.calls_queued.add(workspace_id=workspace_id, tool=tool)
        self._nudged.clear()
        self._queued.clear()
        if not (self._must_answer or response.ByteSize()):
            return None
        self._must_answer = False
        return response

    async def _read(self, requests: AsyncIterator[lease_pb2.WorkRequest]) -> None:
        async for request in requests:
            await self._renew()
            await self._take(request)
        self._claiming.set_free_slots(self._stream_id, 0)
        self._has_ended = True

    async def _take(self, request: lease_pb2.WorkRequest) -> None:
        if request.released:
            named = {held.run_id: held.epoch for held in request.released}
            if await self._db.write(lease_store.release, self._db, self._executor_id, named):
                self._hub.runs_ready()
        self._claiming.set_free_slots(self._stream_id, 0 if request.draining else request.free_slots)
        self._may_claim.set()
        # Every message is answered, so that the executor knows that its leases hold.
        self._must_answer = True
        self._news.set()

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        # One row for all runs of the executor, at most once in half an interval.
        if now - self._renewed_at <= HEARTBEAT_SECONDS / 2:
            return
        nudged = await self._db.write_by_keys(lease_store.renew, self._db, self._executor_id, self._stream_id)
        if nudged is None:
            raise LeaseLost("this stream does not speak for the executor any more; open another and name what is held")
        self._renewed_at = now
        self._nudged.update(nudged)

    # --- claims --------------------------------------------------------------------------------------------------

    async def _claim_for_ever(self) -> None:
        while True:
            await self._may_claim.wait()
            # Order matters: what becomes ready while this looks sets it again.
            self._may_claim.clear()
            while not self._draining.is_set():
                if not await self._claim():
                    break

    async def _claim(self) -> bool:
        """Claims what is ready. If that fails nobody knows what was claimed: the stream ends, so that the executor
        comes back and names what it has."""
        claimed = await self._claiming.claim(self._executor_id, self._stream_id)
        if claimed is None:
            raise LeaseLost("this stream does not speak for the executor any more; open another and name what is held")
        if not claimed.rows:
            return False
        short = [row.run_id for row in claimed.rows if row.last_seq <= SHORT_JOURNAL_EVENTS]
        try:
            events = await self._db.read_once(claims.short_journals, short, SHORT_JOURNAL_BYTES)
        except HoldfastError as error:
            log.warning("claims_without_journals", reason=error.reason)
            events = {}
        for row in claimed.rows:
            journal_so_far = events.get(row.run_id, [])
            if len(journal_so_far) != row.last_seq:
                journal_so_far = []
            self._out.claims.append(
                lease_pb2.Claim(workspace_id=row.workspace_id, run=run_of(row), epoch=row.epoch, events=journal_so_far)
            )
        self._news.set()
        return True
