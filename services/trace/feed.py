"""Follows the change feed of state, for ever: what arrives is stored together with the place where it goes on.

Nothing is lost and nothing is double, whenever this process dies: the cursor and the events it stands for are one
transaction, and an event that comes again changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from holdfast.api.state.v1.change_feed_service_pb2 import FollowRequest, FollowResponse
from holdfast.api.state.v1.change_feed_service_pb2_grpc import ChangeFeedServiceStub
from holdfast.cancellation import raise_if_cancelled
from holdfast.errors import Conflict, HoldfastError, InvalidArgument, Unavailable, from_rpc_error
from services.shared.clock import Clock
from services.shared.telemetry import get_logger
from services.trace.progress import Progress
from services.trace.store import Projection, TraceStore
from services.trace.summary import to_datetime

FOLLOW_METHOD: Final = "/holdfast.api.state.v1.ChangeFeedService/Follow"

_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 2.0
_STANDBY_SECONDS: Final = 2.0
# State beats when it is idle; a stream that is silent for so long is dead, whatever the transport believes.
_SILENCE_SECONDS: Final = 60.0
_BUFFERED_FRAMES: Final = 16
# Frames that wait while a transaction commits go into the next one together, up to so many events.
_MOST_EVENTS_TOGETHER: Final = 2_000
_REPORT_EVERY_SECONDS: Final = 5.0

log = get_logger(__name__)


class FeedMetrics:
    """What an operator watches.

    Args:
        registry: The process's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter("holdfast_trace_feed_events", "Events stored.", registry=registry)
        self.repeated_events = Counter(
            "holdfast_trace_feed_repeated_events", "Events that came again and changed nothing.", registry=registry
        )
        self.commit_seconds = Histogram(
            "holdfast_trace_feed_commit_seconds",
            "Time of one transaction that stores events.",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=registry,
        )
        self.following = Gauge(
            "holdfast_trace_feed_following", "1 while this process stores the feed.", registry=registry
        )
        self.caught_up = Gauge(
            "holdfast_trace_feed_caught_up", "1 while the feed is read to its end.", registry=registry
        )
        self.lag_seconds = Gauge(
            "holdfast_trace_feed_lag_seconds", "Age of the newest event stored, 0 when caught up.", registry=registry
        )
        self.gaps = Counter(
            "holdfast_trace_feed_gaps", "Transactions after which an event of a run was missing.", registry=registry
        )


@dataclass(slots=True)
class _Place:
    """Where this process is in the feed."""

    stored: bytes
    """The cursor in the database."""
    has_stored: bool = False
    """Whether the stream that is open brought anything."""


@dataclass(slots=True)
class _Batch:
    """Frames that are stored together."""

    frames: list[FollowResponse] = field(default_factory=list)
    failure: Exception | None = None
    """Why there are no more frames."""

    @property
    def event_count(self) -> int:
        return sum(len(frame.entries) for frame in self.frames)


class Follower:
    """Reads the feed and stores it.

    Args:
        channel: To the state service.
        address: Where that is, for the log.
        store: Where events go.
        progress: Told what was stored.
        metrics: Told how it goes.
        clock: Time for delays.
        max_entries: Most events in one frame.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str,
        store: TraceStore,
        progress: Progress,
        metrics: FeedMetrics,
        clock: Clock,
        max_entries: int,
    ) -> None:
        self._stub = ChangeFeedServiceStub(channel)
        self._address = address
        self._store = store
        self._progress = progress
        self._metrics = metrics
        self._clock = clock
        self._max_entries = max_entries
        self._reported_at: float | None = None

    async def run(self) -> None:
        """Follows until it is cancelled. Whatever fails is tried again, with growing delays."""
        async with self._store.projection() as projection:
            failures = 0
            # A feed that does not know our cursor is read from its beginning; what is stored already is passed over.
            from_the_beginning = False
            while True:
                place = _Place(b"")
                try:
                    if not await projection.try_to_lead():
                        log.debug("standby")
                        await self._clock.sleep(_STANDBY_SECONDS)
                        continue
                    place.stored = await projection.cursor()
                    await self._follow(projection, place, b"" if from_the_beginning else place.stored)
                except InvalidArgument as error:
                    self._report_cursor_refused(error)
                    from_the_beginning = True
                except Conflict:
                    log.info("another_process_projects")
                except HoldfastError as error:
                    self._report_waiting(error)
                except Exception as error:
                    # A bug, perhaps in one event only. To stop would also stop the queries, which still work.
                    log.error("projection_failed", exc_info=error)
                finally:
                    self._metrics.following.set(0)
                    self._metrics.caught_up.set(0)
                if place.has_stored:
                    failures, from_the_beginning = 0, False
                failures += 1
                await self._clock.sleep(_delay_seconds(failures))

    async def _follow(self, projection: Projection, place: _Place, start: bytes) -> None:
        # Reading goes on while a transaction commits; the queue is what state may be ahead.
        frames: asyncio.Queue[FollowResponse | Exception] = asyncio.Queue(_BUFFERED_FRAMES)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(start, frames))
            failure = await self._store_all(projection, place, frames)
            reader.cancel()
        raise failure

    async def _read(self, start: bytes, frames: asyncio.Queue[FollowResponse | Exception]) -> None:
        call = self._stub.Follow(FollowRequest(cursor=start, max_entries=self._max_entries))
        try:
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    frame = await call.read()
                if not isinstance(frame, FollowResponse):
                    raise Unavailable("the feed ended", reason="STATE_UNAVAILABLE")
                await frames.put(frame)
        except grpc.RpcError as error:
            raise_if_cancelled()
            await frames.put(from_rpc_error(error, peer="state"))
        except TimeoutError:
            await frames.put(Unavailable("the feed is silent", reason="STATE_UNAVAILABLE"))
        except Exception as error:
            await frames.put(error)
        finally:
            call.cancel()

    async def _store_all(
        self, projection: Projection, place: _Place, frames: asyncio.Queue[FollowResponse | Exception]
    ) -> Exception:
        """Stores what is read, in order, and returns why that ended."""
        while True:
            batch = await _next_batch(frames)
            if batch.frames:
                try:
                    await self._store_batch(projection, place, batch.frames)
                except Exception as error:
                    return error
            if batch.failure is not None:
                return batch.failure

    async def _store_batch(self, projection: Projection, place: _Place, frames: list[FollowResponse]) -> None:
        entries = [entry for frame in frames for entry in frame.entries]
        cursor = frames[-1].cursor
        newest = to_datetime(entries[-1].event.time) if entries else None
        count = len(entries)
        if entries or cursor != place.stored:
            started = self._clock.monotonic()
            stored = await projection.store(entries, after=place.stored, cursor=cursor)
            self._metrics.commit_seconds.observe(self._clock.monotonic() - started)
            self._metrics.events.inc(stored.new_events)
            self._metrics.repeated_events.inc(count - stored.new_events)
            self._progress.advanced(stored.advanced)
            if stored.runs_with_gap:
                self._metrics.gaps.inc()
                log.error("events_missing", runs=len(stored.runs_with_gap), run_id=stored.runs_with_gap[0])
            place.stored = cursor
        if not place.has_stored:
            place.has_stored = True
            self._reported_at = None
            self._metrics.following.set(1)
            log.info("following", peer="state", address=self._address)
        caught_up = frames[-1].is_caught_up
        self._metrics.caught_up.set(caught_up)
        if caught_up:
            self._metrics.lag_seconds.set(0)
        elif newest is not None:
            self._metrics.lag_seconds.set(max(0.0, (self._clock.now() - newest).total_seconds()))

    def _report_waiting(self, error: HoldfastError) -> None:
        now = self._clock.monotonic()
        if self._reported_at is not None and now - self._reported_at < _REPORT_EVERY_SECONDS:
            return
        self._reported_at = now
        # The one thing an operator has to know: who is waited for.
        peer = "the database" if error.reason.startswith("STORAGE_") and error.origin == "local" else "state"
        log.info(f"waiting for {peer}", peer=peer, address=self._address, reason=error.reason, detail=error.message)

    def _report_cursor_refused(self, error: InvalidArgument) -> None:
        log.error(
            "state does not know the stored place in its feed; its database was probably replaced. Reading the feed "
            "from its beginning: what is stored already stays as it is",
            reason=error.reason,
            detail=error.message,
        )


async def _next_batch(frames: asyncio.Queue[FollowResponse | Exception]) -> _Batch:
    """Waits for a frame, and takes those with it that have arrived meanwhile."""
    batch = _Batch()
    item = await frames.get()
    while True:
        if isinstance(item, Exception):
            batch.failure = item
            return batch
        batch.frames.append(item)
        if batch.event_count >= _MOST_EVENTS_TOGETHER or frames.empty():
            return batch
        item = frames.get_nowait()


def _delay_seconds(failures: int) -> float:
    # Half of it is random, so that replicas do not come back together.
    longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)
