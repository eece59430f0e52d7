"""`AuthStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from holdfast.errors import AlreadyExists, InvalidArgument, Reason, Unavailable
from holdfast.ids import new_uuid7
from services.auth.sql import insert_ignore
from services.auth.store import (
    Action,
    ApiKey,
    AuditRecord,
    Connection,
    ConnectionState,
    CredentialUse,
    FoundApiKey,
    NewApiKey,
    NewConnection,
    Request,
    SavedConnection,
    Workspace,
    connection_exists,
)
from services.auth.tables import (
    api_keys,
    audit_records,
    connections,
    requests,
    stray_secrets,
    workspaces,
)
from services.shared.database import Database, Timestamp, now_sql

_OK: Final = "OK"


class SqlAuthStore:
    """`AuthStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ensure_workspace(self, name: str, *, workspace_id: str, actor: str) -> Workspace:
        """See `AuthStore.ensure_workspace`."""
        found = await self._db.read(_workspace_by, workspaces.c.name == name)
        if found is not None:
            return found
        return await self._db.write(_ensure_workspace, self._db, name, workspace_id, actor)

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """See `AuthStore.get_workspace`."""
        return await self._db.read(_workspace_by, workspaces.c.workspace_id == workspace_id)

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

    async def get_connection(self, workspace_id: str, name: str) -> Connection | None:
        """See `AuthStore.get_connection`."""
        return await self._db.read(_get_connection, workspace_id, name)

    async def list_connections(self, workspace_id: str, *, limit: int, after: str | None) -> list[Connection]:
        """See `AuthStore.list_connections`."""
        return await self._db.read(_list_connections, workspace_id, limit, after)

    async def find_answered_api_key(self, workspace_id: str, request: Request) -> ApiKey | None:
        """See `AuthStore.find_answered_api_key`."""
        stored = await self._db.read(_answer_to, workspace_id, request)
        return None if stored is None else _api_key_of(json.loads(stored))

    async def find_answered_connection(self, workspace_id: str, request: Request) -> Connection | None:
        """See `AuthStore.find_answered_connection`."""
        stored = await self._db.read(_answer_to, workspace_id, request)
        return None if stored is None else _connection_of(json.loads(stored))

    async def announce_secret(self, path: str) -> None:
        """See `AuthStore.announce_secret`."""
        await self._db.write(_add_stray, self._db, path, False)

    async def save_connection(
        self, new: NewConnection, *, replace: bool, actor: str, request: Request | None
    ) -> SavedConnection:
        """See `AuthStore.save_connection`."""
        return await self._db.write(_save_connection, self._db, new, replace, actor, request)

    async def revoke_connection(
        self, workspace_id: str, name: str, *, actor: str, request: Request | None
    ) -> SavedConnection | None:
        """See `AuthStore.revoke_connection`."""
        return await self._db.write(_revoke_connection, self._db, workspace_id, name, actor, request)

    async def condemn_strays(self, *, older_than_seconds: float, limit: int) -> list[str]:
        """See `AuthStore.condemn_strays`."""
        return await self._db.write(_condemn_strays, self._db, timedelta(seconds=older_than_seconds), limit)

    async def condemn_stray(self, path: str) -> bool:
        """See `AuthStore.condemn_stray`."""
        return await self._db.write(_condemn_stray, path)

    async def forget_stray(self, path: str) -> None:
        """See `AuthStore.forget_stray`."""
        await self._db.write(_forget_stray, path)

    async def append_credential_uses(self, uses: Sequence[CredentialUse]) -> None:
        """See `AuthStore.append_credential_uses`."""
        if uses:
            await self._db.write(_append_credential_uses, uses)

    async def list_audit_records(self, workspace_id: str, *, limit: int, after_seq: int) -> list[AuditRecord]:
        """See `AuthStore.list_audit_records`."""
        return await self._db.read(_list_audit_records, workspace_id, limit, after_seq)

    async def forget_requests(self, *, older_than_seconds: float) -> int:
        """See `AuthStore.forget_requests`."""
        return await self._db.write(_forget_requests, self._db, timedelta(seconds=older_than_seconds))


# ---------------------------------------------------------------------------------------------------------- workspaces


def _workspace_by(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Workspace | None:
    row = connection.execute(sa.select(workspaces).where(condition)).one_or_none()
    if row is None:
        return None
    return Workspace(workspace_id=row.workspace_id, name=row.name, create_time=row.create_time)


def _ensure_workspace(connection: sa.Connection, db: Database, name: str, workspace_id: str, actor: str) -> Workspace:
    now = db.now(connection)
    if insert_ignore(connection, workspaces, workspace_id=workspace_id, name=name, create_time=now):
        _audit(connection, workspace_id, now, actor, Action.WORKSPACE_CREATED)
    found = _workspace_by(connection, workspaces.c.name == name)
    assert found is not None
    return found


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
    stored = _claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return _api_key_of(json.loads(stored)), False
    key = ApiKey(
        workspace_id=new.workspace_id,
        api_key_id=new.api_key_id,
        display_name=new.display_name,
        scopes=new.scopes,
        create_time=now,
        expire_time=new.expire_time,
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
    )
    if not is_new:
        raise AlreadyExists("the API key's id is taken")
    _audit(connection, key.workspace_id, now, actor, Action.API_KEY_CREATED, api_key_id=key.api_key_id)
    _answer_request(connection, key.workspace_id, request, key)
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
    stored = _claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return _api_key_of(json.loads(stored))
    is_it = sa.and_(api_keys.c.workspace_id == workspace_id, api_keys.c.api_key_id == api_key_id)
    revoked = connection.execute(
        api_keys.update().where(is_it, api_keys.c.revoke_time.is_(None)).values(revoke_time=now)
    ).rowcount
    row = connection.execute(sa.select(api_keys).where(is_it)).one_or_none()
    if row is None:
        _release_request(connection, workspace_id, request)
        return None
    key = _api_key_from(row)
    if revoked:
        _audit(connection, workspace_id, now, actor, Action.API_KEY_REVOKED, api_key_id=api_key_id)
    _answer_request(connection, workspace_id, request, key)
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


# --------------------------------------------------------------------------------------------------------- connections


def _connection_from(row: Any) -> Connection:
    return Connection(
        workspace_id=row.workspace_id,
        connection_id=row.connection_id,
        name=row.name,
        provider=row.provider,
        state=ConnectionState(row.state),
        base_url=row.base_url,
        fingerprint=row.fingerprint,
        secret_path=row.secret_path,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _get_connection(
    connection: sa.Connection, workspace_id: str, name: str, *, for_update: bool = False
) -> Connection | None:
    statement = sa.select(connections).where(connections.c.workspace_id == workspace_id, connections.c.name == name)
    if for_update:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    return None if row is None else _connection_from(row)


def _list_connections(connection: sa.Connection, workspace_id: str, limit: int, after: str | None) -> list[Connection]:
    # Names are ASCII; the bytes' order is the same on both databases, a locale's is not.
    name = connections.c.name.collate("C") if connection.dialect.name == "postgresql" else connections.c.name
    statement = sa.select(connections).where(connections.c.workspace_id == workspace_id)
    if after is not None:
        statement = statement.where(name > after)
    return [_connection_from(row) for row in connection.execute(statement.order_by(name).limit(limit))]


def _save_connection(
    connection: sa.Connection, db: Database, new: NewConnection, replace: bool, actor: str, request: Request | None
) -> SavedConnection:
    now = db.now(connection)
    stored = _claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return SavedConnection(_connection_of(json.loads(stored)), is_replay=True)
    row = {
        "provider": new.provider,
        "state": ConnectionState.ACTIVE.value,
        "base_url": new.base_url,
        "fingerprint": new.fingerprint,
        "secret_path": new.secret_path,
        "update_time": now,
    }
    created = {"connection_id": new.connection_id, "version": 1, "create_time": now}
    is_new = insert_ignore(connection, connections, workspace_id=new.workspace_id, name=new.name, **row, **created)
    old = None
    if not is_new:
        old = _get_connection(connection, new.workspace_id, new.name, for_update=True)
        assert old is not None  # rows of connections are never deleted
        if old.state is ConnectionState.ACTIVE and not replace:
            raise connection_exists(new.name)
        changed = {"version": old.version + 1} if replace else created
        connection.execute(
            connections.update()
            .where(connections.c.workspace_id == new.workspace_id, connections.c.name == new.name)
            .values(**row, **changed)
        )
    if new.secret_path is not None:
        _take_secret(connection, new.secret_path)
    abandoned = None if old is None else old.secret_path
    if abandoned is not None:
        _add_stray(connection, db, abandoned, True)
    saved = _get_connection(connection, new.workspace_id, new.name)
    assert saved is not None
    _audit(
        connection,
        new.workspace_id,
        now,
        actor,
        Action.CONNECTION_REPLACED if old is not None and replace else Action.CONNECTION_CREATED,
        connection=saved.name,
        connection_id=saved.connection_id,
        fingerprint=saved.fingerprint or None,
    )
    _answer_request(connection, new.workspace_id, request, saved)
    return SavedConnection(saved, abandoned_path=abandoned)


def _revoke_connection(
    connection: sa.Connection, db: Database, workspace_id: str, name: str, actor: str, request: Request | None
) -> SavedConnection | None:
    now = db.now(connection)
    stored = _claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return SavedConnection(_connection_of(json.loads(stored)), is_replay=True)
    old = _get_connection(connection, workspace_id, name, for_update=True)
    if old is None:
        _release_request(connection, workspace_id, request)
        return None
    revoked = old
    if old.state is ConnectionState.ACTIVE:
        revoked = dataclasses.replace(old, state=ConnectionState.REVOKED, secret_path=None, update_time=now)
        connection.execute(
            connections.update()
            .where(connections.c.workspace_id == workspace_id, connections.c.name == name)
            .values(state=revoked.state.value, secret_path=None, update_time=now)
        )
        if old.secret_path is not None:
            _add_stray(connection, db, old.secret_path, True)
        _audit(
            connection,
            workspace_id,
            now,
            actor,
            Action.CONNECTION_REVOKED,
            connection=name,
            connection_id=old.connection_id,
            fingerprint=old.fingerprint or None,
        )
    _answer_request(connection, workspace_id, request, revoked)
    return SavedConnection(revoked, abandoned_path=old.secret_path)


# ------------------------------------------------------------------------------------------------------- stray secrets


def _add_stray(connection: sa.Connection, db: Database, path: str, is_condemned: bool) -> None:
    connection.execute(
        stray_secrets.insert().values(path=path, is_condemned=is_condemned, create_time=db.now(connection))
    )


def _take_secret(connection: sa.Connection, path: str) -> None:
    # Invariant: a path is a connection's or a stray, never both; whoever deletes secrets deletes strays only.
    taken = connection.execute(
        stray_secrets.delete().where(stray_secrets.c.path == path, stray_secrets.c.is_condemned.is_(False))
    )
    if taken.rowcount != 1:
        raise Unavailable("storing the credential took too long; try again", reason=Reason.STORAGE_UNAVAILABLE)


def _condemn_strays(connection: sa.Connection, db: Database, age: timedelta, limit: int) -> list[str]:
    is_due = sa.or_(stray_secrets.c.is_condemned.is_(True), stray_secrets.c.create_time < db.now(connection) - age)
    due = sa.select(stray_secrets.c.path).where(is_due).order_by(stray_secrets.c.path).limit(limit)
    if connection.dialect.name == "postgresql":
        due = due.with_for_update(skip_locked=True)
    paths = list(connection.execute(due).scalars())
    connection.execute(stray_secrets.update().where(stray_secrets.c.path.in_(paths)).values(is_condemned=True))
    return paths


def _condemn_stray(connection: sa.Connection, path: str) -> bool:
    condemned = connection.execute(stray_secrets.update().where(stray_secrets.c.path == path).values(is_condemned=True))
    return condemned.rowcount == 1


def _forget_stray(connection: sa.Connection, path: str) -> None:
    connection.execute(
        stray_secrets.delete().where(stray_secrets.c.path == path, stray_secrets.c.is_condemned.is_(True))
    )


# ------------------------------------------------------------------------------------------------- idempotent requests


def _claim_request(connection: sa.Connection, workspace_id: str, request: Request | None, now: datetime) -> str | None:
    """Takes the request's id for this transaction; returns the stored answer when it has been answered before."""
    if request is None:
        return None
    is_first = insert_ignore(
        connection,
        requests,
        workspace_id=workspace_id,
        request_id=request.request_id,
        method=request.method,
        fingerprint=request.fingerprint,
        response="",
        create_time=now,
    )
    return None if is_first else _answer_to(connection, workspace_id, request)


def _answer_to(connection: sa.Connection, workspace_id: str, request: Request) -> str | None:
    row = connection.execute(
        sa.select(requests).where(requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id)
    ).one_or_none()
    if row is None:
        return None
    if (row.method, row.fingerprint) != (request.method, request.fingerprint):
        raise InvalidArgument(
            "the request_id was used before, with another method or content",
            reason=Reason.REQUEST_ID_REUSED,
            field="request_id",
            description="expected a new one for a new request",
        )
    response: str = row.response
    return response


def _answer_request(
    connection: sa.Connection, workspace_id: str, request: Request | None, answer: ApiKey | Connection
) -> None:
    if request is not None:
        connection.execute(
            requests.update()
            .where(requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id)
            .values(response=json.dumps(dataclasses.asdict(answer), default=datetime.isoformat))
        )


def _release_request(connection: sa.Connection, workspace_id: str, request: Request | None) -> None:
    """Gives the id back: a call that found nothing has done nothing, and may find something later."""
    if request is not None:
        connection.execute(
            requests.delete().where(
                requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id
            )
        )


def _forget_requests(connection: sa.Connection, db: Database, age: timedelta) -> int:
    return connection.execute(requests.delete().where(requests.c.create_time < db.now(connection) - age)).rowcount


def _api_key_of(stored: dict[str, Any]) -> ApiKey:
    times = {name: _time_of(stored[name]) for name in ("expire_time", "revoke_time", "last_use_time")}
    return ApiKey(
        **{
            **stored,
            **times,
            "scopes": tuple(stored["scopes"]),
            "create_time": datetime.fromisoformat(stored["create_time"]),
        }
    )


def _connection_of(stored: dict[str, Any]) -> Connection:
    times = {name: datetime.fromisoformat(stored[name]) for name in ("create_time", "update_time")}
    return Connection(**{**stored, **times, "state": ConnectionState(stored["state"])})


def _time_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# --------------------------------------------------------------------------------------------------------------- audit


def _next_seqs(connection: sa.Connection, workspace_id: str, count: int) -> int | None:
    """Takes `count` numbers and returns the first; None when there is no such workspace."""
    statement = (
        workspaces.update()
        .where(workspaces.c.workspace_id == workspace_id)
        .values(audit_seq=workspaces.c.audit_seq + count)
        .returning(workspaces.c.audit_seq)
    )
    last = connection.execute(statement).scalar_one_or_none()
    return None if last is None else last - count + 1


def _audit(
    db_connection: sa.Connection, /, workspace_id: str, now: datetime, actor: str, action: Action, **subject: str | None
) -> None:
    seq = _next_seqs(db_connection, workspace_id, 1)
    assert seq is not None
    db_connection.execute(
        audit_records.insert().values(
            workspace_id=workspace_id,
            seq=seq,
            record_id=new_uuid7(),
            time=now,
            actor=actor,
            action=action.value,
            outcome=_OK,
            **subject,
        )
    )


def _append_credential_uses(connection: sa.Connection, uses: Sequence[CredentialUse]) -> None:
    by_workspace: dict[str, list[CredentialUse]] = defaultdict(list)
    for use in uses:
        by_workspace[use.workspace_id].append(use)
    # In one order in every replica, so that two never wait for each other's workspaces in a circle.
    for workspace_id, of_workspace in sorted(by_workspace.items()):
        # A write whose answer was lost is sent again with the same ids.
        known = set(
            connection.execute(
                sa.select(audit_records.c.record_id).where(
                    audit_records.c.record_id.in_([use.record_id for use in of_workspace])
                )
            ).scalars()
        )
        new = [use for use in of_workspace if use.record_id not in known]
        if not new:
            continue
        first = _next_seqs(connection, workspace_id, len(new))
        if first is None:
            continue
        connection.execute(
            audit_records.insert(),
            [
                {"seq": seq, "action": Action.CREDENTIAL_RESOLVED.value, **dataclasses.asdict(use)}
                for seq, use in enumerate(new, first)
            ],
        )


def _list_audit_records(connection: sa.Connection, workspace_id: str, limit: int, after_seq: int) -> list[AuditRecord]:
    statement = (
        sa.select(audit_records)
        .where(audit_records.c.workspace_id == workspace_id, audit_records.c.seq > after_seq)
        .order_by(audit_records.c.seq)
        .limit(limit)
    )
    fields = [field.name for field in dataclasses.fields(AuditRecord)]
    return [AuditRecord(**{name: row._mapping[name] for name in fields}) for row in connection.execute(statement)]
