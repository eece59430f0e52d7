"""Database migrations by Alembic: one head per service, applied under a lock, checked before a service starts.

A service's `migrations/env.py` is two lines:

    from services.shared.migrations import run_env
    run_env(metadata)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from holdfast.errors import Unavailable
from services.shared.database import Database, postgres_connect_arguments, translate
from services.shared.server import EXIT_CONFIGURATION, EXIT_TEMPORARY, StartupError
from services.shared.telemetry import get_logger

_CONNECTION: Final = "connection"
_RETRY_SECONDS: Final = 1.0

log = get_logger(__name__)


async def upgrade(db: Database, script_location: Path) -> None:
    """Brings the schema to the newest revision. Safe to run from several processes at once, and again."""
    before = await current(db)
    await db.ensure_schema()
    if db.dialect == "sqlite":
        # One transaction for all of it: a killed migration leaves the old schema.
        await db.write(_upgrade, script_location)
    else:
        await asyncio.to_thread(_upgrade_postgres, db, script_location)
    after = await current(db)
    if after != before:
        log.info("migrated", schema=db.schema, before=_shown(before), after=_shown(after))


async def current(db: Database) -> tuple[str, ...]:
    """Returns the revisions that the database is at; empty for a database without the schema."""
    return await db.read(_current)


async def check_is_current(db: Database, script_location: Path) -> None:
    """Refuses a schema that this code cannot run on.

    A schema from a newer release is accepted: migrations only expand before the new code runs, so that two releases
    can run side by side.

    Raises:
        StartupError: The schema is absent or older.
    """
    found = set(await current(db))
    script = ScriptDirectory.from_config(_config(script_location))
    wanted = set(script.get_heads())
    if found == wanted:
        return
    unknown = {revision for revision in found if not _is_known(script, revision)}
    if unknown:
        log.warning("schema_is_newer", schema=db.schema, found=_shown(unknown), expected=_shown(wanted))
        return
    raise StartupError(
        f"the schema {db.schema} of the database is at {_shown(found)}, this release needs {_shown(wanted)}: run "
        f"`python -m services.{db.schema} migrate`, or set HOLDFAST_MIGRATE_ON_START=true",
        exit_code=EXIT_CONFIGURATION,
    )


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


def _upgrade(connection: sa.Connection, script_location: Path) -> None:
    config = _config(script_location, connection)
    found = _current(connection)
    if any(not _is_known(ScriptDirectory.from_config(config), revision) for revision in found):
        # A newer release has been here; going on from it is that release's business.
        log.warning("schema_is_newer", found=_shown(found))
        return
    command.upgrade(config, "head")


def _upgrade_postgres(db: Database, script_location: Path) -> None:
    # A connection of its own: no statement timeout, and a lock that outlives the transactions of single revisions.
    arguments: dict[str, Any] = postgres_connect_arguments(
        db.schema, {"search_path": db.schema, "timezone": "UTC", "lock_timeout": "60s"}
    )
    engine = sa.create_engine(db.url, connect_args=arguments, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            key = {"name": f"holdfast.migrations.{db.schema}"}
            connection.execute(sa.text("SELECT pg_advisory_lock(hashtext(:name))"), key)
            connection.commit()
            _upgrade(connection, script_location)
            connection.commit()
    except sa.exc.DBAPIError as error:
        public = translate(error)
        if public is None:
            raise
        raise public from error
    finally:
        engine.dispose()


def _current(connection: sa.Connection) -> tuple[str, ...]:
    return tuple(sorted(MigrationContext.configure(connection).get_current_heads()))


def _is_known(script: ScriptDirectory, revision: str) -> bool:
    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _shown(revisions: Any) -> str:
    return ", ".join(sorted(revisions)) or "nothing"
