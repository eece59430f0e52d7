"""JournalService: the checkpoint stream and its unary twins, reading and watching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceServicer
from holdfast.errors import HoldfastError, InvalidArgument, NotFound, Reason
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import journal
from services.state.ends import Ends
from services.state.group_commit import GroupCommit
from services.state.hub import Hub
from services.state.inline_messages import INLINE_BLOB_LIMIT, put_messages_inline
from services.state.operations import refused
from services.state.watch import PAGE, Watching

PIECE_BYTES = 1024 * 1024
# Operations of one stream that wait for their commit; with so many the next frame is not read.
MAX_IN_FLIGHT = 2_048
MAX_FRAME_BYTES = 4 * 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger(__name__)


class JournalServicer(JournalServiceServicer):
    """Serves the journal."""

    def __init__(self, db: Database, commits: GroupCommit, ends: Ends, hub: Hub, watching: Watching) -> None:
        self._db = db
        self._commits = commits
        self._ends = ends
        self._hub = hub
        self._watching = watching
        self.draining = asyncio.Event()

    async def Checkpoint(
        self, request_iterator: AsyncIterator[pb.CheckpointRequest], context: Context
    ) -> AsyncIterator[pb.CheckpointResponse]:
        stream = _CheckpointStream(self._commits, self._ends, self._hub)
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

    def __init__(self, commits: GroupCommit, ends: Ends, hub: Hub) -> None:
        self._commits = commits
        self._ends = ends
        self._hub = hub
        self._answers: list[pb.OperationResult] = []
        self._news = asyncio.Event()
        # Operations under way; beyond MAX_IN_FLIGHT the stream is not read, so that the executor's frames wait there.
        self._in_flight = 0
        self._has_room = asyncio.Event()
        self._awaited: dict[int, Callable[[], None]] = {}
        self._has_ended = False

    async def serve(
        self, frames: AsyncIterator[pb.CheckpointRequest], draining: asyncio.Event
    ) -> AsyncIterator[pb.CheckpointResponse]:
        reader = asyncio.create_task(self._read(frames))  # ended below, on every path
        stopper = asyncio.create_task(self._wake_on(draining))
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._answers:
                    yield self._take_frame()
                if reader.done():
                    reader.result()
                if (self._has_ended or draining.is_set()) and self._in_flight == 0 and not self._answers:
                    return
        finally:
            reader.cancel()
            stopper.cancel()
            for withdraw in self._awaited.values():
                withdraw()
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
                    if operation.HasField("await_end"):
                        self._await_end(operation.id, operation.await_end)
                        continue
                    self._in_flight += 1
                    self._commits.submit(operation, self._answer)
                for operation_id in frame.withdrawn:
                    withdraw = self._awaited.pop(operation_id, None)
                    if withdraw is not None:
                        withdraw()
                while self._in_flight >= MAX_IN_FLIGHT:
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            self._has_ended = True
            self._news.set()

    def _take_frame(self) -> pb.CheckpointResponse:
        answers, self._answers = self._answers, []
        size = 0
        for index, answer in enumerate(answers):
            # Only runs have a size worth counting: theirs is that of their output.
            size += answer.ByteSize() if answer.HasField("run") else 0
            if size > MAX_FRAME_BYTES and index > 0:
                answers, self._answers = answers[:index], answers[index:]
                break
        return pb.CheckpointResponse(results=answers)

    def _answer(self, result: pb.OperationResult) -> None:
        self._in_flight -= 1
        self._has_room.set()
        self._answers.append(result)
        self._news.set()

    def _await_end(self, operation_id: int, asked: pb.AwaitEnd) -> None:
        def answer(result: run_pb2.Run | HoldfastError) -> None:
            if self._awaited.pop(operation_id, None) is None:
                return
            if isinstance(result, HoldfastError):
                self._answers.append(refused(operation_id, result))
            else:
                self._answers.append(pb.OperationResult(id=operation_id, run=result))
            self._news.set()

        self._awaited[operation_id] = self._ends.add(asked.workspace_id, asked.run_id, answer)
