"""A client's view of a run as it goes on: it survives a restart of state without a gap or a repetition (P12)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Any, Final, Self, cast

import grpc
import grpc.aio

from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2 as run_service
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as run_store_pb2
from holdfast.errors import Cancelled, HoldfastError, Internal, Reason, Unavailable, from_rpc_error
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.clock import Clock, SystemClock
from services.shared.telemetry import get_logger

BEAT_SECONDS: Final = 15.0
REATTACH_SECONDS: Final = 30.0

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
_ENDED: Final = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED,
    run_pb2.RUN_STATE_BUDGET_EXCEEDED,
)

log = get_logger(__name__)


class RunWatcher:
    """Follows runs through state.

    Args:
        state: The state service.
        draining: Set when this executor shuts down: its watchers then go to another one.
        clock: Time for the limit of re-attaching.
        beat_seconds: Longest time without a message.
        reattach_seconds: How long state may be away before the client is told.
    """

    def __init__(
        self,
        state: StateStubs,
        draining: asyncio.Event,
        *,
        clock: Clock | None = None,
        beat_seconds: float = BEAT_SECONDS,
        reattach_seconds: float = REATTACH_SECONDS,
    ) -> None:
        self._state = state
        self.draining = draining
        self._clock: Clock = SystemClock() if clock is None else clock
        self._beat_seconds = beat_seconds
        self._reattach_seconds = reattach_seconds

    async def watch(
        self, workspace_id: str, run_id: str, after_seq: int, *, events_only: bool
    ) -> AsyncGenerator[run_service.WatchRunResponse, None]:
        """Yields the events after `after_seq`, then those that follow, and ends after the run's end.

        Args:
            workspace_id: The workspace.
            run_id: The run.
            after_seq: The last event that the client has.
            events_only: Leave out the pieces of model answers.

        Raises:
            NotFound: RUN_NOT_FOUND.
            Unavailable: State was away for too long, or this executor drains.
        """
        seen = after_seq
        broken_since: float | None = None
        said_at = self._clock.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        is_over = False
        while True:
            request = journal_pb2.WatchJournalRequest(
                workspace_id=workspace_id, run_id=run_id, after_seq=seen, events_only=events_only
            )
            attached = _Attached(self._state.journal.WatchJournal(request), self.draining, self._beat_seconds)
            has_brought_events = False
            try:
                async for message in attached:
                    broken_since, pause = None, _FIRST_PAUSE_SECONDS
                    response = _translated(message, seen)
                    if response is None:
                        continue
                    yield response
                    said_at = self._clock.monotonic()
                    if response.HasField("event"):
                        has_brought_events = True
                        seen = response.event.seq
                        if _ends_run(response.event):
                            return
                # The stream has ended without the run's end: the client has that already, or state drains. Only a
                # stream that was opened after the end and brings nothing says for certain that nothing is missing.
                if is_over and not has_brought_events:
                    return
                run = await self._run(workspace_id, run_id)
                if run.state in _ENDED:
                    if run.last_seq <= seen:
                        return
                    is_over = True
                    continue
                raise Unavailable("state ended the stream", reason=Reason.STATE_UNAVAILABLE)
            except HoldfastError as error:
                if not _is_broken_stream(error) or self.draining.is_set():
                    raise
                now = self._clock.monotonic()
                broken_since = now if broken_since is None else broken_since
                if now - broken_since > self._reattach_seconds:
                    raise Unavailable(
                        "the run's events cannot be read now; watch again from the last seq",
                        reason=Reason.STATE_UNAVAILABLE,
                        retry_delay_seconds=1.0,
                    ) from error
                log.debug("watch_reattaches", run_id=run_id, after_seq=seen, reason=error.reason)
            finally:
                await attached.close()
            if self._clock.monotonic() - said_at >= self._beat_seconds:
                yield run_service.WatchRunResponse(beat=run_service.Beat(last_seq=seen))
                said_at = self._clock.monotonic()
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _run(self, workspace_id: str, run_id: str) -> run_pb2.Run:
        with calling("state"):
            found = await self._state.runs.GetRun(run_store_pb2.GetRunRequest(workspace_id=workspace_id, run_id=run_id))
        return found.run


class _Attached:
    """One stream from state, read with an eye on the clock and on the drain. Yields None where a beat is due."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, journal_pb2.WatchJournalResponse],
        draining: asyncio.Event,
        beat_seconds: float,
    ) -> None:
        self._call = call
        self._draining = draining
        self._beat_seconds = beat_seconds
        # Bare tasks, ended by `close`: a read that is cancelled cancels its stream, so it goes on over a beat.
        self._read: asyncio.Future[Any] | None = None
        self._drained: asyncio.Future[Any] = asyncio.ensure_future(draining.wait())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> journal_pb2.WatchJournalResponse | None:
        if self._read is None:
            self._read = asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait(
            (self._read, self._drained), timeout=self._beat_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if self._read in done:
            read, self._read = self._read, None
            try:
                message = read.result()
            except grpc.RpcError as error:
                raise from_rpc_error(error, peer="state") from error
            if message is grpc.aio.EOF:
                raise StopAsyncIteration
            return cast(journal_pb2.WatchJournalResponse, message)
        if self._draining.is_set():
            raise Unavailable("the executor is shutting down; watch again from the last seq", reason=Reason.DRAINING)
        return None

    async def close(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self._drained.cancel()
        ended = [self._drained]
        if self._read is not None:
            self._read.cancel()
            ended.append(self._read)
        await asyncio.gather(*ended, return_exceptions=True)


def _translated(message: journal_pb2.WatchJournalResponse | None, seen: int) -> run_service.WatchRunResponse | None:
    if message is None:
        return run_service.WatchRunResponse(beat=run_service.Beat(last_seq=seen))
    match message.WhichOneof("kind"):
        case "event":
            # Invariant: no event is passed on twice, whatever a re-attached stream begins with.
            return run_service.WatchRunResponse(event=message.event) if message.event.seq > seen else None
        case "delta":
            return run_service.WatchRunResponse(delta=message.delta)
        case "beat_last_seq":
            return run_service.WatchRunResponse(beat=run_service.Beat(last_seq=message.beat_last_seq))
        case _:
            return None


def _ends_run(event: run_pb2.Event) -> bool:
    return any(change.run_state_changed.state in _ENDED for change in event.changes)


def _is_broken_stream(error: HoldfastError) -> bool:
    # A connection that is cut in the middle of a stream arrives as one of these, depending on where it was cut.
    return isinstance(error, Unavailable | Cancelled) or (isinstance(error, Internal) and error.origin == "foreign")
