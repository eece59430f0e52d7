"""Typed calls to the state service; above all the journal: one stream on which all runs' operations share frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as run_store_pb2
from holdfast.cancellation import raise_if_cancelled
from holdfast.errors import HoldfastError, InvalidArgument, Reason, error_from_code
from services.executor import retries
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.stored_messages import stored_message_of
from services.shared.telemetry import get_logger
from services.shared.wire import embedded, number_tag_of, repeated, tag_of, whole_number

MAX_FRAME_OPERATIONS = 256
ANSWERS_AT_ONCE = 64
MAX_FRAME_BYTES = 2 * 1024 * 1024
DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
FRAME_OVERHEAD_BYTES = 1024
# Deltas are worth little when they are late: what does not fit is dropped, never waited for.
MAX_PENDING_DELTAS = 4_096

_CHECKPOINT = "/holdfast.api.state.v1.JournalService/Checkpoint"
_OPERATIONS = tag_of(journal_pb2.CheckpointRequest, "operations")
_ID = number_tag_of(journal_pb2.Operation, "id")
_TRANSITION = tag_of(journal_pb2.Operation, "transition")
_NEW_RUN = tag_of(journal_pb2.Operation, "new_run")
_AWAIT_END = tag_of(journal_pb2.Operation, "await_end")

# Frames are joined from operations that were serialized when they were submitted.
CheckpointCall = grpc.aio.StreamStreamCall[bytes, journal_pb2.CheckpointResponse]

log = get_logger(__name__)


@dataclass(slots=True)
class _Pending:
    id: int
    # The serialized Operation.
    operation: bytes
    answer: asyncio.Future[journal_pb2.OperationResult]


class JournalClient:
    """Commits transitions and new runs over a Checkpoint stream that is re-opened whenever it breaks.

    An operation whose answer was lost is sent again; state applies it once and answers the same. So what is submitted
    is answered sooner or later, and a caller that gives up cancels its wait.

    Args:
        channel: To the state service.
        max_message_bytes: The limit of a frame.
    """

    def __init__(self, channel: grpc.aio.Channel, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._open: Callable[[], CheckpointCall] = channel.stream_stream(
            _CHECKPOINT, response_deserializer=journal_pb2.CheckpointResponse.FromString
        )
        self._max_operation_bytes = max_message_bytes - FRAME_OVERHEAD_BYTES
        self._next_id = 0
        # Invariant: insertion order is the order of submission; that is the order of sending again.
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[_Pending] = deque()
        self._withdrawn: list[int] = []
        self._deltas: deque[run_pb2.Delta] = deque(maxlen=MAX_PENDING_DELTAS)
        self._something_to_send = asyncio.Event()

    async def commit(self, transition: bytes) -> journal_pb2.Committed:
        """Stores a transition.

        Args:
            transition: A serialized Transition.

        Raises:
            LeaseLost: Somebody else drives the run: stop.
            Conflict: Another event came first: read it and decide again.
            HoldfastError: It was refused for another reason.
        """
        result = await self._answer_of(self._add(_TRANSITION, transition))
        if result.WhichOneof("kind") == "committed":
            return result.committed
        raise _refusal(result.refused)

    async def create_run(self, new_run: journal_pb2.NewRun) -> tuple[run_pb2.Run, bool]:
        """Stores a new run, or finds the one that its request_id made before.

        Returns:
            The run, and whether the executor named in `claim_for` drives it from now on.

        Raises:
            HoldfastError: It was refused.
        """
        result = await self._answer_of(self._add(_NEW_RUN, new_run.SerializeToString()))
        if result.WhichOneof("kind") == "run":
            return result.run, result.is_claimed
        raise _refusal(result.refused)

    async def await_end(self, workspace_id: str, run_id: str) -> run_pb2.Run:
        """Returns a run once it has ended, with its output.

        Raises:
            NotFound: RUN_NOT_FOUND.
        """
        awaited = journal_pb2.AwaitEnd(workspace_id=workspace_id, run_id=run_id)
        pending = self._add(_AWAIT_END, awaited.SerializeToString())
        try:
            result = await self._answer_of(pending)
        except asyncio.CancelledError:
            self._withdrawn.append(pending.id)
            self._something_to_send.set()
            raise
        if result.WhichOneof("kind") == "run":
            return result.run
        raise _refusal(result.refused)

    def send_delta(self, delta: run_pb2.Delta) -> None:
        """Passes a piece of a model's answer on to whoever watches, if that is possible now."""
        self._deltas.append(delta)
        self._something_to_send.set()

    async def run(self) -> None:
        """Keeps the stream open until it is cancelled."""

        def announce(attempt: int, error: BaseException | None) -> None:
            level = log.info if attempt == 1 else log.debug
            level("journal_stream_broken", pending=len(self._pending), detail=_code_name(error))

        while True:
            async for attempt in retries.reconnecting(announce, ConnectionError):
                with attempt:
                    await self._serve_stream()

    def _add(self, kind: bytes, message: bytes) -> _Pending:
        body = embedded(kind, message)
        if len(body) > self._max_operation_bytes:
            # Sent, it would break the stream that all runs share, again and again.
            raise InvalidArgument(
                f"the operation has {len(body)} bytes; the limit is {self._max_operation_bytes}",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        self._next_id = number = self._next_id + 1
        operation = whole_number(_ID, number) + body
        pending = self._pending[number] = _Pending(number, operation, asyncio.get_running_loop().create_future())
        self._unsent.append(pending)
        self._something_to_send.set()
        return pending

    async def _answer_of(self, pending: _Pending) -> journal_pb2.OperationResult:
        try:
            return await pending.answer
        finally:
            self._pending.pop(pending.id, None)

    async def _serve_stream(self) -> None:
        call: CheckpointCall = self._open()
        has_answered = False
        # What was sent on the last stream and not answered goes first, in its order.
        self._unsent = deque(self._pending.values())
        self._withdrawn.clear()
        self._something_to_send.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write_frames(call))
                async for response in call:
                    has_answered = True
                    for place, result in enumerate(response.results, start=1):
                        pending = self._pending.get(result.id)
                        if pending is not None and not pending.answer.done():
                            pending.answer.set_result(result)
                        if place % ANSWERS_AT_ONCE == 0:
                            # Otherwise all runs of a large frame would go round at one pace, and state would have
                            # nothing to do until the last of them has decided what comes next.
                            await asyncio.sleep(0)
                writer.cancel()
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError) as group:
            raise_if_cancelled()
            # InvalidStateError: a write to a call that has ended. A stream that worked is re-opened at once; one that
            # never did is tried again with growing pauses.
            if not has_answered:
                raise ConnectionError(_code_name(_first(group))) from None
            log.info("journal_stream_broken", pending=len(self._pending), detail=_code_name(_first(group)))
        finally:
            call.cancel()
        if not has_answered:
            raise ConnectionError("the journal stream was closed")

    async def _write_frames(self, call: CheckpointCall) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._unsent or self._deltas or self._withdrawn:
                operations: list[bytes] = []
                size = 0
                while self._unsent and len(operations) < MAX_FRAME_OPERATIONS:
                    pending = self._unsent[0]
                    # One that is larger than a frame goes alone.
                    if operations and size + len(pending.operation) > MAX_FRAME_BYTES:
                        break
                    self._unsent.popleft()
                    if pending.id in self._pending:
                        operations.append(pending.operation)
                        size += len(pending.operation)
                frame = repeated(_OPERATIONS, operations)
                if self._deltas or self._withdrawn:
                    frame += self._take_others(size).SerializeToString()
                await call.write(frame)

    def _take_others(self, size: int) -> journal_pb2.CheckpointRequest:
        """What goes with a frame's operations, which have `size` bytes."""
        others = journal_pb2.CheckpointRequest(withdrawn=self._withdrawn)
        self._withdrawn.clear()
        while self._deltas and size < MAX_FRAME_BYTES:
            delta = self._deltas.popleft()
            others.deltas.append(delta)
            size += len(delta.text) + 64
        return others


class StateReader:
    """What a driver reads: journals with all messages inline, and what was said before in the session."""

    def __init__(self, stubs: StateStubs) -> None:
        self._stubs = stubs

    async def read_events(self, workspace_id: str, run_id: str, after_seq: int) -> list[run_pb2.Event]:
        """The events after `after_seq`, messages inline."""
        request = journal_pb2.ReadJournalRequest(
            workspace_id=workspace_id, run_id=run_id, after_seq=after_seq, inline_messages=True
        )
        events: list[run_pb2.Event] = []
        with calling("state"):
            async for response in self._stubs.journal.ReadJournal(request, timeout=30):
                events.extend(response.events)
        await self.put_messages_inline(workspace_id, events)
        return events

    async def put_messages_inline(self, workspace_id: str, events: Iterable[run_pb2.Event]) -> None:
        """Replaces the blob references of messages by the messages."""
        for event in events:
            for change in event.changes:
                stored = stored_message_of(change)
                if stored is not None and stored.WhichOneof("body") == "blob":
                    body = await self.read_blob(workspace_id, stored.blob.hash)
                    stored.message.ParseFromString(body)

    async def read_blob(self, workspace_id: str, body_hash: bytes) -> bytes:
        """A whole stored body."""
        request = journal_pb2.ReadBlobRequest(workspace_id=workspace_id, hash=body_hash)
        with calling("state"):
            return b"".join([piece.data async for piece in self._stubs.journal.ReadBlob(request, timeout=60)])

    async def session_approvals(self, workspace_id: str, session_id: str) -> Sequence[run_pb2.SessionApproval]:
        """The approvals that hold for all runs of a session."""
        request = run_store_pb2.ListSessionApprovalsRequest(workspace_id=workspace_id, session_id=session_id)
        with calling("state"):
            return (await self._stubs.runs.ListSessionApprovals(request, timeout=30)).approvals

    async def messages_before(self, workspace_id: str, session_id: str, run_id: str) -> list[content_pb2.Message]:
        """The session's messages before a run, in order."""
        stored = self._session_messages(workspace_id, session_id, run_id)
        return in_call_order([found.message async for found in stored])

    async def _session_messages(
        self, workspace_id: str, session_id: str, before_run_id: str
    ) -> AsyncIterator[run_store_pb2.StoredSessionMessage]:
        position = ""
        while True:
            with calling("state"):
                page = await self._stubs.runs.ListSessionMessages(
                    run_store_pb2.ListSessionMessagesRequest(
                        workspace_id=workspace_id,
                        session_id=session_id,
                        before_run_id=before_run_id,
                        page_size=1_000,
                        position=position,
                    ),
                    timeout=30,
                )
            for stored in page.messages:
                yield stored
            position = page.next_position
            if not position:
                return


def in_call_order(messages: list[content_pb2.Message]) -> list[content_pb2.Message]:
    """The same messages with the results of each turn in the order of its calls, whatever order they arrived in."""
    ordered: list[content_pb2.Message] = []
    rank: dict[str, int] = {}
    results: list[content_pb2.Message] = []

    def flush() -> None:
        results.sort(key=lambda message: rank.get(message.parts[0].tool_result.call_id, len(rank)))
        ordered.extend(results)
        results.clear()

    for message in messages:
        if message.role == content_pb2.ROLE_TOOL:
            results.append(message)
            continue
        flush()
        calls = [part.tool_call.call_id for part in message.parts if part.WhichOneof("kind") == "tool_call"]
        rank = {call_id: index for index, call_id in enumerate(calls)}
        ordered.append(message)
    flush()
    return ordered


def _refusal(refused: journal_pb2.Refused) -> HoldfastError:
    delay = refused.retry_delay.ToTimedelta().total_seconds() if refused.HasField("retry_delay") else None
    return error_from_code(refused.code, refused.message, reason=refused.reason, retry_delay_seconds=delay)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _code_name(error: BaseException | None) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name)
    return str(error or "")
