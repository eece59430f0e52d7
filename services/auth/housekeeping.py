"""What is done now and then, in every replica: each part may run twice at once, or not at all for a while."""

from __future__ import annotations

from typing import Final, NoReturn

from holdfast.errors import HoldfastError
from services.auth.api_keys import ApiKeys
from services.auth.connection_store import ConnectionStore
from services.auth.credentials import Credentials
from services.auth.integrations import Integrations
from services.auth.refusals import RefusalCounter
from services.auth.store import AuthStore
from services.auth.strays import StraySecrets
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

REQUEST_MEMORY_SECONDS: Final = 24 * 3600.0
"""How long a repeated request is answered as the first one was."""

EVENT_MEMORY_SECONDS: Final = 24 * 3600.0
"""How long it is remembered which connections have changed, for those who follow."""

_USES_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 60.0

log = get_logger(__name__)


class Housekeeper:
    """Writes when keys were used, sweeps secrets that nobody refers to, forgets old events and answers."""

    def __init__(
        self,
        store: AuthStore,
        connection_store: ConnectionStore,
        api_keys: ApiKeys,
        refusals: RefusalCounter,
        strays: StraySecrets,
        integrations: Integrations,
        credentials: Credentials,
        clock: Clock,
    ) -> None:
        self._store = store
        self._connection_store = connection_store
        self._api_keys = api_keys
        self._refusals = refusals
        self._strays = strays
        self._integrations = integrations
        self._credentials = credentials
        self._clock = clock

    async def run(self) -> NoReturn:
        """Works until it is cancelled."""
        swept_at: float | None = None
        while True:
            await self.write_uses()
            if swept_at is None or self._clock.monotonic() - swept_at >= _SWEEP_SECONDS:
                swept_at = self._clock.monotonic()
                await self.sweep()
            await self._clock.sleep(_USES_SECONDS)

    async def write_uses(self, *, is_last: bool = False) -> None:
        """Stores when keys and connections were last used, and which credentials were refused in the minutes that are
        over (at the end, in this one too). What cannot be written now is written later."""
        try:
            await self._api_keys.write_uses()
            await self._credentials.write_uses()
            await self._refusals.write(is_last=is_last)
        except HoldfastError as error:
            log.info("uses_delayed", reason=error.reason)

    async def sweep(self) -> None:
        """Removes what is not needed any more."""
        try:
            count = await self._strays.sweep()
            if count:
                log.info("stray_secrets_deleted", count=count)
            await self._integrations.purge()
            await self._connection_store.forget_events(older_than_seconds=EVENT_MEMORY_SECONDS)
            await self._store.forget_requests(older_than_seconds=REQUEST_MEMORY_SECONDS)
        except HoldfastError as error:
            log.info("sweep_delayed", reason=error.reason)
