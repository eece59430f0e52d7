"""Tokens between the provider's answer and the confirmed write: sealed rows in auth's own database.

Whoever reads the database sees ciphertext: the key is the workspace's data key, which only the secret store's
encryption service unwraps.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.auth.envelopes import DataKey, Envelopes
from services.auth.secrets import Opaque, Secret, SecretDamagedError
from services.auth.sql import insert_ignore
from services.auth.tables import escrows
from services.shared.clock import Clock
from services.shared.database import Database

KEY_SECONDS: Final = 3600.0
"""How long a data key is used and stays in memory."""

_NONCE_BYTES: Final = 12
_MAX_KEYS: Final = 1024


class EscrowKey(Opaque):
    """A key for escrows of one workspace, with its wrapped form."""

    __slots__ = ("cipher", "made_at", "wrapped")

    def __init__(self, data_key: DataKey, made_at: float) -> None:
        self.cipher = AESGCM(data_key.key.reveal())
        self.wrapped = data_key.wrapped
        self.made_at = made_at


@dataclass(frozen=True, slots=True, eq=False)
class Escrow:
    """Tokens that are to become the next version of a document."""

    connection_id: str
    workspace_id: str
    write_id: str
    token_version: int
    """The version that they replace."""
    secret_path: str
    document: Secret


@dataclass(frozen=True, slots=True)
class EscrowRow:
    """An escrow as it lies there."""

    connection_id: str
    workspace_id: str
    write_id: str
    token_version: int
    wrapped_key: str
    nonce: bytes
    ciphertext: bytes


class Escrows(Protocol):
    """Keeps, opens and removes escrows. Every method raises `Unavailable` while what it needs is away."""

    async def key(self, workspace_id: str) -> EscrowKey:
        """Returns a key for `keep`; asked for before anything is sent, as it may take a call.

        Raises:
            NotFound: The workspace's keys were destroyed.
        """

    async def keep(self, escrow: Escrow, key: EscrowKey) -> None:
        """Stores an escrow durably. May be repeated.

        Raises:
            ResourceExhausted: The storage is full.
        """

    async def remove(self, connection_id: str, write_id: str) -> None:
        """Removes an escrow. May be repeated."""

    async def of_connection(self, connection_id: str) -> list[EscrowRow]:
        """Returns the escrows of a connection, the newest first."""

    async def oldest(self, *, limit: int) -> list[EscrowRow]:
        """Returns escrows of all connections, the oldest first."""

    async def open(self, row: EscrowRow) -> Escrow:
        """Opens an escrow.

        Raises:
            NotFound: The workspace's keys were destroyed: it opens never again.
            SecretDamagedError: It does not open.
        """


class SqlEscrows:
    """`Escrows` in auth's database, under data keys of `Envelopes`."""

    def __init__(self, db: Database, envelopes: Envelopes, clock: Clock) -> None:
        self._db = db
        self._envelopes = envelopes
        self._clock = clock
        self._keys: OrderedDict[str, EscrowKey] = OrderedDict()

    async def key(self, workspace_id: str) -> EscrowKey:
        """See `Escrows.key`."""
        now = self._clock.monotonic()
        key = self._keys.get(workspace_id)
        if key is None or key.made_at + KEY_SECONDS <= now:
            key = EscrowKey(await self._envelopes.data_key(workspace_id), now)
            self._keys[workspace_id] = key
            self._keys.move_to_end(workspace_id)
            if len(self._keys) > _MAX_KEYS:
                self._keys.popitem(last=False)
        return key

    async def keep(self, escrow: Escrow, key: EscrowKey) -> None:
        """See `Escrows.keep`."""
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps({"secret_path": escrow.secret_path, "document": escrow.document.reveal()})
        place = _place(escrow.connection_id, escrow.write_id, escrow.token_version)
        sealed = key.cipher.encrypt(nonce, content.encode(), place)
        await self._db.write(_keep, self._db, escrow, key.wrapped, nonce, sealed)

    async def remove(self, connection_id: str, write_id: str) -> None:
        """See `Escrows.remove`."""
        await self._db.write(_remove, connection_id, write_id)

    async def of_connection(self, connection_id: str) -> list[EscrowRow]:
        """See `Escrows.of_connection`."""
        return await self._db.read_once(_select, connection_id, 100)

    async def oldest(self, *, limit: int) -> list[EscrowRow]:
        """See `Escrows.oldest`."""
        return await self._db.read_once(_select, None, limit)

    async def open(self, row: EscrowRow) -> Escrow:
        """See `Escrows.open`."""
        key = await self._envelopes.unwrap(row.workspace_id, row.wrapped_key)
        place = _place(row.connection_id, row.write_id, row.token_version)
        try:
            content = json.loads(AESGCM(key.reveal()).decrypt(row.nonce, row.ciphertext, place))
        except (InvalidTag, ValueError):
            raise SecretDamagedError("an escrow does not open") from None
        return Escrow(
            connection_id=row.connection_id,
            workspace_id=row.workspace_id,
            write_id=row.write_id,
            token_version=row.token_version,
            secret_path=content["secret_path"],
            document=Secret(content["document"]),
        )


def _place(connection_id: str, write_id: str, token_version: int) -> bytes:
    return f"escrow|{connection_id}|{write_id}|{token_version}".encode()


def _keep(connection: sa.Connection, db: Database, escrow: Escrow, wrapped: str, nonce: bytes, sealed: bytes) -> None:
    insert_ignore(
        connection,
        escrows,
        connection_id=escrow.connection_id,
        write_id=escrow.write_id,
        workspace_id=escrow.workspace_id,
        token_version=escrow.token_version,
        wrapped_key=wrapped,
        nonce=nonce,
        ciphertext=sealed,
        create_time=db.now(connection),
    )


def _remove(connection: sa.Connection, connection_id: str, write_id: str) -> None:
    connection.execute(escrows.delete().where(escrows.c.connection_id == connection_id, escrows.c.write_id == write_id))


def _select(connection: sa.Connection, connection_id: str | None, limit: int) -> list[EscrowRow]:
    statement = sa.select(escrows).limit(limit)
    if connection_id is None:
        statement = statement.order_by(escrows.c.create_time)
    else:
        statement = statement.where(escrows.c.connection_id == connection_id).order_by(
            escrows.c.token_version.desc(), escrows.c.create_time.desc()
        )
    return [
        EscrowRow(
            connection_id=row.connection_id,
            workspace_id=row.workspace_id,
            write_id=row.write_id,
            token_version=row.token_version,
            wrapped_key=row.wrapped_key,
            nonce=bytes(row.nonce),
            ciphertext=bytes(row.ciphertext),
        )
        for row in connection.execute(statement)
    ]
