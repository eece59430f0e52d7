"""The record of every use of a credential: written in batches, and never more than a second behind."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from services.auth.store import AuthStore, CredentialUse
from services.shared.clock import Clock
from services.shared.lingering import LingeringWriter

LINGER_SECONDS: Final = 0.2
"""How long a record waits for others before they are written together."""

MAX_LAG_SECONDS: Final = 1.0
"""When the oldest unwritten record is older, further uses wait until it is written: a crash loses no more than that."""

_MAX_BATCH: Final = 500
_RETRY_SECONDS: Final = 0.5


class AuditTrail:
    """Takes the records of uses and writes them in the background."""

    def __init__(self, store: AuthStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._pending: list[tuple[float, CredentialUse]] = []
        self._turn = asyncio.Lock()
        self._writer = LingeringWriter(
            self.flush,
            self._pending,
            clock,
            linger_seconds=LINGER_SECONDS,
            retry_seconds=_RETRY_SECONDS,
            delayed="audit_delayed",
            lost="audit_lost",
        )

    async def admit(self) -> None:
        """Returns when one more use may be recorded; at once, unless the storage lags behind.

        Raises:
            Unavailable: The storage does not take the records: without a record there is no use.
            ResourceExhausted: It is full.
        """
        while self._pending and self._clock.monotonic() - self._pending[0][0] > MAX_LAG_SECONDS:
            await self.flush()

    def record(self, use: CredentialUse) -> None:
        """Takes a record; `admit` has returned just before."""
        self._pending.append((self._clock.monotonic(), use))
        self._writer.notice()

    async def flush(self) -> None:
        """Returns when every record that was taken before this call is stored.

        Raises:
            Unavailable: The storage is away; the records are kept.
            ResourceExhausted: It is full; the records are kept.
        """
        remaining = len(self._pending)
        while remaining > 0:
            async with self._turn:
                batch = self._pending[: min(_MAX_BATCH, remaining)]
                if not batch:
                    return
                await self._store.append_credential_uses([use for _, use in batch])
                del self._pending[: len(batch)]
            remaining -= len(batch)

    async def run(self) -> NoReturn:
        """Writes what arrives, until it is cancelled."""
        await self._writer.run()

    async def close(self) -> None:
        """Writes what is left, after the last use."""
        await self._writer.close()
