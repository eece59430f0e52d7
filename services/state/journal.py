"""The journal's statements: a batch of transitions, a batch of new runs, one event from outside.

Invariant: events of a run are dense from 1, and `runs.last_seq` is the last of them. It holds because every statement
that inserts into `journal` moves `last_seq` by one in the same statement or transaction, on the condition that it had
the value before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import tables as t
from services.state.transitions import ENDED

RUNNING = run_pb2.RUN_STATE_RUNNING
# Of events without the messages that are put inline later.
PAGE_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
CALL_QUEUED, CALL_OFFERED, CALL_STARTED, CALL_OVER = 1, 2, 3, 4


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


def transition_row(transition: journal_pb2.Transition) -> TransitionRow:
    """Reads from a transition what the run row takes from it."""
    values: dict[str, Any] = {}
    has_output = False
    has_effects = bool(transition.blobs or transition.calls)
    failed_steps: list[int] = []
    finished_steps: list[int] = []
    for change in transition.changes:
        kind = change.WhichOneof("kind")
        if kind == "step_started":
            values["steps"] = max(values.get("steps", 0), change.step_started.step)
        elif kind == "step_finished":
            finished = change.step_finished
            has_output = finished.HasField("message") and not _is_tool_result(finished)
            if not has_output:
                finished_steps.append(finished.step)
            if finished.HasField("usage"):
                _add_usage(values, finished.usage)
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
    values["has_output"] = has_output and values.get("state") == run_pb2.RUN_STATE_SUCCEEDED
    return TransitionRow(
        run_id=transition.run_id,
        workspace_id=transition.workspace_id,
        epoch=transition.epoch,
        seq=transition.seq,
        body=body_of(transition.changes),
        failed_steps=tuple(failed_steps),
        finished_steps=tuple(finished_steps),
        transition=transition if has_effects else None,
        **values,
    )


def body_of(changes: Iterable[run_pb2.Change]) -> bytes:
    """Changes as a journal row keeps them: the same changes are the same bytes in every process."""
    return run_pb2.Event(changes=changes).SerializeToString(deterministic=True)


def _is_tool_result(finished: run_pb2.StepFinished) -> bool:
    message = finished.message
    return message.WhichOneof("body") == "message" and message.message.role == content_pb2.ROLE_TOOL


def _add_usage(values: dict[str, Any], usage: content_pb2.Usage) -> None:
    for name, amount in (
        ("input_tokens", usage.input_tokens),
        ("output_tokens", usage.output_tokens),
        ("cache_read_tokens", usage.cache_read_input_tokens),
        ("cache_write_tokens", usage.cache_write_input_tokens),
        ("reasoning_tokens", usage.reasoning_output_tokens),
        ("cost_usd_nanos", usage.cost_usd_nanos),
        ("unpriced_calls", not usage.HasField("cost_usd_nanos")),
    ):
        values[name] = values.get(name, 0) + int(amount)


# --------------------------------------------------------------------------------------------------- the batch

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
_TOTALS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd_nanos",
    "unpriced_calls",
)

# {max} is GREATEST on PostgreSQL and MAX on SQLite, {now} the time of the write.
_UPDATE_RUNS = f"""
UPDATE runs SET
  last_seq = b.seq,
  step_count = {{max}}(runs.step_count, b.steps),
  {", ".join(f"{name} = runs.{name} + b.{name}" for name in _TOTALS)},
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
  AND runs.epoch = b.epoch AND runs.last_seq = b.seq - 1 AND runs.state = {RUNNING}
"""

# The bodies go as one value: an array of them would be written as text and read again, byte by byte, on both sides.
_SENT = (
    *((name, kind) for name, kind in _COLUMNS if name != "body"),
    ("body_at", "integer"),
    ("body_size", "integer"),
)

_POSTGRES_BATCH = f"""
WITH b AS MATERIALIZED (
  SELECT * FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _SENT)})
    AS b({", ".join(name for name, _ in _SENT)})
), applied AS (
  {_UPDATE_RUNS.format(max="GREATEST", now="clock_timestamp()", batch="b")}
  -- A successor that another replica stored while this statement waited for the row is not in its snapshot, and would
  -- never be unblocked: the end is applied by a statement that sees it.
  AND (NOT b.is_end OR runs.successor_run_id IS NULL
       OR EXISTS (SELECT 1 FROM runs AS successor WHERE successor.run_id = runs.successor_run_id))
  RETURNING runs.run_id, runs.successor_run_id, b.is_end
), written AS (
  INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body)
  SELECT b.run_id, b.seq, b.workspace_id, b.epoch, statement_timestamp(),
    substring(CAST(:bodies AS bytea) FROM b.body_at FOR b.body_size)
  FROM b JOIN applied ON applied.run_id = b.run_id
), unblocked AS (
  UPDATE runs SET blocked = false, ready_at = clock_timestamp()
  FROM applied WHERE applied.is_end AND runs.run_id = applied.successor_run_id
), closing AS (
  SELECT run_id, CAST(NULL AS integer) AS step, true AS is_finished FROM applied WHERE is_end
  UNION ALL
  SELECT c.run_id, c.step, c.is_finished
  FROM unnest(
    CAST(:closing_run_id AS uuid[]), CAST(:closing_step AS integer[]), CAST(:closing_is_finished AS boolean[])
  ) AS c(run_id, step, is_finished) JOIN applied ON applied.run_id = c.run_id
), closed AS (
  UPDATE approvals SET state = {run_pb2.APPROVAL_STATE_CANCELLED}
  FROM closing AS c WHERE approvals.run_id = c.run_id AND approvals.state = {run_pb2.APPROVAL_STATE_PENDING}
    AND c.is_finished AND approvals.step = COALESCE(c.step, approvals.step)
), over AS (
  UPDATE calls SET state = {CALL_OVER}
  FROM closing AS c WHERE calls.run_id = c.run_id AND calls.state <> {CALL_OVER}
    AND calls.step = COALESCE(c.step, calls.step)
)
SELECT CAST(run_id AS text), statement_timestamp(), CASE WHEN is_end THEN CAST(successor_run_id AS text) END
FROM applied
"""

POSTGRES_BATCH = sa.text(_POSTGRES_BATCH)

# SQLite has no arrays: the batch goes through a temporary table of the connection, the statements are the same.
_SQLITE_CREATE = f"CREATE TEMPORARY TABLE IF NOT EXISTS batch ({', '.join(name for name, _ in _COLUMNS)})"
_SQLITE_FILL = f"INSERT INTO temp.batch VALUES ({', '.join('?' * len(_COLUMNS))})"
_SQLITE_UPDATE = (
    _UPDATE_RUNS.format(max="MAX", now=":now", batch="temp.batch")
    # The bare column: SQLite 3.40 answers `ended_at IS NOT NULL` with 1 here, whatever the column holds.
    + " RETURNING run_id, successor_run_id, ended_at"
)
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


def apply_transitions(connection: sa.Connection, db: Database, rows: Sequence[TransitionRow]) -> dict[str, Applied]:
    """Applies those of the rows whose condition holds; at most one of a run may be in a batch.

    Returns:
        What was applied, by run. A run that is missing here was not written to at all.
    """
    if db.dialect == "postgresql":
        return _apply_on_postgres(connection, rows)
    now = db.now(connection)
    micros = to_micros(now)
    connection.exec_driver_sql(_SQLITE_CREATE)
    connection.exec_driver_sql("DELETE FROM temp.batch")
    connection.exec_driver_sql(_SQLITE_FILL, [_sqlite_values(row) for row in rows])
    returned = connection.exec_driver_sql(_SQLITE_UPDATE, {"now": micros}).all()
    updated = [(run, successor, ended_at is not None) for run, successor, ended_at in returned]
    connection.exec_driver_sql(_SQLITE_INSERT, {"now": micros, "applied": json.dumps([run for run, _, _ in updated])})
    applied = {run: Applied(now, successor if is_end else None) for run, successor, is_end in updated}
    for run_id, step, is_finished in _closing(row for row in rows if row.run_id in applied):
        connection.exec_driver_sql(_SQLITE_END_CALLS, (run_id, step))
        if is_finished:
            connection.exec_driver_sql(_SQLITE_CLOSE_QUESTIONS, (run_id, step))
    ended = [run for run, _, is_end in updated if is_end]
    if ended:
        after_ends(connection, now, ended, [successor for _, successor, is_end in updated if is_end and successor])
    return applied


def _apply_on_postgres(connection: sa.Connection, rows: Sequence[TransitionRow]) -> dict[str, Applied]:
    columns = dict(zip(_NAMES, zip(*rows, strict=True), strict=False))
    bodies = columns.pop("body")
    sizes = [len(body) for body in bodies]
    closing = list(_closing(rows))
    values: dict[str, Any] = {
        **{name: _array(column) for name, column in columns.items()},
        "bodies": b"".join(bodies),
        # SQL counts from 1.
        "body_at": _array(accumulate(sizes[:-1], initial=1)),
        "body_size": _array(sizes),
        "closing_run_id": _array(run_id for run_id, _, _ in closing),
        "closing_step": _array(step for _, step, _ in closing),
        "closing_is_finished": _array(is_finished for _, _, is_finished in closing),
    }
    return {run_id: Applied(at, unblocked) for run_id, at, unblocked in connection.execute(POSTGRES_BATCH, values)}


def _array(values: Iterable[str | int | bool | bytes | datetime | None]) -> str:
    """A PostgreSQL array as text: made here, as the driver takes several times as long for each element."""
    return f"{{{','.join([_ELEMENTS[type(value)](value) for value in values])}}}"


def _array_of_text(values: Iterable[str]) -> str:
    return "{" + ",".join(['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]) + "}"


# No element needs quotes but those that get them here: ids are UUIDs, and were checked to be.
_ELEMENTS: dict[type[Any], Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "t" if value else "f",
    bytes: lambda value: f'"\\\\x{value.hex()}"',
    datetime: lambda value: f'"{value.isoformat()}"',
    type(None): lambda value: "NULL",
}


def _closing(rows: Iterable[TransitionRow]) -> Iterator[tuple[str, int, bool]]:
    for row in rows:
        for step, is_finished in chain(
            ((step, False) for step in row.failed_steps), ((step, True) for step in row.finished_steps)
        ):
            yield row.run_id, step, is_finished


def after_ends(connection: sa.Connection, now: datetime, ended: list[str], successors: list[str]) -> None:
    """What the end of runs means for what stands beside the journal (PostgreSQL's batch does it in its statement)."""
    if successors:
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id.in_(successors)).values(blocked=False, ready_at=now))
    connection.execute(
        sa.update(t.approvals)
        .where(t.approvals.c.run_id.in_(ended), t.approvals.c.state == run_pb2.APPROVAL_STATE_PENDING)
        .values(state=run_pb2.APPROVAL_STATE_CANCELLED)
    )
    connection.execute(sa.update(t.calls).where(t.calls.c.run_id.in_(ended)).values(state=CALL_OVER))


def to_micros(moment: datetime) -> int:
    """As SQLite stores it."""
    return (moment - _EPOCH) // _MICROSECOND


def _sqlite_values(row: TransitionRow) -> tuple[Any, ...]:
    if row.wake_at is not None:
        row = row._replace(wake_at=to_micros(row.wake_at))  # type: ignore[arg-type]
    return row[: len(_NAMES)]


def store_effects(connection: sa.Connection, now: datetime, transitions: Iterable[journal_pb2.Transition]) -> None:
    """Stores what applied transitions carry beside their changes: bodies, questions, workers' calls."""
    for transition in transitions:
        put_blobs(connection, transition.workspace_id, transition.blobs, now)
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
                        state=run_pb2.APPROVAL_STATE_PENDING,
                        body=approval.SerializeToString(),
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


def put_blobs(connection: sa.Connection, workspace_id: str, blobs: Iterable[content_pb2.Blob], now: datetime) -> None:
    """Stores bodies that are not there yet."""
    for blob in blobs:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(t.blobs)
            .values(workspace_id=workspace_id, hash=blob.hash, data=blob.data, created_at=now)
            .on_conflict_do_nothing()
        )


def _put_call(
    connection: sa.Connection, now: datetime, transition: journal_pb2.Transition, call: journal_pb2.NewCall
) -> None:
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
            body=call.SerializeToString(),
            not_before=call.not_before.ToDatetime(tzinfo=UTC) if call.HasField("not_before") else now,
            start_deadline=call.start_deadline.ToDatetime(tzinfo=UTC),
            details=before or call.last_heartbeat_details,
        )
    )


# --------------------------------------------------------------------------------------------------- new runs


def insert_run(connection: sa.Connection, db: Database, new: journal_pb2.NewRun) -> sa.Row[Any]:
    """Stores one new run with its first event, or finds the one that the same call made before.

    Raises:
        HoldfastError: REQUEST_ID_REUSED, SESSION_NOT_FOUND, SESSION_BUSY.
    """
    earlier = find_request(connection, new.workspace_id, new.request_id, "StartRun", new.request_fingerprint)
    row = select_run(connection, new.workspace_id, earlier or new.run_id)
    if row is not None:
        return row
    now = db.now(connection)
    ordinal, previous = _join_session(connection, new, now)
    blocked = False
    if previous is not None:
        predecessor = connection.execute(
            sa.update(t.runs)
            .where(t.runs.c.run_id == previous, t.runs.c.state.not_in(ENDED))
            .values(successor_run_id=new.run_id)
        )
        blocked = predecessor.rowcount == 1
        if blocked and new.reject_when_busy:
            raise FailedPrecondition(
                "the session has an unfinished run", reason=Reason.SESSION_BUSY, metadata={"run_id": previous}
            )
    put_blobs(connection, new.workspace_id, new.blobs, now)
    connection.execute(sa.insert(t.runs).values(run_values(new, now, ordinal, previous, blocked)))
    connection.execute(
        sa.insert(t.journal).values(
            run_id=new.run_id, seq=1, workspace_id=new.workspace_id, epoch=0, at=now, body=created_body(new, previous)
        )
    )
    remember_request(connection, new.workspace_id, new.request_id, "StartRun", new.request_fingerprint, new.run_id, now)
    stored = select_run(connection, new.workspace_id, new.run_id)
    assert stored is not None
    return stored


def run_values(
    new: journal_pb2.NewRun, now: datetime, ordinal: int, previous: str | None, blocked: bool
) -> dict[str, Any]:
    """The row of a new run."""
    return {
        "run_id": new.run_id,
        "workspace_id": new.workspace_id,
        "session_id": new.session_id or new.new_session_id,
        "ordinal": ordinal,
        "agent": new.agent,
        "revision": new.revision,
        "user_id": new.user_id,
        "lane": lane_of(new),
        "agent_limit": new.agent_limit,
        "state": run_pb2.RUN_STATE_QUEUED,
        "wait_reason": 0,
        "blocked": blocked,
        "cancel_requested": False,
        "epoch": 0,
        "last_seq": 1,
        "step_count": 0,
        "ready_at": now,
        **dict.fromkeys(_TOTALS, 0),
        "output_seq": 0,
        "previous_run_id": previous,
        "created_at": now,
        "updated_at": now,
    }


def lane_of(new: journal_pb2.NewRun) -> int:
    """The order of claims: lower ones first."""
    return int(new.lane or journal_pb2.LANE_INTERACTIVE)


def created_body(new: journal_pb2.NewRun, previous: str | None) -> bytes:
    """The first event of a run."""
    created = run_pb2.RunCreated(
        session_id=new.session_id or new.new_session_id,
        agent=new.agent,
        revision=new.revision,
        user_id=new.user_id,
        input=new.input,
        previous_run_id=previous or "",
        traceparent=new.traceparent,
    )
    return body_of([run_pb2.Change(run_created=created)])


def _join_session(connection: sa.Connection, new: journal_pb2.NewRun, now: datetime) -> tuple[int, str | None]:
    """The run's place in its session and the run before it; makes the session where it is new."""
    if not new.session_id:
        connection.execute(
            sa.insert(t.sessions).values(
                workspace_id=new.workspace_id,
                session_id=new.new_session_id,
                user_id=new.user_id,
                last_run_id=new.run_id,
                run_count=1,
                created_at=now,
            )
        )
        return 1, None
    key = (t.sessions.c.workspace_id == new.workspace_id) & (t.sessions.c.session_id == new.session_id)
    session = connection.execute(sa.select(t.sessions).where(key).with_for_update()).one_or_none()
    if session is None:
        raise NotFound("no such session", reason=Reason.SESSION_NOT_FOUND, metadata={"session_id": new.session_id})
    connection.execute(sa.update(t.sessions).where(key).values(last_run_id=new.run_id, run_count=session.run_count + 1))
    return session.run_count + 1, session.last_run_id


# Of a new run's row, what is the same for every run that begins a session. {now} is the time of the write.
_NEW_RUN_CONSTANTS = {
    "ordinal": "1",
    "state": str(int(run_pb2.RUN_STATE_QUEUED)),
    "wait_reason": "0",
    "blocked": "false",
    "cancel_requested": "false",
    "epoch": "0",
    "last_seq": "1",
    "step_count": "0",
    **dict.fromkeys(("ready_at", "created_at", "updated_at"), "statement_timestamp()"),
    **dict.fromkeys(_TOTALS, "0"),
    "output_seq": "0",
}
_NEW_RUN_COLUMNS = ("run_id", "workspace_id", "session_id", "agent", "revision", "user_id", "lane", "agent_limit")
_NEW_RUN_SENT = (
    *((name, "uuid") for name in ("run_id", "workspace_id", "session_id")),
    *((name, "text") for name in ("agent", "revision", "user_id", "request_id")),
    ("fingerprint", "bytea"),
    ("lane", "smallint"),
    ("agent_limit", "integer"),
    ("body_at", "integer"),
    ("body_size", "integer"),
)

# Leaves out those whose run or request is stored: they are looked at one by one. One that another replica stores at the
# same moment breaks the statement, and is found when it is tried again.
POSTGRES_NEW_SESSIONS = sa.text(f"""
WITH n AS MATERIALIZED (
  SELECT n.* FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _NEW_RUN_SENT)})
    AS n({", ".join(name for name, _ in _NEW_RUN_SENT)})
  WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = n.run_id) AND (n.request_id = '' OR NOT EXISTS (
    SELECT 1 FROM requests AS q WHERE q.workspace_id = n.workspace_id AND q.request_id = n.request_id))
), s AS (
  INSERT INTO sessions (workspace_id, session_id, user_id, last_run_id, run_count, created_at)
  SELECT workspace_id, session_id, user_id, run_id, 1, statement_timestamp() FROM n
), r AS (
  INSERT INTO runs ({", ".join((*_NEW_RUN_COLUMNS, *_NEW_RUN_CONSTANTS))})
  SELECT {", ".join((*_NEW_RUN_COLUMNS, *_NEW_RUN_CONSTANTS.values()))} FROM n
), j AS (
  INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body)
  SELECT run_id, 1, workspace_id, 0, statement_timestamp(),
    substring(CAST(:bodies AS bytea) FROM body_at FOR body_size) FROM n
), q AS (
  INSERT INTO requests (workspace_id, request_id, method, fingerprint, result, created_at)
  SELECT workspace_id, request_id, 'StartRun', fingerprint, CAST(run_id AS text), statement_timestamp()
  FROM n WHERE request_id <> ''
)
SELECT CAST(run_id AS text), statement_timestamp() FROM n
""")


def insert_new_sessions(
    connection: sa.Connection, db: Database, batch: Sequence[journal_pb2.NewRun]
) -> dict[str, SimpleNamespace]:
    """Stores many runs that begin sessions of their own, set by set.

    Returns:
        The rows of those that were stored, by run; the others, or their requests, are known already.

    Raises:
        IntegrityError: One of them became known meanwhile; nothing may be kept of the transaction.
    """
    if db.dialect == "postgresql":
        stored = _insert_new_sessions_on_postgres(connection, batch)
    else:
        known = known_among(connection, batch)
        now = db.now(connection)
        _insert_new_sessions(connection, now, fresh := [new for new in batch if new.run_id not in known])
        stored = {new.run_id: now for new in fresh}
    rows: dict[str, SimpleNamespace] = {}
    for new in batch:
        if new.run_id in stored:
            now = stored[new.run_id]
            if new.blobs:
                put_blobs(connection, new.workspace_id, new.blobs, now)
            values = run_values(new, now, 1, None, False)
            rows[new.run_id] = SimpleNamespace(**values, failure=None, ended_at=None, wake_at=None)
    return rows


def _insert_new_sessions_on_postgres(
    connection: sa.Connection, batch: Sequence[journal_pb2.NewRun]
) -> dict[str, datetime]:
    bodies = [created_body(new, None) for new in batch]
    sizes = [len(body) for body in bodies]
    values = {
        "run_id": _array(new.run_id for new in batch),
        "workspace_id": _array(new.workspace_id for new in batch),
        "session_id": _array(new.new_session_id for new in batch),
        **{name: _array_of_text(getattr(new, name) for new in batch) for name in ("agent", "revision", "user_id")},
        "request_id": _array_of_text(new.request_id for new in batch),
        "fingerprint": _array(new.request_fingerprint for new in batch),
        "lane": _array(lane_of(new) for new in batch),
        "agent_limit": _array(new.agent_limit for new in batch),
        "bodies": b"".join(bodies),
        "body_at": _array(accumulate(sizes[:-1], initial=1)),
        "body_size": _array(sizes),
    }
    return {row[0]: row[1] for row in connection.execute(POSTGRES_NEW_SESSIONS, values)}


def _insert_new_sessions(connection: sa.Connection, now: datetime, batch: Sequence[journal_pb2.NewRun]) -> None:
    if not batch:
        return
    connection.execute(
        sa.insert(t.sessions),
        [
            {
                "workspace_id": new.workspace_id,
                "session_id": new.new_session_id,
                "user_id": new.user_id,
                "last_run_id": new.run_id,
                "run_count": 1,
                "created_at": now,
            }
            for new in batch
        ],
    )
    connection.execute(sa.insert(t.runs), [run_values(new, now, 1, None, False) for new in batch])
    connection.execute(
        sa.insert(t.journal),
        [
            {
                "run_id": new.run_id,
                "seq": 1,
                "workspace_id": new.workspace_id,
                "epoch": 0,
                "at": now,
                "body": created_body(new, None),
            }
            for new in batch
        ],
    )
    asked = [new for new in batch if new.request_id]
    if asked:
        connection.execute(
            sa.insert(t.requests),
            [
                request_values(new.workspace_id, new.request_id, "StartRun", new.request_fingerprint, new.run_id, now)
                for new in asked
            ],
        )


def known_among(connection: sa.Connection, batch: Sequence[journal_pb2.NewRun]) -> set[str]:
    """Run ids of those whose run or request is stored already."""
    ids = [new.run_id for new in batch]
    known = set(connection.execute(sa.select(t.runs.c.run_id).where(t.runs.c.run_id.in_(ids))).scalars())
    asked = [(new.workspace_id, new.request_id) for new in batch if new.request_id]
    if asked:
        pair = sa.tuple_(t.requests.c.workspace_id, t.requests.c.request_id)
        found = {
            (row.workspace_id, row.request_id)
            for row in connection.execute(
                sa.select(t.requests.c.workspace_id, t.requests.c.request_id).where(pair.in_(asked))
            )
        }
        known |= {new.run_id for new in batch if (new.workspace_id, new.request_id) in found}
    return known


# --------------------------------------------------------------------------------------------------- requests


def find_request(
    connection: sa.Connection, workspace_id: str, request_id: str, method: str, fingerprint: bytes
) -> str | None:
    """What an earlier call with this request id made; None when there was none.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED: it was another call.
    """
    if not request_id:
        return None
    key = (t.requests.c.workspace_id == workspace_id) & (t.requests.c.request_id == request_id)
    row = connection.execute(sa.select(t.requests).where(key)).one_or_none()
    if row is None:
        return None
    if row.method != method or row.fingerprint != fingerprint:
        raise InvalidArgument(
            "this request_id was used for another call", reason=Reason.REQUEST_ID_REUSED, field="request_id"
        )
    return str(row.result)


def request_values(
    workspace_id: str, request_id: str, method: str, fingerprint: bytes, result: str, now: datetime
) -> dict[str, Any]:
    """The row of a request id."""
    return {
        "workspace_id": workspace_id,
        "request_id": request_id,
        "method": method,
        "fingerprint": fingerprint,
        "result": result,
        "created_at": now,
    }


def remember_request(
    connection: sa.Connection,
    workspace_id: str,
    request_id: str,
    method: str,
    fingerprint: bytes,
    result: str,
    now: datetime,
) -> None:
    """Keeps what a call with a request id made, in the call's own transaction."""
    if request_id:
        values = request_values(workspace_id, request_id, method, fingerprint, result, now)
        connection.execute(sa.insert(t.requests).values(values))


# --------------------------------------------------------------------------------------------------- one event


@dataclass(frozen=True, slots=True)
class Outside:
    """What an event from outside did."""

    seq: int
    # Whom to nudge: the executor that drives the run now.
    holder: str | None
    became_ready: bool


def append_outside(
    connection: sa.Connection, db: Database, run: sa.Row[Any], changes: Sequence[run_pb2.Change], *, wake: bool = True
) -> Outside:
    """Writes an event for somebody outside, and makes a waiting run ready in the same transaction.

    Args:
        run: The run's row, locked in this transaction.
        wake: Whether the event is worth waking the run for.
    """
    now = db.now(connection)
    seq = run.last_seq + 1
    values: dict[str, Any] = {"last_seq": seq}
    becomes_ready = wake and run.state == run_pb2.RUN_STATE_WAITING
    if becomes_ready:
        values.update(state=run_pb2.RUN_STATE_QUEUED, wait_reason=0, wake_at=None, ready_at=now, updated_at=now)
    usage: dict[str, Any] = {}
    for change in changes:
        if change.WhichOneof("kind") == "step_finished" and change.step_finished.HasField("usage"):
            _add_usage(usage, change.step_finished.usage)
    values.update({name: t.runs.c[name] + amount for name, amount in usage.items()})
    connection.execute(
        sa.insert(t.journal).values(
            run_id=run.run_id,
            seq=seq,
            workspace_id=run.workspace_id,
            epoch=0,
            at=now,
            body=body_of(changes),
        )
    )
    connection.execute(sa.update(t.runs).where(t.runs.c.run_id == run.run_id).values(values))
    return Outside(seq, run.holder, becomes_ready)


def select_run(connection: sa.Connection, workspace_id: str, run_id: str, *, lock: bool = False) -> sa.Row[Any] | None:
    """A run's row, if it is in the workspace."""
    if not (is_uuid(workspace_id) and is_uuid(run_id)):
        return None
    query = sa.select(t.runs).where(t.runs.c.run_id == run_id, t.runs.c.workspace_id == workspace_id)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def find_run(connection: sa.Connection, workspace_id: str, run_id: str, *, lock: bool = False) -> sa.Row[Any]:
    """A run's row.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    row = select_run(connection, workspace_id, run_id, lock=lock)
    if row is None:
        raise NotFound("no such run", reason=Reason.RUN_NOT_FOUND, metadata={"run_id": run_id})
    return row


# --------------------------------------------------------------------------------------------------- reading


def read_events(
    connection: sa.Connection, workspace_id: str, run_id: str, after_seq: int, limit: int
) -> list[run_pb2.Event]:
    """The next events of a run: at most `limit`, and no more than fit into a page's bytes (but one at least)."""
    j = t.journal.c
    size = sa.func.length(j.body)
    total = sa.func.sum(size).over(order_by=j.seq)
    page = (
        sa.select(j.run_id, j.seq, j.epoch, j.at, j.body, (total - size).label("before"))
        .where(j.run_id == run_id, j.seq > after_seq, j.workspace_id == workspace_id)
        .order_by(j.seq)
        .limit(limit)
        .subquery()
    )
    query = sa.select(page).where(page.c.before < PAGE_BYTES).order_by(page.c.seq)
    return [event_of(row) for row in connection.execute(query)]


def event_of(row: Any) -> run_pb2.Event:
    """A journal row as an event."""
    event = run_pb2.Event.FromString(row.body)
    event.run_id = row.run_id
    event.seq = row.seq
    event.epoch = row.epoch
    event.time.FromDatetime(row.at)
    return event


def read_blobs(connection: sa.Connection, workspace_id: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
    """Stored bodies by hash; absent ones are missing."""
    if not is_uuid(workspace_id):
        return {}
    query = sa.select(t.blobs.c.hash, t.blobs.c.data).where(
        t.blobs.c.workspace_id == workspace_id, t.blobs.c.hash.in_(list(hashes))
    )
    return {bytes(row.hash): bytes(row.data) for row in connection.execute(query)}


def stored_event(connection: sa.Connection, run_id: str, seq: int) -> sa.Row[Any] | None:
    """One journal row."""
    query = sa.select(t.journal).where(t.journal.c.run_id == run_id, t.journal.c.seq == seq)
    return connection.execute(query).one_or_none()
