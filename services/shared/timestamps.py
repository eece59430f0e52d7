"""Moments in a database: aware and in UTC on both sides, whatever the dialect keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine

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
