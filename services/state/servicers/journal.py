"""JournalService: the checkpoint stream and its unary twins, reading and watching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceServicer
from holdfast.errors import InvalidArgument, NotFound, Reason
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import journal
from services.state.group_commit import GroupCommit
from services.state.hub import Hub
from services.state.run_store import INLINE_BLOB_LIMIT, put_messages_inline
from services.state.watch import PAGE, Watching

PIECE_BYTES = 1024 * 1024
# Operations of one stream that wait for their commit; beyond it the stream is not read.
MAX_IN_FLIGHT = 2_048

Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger(__name__)


class JournalServicer(JournalServiceServicer):
    """Serves the journal."""

    def __init__(self, db: Database, commits: GroupCommit, hub: Hub, watching: Watching) -> None:
        self._db = db
        self._commits = commits
        self._hub = hub
        self._watching = watching
        self.draining = asyncio.Event()

    async def Checkpoint(
        self, request_iterator: AsyncIterator[pb.CheckpointRequest], context: Context
    ) -> AsyncIterator[pb.CheckpointResponse]:
        stream = _CheckpointStream(self._commits, self._hub)
        async for response in stream.serve(request_iterator, self.draining):
            yield response

    async def Append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        committed = await self._commits.commit(request.transition)
        return pb.AppendResponse(committed=committed.message())

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        return pb.CreateRunResponse(run=await self._commits.create_run(request.new_run))

    async def ReadJournal(
        self, request: pb.ReadJournalRequest, context: Context
    ) -> AsyncIterator[pb.ReadJournalResponse]:
        seen = request.after_seq
        await self._db.read(journal.find_run, request.workspace_id, request.run_id)
        while True:
            events = await self._db.read(self._read, request, seen)
            if not events:
                return
            yield pb.ReadJournalResponse(events=events)
            seen = events[-1].seq

    @staticmethod
    def _read(connection: Any, request: pb.ReadJournalRequest, after_seq: int) -> list[Any]:
        events = journal.read_events(connection, request.workspace_id, request.run_id, after_seq, PAGE)
        if request.inline_messages:
            return put_messages_inline(connection, request.workspace_id, events, limit=INLINE_BLOB_LIMIT)
        return events

    async def WatchJournal(
        self, request: pb.WatchJournalRequest, context: Context
    ) -> AsyncIterator[pb.WatchJournalResponse]:
        if request.after_seq < 0:
            raise InvalidArgument("after_seq must not be negative", field="after_seq")
        async for response in self._watching.watch(
            request.workspace_id, request.run_id, request.after_seq, events_only=request.events_only
        ):
            yield response

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Context) -> AsyncIterator[pb.ReadBlobResponse]:
        if request.offset < 0:
            raise InvalidArgument("offset must not be negative", field="offset")
        found = await self._db.read(journal.read_blobs, request.workspace_id, [request.hash])
        data = found.get(request.hash)
        if data is None:
            raise NotFound("no such blob", reason=Reason.BLOB_NOT_FOUND)
        offset = request.offset
        while True:
            yield pb.ReadBlobResponse(data=data[offset : offset + PIECE_BYTES], size=len(data))
            offset += PIECE_BYTES
            if offset >= len(data):
                return


class _CheckpointStream:
    """One stream: takes frames, hands their operations to the group commit, gathers the answers into frames."""

    def __init__(self, commits: GroupCommit, hub: Hub) -> None:
        self._commits = commits
        self._hub = hub
        self._answers: list[pb.OperationResult] = []
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._has_ended = False
        self._in_flight = 0

    async def serve(
        self, frames: AsyncIterator[pb.CheckpointRequest], draining: asyncio.Event
    ) -> AsyncIterator[pb.CheckpointResponse]:
        reader = asyncio.create_task(self._read(frames))  # ended below, on every path
        stopper = asyncio.create_task(self._wake_on(draining))
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._answers:
                    answers, self._answers = self._answers, []
                    yield pb.CheckpointResponse(results=answers)
                if reader.done():
                    reader.result()
                if (self._has_ended or draining.is_set()) and self._in_flight == 0 and not self._answers:
                    return
        finally:
            reader.cancel()
            stopper.cancel()
            await asyncio.gather(reader, stopper, return_exceptions=True)

    async def _wake_on(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._news.set()

    async def _read(self, frames: AsyncIterator[pb.CheckpointRequest]) -> None:
        try:
            async for frame in frames:
                for delta in frame.deltas:
                    self._hub.delta(delta)
                for operation in frame.operations:
                    await self._room.acquire()
                    self._in_flight += 1
                    self._commits.submit(operation, self._answer)
        finally:
            self._has_ended = True
            self._news.set()

    def _answer(self, result: pb.OperationResult) -> None:
        self._room.release()
        self._in_flight -= 1
        self._answers.append(result)
        self._news.set()
