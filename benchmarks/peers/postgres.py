"""What a PostgreSQL server wrote, and a fresh database for each measurement; psycopg is all it needs."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier


class WalCounters:
    """WAL bytes, WAL syncs and commits of the whole server since it was started.

    Since PostgreSQL 18 the syncs are in `pg_stat_io`, not in `pg_stat_wal`. A busy backend reports them once a second.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def read(self) -> dict[str, float]:
        """The totals now."""
        row = self._one(
            "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn,"
            " (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'),"
            " (SELECT sum(xact_commit) FROM pg_stat_database)"
        )
        return dict(zip(("wal_bytes", "wal_syncs", "transactions"), map(float, row), strict=True))

    def wal_bytes_by_application(self, prefix: str) -> dict[str, float]:
        """WAL bytes of the open connections, by the rest of the `application_name` that begins with `prefix`."""
        rows = self._connection.execute(
            "SELECT application_name, sum(wal.wal_bytes) FROM pg_stat_activity AS a,"
            " LATERAL pg_stat_get_backend_wal(a.pid) AS wal WHERE starts_with(application_name, %s) GROUP BY 1",
            (prefix,),
        )
        return {str(name).removeprefix(prefix): float(written) for name, written in rows}

    def checkpoint(self) -> None:
        """Writes what is dirty, so that the next measurement doesn't pay for the one before."""
        self._connection.execute("CHECKPOINT")

    def create_database(self, name: str) -> None:
        """Makes an empty database."""
        self.drop_database(name)
        self._connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        self.checkpoint()

    def drop_database(self, name: str) -> None:
        """Removes a database, with whoever is still connected to it."""
        self._connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _one(self, query: Any) -> tuple[Any, ...]:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row
