"""Many rows in one statement: arrays on PostgreSQL, prepared rows on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from services.shared.timestamps import Timestamp


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts rows that give every column of `table` in order; of one that exists, all columns are replaced.

    Args:
        connection: Where.
        table: The table.
        rows: At most one for each primary key.
    """
    if not rows:
        return
    statement = _statement(table, connection.dialect.name)
    if connection.dialect.name == "postgresql":
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        connection.exec_driver_sql(statement, columns)
        return
    times = [index for index, column in enumerate(table.columns) if isinstance(column.type, Timestamp)]
    parameters = [_with_numbers(row, table, times, connection.dialect) for row in rows] if times else list(rows)
    connection.exec_driver_sql(statement, parameters)


def _with_numbers(row: tuple[Any, ...], table: sa.Table, times: list[int], dialect: sa.Dialect) -> tuple[Any, ...]:
    values = list(row)
    for index in times:
        if values[index] is not None:
            values[index] = _TIMESTAMP.process_bind_param(values[index], dialect)
    return tuple(values)


_TIMESTAMP = Timestamp()


@cache
def _statement(table: sa.Table, dialect: str) -> str:
    names = [column.name for column in table.columns]
    keys = [column.name for column in table.primary_key.columns]
    if dialect == "postgresql":
        # %b: binary parameters, so that bodies are not sent as hexadecimal text.
        arrays = ", ".join(f"%b::{_array_type(column)}" for column in table.columns)
        source = f"SELECT * FROM unnest({arrays})"
    else:
        source = f"VALUES ({', '.join('?' for _ in names)})"
    values = ", ".join(f"{name} = excluded.{name}" for name in names if name not in keys)
    into = f"INSERT INTO {table.name} ({', '.join(names)}) {source}"
    return f"{into} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {values}"


def _array_type(column: sa.Column[Any]) -> str:
    match column.type:
        case Timestamp():
            return "timestamptz[]"
        case sa.BigInteger():
            return "bigint[]"
        case sa.Integer():
            return "integer[]"
        case sa.LargeBinary():
            return "bytea[]"
        case sa.Text():
            return "text[]"
    raise TypeError(f"no array type for the column {column.name}")
