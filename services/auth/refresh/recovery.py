"""Finishes what a process left when it died between a provider's answer and the confirmed write of the tokens.

Idempotent by the write id: several replicas, and the process that is not dead after all, may do it at the same time.
"""

from __future__ import annotations

from typing import Final, NoReturn

from holdfast.errors import Conflict, HoldfastError, NotFound
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore
from services.auth.refresh.documents import Fingerprint, StoredTokens, TokenDocument
from services.auth.refresh.escrow import EscrowRow, Escrows
from services.auth.refresh.metrics import Outcome, RefreshMetrics
from services.auth.refresh.rows import ConnectionRows
from services.auth.secret_paths import connection_path
from services.auth.secrets import SecretDamagedError, SecretStore
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

RECOVERY_SECONDS: Final = 30.0

_BATCH: Final = 200

log = get_logger(__name__)


class Recovery:
    """Writes token documents from escrows.

    Args:
        store: Connections.
        secrets: Their tokens.
        escrows: None when there are none: the tokens lie in the database that would hold them.
        rows: Are brought up to date.
        fingerprint: Of access tokens.
        clock: Where time comes from.
        metrics: Are counted.
    """

    def __init__(
        self,
        store: ConnectionStore,
        secrets: SecretStore,
        escrows: Escrows | None,
        rows: ConnectionRows,
        fingerprint: Fingerprint,
        clock: Clock,
        metrics: RefreshMetrics,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._escrows = escrows
        self._rows = rows
        self._fingerprint = fingerprint
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> NoReturn:
        """Works until it is cancelled, beginning with what the last process left."""
        while True:
            await self.sweep()
            await self._clock.sleep(RECOVERY_SECONDS)

    async def sweep(self) -> None:
        """Finishes every escrow that can be finished now."""
        if self._escrows is None:
            return
        try:
            rows = await self._escrows.oldest(limit=_BATCH)
            self._metrics.escrows.set(len(rows))
            for row in rows:
                connection = await self._store.get_connection(row.workspace_id, row.connection_id)
                await self._finish_one(self._escrows, row, connection)
        except HoldfastError as error:
            log.info("recovery_delayed", reason=error.reason)

    async def finish(self, connection: Connection) -> bool:
        """Finishes the escrows of one connection; tells whether its document has become another.

        Raises:
            Unavailable: It cannot be told at the moment.
        """
        if self._escrows is None:
            return False
        # The newest first: of those that replace the same version one is written, the others are too late.
        written = [
            await self._finish_one(self._escrows, row, connection)
            for row in await self._escrows.of_connection(connection.connection_id)
        ]
        return any(written)

    async def _finish_one(self, escrows: Escrows, row: EscrowRow, connection: Connection | None) -> bool:
        try:
            escrow = await escrows.open(row)
        except NotFound:
            # The workspace was deleted with its keys: nobody can open it, nor needs to.
            await escrows.remove(row.connection_id, row.write_id)
            return False
        except SecretDamagedError as error:
            # Kept: it may come back with a restored backup.
            log.error("escrow_damaged", connection_id=row.connection_id, detail=str(error))
            return False
        path = None if connection is None else connection_path(connection)
        if connection is None or connection.state is ConnectionState.REVOKED or path != escrow.secret_path:
            # Revoked, or connected anew: the grant that these tokens are of is not used any more.
            await escrows.remove(row.connection_id, row.write_id)
            return False
        is_written = False
        if await self._secrets.version(path) == row.token_version:
            try:
                version = await self._secrets.put(path, escrow.document, expected_version=row.token_version)
                is_written = True
            except Conflict:
                version = 0
            if is_written:
                document = TokenDocument.from_secret(escrow.document, connection)
                stored = StoredTokens(document, version, self._fingerprint(document.tokens.access_token))
                self._metrics.ended(Outcome.RECOVERED)
                log.warning("tokens_recovered", connection_id=row.connection_id, token_version=version)
                await self._rows.publish(connection, stored)
        # Written by now, by us or by whoever was first; or a later version is there.
        await escrows.remove(row.connection_id, row.write_id)
        return is_written
