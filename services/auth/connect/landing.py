"""From tokens that a provider has granted to a connection, or back to the provider.

Invariant: tokens are stored before anything else is looked at, at a path that the session's row has named before; and
nobody but the session knows the path until the connection takes it, in the transaction that makes the session
CONNECTED. So tokens that were received are never lost, never usable unconfirmed, and never lie about for ever.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from holdfast.errors import Conflict, FailedPrecondition, HoldfastError, Reason
from holdfast.ids import new_uuid7
from services.auth.connect.store import AccountDiffersError, ConnectSession, ConnectStore, SessionState
from services.auth.connect.targets import Target, Targets
from services.auth.connection_store import (
    Connection,
    ConnectionState,
    ConnectionStore,
    CredentialKind,
    NewConnection,
    Stray,
)
from services.auth.fingerprints import fingerprint_of
from services.auth.keyring import Keyring
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import Account, TokenSet
from services.auth.providers.schema import RevokeScope
from services.auth.refresh.documents import TokenDocument
from services.auth.refresh.timing import next_refresh
from services.auth.secret_paths import connection_path
from services.auth.secrets import Secret, SecretDamagedError, SecretStore
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

CONFIRM_SECONDS: Final = 600.0
"""How long granted tokens wait for the initiator."""

IDENTIFY_AGAIN_SECONDS: Final = 10.0
GIVE_BACK_AGAIN_SECONDS: Final = 60.0
GIVE_BACK_FOR: Final = timedelta(hours=24)
"""How long a provider that is away is asked to revoke what nobody wanted; then the tokens are deleted all the same."""

# Asked for by name, and granted without being named again.
_UNNAMED_SCOPES: Final = frozenset({"openid", "profile", "email", "offline_access", "offline", "offline.access"})

log = get_logger(__name__)

Listener = Callable[[Connection], None]


class Landing:
    """What happens to tokens once they are there.

    Args:
        store: The sessions.
        connections: The connections.
        secrets: Keeps the tokens.
        targets: The integrations.
        oauth: Identifies and revokes.
        keyring: Key of fingerprints.
        clock: Where time comes from.
        public_url: Part of each redirect URI, which some providers want again later.
        on_change: Is told of each connection that is made or renewed.
    """

    def __init__(
        self,
        store: ConnectStore,
        connections: ConnectionStore,
        secrets: SecretStore,
        targets: Targets,
        oauth: OAuthClient,
        keyring: Keyring,
        clock: Clock,
        *,
        public_url: str,
        on_change: Listener,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._connections = connections
        self._secrets = secrets
        self._targets = targets
        self._oauth = oauth
        self._audit_key = keyring.audit_key
        self._clock = clock
        self._public_url = public_url
        self._on_change = on_change
        self._rng = random.Random() if rng is None else rng

    async def keep(self, session: ConnectSession, target: Target, tokens: TokenSet, *, nonce: str | None) -> None:
        """Stores tokens that have just arrived. Safe to repeat with the same tokens after a lost answer."""
        assert session.secret_path is not None
        # With the tokens: what says where they may be sent is sealed with them, and whoever revokes them needs it.
        sealed = self._document(session, target, tokens.with_extra(session.variables))
        document: dict[str, Any] = json.loads(sealed.reveal())
        # For `settle`, should this process not live to do it: who is it, and is it the answer to this session?
        document["pending"] = {
            "id_token": None if tokens.id_token is None else tokens.id_token.reveal(),
            "nonce": nonce,
        }
        try:
            await self._secrets.put(session.secret_path, Secret(json.dumps(document)), expected_version=0)
        except Conflict:
            # Nobody else writes here: it was this write, whose answer was lost.
            log.info("tokens_kept_already", session_id=session.session_id)
        crash_point("auth.connect.after_tokens")

    async def settle(self, session: ConnectSession, target: Target) -> ConnectSession:
        """Finds out whose the stored tokens are and lets the session wait for its confirmation.

        What cannot be told now, because the provider does not answer, is tried again in the background.
        """
        tokens, pending, _ = await self._read(session)
        if tokens is None:
            return await self.fail(session, "interrupted")
        try:
            account = await self._identify(target, tokens, pending.get("nonce"))
        except TokenRefused as refused:
            if refused.kind in (RefusalKind.TRANSIENT, RefusalKind.UNKNOWN_OUTCOME):
                log.info("account_not_told_yet", session_id=session.session_id, detail=str(refused))
                await self._store.set_poll(session.session_id, in_seconds=IDENTIFY_AGAIN_SECONDS)
                return session
            log.warning("account_not_told", session_id=session.session_id, detail=str(refused))
            return await self.fail(session, "account_unknown")
        existing = await self._live(session)
        if existing is not None and existing.account_id and existing.account_id != account.account_id:
            return await self.fail(session, "account_mismatch")
        granted = await self._store.grant(
            session.session_id,
            account_id=account.account_id,
            account_label=account.label,
            seconds=CONFIRM_SECONDS,
        )
        crash_point("auth.connect.after_grant")
        if granted is None:
            return await self._as_it_is(session)
        log.info("connect_granted", session_id=session.session_id, integration=target.name)
        return granted

    async def connect(self, session: ConnectSession, *, actor: str) -> tuple[ConnectSession, Connection]:
        """Makes the connection of a session that is CONFIRMING, now that its initiator has confirmed it.

        Raises:
            FailedPrecondition: It is not CONFIRMING any more, or its account is not that of the connection
                (CONNECT_SESSION_NOT_CONFIRMABLE).
        """
        target = await self._targets.with_id(session.workspace_id, session.integration_id)
        tokens, _, version = await self._read(session)
        if tokens is None or session.secret_path is None:
            await self.fail(session, "interrupted")
            raise not_confirmable("the tokens of the sign-in are gone; begin again")
        existing = await self._live(session)
        old_tokens = None if existing is None else await self._tokens_of(existing)
        if tokens.refresh_token is None and old_tokens is not None and existing is not None and existing.is_usable:
            # A refresh token that does not come again is one that stays valid.
            tokens = tokens.carrying_over(old_tokens)
            sealed = self._document(session, target, tokens)
            version = await self._secrets.put(session.secret_path, sealed, expected_version=version)
            old_tokens = None
        granted = tokens.scopes or session.scopes
        spec = target.app.provider.oauth
        new = NewConnection(
            workspace_id=session.workspace_id,
            connection_id=new_uuid7(),
            name=session.connection,
            user_id=session.user_id,
            integration_id=session.integration_id,
            provider=target.app.provider.slug,
            kind=CredentialKind.OAUTH2,
            fingerprint=fingerprint_of(self._audit_key, tokens.access_token),
            secret_path=session.secret_path,
            token_version=version,
            account_id=session.account_id,
            account_label=session.account_label,
            scopes=granted,
            missing_scopes=missing_scopes(session.scopes, granted),
            agents=() if existing is None else existing.agents,
            allow_raw_token=existing is not None and existing.allow_raw_token,
            variables=session.variables,
            expire_time=tokens.expire_time,
            grant_expire_time=tokens.refresh_expire_time if tokens.refresh_token is not None else tokens.expire_time,
            refresh_time=None if spec is None else next_refresh(tokens, spec, self._rng),
        )
        crash_point("auth.connect.before_commit")
        try:
            connected = await self._store.connect(session, new, actor=actor)
        except AccountDiffersError:
            await self.fail(session, "account_mismatch")
            raise not_confirmable("the sign-in is of another account than the connection") from None
        crash_point("auth.connect.after_commit")
        if connected is None:
            current = await self._as_it_is(session)
            if current.state is SessionState.CONNECTED:
                return current, await self.connection_of(current)
            raise not_confirmable(f"the sign-in is {current.state.value}")
        session, saved = connected
        self._on_change(saved.connection)
        log.info("connected", session_id=session.session_id, connection_id=saved.connection.connection_id)
        await self._put_away(target, saved.abandoned, old_tokens)
        return session, saved.connection

    async def connection_of(self, session: ConnectSession) -> Connection:
        """Returns the connection that a CONNECTED session has made.

        Raises:
            FailedPrecondition: It is gone meanwhile.
        """
        found = await self._connections.find_connection(session.workspace_id, session.user_id, session.connection)
        if found is None:
            raise not_confirmable("the connection is gone")
        return found

    async def fail(self, session: ConnectSession, reason: str) -> ConnectSession:
        """Ends a session that cannot succeed, and gives back what it was granted.

        For whoever asks the provider: nothing more can arrive afterwards.
        """
        ended = await self._end(session, SessionState.FAILED, reason)
        if ended.state is SessionState.FAILED:
            await self.give_back(ended)
        return ended

    async def end(self, session: ConnectSession, state: SessionState, reason: str) -> ConnectSession:
        """Ends a session and gives back what it was granted; one that has ended stays as it is."""
        ended = await self._end(session, state, reason)
        # While the provider is being asked, the tokens may be there only in a moment: then the background does it.
        if ended.state is state and ended.poll_time is not None and ended.poll_time <= ended.update_time:
            await self.give_back(ended)
        return ended

    async def give_back(self, session: ConnectSession) -> None:
        """Revokes and deletes the tokens of a session that ended without a connection; later, if that fails now."""
        try:
            if await self._is_given_back(session):
                await self._store.forget_tokens(session.session_id)
                crash_point("auth.connect.after_give_back")
                return
        except HoldfastError as error:
            log.info("give_back_delayed", session_id=session.session_id, reason=error.reason)
        try:
            await self._store.set_poll(session.session_id, in_seconds=GIVE_BACK_AGAIN_SECONDS)
        except HoldfastError as error:
            log.info("give_back_delayed", session_id=session.session_id, reason=error.reason)

    async def drop(self, session: ConnectSession) -> None:
        """Deletes tokens that a second consent replaces. The session asks the provider once more right afterwards."""
        assert session.secret_path is not None
        await self._secrets.delete(session.secret_path)

    # ---------------------------------------------------------------------------------------------------------------

    async def _end(self, session: ConnectSession, state: SessionState, reason: str) -> ConnectSession:
        ended = await self._store.end_session(session.session_id, state, reason)
        if ended is None:
            return await self._as_it_is(session)
        log.info("connect_ended", session_id=session.session_id, state=state.value, reason=reason)
        return ended

    async def _is_given_back(self, session: ConnectSession) -> bool:
        if session.secret_path is None:
            return True
        tokens, _, _ = await self._read(session)
        if tokens is not None and self._clock.now() - session.update_time < GIVE_BACK_FOR:
            try:
                target = await self._targets.with_id(session.workspace_id, session.integration_id)
                if target_revokes_alone(target) or not await self._store.is_grant_shared(session):
                    await self._oauth.revoke(target.app, tokens)
            except TokenRefused as refused:
                if refused.kind in (RefusalKind.TRANSIENT, RefusalKind.UNKNOWN_OUTCOME):
                    return False
                log.warning("not_revoked", session_id=session.session_id, detail=str(refused))
            except HoldfastError as error:
                if error.reason not in (Reason.INTEGRATION_NOT_FOUND, Reason.INTEGRATION_DISABLED):
                    raise
        crash_point("auth.connect.before_delete")
        await self._secrets.delete(session.secret_path)
        crash_point("auth.connect.after_delete")
        return True

    async def _identify(self, target: Target, tokens: TokenSet, nonce: str | None) -> Account:
        provider = target.app.provider
        if provider.account is None and tokens.id_token is None:
            # Neither the data nor the answer says: the connection is nobody's in particular.
            return Account("", "")
        return await self._oauth.identify(target.app, tokens, nonce=nonce)

    async def _read(self, session: ConnectSession) -> tuple[TokenSet | None, dict[str, Any], int]:
        if session.secret_path is None:
            return None, {}, 0
        try:
            stored = await self._secrets.get(session.secret_path)
            if stored is None:
                return None, {}, 0
            document = json.loads(stored.secret.reveal())
            tokens = TokenSet.from_document(document)
        except (SecretDamagedError, ValueError):
            log.error("tokens_damaged", session_id=session.session_id)
            return None, {}, 0
        pending: dict[str, Any] = document.get("pending") or {}
        id_token = pending.get("id_token")
        return replace(tokens, id_token=None if id_token is None else Secret(id_token)), pending, stored.version

    def _document(self, session: ConnectSession, target: Target, tokens: TokenSet) -> Secret:
        """Returns the tokens as the connection that they are for will have them."""
        document = TokenDocument(
            tokens=replace(tokens, id_token=None),
            resource=target.resource,
            redirect_uri=redirect_uri(self._public_url, target.integration_id),
        )
        return document.to_secret(_binding(session, target))

    async def _live(self, session: ConnectSession) -> Connection | None:
        found = await self._connections.find_connection(session.workspace_id, session.user_id, session.connection)
        return None if found is None or found.state is ConnectionState.REVOKED else found

    async def _tokens_of(self, connection: Connection) -> TokenSet | None:
        try:
            path = connection_path(connection)
            stored = None if path is None else await self._secrets.get(path)
            return None if stored is None else TokenSet.from_document(json.loads(stored.secret.reveal()))
        except (SecretDamagedError, ValueError):
            return None

    async def _put_away(self, target: Target, stray: Stray | None, tokens: TokenSet | None) -> None:
        """Ends what a reconnect has replaced, as well as it goes: the new connection is there already."""
        try:
            if tokens is not None and target_revokes_alone(target):
                await self._oauth.revoke(target.app, tokens)
        except TokenRefused as refused:
            log.info("old_tokens_not_revoked", integration=target.name, detail=str(refused))
        if stray is not None:
            try:
                await self._secrets.delete(stray.path)
                await self._connections.forget_stray(stray.path)
            except HoldfastError as error:
                log.warning("secret_left_for_the_sweeper", reason=error.reason)

    async def _as_it_is(self, session: ConnectSession) -> ConnectSession:
        found = await self._store.get_session(session.workspace_id, session.session_id)
        return session if found is None else found


def target_revokes_alone(target: Target) -> bool:
    """Tells whether revoking a token at the provider ends that token's grant and no other of the account."""
    spec = target.app.provider.oauth
    return spec is None or spec.revoke_scope is RevokeScope.TOKEN


def missing_scopes(asked: tuple[str, ...], granted: tuple[str, ...]) -> tuple[str, ...]:
    """Returns what was asked for and not granted. Names that providers do not repeat are not missed."""
    return tuple(scope for scope in asked if scope not in granted and scope not in _UNNAMED_SCOPES)


def redirect_uri(public_url: str, integration_id: str) -> str:
    """Returns the redirect URI of an integration, which its app at the provider has to list."""
    return f"{public_url}/oauth/callback/{integration_id}"


def _binding(session: ConnectSession, target: Target) -> NewConnection:
    """Returns whose tokens they will be, as far as the document says it."""
    return NewConnection(
        workspace_id=session.workspace_id,
        connection_id="",
        name=session.connection,
        user_id=session.user_id,
        integration_id=session.integration_id,
        provider=target.app.provider.slug,
    )


def not_confirmable(message: str) -> FailedPrecondition:
    """Returns the error of a session that is not at the point of being confirmed."""
    return FailedPrecondition(message, reason=Reason.CONNECT_SESSION_NOT_CONFIRMABLE)
