"""Many runs' operations, one transaction: takes everything pending, commits it, answers; meanwhile the next gathers.

No delay is added: alone, an operation is committed at once. While the storage is away, operations wait and are tried
again: to an executor a refusal is final. Invariant: an operation is answered only after its commit,
and operations of one run are committed in the order they came in.

Transitions, new runs, and ends of runs that others have started have a lane each: on PostgreSQL, one commits while
another does. That is safe, as nothing is written to a run before its creation was answered, nor after its end.

Operations of a workspace that this process has not met, or whose payloads are sealed and whose key is not at hand, wait
for that beside the lanes, in their order; those of the others pass.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy.exc import IntegrityError

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import AlreadyExists, HoldfastError, InvalidArgument, ResourceExhausted, Unavailable
from services.shared.clock import Clock, SystemClock
from services.shared.crash_points import crash_point
from services.shared.database import Database
from services.shared.seals import MissingKeyError
from services.shared.telemetry import get_logger
from services.state.child_ends import apply_child_ends
from services.state.hub import Ended, Hub
from services.state.operations import (
    Committed,
    Created,
    Outcome,
    PendingRun,
    PendingTransition,
    Result,
    apply_batch,
    apply_plain_batch,
    create_plain_runs,
    create_run,
    create_runs,
    diagnose,
    pending_run,
    pending_transition,
    refused,
)
from services.state.transition_batch import TransitionRow, ended_run

MAX_BATCH = 512
# With what they carry; one that is larger goes alone or last.
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_PENDING = 10_000
ID_TAKEN = "the run's id, or that of the session to begin, is taken"
# How long operations wait for a storage that is away before they are told so.
PATIENCE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

P = TypeVar("P", PendingTransition, PendingRun)

log = get_logger(__name__)


class GroupCommit:
    """The one writer of executors' operations in this process.

    Args:
        db: Where the journal is.
        hub: Who is told of what was committed.
        clock: Measures how long operations have waited for a storage that is away.
        max_pending: How many unary operations may wait.
    """

    def __init__(self, db: Database, hub: Hub, *, clock: Clock | None = None, max_pending: int = MAX_PENDING) -> None:
        clock = SystemClock() if clock is None else clock
        self._child_ends = _ChildEndLane(db, hub, clock)
        self._transitions = _TransitionLane(db, hub, clock, self._child_ends)
        self._runs = _RunLane(db, hub, clock)
        self._room = asyncio.Semaphore(max_pending)
        self._seals = db.seals
        self._clock = clock
        # By workspace: what waits for its key, with its lane.
        self._held: dict[str, list[_Held]] = {}
        self._bringing: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """How many operations wait for their commit: a measure of the load."""
        lanes = (self._transitions, self._child_ends, self._runs)
        return sum(lane.pending for lane in lanes) + sum(map(len, self._held.values()))

    def submit(self, operation: journal_pb2.Operation, answer: Callable[[journal_pb2.OperationResult], None]) -> None:
        """Takes an operation of a stream; `answer` is called once, after its commit. The caller bounds how many."""
        operation_id = operation.id

        def give(result: Result) -> None:
            if isinstance(result, Committed):
                answer(result.answer(operation_id))
            elif isinstance(result, Created):
                answer(journal_pb2.OperationResult(id=operation_id, run=result.run, is_claimed=result.is_claimed))
            else:
                answer(refused(operation_id, result))

        try:
            self._enqueue(operation, give)
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
        assert isinstance(result, Created)
        return result.run

    async def _wait_for(self, operation: journal_pb2.Operation) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def give(result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        async with self._room:
            self._enqueue(operation, give)
            result = await answer
        if isinstance(result, HoldfastError):
            raise result
        return result

    def _enqueue(self, operation: journal_pb2.Operation, answer: Callable[[Result], None]) -> None:
        kind = operation.WhichOneof("kind")
        if kind == "transition":
            transition = pending_transition(operation.transition, answer)
            self._add(transition.row.workspace_id, transition, self._transitions.add)
        elif kind == "new_run":
            run = pending_run(operation.new_run, answer)
            self._add(run.new.workspace_id, run, self._runs.add)
        else:
            raise InvalidArgument("an operation has a transition or a new run", field="operations.kind")

    def _add(self, workspace_id: str, pending: P, add: Callable[[P], None]) -> None:
        held = self._held.get(workspace_id)
        if held is not None:
            held.append(_Held(pending.answer, partial(add, pending)))
        elif self._seals.is_ready(workspace_id):
            add(pending)
        else:
            self._held[workspace_id] = [_Held(pending.answer, partial(add, pending))]
            task = asyncio.create_task(self._bring_key(workspace_id))
            self._bringing.add(task)
            task.add_done_callback(self._bringing.discard)

    async def _bring_key(self, workspace_id: str) -> None:
        problem: HoldfastError | None = None
        began = self._clock.monotonic()
        attempt = 0
        while True:
            try:
                await self._seals.bring(MissingKeyError(workspace_id, None))
                problem = None
                break
            except Unavailable as error:
                problem = error
                attempt += 1
                if self._clock.monotonic() - began >= PATIENCE_SECONDS:
                    break
                if attempt == 1:
                    log.warning("data_key_unavailable", workspace_id=workspace_id, reason=error.reason)
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
                await self._clock.sleep(random.uniform(pause / 2, pause))
            except HoldfastError as error:
                problem = error
                break
            except Exception as error:
                log.error("data_key_failed", workspace_id=workspace_id, exc_info=error)
                problem = Unavailable("the workspace's data key is not to be had", retry_delay_seconds=10.0)
                break
        for held in self._held.pop(workspace_id):
            if problem is None:
                held.go_on()
            else:
                held.answer(problem)

    async def run(self) -> None:
        """Commits until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as lanes:
                lanes.create_task(self._transitions.run())
                lanes.create_task(self._child_ends.run())
                lanes.create_task(self._runs.run())
        finally:
            for task in self._bringing:
                task.cancel()


class _Held(NamedTuple):
    """An operation that waits for its workspace's key."""

    answer: Callable[[Result], None]
    go_on: Callable[[], None]


class _Lane(Generic[P]):
    """A queue and the loop that empties it, batch by batch."""

    def __init__(self, db: Database, hub: Hub, clock: Clock) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        self._pending: deque[P] = deque()
        self._arrived = asyncio.Event()

    @property
    def pending(self) -> int:
        return len(self._pending)

    def add(self, pending: P) -> None:
        pending.arrived = self._clock.monotonic()
        self._pending.append(pending)
        self._arrived.set()

    async def run(self) -> None:
        async with AsyncExitStack() as closing:
            self._transactional = await closing.enter_async_context(self._db.writer())
            self._single = await closing.enter_async_context(self._db.writer(autocommit=True))
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._pending:
                    await self._commit(self._take_batch())

    def _take_batch(self) -> list[P]:
        batch: list[P] = []
        taken: set[str] = set()
        later: list[P] = []
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

    async def _commit(self, batch: list[P]) -> None:
        attempt = 0
        while batch:
            crash_point("state.before_commit")
            try:
                await self._commit_once(batch, is_repeated=attempt > 0)
                return
            except Unavailable as error:
                attempt += 1
                batch = await self._after_trouble(batch, error, attempt)
            except ResourceExhausted as error:
                # Nothing was written, and waiting here would only hide a full disk.
                log.debug("storage_full", pending=len(batch))
                for pending in batch:
                    pending.answer(error)
                return
            except Exception as error:
                await self._after_failure(batch, error)
                return

    @abstractmethod
    async def _commit_once(self, batch: list[P], *, is_repeated: bool) -> None:
        """Commits a batch and answers it, or raises and has answered nothing."""

    async def _after_trouble(self, batch: list[P], error: Unavailable, attempt: int) -> list[P]:
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

    async def _after_failure(self, batch: list[P], error: Exception) -> None:
        """One of them cannot be stored: halved until it is alone, only it fails."""
        if len(batch) > 1:
            log.warning("batch_failed", size=len(batch), cause=type(error).__name__)
            middle = len(batch) // 2
            await self._commit(batch[:middle])
            await self._commit(batch[middle:])
            return
        if isinstance(error, HoldfastError):
            batch[0].answer(error)
            return
        log.error("operation_failed", key=batch[0].key, exc_info=error)
        batch[0].answer(InvalidArgument("the operation cannot be stored"))


class _TransitionLane(_Lane[PendingTransition]):
    def __init__(self, db: Database, hub: Hub, clock: Clock, child_ends: _ChildEndLane) -> None:
        super().__init__(db, hub, clock)
        self._child_ends = child_ends

    def _take_batch(self) -> list[PendingTransition]:
        batch: list[PendingTransition] = []
        for pending in super()._take_batch():
            if pending.ends_child:
                # All that its run did before is committed, and nothing comes after it: it need not keep this order.
                self._child_ends.add(pending)
            else:
                batch.append(pending)
        return batch

    async def _commit_once(self, batch: list[PendingTransition], *, is_repeated: bool) -> None:
        # One statement commits by itself; what carries more than its event needs a transaction around several.
        is_plain = all(pending.row.transition is None for pending in batch)
        if is_plain and self._db.dialect == "postgresql":
            outcome = await self._db.with_keys(lambda: apply_plain_batch(self._single, self._db, batch))
        else:
            outcome = await self._transactional.run(apply_batch, self._db, batch)
        missing = [pending for index, pending in enumerate(batch) if index not in outcome.answers]
        diagnoses = await self._db.read(diagnose, missing) if missing else {}
        crash_point("state.after_commit")
        again: list[PendingTransition] = []
        for index, pending in enumerate(batch):
            result = outcome.answers.get(index) or diagnoses[id(pending)]
            if result is not None:
                pending.answer(result)
                if isinstance(result, Committed):
                    _publish(self._hub, pending.row, result)
            else:
                again.append(pending)
        # First in the queue: those of the same run that came later wait behind it.
        self._pending.extendleft(reversed(again))
        _tell(self._hub, outcome, is_repeated)


class _ChildEndLane(_Lane[PendingTransition]):
    """Ends of runs that others have started, beside all other transitions: they may have to wait for a parent."""

    async def _commit_once(self, batch: list[PendingTransition], *, is_repeated: bool) -> None:
        ends = await self._transactional.run(apply_child_ends, self._db, [pending.row for pending in batch])
        crash_point("state.child_ends.after_commit")
        for written in ends.written:
            if written.outside is not None:
                self._hub.outside_event(written.run_id, written.outside)
        missing = [pending for pending in batch if pending.key not in ends.applied]
        diagnoses = await self._db.read(diagnose, missing) if missing else {}
        alone: list[PendingTransition] = []
        for pending in batch:
            done = ends.applied.get(pending.key)
            result = diagnoses[id(pending)] if done is None else Committed(pending.row.seq, done.at, done.told)
            if result is None:
                alone.append(pending)
                continue
            pending.answer(result)
            if isinstance(result, Committed):
                _publish(self._hub, pending.row, result)
        outcome = Outcome()
        for done in ends.applied.values():
            outcome.take(done)
        _tell(self._hub, outcome, is_repeated)
        for pending in alone:
            await self._commit([pending])


class _RunLane(_Lane[PendingRun]):
    async def _commit_once(self, batch: list[PendingRun], *, is_repeated: bool) -> None:
        fast = [pending for pending in batch if not pending.new.session_id]
        slow = [pending for pending in batch if pending.new.session_id]
        outcome = Outcome()
        if fast:
            is_plain = not any(pending.new.blobs for pending in fast)
            if is_plain and self._db.dialect == "postgresql":
                outcome = await self._db.with_keys(lambda: create_plain_runs(self._single, self._db, fast))
            else:
                outcome = await self._transactional.run(create_runs, self._db, fast)
            crash_point("state.after_commit")
            for index, pending in enumerate(fast):
                if index in outcome.answers:
                    # Order matters: before anybody who is told of it can wait for its end.
                    self._hub.created(pending.new.run_id)
                    pending.answer(outcome.answers[index])
                else:
                    slow.append(pending)
        _tell(self._hub, outcome, is_repeated)
        for index, pending in enumerate(slow):
            try:
                # A transaction each: with locks on the runs of several sessions two replicas could wait for each other.
                created = await self._transactional.run(create_run, self._db, pending.new)
            except (Unavailable, ResourceExhausted):
                # Those that are answered are done.
                batch[:] = slow[index:]
                raise
            except HoldfastError as error:
                pending.answer(error)
                continue
            except IntegrityError as error:
                await self._after_clash(pending, error)
                continue
            except Exception as error:
                await super()._after_failure([pending], error)
                continue
            crash_point("state.after_commit")
            pending.answer(created)
            _tell(self._hub, Outcome(became_ready=not created.is_claimed), False)

    async def _after_failure(self, batch: list[PendingRun], error: Exception) -> None:
        if len(batch) == 1 and isinstance(error, IntegrityError):
            await self._after_clash(batch[0], error)
        else:
            await super()._after_failure(batch, error)

    async def _after_clash(self, pending: PendingRun, error: IntegrityError) -> None:
        """Another replica has stored it, or its request, in the same moment: the second time it is found."""
        pending.attempts += 1
        if pending.attempts <= 2:
            self._pending.appendleft(pending)
            self._arrived.set()
        else:
            log.debug("id_taken", key=pending.key, exc_info=error)
            pending.answer(AlreadyExists(ID_TAKEN))


def _publish(hub: Hub, row: TransitionRow, committed: Committed) -> None:
    if hub.is_watched(row.run_id):
        event = run_pb2.Event.FromString(row.body)
        event.run_id, event.seq, event.epoch = row.run_id, row.seq, row.epoch
        event.time.FromDatetime(committed.at)
        hub.committed(event)
    if row.is_end:
        told = committed.told
        run = ended_run(row, told) if told is not None and hub.is_end_awaited(row.run_id) else None
        hub.may_have_ended(row.run_id, None if run is None else Ended(row.workspace_id, run))
    if row.wake_at is not None:
        hub.wakes_at(row.wake_at)
    if row.transition is not None:
        # A hint: workers would find the calls at their executors' next look as well.
        for tool in {call.tool for call in row.transition.calls}:
            hub.calls_queued(row.workspace_id, tool)


def _tell(hub: Hub, outcome: Outcome, is_repeated: bool) -> None:
    # What a transaction made whose answer was lost is not known any more.
    if outcome.became_ready or is_repeated:
        hub.runs_ready()
    if outcome.orphaned_at is not None:
        hub.wakes_at(outcome.orphaned_at)
    hub.feed_changed()
