"""What the drivers' errors mean: what is tried again, what callers are told, and what is said of it in the log."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from holdfast.errors import HoldfastError, Reason, ResourceExhausted, Unavailable
from services.shared.telemetry import get_logger

_REPORT_EVERY_SECONDS: Final = 10.0

log = get_logger(__name__)

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


def is_retryable(error: BaseException) -> bool:
    return _sqlstate(error) in _RETRYABLE_STATES


def is_disconnect(error: BaseException) -> bool:
    """Tells whether the connection is gone, so that another one may work."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is None:
        return isinstance(error.orig, psycopg.OperationalError)
    return state.startswith("08") or state in _DISCONNECT_STATES


def is_demoted(error: BaseException) -> bool:
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
        unavailable = state in _UNAVAILABLE_STATES or state in _RETRYABLE_STATES or is_disconnect(error)
    if full:
        return ResourceExhausted(
            "the storage is full; nothing was written", reason=Reason.STORAGE_FULL, retry_delay_seconds=30.0
        )
    if unavailable:
        return Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=1.0)
    return None


class Trouble:
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
                detail=detail_of(error),
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


def detail_of(error: BaseException) -> str:
    # Not the whole text: SQLAlchemy's has the statement, and a driver's may span lines.
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__
