"""Stray secrets in SQL: what lies in the secret store and is nobody's, not yet or not any more."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from holdfast.errors import Reason, Unavailable
from services.auth.connection_store import RENEWED_KINDS, Connection, Stray
from services.auth.sql import insert_ignore
from services.auth.tables import stray_secrets
from services.shared.database import Database

_CLAIM: Final = timedelta(seconds=60)


def announce(connection: sa.Connection, db: Database, path: str) -> None:
    """Notes that a secret is about to be written."""
    connection.execute(stray_secrets.insert().values(path=path, is_condemned=False, create_time=db.now(connection)))


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


def abandon(connection: sa.Connection, path: str, now: datetime) -> Stray:
    """Condemns a secret that a row of this transaction has given up."""
    insert_ignore(connection, stray_secrets, path=path, is_condemned=True, create_time=now)
    return Stray(path=path, create_time=now)


def abandon_grant(connection: sa.Connection, of: Connection, now: datetime) -> Stray | None:
    """Condemns the secret of a connection that ends; of a grant the provider is told first. None when there is none."""
    if of.secret_path is None:
        return None
    if of.kind not in RENEWED_KINDS or of.integration_id is None:
        return abandon(connection, of.secret_path, now)
    told: dict[str, Any] = {"workspace_id": of.workspace_id, "integration_id": of.integration_id}
    insert_ignore(
        connection,
        stray_secrets,
        path=of.secret_path,
        is_condemned=True,
        create_time=now,
        # Whoever abandons it tells the provider at once; the sweeper takes over if that did not work.
        attempt_time=now + _CLAIM,
        **told,
    )
    return Stray(path=of.secret_path, create_time=now, **told)


def condemn_strays(connection: sa.Connection, db: Database, age: timedelta, limit: int) -> list[Stray]:
    """See `ConnectionStore.condemn_strays`."""
    now = db.now(connection)
    is_due = sa.or_(stray_secrets.c.is_condemned.is_(True), stray_secrets.c.create_time < now - age)
    statement = (
        sa.select(stray_secrets)
        .where(is_due, sa.or_(stray_secrets.c.attempt_time.is_(None), stray_secrets.c.attempt_time <= now))
        .order_by(stray_secrets.c.path)
        .limit(limit)
    )
    if connection.dialect.name == "postgresql":
        statement = statement.with_for_update(skip_locked=True)
    rows = connection.execute(statement).all()
    connection.execute(
        stray_secrets.update()
        .where(stray_secrets.c.path.in_([row.path for row in rows]))
        .values(is_condemned=True, attempt_time=now + _CLAIM)
    )
    return [_stray_from(row) for row in rows]


def condemn_stray(connection: sa.Connection, path: str) -> bool:
    """See `ConnectionStore.condemn_stray`."""
    condemned = connection.execute(stray_secrets.update().where(stray_secrets.c.path == path).values(is_condemned=True))
    return condemned.rowcount == 1


def postpone_stray(connection: sa.Connection, db: Database, path: str, delay: timedelta) -> None:
    """See `ConnectionStore.postpone_stray`."""
    connection.execute(
        stray_secrets.update()
        .where(stray_secrets.c.path == path)
        .values(attempt_time=db.now(connection) + delay, failure_count=stray_secrets.c.failure_count + 1)
    )


def forget_stray(connection: sa.Connection, path: str) -> None:
    """See `ConnectionStore.forget_stray`."""
    connection.execute(
        stray_secrets.delete().where(stray_secrets.c.path == path, stray_secrets.c.is_condemned.is_(True))
    )


def _stray_from(row: Any) -> Stray:
    return Stray(
        path=row.path,
        create_time=row.create_time,
        workspace_id=row.workspace_id,
        integration_id=row.integration_id,
        failure_count=row.failure_count,
    )
