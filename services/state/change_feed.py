"""All committed events in commit-safe order: a reader never passes a row whose transaction commits later.

PostgreSQL: by transaction id, and only up to the oldest transaction that is still open. SQLite: by rowid, because one
writer commits after the other.
"""

from __future__ import annotations

import struct
from typing import Any

import sqlalchemy as sa

from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from holdfast.errors import InvalidArgument, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.state import journal, tables

MAX_ENTRIES = 2_000
# A frame's events together; one that is larger goes alone.
FRAME_BYTES = 2 * 1024 * 1024

_SQLITE = sa.text(
    "SELECT rowid AS position, run_id, seq, workspace_id, epoch, at, body FROM journal "
    "WHERE rowid > :after ORDER BY rowid LIMIT :limit"
).columns(at=tables.journal.c.at.type)

_POSTGRES = sa.text(
    "SELECT CAST(CAST(txid AS text) AS bigint) AS position, run_id, seq, workspace_id, epoch, at, body FROM journal "
    "WHERE txid >= CAST(CAST(:after AS text) AS xid8) AND txid < pg_snapshot_xmin(pg_current_snapshot()) "
    "AND (txid, run_id, seq) > (CAST(CAST(:after AS text) AS xid8), CAST(:run_id AS uuid), :seq) "
    "ORDER BY txid, run_id, seq LIMIT :limit"
).columns(at=tables.journal.c.at.type, run_id=tables.journal.c.run_id.type, workspace_id=tables.journal.c.run_id.type)

# No cursor is after the end of its feed.
_ENDS = {
    "sqlite": sa.text("SELECT max(rowid) FROM journal"),
    "postgresql": sa.text("SELECT CAST(CAST(txid AS text) AS bigint) FROM journal ORDER BY txid DESC LIMIT 1"),
}

_MAX_POSITION = 2**63 - 1
_NIL = "00000000-0000-0000-0000-000000000000"
# A tag of the dialect, the position, the run and the seq.
_CURSOR = struct.Struct(">BQ36sQ")
_TAGS = {"sqlite": 1, "postgresql": 2}


def read_feed(
    connection: sa.Connection, db: Database, cursor: bytes, limit: int
) -> tuple[list[feed_pb2.FeedEntry], bytes, bool]:
    """The next entries after a cursor, at most `limit` and no more than fit into a frame.

    Returns:
        The entries, the cursor after them, and whether the feed ends there for now.

    Raises:
        InvalidArgument: The cursor is not of this feed.
    """
    after, run_id, seq = _decode(db, cursor)
    query: Any = _POSTGRES if db.dialect == "postgresql" else _SQLITE
    values: dict[str, Any] = {"after": after, "limit": limit}
    if db.dialect == "postgresql":
        values.update(run_id=run_id, seq=seq)
    entries: list[feed_pb2.FeedEntry] = []
    size = 0
    last: Any = None
    is_caught_up = True
    rows = connection.execute(query, values).all()
    for row in rows:
        size += len(row.body)
        if entries and size > FRAME_BYTES:
            is_caught_up = False
            break
        entries.append(feed_pb2.FeedEntry(workspace_id=row.workspace_id, event=journal.event_of(row)))
        last = row
    if last is not None:
        cursor = _CURSOR.pack(_TAGS[db.dialect], last.position, last.run_id.encode(), last.seq)
    return entries, cursor, is_caught_up and len(rows) < limit


def check_cursor(connection: sa.Connection, db: Database, cursor: bytes) -> None:
    """Refuses a cursor of another feed, such as that of a database that was put back to an earlier state since.

    Raises:
        InvalidArgument: The cursor is not of this feed.
    """
    after, _, _ = _decode(db, cursor)
    if after > (connection.execute(_ENDS[db.dialect]).scalar() or 0):
        raise _foreign()


def _decode(db: Database, cursor: bytes) -> tuple[int, str, int]:
    if not cursor:
        return 0, _NIL, 0
    try:
        tag, position, run_id, seq = _CURSOR.unpack(cursor)
        run = run_id.decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise _foreign() from error
    if tag != _TAGS[db.dialect] or not is_uuid(run) or max(position, seq) > _MAX_POSITION:
        raise _foreign()
    return position, run, seq


def _foreign() -> InvalidArgument:
    return InvalidArgument("the cursor is not of this feed", reason=Reason.INVALID_PAGE_TOKEN, field="cursor")
