"""Statements about workspaces, and about their end and that of their users.

Invariant: when a workspace's `close_time` is committed, all of its API keys are revoked, and no transaction that
commits later gives it a key, an integration, a connection or a connect session: each of them looks at the row when its
audit record has locked it, which closing waits for and makes wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from holdfast.errors import FailedPrecondition, NotFound, Reason
from services.auth.audit_sql import append_audit
from services.auth.sql import insert_ignore
from services.auth.store import Action, Workspace
from services.auth.tables import api_keys, connect_sessions, connection_events, connections, requests, workspaces
from services.shared.database import Database


def workspace_by(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Workspace | None:
    """Returns the workspace that meets a condition."""
    row = connection.execute(sa.select(workspaces).where(condition)).one_or_none()
    return None if row is None else _workspace_of(row)


def _workspace_of(row: Any) -> Workspace:
    return Workspace(
        workspace_id=row.workspace_id,
        name=row.name,
        create_time=row.create_time,
        close_time=row.close_time,
        delete_time=row.delete_time,
        seals_payloads=row.seals_payloads,
    )


def ensure_workspace(connection: sa.Connection, db: Database, name: str, workspace_id: str, actor: str) -> Workspace:
    """Returns the workspace of the name, and makes it when there is none."""
    now = db.now(connection)
    if insert_ignore(connection, workspaces, workspace_id=workspace_id, name=name, create_time=now):
        append_audit(connection, workspace_id, now, actor, Action.WORKSPACE_CREATED)
    found = workspace_by(connection, workspaces.c.name == name)
    assert found is not None
    return found


def require_open(connection: sa.Connection, workspace_id: str) -> None:
    """Returns when the workspace is open; called after `append_audit`, which has locked its row.

    Raises:
        FailedPrecondition: WORKSPACE_CLOSED: nothing may be kept of the transaction.
    """
    found = sa.select(workspaces.c.close_time).where(workspaces.c.workspace_id == workspace_id)
    if connection.execute(found).scalar() is not None:
        raise FailedPrecondition("the workspace is closed", reason=Reason.WORKSPACE_CLOSED)


def sealing_of(connection: sa.Connection, workspace_ids: Sequence[str]) -> dict[str, bool | None]:
    """Returns the choices of those workspaces that exist."""
    w = workspaces.c
    found = sa.select(w.workspace_id, w.seals_payloads).where(w.workspace_id.in_(workspace_ids))
    return {row.workspace_id: row.seals_payloads for row in connection.execute(found)}


def set_sealing(
    connection: sa.Connection, db: Database, workspace_id: str, seals_payloads: bool | None, actor: str
) -> Workspace:
    """Stores a workspace's choice about sealing."""
    is_it = workspaces.c.workspace_id == workspace_id
    row = connection.execute(sa.select(workspaces).where(is_it).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
    if row.seals_payloads is not seals_payloads:
        connection.execute(workspaces.update().where(is_it).values(seals_payloads=seals_payloads))
        said = {None: "default", True: "on", False: "off"}[seals_payloads]
        append_audit(
            connection, workspace_id, db.now(connection), actor, Action.PAYLOAD_SEALING_SET, details={"sealing": said}
        )
    require_open(connection, workspace_id)
    found = workspace_by(connection, is_it)
    assert found is not None
    return found


def close_workspace(connection: sa.Connection, db: Database, name: str, actor: str) -> Workspace | None:
    """Closes the workspace of the name and revokes its API keys; None when there is none."""
    row = connection.execute(sa.select(workspaces).where(workspaces.c.name == name).with_for_update()).one_or_none()
    if row is None or row.close_time is not None:
        return None if row is None else _workspace_of(row)
    now = db.now(connection)
    is_it = workspaces.c.workspace_id == row.workspace_id
    connection.execute(workspaces.update().where(is_it).values(close_time=now))
    connection.execute(
        api_keys.update()
        .where(api_keys.c.workspace_id == row.workspace_id, api_keys.c.revoke_time.is_(None))
        .values(revoke_time=now)
    )
    append_audit(connection, row.workspace_id, now, actor, Action.WORKSPACE_CLOSED)
    return workspace_by(connection, is_it)


def forget_user(
    connection: sa.Connection, db: Database, workspace_id: str, user_id: str, revoked: str, actor: str
) -> int:
    """Deletes the rows of a user's revoked connections and of the user's sign-ins; returns how many connections."""
    c, s = connections.c, connect_sessions.c
    of_user = sa.and_(c.workspace_id == workspace_id, c.user_id == user_id)
    count = connection.execute(connections.delete().where(of_user, c.state == revoked)).rowcount
    sessions = connection.execute(
        connect_sessions.delete().where(s.workspace_id == workspace_id, s.user_id == user_id)
    ).rowcount
    if count or sessions:
        append_audit(connection, workspace_id, db.now(connection), actor, Action.USER_ERASED, user_id=user_id)
    return count


def forget_workspace(connection: sa.Connection, db: Database, workspace_id: str, actor: str) -> Workspace:
    """Deletes the rows of a closed workspace whose credentials and key are gone; its audit records stay."""
    is_it = workspaces.c.workspace_id == workspace_id
    row = connection.execute(sa.select(workspaces).where(is_it).with_for_update()).one()
    if row.delete_time is None:
        now = db.now(connection)
        for table in (connect_sessions, connections, connection_events, requests):
            connection.execute(table.delete().where(table.c.workspace_id == workspace_id))
        connection.execute(workspaces.update().where(is_it).values(delete_time=now))
        append_audit(connection, workspace_id, now, actor, Action.WORKSPACE_DELETED)
    found = workspace_by(connection, is_it)
    assert found is not None
    return found
