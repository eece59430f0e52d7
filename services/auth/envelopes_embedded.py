"""The embedded keeper of envelope keys: a key per workspace, sealed under the master key in the database."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.errors import NotFound, Reason
from services.auth.envelopes import DATA_KEY_BYTES, DataKey, KeyBytes, check_sealable
from services.auth.keyring import WORKSPACE_KEYS_PURPOSE, Keyring, require_epoch
from services.auth.sealing import KEY_BYTES, Sealed
from services.auth.secrets import Secret, SecretDamagedError
from services.auth.sql import insert_ignore
from services.auth.tables import workspace_keys
from services.shared.database import Database

_FORMAT: Final = "hfe1"
_NONCE_BYTES: Final = 12


def is_embedded(text: str) -> bool:
    """Tells whether a wrapped key or a sealed text was made by this keeper."""
    return text.startswith(f"{_FORMAT}:")


class EmbeddedEnvelopes:
    """`Envelopes` for one machine. A copy of the database that was made before a key's deletion still has it.

    That is the difference to Vault: shredding reaches backups only as far as their master key is gone too.
    """

    def __init__(self, db: Database, keyring: Keyring) -> None:
        self._db = db
        self._epoch = keyring.epoch
        self._store_id = keyring.store_id
        self._sealer = keyring.sealer(WORKSPACE_KEYS_PURPOSE)
        self._system = AESGCM(keyring.system_key)

    async def data_key(self, workspace_id: str) -> DataKey:
        """See `Envelopes.data_key`."""
        found = await self._current(workspace_id)
        if found is None:
            await self._db.write(self._add, workspace_id, 1)
            found = await self._current(workspace_id)
            if found is None:
                raise _destroyed()
        version, key = found
        value = os.urandom(DATA_KEY_BYTES)
        return DataKey(KeyBytes(value), self._wrap(workspace_id, version, key, value))

    async def unwrap(self, workspace_id: str, wrapped: str) -> KeyBytes:
        """See `Envelopes.unwrap`."""
        version, body = _parsed(wrapped)
        key = await self._db.read(self._read, workspace_id, version)
        if key is None:
            raise _destroyed()
        value = _opened(AESGCM(key[1]), body, self._place(workspace_id, version))
        return KeyBytes(value)

    async def rewrap(self, workspace_id: str, wrapped: str) -> str:
        """See `Envelopes.rewrap`."""
        value = await self.unwrap(workspace_id, wrapped)
        found = await self._current(workspace_id)
        if found is None:
            raise _destroyed()
        return self._wrap(workspace_id, *found, value.reveal())

    async def rotate(self, workspace_id: str) -> None:
        """See `Envelopes.rotate`."""
        found = await self._current(workspace_id)
        # Two rotations at once make one new version, which is what both wanted.
        await self._db.write(self._add, workspace_id, 1 if found is None else found[0] + 1)

    async def destroy(self, workspace_id: str) -> None:
        """See `Envelopes.destroy`."""
        await self._db.write(_delete, workspace_id)

    async def seal(self, plaintext: Secret, *, context: str) -> str:
        """See `Envelopes.seal`."""
        nonce = os.urandom(_NONCE_BYTES)
        body = nonce + self._system.encrypt(nonce, check_sealable(plaintext), self._system_place(context))
        return _text(0, body)

    async def open(self, sealed: str, *, context: str) -> Secret:
        """See `Envelopes.open`."""
        version, body = _parsed(sealed)
        if version != 0:
            raise SecretDamagedError("the sealed text is of another kind")
        return Secret(_opened(self._system, body, self._system_place(context)).decode())

    async def _current(self, workspace_id: str) -> tuple[int, bytes] | None:
        return await self._db.read(self._read, workspace_id, None)

    def _wrap(self, workspace_id: str, version: int, key: bytes, value: bytes) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        return _text(version, nonce + AESGCM(key).encrypt(nonce, value, self._place(workspace_id, version)))

    def _place(self, workspace_id: str, version: int) -> bytes:
        return f"{self._store_id}|data-key|{workspace_id}|{version}".encode()

    def _system_place(self, context: str) -> bytes:
        return f"{self._store_id}|system|{context}".encode()

    def _read(self, connection: sa.Connection, workspace_id: str, version: int | None) -> tuple[int, bytes] | None:
        # A process whose master key was replaced says so, instead of calling every key damaged.
        require_epoch(connection, self._epoch, is_read=True)
        query = sa.select(workspace_keys).where(workspace_keys.c.workspace_id == workspace_id)
        if version is not None:
            query = query.where(workspace_keys.c.version == version)
        row = connection.execute(query.order_by(workspace_keys.c.version.desc()).limit(1)).one_or_none()
        if row is None:
            return None
        sealed = Sealed(bytes(row.nonce), bytes(row.ciphertext))
        return row.version, self._sealer.open(workspace_id, row.version, sealed)

    def _add(self, connection: sa.Connection, workspace_id: str, version: int) -> None:
        require_epoch(connection, self._epoch)
        sealed = self._sealer.seal(workspace_id, version, os.urandom(KEY_BYTES))
        insert_ignore(
            connection,
            workspace_keys,
            workspace_id=workspace_id,
            version=version,
            nonce=sealed.nonce,
            ciphertext=sealed.ciphertext,
            create_time=self._db.now(connection),
        )


def _delete(connection: sa.Connection, workspace_id: str) -> None:
    if connection.dialect.name == "sqlite":
        # Deleted rows are overwritten, not only unlinked.
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    connection.execute(workspace_keys.delete().where(workspace_keys.c.workspace_id == workspace_id))


def _destroyed() -> NotFound:
    return NotFound(
        "the key of this workspace was destroyed, and what it sealed with it", reason=Reason.CONTENT_REMOVED
    )


def _text(version: int, body: bytes) -> str:
    return f"{_FORMAT}:{version}:{base64.b64encode(body).decode()}"


def _parsed(text: str) -> tuple[int, bytes]:
    format_, _, rest = text.partition(":")
    version, _, body = rest.partition(":")
    if format_ != _FORMAT or not version.isascii() or not version.isdigit():
        raise SecretDamagedError("the sealed text is not one of this store")
    try:
        return int(version), base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise SecretDamagedError("the sealed text is not one of this store") from None


def _opened(cipher: AESGCM, body: bytes, place: bytes) -> bytes:
    try:
        return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], place)
    except (InvalidTag, ValueError):
        raise SecretDamagedError("the sealed text does not open") from None
