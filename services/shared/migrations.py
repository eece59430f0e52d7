"""Database migrations by Alembic: one head per service, applied under a lock, checked before a service starts.

A service's `migrations/env.py` is two lines:

    from services.shared.migrations import run_env
    run_env(metadata)

Two releases run side by side while one replaces the other, so that code must run on the schema of the release after
it. A revision's name says which code can: `0007` only expands, and leaves everything that earlier code uses;
`0009_since_0005` has removed something, and needs code that knows revision 0005 at least. Each later revision repeats
that. docs/upgrade.md has the rules.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from holdfast.errors import Unavailable
from services.shared.database import Database
from services.shared.database_errors import translate
from services.shared.database_postgres import postgres_connect_arguments
from services.shared.server import EXIT_CONFIGURATION, EXIT_TEMPORARY, StartupError
from services.shared.telemetry import get_logger

_CONNECTION: Final = "connection"
_RETRY_SECONDS: Final = 1.0
# A statement that waits for a table's lock makes everybody wait who comes after it: it lets them pass, and tries again.
_LOCK_SECONDS: Final = 2
_LOCK_ATTEMPTS: Final = 60
_REVISION: Final = re.compile(r"[a-z]*(\d+)(?:_since_[a-z]*(\d+))?")

log = get_logger(__name__)


async def upgrade(db: Database, script_location: Path) -> None:
    """Brings the schema to the newest revision. Safe to run from several processes at once, and again."""
    before = await current(db)
    await db.ensure_schema()
    if db.dialect == "sqlite":
        # One transaction for all of it: a killed migration leaves the old schema.
        await db.write(_upgrade, script_location, db.schema)
    else:
        is_over = threading.Event()
        try:
            await asyncio.to_thread(_upgrade_postgres, db, script_location, is_over)
        finally:
            # The thread of a process that was told to stop must not wait on.
            is_over.set()
    after = await current(db)
    if after != before:
        log.info("migrated", schema=db.schema, before=_shown(before), after=_shown(after))


async def current(db: Database) -> tuple[str, ...]:
    """Returns the revisions that the database is at; empty for a database without the schema."""
    return await db.read(_current)


def newest(script_location: Path) -> tuple[str, ...]:
    """Returns the revisions that this release needs."""
    return tuple(sorted(ScriptDirectory.from_config(_config(script_location)).get_heads()))


async def check_is_current(db: Database, script_location: Path) -> None:
    """Refuses a schema that this code cannot run on.

    That of a newer release is accepted, unless its name says that this code is too old for it.

    Raises:
        StartupError: The schema is absent or older, or too new.
    """
    found = set(await current(db))
    script = ScriptDirectory.from_config(_config(script_location))
    wanted = set(script.get_heads())
    if found == wanted or _is_newer(db.schema, found, script):
        return
    raise StartupError(
        f"the schema {db.schema} of the database is at {_shown(found)}, this release needs {_shown(wanted)}: run "
        f"`python -m services.{db.schema} migrate`, or set HOLDFAST_MIGRATE_ON_START=true",
        exit_code=EXIT_CONFIGURATION,
    )


def _is_newer(schema: str, found: Iterable[str], script: ScriptDirectory) -> bool:
    """Tells whether a newer release made the schema.

    Raises:
        StartupError: And it says that this one cannot run on it.
    """
    unknown = {revision for revision in found if not _is_known(script, revision)}
    if not unknown:
        return False
    heads = script.get_heads()
    own = max((_numbers(head)[0] for head in heads), default=0)
    needed = max(_numbers(revision)[1] for revision in unknown)
    if own < needed:
        raise StartupError(
            f"the schema {schema} of the database is at {_shown(unknown)}, which needs a release that knows revision "
            f"{needed}; this one knows {_shown(heads)}: start a newer release",
            exit_code=EXIT_CONFIGURATION,
        )
    log.warning("schema_is_newer", schema=schema, found=_shown(unknown), expected=_shown(heads))
    return True


def _numbers(revision: str) -> tuple[int, int]:
    """A revision's number, and that of the oldest code that runs on it; zeros when its name does not say."""
    match = _REVISION.fullmatch(revision)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


async def make_ready(db: Database, script_location: Path, *, migrate_on_start: bool, stop: asyncio.Event) -> None:
    """Waits for the database, then migrates it (SQLite always, PostgreSQL when told to) or checks that it is current.

    Raises:
        StartupError: The schema is not current, or `stop` was set while waiting.
    """
    await wait_for_database(db, stop)
    if db.dialect == "sqlite" or migrate_on_start:
        await upgrade(db, script_location)
    else:
        await check_is_current(db, script_location)


async def wait_for_database(db: Database, stop: asyncio.Event) -> None:
    """Returns when the database answers, and says so while it does not.

    Raises:
        StartupError: `stop` was set first.
    """
    attempt = 0
    while True:
        try:
            await db.ping()
        except Unavailable:
            if attempt % 5 == 0:
                log.info(f"waiting for the database at {db.location}", database=db.location)
        else:
            if attempt:
                log.info("connected", peer="database", database=db.location)
            return
        attempt += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await stop.wait()
            raise StartupError("stopped while waiting for the database", exit_code=EXIT_TEMPORARY)


def run_env(metadata: sa.MetaData | None = None) -> None:
    """Is the whole of a service's Alembic `env.py`: runs the revisions on the connection that was passed in.

    Args:
        metadata: The service's tables, for `alembic revision --autogenerate` and the test that compares them.
    """
    connection = context.config.attributes.get(_CONNECTION)
    if connection is None:
        raise RuntimeError("run migrations through `python -m services.<name> migrate`")
    on_sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # SQLite cannot alter most of a table: Alembic copies it instead.
        render_as_batch=on_sqlite,
        transactional_ddl=True,
        transaction_per_migration=not on_sqlite,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _config(script_location: Path, connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes[_CONNECTION] = connection
    return config


def _upgrade(connection: sa.Connection, script_location: Path, schema: str) -> None:
    config = _config(script_location, connection)
    # What a newer release began, that release goes on with.
    if _is_newer(schema, _current(connection), ScriptDirectory.from_config(config)):
        return
    if connection.dialect.name == "postgresql":
        # Each revision has a transaction of its own, and may leave it, as for an index that is built concurrently.
        connection.commit()
    command.upgrade(config, "head")


def _upgrade_postgres(db: Database, script_location: Path, is_over: threading.Event) -> None:
    # A connection of its own: no statement timeout, and a lock that outlives the transactions of single revisions.
    arguments: dict[str, Any] = postgres_connect_arguments(
        db.schema, {"search_path": db.schema, "timezone": "UTC", "lock_timeout": f"{_LOCK_SECONDS}s"}
    )
    engine = sa.create_engine(db.url, connect_args=arguments, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            _lock_migrations(connection, db.schema, is_over)
            for attempt in range(1, _LOCK_ATTEMPTS + 1):
                try:
                    _upgrade(connection, script_location, db.schema)
                    connection.commit()
                    return
                except sa.exc.DBAPIError as error:
                    if not isinstance(error.orig, psycopg.errors.LockNotAvailable) or attempt == _LOCK_ATTEMPTS:
                        raise
                    connection.rollback()
                    log.info("migration_waits_for_a_lock", schema=db.schema, attempt=attempt)
                    _pause(is_over, _RETRY_SECONDS)
    except sa.exc.DBAPIError as error:
        public = translate(error)
        if public is None:
            raise
        raise public from error
    finally:
        engine.dispose()


def _lock_migrations(connection: sa.Connection, schema: str, is_over: threading.Event) -> None:
    # Asked for again and again: a statement that waits is itself waited for by an index that is built concurrently.
    key = {"name": f"holdfast.migrations.{schema}"}
    is_first = True
    while not connection.execute(sa.text("SELECT pg_try_advisory_lock(hashtext(:name))"), key).scalar_one():
        connection.commit()
        if is_first:
            log.info("another process migrates; waiting for it", schema=schema)
            is_first = False
        _pause(is_over, _RETRY_SECONDS / 5)
    connection.commit()


def _pause(is_over: threading.Event, seconds: float) -> None:
    if is_over.wait(seconds):
        raise StartupError("stopped while waiting to migrate", exit_code=EXIT_TEMPORARY)


def _current(connection: sa.Connection) -> tuple[str, ...]:
    return tuple(sorted(MigrationContext.configure(connection).get_current_heads()))


def _is_known(script: ScriptDirectory, revision: str) -> bool:
    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _shown(revisions: Any) -> str:
    return ", ".join(sorted(revisions)) or "nothing"
