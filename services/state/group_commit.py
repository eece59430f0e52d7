"""Many runs' operations, one transaction: takes everything pending, commits it, answers; meanwhile the next gathers.

No delay is added: alone, an operation is committed at once. While the storage is away, operations wait and are tried
again: to an executor a refusal is final. Invariant: an operation is answered only after its commit,
and operations of one run are committed in the order they came in.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.exc import IntegrityError

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import (
    AlreadyExists,
    Conflict,
    HoldfastError,
    InvalidArgument,
    LeaseLost,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from services.shared.clock import Clock, SystemClock
from services.shared.crash_points import crash_point
from services.shared.database import Database, Writer
from services.shared.telemetry import get_logger
from services.state import journal
from services.state.hub import Hub
from services.state.rows import run_of, stamp
from services.state.transitions import check_new_run, check_transition

MAX_BATCH = 512
# With what they carry; one that is larger goes alone or last.
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_PENDING = 10_000
MAX_ATTEMPTS = 10
ID_TAKEN = "the run's id, or that of the session to begin, is taken"
# How long operations wait for a storage that is away before they are told so.
PATIENCE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed transition."""

    seq: int
    at: datetime

    def message(self) -> journal_pb2.Committed:
        """As the contract says it."""
        return journal_pb2.Committed(seq=self.seq, time=_stamp(self.at))


@lru_cache(maxsize=8)
def _stamp(at: datetime) -> Timestamp:
    # One time for a whole batch. Never changed: messages take a copy.
    return stamp(at)


Result = Committed | run_pb2.Run | HoldfastError


@dataclass(slots=True, eq=False)
class _Pending:
    # Those with one key are committed one after the other, in their order.
    key: str
    answer: Callable[[Result], None]
    row: journal.TransitionRow | None = None
    new_run: journal_pb2.NewRun | None = None
    size: int = 0
    arrived: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class _Outcome:
    """What one transaction did, by pending operation; what is missing was not applied."""

    answers: dict[int, Result] = field(default_factory=dict)
    became_ready: bool = False


class GroupCommit:
    """The one writer of executors' operations in this process.

    Args:
        db: Where the journal is.
        hub: Who is told of what was committed.
        clock: Measures how long operations have waited for a storage that is away.
        max_pending: How many unary operations may wait.
    """

    def __init__(self, db: Database, hub: Hub, *, clock: Clock | None = None, max_pending: int = MAX_PENDING) -> None:
        self._db = db
        self._hub = hub
        self._clock: Clock = SystemClock() if clock is None else clock
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Semaphore(max_pending)

    def submit(self, operation: journal_pb2.Operation, answer: Callable[[journal_pb2.OperationResult], None]) -> None:
        """Takes an operation of a stream; `answer` is called once, after its commit. The caller bounds how many."""

        def give(result: Result) -> None:
            if isinstance(result, HoldfastError):
                answer(_refused(operation.id, result))
            elif isinstance(result, Committed):
                answer(journal_pb2.OperationResult(id=operation.id, committed=result.message()))
            else:
                answer(journal_pb2.OperationResult(id=operation.id, run=result))

        try:
            self._enqueue(_pending_of(operation, give))
        except HoldfastError as error:
            give(error)

    async def commit(self, transition: journal_pb2.Transition) -> Committed:
        """Commits a transition and returns after the commit.

        Raises:
            HoldfastError: LEASE_LOST, CONFLICT, RUN_NOT_FOUND, INVALID_FIELD, or the storage's trouble.
        """
        result = await self._wait_for(journal_pb2.Operation(transition=transition))
        assert isinstance(result, Committed)
        return result

    async def create_run(self, new_run: journal_pb2.NewRun) -> run_pb2.Run:
        """Stores a new run, or finds the one its request_id made before.

        Raises:
            HoldfastError: REQUEST_ID_REUSED, SESSION_NOT_FOUND, SESSION_BUSY, or the storage's trouble.
        """
        result = await self._wait_for(journal_pb2.Operation(new_run=new_run))
        assert isinstance(result, run_pb2.Run)
        return result

    async def _wait_for(self, operation: journal_pb2.Operation) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def give(result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        async with self._room:
            self._enqueue(_pending_of(operation, give))
            result = await answer
        if isinstance(result, HoldfastError):
            raise result
        return result

    def _enqueue(self, pending: _Pending) -> None:
        pending.arrived = self._clock.monotonic()
        self._pending.append(pending)
        self._arrived.set()

    async def run(self) -> None:
        """Commits until it is cancelled."""
        async with AsyncExitStack() as closing:
            transactional = await closing.enter_async_context(self._db.writer())
            single = await closing.enter_async_context(self._db.writer(autocommit=True))
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._pending:
                    await self._commit_batch(self._take_batch(), transactional, single)

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        taken: set[str] = set()
        later: list[_Pending] = []
        size = 0
        while self._pending and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            pending = self._pending.popleft()
            if pending.key in taken:
                later.append(pending)
            else:
                taken.add(pending.key)
                batch.append(pending)
                size += pending.size
        self._pending.extendleft(reversed(later))
        return batch

    async def _commit_batch(self, batch: Sequence[_Pending], transactional: Writer, single: Writer) -> None:
        attempt = 0
        while batch:
            is_plain = all(p.row is not None and p.row.transition is None for p in batch)
            crash_point("state.before_commit")
            try:
                outcome = await (single if is_plain else transactional).run(_apply, self._db, batch)
                missing = [pending for index, pending in enumerate(batch) if index not in outcome.answers]
                diagnoses = await self._db.read(_diagnose, missing) if missing else {}
            except Unavailable as error:
                attempt += 1
                batch = await self._after_trouble(batch, error, attempt)
                continue
            except ResourceExhausted as error:
                # Nothing was written, and waiting here would only hide a full disk.
                log.warning("storage_full", pending=len(batch))
                for pending in batch:
                    pending.answer(error)
                return
            except Exception as error:
                await self._after_failure(batch, error, transactional, single)
                return
            crash_point("state.after_commit")
            self._answer(batch, outcome, diagnoses, was_repeated=attempt > 0)
            return

    def _answer(
        self,
        batch: Sequence[_Pending],
        outcome: _Outcome,
        diagnoses: Mapping[int, Committed | HoldfastError | None],
        *,
        was_repeated: bool,
    ) -> None:
        again: list[_Pending] = []
        for index, pending in enumerate(batch):
            result = outcome.answers.get(index) or diagnoses[id(pending)]
            if result is None:
                again.append(pending)
                continue
            pending.answer(result)
            if pending.row is not None and isinstance(result, Committed):
                self._publish(pending.row, result)
        # First in the queue: those of the same run that came later wait behind it.
        self._pending.extendleft(reversed(again))
        # What a transaction made whose answer was lost is not known any more.
        if outcome.became_ready or was_repeated:
            self._hub.runs_ready()
        self._hub.feed_changed()

    async def _after_trouble(self, batch: Sequence[_Pending], error: Unavailable, attempt: int) -> list[_Pending]:
        """The storage is away: what may have been committed is found to be when it is tried again.

        Returns:
            What to try again now; the others have waited for too long and were answered.
        """
        now = self._clock.monotonic()
        patient = [pending for pending in batch if now - pending.arrived < PATIENCE_SECONDS]
        level = log.warning if attempt == 1 else log.debug
        level("storage_trouble", reason=error.reason, pending=len(batch), attempt=attempt)
        for pending in batch:
            if now - pending.arrived >= PATIENCE_SECONDS:
                pending.answer(error)
        if patient:
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
            await self._clock.sleep(random.uniform(pause / 2, pause))
        return patient

    async def _after_failure(
        self, batch: Sequence[_Pending], error: Exception, transactional: Writer, single: Writer
    ) -> None:
        """One of them cannot be stored: halved until it is alone, only it fails."""
        if len(batch) > 1:
            log.warning("batch_failed", size=len(batch), cause=type(error).__name__)
            middle = len(batch) // 2
            await self._commit_batch(batch[:middle], transactional, single)
            await self._commit_batch(batch[middle:], transactional, single)
            return
        if isinstance(error, HoldfastError):
            batch[0].answer(error)
            return
        if isinstance(error, IntegrityError) and batch[0].new_run is not None:
            # Another replica has stored it, or its request, in the same moment: now it is found.
            batch[0].attempts += 1
            if batch[0].attempts <= 2:
                await self._commit_batch(batch, transactional, single)
            else:
                batch[0].answer(AlreadyExists(ID_TAKEN))
            return
        log.error("operation_failed", key=batch[0].key, exc_info=error)
        batch[0].answer(InvalidArgument("the operation cannot be stored"))

    def _publish(self, row: journal.TransitionRow, committed: Committed) -> None:
        if self._hub.is_watched(row.run_id):
            event = run_pb2.Event.FromString(row.body)
            event.run_id, event.seq, event.epoch = row.run_id, row.seq, row.epoch
            event.time.FromDatetime(committed.at)
            self._hub.committed(event)
        if row.transition is not None:
            # A hint: workers would find the calls at their executors' next look as well.
            for tool in {call.tool for call in row.transition.calls}:
                self._hub.calls_queued(row.workspace_id, tool)


def _apply(connection: sa.Connection, db: Database, batch: Sequence[_Pending]) -> _Outcome:
    outcome = _Outcome()
    rows = [pending.row for pending in batch if pending.row is not None]
    if rows:
        applied = journal.apply_transitions(connection, db, rows)
        effects = []
        at: datetime | None = None
        for index, pending in enumerate(batch):
            if pending.row is None or pending.row.run_id not in applied:
                continue
            done = applied[pending.row.run_id]
            at = done.at
            outcome.answers[index] = Committed(pending.row.seq, done.at)
            outcome.became_ready |= done.unblocked_run_id is not None
            if pending.row.transition is not None:
                effects.append(pending.row.transition)
        if effects and at is not None:
            journal.store_effects(connection, at, effects)
    new_runs = [(index, pending.new_run) for index, pending in enumerate(batch) if pending.new_run is not None]
    if new_runs:
        _create_runs(connection, db, new_runs, outcome)
    return outcome


def _create_runs(
    connection: sa.Connection, db: Database, new_runs: Sequence[tuple[int, journal_pb2.NewRun]], outcome: _Outcome
) -> None:
    outcome.became_ready = True
    fast = [(index, new) for index, new in new_runs if not new.session_id]
    slow = [(index, new) for index, new in new_runs if new.session_id]
    if fast:
        rows = journal.insert_new_sessions(connection, db, [new for _, new in fast])
        for index, new in fast:
            if new.run_id in rows:
                outcome.answers[index] = run_of(rows[new.run_id])
            else:
                slow.append((index, new))
    for index, new in slow:
        outcome.answers[index] = _create_run(connection, db, new)


def _create_run(connection: sa.Connection, db: Database, new: journal_pb2.NewRun) -> run_pb2.Run | HoldfastError:
    # The second time sees what another replica stored in the meantime under the same id or request id.
    for _ in range(2):
        try:
            with connection.begin_nested():
                return run_of(journal.insert_run(connection, db, new))
        except HoldfastError as error:
            return error
        except IntegrityError:
            continue
    return AlreadyExists(ID_TAKEN)


def _diagnose(connection: sa.Connection, missing: Sequence[_Pending]) -> dict[int, Committed | HoldfastError | None]:
    """Why transitions were not applied; one that is stored already is committed, None is to be applied again."""
    found: dict[int, Committed | HoldfastError | None] = {}
    for pending in missing:
        row = pending.row
        assert row is not None
        run = journal.select_run(connection, row.workspace_id, row.run_id)
        if run is None:
            found[id(pending)] = NotFound("no such run", reason=Reason.RUN_NOT_FOUND)
            continue
        stored = journal.stored_event(connection, row.run_id, row.seq)
        if stored is not None and stored.epoch == row.epoch and bytes(stored.body) == row.body:
            found[id(pending)] = Committed(row.seq, stored.at)
        elif run.epoch != row.epoch or run.state != run_pb2.RUN_STATE_RUNNING:
            found[id(pending)] = LeaseLost("the run is not driven under this epoch")
        elif run.last_seq == row.seq - 1 and pending.attempts < MAX_ATTEMPTS:
            # The statement's snapshot was too old for it, see journal.POSTGRES_BATCH.
            pending.attempts += 1
            found[id(pending)] = None
        else:
            found[id(pending)] = Conflict(f"the run's next event is {run.last_seq + 1}")
    return found


def _pending_of(operation: journal_pb2.Operation, answer: Callable[[Result], None]) -> _Pending:
    if operation.WhichOneof("kind") is None:
        raise InvalidArgument("an operation has a transition or a new run", field="operations.kind")
    if operation.WhichOneof("kind") == "transition":
        check_transition(operation.transition)
        try:
            row = journal.transition_row(operation.transition)
        except (ValueError, OverflowError) as error:
            raise InvalidArgument("a time is out of range", field="transition.changes") from error
        if len(row.body) > journal.MAX_EVENT_BYTES:
            raise InvalidArgument(
                f"an event has at most {journal.MAX_EVENT_BYTES} bytes; larger bodies are stored as blobs",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        size = len(row.body) if row.transition is None else operation.transition.ByteSize()
        return _Pending(row.run_id, answer, row=row, size=size)
    new = operation.new_run
    check_new_run(new)
    if len(journal.created_body(new, None)) > journal.MAX_EVENT_BYTES:
        raise InvalidArgument(
            f"an event has at most {journal.MAX_EVENT_BYTES} bytes; larger bodies are stored as blobs",
            reason=Reason.MESSAGE_TOO_LARGE,
        )
    # Two with the same request id, or in the same session, must not meet in one batch.
    key = new.session_id or (f"{new.workspace_id} {new.request_id}" if new.request_id else new.run_id)
    return _Pending(key, answer, new_run=new, size=new.ByteSize())


def _refused(operation_id: int, error: HoldfastError) -> journal_pb2.OperationResult:
    result = journal_pb2.OperationResult(
        id=operation_id,
        refused=journal_pb2.Refused(reason=error.reason, code=error.code.value[0], message=error.message),
    )
    if error.retry_delay_seconds is not None:
        result.refused.retry_delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
    return result
