"""One way to run store functions on PostgreSQL and on SQLite, and the dialects' differences in one place.

Store functions are plain synchronous functions over a `sqlalchemy.Connection`. `Database` runs each in one transaction,
repeats what a serialization failure undid, and turns a lost or full database into `holdfast.errors`. A store function
may therefore run more than once: it does nothing but SQL.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Literal, LiteralString, ParamSpec, Self, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import make_url

from services.shared.clock import Clock, SystemClock
from services.shared.database_errors import Trouble
from services.shared.database_postgres import PostgresBackend, PostgresWriter, one_url_of_several_hosts
from services.shared.database_sqlite import SqliteBackend
from services.shared.seals import NO_SEALS, MissingKeyError, Seals
from services.shared.timestamps import Timestamp

P = ParamSpec("P")
T = TypeVar("T")
StoreFunction = Callable[Concatenate[sa.Connection, P], T]
Dialect = Literal["postgresql", "sqlite"]


class Database:
    """The database of one service.

    Args:
        url: `postgresql://…`, `postgresql+psycopg://…` or `sqlite:///path`. Of several hosts (`postgresql://a,b/name`)
            the one that takes writes is used.
        schema: PostgreSQL schema that holds the service's tables. SQLite has a file per service instead.
        pool_size: PostgreSQL connections, beside those of writers.
        synchronous: SQLite's durability. FULL survives a power cut; NORMAL may lose the last commits then, and suits
            data that can be derived again.
        clock: Time on SQLite, where the database is on this machine. PostgreSQL's own clock is used there.
        seals: Of the payloads in it.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str,
        pool_size: int = 8,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        clock: Clock | None = None,
        seals: Seals = NO_SEALS,
    ) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", schema) is None:
            raise ValueError(f"{schema!r} is not usable as the name of a schema")
        self.schema = schema
        self.seals = seals
        self.dialect: Dialect
        self._clock: Clock = SystemClock() if clock is None else clock
        self._backend: PostgresBackend | SqliteBackend
        parsed = make_url(one_url_of_several_hosts(url))
        if parsed.get_backend_name() in ("postgresql", "postgres"):
            self.dialect = "postgresql"
            self.url = parsed.set(drivername="postgresql+psycopg")
            self._backend = PostgresBackend(self.url, schema, pool_size, Trouble(self.location), seals)
        elif parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
            self.dialect = "sqlite"
            self.url = parsed.set(drivername="sqlite")
            self._backend = SqliteBackend(Path(parsed.database), synchronous, Trouble(self.location), seals)
        else:
            raise ValueError("a database is postgresql://… or sqlite:///path/of/the/file.db")

    @property
    def location(self) -> str:
        """Where the database is, without the password: for logs."""
        return self.url.render_as_string(hide_password=True)

    async def write(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` in one transaction that can write, and returns after the commit.

        Raises:
            Unavailable: The database is away. The transaction may have been committed when the answer was lost.
            ResourceExhausted: The disk is full; nothing was written.
        """
        return await self.with_keys(lambda: self._backend.write(lambda connection: fn(connection, *args, **kwargs)))

    async def read(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` in a read-only transaction: all of its statements see the same state.

        Raises:
            Unavailable: The database is away.
        """
        return await self.with_keys(lambda: self._backend.read(lambda connection: fn(connection, *args, **kwargs)))

    async def write_by_keys(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` as `write` does, for statements of a hot path, which find what they need by an index.

        On PostgreSQL, they are never planned to read a table whole. Raises what `write` raises.
        """
        return await self.with_keys(
            lambda: self._backend.write_by_keys(lambda connection: fn(connection, *args, **kwargs))
        )

    async def read_once(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn`, which executes exactly one reading statement, without a transaction around it: one round trip.

        For what an index finds: on PostgreSQL, such statements are never planned to read a table whole.

        Raises:
            Unavailable: The database is away.
        """
        return await self.with_keys(lambda: self._backend.read_once(lambda connection: fn(connection, *args, **kwargs)))

    async def write_autocommit(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn`, which executes exactly one statement, without a BEGIN and COMMIT around it: one round trip.

        For what an index finds, as `read_once` is.

        Raises:
            Unavailable: The database is away. The statement may have been committed when the answer was lost.
            ResourceExhausted: The disk is full; nothing was written.
        """
        return await self.with_keys(
            lambda: self._backend.write_autocommit(lambda connection: fn(connection, *args, **kwargs))
        )

    async def with_keys(self, act: Callable[[], Awaitable[T]]) -> T:
        """Does something that seals or opens payloads, again once the key is at hand that it lacked.

        Outside of any transaction: one that lacked a key has ended.

        Raises:
            HoldfastError: The key cannot be had.
        """
        while True:
            try:
                return await act()
            except MissingKeyError as missing:
                await self.seals.bring(missing)

    @asynccontextmanager
    async def writer(self, *, autocommit: bool = False) -> AsyncIterator[Writer]:
        """Opens a writer that keeps one connection for its life, for the group commit.

        Args:
            autocommit: Every function executes exactly one statement, which commits by itself.
        """
        backend = self._backend
        dedicated = PostgresWriter(backend, autocommit=autocommit) if isinstance(backend, PostgresBackend) else None
        writer = Writer(self, dedicated)
        try:
            yield writer
        finally:
            await writer.close()

    def now(self, connection: sa.Connection) -> datetime:
        """Returns the time that all replicas agree on: the database's on PostgreSQL, the clock's on SQLite."""
        if self.dialect == "sqlite":
            return self._clock.now()
        now: datetime = connection.execute(_SELECT_CLOCK).scalar_one()
        return now.astimezone(UTC)

    async def ping(self) -> None:
        """Returns when the database answers, and no writer has been waiting for it for long.

        Raises:
            Unavailable: It does not.
        """
        await self.read(_ping)
        self._backend.check_writers()

    async def listen(self, channel: LiteralString) -> psycopg.AsyncConnection[Any] | None:
        """Opens a connection of its own that has said LISTEN; None on SQLite, where every writer is this process.

        The caller reads `connection.notifies()` and closes it. A notification is a hint: polling is the truth.
        """
        if not isinstance(self._backend, PostgresBackend):
            return None
        # The dialect's own reading of the URL: psycopg's differs where there are several hosts.
        _, arguments = self.url.get_dialect()().create_connect_args(self.url)
        connection = await psycopg.AsyncConnection.connect(
            autocommit=True, **{**arguments, **self._backend.connect_arguments}
        )
        try:
            await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def ensure_schema(self) -> None:
        """Makes the PostgreSQL schema when it does not exist."""
        if self.dialect == "postgresql":
            await self.write(_create_schema, self.schema)

    async def close(self) -> None:
        """Closes every connection; a write in progress ends first."""
        await self._backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


_SELECT_CLOCK: Final = sa.select(sa.func.clock_timestamp())


def now_sql(db: Database) -> sa.ColumnElement[datetime]:
    """Returns the current time as an SQL expression, comparable with `Timestamp` columns."""
    if db.dialect == "postgresql":
        return sa.func.clock_timestamp(type_=Timestamp())
    return sa.literal(db._clock.now(), Timestamp())


def _ping(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT 1"))


def _fetch_all(connection: sa.Connection, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.exec_driver_sql(statement, dict(values))]


def _create_schema(connection: sa.Connection, schema: str) -> None:
    # Two replicas that start together would both find it absent; IF NOT EXISTS alone does not prevent the clash.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"holdfast.{schema}"})
    connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))


class Writer:
    """Runs store functions one after the other on one connection."""

    def __init__(self, db: Database, dedicated: PostgresWriter | None) -> None:
        self._db = db
        # SQLite has one writer for the whole process in any case.
        self._dedicated = dedicated

    async def run(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` in one transaction and returns after the commit; raises what `Database.write` raises."""
        if self._dedicated is None:
            return await self._db.write(fn, *args, **kwargs)
        dedicated = self._dedicated
        return await self._db.with_keys(lambda: dedicated.run(lambda connection: fn(connection, *args, **kwargs)))

    async def fetch(self, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Executes one statement that commits by itself, in the driver's own form, and returns its rows.

        For the statement of a hot path, on a writer that is `autocommit`: on PostgreSQL, what SQLAlchemy does around a
        statement costs as much as the statement. Raises what `run` raises.
        """
        if self._dedicated is None:
            return await self._db.write_autocommit(_fetch_all, statement, values)
        return await self._dedicated.fetch(statement, values)

    async def close(self) -> None:
        """Gives the connection back."""
        if self._dedicated is not None:
            await self._dedicated.close()
