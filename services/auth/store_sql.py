"""`AuthStore` in SQL, on PostgreSQL and on SQLite.

Each method is one transaction: what changes, its audit record, and the request's id with the answer commit together, so
that a crash between any two lines leaves all of it or nothing, and whoever repeats the request is told which. An id
that was claimed in a transaction that never committed is free again. What has no request id may be repeated anyway: a
workspace is found, a revoked key stays revoked, a use only moves forward, a record with a known id is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from holdfast.errors import AlreadyExists
from services.auth.audit_sql import append_audit, append_refusals, append_uses, read_records
from services.auth.connection_store import ConnectionState
from services.auth.request_sql import answer_request, answer_to, claim_request, release_request
from services.auth.sql import insert_ignore
from services.auth.store import (
    Action,
    ApiKey,
    AuditRecord,
    CredentialUse,
    FoundApiKey,
    NewApiKey,
    Refusals,
    Request,
    Workspace,
)
from services.auth.tables import api_keys, audit_records, requests, workspaces
from services.auth.workspace_sql import (
    close_workspace,
    ensure_workspace,
    forget_user,
    forget_workspace,
    require_open,
    sealing_of,
    set_sealing,
    workspace_by,
)
from services.shared.database import Database, now_sql
from services.shared.timestamps import Timestamp


class SqlAuthStore:
    """`AuthStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ensure_workspace(self, name: str, *, workspace_id: str, actor: str) -> Workspace:
        """See `AuthStore.ensure_workspace`."""
        found = await self._db.read(workspace_by, workspaces.c.name == name)
        if found is not None:
            return found
        return await self._db.write(ensure_workspace, self._db, name, workspace_id, actor)

    async def find_workspace(self, name: str) -> Workspace | None:
        """See `AuthStore.find_workspace`."""
        return await self._db.read(workspace_by, workspaces.c.name == name)

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """See `AuthStore.get_workspace`."""
        return await self._db.read(workspace_by, workspaces.c.workspace_id == workspace_id)

    async def get_sealing(self, workspace_ids: Sequence[str]) -> dict[str, bool | None]:
        """See `AuthStore.get_sealing`."""
        return await self._db.read(sealing_of, workspace_ids)

    async def set_sealing(self, workspace_id: str, seals_payloads: bool | None, *, actor: str) -> Workspace:
        """See `AuthStore.set_sealing`."""
        return await self._db.write(set_sealing, self._db, workspace_id, seals_payloads, actor)

    async def close_workspace(self, name: str, *, actor: str) -> Workspace | None:
        """See `AuthStore.close_workspace`."""
        return await self._db.write(close_workspace, self._db, name, actor)

    async def forget_user(self, workspace_id: str, user_id: str, *, actor: str) -> int:
        """See `AuthStore.forget_user`."""
        revoked = ConnectionState.REVOKED.value
        return await self._db.write(forget_user, self._db, workspace_id, user_id, revoked, actor)

    async def forget_workspace(self, workspace_id: str, *, actor: str) -> Workspace:
        """See `AuthStore.forget_workspace`."""
        return await self._db.write(forget_workspace, self._db, workspace_id, actor)

    async def find_api_key(self, api_key_id: str) -> FoundApiKey | None:
        """See `AuthStore.find_api_key`."""
        return await self._db.read(_find_api_key, self._db, api_key_id)

    async def create_api_key(self, new: NewApiKey, *, actor: str, request: Request | None) -> tuple[ApiKey, bool]:
        """See `AuthStore.create_api_key`."""
        return await self._db.write(_create_api_key, self._db, new, actor, request)

    async def list_api_keys(self, workspace_id: str, *, limit: int, after: tuple[datetime, str] | None) -> list[ApiKey]:
        """See `AuthStore.list_api_keys`."""
        return await self._db.read(_list_api_keys, workspace_id, limit, after)

    async def revoke_api_key(
        self, workspace_id: str, api_key_id: str, *, actor: str, request: Request | None
    ) -> ApiKey | None:
        """See `AuthStore.revoke_api_key`."""
        return await self._db.write(_revoke_api_key, self._db, workspace_id, api_key_id, actor, request)

    async def record_key_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        """See `AuthStore.record_key_uses`."""
        if uses:
            await self._db.write(_record_key_uses, uses)

    async def find_answered_api_key(self, workspace_id: str, request: Request) -> ApiKey | None:
        """See `AuthStore.find_answered_api_key`."""
        stored = await self._db.read(answer_to, workspace_id, request)
        return None if stored is None else _api_key_of(json.loads(stored))

    async def append_credential_uses(self, uses: Sequence[CredentialUse]) -> None:
        """See `AuthStore.append_credential_uses`."""
        if uses:
            await self._db.write(append_uses, uses)

    async def append_refusals(self, refusals: Sequence[Refusals]) -> None:
        """See `AuthStore.append_refusals`."""
        if refusals:
            await self._db.write(append_refusals, refusals)

    async def list_audit_records(self, workspace_id: str, *, limit: int, after_seq: int) -> list[AuditRecord]:
        """See `AuthStore.list_audit_records`."""
        return await self._db.read(_records_after, workspace_id, after_seq, limit)

    async def forget_requests(self, *, older_than_seconds: float) -> int:
        """See `AuthStore.forget_requests`."""
        return await self._db.write(_forget_requests, self._db, timedelta(seconds=older_than_seconds))


# ------------------------------------------------------------------------------------------------------------ API keys


def _api_key_from(row: Any) -> ApiKey:
    return ApiKey(
        workspace_id=row.workspace_id,
        api_key_id=row.api_key_id,
        display_name=row.display_name,
        scopes=tuple(row.scopes.split()),
        create_time=row.create_time,
        expire_time=row.expire_time,
        revoke_time=row.revoke_time,
        last_use_time=row.last_use_time,
        networks=tuple(row.networks.split()),
    )


def _find_api_key(connection: sa.Connection, db: Database, api_key_id: str) -> FoundApiKey | None:
    # The time comes with the row: verification is the most frequent call, and this is its one round trip.
    statement = sa.select(api_keys, now_sql(db).label("now")).where(api_keys.c.api_key_id == api_key_id)
    row = connection.execute(statement).one_or_none()
    return None if row is None else FoundApiKey(_api_key_from(row), bytes(row.digest), row.now)


def _create_api_key(
    connection: sa.Connection, db: Database, new: NewApiKey, actor: str, request: Request | None
) -> tuple[ApiKey, bool]:
    now = db.now(connection)
    stored = claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return _api_key_of(json.loads(stored)), False
    key = ApiKey(
        workspace_id=new.workspace_id,
        api_key_id=new.api_key_id,
        display_name=new.display_name,
        scopes=new.scopes,
        create_time=now,
        expire_time=new.expire_time,
        networks=new.networks,
    )
    is_new = insert_ignore(
        connection,
        api_keys,
        workspace_id=key.workspace_id,
        api_key_id=key.api_key_id,
        display_name=key.display_name,
        digest=new.digest,
        scopes=" ".join(key.scopes),
        create_time=now,
        expire_time=key.expire_time,
        networks=" ".join(key.networks),
    )
    if not is_new:
        raise AlreadyExists("the API key's id is taken")
    append_audit(connection, key.workspace_id, now, actor, Action.API_KEY_CREATED, api_key_id=key.api_key_id)
    require_open(connection, key.workspace_id)
    answer_request(connection, key.workspace_id, request, key)
    return key, True


def _list_api_keys(
    connection: sa.Connection, workspace_id: str, limit: int, after: tuple[datetime, str] | None
) -> list[ApiKey]:
    statement = sa.select(api_keys).where(api_keys.c.workspace_id == workspace_id)
    if after is not None:
        position = sa.tuple_(sa.literal(after[0], Timestamp()), sa.literal(after[1]))
        statement = statement.where(sa.tuple_(api_keys.c.create_time, api_keys.c.api_key_id) < position)
    statement = statement.order_by(api_keys.c.create_time.desc(), api_keys.c.api_key_id.desc()).limit(limit)
    return [_api_key_from(row) for row in connection.execute(statement)]


def _revoke_api_key(
    connection: sa.Connection, db: Database, workspace_id: str, api_key_id: str, actor: str, request: Request | None
) -> ApiKey | None:
    now = db.now(connection)
    stored = claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return _api_key_of(json.loads(stored))
    is_it = sa.and_(api_keys.c.workspace_id == workspace_id, api_keys.c.api_key_id == api_key_id)
    revoked = connection.execute(
        api_keys.update().where(is_it, api_keys.c.revoke_time.is_(None)).values(revoke_time=now)
    ).rowcount
    row = connection.execute(sa.select(api_keys).where(is_it)).one_or_none()
    if row is None:
        release_request(connection, workspace_id, request)
        return None
    key = _api_key_from(row)
    if revoked:
        append_audit(connection, workspace_id, now, actor, Action.API_KEY_REVOKED, api_key_id=api_key_id)
    answer_request(connection, workspace_id, request, key)
    return key


def _record_key_uses(connection: sa.Connection, uses: Mapping[tuple[str, str], datetime]) -> None:
    # In one order in every replica: two that note the same keys wait for each other and never in a circle.
    for (workspace_id, api_key_id), time in sorted(uses.items()):
        connection.execute(
            api_keys.update()
            .where(
                api_keys.c.workspace_id == workspace_id,
                api_keys.c.api_key_id == api_key_id,
                sa.or_(api_keys.c.last_use_time.is_(None), api_keys.c.last_use_time < time),
            )
            .values(last_use_time=time)
        )


def _api_key_of(stored: dict[str, Any]) -> ApiKey:
    # During an upgrade an answer may be one of the release after this one, with more fields.
    stored = {name: value for name, value in stored.items() if name in ApiKey.__dataclass_fields__}
    times = {name: _time_of(stored[name]) for name in ("expire_time", "revoke_time", "last_use_time")}
    return ApiKey(
        **{
            **stored,
            **times,
            "scopes": tuple(stored["scopes"]),
            "networks": tuple(stored.get("networks", ())),
            "create_time": datetime.fromisoformat(stored["create_time"]),
        }
    )


def _time_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# ------------------------------------------------------------------------------------------------------------ requests


def _forget_requests(connection: sa.Connection, db: Database, age: timedelta) -> int:
    return connection.execute(requests.delete().where(requests.c.create_time < db.now(connection) - age)).rowcount


def _records_after(connection: sa.Connection, workspace_id: str, after_seq: int, limit: int) -> list[AuditRecord]:
    return read_records(connection, workspace_id, audit_records.c.seq > after_seq, limit=limit)
