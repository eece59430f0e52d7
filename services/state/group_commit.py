"""Many runs' operations, one transaction: takes everything pending, commits it, answers; meanwhile the next gathers.

No delay is added: alone, an operation is committed at once. Invariant: an operation is answered only after its commit,
and operations of one run are committed in the order they came in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import (
    Conflict,
    HoldfastError,
    InvalidArgument,
    LeaseLost,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from services.shared.crash_points import crash_point
from services.shared.database import Database, Writer
from services.shared.telemetry import get_logger
from services.state import journal
from services.state.hub import Hub
from services.state.rows import run_of, stamp
from services.state.transitions import check_new_run, check_transition

MAX_BATCH = 512
MAX_PENDING = 10_000
MAX_ATTEMPTS = 10

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed transition."""

    seq: int
    at: datetime

    def message(self) -> journal_pb2.Committed:
        """As the contract says it."""
        return journal_pb2.Committed(seq=self.seq, time=stamp(self.at))


Result = Committed | run_pb2.Run | HoldfastError


@dataclass(slots=True, eq=False)
class _Pending:
    # Those with one key are committed one after the other, in their order.
    key: str
    answer: Callable[[Result], None]
    row: journal.TransitionRow | None = None
    new_run: journal_pb2.NewRun | None = None
    attempts: int = 0


@dataclass(slots=True)
class _Outcome:
    """What one transaction did, by pending operation; what is missing was not applied."""

    answers: dict[int, Result] = field(default_factory=dict)
    became_ready: bool = False


class GroupCommit:
    """The one writer of executors' operations in this process."""

    def __init__(self, db: Database, hub: Hub, *, max_pending: int = MAX_PENDING) -> None:
        self._db = db
        self._hub = hub
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Semaphore(max_pending)
        self.failing_since: float | None = None

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
        while self._pending and len(batch) < MAX_BATCH:
            pending = self._pending.popleft()
            if pending.key in taken:
                later.append(pending)
            else:
                taken.add(pending.key)
                batch.append(pending)
        self._pending.extendleft(reversed(later))
        return batch

    async def _commit_batch(self, batch: Sequence[_Pending], transactional: Writer, single: Writer) -> None:
        if not batch:
            return
        is_plain = all(p.row is not None and p.row.transition is None for p in batch)
        crash_point("state.before_commit")
        try:
            writer = single if is_plain else transactional
            outcome = await writer.run(_apply, self._db, batch)
        except (Unavailable, ResourceExhausted) as error:
            await self._after_trouble(batch, error)
            return
        except Exception as error:
            if len(batch) > 1:
                # One of them is poison: apart, only it fails.
                log.warning("batch_failed", size=len(batch), exc_info=error)
                for pending in batch:
                    await self._commit_batch([pending], transactional, single)
                return
            log.error("operation_failed", key=batch[0].key, exc_info=error)
            failure = error if isinstance(error, HoldfastError) else InvalidArgument("the operation cannot be stored")
            batch[0].answer(failure)
            return
        crash_point("state.after_commit")
        missing = [pending for index, pending in enumerate(batch) if index not in outcome.answers]
        diagnoses = await self._diagnosed(missing) if missing else {}
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
        if outcome.became_ready:
            self._hub.runs_ready()
        self._hub.feed_changed()

    async def _diagnosed(self, missing: Sequence[_Pending]) -> dict[int, Committed | HoldfastError | None]:
        try:
            return await self._db.read(_diagnose, missing)
        except HoldfastError as error:
            # The others of the batch are committed and are answered so. These can be sent again in any case.
            log.warning("storage_trouble", reason=error.reason, pending=len(missing))
            return {id(pending): error for pending in missing}

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

    async def _after_trouble(self, batch: Sequence[_Pending], error: HoldfastError) -> None:
        """The storage is away or full. What may be committed already is answered right when it is sent again."""
        log.warning("storage_trouble", reason=error.reason, pending=len(batch))
        for pending in batch:
            pending.answer(error)


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
        known = journal.known_among(connection, [new for _, new in fast])
        slow += [(index, new) for index, new in fast if new.run_id in known]
        fast = [(index, new) for index, new in fast if new.run_id not in known]
    if fast:
        try:
            with connection.begin_nested():
                rows = journal.insert_new_sessions(connection, db, [new for _, new in fast])
            for index, new in fast:
                outcome.answers[index] = run_of(rows[new.run_id])
        except IntegrityError:
            slow += fast
    for index, new in slow:
        try:
            with connection.begin_nested():
                outcome.answers[index] = run_of(journal.insert_run(connection, db, new))
        except HoldfastError as error:
            outcome.answers[index] = error


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
    if operation.WhichOneof("kind") == "transition":
        check_transition(operation.transition)
        row = journal.transition_row(operation.transition)
        if len(row.body) > journal.MAX_EVENT_BYTES:
            raise InvalidArgument(
                f"an event has at most {journal.MAX_EVENT_BYTES} bytes; larger bodies are stored as blobs",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        return _Pending(row.run_id, answer, row=row)
    new = operation.new_run
    check_new_run(new)
    # Two with the same request id, or in the same session, must not meet in one batch.
    key = new.session_id or (f"{new.workspace_id} {new.request_id}" if new.request_id else new.run_id)
    return _Pending(key, answer, new_run=new)


def _refused(operation_id: int, error: HoldfastError) -> journal_pb2.OperationResult:
    result = journal_pb2.OperationResult(
        id=operation_id,
        refused=journal_pb2.Refused(reason=error.reason, code=error.code.value[0], message=error.message),
    )
    if error.retry_delay_seconds is not None:
        result.refused.retry_delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
    return result
