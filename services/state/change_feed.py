"""All committed events in commit-safe order: a reader never passes a row whose transaction commits later.

PostgreSQL: by transaction id, and only up to the oldest transaction that is still open. SQLite: by rowid, because one
writer commits after the other. feed_origin.py says what becomes of the order when a database is restored.

A cursor names the event that it stands at and the feed that it was made in. In another feed (a restored database, a
promoted standby) it is good only if that event is there, at the same place: what it stands for may be lost, and
other events may have its positions. An event that followers have not had time to read is never removed.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import sqlalchemy as sa

from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from holdfast.errors import InvalidArgument, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.seals import PayloadDamagedError, is_sealed, opened
from services.shared.telemetry import get_logger
from services.state import tables as t
from services.state.feed_origin import HORIZON_SQL, MARK_SQL, NEWEST_SQL
from services.state.journal import put_place

MAX_ENTRIES: Final = 2_000
# A frame's events together; one that is larger goes alone.
FRAME_BYTES: Final = 2 * 1024 * 1024

# Each answers with one row at least, which has the mark of the feed. Of rows that do not fit into a frame, only the
# first is read. Times are microseconds: the driver's own type costs more than all the rest.
_SQLITE: Final = sa.text(
    f"""
SELECT place.feed_id AS mark, e.position, e.run_id, e.seq, e.workspace_id, e.epoch, e.at, e.body
FROM (SELECT (SELECT feed_id FROM feed) AS feed_id) AS place LEFT JOIN (
  SELECT * FROM (
    SELECT *, sum(size) OVER (ORDER BY position) - size AS before FROM (
      SELECT rowid AS position, run_id, seq, workspace_id, epoch, at, body, length(body) AS size
      FROM journal WHERE rowid > :after ORDER BY rowid LIMIT :limit
    )
  ) WHERE before <= {FRAME_BYTES} ORDER BY position
) AS e
"""
)

_POSTGRES: Final = sa.text(
    f"""
SELECT place.mark, e.position, e.run_id, e.seq, e.workspace_id, e.epoch, e.at, e.body
FROM (SELECT {MARK_SQL} AS mark) AS place LEFT JOIN (
  SELECT * FROM (
    SELECT *, sum(size) OVER (ORDER BY txid, run_id, seq ROWS UNBOUNDED PRECEDING) - size AS before FROM (
      SELECT txid, run_id, seq, CAST(CAST(txid AS text) AS bigint) AS position,
        workspace_id, epoch, CAST(extract(epoch FROM at) * 1000000 AS bigint) AS at, body,
        octet_length(body) AS size
      FROM journal
      WHERE txid >= CAST(CAST(:after AS text) AS xid8) AND txid < CAST(CAST({HORIZON_SQL} AS text) AS xid8)
        AND (txid, run_id, seq) > (CAST(CAST(:after AS text) AS xid8), CAST(:run_id AS uuid), :seq)
      ORDER BY txid, run_id, seq LIMIT :limit
    ) AS next
  ) AS sized WHERE before <= {FRAME_BYTES} ORDER BY txid, run_id, seq
) AS e ON true
"""
)

_MARKS: Final = {"sqlite": sa.text("SELECT feed_id FROM feed"), "postgresql": sa.text(f"SELECT {MARK_SQL}")}

# No cursor is after the end of its feed: the newest event is never removed.
_ENDS: Final = {
    "sqlite": sa.text("SELECT max(rowid) FROM journal"),
    "postgresql": sa.text(NEWEST_SQL),
}

_POSITIONS: Final = {
    "sqlite": sa.text("SELECT rowid FROM journal WHERE run_id = :run_id AND seq = :seq"),
    "postgresql": sa.text(
        "SELECT CAST(CAST(txid AS text) AS bigint) FROM journal WHERE run_id = CAST(:run_id AS uuid) AND seq = :seq"
    ),
}

log = get_logger(__name__)

_MAX_POSITION: Final = 2**63 - 1
_NIL: Final = "00000000-0000-0000-0000-000000000000"
# A tag of the dialect, the feed's mark, the position, the run and the seq.
_CURSOR: Final = struct.Struct(">BqQ36sQ")
_TAGS: Final = {"sqlite": 1, "postgresql": 2}


def read_frame(connection: sa.Connection, db: Database, cursor: bytes, limit: int) -> feed_pb2.FollowResponse:
    """The next entries after a cursor, at most `limit` and no more than fit into a frame.

    Raises:
        InvalidArgument: The cursor is not of this feed.
    """
    mark, after, run_id, seq = _decode(db, cursor)
    values: dict[str, Any] = {"after": after, "limit": limit}
    if db.dialect == "postgresql":
        rows = connection.execute(_POSTGRES, {**values, "run_id": run_id, "seq": seq}).all()
    else:
        rows = connection.execute(_SQLITE, values).all()
    now = _mark(rows[0][0])
    if cursor and mark != now:
        _check_place(connection, db, after, run_id, seq)
    if rows[0][1] is None:
        rows = []
    frame = feed_pb2.FollowResponse(is_caught_up=len(rows) < limit)
    add = frame.entries.add
    size = 0
    # This is done for every event there is: no copies, and nothing that is not needed.
    for _, position, row_run_id, row_seq, workspace_id, epoch, at, body in rows:
        size += len(body)
        if size > FRAME_BYTES:
            frame.is_caught_up = False
            if size > len(body):
                break
        after, run_id, seq = position, row_run_id, row_seq
        entry = add(workspace_id=workspace_id)
        event = entry.event
        event.MergeFromString(_opened(body))
        if is_sealed(body):
            entry.is_sealed = True
        put_place(event, run_id, seq, epoch, at)
    if after or cursor:
        frame.cursor = _CURSOR.pack(_TAGS[db.dialect], now, after, run_id.encode(), seq)
    return frame


def _opened(body: bytes) -> bytes:
    try:
        return opened(body, gone=t.GONE_EVENT)
    except PayloadDamagedError:
        # It keeps its place: the feed of all workspaces does not stand still for one event.
        log.error("event_damaged")
        return b""


def read_feed(
    connection: sa.Connection, db: Database, cursor: bytes, limit: int
) -> tuple[list[feed_pb2.FeedEntry], bytes, bool]:
    """The next entries after a cursor, the cursor after them, and whether the feed ends there for now.

    Raises:
        InvalidArgument: The cursor is not of this feed.
    """
    frame = read_frame(connection, db, cursor, limit)
    return list(frame.entries), frame.cursor, frame.is_caught_up


def check_cursor(connection: sa.Connection, db: Database, cursor: bytes) -> None:
    """Refuses a cursor of another feed, such as that of a database that was put back to an earlier state since.

    Raises:
        InvalidArgument: The cursor is not of this feed.
    """
    mark, after, run_id, seq = _decode(db, cursor)
    if after > (connection.execute(_ENDS[db.dialect]).scalar() or 0):
        raise _foreign()
    if after and mark != _mark(connection.execute(_MARKS[db.dialect]).scalar()):
        _check_place(connection, db, after, run_id, seq)


def _check_place(connection: sa.Connection, db: Database, after: int, run_id: str, seq: int) -> None:
    if not after:
        return
    place = connection.execute(_POSITIONS[db.dialect], {"run_id": run_id, "seq": seq}).scalar()
    if place != after:
        raise _foreign()


def _mark(found: int | str | None) -> int:
    if isinstance(found, int):
        return found
    # SQLite cannot hash.
    return int.from_bytes(hashlib.sha256((found or "").encode()).digest()[:8], "big", signed=True)


def _decode(db: Database, cursor: bytes) -> tuple[int, int, str, int]:
    if not cursor:
        return 0, 0, _NIL, 0
    try:
        tag, mark, position, run_id, seq = _CURSOR.unpack(cursor)
        run = run_id.decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise _foreign() from error
    if tag != _TAGS[db.dialect] or not is_uuid(run) or max(position, seq) > _MAX_POSITION:
        raise _foreign()
    return mark, position, run, seq


def _foreign() -> InvalidArgument:
    return InvalidArgument("the cursor is not of this feed", reason=Reason.INVALID_PAGE_TOKEN, field="cursor")
