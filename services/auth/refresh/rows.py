"""Keeps the rows of connections true to their tokens: what the secret store holds, and why it could not be renewed."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from holdfast.errors import FailedPrecondition, HoldfastError, Reason, Unavailable
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore, TokenStatus
from services.auth.oauth.refusals import ReauthReason
from services.auth.providers.schema import OAuthSpec
from services.auth.refresh.documents import StoredTokens
from services.auth.refresh.timing import next_refresh
from services.auth.secret_paths import connection_path
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

SECOND_LOOK = timedelta(minutes=10)
"""After a verdict, when the document is looked at once more: a winner may have died before it could say so."""

Listener = Callable[[Connection], None]
"""Is told the row of a connection whose tokens or state have changed."""

SpecOf = Callable[[Connection], OAuthSpec]
"""Returns how a connection's provider speaks OAuth."""

log = get_logger(__name__)


class ConnectionRows:
    """Writes what became of a connection's tokens.

    Args:
        store: Where the rows are.
        spec_of: The provider's data of a connection.
        clock: Where time comes from.
        rng: Jitter.
        on_change: Called after each change.
    """

    def __init__(
        self, store: ConnectionStore, spec_of: SpecOf, clock: Clock, rng: random.Random, *, on_change: Listener
    ) -> None:
        self._store = store
        self._spec_of = spec_of
        self._clock = clock
        self._rng = rng
        self._on_change = on_change

    async def publish(self, connection: Connection, stored: StoredTokens) -> None:
        """Makes the row describe the document. When it cannot be written now, the next reader does it."""
        tokens = stored.tokens
        path = connection_path(connection)
        assert path is not None  # it was read from there
        status = TokenStatus(
            secret_path=path,
            token_version=stored.version,
            fingerprint=stored.fingerprint,
            scopes=tokens.scopes,
            expire_time=tokens.expire_time,
            grant_expire_time=tokens.refresh_expire_time,
            refresh_time=next_refresh(tokens, self._spec_of(connection), self._rng),
        )
        try:
            row = await self._store.record_tokens(connection.workspace_id, connection.connection_id, status)
        except HoldfastError as error:
            log.warning("connection_row_lags", connection_id=connection.connection_id, reason=error.reason)
            return
        if row is not None:
            self._on_change(row)

    async def catch_up(self, connection: Connection, stored: StoredTokens) -> None:
        """Makes the row describe the document, if it does not yet."""
        if connection.token_version < stored.version:
            await self.publish(connection, stored)

    async def fail(
        self,
        connection: Connection,
        stored: StoredTokens,
        *,
        state: ConnectionState,
        state_reason: str,
        refresh_time: datetime | None,
    ) -> None:
        """Notes that the tokens could not be renewed; ignored when a later version is known."""
        path = connection_path(connection)
        assert path is not None  # it was read from there
        log.warning(
            "refresh_failed",
            connection_id=connection.connection_id,
            workspace_id=connection.workspace_id,
            provider=connection.provider,
            state=state.value,
            state_reason=state_reason,
            token_version=stored.version,
        )
        try:
            row = await self._store.record_refresh_failure(
                connection.workspace_id,
                connection.connection_id,
                secret_path=path,
                token_version=stored.version,
                state=state,
                state_reason=state_reason,
                refresh_time=refresh_time,
            )
        except HoldfastError as error:
            log.warning("connection_row_lags", connection_id=connection.connection_id, reason=error.reason)
            return
        if row is not None:
            self._on_change(row)

    async def needs_reauth(self, connection: Connection, stored: StoredTokens, reason: ReauthReason) -> None:
        """Notes a proof that only the user can help."""
        await self.fail(
            connection,
            stored,
            state=ConnectionState.NEEDS_REAUTH,
            state_reason=reason.value,
            refresh_time=self._clock.now() + SECOND_LOOK,
        )


def needs_reauth_error(connection: Connection, reason: str) -> FailedPrecondition:
    """Returns the error of a use of a connection that only its user can heal."""
    return FailedPrecondition(
        f"the connection {connection.name!r} has to be connected again",
        reason=Reason.CONNECTION_NEEDS_REAUTH,
        metadata={
            "connection": connection.name,
            "connection_id": connection.connection_id,
            "state_reason": reason,
        },
    )


def unavailable_error(connection: Connection, *, retry_delay_seconds: float) -> Unavailable:
    """Returns the error of a use of a connection whose token cannot be renewed at the moment."""
    return Unavailable(
        f"the token of the connection {connection.name!r} cannot be renewed at the moment",
        reason=Reason.CREDENTIAL_UNAVAILABLE,
        metadata={"connection": connection.name, "connection_id": connection.connection_id},
        retry_delay_seconds=max(1.0, round(retry_delay_seconds, 1)),
    )
