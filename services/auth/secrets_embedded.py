"""The embedded secret store: sealed rows in auth's own database. For one machine; what lies beside it is ciphertext."""

from __future__ import annotations

import sqlalchemy as sa

from holdfast.errors import Conflict
from services.auth.keyring import SECRETS_PURPOSE, Keyring, require_epoch, superseded
from services.auth.sealing import Sealed
from services.auth.secrets import Secret, StoredSecret, check_path, check_size
from services.auth.sql import insert_ignore
from services.auth.tables import secrets
from services.shared.database import Database
from services.shared.telemetry import get_logger

log = get_logger(__name__)


class EmbeddedSecretStore:
    """A `SecretStore` of rows that are sealed with AES-256-GCM under the master key.

    Each row is bound to its database, path and version: a row that was moved, swapped or given another version does
    not open.
    """

    def __init__(self, db: Database, keyring: Keyring) -> None:
        self._db = db
        self._epoch = keyring.epoch
        self._sealer = keyring.sealer(SECRETS_PURPOSE)

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """See `SecretStore.put`."""
        version = expected_version + 1
        sealed = self._sealer.seal(check_path(path), version, check_size(secret))
        await self._db.write(_put, self._db, path, version, self._epoch, sealed)
        return version

    async def get(self, path: str) -> StoredSecret | None:
        """See `SecretStore.get`."""
        row = await self._db.read(_get, check_path(path))
        if row is None:
            return None
        version, epoch, sealed = row
        if epoch != self._epoch:
            log.error("master_key_superseded", own_epoch=self._epoch, stored_epoch=epoch)
            raise superseded()
        return StoredSecret(Secret(self._sealer.open(path, version, sealed).decode()), version)

    async def delete(self, path: str) -> None:
        """See `SecretStore.delete`."""
        await self._db.write(_delete, check_path(path))

    async def version(self, path: str) -> int:
        """See `SecretStore.version`."""
        return await self._db.read(_version, check_path(path))


def _put(connection: sa.Connection, db: Database, path: str, version: int, epoch: int, sealed: Sealed) -> None:
    require_epoch(connection, epoch)
    values = {
        "version": version,
        "epoch": epoch,
        "nonce": sealed.nonce,
        "ciphertext": sealed.ciphertext,
        "update_time": db.now(connection),
    }
    if version == 1:
        is_written = insert_ignore(connection, secrets, path=path, **values)
    else:
        update = secrets.update().where(secrets.c.path == path, secrets.c.version == version - 1).values(**values)
        is_written = connection.execute(update).rowcount == 1
    if not is_written:
        raise Conflict("the secret has another version")


def _get(connection: sa.Connection, path: str) -> tuple[int, int, Sealed] | None:
    row = connection.execute(sa.select(secrets).where(secrets.c.path == path)).one_or_none()
    return None if row is None else (row.version, row.epoch, Sealed(bytes(row.nonce), bytes(row.ciphertext)))


def _version(connection: sa.Connection, path: str) -> int:
    return connection.execute(sa.select(secrets.c.version).where(secrets.c.path == path)).scalar_one_or_none() or 0


def _delete(connection: sa.Connection, path: str) -> None:
    if connection.dialect.name == "sqlite":
        # Deleted rows are overwritten, not only unlinked.
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    connection.execute(secrets.delete().where(secrets.c.path == path))
