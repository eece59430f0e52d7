"""One way to run store functions on PostgreSQL and on SQLite, and the dialects' differences in one place.

Store functions are plain synchronous functions over a `sqlalchemy.Connection`. `Database` runs each in one transaction,
repeats what a serialization failure undid, and turns a lost or full database into `holdfast.errors`. A store function
may therefore run more than once: it does nothing but SQL.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Literal, LiteralString, ParamSpec, Self, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeDecorator, TypeEngine

from holdfast.errors import HoldfastError, Reason, ResourceExhausted, Unavailable
from services.shared.clock import Clock, SystemClock
from services.shared.seals import NO_SEALS, OPTION, MissingKeyError, Seals
from services.shared.settings import SettingsError
from services.shared.telemetry import get_logger

P = ParamSpec("P")
T = TypeVar("T")
StoreFunction = Callable[Concatenate[sa.Connection, P], T]
Dialect = Literal["postgresql", "sqlite"]

MAX_ATTEMPTS: Final = 5
"""How often one transaction is tried when the database undoes it for the sake of others."""

_STATEMENT_TIMEOUT_SECONDS: Final = 30
_LOCK_TIMEOUT_SECONDS: Final = 10
_CHECKOUT_TIMEOUT_SECONDS: Final = 5
_MOST_BY_KEYS: Final = 4
_BUSY_TIMEOUT_SECONDS: Final = 5
_SQLITE_READERS: Final = 4
_REPORT_EVERY_SECONDS: Final = 10.0
# Longer than any lock is waited for: what hangs then is a commit that waits for a synchronous standby, or a network.
_STUCK_SECONDS: Final = 12.0

log = get_logger(__name__)


# -------------------------------------------------------------------------------------------------------------- time

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Timestamp(TypeDecorator[datetime]):
    """An aware datetime in UTC: `timestamptz` on PostgreSQL, whole microseconds since 1970 on SQLite."""

    impl = sa.TIMESTAMP(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Returns the column type of the dialect."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.BigInteger())
        return dialect.type_descriptor(sa.TIMESTAMP(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        """Refuses naive datetimes, which mean different instants on different machines."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a timestamp needs a time zone")
        if dialect.name == "sqlite":
            return (value - _EPOCH) // _MICROSECOND
        return value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Returns the instant in UTC."""
        if value is None:
            return None
        if isinstance(value, int):
            return _EPOCH + value * _MICROSECOND
        return value.astimezone(UTC)  # type: ignore[no-any-return]

    def process_literal_param(self, value: datetime | None, dialect: sa.Dialect) -> str:
        """Renders the value for statements printed with their literals, such as migrations in offline form."""
        bound = self.process_bind_param(value, dialect)
        if bound is None:
            return "NULL"
        return str(bound) if isinstance(bound, int) else f"'{bound.isoformat()}'"


# ------------------------------------------------------------------------------------------------------------ errors

_RETRYABLE_STATES: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_UNAVAILABLE_STATES: Final = frozenset(
    {
        "25006",  # read-only: a standby during a failover
        "53000",  # out of some resource
        "53200",  # out of memory
        "53300",  # too many connections
        "55P03",  # lock timeout
        "57014",  # statement timeout
        "57P01",  # administrator shut it down
        "57P02",  # crash of another backend
        "57P03",  # starting up
        "58030",  # the disk cannot be read or written
    }
)
# The server ends the connection with it: shut down, crashed, starting up, and two kinds of having been idle too long.
_DISCONNECT_STATES: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
_READ_ONLY_STATE: Final = "25006"
_SQLITE_UNAVAILABLE: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


def _is_retryable(error: BaseException) -> bool:
    return _sqlstate(error) in _RETRYABLE_STATES


def _is_disconnect(error: BaseException) -> bool:
    """Tells whether the connection is gone, so that another one may work."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is None:
        return isinstance(error.orig, psycopg.OperationalError)
    return state.startswith("08") or state in _DISCONNECT_STATES


def _is_demoted(error: BaseException) -> bool:
    """Tells whether a writing connection leads to a standby, so that another one may lead to the new primary."""
    return _sqlstate(error) == _READ_ONLY_STATE


def translate(error: BaseException) -> HoldfastError | None:
    """Returns the public form of a database's own trouble, or None for an error that the store function made."""
    if isinstance(error, PoolTimeoutError):
        return Unavailable("the storage is busy", reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=1.0)
    if not isinstance(error, DBAPIError):
        return None
    full = unavailable = False
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        full = code == sqlite3.SQLITE_FULL
        unavailable = code in _SQLITE_UNAVAILABLE
    else:
        state = _sqlstate(error)
        full = state == "53100"
        unavailable = state in _UNAVAILABLE_STATES or state in _RETRYABLE_STATES or _is_disconnect(error)
    if full:
        return ResourceExhausted(
            "the storage is full; nothing was written", reason=Reason.STORAGE_FULL, retry_delay_seconds=30.0
        )
    if unavailable:
        return Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=1.0)
    return None


class _Trouble:
    """Says once what is wrong with the storage, and once that it is over: one cause fails hundreds of callers.

    Args:
        location: Where the storage is, for the log.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._reported_at: dict[str, float] = {}
        self._failures = 0
        self._began_at: float | None = None

    def raise_translated(self, error: BaseException) -> None:
        """Raises the public form of the storage's own trouble; returns for any other error."""
        public = translate(error)
        if public is None:
            return
        now = asyncio.get_running_loop().time()
        self._failures += 1
        reported_at = self._reported_at.get(public.reason)
        if reported_at is None or now - reported_at >= _REPORT_EVERY_SECONDS:
            self._reported_at[public.reason] = now
            self._began_at = now if self._began_at is None else self._began_at
            log.warning(
                "storage_error",
                reason=public.reason,
                detail=_detail(error),
                failures=self._failures,
                database=self._location,
            )
        raise public from error

    def is_over(self) -> None:
        """Takes note of something that worked."""
        # Read by every transaction: there is nothing to do but after a line about trouble.
        if self._began_at is None:
            return
        seconds = asyncio.get_running_loop().time() - self._began_at
        log.info("storage_recovered", failures=self._failures, seconds=round(seconds, 1), database=self._location)
        self._began_at, self._failures = None, 0


def _detail(error: BaseException) -> str:
    # Not the whole text: SQLAlchemy's has the statement, and a driver's may span lines.
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__


# ---------------------------------------------------------------------------------------------------------- database


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
        self._backend: _PostgresBackend | _SqliteBackend
        parsed = make_url(one_url_of_several_hosts(url))
        if parsed.get_backend_name() in ("postgresql", "postgres"):
            self.dialect = "postgresql"
            self.url = parsed.set(drivername="postgresql+psycopg")
            self._backend = _PostgresBackend(self.url, schema, pool_size, _Trouble(self.location), seals)
        elif parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
            self.dialect = "sqlite"
            self.url = parsed.set(drivername="sqlite")
            self._backend = _SqliteBackend(Path(parsed.database), synchronous, _Trouble(self.location), seals)
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
        return await self._with_keys(self._backend.write, lambda connection: fn(connection, *args, **kwargs))

    async def read(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` in a read-only transaction: all of its statements see the same state.

        Raises:
            Unavailable: The database is away.
        """
        return await self._with_keys(self._backend.read, lambda connection: fn(connection, *args, **kwargs))

    async def write_by_keys(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` as `write` does, for statements of a hot path, which find what they need by an index.

        On PostgreSQL, they are never planned to read a table whole. Raises what `write` raises.
        """
        return await self._with_keys(self._backend.write_by_keys, lambda connection: fn(connection, *args, **kwargs))

    async def read_once(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn`, which executes exactly one reading statement, without a transaction around it: one round trip.

        For what an index finds: on PostgreSQL, such statements are never planned to read a table whole.

        Raises:
            Unavailable: The database is away.
        """
        return await self._with_keys(self._backend.read_once, lambda connection: fn(connection, *args, **kwargs))

    async def write_autocommit(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn`, which executes exactly one statement, without a BEGIN and COMMIT around it: one round trip.

        For what an index finds, as `read_once` is.

        Raises:
            Unavailable: The database is away. The statement may have been committed when the answer was lost.
            ResourceExhausted: The disk is full; nothing was written.
        """
        return await self._with_keys(self._backend.write_autocommit, lambda connection: fn(connection, *args, **kwargs))

    async def _with_keys(
        self, run: Callable[[Callable[[sa.Connection], T]], Awaitable[T]], fn: Callable[[sa.Connection], T]
    ) -> T:
        while True:
            try:
                return await run(fn)
            except MissingKeyError as missing:
                # Outside the transaction, which has ended.
                await self.seals.bring(missing)

    @asynccontextmanager
    async def writer(self, *, autocommit: bool = False) -> AsyncIterator[Writer]:
        """Opens a writer that keeps one connection for its life, for the group commit.

        Args:
            autocommit: Every function executes exactly one statement, which commits by itself.
        """
        writer: Writer = (
            _PostgresWriter(self, self._backend, autocommit=autocommit)
            if isinstance(self._backend, _PostgresBackend)
            else Writer(self)
        )
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
        if not isinstance(self._backend, _PostgresBackend):
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

    def __init__(self, db: Database) -> None:
        self._db = db

    async def run(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `fn` in one transaction and returns after the commit; raises what `Database.write` raises."""
        # SQLite has one writer for the whole process in any case.
        return await self._db.write(fn, *args, **kwargs)

    async def fetch(self, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Executes one statement that commits by itself, in the driver's own form, and returns its rows.

        For the statement of a hot path, on a writer that is `autocommit`: on PostgreSQL, what SQLAlchemy does around a
        statement costs as much as the statement. Raises what `run` raises.
        """
        return await self._db.write_autocommit(_fetch_all, statement, values)

    async def close(self) -> None:
        """Gives the connection back."""


# -------------------------------------------------------------------------------------------------------- PostgreSQL


# What is repeated all the time finds what it reads by an index. A plan is made when its tables are empty, where reading
# them whole looks cheap, and kept while they grow: so the planner is told that it is not.
_ONLY_BY_KEYS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class _PostgresBackend:
    def __init__(self, url: URL, schema: str, pool_size: int, trouble: _Trouble, seals: Seals) -> None:
        self.trouble = trouble
        self.writers: set[_PostgresWriter] = set()
        settings = {
            "search_path": schema,
            "timezone": "UTC",
            "statement_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
            "lock_timeout": f"{_LOCK_TIMEOUT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
        }
        self.connect_arguments: dict[str, Any] = postgres_connect_arguments(schema, settings)
        self._engine = _async_engine(
            url,
            self.connect_arguments,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=_CHECKOUT_TIMEOUT_SECONDS,
            # The most recently used first: what a quiet service does not need is closed by the server's own limits.
            pool_use_lifo=True,
            execution_options={OPTION: seals},
        )
        self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._by_keys = _async_engine(
            url,
            postgres_connect_arguments(schema, {**settings, **_ONLY_BY_KEYS}),
            pool_size=min(pool_size, _MOST_BY_KEYS),
            max_overflow=0,
            pool_timeout=_CHECKOUT_TIMEOUT_SECONDS,
            pool_use_lifo=True,
            execution_options={OPTION: seals},
        )
        self._autocommitting = self._by_keys.execution_options(isolation_level="AUTOCOMMIT")
        # A writer repeats few statements: what is planned once, for arrays of any length, is not planned each time.
        writing = postgres_connect_arguments(
            schema, {**settings, **_ONLY_BY_KEYS, "plan_cache_mode": "force_generic_plan"}
        )
        self.dedicated = _async_engine(url, writing, poolclass=NullPool, execution_options={OPTION: seals})

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._engine, fn, repeat_after_disconnect=True)

    async def write_by_keys(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._by_keys, fn, repeat_after_disconnect=True)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._reading, fn, repeat_after_disconnect=True)

    async def read_once(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._autocommitting, fn, repeat_after_disconnect=True)

    async def write_autocommit(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._autocommitting, fn, repeat_after_disconnect=False)

    def check_writers(self) -> None:
        now = asyncio.get_running_loop().time()
        waited = max((now - writer.busy_since for writer in self.writers if writer.busy_since is not None), default=0.0)
        if waited > _STUCK_SECONDS:
            raise Unavailable(
                f"a write has been waiting for {waited:.0f} s; is a synchronous standby missing?",
                reason=Reason.STORAGE_UNAVAILABLE,
                retry_delay_seconds=1.0,
            )

    async def _run(self, engine: AsyncEngine, fn: Callable[[sa.Connection], T], *, repeat_after_disconnect: bool) -> T:
        attempt = 1
        while True:
            is_committing = False
            try:
                async with engine.connect() as connection:
                    try:
                        result = await connection.run_sync(fn)
                        is_committing = True
                        await connection.commit()
                    except DBAPIError as error:
                        if _is_demoted(error) and engine is not self._reading:
                            await connection.invalidate()
                        raise
                self.trouble.is_over()
                return result
            except Exception as error:
                may_find_another = _is_disconnect(error) or (_is_demoted(error) and engine is not self._reading)
                if _is_retryable(error) and attempt < MAX_ATTEMPTS:
                    await back_off(attempt)
                elif may_find_another and repeat_after_disconnect and not is_committing and attempt == 1:
                    # A pooled connection from before a restart: nothing was committed on it, a new one may work.
                    log.debug("storage_reconnect", detail=_detail(error))
                else:
                    self.trouble.raise_translated(error)
                    raise
            attempt += 1

    async def close(self) -> None:
        await self._engine.dispose()
        await self._by_keys.dispose()
        await self.dedicated.dispose()


class _PostgresWriter(Writer):
    """Keeps one connection outside the pool; after a failure the next run opens another."""

    def __init__(self, db: Database, backend: _PostgresBackend, *, autocommit: bool) -> None:
        super().__init__(db)
        engine = backend.dedicated
        self._backend = backend
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT") if autocommit else engine
        self._autocommit = autocommit
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()
        self.busy_since: float | None = None
        backend.writers.add(self)

    async def run(self, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return await self._in_turn(lambda connection: connection.run_sync(fn, *args, **kwargs))
            except MissingKeyError as missing:
                await self._db.seals.bring(missing)

    async def fetch(self, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Executes one statement; see `Writer.fetch`."""
        assert self._autocommit, "it would not be committed"
        return await self._in_turn(lambda connection: _fetch(connection, statement, values))

    async def _in_turn(self, act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self._turn:
            try:
                return await self._run(act)
            finally:
                self.busy_since = None

    async def _run(self, act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        attempt = 1
        trouble = self._backend.trouble
        now = asyncio.get_running_loop().time
        while True:
            is_committing = False
            self.busy_since = now()
            try:
                if self._connection is None:
                    self._connection = await self._engine.connect()
                result = await act(self._connection)
                is_committing = True
                # There is nothing to commit where SQLAlchemy did not begin anything.
                if self._connection.in_transaction():
                    await self._connection.commit()
                trouble.is_over()
                return result
            except Exception as error:
                was_disconnected = _is_disconnect(error) or _is_demoted(error)
                await self._reset(discard=was_disconnected or is_committing)
                if _is_retryable(error) and attempt < MAX_ATTEMPTS:
                    await back_off(attempt)
                elif was_disconnected and not (is_committing or self._autocommit) and attempt == 1:
                    log.debug("storage_reconnect", detail=_detail(error))
                else:
                    trouble.raise_translated(error)
                    raise
            except BaseException:
                # Cancelled in the middle of a statement: the connection's state is not worth finding out.
                await self._reset(discard=True)
                raise
            attempt += 1

    async def _reset(self, *, discard: bool) -> None:
        connection = self._connection
        if connection is None:
            return
        if not discard:
            try:
                await connection.rollback()
                return
            except DBAPIError:
                pass
        self._connection = None
        try:
            await connection.invalidate()
            await connection.close()
        except DBAPIError as error:
            log.debug("connection_close_failed", detail=_detail(error))

    async def close(self) -> None:
        self._backend.writers.discard(self)
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()


async def _fetch(
    connection: AsyncConnection, statement: LiteralString, values: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, psycopg.AsyncConnection)
    try:
        cursor = await driver.execute(statement, values, prepare=True)
        return await cursor.fetchall()
    except psycopg.Error as error:
        # The form in which all other errors of the driver arrive.
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=driver.closed
        ) from error


def one_url_of_several_hosts(url: str) -> str:
    """Writes `postgresql://user@a:5432,b:5433/name`, as libpq takes it, in the form that SQLAlchemy takes.

    Unless the URL says otherwise, the host that takes writes is meant: the others are its standbys.
    """
    scheme, separator, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    query_hosts = re.search(r"[?&]host=[^&]*(,|&.*host=)", path)
    if not separator or not scheme.startswith("postgres") or ("," not in hosts and query_hosts is None):
        return url
    database, _, query = path.partition("?")
    parts = [query] if query else []
    if "," in hosts:
        pairs = [_host_and_port(host) for host in hosts.split(",")]
        parts = [f"host={','.join(host for host, _ in pairs)}", f"port={','.join(port for _, port in pairs)}", *parts]
        authority = f"{credentials}{at}"
    if "target_session_attrs=" not in query:
        parts.append("target_session_attrs=read-write")
    return f"{scheme}://{authority}/{database}?{'&'.join(parts)}"


def _host_and_port(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return text.strip("[]"), "5432"
    return host.strip("[]"), port


def postgres_connect_arguments(schema: str, settings: dict[str, str]) -> dict[str, Any]:
    """Returns psycopg's arguments: session settings, and keep-alive so that a dead server is noticed in seconds."""
    return {
        "application_name": f"holdfast-{schema}",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }


def _async_engine(url: URL, connect_arguments: dict[str, Any], **options: Any) -> AsyncEngine:
    # Parameters are users' data; they stay out of the text of errors, which is logged.
    return create_async_engine(url, connect_args=connect_arguments, hide_parameters=True, **options)


async def back_off(attempt: int) -> None:
    """Waits a short random time, longer after each attempt, before a transaction is tried again."""
    await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))


# ------------------------------------------------------------------------------------------------------------ SQLite


class _SqliteBackend:
    """One writer thread with one connection, and a few reader threads with one each.

    Writers never meet inside this process, so that SQLITE_BUSY is left for another process that holds the file.
    """

    def __init__(self, path: Path, synchronous: Literal["FULL", "NORMAL"], trouble: _Trouble, seals: Seals) -> None:
        self._path = path
        self._seals = seals
        self._trouble = trouble
        _make_private(path)
        _make_write_ahead(path)
        self._synchronous = synchronous
        self._writing = self._engine(begin="BEGIN IMMEDIATE", read_only=False)
        self._reading = self._engine(begin="BEGIN", read_only=True, pool_size=_SQLITE_READERS, max_overflow=0)
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(_SQLITE_READERS, thread_name_prefix="sqlite-reader")
        self._connection: sa.Connection | None = None

    def _engine(self, *, begin: LiteralString, read_only: bool, **options: Any) -> sa.Engine:
        if not options:
            options = {"poolclass": NullPool}
        engine = sa.create_engine(
            URL.create("sqlite", database=str(self._path)),
            connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_SECONDS},
            hide_parameters=True,
            execution_options={OPTION: self._seals},
            **options,
        )

        @sa.event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: Any) -> None:
            # The driver's own transactions start too late and end at DDL; ours begin by the event below.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA synchronous = {self._synchronous}")
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.execute("PRAGMA temp_store = MEMORY")
            cursor.execute("PRAGMA cache_size = -16000")
            if read_only:
                cursor.execute("PRAGMA query_only = ON")
            cursor.close()

        @sa.event.listens_for(engine, "begin")
        def begin_transaction(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._in_thread(self._writer_thread, self._write, fn)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._in_thread(self._reader_threads, self._read, fn)

    async def write_by_keys(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self.write(fn)

    async def read_once(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self.read(fn)

    async def write_autocommit(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self.write(fn)

    def check_writers(self) -> None:
        """Nothing: a write waits for a few seconds at most, and is refused then."""

    async def _in_thread(
        self, threads: ThreadPoolExecutor, job: Callable[[Callable[[sa.Connection], T]], T], fn: Any
    ) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(threads, job, fn)
        except Exception as error:
            self._trouble.raise_translated(error)
            raise
        self._trouble.is_over()
        return result

    def _write(self, fn: Callable[[sa.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._writing.connect()
        try:
            with self._connection.begin():
                return fn(self._connection)
        except BaseException:
            # A failed COMMIT may leave the transaction open; a new connection costs less than finding out.
            if self._connection.invalidated or self._connection.in_transaction():
                self._close_writer()
            raise

    def _read(self, fn: Callable[[sa.Connection], T]) -> T:
        with self._reading.connect() as connection, connection.begin():
            return fn(connection)

    def _close_writer(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader_threads.shutdown()
        self._reading.dispose()
        # The writer last: the last connection to close folds the write-ahead log into the file.
        try:
            self._writer_thread.submit(self._close_writer).result()
        except RuntimeError:  # closed before
            return
        self._writer_thread.shutdown()
        self._writing.dispose()


def _make_private(path: Path) -> None:
    """Makes the file, readable by its owner only; SQLite gives the files beside it the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _make_write_ahead(path: Path) -> None:
    """Puts the file in WAL mode, which stays with it: readers and the writer then never wait for each other."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_SECONDS)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            # The switch needs the file alone and does not wait for it: another process may be doing the same.
            is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise _unusable(path, str(error)) from error
            time.sleep(0.005)


def _unusable(path: Path, why: str) -> SettingsError:
    return SettingsError([f"HOLDFAST_DATABASE_URL: {path} cannot be used: {why}"])
