"""`ConnectStore` in SQL, on PostgreSQL and on SQLite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from services.auth import stray_sql
from services.auth.audit_sql import append_audit
from services.auth.connect.store import (
    OPEN_STATES,
    AccountDiffersError,
    Authorization,
    ConnectMode,
    ConnectSession,
    NewSession,
    SessionState,
)
from services.auth.connection_store import ConnectionState, NewConnection, SavedConnection, connection_exists
from services.auth.connection_store_sql import save_connection
from services.auth.request_sql import answer_request, claim_request
from services.auth.store import Action, Request
from services.auth.tables import connect_sessions, connections, integrations, workspaces
from services.auth.workspace_sql import require_open
from services.shared.database import Database

_OPEN: Final = tuple(state.value for state in OPEN_STATES)
_SELECT: Final = (
    sa.select(
        connect_sessions,
        workspaces.c.name.label("workspace"),
        sa.func.coalesce(integrations.c.name, "").label("integration"),
    )
    .join(workspaces, workspaces.c.workspace_id == connect_sessions.c.workspace_id)
    .outerjoin(
        integrations,
        sa.and_(
            integrations.c.workspace_id == connect_sessions.c.workspace_id,
            integrations.c.integration_id == connect_sessions.c.integration_id,
        ),
    )
)


class SqlConnectStore:
    """`ConnectStore` over a `Database`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create_session(self, new: NewSession, *, request: Request | None) -> ConnectSession:
        """See `ConnectStore.create_session`."""
        return await self._db.write(_create, self._db, new, request)

    async def get_session(self, workspace_id: str, session_id: str) -> ConnectSession | None:
        """See `ConnectStore.get_session`."""
        is_it = sa.and_(connect_sessions.c.workspace_id == workspace_id, connect_sessions.c.session_id == session_id)
        return await self._db.read_once(_find, is_it)

    async def find_session(self, session_id: str) -> ConnectSession | None:
        """See `ConnectStore.find_session`."""
        return await self._db.read_once(_find, connect_sessions.c.session_id == session_id)

    async def find_session_by_state(self, state_hash: bytes) -> ConnectSession | None:
        """See `ConnectStore.find_session_by_state`."""
        return await self._db.read_once(_find, connect_sessions.c.state_hash == state_hash)

    async def begin_authorizing(
        self, session_id: str, authorization: Authorization, *, seconds: float
    ) -> ConnectSession | None:
        """See `ConnectStore.begin_authorizing`."""
        return await self._db.write(_begin_authorizing, self._db, session_id, authorization, timedelta(seconds=seconds))

    async def consume_state(
        self,
        session_id: str,
        state_hash: bytes,
        *,
        confirm_hash: bytes,
        secret_path: str,
        variables: Mapping[str, str],
        seconds: float,
    ) -> ConnectSession | None:
        """See `ConnectStore.consume_state`."""
        values = {
            "confirm_hash": confirm_hash,
            "secret_path": secret_path,
            "variables": json.dumps(dict(variables)),
        }
        return await self._db.write(
            _consume_state, self._db, session_id, state_hash, values, timedelta(seconds=seconds)
        )

    async def ask_again(self, session_id: str, authorization: Authorization, *, seconds: float) -> bool:
        """See `ConnectStore.ask_again`."""
        return await self._db.write(_ask_again, self._db, session_id, authorization, timedelta(seconds=seconds))

    async def grant(
        self, session_id: str, *, account_id: str, account_label: str, seconds: float
    ) -> ConnectSession | None:
        """See `ConnectStore.grant`."""
        values = {"account_id": account_id, "account_label": account_label}
        return await self._db.write(_grant, self._db, session_id, values, timedelta(seconds=seconds))

    async def end_session(self, session_id: str, state: SessionState, reason: str) -> ConnectSession | None:
        """See `ConnectStore.end_session`."""
        return await self._db.write(_end, self._db, session_id, state, reason)

    async def end_expired(self, *, limit: int) -> int:
        """See `ConnectStore.end_expired`."""
        return await self._db.write(_end_expired, self._db, limit)

    async def count_attempt(self, session_id: str) -> int:
        """See `ConnectStore.count_attempt`."""
        return await self._db.write(_count_attempt, session_id)

    async def forgive_attempts(self, session_id: str) -> None:
        """See `ConnectStore.forgive_attempts`."""
        await self._db.write(_forgive_attempts, session_id)

    async def connect(
        self, session: ConnectSession, new: NewConnection, *, actor: str
    ) -> tuple[ConnectSession, SavedConnection] | None:
        """See `ConnectStore.connect`."""
        return await self._db.write(_connect, self._db, session, new, actor)

    async def claim_due(self, *, seconds: float, limit: int) -> list[ConnectSession]:
        """See `ConnectStore.claim_due`."""
        return await self._db.write(_claim_due, self._db, timedelta(seconds=seconds), limit)

    async def set_poll(self, session_id: str, *, in_seconds: float, interval_seconds: int | None = None) -> None:
        """See `ConnectStore.set_poll`."""
        await self._db.write(_set_poll, self._db, session_id, timedelta(seconds=in_seconds), interval_seconds)

    async def forget_tokens(self, session_id: str) -> None:
        """See `ConnectStore.forget_tokens`."""
        await self._db.write(_forget_tokens, session_id)

    async def is_grant_shared(self, session: ConnectSession) -> bool:
        """See `ConnectStore.is_grant_shared`."""
        return await self._db.read_once(_is_grant_shared, session)

    async def forget_sessions(self, *, older_than_seconds: float) -> int:
        """See `ConnectStore.forget_sessions`."""
        return await self._db.write(_forget, self._db, timedelta(seconds=older_than_seconds))


# ------------------------------------------------------------------------------------------------------------- reading


def _session_from(row: Any) -> ConnectSession:
    values = dict(row._mapping)
    for name in ("state_hash", "browser_hash", "confirm_hash"):
        values[name] = None if values[name] is None else bytes(values[name])
    values["scopes"] = tuple(values["scopes"].split())
    values["variables"] = json.loads(values["variables"])
    values["state"] = SessionState(values["state"])
    values["mode"] = ConnectMode(values["mode"])
    return ConnectSession(**values)


def _find(connection: sa.Connection, is_it: sa.ColumnElement[bool]) -> ConnectSession | None:
    row = connection.execute(_SELECT.where(is_it)).one_or_none()
    return None if row is None else _session_from(row)


def _get(connection: sa.Connection, session_id: str) -> ConnectSession | None:
    return _find(connection, connect_sessions.c.session_id == session_id)


def _change(connection: sa.Connection, session_id: str, *conditions: sa.ColumnElement[bool], **values: Any) -> bool:
    statement = connect_sessions.update().where(connect_sessions.c.session_id == session_id, *conditions)
    return connection.execute(statement.values(**values)).rowcount == 1


# ------------------------------------------------------------------------------------------------------------ creation


@dataclasses.dataclass(frozen=True, slots=True)
class _Created:
    session_id: str


def _create(connection: sa.Connection, db: Database, new: NewSession, request: Request | None) -> ConnectSession:
    now = db.now(connection)
    stored = claim_request(connection, new.workspace_id, request, now)
    if stored is not None:
        found = _get(connection, json.loads(stored)["session_id"])
        if found is not None:
            return found
    expire_time = now + timedelta(seconds=new.lifetime_seconds)
    if new.run_id and (open_one := _open_for_run(connection, new)) is not None:
        if open_one.expire_time < expire_time and open_one.state is SessionState.PENDING:
            _change(connection, open_one.session_id, expire_time=expire_time)
        found = _get(connection, open_one.session_id)
        assert found is not None
        answer_request(connection, new.workspace_id, request, _Created(found.session_id))
        return found
    is_device = new.mode is ConnectMode.DEVICE
    values = dataclasses.asdict(new)
    del values["lifetime_seconds"]
    values |= {
        "mode": new.mode.value,
        "scopes": " ".join(new.scopes),
        "variables": json.dumps(dict(new.variables)),
        "state": (SessionState.AUTHORIZING if is_device else SessionState.PENDING).value,
        "failure_reason": "",
        "confirm_failures": 0,
        "expected_issuer": "",
        "account_id": "",
        "account_label": "",
        "poll_time": now + timedelta(seconds=new.poll_interval_seconds) if is_device else None,
        "create_time": now,
        "update_time": now,
        "expire_time": expire_time,
    }
    connection.execute(connect_sessions.insert().values(**values))
    append_audit(
        connection,
        new.workspace_id,
        now,
        new.initiator,
        Action.CONNECT_STARTED,
        connection=new.connection,
        user_id=new.user_id or None,
        run_id=new.run_id or None,
        details={"session_id": new.session_id},
    )
    require_open(connection, new.workspace_id)
    answer_request(connection, new.workspace_id, request, _Created(new.session_id))
    found = _get(connection, new.session_id)
    assert found is not None
    return found


def _open_for_run(connection: sa.Connection, new: NewSession) -> ConnectSession | None:
    # One after the other: the integration's row is the lock, so that two requests of a run get one session.
    connection.execute(
        sa.select(integrations.c.version)
        .where(integrations.c.workspace_id == new.workspace_id, integrations.c.integration_id == new.integration_id)
        .with_for_update()
    )
    row = connection.execute(
        _SELECT.where(
            connect_sessions.c.workspace_id == new.workspace_id,
            connect_sessions.c.run_id == new.run_id,
            connect_sessions.c.integration_id == new.integration_id,
            connect_sessions.c.user_id == new.user_id,
            connect_sessions.c.connection == new.connection,
            connect_sessions.c.state.in_(_OPEN),
        )
        .order_by(connect_sessions.c.create_time)
        .limit(1)
    ).one_or_none()
    return None if row is None else _session_from(row)


# --------------------------------------------------------------------------------------------------------- transitions


def _begin_authorizing(
    connection: sa.Connection, db: Database, session_id: str, authorization: Authorization, life: timedelta
) -> ConnectSession | None:
    now = db.now(connection)
    found = _get(connection, session_id)
    if found is None:
        return None
    columns = connect_sessions.c
    is_repeated = sa.and_(
        columns.state == SessionState.AUTHORIZING.value,
        columns.state_hash.is_not(None),
        sa.or_(columns.browser_hash == authorization.browser_hash, columns.update_time <= now - life),
    )
    is_changed = _change(
        connection,
        session_id,
        columns.mode == ConnectMode.BROWSER.value,
        columns.expire_time > now,
        sa.or_(columns.state == SessionState.PENDING.value, is_repeated),
        **dataclasses.asdict(authorization),
        state=SessionState.AUTHORIZING.value,
        update_time=now,
        expire_time=max(found.expire_time, now + life),
    )
    return _get(connection, session_id) if is_changed else None


def _consume_state(
    connection: sa.Connection,
    db: Database,
    session_id: str,
    state_hash: bytes,
    values: dict[str, Any],
    life: timedelta,
) -> ConnectSession | None:
    now = db.now(connection)
    is_taken = _change(
        connection,
        session_id,
        connect_sessions.c.state == SessionState.AUTHORIZING.value,
        connect_sessions.c.state_hash == state_hash,
        connect_sessions.c.update_time > now - life,
        connect_sessions.c.expire_time > now,
        **values,
        state_hash=None,
        confirm_failures=0,
        update_time=now,
        # If this process dies now, another one looks after the tokens.
        poll_time=now + _RECOVERY,
    )
    return _get(connection, session_id) if is_taken else None


_RECOVERY: Final = timedelta(seconds=120)
"""Longer than the calls to the provider that follow the consumption of a `state`."""


def _ask_again(
    connection: sa.Connection, db: Database, session_id: str, authorization: Authorization, life: timedelta
) -> bool:
    now = db.now(connection)
    return _change(
        connection,
        session_id,
        connect_sessions.c.state == SessionState.AUTHORIZING.value,
        connect_sessions.c.state_hash.is_(None),
        connect_sessions.c.browser_hash == authorization.browser_hash,
        **dataclasses.asdict(authorization),
        secret_path=None,
        confirm_hash=None,
        poll_time=None,
        update_time=now,
        expire_time=now + life,
    )


def _grant(
    connection: sa.Connection, db: Database, session_id: str, values: dict[str, str], life: timedelta
) -> ConnectSession | None:
    now = db.now(connection)
    is_granted = _change(
        connection,
        session_id,
        connect_sessions.c.state == SessionState.AUTHORIZING.value,
        connect_sessions.c.state_hash.is_(None),
        connect_sessions.c.secret_path.is_not(None),
        **values,
        state=SessionState.CONFIRMING.value,
        sealed=None,
        poll_time=None,
        update_time=now,
        expire_time=now + life,
    )
    return _get(connection, session_id) if is_granted else None


def _end(
    connection: sa.Connection, db: Database, session_id: str, state: SessionState, reason: str
) -> ConnectSession | None:
    now = db.now(connection)
    is_ended = _change(
        connection,
        session_id,
        connect_sessions.c.state.in_(_OPEN),
        **_ended(now),
        state=state.value,
        failure_reason=reason,
    )
    if not is_ended:
        return None
    ended = _get(connection, session_id)
    assert ended is not None
    _append_end(connection, now, ended)
    return ended


def _append_end(connection: sa.Connection, now: datetime, ended: ConnectSession) -> None:
    details = {"session_id": ended.session_id, "reason": ended.failure_reason}
    append_audit(
        connection,
        ended.workspace_id,
        now,
        ended.initiator,
        Action.CONNECT_ENDED,
        outcome=ended.state.value,
        details={name: value for name, value in details.items() if value},
        connection=ended.connection,
        user_id=ended.user_id or None,
        run_id=ended.run_id or None,
    )


def _ended(now: datetime) -> dict[str, Any]:
    columns = connect_sessions.c
    return {
        "state_hash": None,
        "confirm_hash": None,
        "sealed": None,
        "update_time": now,
        # What was granted and not confirmed is given back by whoever claims it; but not while the provider may still be
        # about to answer: then nothing would be found, and what comes afterwards would be forgotten.
        "poll_time": sa.case(
            (columns.secret_path.is_(None), sa.null()),
            (columns.poll_time > now, columns.poll_time),
            else_=sa.literal(now, columns.poll_time.type),
        ),
    }


def _end_expired(connection: sa.Connection, db: Database, limit: int) -> int:
    now = db.now(connection)
    is_over = sa.and_(connect_sessions.c.expire_time <= now, connect_sessions.c.state.in_(_OPEN))
    due = sa.select(connect_sessions.c.session_id).where(is_over).order_by(connect_sessions.c.expire_time).limit(limit)
    if connection.dialect.name == "postgresql":
        due = due.with_for_update(skip_locked=True)
    ids = list(connection.execute(due).scalars())
    for session_id in ids:
        if _change(connection, session_id, is_over, **_ended(now), state=SessionState.EXPIRED.value):
            ended = _get(connection, session_id)
            assert ended is not None
            _append_end(connection, now, ended)
    return len(ids)


def _count_attempt(connection: sa.Connection, session_id: str) -> int:
    statement = (
        connect_sessions.update()
        .where(connect_sessions.c.session_id == session_id, connect_sessions.c.state == SessionState.CONFIRMING.value)
        .values(confirm_failures=connect_sessions.c.confirm_failures + 1)
        .returning(connect_sessions.c.confirm_failures)
    )
    count: int | None = connection.execute(statement).scalar_one_or_none()
    return count or 0


def _forgive_attempts(connection: sa.Connection, session_id: str) -> None:
    _change(connection, session_id, confirm_failures=0)


def _connect(
    connection: sa.Connection, db: Database, session: ConnectSession, new: NewConnection, actor: str
) -> tuple[ConnectSession, SavedConnection] | None:
    now = db.now(connection)
    is_connected = _change(
        connection,
        session.session_id,
        connect_sessions.c.state == SessionState.CONFIRMING.value,
        connect_sessions.c.secret_path == new.secret_path,
        connect_sessions.c.expire_time > now,
        state=SessionState.CONNECTED.value,
        secret_path=None,
        confirm_hash=None,
        update_time=now,
    )
    if not is_connected:
        return None
    existing = connection.execute(
        sa.select(connections.c.integration_id, connections.c.account_id, connections.c.state)
        .where(
            connections.c.workspace_id == new.workspace_id,
            connections.c.user_id == new.user_id,
            connections.c.name == new.name,
        )
        .with_for_update()
    ).one_or_none()
    is_reconnect = existing is not None and existing.state != ConnectionState.REVOKED.value
    if existing is not None and is_reconnect:
        if existing.integration_id != new.integration_id:
            raise connection_exists(new.name)
        if existing.account_id and existing.account_id != new.account_id:
            raise AccountDiffersError
    assert new.secret_path is not None
    # Until now it was the session's; the connection takes it as an announced one, in this transaction.
    stray_sql.announce(connection, db, new.secret_path)
    saved = save_connection(connection, db, new, is_reconnect, actor, None)
    found = _get(connection, session.session_id)
    assert found is not None
    return found, saved


# ---------------------------------------------------------------------------------------------------------- background


def _claim_due(connection: sa.Connection, db: Database, lease: timedelta, limit: int) -> list[ConnectSession]:
    now = db.now(connection)
    due = (
        sa.select(connect_sessions.c.session_id)
        .where(connect_sessions.c.poll_time <= now)
        .order_by(connect_sessions.c.poll_time)
        .limit(limit)
    )
    if connection.dialect.name == "postgresql":
        due = due.with_for_update(skip_locked=True)
    claimed = []
    for session_id in list(connection.execute(due).scalars()):
        if _change(connection, session_id, connect_sessions.c.poll_time <= now, poll_time=now + lease):
            found = _get(connection, session_id)
            assert found is not None
            claimed.append(found)
    return claimed


def _set_poll(
    connection: sa.Connection, db: Database, session_id: str, wait: timedelta, interval_seconds: int | None
) -> None:
    values: dict[str, Any] = {"poll_time": db.now(connection) + wait}
    if interval_seconds is not None:
        values["poll_interval_seconds"] = interval_seconds
    _change(connection, session_id, **values)


def _forget_tokens(connection: sa.Connection, session_id: str) -> None:
    _change(connection, session_id, connect_sessions.c.state.not_in(_OPEN), secret_path=None, poll_time=None)


def _is_grant_shared(connection: sa.Connection, session: ConnectSession) -> bool:
    conditions = [
        connections.c.workspace_id == session.workspace_id,
        connections.c.integration_id == session.integration_id,
        connections.c.state != ConnectionState.REVOKED.value,
    ]
    if session.account_id:
        conditions.append(connections.c.account_id.in_(("", session.account_id)))
    return connection.execute(sa.select(connections.c.connection_id).where(*conditions).limit(1)).first() is not None


def _forget(connection: sa.Connection, db: Database, age: timedelta) -> int:
    return connection.execute(
        connect_sessions.delete().where(
            connect_sessions.c.update_time < db.now(connection) - age,
            connect_sessions.c.state.not_in(_OPEN),
            connect_sessions.c.secret_path.is_(None),
        )
    ).rowcount
