"""`ConnectionStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from holdfast.errors import Conflict
from services.auth import stray_sql
from services.auth.audit_sql import append_audit
from services.auth.connection_store import (
    RENEWED_KINDS,
    SHARED,
    Connection,
    ConnectionChange,
    ConnectionEvent,
    ConnectionState,
    CredentialKind,
    NewConnection,
    SavedConnection,
    Stray,
    TokenStatus,
    connection_exists,
)
from services.auth.integration_store import IntegrationState, integration_disabled, integration_not_found
from services.auth.refresh.lease import lease_path
from services.auth.request_sql import answer_request, answer_to, claim_request, release_request
from services.auth.sql import in_bytes, insert_ignore
from services.auth.store import Action, Request
from services.auth.tables import connection_events, connections, escrows, integrations
from services.auth.workspace_sql import require_open
from services.shared.database import Database, now_sql

_RENEWER: Final = "service:auth"
"""Who changes connections without being asked."""

_ENDED: Final = (ConnectionState.REVOKED.value, ConnectionState.DISABLED.value)
_LISTS: Final = ("scopes", "missing_scopes", "agents")
_TIMES: Final = ("expire_time", "grant_expire_time", "refresh_time", "last_use_time", "create_time", "update_time")


SELECT_CONNECTIONS: Final = sa.select(
    connections,
    sa.select(integrations.c.name)
    .where(
        integrations.c.workspace_id == connections.c.workspace_id,
        integrations.c.integration_id == connections.c.integration_id,
        integrations.c.state != IntegrationState.DELETED.value,
    )
    .scalar_subquery()
    .label("integration"),
)
"""Connections with the names of their integrations: what `connection_from` takes."""


class SqlConnectionStore:
    """`ConnectionStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def find_connection(self, workspace_id: str, user_id: str, name: str) -> Connection | None:
        """See `ConnectionStore.find_connection`."""
        return await self._db.read_once(_find_connection, _named(workspace_id, user_id, name))

    async def get_connection(self, workspace_id: str, connection_id: str) -> Connection | None:
        """See `ConnectionStore.get_connection`."""
        return await self._db.read_once(_find_connection, _with_id(workspace_id, connection_id))

    async def connections_for(self, workspace_id: str, user_id: str, name: str) -> list[Connection]:
        """See `ConnectionStore.connections_for`."""
        return await self._db.read_once(_connections_for, workspace_id, user_id, name)

    async def list_connections(
        self,
        workspace_id: str,
        *,
        limit: int,
        after: tuple[str, str] | None,
        user_ids: Collection[str] | None = None,
        integration_id: str | None = None,
        state: ConnectionState | None = None,
    ) -> list[Connection]:
        """See `ConnectionStore.list_connections`."""
        return await self._db.read_once(_list_connections, workspace_id, limit, after, user_ids, integration_id, state)

    async def find_answered_connection(self, workspace_id: str, request: Request) -> Connection | None:
        """See `ConnectionStore.find_answered_connection`."""
        stored = await self._db.read_once(answer_to, workspace_id, request)
        return None if stored is None else _connection_of(stored)

    async def announce_secret(self, path: str) -> None:
        """See `ConnectionStore.announce_secret`."""
        await self._db.write(stray_sql.announce, self._db, path)

    async def save_connection(
        self, new: NewConnection, *, replace: bool, actor: str, request: Request | None
    ) -> SavedConnection:
        """See `ConnectionStore.save_connection`."""
        return await self._db.write(save_connection, self._db, new, replace, actor, request)

    async def update_connection(
        self,
        workspace_id: str,
        user_id: str,
        name: str,
        change: ConnectionChange,
        *,
        actor: str,
        request: Request | None,
    ) -> Connection | None:
        """See `ConnectionStore.update_connection`."""
        is_it = _named(workspace_id, user_id, name)
        return await self._db.write(_update_connection, self._db, workspace_id, is_it, change, actor, request)

    async def record_tokens(self, workspace_id: str, connection_id: str, status: TokenStatus) -> Connection | None:
        """See `ConnectionStore.record_tokens`."""
        return await self._db.write(_record_tokens, self._db, workspace_id, connection_id, status)

    async def record_refresh_failure(
        self,
        workspace_id: str,
        connection_id: str,
        *,
        secret_path: str,
        token_version: int,
        state: ConnectionState,
        state_reason: str,
        refresh_time: datetime | None,
    ) -> Connection | None:
        """See `ConnectionStore.record_refresh_failure`."""
        values = {"state": state.value, "state_reason": state_reason, "refresh_time": refresh_time}
        return await self._db.write(
            _record_refresh_failure, self._db, workspace_id, connection_id, secret_path, token_version, values
        )

    async def connections_due(self, *, limit: int) -> list[Connection]:
        """See `ConnectionStore.connections_due`."""
        return await self._db.read_once(_connections_due, self._db, limit)

    async def postpone_refresh(self, workspace_id: str, connection_id: str, refresh_time: datetime | None) -> None:
        """See `ConnectionStore.postpone_refresh`."""
        await self._db.write_autocommit(_postpone_refresh, workspace_id, connection_id, refresh_time)

    async def revoke_connection(
        self, workspace_id: str, user_id: str, name: str, *, actor: str, request: Request | None
    ) -> SavedConnection | None:
        """See `ConnectionStore.revoke_connection`."""
        return await self._db.write(_revoke_connection, self._db, workspace_id, user_id, name, actor, request)

    async def record_connection_uses(self, uses: Sequence[tuple[str, str, datetime]]) -> None:
        """See `ConnectionStore.record_connection_uses`."""
        if uses:
            await self._db.write(_record_connection_uses, uses)

    async def events_after(self, event_id: int, *, limit: int) -> list[ConnectionEvent]:
        """See `ConnectionStore.events_after`."""
        return await self._db.read_once(_events_after, event_id, limit)

    async def last_event_id(self) -> int:
        """See `ConnectionStore.last_event_id`."""
        return await self._db.read_once(_last_event_id)

    async def forget_events(self, *, older_than_seconds: float) -> int:
        """See `ConnectionStore.forget_events`."""
        return await self._db.write(_forget_events, self._db, timedelta(seconds=older_than_seconds))

    async def condemn_strays(self, *, older_than_seconds: float, limit: int) -> list[Stray]:
        """See `ConnectionStore.condemn_strays`."""
        return await self._db.write(stray_sql.condemn_strays, self._db, timedelta(seconds=older_than_seconds), limit)

    async def condemn_stray(self, path: str) -> bool:
        """See `ConnectionStore.condemn_stray`."""
        return await self._db.write(stray_sql.condemn_stray, path)

    async def postpone_stray(self, path: str, *, delay_seconds: float) -> None:
        """See `ConnectionStore.postpone_stray`."""
        await self._db.write(stray_sql.postpone_stray, self._db, path, timedelta(seconds=delay_seconds))

    async def forget_stray(self, path: str) -> None:
        """See `ConnectionStore.forget_stray`."""
        await self._db.write(stray_sql.forget_stray, path)


# ---------------------------------------------------------------------------------------------------------------- rows


def connection_from(row: Any) -> Connection:
    """Returns the connection of a row of the table."""
    return Connection(
        workspace_id=row.workspace_id,
        connection_id=row.connection_id,
        name=row.name,
        user_id=row.user_id,
        integration_id=row.integration_id,
        integration=row.integration or "",
        provider=row.provider,
        kind=CredentialKind(row.kind),
        state=ConnectionState(row.state),
        state_reason=row.state_reason,
        base_url=row.base_url,
        fingerprint=row.fingerprint,
        secret_path=row.secret_path,
        version=row.version,
        token_version=row.token_version,
        account_id=row.account_id,
        account_label=row.account_label,
        scopes=tuple(row.scopes.split()),
        missing_scopes=tuple(row.missing_scopes.split()),
        agents=tuple(row.agents.split()),
        allow_raw_token=row.allow_raw_token,
        variables=json.loads(row.variables),
        expire_time=row.expire_time,
        grant_expire_time=row.grant_expire_time,
        refresh_time=row.refresh_time,
        failure_count=row.failure_count,
        last_use_time=row.last_use_time,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _values_of(new: NewConnection) -> dict[str, Any]:
    """Returns the columns that a new connection sets, whether or not it takes another's place."""
    values = dataclasses.asdict(new)
    for key in ("workspace_id", "user_id", "name", "connection_id"):
        del values[key]
    return {
        **values,
        **{field: " ".join(values[field]) for field in _LISTS},
        "kind": new.kind.value,
        "variables": json.dumps(values["variables"]),
        "state": ConnectionState.ACTIVE.value,
        "state_reason": "",
        "failure_count": 0,
    }


def _connection_of(stored: str) -> Connection:
    """Returns the connection of a stored answer; one of an earlier release has fewer fields, of a later one more."""
    known = Connection.__dataclass_fields__
    fields: dict[str, Any] = {name: value for name, value in json.loads(stored).items() if name in known}
    for name in _LISTS:
        fields[name] = tuple(fields.get(name, ()))
    for name in _TIMES:
        time = fields.get(name)
        fields[name] = None if time is None else datetime.fromisoformat(time)
    fields["state"] = ConnectionState(fields["state"])
    fields["kind"] = CredentialKind(fields.get("kind", CredentialKind.API_KEY))
    return Connection(**fields)


def _named(workspace_id: str, user_id: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        connections.c.workspace_id == workspace_id, connections.c.user_id == user_id, connections.c.name == name
    )


def _with_id(workspace_id: str, connection_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(connections.c.workspace_id == workspace_id, connections.c.connection_id == connection_id)


# ------------------------------------------------------------------------------------------------------------- reading


def _find_connection(
    connection: sa.Connection, is_it: sa.ColumnElement[bool], *, for_update: bool = False
) -> Connection | None:
    statement = SELECT_CONNECTIONS.where(is_it)
    if for_update:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    return None if row is None else connection_from(row)


def _connections_for(connection: sa.Connection, workspace_id: str, user_id: str, name: str) -> list[Connection]:
    is_meant = sa.or_(
        connections.c.name == name,
        connections.c.integration_id.in_(
            sa.select(integrations.c.integration_id).where(
                integrations.c.workspace_id == workspace_id,
                integrations.c.name == name,
                integrations.c.state != IntegrationState.DELETED.value,
            )
        ),
    )
    statement = SELECT_CONNECTIONS.where(
        connections.c.workspace_id == workspace_id,
        connections.c.user_id.in_({SHARED, user_id}),
        connections.c.state != ConnectionState.REVOKED.value,
        is_meant,
    ).order_by((connections.c.user_id == SHARED).asc(), in_bytes(connection, connections.c.name))
    return [connection_from(row) for row in connection.execute(statement)]


def _list_connections(
    connection: sa.Connection,
    workspace_id: str,
    limit: int,
    after: tuple[str, str] | None,
    user_ids: Collection[str] | None,
    integration_id: str | None,
    state: ConnectionState | None,
) -> list[Connection]:
    order = [in_bytes(connection, column) for column in (connections.c.name, connections.c.user_id)]
    statement = SELECT_CONNECTIONS.where(connections.c.workspace_id == workspace_id)
    if after is not None:
        statement = statement.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(part) for part in after)))
    if user_ids is not None:
        statement = statement.where(connections.c.user_id.in_(list(user_ids)))
    if integration_id is not None:
        statement = statement.where(connections.c.integration_id == integration_id)
    if state is not None:
        statement = statement.where(connections.c.state == state.value)
    return [connection_from(row) for row in connection.execute(statement.order_by(*order).limit(limit))]


def _connections_due(connection: sa.Connection, db: Database, limit: int) -> list[Connection]:
    statement = (
        SELECT_CONNECTIONS.where(connections.c.refresh_time <= now_sql(db), connections.c.state.not_in(_ENDED))
        .order_by(connections.c.refresh_time)
        .limit(limit)
    )
    return [connection_from(row) for row in connection.execute(statement)]


# -------------------------------------------------------------------------------------------------------------- saving


def save_connection(
    connection: sa.Connection, db: Database, new: NewConnection, replace: bool, actor: str, request: Request | None
) -> SavedConnection:
    """Stores a connection in this transaction; see `ConnectionStore.save_connection`."""
    now = db.now(connection)
    stored = claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return SavedConnection(_connection_of(stored), is_replay=True)
    _require_integration(connection, new)
    key = {"workspace_id": new.workspace_id, "user_id": new.user_id, "name": new.name}
    created = {"connection_id": new.connection_id, "version": 1, "create_time": now}
    row = {**_values_of(new), "update_time": now}
    is_it = _named(**key)
    is_new = insert_ignore(connection, connections, **key, **row, **created)
    old = None
    if not is_new:
        old = _find_connection(connection, is_it, for_update=True)
        if old is None:
            raise Conflict("the user's connections are being erased; try again")
        if old.state is not ConnectionState.REVOKED and not replace:
            raise connection_exists(new.name)
        changed = {"version": old.version + 1} if replace else {**created, "last_use_time": None}
        connection.execute(connections.update().where(is_it).values(**row, **changed))
    if new.secret_path is not None:
        stray_sql.take_secret(connection, new.secret_path)
    abandoned = None
    if old is not None and old.secret_path is not None:
        abandoned = stray_sql.abandon(connection, old.secret_path, now)
    saved = _find_connection(connection, is_it)
    assert saved is not None
    _add_event(connection, now, saved)
    append_audit(
        connection,
        new.workspace_id,
        now,
        actor,
        Action.CONNECTION_REPLACED if old is not None and replace else Action.CONNECTION_CREATED,
        connection=saved.name,
        connection_id=saved.connection_id,
        fingerprint=saved.fingerprint or None,
        user_id=saved.user_id or None,
    )
    require_open(connection, new.workspace_id)
    answer_request(connection, new.workspace_id, request, saved)
    return SavedConnection(saved, abandoned=abandoned)


def _require_integration(connection: sa.Connection, new: NewConnection) -> None:
    if new.integration_id is None:
        return
    # Held until the commit, so that an integration that is being deleted gets no more connections.
    row = connection.execute(
        sa.select(integrations.c.name, integrations.c.state)
        .where(integrations.c.workspace_id == new.workspace_id, integrations.c.integration_id == new.integration_id)
        .with_for_update(read=True)
    ).one_or_none()
    if row is None or row.state == IntegrationState.DELETED.value:
        raise integration_not_found()
    if row.state == IntegrationState.DISABLED.value:
        raise integration_disabled(row.name)


def _revoke_connection(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    user_id: str,
    name: str,
    actor: str,
    request: Request | None,
) -> SavedConnection | None:
    now = db.now(connection)
    stored = claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return SavedConnection(_connection_of(stored), is_replay=True)
    old = _find_connection(connection, _named(workspace_id, user_id, name), for_update=True)
    if old is None:
        release_request(connection, workspace_id, request)
        return None
    saved = SavedConnection(old)
    if old.state is not ConnectionState.REVOKED:
        saved = revoke_row(connection, old, now, actor)
    answer_request(connection, workspace_id, request, saved.connection)
    return saved


def revoke_row(connection: sa.Connection, old: Connection, now: datetime, actor: str) -> SavedConnection:
    """Revokes a connection whose row this transaction has locked."""
    changes: dict[str, Any] = {
        "state_reason": "",
        "secret_path": None,
        "refresh_time": None,
        "version": old.version + 1,
        "update_time": now,
    }
    revoked = dataclasses.replace(old, state=ConnectionState.REVOKED, **changes)
    connection.execute(
        connections.update()
        .where(_with_id(old.workspace_id, old.connection_id))
        .values(state=ConnectionState.REVOKED.value, **changes)
    )
    abandoned = stray_sql.abandon_grant(connection, old, now)
    if abandoned is not None and abandoned.integration_id is not None:
        stray_sql.abandon(connection, lease_path(old.connection_id), now)
        connection.execute(escrows.delete().where(escrows.c.connection_id == old.connection_id))
    _add_event(connection, now, revoked)
    append_audit(
        connection,
        old.workspace_id,
        now,
        actor,
        Action.CONNECTION_REVOKED,
        connection=old.name,
        connection_id=old.connection_id,
        fingerprint=old.fingerprint or None,
        user_id=old.user_id or None,
    )
    return SavedConnection(revoked, abandoned=abandoned)


def _update_connection(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    is_it: sa.ColumnElement[bool],
    change: ConnectionChange,
    actor: str,
    request: Request | None,
) -> Connection | None:
    now = db.now(connection)
    stored = claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return _connection_of(stored)
    old = _find_connection(connection, is_it, for_update=True)
    if old is None or old.state is ConnectionState.REVOKED:
        release_request(connection, workspace_id, request)
        return None
    changes: dict[str, Any] = {
        name: getattr(change, name) for name in ("agents", "allow_raw_token") if getattr(change, name) is not None
    }
    if change.is_disabled is True:
        changes |= {"state": ConnectionState.DISABLED, "state_reason": "", "refresh_time": None}
    elif change.is_disabled is False and old.state is ConnectionState.DISABLED:
        is_renewable = old.kind in RENEWED_KINDS
        changes |= {"state": ConnectionState.ACTIVE, "refresh_time": now if is_renewable else None}
    new = _change(connection, db, old, **changes)
    append_audit(
        connection,
        workspace_id,
        now,
        actor,
        Action.CONNECTION_UPDATED,
        connection=old.name,
        connection_id=old.connection_id,
        user_id=old.user_id or None,
    )
    answer_request(connection, workspace_id, request, new)
    return new


# ------------------------------------------------------------------------------------------------------------- renewal


def _record_tokens(
    connection: sa.Connection, db: Database, workspace_id: str, connection_id: str, status: TokenStatus
) -> Connection | None:
    old = _find_connection(connection, _with_id(workspace_id, connection_id), for_update=True)
    if old is None:
        return None
    is_news = old.secret_path == status.secret_path and old.token_version < status.token_version
    if not is_news or old.state in _ENDED:
        return old
    new = _change(
        connection,
        db,
        old,
        state=ConnectionState.ACTIVE,
        state_reason="",
        token_version=status.token_version,
        fingerprint=status.fingerprint,
        scopes=status.scopes,
        expire_time=status.expire_time,
        grant_expire_time=status.grant_expire_time,
        refresh_time=status.refresh_time,
        failure_count=0,
    )
    _append_renewal(connection, db, new, Action.CONNECTION_ROTATED, token_version=str(new.token_version))
    _append_state(connection, db, old, new)
    return new


def _record_refresh_failure(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    connection_id: str,
    secret_path: str,
    token_version: int,
    values: dict[str, Any],
) -> Connection | None:
    old = _find_connection(connection, _with_id(workspace_id, connection_id), for_update=True)
    if old is None:
        return None
    is_late = old.secret_path != secret_path or old.token_version > token_version
    if is_late or old.state in _ENDED:
        return old
    state = ConnectionState(values["state"])
    new = _change(connection, db, old, **{**values, "state": state}, failure_count=old.failure_count + 1)
    # Not each try that fails: what it makes of the connection.
    _append_state(connection, db, old, new)
    return new


def _append_state(connection: sa.Connection, db: Database, old: Connection, new: Connection) -> None:
    if (new.state, new.state_reason) == (old.state, old.state_reason):
        return
    _append_renewal(
        connection,
        db,
        new,
        Action.CONNECTION_STATE_CHANGED,
        **{"from": old.state.value, "to": new.state.value, "reason": new.state_reason},
    )


def _append_renewal(connection: sa.Connection, db: Database, new: Connection, action: Action, **details: str) -> None:
    append_audit(
        connection,
        new.workspace_id,
        db.now(connection),
        _RENEWER,
        action,
        connection=new.name,
        connection_id=new.connection_id,
        fingerprint=new.fingerprint or None,
        user_id=new.user_id or None,
        details={name: value for name, value in details.items() if value},
    )


def _change(connection: sa.Connection, db: Database, old: Connection, **changes: Any) -> Connection:
    """Changes a row that this transaction has locked; a new state is an event."""
    now = db.now(connection)
    new = dataclasses.replace(old, **changes, version=old.version + 1, update_time=now)
    row = {**changes, "state": new.state.value, "version": new.version, "update_time": now}
    for field in _LISTS:
        if field in row:
            row[field] = " ".join(row[field])
    connection.execute(connections.update().where(_with_id(old.workspace_id, old.connection_id)).values(**row))
    if new.state is not old.state:
        _add_event(connection, now, new)
    return new


def _postpone_refresh(
    connection: sa.Connection, workspace_id: str, connection_id: str, refresh_time: datetime | None
) -> None:
    connection.execute(
        connections.update()
        .where(_with_id(workspace_id, connection_id), connections.c.state.not_in(_ENDED))
        .values(refresh_time=refresh_time)
    )


def _record_connection_uses(connection: sa.Connection, uses: Sequence[tuple[str, str, datetime]]) -> None:
    # In one order in every replica: two that note the same connections wait for each other and never in a circle.
    for workspace_id, connection_id, time in sorted(uses):
        connection.execute(
            connections.update()
            .where(
                _with_id(workspace_id, connection_id),
                sa.or_(connections.c.last_use_time.is_(None), connections.c.last_use_time < time),
            )
            .values(last_use_time=time)
        )


# -------------------------------------------------------------------------------------------------------------- events


def _add_event(connection: sa.Connection, now: datetime, of: Connection) -> None:
    connection.execute(
        connection_events.insert().values(
            workspace_id=of.workspace_id, connection_id=of.connection_id, state=of.state.value, create_time=now
        )
    )


def _events_after(connection: sa.Connection, event_id: int, limit: int) -> list[ConnectionEvent]:
    statement = (
        sa.select(connection_events)
        .where(connection_events.c.event_id > event_id)
        .order_by(connection_events.c.event_id)
        .limit(limit)
    )
    return [
        ConnectionEvent(row.event_id, row.workspace_id, row.connection_id, ConnectionState(row.state), row.create_time)
        for row in connection.execute(statement)
    ]


def _last_event_id(connection: sa.Connection) -> int:
    last: int | None = connection.execute(sa.select(sa.func.max(connection_events.c.event_id))).scalar_one()
    return last or 0


def _forget_events(connection: sa.Connection, db: Database, age: timedelta) -> int:
    # Order matters: SQLite gives the ids after the newest one, so the newest one has to stay.
    newest = _last_event_id(connection)
    return connection.execute(
        connection_events.delete().where(
            connection_events.c.create_time < db.now(connection) - age, connection_events.c.event_id < newest
        )
    ).rowcount
