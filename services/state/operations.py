"""An executor's operations as the group commit applies them: checked, applied in a batch, explained when refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import Conflict, HoldfastError, InvalidArgument, LeaseLost, NotFound, Reason
from services.shared.database import Database, Writer
from services.state import journal, new_runs
from services.state.rows import run_of, stamp
from services.state.transition_batch import (
    POSTGRES_BATCH,
    Applied,
    TransitionRow,
    applied_of,
    apply_transitions,
    postgres_values,
    store_effects,
    transition_row,
)
from services.state.transitions import check_new_run, check_transition

MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed transition."""

    seq: int
    at: datetime
    # See `transition_batch.Applied`.
    told: str | None = None

    def message(self) -> journal_pb2.Committed:
        """As the contract says it."""
        return journal_pb2.Committed(seq=self.seq, time=_stamp(self.at))

    def answer(self, operation_id: int) -> journal_pb2.OperationResult:
        """As the answer to an operation; filled in place, as each message put into another is a copy."""
        result = journal_pb2.OperationResult(id=operation_id)
        committed = result.committed
        committed.seq = self.seq
        committed.time.CopyFrom(_stamp(self.at))
        return result


@lru_cache(maxsize=8)
def _stamp(at: datetime) -> Timestamp:
    # One time for a whole batch. Never changed: messages take a copy.
    return stamp(at)


@dataclass(frozen=True, slots=True)
class Created:
    """A stored new run, and whether the executor that asked for it drives it already."""

    run: run_pb2.Run
    is_claimed: bool


Result = Committed | Created | HoldfastError


@dataclass(slots=True, eq=False)
class PendingTransition:
    """A transition on its way to its commit. Those of one run are committed one after the other, in their order."""

    key: str
    answer: Callable[[Result], None]
    row: TransitionRow
    size: int
    arrived: float = 0.0
    attempts: int = 0
    # The end of a run that another one has started, which has a lane of its own; see `child_ends`.
    ends_child: bool = False


@dataclass(slots=True, eq=False)
class PendingRun:
    """A new run on its way to its commit. Two with one request id, or in one session, do not meet in a batch."""

    key: str
    answer: Callable[[Result], None]
    new: journal_pb2.NewRun
    size: int
    arrived: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class Outcome:
    """What one transaction did, by place in the batch; what is missing was not applied."""

    answers: dict[int, Result] = field(default_factory=dict)
    became_ready: bool = False
    # When runs ended that had started others which have not: the sweep asks these to end.
    orphaned_at: datetime | None = None

    def take(self, done: Applied) -> None:
        """Notes what an applied transition means for others."""
        self.became_ready |= done.unblocked_run_id is not None
        if done.has_orphans:
            self.orphaned_at = done.at


def pending_transition(transition: journal_pb2.Transition, answer: Callable[[Result], None]) -> PendingTransition:
    """Checks a transition.

    Raises:
        InvalidArgument: It could not be applied to any run.
    """
    kinds = check_transition(transition)
    try:
        row = transition_row(transition, kinds)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument("a time is out of range", field="transition.changes") from error
    _check_size(len(row.body))
    size = len(row.body) if row.transition is None else transition.ByteSize()
    return PendingTransition(row.run_id, answer, row, size, ends_child=row.is_end and transition.ends_child)


def pending_run(new: journal_pb2.NewRun, answer: Callable[[Result], None]) -> PendingRun:
    """Checks a new run.

    Raises:
        InvalidArgument: It could not be stored.
    """
    check_new_run(new)
    size = new.ByteSize()
    if size > journal.MAX_EVENT_BYTES // 2:
        _check_size(len(new_runs.created_body(new, None)))
    key = new.session_id or (f"{new.workspace_id} {new.request_id}" if new.request_id else new.run_id)
    return PendingRun(key, answer, new, size)


def _check_size(size: int) -> None:
    if size > journal.MAX_EVENT_BYTES:
        raise InvalidArgument(
            f"an event has at most {journal.MAX_EVENT_BYTES} bytes; larger bodies are stored as blobs",
            reason=Reason.MESSAGE_TOO_LARGE,
        )


def apply_batch(connection: sa.Connection, db: Database, batch: Sequence[PendingTransition]) -> Outcome:
    """Applies transitions whose condition holds."""
    applied = apply_transitions(connection, db, [pending.row for pending in batch])
    effects = [
        pending.row.transition
        for pending in batch
        if pending.row.transition is not None and pending.row.run_id in applied
    ]
    if effects:
        store_effects(connection, applied[effects[0].run_id].at, effects)
    outcome = _outcome_of(batch, applied)
    outcome.became_ready |= any(transition.children for transition in effects)
    return outcome


async def apply_plain_batch(writer: Writer, db: Database, batch: Sequence[PendingTransition]) -> Outcome:
    """Applies transitions that carry nothing beside their event by one statement on PostgreSQL."""
    rows = await writer.fetch(POSTGRES_BATCH, postgres_values([pending.row for pending in batch], db.seals))
    return _outcome_of(batch, applied_of(rows))


def _outcome_of(batch: Sequence[PendingTransition], applied: Mapping[str, Applied]) -> Outcome:
    outcome = Outcome()
    for index, pending in enumerate(batch):
        done = applied.get(pending.row.run_id)
        if done is not None:
            outcome.answers[index] = Committed(pending.row.seq, done.at, done.told)
            outcome.take(done)
    return outcome


def create_runs(connection: sa.Connection, db: Database, batch: Sequence[PendingRun]) -> Outcome:
    """Stores new runs that begin sessions of their own; the others have to be looked at one by one."""
    return _created(batch, new_runs.insert_new_sessions(connection, db, [pending.new for pending in batch]))


def _created(batch: Sequence[PendingRun], rows: Mapping[str, Any]) -> Outcome:
    outcome = Outcome()
    for index, pending in enumerate(batch):
        row = rows.get(pending.new.run_id)
        if row is not None:
            created = Created(run_of(row), new_runs.is_claimed_for(pending.new, row))
            outcome.answers[index] = created
            outcome.became_ready |= not created.is_claimed
    return outcome


async def create_plain_runs(writer: Writer, db: Database, batch: Sequence[PendingRun]) -> Outcome:
    """As `create_runs`, by one statement on PostgreSQL, for runs without bodies of their own."""
    new = [pending.new for pending in batch]
    rows = await writer.fetch(new_runs.POSTGRES_NEW_SESSIONS, new_runs.postgres_values(new, db.seals))
    return _created(batch, new_runs.stored_rows(new, new_runs.stored_of(rows)))


def create_run(connection: sa.Connection, db: Database, new: journal_pb2.NewRun) -> Created:
    """Stores one new run, or finds it.

    Raises:
        HoldfastError: Why it is refused.
    """
    row = new_runs.insert_run(connection, db, new)
    return Created(run_of(row), new_runs.is_claimed_for(new, row))


def diagnose(
    connection: sa.Connection, missing: Sequence[PendingTransition]
) -> dict[int, Committed | HoldfastError | None]:
    """Why transitions were not applied; one that is stored already is committed, None is to be applied again."""
    found: dict[int, Committed | HoldfastError | None] = {}
    for pending in missing:
        row = pending.row
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
            # The statement's snapshot was too old for it, or it is not for a batch, see transition_batch.
            pending.attempts += 1
            pending.ends_child = row.is_end and run.parent_run_id is not None
            found[id(pending)] = None
        else:
            found[id(pending)] = Conflict(f"the run's next event is {run.last_seq + 1}")
    return found


def refused(operation_id: int, error: HoldfastError) -> journal_pb2.OperationResult:
    """The answer to an operation that was not applied and never will be."""
    result = journal_pb2.OperationResult(
        id=operation_id,
        refused=journal_pb2.Refused(reason=error.reason, code=error.code.value[0], message=error.message),
    )
    if error.retry_delay_seconds is not None:
        result.refused.retry_delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
    return result
