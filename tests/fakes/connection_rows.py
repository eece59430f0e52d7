"""Rows of connections in memory: the part of `ConnectionStore` that refreshes use, by the same contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from services.auth.connection_store import Connection, ConnectionState, TokenStatus
from services.shared.clock import Clock

_ENDED = (ConnectionState.REVOKED, ConnectionState.DISABLED)


class MemoryConnectionRows:
    """Keeps rows in a dictionary."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.rows: dict[str, Connection] = {}

    async def get_connection(self, workspace_id: str, connection_id: str) -> Connection | None:
        """See `ConnectionStore.get_connection`."""
        return self.rows.get(connection_id)

    async def record_tokens(self, workspace_id: str, connection_id: str, status: TokenStatus) -> Connection | None:
        """See `ConnectionStore.record_tokens`."""
        old = self.rows.get(connection_id)
        if old is None:
            return None
        is_news = old.secret_path == status.secret_path and old.token_version < status.token_version
        if not is_news or old.state in _ENDED:
            return old
        return self._put(
            replace(
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
        )

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
        old = self.rows.get(connection_id)
        if old is None or old.secret_path != secret_path or old.token_version > token_version or old.state in _ENDED:
            return old
        return self._put(
            replace(
                old,
                state=state,
                state_reason=state_reason,
                refresh_time=refresh_time,
                failure_count=old.failure_count + 1,
            )
        )

    async def connections_due(self, *, limit: int) -> list[Connection]:
        """See `ConnectionStore.connections_due`."""
        now = self._clock.now()
        due = [
            row
            for row in self.rows.values()
            if row.refresh_time is not None and row.refresh_time <= now and row.state not in _ENDED
        ]
        return sorted(due, key=lambda row: row.refresh_time or now)[:limit]

    async def postpone_refresh(self, workspace_id: str, connection_id: str, refresh_time: datetime | None) -> None:
        """See `ConnectionStore.postpone_refresh`."""
        self.rows[connection_id] = replace(self.rows[connection_id], refresh_time=refresh_time)

    def _put(self, row: Connection) -> Connection:
        self.rows[row.connection_id] = replace(row, version=row.version + 1, update_time=self._clock.now())
        return self.rows[row.connection_id]
