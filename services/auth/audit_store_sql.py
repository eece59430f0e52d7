"""`AuditStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from services.auth.audit_sql import append_audit, last_seq, read_records
from services.auth.audit_store import OUTCOME_OK, REFUSED, AuditFilter, FoundRecords
from services.auth.sql import in_bytes
from services.auth.store import Action, AuditRecord
from services.auth.tables import audit_records, workspaces
from services.shared.database import Database

WINDOW: Final = 20_000
"""So many records are looked at for one answer."""


class SqlAuditStore:
    """`AuditStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def find_audit_records(
        self, workspace_id: str, wanted: AuditFilter, *, limit: int, from_seq: int | None, newest_first: bool
    ) -> FoundRecords:
        """See `AuditStore.find_audit_records`."""
        return await self._db.read(_find, workspace_id, wanted, limit, from_seq, newest_first)

    async def list_workspaces(self, *, after: str, limit: int) -> list[tuple[str, str]]:
        """See `AuditStore.list_workspaces`."""
        return await self._db.read(_list_workspaces, after, limit)

    async def read_audit_trail(self, workspace_id: str, *, first_seq: int, limit: int) -> list[AuditRecord]:
        """See `AuditStore.read_audit_trail`."""
        return await self._db.read(_read_trail, workspace_id, first_seq, limit)

    async def last_audit_seq(self, workspace_id: str) -> int:
        """See `AuditStore.last_audit_seq`."""
        return await self._db.read(last_seq, workspace_id)

    async def append_audit_record(
        self, workspace_id: str, *, actor: str, action: Action, details: Mapping[str, str] | None = None
    ) -> int:
        """See `AuditStore.append_audit_record`."""
        return await self._db.write(_append, self._db, workspace_id, actor, action, details)


def _list_workspaces(connection: sa.Connection, after: str, limit: int) -> list[tuple[str, str]]:
    order = in_bytes(connection, workspaces.c.workspace_id)
    statement = sa.select(workspaces.c.workspace_id, workspaces.c.name).where(order > after).order_by(order)
    return [(row.workspace_id, row.name) for row in connection.execute(statement.limit(limit))]


def _find(
    connection: sa.Connection,
    workspace_id: str,
    wanted: AuditFilter,
    limit: int,
    from_seq: int | None,
    newest_first: bool,
) -> FoundRecords:
    seq = audit_records.c.seq
    last = last_seq(connection, workspace_id)
    if newest_first:
        start = last if from_seq is None else min(from_seq, last)
        end = max(start - WINDOW + 1, 1)
        window = (seq <= start, seq >= end)
    else:
        start = 1 if from_seq is None else from_seq
        end = min(start + WINDOW - 1, last)
        window = (seq >= start, seq <= end)
    found = read_records(
        connection, workspace_id, *window, *_conditions(wanted), limit=limit, newest_first=newest_first
    )
    reached = found[-1].seq if len(found) == limit else end
    if newest_first:
        return FoundRecords(found, reached - 1 if reached > 1 else None)
    return FoundRecords(found, reached + 1 if reached < last else None)


def _conditions(wanted: AuditFilter) -> list[sa.ColumnElement[bool]]:
    columns = audit_records.c
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.start_time is not None:
        conditions.append(columns.time >= wanted.start_time)
    if wanted.end_time is not None:
        conditions.append(columns.time < wanted.end_time)
    if wanted.action.endswith("*"):
        conditions.append(columns.action.startswith(wanted.action[:-1], autoescape=True))
    elif wanted.action:
        conditions.append(columns.action == wanted.action)
    if wanted.connection:
        conditions.append(sa.or_(columns.connection == wanted.connection, columns.connection_id == wanted.connection))
    if wanted.outcome == REFUSED:
        conditions.append(columns.outcome != OUTCOME_OK)
    elif wanted.outcome:
        conditions.append(columns.outcome == wanted.outcome)
    for column, value in (
        (columns.actor, wanted.actor),
        (columns.user_id, wanted.user_id),
        (columns.run_id, wanted.run_id),
        (columns.tool, wanted.tool),
        (columns.api_key_id, wanted.api_key_id),
        (columns.fingerprint, wanted.fingerprint),
    ):
        if value:
            conditions.append(column == value)
    return conditions


def _read_trail(connection: sa.Connection, workspace_id: str, first_seq: int, limit: int) -> list[AuditRecord]:
    return read_records(connection, workspace_id, audit_records.c.seq >= first_seq, limit=limit)


def _append(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    actor: str,
    action: Action,
    details: Mapping[str, str] | None,
) -> int:
    append_audit(connection, workspace_id, db.now(connection), actor, action, details=details)
    return last_seq(connection, workspace_id)
