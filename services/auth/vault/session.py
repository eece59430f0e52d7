"""The life of auth's token: renewed early, replaced before it ends, and never waited for while another one is good."""

from __future__ import annotations

import asyncio
import random
from typing import Final, NoReturn

from services.auth.secrets import Secret
from services.auth.vault.client import Wire
from services.auth.vault.failures import LoginRefused, Refused, VaultFailure
from services.auth.vault.login import Login, LoginMethod, is_good, renew
from services.shared.telemetry import get_logger

RENEW_AT: Final = 2 / 3
RENEW_SPREAD: Final = 0.1
REPLACE_BELOW: Final = 1 / 3
"""A renewal that gives less than this part of the token's first life says that its longest life nears."""

LOGIN_PAUSE_SECONDS: Final = 5.0
"""Least time between two logins, whatever happens: a storm of refusals is no storm of logins."""

_RETRY_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 3600.0

log = get_logger(__name__)


class Session:
    """Holds the token; `run` keeps it alive.

    Args:
        wire: Vault's nodes.
        method: How to log in.
        spread: Chooses when within a tenth of its time a renewal happens; from 0 to 1.
    """

    def __init__(self, wire: Wire, method: LoginMethod, *, spread: random.Random | None = None) -> None:
        self._wire = wire
        self._clock = wire.clock
        self._method = method
        self._random = random.Random() if spread is None else spread
        self._login: Login | None = None
        self._first_ttl = 0.0
        self._renew_at = 0.0
        self._next_login = 0.0
        self._judged: tuple[Secret, float] | None = None
        self._last_failure: VaultFailure | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.logins = 0
        """How many logins were tried."""

    async def token(self) -> Secret:
        """See `TokenKeeper.token`."""
        if self._login is None:
            async with self._turn:
                if self._login is None:
                    await self._log_in()
        assert self._login is not None
        return self._login.token

    async def is_replaced(self, token: Secret) -> bool:
        """See `TokenKeeper.is_replaced`."""
        async with self._turn:
            if self._login is None or self._login.token is not token:
                # Somebody else was refused before and has seen to it.
                return True
            now = self._clock.monotonic()
            if self._judged is not None and self._judged[0] is token and now < self._judged[1]:
                return False
            if await is_good(self._wire, token):
                self._judged = (token, now + LOGIN_PAUSE_SECONDS)
                return False
            log.warning("vault_token_refused")
            await self._log_in()
            return True

    async def run(self) -> NoReturn:
        """Renews the token, and replaces it in time."""
        while True:
            if self._login is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._wait(self._renew_at - self._clock.monotonic() if self._renew_at else _IDLE_SECONDS)
            if self._renew_at and self._clock.monotonic() >= self._renew_at:
                async with self._turn:
                    await self._keep_alive()

    async def _wait(self, seconds: float) -> None:
        # A login in the meantime sets another time.
        self._changed.clear()
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((sleep, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleep, changed):
                task.cancel()

    async def _keep_alive(self) -> None:
        login = self._login
        assert login is not None
        try:
            if login.is_renewable:
                renewed = await renew(self._wire, login)
                if renewed.ttl_seconds >= self._first_ttl * REPLACE_BELOW:
                    self._adopt(renewed)
                    return
                log.info("vault_token_near_its_longest_life")
        except Refused as failure:
            if failure.is_failover or failure.status == 429:
                self._try_later(failure)
                return
            log.info("vault_token_not_renewed", status=failure.status)
        except VaultFailure as failure:
            self._try_later(failure)
            return
        try:
            # The old token stays in use until the new one is there: nothing waits for this.
            await self._log_in()
        except VaultFailure as failure:
            self._try_later(failure)

    def _try_later(self, failure: VaultFailure) -> None:
        log.warning("vault_token_not_kept_alive", reason=str(failure))
        self._renew_at = self._clock.monotonic() + _RETRY_SECONDS

    async def _log_in(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_login:
            raise self._again()
        self._next_login = now + LOGIN_PAUSE_SECONDS
        self.logins += 1
        try:
            login = await self._method.login(self._wire)
            if not await is_good(self._wire, login.token):
                raise LoginRefused("Vault does not take the token that it has just given")
        except VaultFailure as failure:
            self._last_failure = failure
            if isinstance(failure, LoginRefused):
                log.error("vault_login_refused", reason=str(failure))
            raise
        self._first_ttl = login.ttl_seconds
        self._last_failure = None
        log.info("vault_logged_in", ttl_seconds=login.ttl_seconds, is_renewable=login.is_renewable)
        self._adopt(login)

    def _again(self) -> VaultFailure:
        if isinstance(self._last_failure, LoginRefused):
            return LoginRefused(str(self._last_failure))
        return VaultFailure("auth has just tried to log in to Vault, and waits before it tries again")

    def _adopt(self, login: Login) -> None:
        self._login = login
        if login.ttl_seconds > 0:
            part = RENEW_AT * (1 + RENEW_SPREAD * (2 * self._random.random() - 1))
            self._renew_at = self._clock.monotonic() + login.ttl_seconds * part
        else:
            self._renew_at = 0.0
        self._changed.set()
