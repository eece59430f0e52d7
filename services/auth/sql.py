"""What SQLAlchemy Core spells differently for each database."""

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


def in_bytes(connection: sa.Connection, column: sa.Column[str]) -> sa.ColumnElement[str]:
    """Returns a column of text as it is ordered by its bytes: that is the same everywhere, a locale's order is not."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column
