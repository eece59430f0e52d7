"""`IntegrationStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from holdfast.errors import Conflict
from services.auth import stray_sql
from services.auth.audit_sql import append_audit
from services.auth.connection_store import Connection, ConnectionState, CredentialKind
from services.auth.connection_store_sql import SELECT_CONNECTIONS, connection_from, revoke_row
from services.auth.integration_store import (
    Integration,
    IntegrationChange,
    IntegrationState,
    NewIntegration,
    integration_exists,
)
from services.auth.request_sql import answer_request, answer_to, claim_request, release_request
from services.auth.sql import in_bytes, insert_ignore
from services.auth.store import Action, Request
from services.auth.tables import connections, integrations, stray_secrets
from services.auth.workspace_sql import require_open
from services.shared.database import Database

_DELETED: Final = IntegrationState.DELETED.value
_WORKING: Final = (IntegrationState.ACTIVE.value, IntegrationState.MISCONFIGURED.value)


class SqlIntegrationStore:
    """`IntegrationStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create_integration(
        self, new: NewIntegration, *, actor: str, request: Request | None
    ) -> tuple[Integration, bool]:
        """See `IntegrationStore.create_integration`."""
        return await self._db.write(_create_integration, self._db, new, actor, request)

    async def find_answered_integration(self, workspace_id: str, request: Request) -> Integration | None:
        """See `IntegrationStore.find_answered_integration`."""
        stored = await self._db.read_once(answer_to, workspace_id, request)
        return None if stored is None else _integration_of(stored)

    async def get_integration(
        self, workspace_id: str, integration_id: str, *, even_deleted: bool = False
    ) -> Integration | None:
        """See `IntegrationStore.get_integration`."""
        found = await self._db.read_once(_find, workspace_id, integrations.c.integration_id == integration_id)
        return None if found is not None and found.state is IntegrationState.DELETED and not even_deleted else found

    async def find_integration(self, workspace_id: str, name: str) -> Integration | None:
        """See `IntegrationStore.find_integration`."""
        is_it = sa.and_(integrations.c.name == name, integrations.c.state != _DELETED)
        return await self._db.read_once(_find, workspace_id, is_it)

    async def list_integrations(self, workspace_id: str, *, limit: int, after: str | None) -> list[Integration]:
        """See `IntegrationStore.list_integrations`."""
        return await self._db.read_once(_list_integrations, workspace_id, limit, after)

    async def update_integration(
        self,
        workspace_id: str,
        integration_id: str,
        change: IntegrationChange,
        *,
        version: int | None,
        actor: str,
        request: Request | None,
    ) -> Integration | None:
        """See `IntegrationStore.update_integration`."""
        return await self._db.write(
            _update_integration, self._db, workspace_id, integration_id, change, version, actor, request
        )

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """See `IntegrationStore.record_client_failure`."""
        await self._db.write(
            _set_working, self._db, workspace_id, integration_id, IntegrationState.MISCONFIGURED, reason
        )

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """See `IntegrationStore.record_client_success`."""
        await self._db.write(_set_working, self._db, workspace_id, integration_id, IntegrationState.ACTIVE, "")

    async def revoke_connections_of(
        self, workspace_id: str, integration_id: str, *, limit: int, actor: str
    ) -> list[Connection]:
        """See `IntegrationStore.revoke_connections_of`."""
        return await self._db.write(_revoke_connections_of, self._db, workspace_id, integration_id, limit, actor)

    async def delete_integration(
        self, workspace_id: str, integration_id: str, *, actor: str, request: Request | None, revoked_connections: int
    ) -> int | None:
        """See `IntegrationStore.delete_integration`."""
        return await self._db.write(
            _delete_integration, self._db, workspace_id, integration_id, actor, request, revoked_connections
        )

    async def find_answered_deletion(self, workspace_id: str, request: Request) -> int | None:
        """See `IntegrationStore.find_answered_deletion`."""
        stored = await self._db.read_once(answer_to, workspace_id, request)
        return None if stored is None else _Deletion(**json.loads(stored)).revoked_connections

    async def purge_deleted_integrations(self, *, limit: int) -> list[str]:
        """See `IntegrationStore.purge_deleted_integrations`."""
        return await self._db.write(_purge, self._db, limit)


@dataclasses.dataclass(frozen=True, slots=True)
class _Deletion:
    """The stored answer to a deletion."""

    revoked_connections: int


# ---------------------------------------------------------------------------------------------------------------- rows


def _integration_from(row: Any) -> Integration:
    return Integration(
        workspace_id=row.workspace_id,
        integration_id=row.integration_id,
        name=row.name,
        provider=row.provider,
        kind=CredentialKind(row.kind),
        client_id=row.client_id,
        variables=json.loads(row.variables),
        scopes=tuple(row.scopes.split()),
        agents=tuple(row.agents.split()),
        server_url=row.server_url,
        discovered=json.loads(row.discovered),
        state=IntegrationState(row.state),
        state_reason=row.state_reason,
        secret_path=row.secret_path,
        client_secret_count=row.client_secret_count,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _integration_of(stored: str) -> Integration:
    # During an upgrade an answer may be one of the release after this one, with more fields.
    known = Integration.__dataclass_fields__
    fields: dict[str, Any] = {name: value for name, value in json.loads(stored).items() if name in known}
    return Integration(
        **{
            **fields,
            "kind": CredentialKind(fields["kind"]),
            "state": IntegrationState(fields["state"]),
            **{name: tuple(fields[name]) for name in ("scopes", "agents")},
            **{name: datetime.fromisoformat(fields[name]) for name in ("create_time", "update_time")},
        }
    )


def _find(
    connection: sa.Connection, workspace_id: str, is_it: sa.ColumnElement[bool], *, for_update: bool = False
) -> Integration | None:
    statement = sa.select(integrations).where(integrations.c.workspace_id == workspace_id, is_it)
    if for_update:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    return None if row is None else _integration_from(row)


def _locked(connection: sa.Connection, workspace_id: str, integration_id: str) -> Integration | None:
    is_it = sa.and_(integrations.c.integration_id == integration_id, integrations.c.state != _DELETED)
    return _find(connection, workspace_id, is_it, for_update=True)


def _list_integrations(
    connection: sa.Connection, workspace_id: str, limit: int, after: str | None
) -> list[Integration]:
    name = in_bytes(connection, integrations.c.name)
    statement = sa.select(integrations).where(
        integrations.c.workspace_id == workspace_id, integrations.c.state != _DELETED
    )
    if after is not None:
        statement = statement.where(name > after)
    return [_integration_from(row) for row in connection.execute(statement.order_by(name).limit(limit))]


# ------------------------------------------------------------------------------------------------------------- changes


def _create_integration(
    connection: sa.Connection, db: Database, new: NewIntegration, actor: str, request: Request | None
) -> tuple[Integration, bool]:
    now = db.now(connection)
    stored = claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        return _integration_of(stored), False
    made = Integration(
        **{field.name: getattr(new, field.name) for field in dataclasses.fields(new)},
        state=IntegrationState.ACTIVE,
        create_time=now,
        update_time=now,
    )
    if not insert_ignore(connection, integrations, **_row_of(made)):
        raise integration_exists(new.name)
    if new.secret_path is not None:
        stray_sql.take_secret(connection, new.secret_path)
    _audit(connection, made, now, actor, Action.INTEGRATION_CREATED)
    require_open(connection, new.workspace_id)
    answer_request(connection, new.workspace_id, request, made)
    return made, True


def _row_of(integration: Integration) -> dict[str, Any]:
    row = {field.name: getattr(integration, field.name) for field in dataclasses.fields(integration)}
    for name in ("variables", "discovered"):
        row[name] = json.dumps(row[name], sort_keys=True)
    for name in ("scopes", "agents"):
        row[name] = " ".join(row[name])
    for name in ("kind", "state"):
        row[name] = row[name].value
    return row


def _update_integration(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    integration_id: str,
    change: IntegrationChange,
    version: int | None,
    actor: str,
    request: Request | None,
) -> Integration | None:
    now = db.now(connection)
    stored = claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return _integration_of(stored)
    old = _locked(connection, workspace_id, integration_id)
    if old is None:
        release_request(connection, workspace_id, request)
        return None
    if version is not None and version != old.version:
        raise Conflict("the integration has changed since; read it again", metadata={"integration": old.name})
    changes = {
        field.name: getattr(change, field.name)
        for field in dataclasses.fields(change)
        if field.name != "is_disabled" and getattr(change, field.name) is not None
    }
    state, reason = old.state, old.state_reason
    if change.is_disabled is True:
        state, reason = IntegrationState.DISABLED, ""
    elif change.is_disabled is False and state is IntegrationState.DISABLED:
        state, reason = IntegrationState.ACTIVE, ""
    elif change.is_of_client and state is IntegrationState.MISCONFIGURED:
        state, reason = IntegrationState.ACTIVE, ""
    new = dataclasses.replace(
        old, **changes, state=state, state_reason=reason, version=old.version + 1, update_time=now
    )
    _store(connection, new)
    _audit(connection, new, now, actor, Action.INTEGRATION_UPDATED)
    answer_request(connection, workspace_id, request, new)
    return new


def _set_working(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    integration_id: str,
    state: IntegrationState,
    reason: str,
) -> None:
    # One statement that most often changes nothing: every refresh says whether the client was accepted.
    connection.execute(
        integrations.update()
        .where(
            integrations.c.workspace_id == workspace_id,
            integrations.c.integration_id == integration_id,
            integrations.c.state.in_(_WORKING),
            sa.or_(integrations.c.state != state.value, integrations.c.state_reason != reason),
        )
        .values(
            state=state.value, state_reason=reason, version=integrations.c.version + 1, update_time=db.now(connection)
        )
    )


def _store(connection: sa.Connection, integration: Integration) -> None:
    connection.execute(
        integrations.update()
        .where(
            integrations.c.workspace_id == integration.workspace_id,
            integrations.c.integration_id == integration.integration_id,
        )
        .values(**_row_of(integration))
    )


def _audit(connection: sa.Connection, of: Integration, now: datetime, actor: str, action: Action) -> None:
    details = {"integration": of.name, "integration_id": of.integration_id, "provider": of.provider}
    append_audit(connection, of.workspace_id, now, actor, action, details=details)


# ------------------------------------------------------------------------------------------------------------- the end


def _revoke_connections_of(
    connection: sa.Connection, db: Database, workspace_id: str, integration_id: str, limit: int, actor: str
) -> list[Connection]:
    now = db.now(connection)
    statement = (
        SELECT_CONNECTIONS.where(*_live_connections_of(workspace_id, integration_id))
        .order_by(connections.c.connection_id)
        .limit(limit)
        .with_for_update(of=connections)
    )
    found = [connection_from(row) for row in connection.execute(statement)]
    for old in found:
        revoke_row(connection, old, now, actor)
    return found


def _live_connections_of(workspace_id: str, integration_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        connections.c.workspace_id == workspace_id,
        connections.c.integration_id == integration_id,
        connections.c.state != ConnectionState.REVOKED.value,
    )


def _delete_integration(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    integration_id: str,
    actor: str,
    request: Request | None,
    revoked_connections: int,
) -> int | None:
    now = db.now(connection)
    stored = claim_request(connection, workspace_id, request, now)
    if stored is not None:
        return _Deletion(**json.loads(stored)).revoked_connections
    old = _locked(connection, workspace_id, integration_id)
    if old is None:
        release_request(connection, workspace_id, request)
        return None
    live = sa.select(connections.c.connection_id).where(*_live_connections_of(workspace_id, integration_id)).limit(1)
    if old.state is not IntegrationState.DISABLED or connection.execute(live).first() is not None:
        raise Conflict("the integration was used meanwhile; try again", metadata={"integration": old.name})
    _audit(connection, old, now, actor, Action.INTEGRATION_DELETED)
    # Such a name leaves the old one to others, and nobody can give it to an integration.
    gone = dataclasses.replace(
        old, name=f"deleted/{old.integration_id}", state=IntegrationState.DELETED, version=old.version + 1
    )
    _store(connection, dataclasses.replace(gone, update_time=now))
    answer_request(connection, workspace_id, request, _Deletion(revoked_connections))
    return revoked_connections


def _purge(connection: sa.Connection, db: Database, limit: int) -> list[str]:
    is_told_about = sa.exists().where(
        stray_secrets.c.workspace_id == integrations.c.workspace_id,
        stray_secrets.c.integration_id == integrations.c.integration_id,
    )
    statement = sa.select(integrations).where(integrations.c.state == _DELETED, sa.not_(is_told_about)).limit(limit)
    if connection.dialect.name == "postgresql":
        statement = statement.with_for_update(skip_locked=True, of=integrations)
    now = db.now(connection)
    paths = []
    for row in connection.execute(statement).all():
        if row.secret_path is not None:
            stray_sql.abandon(connection, row.secret_path, now)
            paths.append(row.secret_path)
        connection.execute(
            integrations.delete().where(
                integrations.c.workspace_id == row.workspace_id, integrations.c.integration_id == row.integration_id
            )
        )
    return paths
