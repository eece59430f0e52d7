"""Keys and passwords of connections, remembered for seconds: many calls of many runs need the same one at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from holdfast.errors import Reason, Unavailable
from services.auth.connection_store import Connection
from services.auth.key_documents import KeyDocument, read_key_document
from services.auth.secrets import SecretStore
from services.shared.clock import Clock

CACHE_SECONDS: Final = 5.0
"""How long a key is kept after it was read. Which key a connection has is read anew for each use."""

_CACHE_ENTRIES: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    ends_at: float
    connection: Connection
    document: KeyDocument


class SecretCache:
    """Reads keys, one reader for each connection at a time."""

    def __init__(self, secrets: SecretStore, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._known: OrderedDict[str, _Entry] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, connection: Connection) -> KeyDocument:
        """Returns the key of a connection as its row stands.

        Raises:
            SecretDamagedError: The secret does not belong to this connection as it stands.
            Unavailable: The secret store is away, or the connection is changing right now.
        """
        remembered = self._remembered(connection)
        if remembered is not None:
            return remembered
        turn = self._turns.get(connection.connection_id)
        if turn is None:
            turn = self._turns[connection.connection_id] = asyncio.Lock()
        async with turn:
            remembered = self._remembered(connection)
            if remembered is not None:
                return remembered
            started = self._clock.monotonic()
            document = await read_key_document(self._secrets, connection)
            if document is None:
                # Replaced or revoked between the two reads: the row says something else by now.
                raise Unavailable(
                    "the connection is changing; try again", reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=1.0
                )
            self._known[connection.connection_id] = _Entry(started + CACHE_SECONDS, connection, document)
            self._known.move_to_end(connection.connection_id)
            if len(self._known) > _CACHE_ENTRIES:
                self._known.popitem(last=False)
            return document

    def _remembered(self, connection: Connection) -> KeyDocument | None:
        entry = self._known.get(connection.connection_id)
        if entry is None:
            return None
        # The whole row is compared: what was looked at when the key was read holds for that row alone.
        if entry.ends_at <= self._clock.monotonic() or not _is_same(entry.connection, connection):
            del self._known[connection.connection_id]
            return None
        return entry.document


def _is_same(one: Connection, other: Connection) -> bool:
    return (one.secret_path, one.version, one.base_url, one.provider, one.name, one.user_id, one.workspace_id) == (
        other.secret_path,
        other.version,
        other.base_url,
        other.provider,
        other.name,
        other.user_id,
        other.workspace_id,
    )
