"""Which feed the journal's order belongs to, and how a restored database gets an order that goes on.

The change feed of PostgreSQL is ordered by transaction ids, which a new cluster counts from the beginning: what a dump
brought would come after everything that is written from now on, and would hold the feed back until the new ids have
passed the old ones. So a database remembers where it was written. A replica that finds itself elsewhere gives the feed
a new name, and lets the order of new events go on behind that of the restored ones (`base` is added to each id).

Positions below are transaction ids with `base` added: it is 0 for a database that was never restored from a dump.

Nothing tells that a file of SQLite was put back. There, each start gives the feed a new name, so that followers' places
are looked at again.
"""

from __future__ import annotations

from typing import Final

import psycopg
import sqlalchemy as sa

from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.shared.server import EXIT_CONFIGURATION, StartupError
from services.shared.telemetry import get_logger
from services.state import tables as t

HORIZON_SQL: Final = (
    "(CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) + COALESCE((SELECT base FROM feed), 0))"
)
"""PostgreSQL: every transaction before this position is over, so that nothing will ever be committed there."""

# Ordered by the column, which has to be told from the number that would have its name: an index knows its end.
NEWEST_SQL: Final = "SELECT CAST(CAST(txid AS text) AS bigint) FROM journal ORDER BY journal.txid DESC LIMIT 1"
"""PostgreSQL: the position of the newest event; no row while there is none."""

MARK_SQL: Final = (
    "hashtextextended(COALESCE((SELECT CAST(feed_id AS text) FROM feed), '') "
    "|| extract(epoch FROM pg_postmaster_start_time()), 0)"
)
"""PostgreSQL: names the feed as this server has it. Another one (a promoted standby, a restored base backup) goes on
with the same ids, but may have lost what others have seen."""

# Two replicas may find the same thing at once.
_LOCK: Final = sa.text("SELECT pg_advisory_xact_lock(hashtext('holdfast.state.feed'))")
_MAY_NAME_THE_CLUSTER: Final = sa.text("SELECT has_function_privilege('pg_control_system()', 'execute')")
_FOUND: Final = """
SELECT
  {cluster} || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    || '/' || CAST(CAST('journal' AS regclass) AS oid) AS here,
  CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next_id,
  COALESCE(({newest}), 0) AS newest,
  (SELECT origin FROM feed) AS origin,
  COALESCE((SELECT base FROM feed), 0) AS base
"""
_FOUND_WITH_CLUSTER: Final = sa.text(
    _FOUND.format(newest=NEWEST_SQL, cluster="(SELECT system_identifier FROM pg_control_system())")
)
_FOUND_WITHOUT_CLUSTER: Final = sa.text(_FOUND.format(newest=NEWEST_SQL, cluster="''"))

log = get_logger(__name__)


async def settle_feed(db: Database) -> None:
    """Finds out whether this database was restored from a dump, and makes its feed go on if it was. Call it at start.

    Safe from several replicas at once, and again: only the first one changes something.

    Raises:
        StartupError: It was, and this user may not alter the table.
        Unavailable: The database is away.
    """
    if db.dialect == "sqlite":
        await db.write(_rename)
        return
    if await db.read(_is_at_home):
        return
    try:
        restored = await db.write(_settle)
    except sa.exc.ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        raise StartupError(
            "the journal was restored from a dump, and this user may not alter its table: run "
            "`python -P -m services.state migrate` as the owner of the schema",
            exit_code=EXIT_CONFIGURATION,
        ) from error
    if restored:
        log.warning("journal_was_restored", detail="the change feed goes on; followers ahead of it read it again")


def _found(connection: sa.Connection) -> sa.Row[tuple[str, int, int, str | None, int]]:
    may_name = connection.execute(_MAY_NAME_THE_CLUSTER).scalar_one()
    return connection.execute(_FOUND_WITH_CLUSTER if may_name else _FOUND_WITHOUT_CLUSTER).one()


def _is_at_home(connection: sa.Connection) -> bool:
    found = _found(connection)
    return bool(found.origin == found.here and found.newest < found.base + found.next_id)


def _settle(connection: sa.Connection) -> bool:
    """Returns whether the journal was restored; a new one is only given its name."""
    connection.execute(_LOCK)
    if _is_at_home(connection):
        return False
    found = _found(connection)
    goes_on = found.newest < found.base + found.next_id
    base = found.base if goes_on else found.newest
    is_new = goes_on and not found.origin
    if not is_new:
        # Also when the base stays: a dump of the rows alone has not brought the default that belongs to it.
        connection.execute(sa.text(f"ALTER TABLE journal ALTER COLUMN txid SET DEFAULT {_position_sql(base)}"))
    if found.origin is None:
        connection.execute(sa.insert(t.feed).values(feed_id=new_uuid7(), origin=found.here, base=base))
    else:
        named = {} if is_new else {"feed_id": new_uuid7()}
        connection.execute(sa.update(t.feed).values(origin=found.here, base=base, **named))
    return not is_new


def _rename(connection: sa.Connection) -> None:
    connection.execute(sa.delete(t.feed))
    connection.execute(sa.insert(t.feed).values(feed_id=new_uuid7(), origin="", base=0))


def _position_sql(base: int) -> str:
    if not base:
        return "pg_current_xact_id()"
    return f"CAST(CAST(CAST(CAST(pg_current_xact_id() AS text) AS bigint) + {base:d} AS text) AS xid8)"
