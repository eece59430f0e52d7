"""The journal as it is read, and the writing of one event for somebody outside.

Invariant: events of a run are dense from 1, and `runs.last_seq` is the last of them. It holds because every statement
that inserts into `journal` moves `last_seq` by one in the same statement or transaction, on the condition that it had
the value before. Batches are written by `transition_batch` and `new_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.errors import InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.seals import seals_of
from services.shared.wire import repeated, tag_of
from services.state import tables as t

# Of events without the messages that are put inline later.
PAGE_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024
# The run row's totals.
TOTALS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd_nanos",
    "unpriced_calls",
)
_CHANGES = tag_of(run_pb2.Event, "changes")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# PostgreSQL may give a transaction its id while it waits for a row's lock, as it follows the row to its next version,
# and the lock to a younger one first. What it wrote to the run would stand before that one's event in the change feed.
_IS_OLDER = sa.literal_column(
    "EXISTS (SELECT 1 FROM journal AS earlier WHERE earlier.run_id = journal.run_id"
    " AND earlier.seq = journal.seq - 1 AND earlier.txid > journal.txid)",
    sa.Boolean,
)
_OLDER = "the transaction is older than that of the event before"
_MICROSECOND = timedelta(microseconds=1)
CALL_QUEUED, CALL_OFFERED, CALL_STARTED, CALL_OVER = 1, 2, 3, 4


def body_of(changes: Iterable[run_pb2.Change]) -> bytes:
    """Changes as a journal row keeps them: the same changes are the same bytes in every process."""
    return repeated(_CHANGES, [change.SerializeToString(deterministic=True) for change in changes])


def add_usage(values: dict[str, Any], usage: content_pb2.Usage) -> None:
    """Adds what a model call used to the run's totals in `values`, by the names of their columns."""
    so_far = values.get
    values["input_tokens"] = so_far("input_tokens", 0) + usage.input_tokens
    values["output_tokens"] = so_far("output_tokens", 0) + usage.output_tokens
    values["cache_read_tokens"] = so_far("cache_read_tokens", 0) + usage.cache_read_input_tokens
    values["cache_write_tokens"] = so_far("cache_write_tokens", 0) + usage.cache_write_input_tokens
    values["reasoning_tokens"] = so_far("reasoning_tokens", 0) + usage.reasoning_output_tokens
    values["cost_usd_nanos"] = so_far("cost_usd_nanos", 0) + usage.cost_usd_nanos
    values["unpriced_calls"] = so_far("unpriced_calls", 0) + int(not usage.HasField("cost_usd_nanos"))


def to_micros(moment: datetime) -> int:
    """As SQLite stores it."""
    return (moment - _EPOCH) // _MICROSECOND


_POSTGRES_PUT_BLOB = sa.text("""
WITH reference AS (
  INSERT INTO blob_references (workspace_id, hash, run_id) VALUES (:workspace_id, :hash, :run_id) ON CONFLICT DO NOTHING
)
INSERT INTO blobs (workspace_id, hash, data, created_at) VALUES (:workspace_id, :hash, :data, :now)
ON CONFLICT DO NOTHING RETURNING 1
""").bindparams(
    sa.bindparam("workspace_id", type_=t.runs.c.run_id.type), sa.bindparam("run_id", type_=t.runs.c.run_id.type)
)


def put_blobs(
    connection: sa.Connection, workspace_id: str, run_id: str, blobs: Iterable[content_pb2.Blob], now: datetime
) -> None:
    """Stores bodies that are not there yet, and that the run refers to them.

    Invariant: from here to the commit nobody deletes them. One that is new is this transaction's own; one that was
    there is locked, as by a foreign key; whoever deletes bodies locks them first and then looks for references.
    """
    seals = seals_of(connection)
    for blob in blobs:
        data = seals.seal(workspace_id, blob.data)
        if connection.dialect.name == "sqlite":
            values = {"workspace_id": workspace_id, "hash": blob.hash}
            connection.execute(
                sqlite.insert(t.blobs).values(data=data, created_at=now, **values).on_conflict_do_nothing()
            )
            connection.execute(
                sqlite.insert(t.blob_references).values(run_id=run_id, **values).on_conflict_do_nothing()
            )
            continue
        b = t.blobs.c
        lock = (
            sa.select(sa.literal(1))
            .where(b.workspace_id == workspace_id, b.hash == blob.hash)
            .with_for_update(read=True, key_share=True, of=t.blobs)
        )
        sent = {"workspace_id": workspace_id, "hash": blob.hash, "run_id": run_id, "data": data, "now": now}
        while not connection.execute(_POSTGRES_PUT_BLOB, sent).first() and not connection.execute(lock).first():
            # It was there, and was deleted before it could be locked.
            pass


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


WAITING = frozenset({run_pb2.RUN_STATE_WAITING})
# Of a run that somebody asks to end or to go on, also while it is paused.
RESTING = frozenset({run_pb2.RUN_STATE_WAITING, run_pb2.RUN_STATE_PAUSED})
NOBODY: frozenset[run_pb2.RunState] = frozenset()


def append_outside(
    connection: sa.Connection,
    db: Database,
    run: sa.Row[Any],
    changes: Sequence[run_pb2.Change],
    *,
    wakes: frozenset[run_pb2.RunState] = WAITING,
) -> Outside:
    """Writes an event for somebody outside, and makes a run that rests ready in the same transaction.

    Args:
        run: The run's row, locked in this transaction.
        wakes: The states in which the event makes the run ready. What a paused run waited for does not.
    """
    return append_each_outside(connection, db, [(run, changes)], wakes=wakes)[0]


def append_each_outside(
    connection: sa.Connection,
    db: Database,
    news: Sequence[tuple[sa.Row[Any], Sequence[run_pb2.Change]]],
    *,
    wakes: frozenset[run_pb2.RunState] = WAITING,
) -> list[Outside]:
    """As `append_outside`, for several events; those of one run are written in their order."""
    if not news:
        return []
    now = db.now(connection)
    last_seqs: dict[str, int] = {}
    woken: set[str] = set()
    events: list[dict[str, Any]] = []
    written: list[Outside] = []
    for run, changes in news:
        seq = last_seqs[run.run_id] = last_seqs.get(run.run_id, run.last_seq) + 1
        becomes_ready = run.state in wakes and run.run_id not in woken
        if becomes_ready:
            woken.add(run.run_id)
        body = db.seals.seal(run.workspace_id, body_of(changes))
        events.append(
            {"run_id": run.run_id, "seq": seq, "workspace_id": run.workspace_id, "epoch": 0, "at": now, "body": body}
        )
        written.append(Outside(seq, run.holder, becomes_ready))
    if db.dialect == "postgresql":
        if any(connection.execute(sa.insert(t.journal).returning(_IS_OLDER), events).scalars()):
            # Nothing is kept of this transaction; the next one is younger.
            raise OperationalError(None, None, psycopg.errors.SerializationFailure(_OLDER))
    else:
        connection.execute(sa.insert(t.journal), events)
    places = [{"of_run": run_id, "reached": seq} for run_id, seq in last_seqs.items()]
    move = sa.update(t.runs).where(t.runs.c.run_id == sa.bindparam("of_run")).values(last_seq=sa.bindparam("reached"))
    if resting := [place for place in places if place["of_run"] not in woken]:
        connection.execute(move, resting)
    if waking := [place for place in places if place["of_run"] in woken]:
        ready = {"state": run_pb2.RUN_STATE_QUEUED, "wait_reason": 0, "wake_at": None, "ready_at": now}
        connection.execute(move.values(updated_at=now, **ready), waking)
    _add_usage(connection, news)
    return written


def _add_usage(connection: sa.Connection, news: Iterable[tuple[sa.Row[Any], Sequence[run_pb2.Change]]]) -> None:
    for run, changes in news:
        usage: dict[str, Any] = {}
        for change in changes:
            if change.WhichOneof("kind") == "step_finished" and change.step_finished.HasField("usage"):
                add_usage(usage, change.step_finished.usage)
        if usage:
            added = {name: t.runs.c[name] + amount for name, amount in usage.items()}
            connection.execute(sa.update(t.runs).where(t.runs.c.run_id == run.run_id).values(added))


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


def put_place(event: run_pb2.Event, run_id: str, seq: int, epoch: int, micros: int) -> None:
    """Fills in what an event has from its row's columns; the time as microseconds, which costs least where there are
    many."""
    event.run_id, event.seq, event.epoch = run_id, seq, epoch
    time = event.time
    time.seconds, microseconds = divmod(micros, 1_000_000)
    time.nanos = microseconds * 1_000


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
