"""What happens to connect sessions without a request: devices are asked for, what is left is finished or given back."""

from __future__ import annotations

from typing import Final, NoReturn

from holdfast.errors import HoldfastError
from services.auth.connect.keys import ConnectKeys
from services.auth.connect.landing import Landing
from services.auth.connect.store import ConnectMode, ConnectSession, ConnectStore, SessionState
from services.auth.connect.targets import Target, Targets
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import DevicePending, RefusalKind, TokenRefused
from services.auth.oauth.tokens import DeviceAuthorization
from services.auth.secrets import SecretDamagedError, SecretStore
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

CLAIM_SECONDS: Final = 120.0
"""Longer than all that is done for one session at once."""

SLOW_DOWN_SECONDS: Final = 5
"""RFC 8628 §3.5."""

MAX_INTERVAL_SECONDS: Final = 300
SESSION_MEMORY_SECONDS: Final = 7 * 24 * 3600.0
"""How long an ended session can be looked at."""

_PAUSE_SECONDS: Final = 1.0
_FORGET_EVERY_SECONDS: Final = 600.0
_LIMIT: Final = 20

log = get_logger(__name__)


class ConnectBackground:
    """Runs in every replica; a session is claimed by one of them at a time.

    Args:
        store: The sessions.
        secrets: Where a device's tokens may lie already.
        targets: The integrations.
        oauth: Asks for devices.
        landing: Takes tokens, and gives them back.
        keys: Opens the device codes.
        clock: Where time comes from.
    """

    def __init__(
        self,
        store: ConnectStore,
        secrets: SecretStore,
        targets: Targets,
        oauth: OAuthClient,
        landing: Landing,
        keys: ConnectKeys,
        clock: Clock,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._targets = targets
        self._oauth = oauth
        self._landing = landing
        self._keys = keys
        self._clock = clock

    async def run(self) -> NoReturn:
        """Works until it is cancelled."""
        forgot_at: float | None = None
        while True:
            try:
                await self.step()
                if forgot_at is None or self._clock.monotonic() - forgot_at > _FORGET_EVERY_SECONDS:
                    forgot_at = self._clock.monotonic()
                    await self._store.forget_sessions(older_than_seconds=SESSION_MEMORY_SECONDS)
            except HoldfastError as error:
                log.info("connect_background_delayed", reason=error.reason)
            await self._clock.sleep(_PAUSE_SECONDS)

    async def step(self) -> int:
        """Does what is due, and returns how many sessions it was."""
        await self._store.end_expired(limit=_LIMIT)
        claimed = await self._store.claim_due(seconds=CLAIM_SECONDS, limit=_LIMIT)
        for session in claimed:
            try:
                await self._tend(session)
            except HoldfastError as error:
                log.info("connect_session_delayed", session_id=session.session_id, reason=error.reason)
        return len(claimed)

    async def _tend(self, session: ConnectSession) -> None:
        if session.state.is_end:
            await self._landing.give_back(session)
        elif session.state is SessionState.AUTHORIZING:
            target = await self._target(session)
            is_there = session.secret_path is not None and await self._secrets.version(session.secret_path) > 0
            if is_there or session.mode is ConnectMode.BROWSER:
                # Somebody died on the way; `settle` goes on, or ends what cannot go on.
                await self._landing.settle(session, target)
            else:
                await self._ask(session)

    async def _target(self, session: ConnectSession) -> Target:
        found = await self._targets.with_id(session.workspace_id, session.integration_id)
        return found.with_variables(session.variables)

    async def _ask(self, session: ConnectSession) -> None:
        target = await self._target(session)
        try:
            device = DeviceAuthorization.from_document(await self._keys.open(session.session_id, session.sealed))
        except (SecretDamagedError, ValueError):
            await self._landing.fail(session, "interrupted")
            return
        interval = session.poll_interval_seconds
        try:
            tokens = await self._oauth.poll_device(target.app, device)
        except DevicePending as pending:
            if pending.slow_down:
                interval = min(interval + SLOW_DOWN_SECONDS, MAX_INTERVAL_SECONDS)
            await self._store.set_poll(session.session_id, in_seconds=interval, interval_seconds=interval)
            return
        except TokenRefused as refused:
            await self._refused(session, refused, interval)
            return
        crash_point("auth.connect.before_tokens")
        await self._landing.keep(session, target, tokens, nonce=None)
        await self._landing.settle(session, target)

    async def _refused(self, session: ConnectSession, refused: TokenRefused, interval: int) -> None:
        if refused.error == "access_denied":
            await self._landing.end(session, SessionState.DECLINED, "access_denied")
        elif refused.error == "expired_token":
            await self._landing.end(session, SessionState.EXPIRED, "")
        elif refused.kind is RefusalKind.TRANSIENT:
            # RFC 8628 §3.5: after a time-out the client slows down by itself.
            wait = max(refused.retry_after_seconds or 0.0, min(interval * 2, MAX_INTERVAL_SECONDS))
            await self._store.set_poll(session.session_id, in_seconds=wait)
        else:
            log.warning("device_refused", session_id=session.session_id, detail=str(refused))
            await self._landing.fail(session, refused.error or f"exchange_{refused.kind.name.lower()}")
