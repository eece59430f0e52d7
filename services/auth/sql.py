"""The one statement that SQLAlchemy Core spells differently for each database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert_ignore(connection: sa.Connection, table: sa.Table, **values: Any) -> bool:
    """Inserts a row unless its key is taken, and tells which.

    Waits for another transaction that is inserting the same key, so that "taken" means committed.
    """
    statement: postgresql.Insert | sqlite.Insert
    if connection.dialect.name == "postgresql":
        statement = postgresql.insert(table).values(**values).on_conflict_do_nothing()
    else:
        statement = sqlite.insert(table).values(**values).on_conflict_do_nothing()
    # Not the row count, which drivers give for updates and deletes only.
    inserted = connection.execute(statement.returning(*table.primary_key.columns)).first()
    return inserted is not None
