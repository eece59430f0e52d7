"""The store on PostgreSQL and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from holdfast.api.common.v1.run_pb2 import Change, Event
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from holdfast.api.state.v1.journal_service_pb2 import ReadJournalResponse
from holdfast.errors import Conflict, HoldfastError
from services.shared.compression import WORTHWHILE_BYTES, compressed, expanded
from services.shared.database import Database, Writer
from services.shared.telemetry import get_logger
from services.shared.wire import repeated, tag_of
from services.trace.bulk import upsert
from services.trace.store import Projection, RunFilter, RunHistory, RunPosition, StoredEntries
from services.trace.summary import END_STATES, RunRecord
from services.trace.tables import chunks, events, feeds, runs

FEED_NAME: Final = "state"

# SQLite limits the parameters of one statement.
_CHUNK: Final = 500

# Part of a database-wide name space: the same in every replica, of this schema only.
_LEADER_LOCK: Final = "holdfast.trace.projection"

# Of a process that ends: a server that does not answer frees the lock by itself.
_GIVE_UP_SECONDS: Final = 1.0

log = get_logger(__name__)


class SqlTraceStore:
    """Events, runs and the feed's cursor in the service's own schema.

    Args:
        db: The database of trace.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def projection(self) -> AbstractAsyncContextManager[Projection]:
        """Opens the writer."""
        return self._projection()

    @asynccontextmanager
    async def _projection(self) -> AsyncIterator[Projection]:
        async with self._db.writer() as writer:
            projection = SqlProjection(self._db, writer)
            try:
                yield projection
            finally:
                await projection.give_up_lead()

    async def find_run(self, workspace_id: str, run_id: str) -> RunRecord | None:
        """Returns a run; None when the workspace has none of that id."""
        return await self._db.read(_find_run, workspace_id, run_id)

    async def list_runs(
        self, workspace_id: str, wanted: RunFilter, *, after: RunPosition | None, limit: int
    ) -> list[RunRecord]:
        """Returns runs, newest first, that come after a position."""
        return await self._db.read(_list_runs, workspace_id, wanted, after, limit)

    async def find_history(self, workspace_id: str, run_id: str) -> RunHistory | None:
        """Returns a run with its events; None when the workspace has none of that id."""
        return await self._db.read(_find_history, workspace_id, run_id)

    async def find_predecessors(self, workspace_id: str, run: RunRecord) -> list[RunRecord]:
        """Returns the runs that a run follows, the session's first one first."""
        return await self._db.read(_find_predecessors, workspace_id, run)

    async def find_descendants(self, workspace_id: str, run: RunRecord, limit: int) -> list[RunHistory]:
        """Returns the runs below a run with their events: each behind the one that started it, at most so many."""
        return await self._db.read(_find_descendants, workspace_id, run, limit)


class SqlProjection:
    """The writer, on one connection.

    On PostgreSQL the leader holds an advisory lock of that connection's session, which ends with the process. The
    lock spares the other replicas useless work; what keeps the rows right is the comparison of the cursor.
    """

    def __init__(self, db: Database, writer: Writer) -> None:
        self._db = db
        self._writer = writer
        self._leads = False

    async def try_to_lead(self) -> bool:
        """Tells whether this process is the one that projects."""
        if self._db.dialect == "sqlite":
            return True
        self._leads = await self._writer.run(_try_to_lock)
        return self._leads

    async def give_up_lead(self) -> None:
        """Lets another replica lead from now on.

        The end of the session frees the lock too, but only once the server has noticed it, which nobody can wait for.
        """
        if self._leads:
            with suppress(HoldfastError, TimeoutError):
                async with asyncio.timeout(_GIVE_UP_SECONDS):
                    await self._writer.run(_unlock)

    async def cursor(self) -> bytes:
        """Returns the cursor up to which all events are stored."""
        return await self._writer.run(_cursor)

    async def store(self, entries: Sequence[FeedEntry], *, after: bytes, cursor: bytes) -> StoredEntries:
        """Stores events, summaries and the cursor in one transaction."""
        # Everything that does not need the database is done once, outside: a transaction may be repeated.
        batch = [_to_entry(entry) for entry in entries]
        return await self._writer.run(_store, batch, after, cursor)


@dataclass(frozen=True, slots=True)
class _Entry:
    workspace_id: str
    run_id: str
    event: Event
    body: bytes


def _to_entry(entry: FeedEntry) -> _Entry:
    event = entry.event
    run_id = event.run_id
    # The row's key has it.
    event.ClearField("run_id")
    for change in event.changes:
        _leave_out(change, keeps_texts=not entry.is_sealed)
    return _Entry(entry.workspace_id, run_id, event, event.SerializeToString())


# Of each kind of change, where a failure's text or a person's stands.
_TEXTS: Final = {
    "attempt_failed": ("failure", "message"),
    "step_finished": ("failure", "message"),
    "step_in_doubt": ("failure", "message"),
    "run_state_changed": ("failure", "message"),
    "child_ended": ("failure", "message"),
    "cancel_requested": ("", "reason"),
    "pause_requested": ("", "reason"),
    "resume_requested": ("", "reason"),
}


def _leave_out(change: Change, *, keeps_texts: bool) -> None:
    """What was said stays where it is stored, in state: no span needs it, and it is erased in one place.

    Texts of failures are kept beside their reasons, but for those that lie sealed in state: a copy in the clear would
    undo it.
    """
    kind = change.WhichOneof("kind")
    if kind == "step_finished" and change.step_finished.message.HasField("message"):
        change.step_finished.message.message.ClearField("parts")
    elif kind == "run_created" and change.run_created.input.HasField("message"):
        change.run_created.input.message.ClearField("parts")
    elif kind == "approval_requested":
        for field in ("prompt", "answer_schema", "arguments_json", "arguments_sha256"):
            change.approval_requested.approval.ClearField(field)
    elif kind == "approval_decided":
        for field in ("answer_json", "comment", "reason", "edited_arguments_json", "arguments_sha256"):
            change.approval_decided.ClearField(field)
    elif kind == "late_result":
        change.late_result.ClearField("content")
    elif kind == "child_ended" and change.child_ended.output.HasField("message"):
        change.child_ended.output.message.ClearField("parts")
    if not keeps_texts and kind in _TEXTS:
        inside, field = _TEXTS[kind]
        holder = getattr(change, kind)
        if not inside:
            holder.ClearField(field)
        elif holder.HasField(inside):
            getattr(holder, inside).ClearField(field)


# ------------------------------------------------------------------------------------------------------------ writing


def _unlock(connection: sa.Connection) -> None:
    # The connection has no other lock. If it is a new one by now it has none at all, which is no error.
    connection.execute(sa.select(sa.func.pg_advisory_unlock_all()))


def _try_to_lock(connection: sa.Connection) -> bool:
    # A machine that vanished says no goodbye: the server finds out within half a minute instead of two hours, and
    # frees the lock.
    for setting, value in (("tcp_keepalives_idle", 10), ("tcp_keepalives_interval", 5), ("tcp_keepalives_count", 3)):
        connection.exec_driver_sql(f"SET {setting} = {value}")
    # A session counts its own locks; asked again, it must not need to be unlocked twice.
    held = connection.execute(
        sa.text(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted "
            "AND objid = (hashtext(:name)::bigint & 4294967295)::oid AND objsubid = 1)"
        ),
        {"name": _LEADER_LOCK},
    ).scalar_one()
    if held:
        return True
    locked = connection.execute(
        sa.text("SELECT pg_try_advisory_lock(hashtext(:name)::bigint)"), {"name": _LEADER_LOCK}
    ).scalar_one()
    return bool(locked)


def _cursor(connection: sa.Connection) -> bytes:
    found = connection.execute(sa.select(feeds.c.cursor).where(feeds.c.name == FEED_NAME)).scalar_one()
    return bytes(found)


def _store(connection: sa.Connection, batch: list[_Entry], after: bytes, cursor: bytes) -> StoredEntries:
    # Order matters: this row's lock comes first, so that writers follow each other and read what the last one left.
    moved = connection.execute(
        feeds.update().where(feeds.c.name == FEED_NAME, feeds.c.cursor == after).values(cursor=cursor)
    )
    if moved.rowcount != 1:
        raise Conflict("another process projects the feed", metadata={"feed": FEED_NAME})

    records = _records(connection, list(dict.fromkeys(entry.run_id for entry in batch)))
    erased = _forget_erased(connection, batch, records)
    pending: dict[str, dict[int, _Entry]] = {}
    for entry in batch:
        record = records.get(entry.run_id)
        if record is None:
            record = records[entry.run_id] = RunRecord(entry.run_id, entry.workspace_id)
        elif record.workspace_id != entry.workspace_id:
            # Never seen, and never to be shown: a run belongs to one workspace.
            log.error("event_of_another_workspace", run_id=entry.run_id, workspace_id=entry.workspace_id)
            continue
        seq = entry.event.seq
        if seq <= record.last_seq or entry.run_id in erased:
            continue
        pending.setdefault(entry.run_id, {}).setdefault(seq, entry)

    new_events = 0
    new_chunks: list[tuple[str, int, int, bytes]] = []
    changed: list[RunRecord] = []
    advanced: list[str] = []
    for run_id, arrived in pending.items():
        record = records[run_id]
        before = record.last_seq
        stored: dict[int, Event] = {}
        if record.has_gap:
            # What was stored beyond the gap may follow now. It wins over what came again.
            stored = {event.seq: event for event in _events(connection, run_id, after_seq=before)}
        new = {seq: entry for seq, entry in arrived.items() if seq not in stored}
        if new:
            new_events += len(new)
            new_chunks.append(_to_chunk(run_id, new))
        record.advance({seq: entry.event for seq, entry in new.items()} | stored)
        changed.append(record)
        if record.last_seq > before:
            advanced.append(run_id)
    upsert(connection, chunks, new_chunks)
    upsert(connection, runs, [_to_row(record) for record in changed])
    return StoredEntries(
        new_events=new_events,
        # Those who wait for more of an erased run find that it is gone.
        advanced=[*advanced, *erased],
        runs_with_gap=[record.run_id for record in changed if record.has_gap],
    )


def _to_chunk(run_id: str, entries: dict[int, _Entry]) -> tuple[str, int, int, bytes]:
    numbers = sorted(entries)
    body = repeated(_EVENTS, [entries[number].body for number in numbers])
    if len(body) >= WORTHWHILE_BYTES:
        # Events of one run are much alike: a quarter is left, and written to the table and to the log before it.
        body = compressed(body)
    return run_id, numbers[0], numbers[-1], body


_EVENTS: Final = tag_of(ReadJournalResponse, "events")


def events_in(body: bytes) -> Iterable[Event]:
    """Returns the events of a chunk."""
    if body and not body.startswith(_EVENTS):
        body = expanded(body)
    return ReadJournalResponse.FromString(body).events


def _forget_erased(connection: sa.Connection, batch: list[_Entry], records: dict[str, RunRecord]) -> set[str]:
    """Deletes what is stored of runs that were erased; what the batch has of them comes before and is not stored."""
    erased = {
        entry.run_id
        for entry in batch
        if any(change.HasField("run_erased") for change in entry.event.changes)
        and (entry.run_id not in records or records[entry.run_id].workspace_id == entry.workspace_id)
    }
    stored = [run_id for run_id in erased if run_id in records]
    for start in range(0, len(stored), _CHUNK):
        chunk = stored[start : start + _CHUNK]
        for table in (chunks, events, runs):
            connection.execute(sa.delete(table).where(table.c.run_id.in_(chunk)))
    return erased


def _records(connection: sa.Connection, run_ids: list[str]) -> dict[str, RunRecord]:
    if connection.dialect.name == "postgresql":
        wanted = sa.func.any(sa.bindparam("run_ids", run_ids, ARRAY(sa.Text)))
        return {
            row.run_id: _to_record(row) for row in connection.execute(sa.select(runs).where(runs.c.run_id == wanted))
        }
    found: dict[str, RunRecord] = {}
    for start in range(0, len(run_ids), _CHUNK):
        chunk = run_ids[start : start + _CHUNK]
        for row in connection.execute(sa.select(runs).where(runs.c.run_id.in_(chunk))):
            found[row.run_id] = _to_record(row)
    return found


# ------------------------------------------------------------------------------------------------------------ reading


def _select_run(workspace_id: str) -> sa.Select[Any]:
    # A run whose first event is missing tells nothing yet.
    return sa.select(runs).where(runs.c.workspace_id == workspace_id, runs.c.last_seq > 0)


def _find_run(connection: sa.Connection, workspace_id: str, run_id: str) -> RunRecord | None:
    row = connection.execute(_select_run(workspace_id).where(runs.c.run_id == run_id)).one_or_none()
    return None if row is None else _to_record(row)


def _list_runs(
    connection: sa.Connection, workspace_id: str, wanted: RunFilter, after: RunPosition | None, limit: int
) -> list[RunRecord]:
    query = _select_run(workspace_id)
    if wanted.parent_run_id:
        query = query.where(runs.c.parent_run_id == wanted.parent_run_id)
        # What a run started is in its own tree, which an index finds.
        root = _find_run(connection, workspace_id, wanted.parent_run_id)
        if root is None:
            return []
        query = query.where(runs.c.root_run_id == (root.root_run_id or root.run_id))
    if wanted.root_run_id:
        query = query.where(sa.or_(runs.c.run_id == wanted.root_run_id, runs.c.root_run_id == wanted.root_run_id))
    if not (wanted.parent_run_id or wanted.root_run_id or wanted.include_children):
        query = query.where(runs.c.parent_run_id == "")
    if wanted.agent:
        query = query.where(runs.c.agent == wanted.agent)
    if wanted.session_id:
        query = query.where(runs.c.session_id == wanted.session_id)
    if wanted.user_id:
        query = query.where(runs.c.user_id == wanted.user_id)
    if wanted.states:
        query = query.where(runs.c.state.in_(sorted(wanted.states)))
        if not wanted.states & END_STATES:
            # Lets the planner use the index of runs that have not ended.
            query = query.where(runs.c.ended_at.is_(None))
    if wanted.created_from is not None:
        query = query.where(runs.c.created_at >= wanted.created_from)
    if wanted.created_before is not None:
        query = query.where(runs.c.created_at < wanted.created_before)
    if after is not None:
        key = sa.tuple_(runs.c.created_at, runs.c.run_id)
        query = query.where(key < sa.tuple_(sa.literal(after.created_at, runs.c.created_at.type), after.run_id))
    query = query.order_by(runs.c.created_at.desc(), runs.c.run_id.desc()).limit(limit)
    return [_to_record(row) for row in connection.execute(query)]


def _find_history(connection: sa.Connection, workspace_id: str, run_id: str) -> RunHistory | None:
    run = _find_run(connection, workspace_id, run_id)
    return None if run is None else _history(connection, run)


def _find_predecessors(connection: sa.Connection, workspace_id: str, run: RunRecord) -> list[RunRecord]:
    chain = [run]
    if run.previous_run_id:
        of_session = _select_run(workspace_id).where(runs.c.session_id == run.session_id)
        by_id = {row.run_id: _to_record(row) for row in connection.execute(of_session)}
        # Popped, so that a chain that met itself would end.
        while (previous := by_id.pop(chain[-1].previous_run_id, None)) is not None:
            chain.append(previous)
    return chain[:0:-1]


def _find_descendants(connection: sa.Connection, workspace_id: str, run: RunRecord, limit: int) -> list[RunHistory]:
    of_tree = _select_run(workspace_id).where(
        runs.c.root_run_id == (run.root_run_id or run.run_id), sa.literal_column("runs.root_run_id") != sa.text("''")
    )
    below: dict[str, list[RunRecord]] = {}
    for row in connection.execute(of_tree.order_by(runs.c.parent_step, runs.c.run_id)):
        below.setdefault(row.parent_run_id, []).append(_to_record(row))
    found: list[RunRecord] = []
    # Popped, so that a tree that met itself would end.
    left = below.pop(run.run_id, [])[::-1]
    while left and len(found) < limit:
        child = left.pop()
        found.append(child)
        left += below.pop(child.run_id, [])[::-1]
    return [_history(connection, child) for child in found]


def _history(connection: sa.Connection, run: RunRecord) -> RunHistory:
    return RunHistory(run, _events(connection, run.run_id, after_seq=0, up_to_seq=run.last_seq))


def _events(connection: sa.Connection, run_id: str, *, after_seq: int, up_to_seq: int | None = None) -> list[Event]:
    older = sa.select(events.c.body).where(events.c.run_id == run_id, events.c.seq > after_seq)
    newer = sa.select(chunks.c.body).where(chunks.c.run_id == run_id, chunks.c.last_seq > after_seq)
    if up_to_seq is not None:
        older = older.where(events.c.seq <= up_to_seq)
        newer = newer.where(chunks.c.first_seq <= up_to_seq)
    found = [Event.FromString(body) for (body,) in connection.execute(older)]
    for (body,) in connection.execute(newer):
        found.extend(events_in(body))
    by_seq = {
        event.seq: event for event in found if event.seq > after_seq and (up_to_seq is None or event.seq <= up_to_seq)
    }
    for event in by_seq.values():
        event.run_id = run_id
    return [by_seq[seq] for seq in sorted(by_seq)]


# --------------------------------------------------------------------------------------------------- rows and records

_FIELDS: Final = tuple(field.name for field in fields(RunRecord))
_OPEN_STEPS: Final = _FIELDS.index("open_steps")
_values_of: Final = attrgetter(*_FIELDS)


def _to_record(row: Any) -> RunRecord:
    values = list(row)
    text = values[_OPEN_STEPS]
    open_steps = {}
    if text:
        for pair in text.split(","):
            step, _, kind = pair.partition(":")
            open_steps[int(step)] = int(kind)
    values[_OPEN_STEPS] = open_steps
    return RunRecord(*values)


def _to_row(record: RunRecord) -> tuple[Any, ...]:
    values = list(_values_of(record))
    values[_OPEN_STEPS] = ",".join(f"{step}:{kind}" for step, kind in record.open_steps.items())
    return tuple(values)
