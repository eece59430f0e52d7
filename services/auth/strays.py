"""Secrets that are nobody's: announced before they are written, deleted when no row takes them or the last one lets go.

A secret and the row that refers to it are two writes, in two stores. The order that is safe: announce the path, write
the secret, let the row take it; and at the end: the row lets go, the provider is told, the secret is deleted. Whatever
dies in between leaves a stray that nobody can use and that is swept.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final, Protocol

from holdfast.errors import HoldfastError
from services.auth.connection_store import ConnectionStore, Stray
from services.auth.secrets import Secret, SecretStore
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

STRAY_AGE_SECONDS: Final = 600.0
"""How long an announced secret may wait for its row; far longer than any call lasts."""

TELLING_PROVIDERS: Final = timedelta(hours=24)
"""How long it is tried to tell a provider that a grant has ended; then the tokens are deleted all the same."""

_FIRST_RETRY_SECONDS: Final = 60.0
_LONGEST_RETRY_SECONDS: Final = 3600.0
_SWEEP_LIMIT: Final = 100
_AT_ONCE: Final = 8

log = get_logger(__name__)


class Revoker(Protocol):
    """Tells providers that grants have ended."""

    async def tell(self, stray: Stray) -> bool:
        """Tells the provider that the stray's tokens are not used any more.

        Returns:
            Whether nothing is left to be told; False means that it may work later.
        """


class StraySecrets:
    """Writes announced secrets, and deletes those that are nobody's.

    Args:
        store: Keeps the announcements.
        secrets: Keeps the secrets.
        revoker: Tells providers.
        clock: For the age of what could not be told.
    """

    def __init__(self, store: ConnectionStore, secrets: SecretStore, revoker: Revoker, clock: Clock) -> None:
        self._store = store
        self._secrets = secrets
        self._revoker = revoker
        self._clock = clock

    async def write(self, path: str, secret: Secret) -> None:
        """Announces and writes a new secret; a row has to take it, or `give_up` is called."""
        await self._store.announce_secret(path)
        crash_point("auth.after_announcement")
        await self._secrets.put(path, secret, expected_version=0)
        crash_point("auth.after_secret")

    async def give_up(self, path: str | None) -> None:
        """Deletes an announced secret, unless its row has it after all: the answer of a commit may be lost."""
        if path is None:
            return
        try:
            if await self._store.condemn_stray(path):
                await self.discard(Stray(path=path, create_time=self._clock.now()))
        except HoldfastError as error:
            log.info("secret_left_for_the_sweeper", reason=error.reason)

    async def discard(self, stray: Stray | None) -> None:
        """Tells the provider, then deletes the secret; what cannot be done now is left for the sweeper."""
        if stray is None:
            return
        crash_point("auth.after_row")
        try:
            await self._end(stray)
        except HoldfastError as error:
            log.warning("secret_left_for_the_sweeper", reason=error.reason)

    async def sweep(self) -> int:
        """Does what is due for all strays, and returns how many secrets were deleted; called now and then.

        Raises:
            HoldfastError: A store is away; the rest is done the next time.
        """
        deleted = 0
        while True:
            strays = await self._store.condemn_strays(older_than_seconds=STRAY_AGE_SECONDS, limit=_SWEEP_LIMIT)
            turn = asyncio.Semaphore(_AT_ONCE)

            async def end(stray: Stray, turn: asyncio.Semaphore = turn) -> bool:
                async with turn:
                    return await self._end(stray)

            outcomes = await asyncio.gather(*(end(stray) for stray in strays), return_exceptions=True)
            deleted += outcomes.count(True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            if len(strays) < _SWEEP_LIMIT:
                return deleted

    async def _end(self, stray: Stray) -> bool:
        if stray.integration_id is not None and not await self._revoker.tell(stray):
            if self._clock.now() - stray.create_time < TELLING_PROVIDERS:
                delay = min(_FIRST_RETRY_SECONDS * 2**stray.failure_count, _LONGEST_RETRY_SECONDS)
                await self._store.postpone_stray(stray.path, delay_seconds=delay)
                return False
            log.warning("provider_was_not_told", integration_id=stray.integration_id)
        crash_point("auth.before_deletion")
        await self._secrets.delete(stray.path)
        crash_point("auth.after_deletion")
        await self._store.forget_stray(stray.path)
        return True
