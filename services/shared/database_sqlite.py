"""Store functions on a file of SQLite: one writer at a time, readers beside it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal, LiteralString, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from services.shared.database_errors import Trouble
from services.shared.seals import OPTION, Seals
from services.shared.settings import SettingsError

T = TypeVar("T")

_BUSY_TIMEOUT_SECONDS: Final = 5
_READERS: Final = 4
_SWITCH_SECONDS: Final = 0.0005


class SqliteBackend:
    """One writer thread with one connection, and a few reader threads with one each.

    Writers never meet inside this process, so that SQLITE_BUSY is left for another process that holds the file.
    """

    def __init__(self, path: Path, synchronous: Literal["FULL", "NORMAL"], trouble: Trouble, seals: Seals) -> None:
        # The writer's thread takes the interpreter's lock back after each of its statements. From a busy event loop it
        # gets it after this time, which is 5 ms otherwise.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._path = path
        self._seals = seals
        self._trouble = trouble
        _make_private(path)
        _make_write_ahead(path)
        self._synchronous = synchronous
        self._writing = self._engine(begin="BEGIN IMMEDIATE", read_only=False)
        self._reading = self._engine(begin="BEGIN", read_only=True, pool_size=_READERS, max_overflow=0)
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="sqlite-reader")
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
