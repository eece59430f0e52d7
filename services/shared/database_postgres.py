"""Store functions on PostgreSQL: pools, dedicated writers, and what is tried again when a server goes away."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final, LiteralString, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.types.string import TextLoader
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from holdfast.errors import Reason, Unavailable
from services.shared.database_errors import Trouble, detail_of, is_demoted, is_disconnect, is_retryable
from services.shared.seals import OPTION, Seals
from services.shared.telemetry import get_logger

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
"""How often one transaction is tried when the database undoes it for the sake of others."""

_STATEMENT_TIMEOUT_SECONDS: Final = 30
_LOCK_TIMEOUT_SECONDS: Final = 10
_CHECKOUT_TIMEOUT_SECONDS: Final = 5
_MOST_BY_KEYS: Final = 4
# Longer than any lock is waited for: what hangs then is a commit that waits for a synchronous standby, or a network.
_STUCK_SECONDS: Final = 12.0

log = get_logger(__name__)

# What is repeated all the time finds what it reads by an index. A plan is made when its tables are empty, where reading
# them whole looks cheap, and kept while they grow: so the planner is told that it is not.
_ONLY_BY_KEYS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class PostgresBackend:
    """The pools of one service's schema."""

    def __init__(self, url: URL, schema: str, pool_size: int, trouble: Trouble, seals: Seals) -> None:
        self.trouble = trouble
        self.writers: set[PostgresWriter] = set()
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
                        if is_demoted(error) and engine is not self._reading:
                            await connection.invalidate()
                        raise
                self.trouble.is_over()
                return result
            except Exception as error:
                may_find_another = is_disconnect(error) or (is_demoted(error) and engine is not self._reading)
                if is_retryable(error) and attempt < MAX_ATTEMPTS:
                    await back_off(attempt)
                elif may_find_another and repeat_after_disconnect and not is_committing and attempt == 1:
                    # A pooled connection from before a restart: nothing was committed on it, a new one may work.
                    log.debug("storage_reconnect", detail=detail_of(error))
                else:
                    self.trouble.raise_translated(error)
                    raise
            attempt += 1

    async def close(self) -> None:
        await self._engine.dispose()
        await self._by_keys.dispose()
        await self.dedicated.dispose()


class PostgresWriter:
    """Keeps one connection outside the pool; after a failure the next run opens another.

    Args:
        backend: Where it connects.
        autocommit: Each function executes one statement, which commits by itself.
    """

    def __init__(self, backend: PostgresBackend, *, autocommit: bool) -> None:
        engine = backend.dedicated
        self._backend = backend
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT") if autocommit else engine
        self._autocommit = autocommit
        self._connection: AsyncConnection | None = None
        # Of the driver, on that connection. What it has learned of types is kept with it.
        self._cursor: psycopg.AsyncRawCursor[tuple[Any, ...]] | None = None
        self._turn = asyncio.Lock()
        self.busy_since: float | None = None
        backend.writers.add(self)

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """Runs a store function; see `Writer.run`."""
        return await self._in_turn(lambda connection: connection.run_sync(fn))

    async def fetch(self, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Executes one statement; see `Writer.fetch`."""
        assert self._autocommit, "it would not be committed"
        return await self._in_turn(lambda connection: self._fetch(connection, statement, values))

    async def _fetch(
        self, connection: AsyncConnection, statement: LiteralString, values: Mapping[str, Any]
    ) -> list[tuple[Any, ...]]:
        cursor = self._cursor
        if cursor is None:
            assert connection.sync_connection is not None
            driver = connection.sync_connection.connection.driver_connection
            assert isinstance(driver, psycopg.AsyncConnection)
            cursor = self._cursor = psycopg.AsyncRawCursor(driver)
        native, names = _native(statement)
        try:
            await cursor.execute(native, [values[name] for name in names], prepare=True)
            return await cursor.fetchall()
        except psycopg.Error as error:
            # The form in which all other errors of the driver arrive.
            raise DBAPIError.instance(
                statement,
                None,
                error,
                psycopg.Error,
                hide_parameters=True,
                connection_invalidated=cursor.connection.closed,
            ) from error

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
                was_disconnected = is_disconnect(error) or is_demoted(error)
                await self._reset(discard=was_disconnected or is_committing)
                if is_retryable(error) and attempt < MAX_ATTEMPTS:
                    await back_off(attempt)
                elif was_disconnected and not (is_committing or self._autocommit) and attempt == 1:
                    log.debug("storage_reconnect", detail=detail_of(error))
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
        self._connection = self._cursor = None
        try:
            await connection.invalidate()
            await connection.close()
        except DBAPIError as error:
            log.debug("connection_close_failed", detail=detail_of(error))

    async def close(self) -> None:
        self._backend.writers.discard(self)
        async with self._turn:
            connection, self._connection = self._connection, None
            self._cursor = None
            if connection is not None:
                await connection.close()


@lru_cache(maxsize=64)
def _native(statement: LiteralString) -> tuple[bytes, list[str]]:
    """A statement with PostgreSQL's own placeholders, and the names of the parameters in their order.

    The driver would look for its placeholders in a long statement each time that it is executed.
    """
    places: dict[str, int] = {}

    def place(found: re.Match[str]) -> str:
        return f"${places.setdefault(found[1], len(places) + 1)}"

    native = re.sub(r"%\((\w+)\)[sb]", place, statement)
    return native.encode(), list(places)


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
    engine = create_async_engine(url, connect_args=connect_arguments, hide_parameters=True, **options)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # Ids are text everywhere: an object of each, made to be turned into text, cost half the reading of a row.
        connection.driver_connection.adapters.register_loader("uuid", TextLoader)

    return engine


async def back_off(attempt: int) -> None:
    """Waits a short random time, longer after each attempt, before a transaction is tried again."""
    await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))
