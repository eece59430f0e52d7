"""`ConnectionStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from holdfast.errors import Reason, Unavailable
from services.auth.audit_sql import append_audit
from services.auth.connection_store import (
    SHARED,
    Connection,
    ConnectionEvent,
    ConnectionState,
    CredentialKind,
    NewConnection,
    SavedConnection,
    TokenStatus,
    connection_exists,
)
from services.auth.request_sql import answer_request, answer_to, claim_request, release_request
from services.auth.sql import insert_ignore
from services.auth.store import Action, Request
from services.auth.tables import connection_events, connections, integrations, stray_secrets
from services.shared.database import Database, now_sql

_ENDED: Final = (ConnectionState.REVOKED.value, ConnectionState.DISABLED.value)
_LISTS: Final = ("scopes", "missing_scopes", "agents")
_TIMES: Final = ("expire_time", "grant_expire_time", "refresh_time", "last_use_time", "create_time", "update_time")


_SELECT: Final = sa.select(
    connections,
    sa.select(integrations.c.name)
    .where(
        integrations.c.workspace_id == connections.c.workspace_id,
        integrations.c.integration_id == connections.c.integration_id,
    )
    .scalar_subquery()
    .label("integration"),
)


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
        user_id: str | None = None,
        integration_id: str | None = None,
        state: ConnectionState | None = None,
    ) -> list[Connection]:
        """See `ConnectionStore.list_connections`."""
        return await self._db.read_once(_list_connections, workspace_id, limit, after, user_id, integration_id, state)

    async def find_answered_connection(self, workspace_id: str, request: Request) -> Connection | None:
        """See `ConnectionStore.find_answered_connection`."""
        stored = await self._db.read_once(answer_to, workspace_id, request)
        return None if stored is None else _connection_of(stored)

    async def announce_secret(self, path: str) -> None:
        """See `ConnectionStore.announce_secret`."""
        await self._db.write(add_stray, self._db, path, is_condemned=False)

    async def save_connection(
        self, new: NewConnection, *, replace: bool, actor: str, request: Request | None
    ) -> SavedConnection:
        """See `ConnectionStore.save_connection`."""
        return await self._db.write(_save_connection, self._db, new, replace, actor, request)

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

    async def condemn_strays(self, *, older_than_seconds: float, limit: int) -> list[str]:
        """See `ConnectionStore.condemn_strays`."""
        return await self._db.write(_condemn_strays, self._db, timedelta(seconds=older_than_seconds), limit)

    async def condemn_stray(self, path: str) -> bool:
        """See `ConnectionStore.condemn_stray`."""
        return await self._db.write(_condemn_stray, path)

    async def forget_stray(self, path: str) -> None:
        """See `ConnectionStore.forget_stray`."""
        await self._db.write(_forget_stray, path)


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
        "state": ConnectionState.ACTIVE.value,
        "state_reason": "",
        "failure_count": 0,
    }


def _connection_of(stored: str) -> Connection:
    """Returns the connection of a stored answer; one of an earlier release has fewer fields."""
    fields: dict[str, Any] = json.loads(stored)
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
    statement = _SELECT.where(is_it)
    if for_update:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    return None if row is None else connection_from(row)


def _connections_for(connection: sa.Connection, workspace_id: str, user_id: str, name: str) -> list[Connection]:
    is_meant = sa.or_(
        connections.c.name == name,
        connections.c.integration_id.in_(
            sa.select(integrations.c.integration_id).where(
                integrations.c.workspace_id == workspace_id, integrations.c.name == name
            )
        ),
    )
    statement = _SELECT.where(
        connections.c.workspace_id == workspace_id,
        connections.c.user_id.in_({SHARED, user_id}),
        connections.c.state != ConnectionState.REVOKED.value,
        is_meant,
    ).order_by((connections.c.user_id == SHARED).asc(), _in_bytes(connection, connections.c.name))
    return [connection_from(row) for row in connection.execute(statement)]


def _list_connections(
    connection: sa.Connection,
    workspace_id: str,
    limit: int,
    after: tuple[str, str] | None,
    user_id: str | None,
    integration_id: str | None,
    state: ConnectionState | None,
) -> list[Connection]:
    order = [_in_bytes(connection, column) for column in (connections.c.name, connections.c.user_id)]
    statement = _SELECT.where(connections.c.workspace_id == workspace_id)
    if after is not None:
        statement = statement.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(part) for part in after)))
    if user_id is not None:
        statement = statement.where(connections.c.user_id == user_id)
    if integration_id is not None:
        statement = statement.where(connections.c.integration_id == integration_id)
    if state is not None:
        statement = statement.where(connections.c.state == state.value)
    return [connection_from(row) for row in connection.execute(statement.order_by(*order).limit(limit))]


def _in_bytes(connection: sa.Connection, column: sa.Column[str]) -> sa.ColumnElement[str]:
    # The bytes' order is the same on both databases, a locale's is not.
    return column.collate("C") if connection.dialect.name == "postgresql" else column


def _connections_due(connection: sa.Connection, db: Database, limit: int) -> list[Connection]:
    statement = (
        _SELECT.where(connections.c.refresh_time <= now_sql(db), connections.c.state.not_in(_ENDED))
        .order_by(connections.c.refresh_time)
        .limit(limit)
    )
    return [connection_from(row) for row in connection.execute(statement)]


# -------------------------------------------------------------------------------------------------------------- saving


def _save_connection(
    connection: sa.Connection, db: Database, new: NewConnection, replace: bool, actor: str, request: Request | None
) -> SavedConnection:
    now = db.now(connection)
    stored = claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return SavedConnection(_connection_of(stored), is_replay=True)
    key = {"workspace_id": new.workspace_id, "user_id": new.user_id, "name": new.name}
    created = {"connection_id": new.connection_id, "version": 1, "create_time": now}
    row = {**_values_of(new), "update_time": now}
    is_it = _named(**key)
    is_new = insert_ignore(connection, connections, **key, **row, **created)
    old = None
    if not is_new:
        old = _find_connection(connection, is_it, for_update=True)
        assert old is not None  # rows of connections are never deleted while their workspace is there
        if old.state is not ConnectionState.REVOKED and not replace:
            raise connection_exists(new.name)
        changed = {"version": old.version + 1} if replace else {**created, "last_use_time": None}
        connection.execute(connections.update().where(is_it).values(**row, **changed))
    if new.secret_path is not None:
        take_secret(connection, new.secret_path)
    abandoned = None if old is None else old.secret_path
    if abandoned is not None:
        add_stray(connection, db, abandoned, is_condemned=True)
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
    answer_request(connection, new.workspace_id, request, saved)
    return SavedConnection(saved, abandoned_path=abandoned)


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
    revoked = old
    if old.state is not ConnectionState.REVOKED:
        revoked = revoke_row(connection, db, old, now, actor)
    answer_request(connection, workspace_id, request, revoked)
    return SavedConnection(revoked, abandoned_path=old.secret_path)


def revoke_row(connection: sa.Connection, db: Database, old: Connection, now: datetime, actor: str) -> Connection:
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
    if old.secret_path is not None:
        add_stray(connection, db, old.secret_path, is_condemned=True)
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
    return revoked


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
    return _change(
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
    return _change(connection, db, old, **{**values, "state": state}, failure_count=old.failure_count + 1)


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


# ------------------------------------------------------------------------------------------------------- stray secrets


def add_stray(connection: sa.Connection, db: Database, path: str, *, is_condemned: bool) -> None:
    """Notes that nothing refers to the secret at `path`: not yet, or (condemned) not any more."""
    connection.execute(
        stray_secrets.insert().values(path=path, is_condemned=is_condemned, create_time=db.now(connection))
    )


def take_secret(connection: sa.Connection, path: str) -> None:
    """Makes an announced secret that of a row of this transaction.

    Raises:
        Unavailable: It was given up meanwhile.
    """
    # Invariant: a path is a row's or a stray, never both; whoever deletes secrets deletes strays only.
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
