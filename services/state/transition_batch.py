"""Transitions of many runs by one statement, each on its own condition: one that is refused fails alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.shared.database import Database
from services.shared.seals import Seals, seals_of
from services.state import tables as t
from services.state.arrays import array, array_of_numbers
from services.state.children import insert_children
from services.state.journal import CALL_OVER, CALL_QUEUED, TOTALS, add_usage, body_of, put_blobs, to_micros
from services.state.rows import run_of
from services.state.run_store import has_blob, put_output
from services.state.transitions import ENDED, RUNNING


class TransitionRow(NamedTuple):
    """A transition in the form of the batch statement: first its columns, in their order, then what is beside them."""

    run_id: str
    workspace_id: str
    epoch: int
    seq: int
    body: bytes
    # 0 leaves the run RUNNING.
    state: int = 0
    wait_reason: int = 0
    wake_at: datetime | None = None
    failure: bytes | None = None
    is_end: bool = False
    has_output: bool = False
    steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd_nanos: int = 0
    unpriced_calls: int = 0
    # Steps whose worker call is over; of those that are finished, the questions are void too.
    failed_steps: tuple[int, ...] = ()
    finished_steps: tuple[int, ...] = ()
    # Rare things, stored beside the batch when the row was applied.
    transition: journal_pb2.Transition | None = None


def transition_row(transition: journal_pb2.Transition, kinds: Sequence[str]) -> TransitionRow:
    """Reads from a transition what the run row takes from it.

    Args:
        transition: One that was checked.
        kinds: Of its changes.
    """
    values: dict[str, Any] = {}
    steps = 0
    has_output = False
    has_effects = bool(transition.blobs or transition.calls or transition.children)
    failed_steps: list[int] = []
    finished_steps: list[int] = []
    changes = transition.changes
    for change, kind in zip(changes, kinds, strict=True):
        if kind == "step_started":
            steps = max(steps, change.step_started.step)
        elif kind == "step_finished":
            finished = change.step_finished
            has_output = finished.HasField("message") and not _is_tool_result(finished)
            if not has_output:
                finished_steps.append(finished.step)
            if finished.HasField("usage"):
                add_usage(values, finished.usage)
        elif kind == "attempt_failed":
            failed_steps.append(change.attempt_failed.step)
        elif kind == "step_in_doubt":
            failed_steps.append(change.step_in_doubt.step)
        elif kind in ("approval_requested", "approval_closed"):
            has_effects = True
        elif kind == "run_state_changed":
            changed = change.run_state_changed
            values["state"] = changed.state
            values["wait_reason"] = changed.wait_reason
            values["is_end"] = changed.state in ENDED
            if changed.HasField("wake_time") and not values["is_end"]:
                values["wake_at"] = changed.wake_time.ToDatetime(tzinfo=UTC)
            if changed.HasField("failure"):
                values["failure"] = changed.failure.SerializeToString()
    if values:
        values["has_output"] = has_output and values.get("state") == run_pb2.RUN_STATE_SUCCEEDED
    return TransitionRow(
        transition.run_id,
        transition.workspace_id,
        transition.epoch,
        transition.seq,
        body_of(changes),
        steps=steps,
        failed_steps=tuple(failed_steps),
        finished_steps=tuple(finished_steps),
        transition=transition if has_effects else None,
        **values,
    )


def _is_tool_result(finished: run_pb2.StepFinished) -> bool:
    message = finished.message
    return message.WhichOneof("body") == "message" and message.message.role == content_pb2.ROLE_TOOL


# Name in TransitionRow, type on PostgreSQL.
_COLUMNS = (
    ("run_id", "uuid"),
    ("workspace_id", "uuid"),
    ("epoch", "bigint"),
    ("seq", "bigint"),
    ("body", "bytea"),
    ("state", "smallint"),
    ("wait_reason", "smallint"),
    ("wake_at", "timestamptz"),
    ("failure", "bytea"),
    ("is_end", "boolean"),
    ("has_output", "boolean"),
    ("steps", "integer"),
    ("input_tokens", "bigint"),
    ("output_tokens", "bigint"),
    ("cache_read_tokens", "bigint"),
    ("cache_write_tokens", "bigint"),
    ("reasoning_tokens", "bigint"),
    ("cost_usd_nanos", "bigint"),
    ("unpriced_calls", "integer"),
)
_NAMES = tuple(name for name, _ in _COLUMNS)
_TOTALS = slice(_NAMES.index(TOTALS[0]), _NAMES.index(TOTALS[-1]) + 1)
assert _NAMES[_TOTALS] == tuple(TOTALS)
# {max} is GREATEST on PostgreSQL and MAX on SQLite, {now} the time of the write. The state is an expression, so that
# runs are found by their ids and not by the index of all that are running.
_UPDATE_RUNS = f"""
UPDATE runs SET
  last_seq = b.seq,
  step_count = {{max}}(runs.step_count, b.steps),
  {", ".join(f"{name} = runs.{name} + b.{name}" for name in TOTALS)},
  state = CASE WHEN b.state = 0 THEN runs.state ELSE b.state END,
  wait_reason = b.wait_reason,
  wake_at = b.wake_at,
  failure = COALESCE(b.failure, runs.failure),
  holder = CASE WHEN b.state = 0 THEN runs.holder END,
  output_seq = CASE WHEN b.has_output THEN b.seq ELSE runs.output_seq END,
  updated_at = CASE WHEN b.state = 0 THEN runs.updated_at ELSE {{now}} END,
  ended_at = CASE WHEN b.is_end THEN {{now}} END
FROM {{batch}} AS b
WHERE runs.run_id = b.run_id AND runs.workspace_id = b.workspace_id
  AND runs.epoch = b.epoch AND runs.last_seq = b.seq - 1 AND runs.state + 0 = {RUNNING}{{and_no_child}}
"""
# The end of a run that another one has started is stored together with the news for that one (child_ends.py).
_NO_END_OF_CHILD = "\n  AND (NOT b.is_end OR runs.parent_run_id IS NULL)"

# On PostgreSQL the numbers of all rows are one array, as each array is to be made, sent and read. The bodies are one
# value: an array of them would be written as text and read again, byte by byte, on both sides.
_NUMBERS = tuple(name for name, kind in _COLUMNS if kind not in ("uuid", "bytea"))
_SENT_NUMBERS = (*_NUMBERS, "body_at", "body_size")
_READ_NUMBER = {
    "boolean": "{} <> 0",
    # Microseconds since 1970, 0 for none.
    "timestamptz": "TIMESTAMPTZ 'epoch' + NULLIF({}, 0) * INTERVAL '1 microsecond'",
}
_KINDS = dict(_COLUMNS)


def _read_numbers() -> str:
    return ", ".join(
        f"{_READ_NUMBER.get(_KINDS.get(name, ''), '{}').format(f'numbers[first + {place}]')} AS {name}"
        for place, name in enumerate(_SENT_NUMBERS, start=1)
    )


# The row of a run that has ended is told to those who wait for it; the failure is the transition's.
_IS_TOLD = "b.is_end AND runs.failure IS NOT DISTINCT FROM b.failure"

# In the driver's own form: SQLAlchemy need not look at it, nor at its parameters, each time.
_POSTGRES_STATEMENT = f"""
WITH b AS MATERIALIZED (
  SELECT run_id, workspace_id, failures[place] AS failure, {_read_numbers()}
  FROM (
    SELECT run_id, workspace_id, place, (place - 1) * {len(_SENT_NUMBERS)} AS first,
      CAST(%(numbers)s AS bigint[]) AS numbers, CAST(%(failures)s AS bytea[]) AS failures
    FROM unnest(CAST(%(run_id)s AS uuid[]), CAST(%(workspace_id)s AS uuid[])) WITH ORDINALITY
      AS ids(run_id, workspace_id, place)
  ) AS sent
), applied AS (
  {_UPDATE_RUNS.format(max="GREATEST", now="clock_timestamp()", batch="b", and_no_child="{and_no_child}")}
  -- A successor that another replica stored while this statement waited for the row is not in its snapshot, and would
  -- never be unblocked: the end is applied by a statement that sees it.
  AND (NOT b.is_end OR runs.successor_run_id IS NULL
       OR EXISTS (SELECT 1 FROM runs AS successor WHERE successor.run_id = runs.successor_run_id))
  RETURNING b.run_id, b.workspace_id, b.epoch, b.seq, b.body_at, b.body_size, b.is_end, runs.successor_run_id,
    CASE WHEN {_IS_TOLD} THEN CAST(to_json(runs) AS text) END AS told
), written AS (
  INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body)
  SELECT run_id, seq, workspace_id, epoch, statement_timestamp(),
    substring(CAST(%(bodies)b AS bytea) FROM CAST(body_at AS integer) FOR CAST(body_size AS integer))
  FROM applied
), unblocked AS (
  UPDATE runs SET blocked = false, ready_at = clock_timestamp()
  FROM applied WHERE applied.is_end AND runs.run_id = applied.successor_run_id
), closing AS (
  SELECT run_id, CAST(NULL AS integer) AS step, true AS is_finished FROM applied WHERE is_end
  UNION ALL
  SELECT c.run_id, c.step, c.is_finished
  FROM unnest(
    CAST(%(closing_run_id)s AS uuid[]), CAST(%(closing_step)s AS integer[]), CAST(%(closing_is_finished)s AS boolean[])
  ) AS c(run_id, step, is_finished)
  -- Looked up in a hash, and no join: writers have only nested loops.
  WHERE (c.run_id IN (SELECT run_id FROM applied)) IS TRUE
), closed AS (
  UPDATE approvals SET state = {run_pb2.APPROVAL_STATE_CANCELLED}
  FROM closing AS c WHERE approvals.run_id = c.run_id AND approvals.state = {run_pb2.APPROVAL_STATE_PENDING}
    AND c.is_finished AND approvals.step = COALESCE(c.step, approvals.step)
), over AS (
  UPDATE calls SET state = {CALL_OVER}
  FROM closing AS c WHERE calls.run_id = c.run_id AND calls.state <> {CALL_OVER}
    AND calls.step = COALESCE(c.step, calls.step)
), orphaned AS (
  UPDATE children SET orphaned_at = clock_timestamp()
  FROM applied WHERE applied.is_end AND children.run_id = applied.run_id AND NOT children.is_over
  RETURNING children.run_id
)
SELECT run_id, statement_timestamp(), CASE WHEN is_end THEN successor_run_id END, told,
  is_end AND run_id IN (SELECT run_id FROM orphaned)
FROM applied
"""
POSTGRES_BATCH = _POSTGRES_STATEMENT.replace("{and_no_child}", _NO_END_OF_CHILD)
_POSTGRES_END_OF_CHILD = _POSTGRES_STATEMENT.replace("{and_no_child}", "")

# SQLite has no arrays: the batch goes through a temporary table of the connection, the statements are the same.
_SQLITE_CREATE = f"CREATE TEMPORARY TABLE IF NOT EXISTS batch ({', '.join(name for name, _ in _COLUMNS)})"
_SQLITE_FILL = f"INSERT INTO temp.batch VALUES ({', '.join('?' * len(_COLUMNS))})"
_SQLITE_STATEMENT = (
    _UPDATE_RUNS.format(max="MAX", now=":now", batch="temp.batch", and_no_child="{and_no_child}")
    # The bare column: SQLite 3.40 answers `ended_at IS NOT NULL` with 1 here, whatever the column holds.
    + " RETURNING run_id, successor_run_id, ended_at"
)
_SQLITE_UPDATE = _SQLITE_STATEMENT.replace("{and_no_child}", _NO_END_OF_CHILD)
_SQLITE_END_OF_CHILD = _SQLITE_STATEMENT.replace("{and_no_child}", "")
_SQLITE_INSERT = (
    "INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body) "
    "SELECT run_id, seq, workspace_id, epoch, :now, body FROM temp.batch "
    "WHERE run_id IN (SELECT value FROM json_each(:applied))"
)
_SQLITE_END_CALLS = f"UPDATE calls SET state = {CALL_OVER} WHERE run_id = ? AND step = ? AND state <> {CALL_OVER}"
_SQLITE_CLOSE_QUESTIONS = (
    f"UPDATE approvals SET state = {run_pb2.APPROVAL_STATE_CANCELLED} "
    f"WHERE run_id = ? AND step = ? AND state = {run_pb2.APPROVAL_STATE_PENDING}"
)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch did to one run."""

    at: datetime
    unblocked_run_id: str | None
    # Of a run that has ended, its row as JSON, where it came with the answer; `ended_run` reads it.
    told: str | None = None
    # It has ended, and runs that it has started have not: they are marked, for the sweep.
    has_orphans: bool = False


def apply_transitions(
    connection: sa.Connection, db: Database, rows: Sequence[TransitionRow], *, ends_of_children: bool = False
) -> dict[str, Applied]:
    """Applies those of the rows whose condition holds; at most one of a run may be in a batch.

    Args:
        rows: The transitions.
        ends_of_children: Also ends of runs that other runs have started; the caller tells those.

    Returns:
        What was applied, by run. A run that is missing here was not written to at all.
    """
    if db.dialect == "postgresql":
        statement = _POSTGRES_END_OF_CHILD if ends_of_children else POSTGRES_BATCH
        return applied_of(connection.exec_driver_sql(statement, postgres_values(rows, db.seals)))
    now = db.now(connection)
    micros = to_micros(now)
    connection.exec_driver_sql(_SQLITE_CREATE)
    connection.exec_driver_sql("DELETE FROM temp.batch")
    connection.exec_driver_sql(_SQLITE_FILL, [_sqlite_values(row, db.seals) for row in rows])
    update = _SQLITE_END_OF_CHILD if ends_of_children else _SQLITE_UPDATE
    returned = connection.exec_driver_sql(update, {"now": micros}).all()
    updated = {run: (successor, ended_at is not None) for run, successor, ended_at in returned}
    connection.exec_driver_sql(_SQLITE_INSERT, {"now": micros, "applied": json.dumps(list(updated))})
    for run_id, step, is_finished in _closing(row for row in rows if row.run_id in updated):
        connection.exec_driver_sql(_SQLITE_END_CALLS, (run_id, step))
        if is_finished:
            connection.exec_driver_sql(_SQLITE_CLOSE_QUESTIONS, (run_id, step))
    ended = {run: successor for run, (successor, is_end) in updated.items() if is_end}
    with_orphans = after_ends(connection, now, ended) if ended else set()
    return {run: Applied(now, ended.get(run), has_orphans=run in with_orphans) for run in updated}


def postgres_values(rows: Sequence[TransitionRow], seals: Seals) -> dict[str, Any]:
    """The parameters of `POSTGRES_BATCH`."""
    bodies = [seals.seal(row.workspace_id, row.body) for row in rows]
    failures = [_stored_failure(row, seals) for row in rows]
    numbers: list[int] = []
    at = 1  # SQL counts from 1.
    for row, body in zip(rows, bodies, strict=True):
        size = len(body)
        wake_at = 0 if row.wake_at is None else to_micros(row.wake_at)
        numbers += (row.epoch, row.seq, row.state, row.wait_reason, wake_at)
        numbers += (int(row.is_end), int(row.has_output), row.steps)
        numbers += row[_TOTALS]  # type: ignore[arg-type]
        numbers += (at, size)
        at += size
    closing = list(_closing(rows))
    return {
        "run_id": array(row.run_id for row in rows),
        "workspace_id": array(row.workspace_id for row in rows),
        "numbers": array_of_numbers(numbers),
        "failures": array(failures) if any(failures) else "{}",
        "bodies": b"".join(bodies),
        "closing_run_id": array(run_id for run_id, _, _ in closing),
        "closing_step": array(step for _, step, _ in closing),
        "closing_is_finished": array(is_finished for _, _, is_finished in closing),
    }


def applied_of(rows: Iterable[Sequence[Any]]) -> dict[str, Applied]:
    """What `POSTGRES_BATCH` did, by run."""
    return {run_id: Applied(at, unblocked, told, has_orphans) for run_id, at, unblocked, told, has_orphans in rows}


def ended_run(row: TransitionRow, told: str) -> run_pb2.Run | None:
    """A run as its last transition left it, with its output; None where that is a body of its own, to be read first.

    Args:
        row: The transition.
        told: Of the run's row, see `Applied`.
    """
    values = json.loads(told)
    for name, value in values.items():
        if name.endswith("_at") and value is not None:
            values[name] = datetime.fromisoformat(value)
    values["failure"] = row.failure
    run = run_of(SimpleNamespace(**values))
    if row.has_output:
        event = run_pb2.Event.FromString(row.body)
        if has_blob(event):
            return None
        put_output(run, event)
    return run


def _closing(rows: Iterable[TransitionRow]) -> Iterator[tuple[str, int, bool]]:
    for row in rows:
        for step, is_finished in chain(
            ((step, False) for step in row.failed_steps), ((step, True) for step in row.finished_steps)
        ):
            yield row.run_id, step, is_finished


def after_ends(connection: sa.Connection, now: datetime, ended: Mapping[str, str | None]) -> set[str]:
    """What the end of runs means for what stands beside the journal (PostgreSQL's batch does it in its statement).

    Args:
        connection: In the transaction of the ends.
        now: Its time.
        ended: The runs, each with the next one of its session, if there is one.

    Returns:
        Those of the runs that have started others which have not ended.
    """
    successors = [successor for successor in ended.values() if successor is not None]
    if successors:
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id.in_(successors)).values(blocked=False, ready_at=now))
    connection.execute(
        sa.update(t.approvals)
        .where(t.approvals.c.run_id.in_(ended), t.approvals.c.state == run_pb2.APPROVAL_STATE_PENDING)
        .values(state=run_pb2.APPROVAL_STATE_CANCELLED)
    )
    connection.execute(sa.update(t.calls).where(t.calls.c.run_id.in_(ended)).values(state=CALL_OVER))
    c = t.children.c
    orphaned = sa.update(t.children).where(c.run_id.in_(ended), sa.not_(c.is_over)).values(orphaned_at=now)
    return set(connection.execute(orphaned.returning(c.run_id)).scalars())


def _stored_failure(row: TransitionRow, seals: Seals) -> bytes | None:
    return None if row.failure is None else seals.seal(row.workspace_id, row.failure)


def _sqlite_values(row: TransitionRow, seals: Seals) -> tuple[Any, ...]:
    return row._replace(
        body=seals.seal(row.workspace_id, row.body),
        failure=_stored_failure(row, seals),
        wake_at=None if row.wake_at is None else to_micros(row.wake_at),  # type: ignore[arg-type]
    )[: len(_NAMES)]


def store_effects(connection: sa.Connection, now: datetime, transitions: Sequence[journal_pb2.Transition]) -> None:
    """Stores what applied transitions carry beside their changes: bodies, questions, workers' calls, children."""
    seals = seals_of(connection)
    insert_children(connection, now, [transition for transition in transitions if transition.children])
    for transition in transitions:
        put_blobs(connection, transition.workspace_id, transition.run_id, transition.blobs, now)
        for change in transition.changes:
            kind = change.WhichOneof("kind")
            if kind == "approval_requested":
                approval = change.approval_requested.approval
                connection.execute(
                    sa.insert(t.approvals).values(
                        run_id=transition.run_id,
                        approval_id=approval.approval_id,
                        workspace_id=transition.workspace_id,
                        step=approval.step,
                        kind=approval.kind,
                        state=run_pb2.APPROVAL_STATE_PENDING,
                        body=seals.seal(transition.workspace_id, approval.SerializeToString()),
                        created_at=now,
                    )
                )
            elif kind == "approval_closed":
                closed = change.approval_closed
                connection.execute(
                    sa.update(t.approvals)
                    .where(
                        t.approvals.c.run_id == transition.run_id,
                        t.approvals.c.approval_id == closed.approval_id,
                        # Its step may be finished by the same transition, which has just voided it.
                        t.approvals.c.state != run_pb2.APPROVAL_STATE_DECIDED,
                    )
                    .values(state=closed.state)
                )
        for call in transition.calls:
            _put_call(connection, now, transition, call)


def _put_call(
    connection: sa.Connection, now: datetime, transition: journal_pb2.Transition, call: journal_pb2.NewCall
) -> None:
    seals = seals_of(connection)
    c = t.calls.c
    key = (c.run_id == transition.run_id) & (c.step == call.step)
    connection.execute(sa.update(t.calls).where(key, c.state != CALL_OVER).values(state=CALL_OVER))
    # What the attempt before said of itself last goes on to this one.
    before = connection.execute(sa.select(c.details).where(key).order_by(c.attempt.desc()).limit(1)).scalar()
    connection.execute(
        sa.insert(t.calls).values(
            run_id=transition.run_id,
            step=call.step,
            workspace_id=transition.workspace_id,
            attempt=call.attempt,
            tool=call.tool,
            state=CALL_QUEUED,
            body=seals.seal(transition.workspace_id, call.SerializeToString()),
            not_before=call.not_before.ToDatetime(tzinfo=UTC) if call.HasField("not_before") else now,
            start_deadline=call.start_deadline.ToDatetime(tzinfo=UTC),
            details=seals.seal_text(transition.workspace_id, before or call.last_heartbeat_details),
        )
    )
