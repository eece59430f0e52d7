"""A run in the caller's hands: its events without gap or double, however often the connection breaks, and its end."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.executor.v1 import run_service_pb2
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.cancellation import cancellations, raise_if_cancelled
from holdfast.errors import Cancelled, DeadlineExceeded, HoldfastError, Internal, Unavailable
from holdfast.ids import new_uuid7
from holdfast.transport import Transport, cancelling

ENDED: Final = frozenset(
    {
        run_pb2.RUN_STATE_SUCCEEDED,
        run_pb2.RUN_STATE_FAILED,
        run_pb2.RUN_STATE_CANCELLED,
        run_pb2.RUN_STATE_EXPIRED,
        run_pb2.RUN_STATE_BUDGET_EXCEEDED,
    }
)
"""States after which nothing of a run changes."""

# A wait is asked for again after this long: an executor that was stopped in the meantime is found out by it.
_WAIT_SECONDS: Final = 30.0
# An idle stream beats every 15 s; after three times that nobody is there.
_IDLE_SECONDS: Final = 45.0
_FIRST_BACKOFF_SECONDS: Final = 0.1
_LONGEST_BACKOFF_SECONDS: Final = 5.0

DEFAULT_REATTACH_SECONDS: Final = 300.0


class RunError(Exception):
    """A run ended without an answer.

    Attributes:
        run: The run as it ended.
    """

    def __init__(self, message: str, run: run_pb2.Run) -> None:
        super().__init__(message)
        self.run = run


class RunFailed(RunError):
    """A run ended with a failure.

    Attributes:
        failure: Why: a stable `reason`, a sentence, and what may be done about it.
    """

    def __init__(self, run: run_pb2.Run) -> None:
        self.failure: content_pb2.Failure = run.failure
        super().__init__(f"run {run.run_id} failed: {run.failure.message} ({run.failure.reason})", run)


class RunCancelled(RunError):
    """A run ended on request."""

    def __init__(self, run: run_pb2.Run) -> None:
        super().__init__(f"run {run.run_id} was cancelled", run)


class RunExpired(RunError):
    """A run did not end in the time that it was given."""

    def __init__(self, run: run_pb2.Run) -> None:
        super().__init__(f"run {run.run_id} expired: it had not ended by {run.expire_time.ToJsonString()}", run)


class RunBudgetExceeded(RunError):
    """A run ended because its next call would have exceeded its budget.

    Attributes:
        failure: Names the limit, what is used of it, and what the call would have needed.
    """

    def __init__(self, run: run_pb2.Run) -> None:
        self.failure: content_pb2.Failure = run.failure
        super().__init__(f"run {run.run_id} stopped: {run.failure.message}", run)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A stored event of a run: what committed together.

    Attributes:
        seq: Its number: 1, 2, 3, … without gaps. `events(after_seq=seq)` goes on behind it.
        message: The whole of it, as the contracts define it.
    """

    seq: int
    message: run_pb2.Event

    @property
    def run_id(self) -> str:
        """The run."""
        return self.message.run_id

    @property
    def time(self) -> datetime:
        """When it was committed, in UTC."""
        return self.message.time.ToDatetime(tzinfo=UTC)

    @property
    def changes(self) -> Iterable[run_pb2.Change]:
        """What happened."""
        return self.message.changes

    @property
    def state(self) -> int | None:
        """The state that the run took on with it; None when it stays as it is."""
        states = [
            change.run_state_changed.state
            for change in self.message.changes
            if change.WhichOneof("kind") == "run_state_changed"
        ]
        return states[-1] if states else None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a model's answer in the making. It is not stored, and void when its attempt fails.

    Attributes:
        seq: The newest event when it came.
        step: The model step.
        attempt: The attempt; pieces of different attempts are never joined.
        index: Number of the piece within the attempt, from 0.
        text: The text to append.
        follows_gap: Pieces before it were missed: the text is whole again with the step's StepFinished event.
    """

    seq: int
    step: int
    attempt: int
    index: int
    text: str
    follows_gap: bool = False


class RunHandle:
    """One run. It goes on without its caller: a handle only looks and asks.

    Attributes:
        id: The run's id.
        run: The run as it was last seen.
    """

    def __init__(self, transport: Transport, run: run_pb2.Run) -> None:
        self.id = run.run_id
        self.run = run
        self._transport = transport
        self._stub = transport.stub("executor", RunServiceStub)

    def __repr__(self) -> str:
        return f"<RunHandle {self.id} {state_name(self.run.state)}>"

    async def get(self) -> run_pb2.Run:
        """Returns the run, with its output when it has one."""
        response = await self._transport.call(
            "executor", self._stub.GetRun, run_service_pb2.GetRunRequest(run_id=self.id)
        )
        self.run = response.run
        return self.run

    async def budget(self) -> list[run_pb2.BudgetLine]:
        """Returns what of the run's budget is used, reserved and left: one line for each limit, none without limits."""
        request = run_service_pb2.GetRunBudgetRequest(run_id=self.id)
        response = await self._transport.call("executor", self._stub.GetRunBudget, request)
        return list(response.lines)

    async def cancel(self, reason: str = "") -> run_pb2.Run:
        """Asks to stop the run; it ends at its next safe point.

        Raises:
            FailedPrecondition: It has ended otherwise.
        """
        request = run_service_pb2.CancelRunRequest(run_id=self.id, reason=reason, request_id=new_uuid7())
        self.run = (await self._transport.call("executor", self._stub.CancelRun, request)).run
        return self.run

    async def pause(self, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """Lets the run rest until it is resumed: at once, or at its next safe point while it is driven.

        Args:
            reason: Why, for the record.
            request_id: The same id is the same pause: repeated, it does not undo a resume. A new one when not given.

        Raises:
            FailedPrecondition: It has ended.
        """
        request = run_service_pb2.PauseRunRequest(run_id=self.id, reason=reason, request_id=request_id or new_uuid7())
        self.run = (await self._transport.call("executor", self._stub.PauseRun, request)).run
        return self.run

    async def resume(self, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """Goes on with a paused run; where it is only to be paused, that is withdrawn.

        Args:
            reason: Why, for the record.
            request_id: As of `pause`.

        Raises:
            FailedPrecondition: It has ended.
        """
        request = run_service_pb2.ResumeRunRequest(run_id=self.id, reason=reason, request_id=request_id or new_uuid7())
        self.run = (await self._transport.call("executor", self._stub.ResumeRun, request)).run
        return self.run

    async def result(self, *, timeout: float | None = None) -> str:
        """Waits for the end of the run and returns the text of its answer.

        Args:
            timeout: How long to wait at most, in seconds; the run itself goes on.

        Raises:
            RunFailed: The run failed.
            RunCancelled: The run was cancelled.
            RunExpired: The run did not end in the time that it was given.
            TimeoutError: It has not ended in time.
        """
        async with asyncio.timeout(timeout):
            run = await self.wait()
        if run.state == run_pb2.RUN_STATE_FAILED:
            raise RunFailed(run)
        if run.state == run_pb2.RUN_STATE_CANCELLED:
            raise RunCancelled(run)
        if run.state == run_pb2.RUN_STATE_EXPIRED:
            raise RunExpired(run)
        if run.state == run_pb2.RUN_STATE_BUDGET_EXCEEDED:
            raise RunBudgetExceeded(run)
        return text_of(run.output)

    async def wait(self) -> run_pb2.Run:
        """Waits for the end of the run, however it ends, and returns it."""
        loop = asyncio.get_running_loop()
        failures, failing_since = 0, loop.time()
        request = run_service_pb2.WaitRunRequest(run_id=self.id)
        while True:
            began = loop.time()
            try:
                response = await self._transport.call("executor", self._stub.WaitRun, request, timeout=_WAIT_SECONDS)
            except DeadlineExceeded:
                # A wait that was answered so late was one with an executor that is there.
                failures, failing_since = 0, loop.time()
            except HoldfastError as error:
                # No executor that is away for a while ends a wait (P12).
                if loop.time() - began > backoff_seconds(0, None):
                    failures, failing_since = 0, loop.time()
                if not is_worth_reattaching(error) or loop.time() - failing_since >= DEFAULT_REATTACH_SECONDS:
                    raise
                await asyncio.sleep(backoff_seconds(failures, error))
                failures += 1
            else:
                self.run = response.run
                return self.run

    def events(
        self, after_seq: int = 0, *, deltas: bool = True, reattach_seconds: float = DEFAULT_REATTACH_SECONDS
    ) -> AsyncGenerator[RunEvent | TextDelta, None]:
        """Yields the events after `after_seq`, then those that follow, until the event that ends the run.

        When the connection breaks, it attaches again behind the last event that was yielded: none is missing, none
        comes twice.

        Args:
            after_seq: The last event already seen; 0 means from the beginning.
            deltas: Also yield the pieces of model answers in the making.
            reattach_seconds: How long to go on trying when no executor can be reached.

        Raises:
            NotFound: There is no such run.
            Unavailable: No executor could be reached for `reattach_seconds`.
        """
        return _Follower(self._transport, self.id, after_seq, deltas, reattach_seconds).follow()

    async def read_message(self, stored: content_pb2.StoredMessage) -> content_pb2.Message:
        """Returns a message of an event; a large one is fetched."""
        if stored.WhichOneof("body") != "blob":
            return stored.message
        return content_pb2.Message.FromString(await self.read_blob(stored.blob))

    async def read_blob(self, blob: content_pb2.BlobRef) -> bytes:
        """Fetches a large body that an event refers to."""
        request = run_service_pb2.GetBlobRequest(hash=blob.hash)
        try:
            call = self._stub.GetBlob(request, metadata=self._transport.metadata(), timeout=60)
            async with cancelling(call):
                return b"".join([response.data async for response in call])
        except grpc.RpcError as error:
            raise self._transport.error("executor", error) from error


class _Follower:
    """Holds the position in a run's events across connections."""

    def __init__(
        self, transport: Transport, run_id: str, after_seq: int, deltas: bool, reattach_seconds: float
    ) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", RunServiceStub)
        self._run_id = run_id
        self._seq = after_seq
        self._deltas = deltas
        self._reattach_seconds = reattach_seconds
        # Next piece of each attempt in the making; those of finished steps are dropped.
        self._next_index: dict[tuple[int, int], int] = {}
        self._has_ended = False
        self._failures = 0
        self._failing_since = math.inf

    async def follow(self) -> AsyncGenerator[RunEvent | TextDelta, None]:
        loop = asyncio.get_running_loop()
        while not self._has_ended:
            failure: HoldfastError | None = None
            before = cancellations()
            try:
                async with aclosing(self._attached()) as items:
                    async for item in items:
                        yield item
                # A stream that ends before the run does belongs to an executor that drains.
                if await self._is_behind_the_end():
                    return
            except grpc.RpcError as error:
                raise_if_cancelled(before)
                failure = self._transport.error("executor", error)
                if not is_worth_reattaching(failure):
                    raise failure from error
            except HoldfastError as error:
                failure = error
                if not is_worth_reattaching(failure):
                    raise
            except TimeoutError:
                failure = Unavailable(
                    f"the executor service at {self._transport.address('executor')} has gone silent",
                    reason="EXECUTOR_UNAVAILABLE",
                )
            self._failing_since = min(self._failing_since, loop.time())
            if failure is not None and loop.time() - self._failing_since >= self._reattach_seconds:
                raise failure
            await asyncio.sleep(backoff_seconds(self._failures, failure))
            self._failures += 1

    async def _is_behind_the_end(self) -> bool:
        if self._has_ended:
            return True
        response = await self._transport.call(
            "executor", self._stub.GetRun, run_service_pb2.GetRunRequest(run_id=self._run_id)
        )
        return response.run.state in ENDED and self._seq >= response.run.last_seq

    async def _attached(self) -> AsyncGenerator[RunEvent | TextDelta, None]:
        request = run_service_pb2.WatchRunRequest(
            run_id=self._run_id, after_seq=self._seq, events_only=not self._deltas
        )
        call = self._stub.WatchRun(request, metadata=self._transport.metadata())
        async with cancelling(call):
            stream = aiter(call)
            while True:
                async with asyncio.timeout(_IDLE_SECONDS):
                    response = await anext(stream, None)
                if response is None:
                    return
                self._failures, self._failing_since = 0, math.inf
                kind = response.WhichOneof("kind")
                if kind == "event":
                    if response.event.seq <= self._seq:
                        continue
                    if response.event.seq != self._seq + 1:
                        # Never skip: the server is asked again for what is missing.
                        return
                    yield self._event(response.event)
                    if self._has_ended:
                        return
                elif kind == "delta":
                    delta = self._delta(response.delta)
                    if delta is not None:
                        yield delta

    def _event(self, event: run_pb2.Event) -> RunEvent:
        self._seq = event.seq
        result = RunEvent(event.seq, event)
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if kind == "step_finished":
                self._forget(change.step_finished.step)
        self._has_ended = result.state in ENDED
        return result

    def _forget(self, step: int) -> None:
        for key in [key for key in self._next_index if key[0] <= step]:
            del self._next_index[key]

    def _delta(self, delta: run_pb2.Delta) -> TextDelta | None:
        key = (delta.step, delta.attempt)
        expected = self._next_index.get(key, 0)
        if delta.index < expected:
            # After re-attaching a server may begin with pieces that were seen.
            return None
        self._next_index[key] = delta.index + 1
        return TextDelta(self._seq, delta.step, delta.attempt, delta.index, delta.text, delta.index > expected)


def is_worth_reattaching(error: HoldfastError) -> bool:
    """Tells whether the same may succeed in a moment, perhaps with another executor."""
    if isinstance(error, (Unavailable, Cancelled, DeadlineExceeded)):
        return True
    # A connection that is cut in the middle of a frame surfaces as INTERNAL or UNKNOWN without our details.
    return isinstance(error, Internal) and error.origin == "foreign"


def backoff_seconds(failures: int, error: HoldfastError | None) -> float:
    """Returns how long to wait before the next attempt: what the service asked for, or longer with each failure."""
    bound = min(_FIRST_BACKOFF_SECONDS * 2**failures, _LONGEST_BACKOFF_SECONDS)
    asked = error.retry_delay_seconds if error is not None and error.origin == "remote" else None
    if asked is not None:
        return min(asked, _LONGEST_BACKOFF_SECONDS)
    return random.uniform(bound / 2, bound)


def text_of(message: content_pb2.Message) -> str:
    """Returns the text of a message: its text parts, one after the other."""
    return "".join(part.text for part in message.parts if part.WhichOneof("kind") == "text")


def state_name(state: int) -> str:
    """Returns the short name of a run's state, such as SUCCEEDED."""
    return short_name(run_pb2.RunState, state, "RUN_STATE_")


def short_name(enum_type: Any, number: int, prefix: str) -> str:
    """Returns the name of an enum's value without its prefix; a number that this release does not know as it is."""
    try:
        name: str = enum_type.Name(number)
    except ValueError:
        return str(number)
    return name.removeprefix(prefix)
