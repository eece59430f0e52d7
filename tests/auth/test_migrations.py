"""The migrations build the tables that the code believes in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services.auth.app import MIGRATIONS
from services.auth.tables import metadata
from services.shared.database import Database
from services.shared.migrations import check_is_current, upgrade


async def test_migrations_build_what_tables_declare(database_url: str) -> None:
    def differences(connection: sa.Connection) -> list:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with Database(database_url, schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        await upgrade(db, MIGRATIONS)
        await check_is_current(db, MIGRATIONS)
        assert await db.read(differences) == []
