"""The browser's side of a connect session: from the link's page to the provider and back.

A browser is known by its cookie. It is bound to the session when the person continues, so that a link that is merely
looked at (by a mail scanner, say) binds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from services.auth.connect.keys import Attempt, ConnectKeys, new_state, plain_hash
from services.auth.connect.landing import Landing, redirect_uri
from services.auth.connect.return_urls import with_query
from services.auth.connect.sessions import AUTHORIZE_SECONDS
from services.auth.connect.store import Authorization, ConnectMode, ConnectSession, ConnectStore, SessionState
from services.auth.connect.targets import Target, Targets
from services.auth.connection_variables import checked_variables, missing_variables
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import VERDICTS, RefusalKind, TokenRefused
from services.auth.oauth.tokens import TokenSet
from services.auth.providers.schema import Sensitivity, Variable
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import SecretDamagedError
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

MAX_STATE_CHARACTERS: Final = 256
MAX_CODE_CHARACTERS: Final = 4096

# A stopped process that goes on much later must not store what others have given up by then.
_LANDING_SECONDS: Final = 60.0
_COOKIE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_AUTHORIZATION_ERRORS: Final = frozenset({"unsupported_response_type", "server_error", "temporarily_unavailable"})

log = get_logger(__name__)


class NotHereError(Exception):
    """There is nothing to see: no such link, or not in this browser. What it was is not said."""


class OutOfDateError(Exception):
    """The provider's answer belongs to no sign-in that waits for one: used before, too late, or foreign."""


class OtherBrowserError(Exception):
    """The sign-in was begun in another browser."""


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """One permission as the page shows it."""

    name: str
    words: str
    sensitivity: Sensitivity | None


@dataclass(frozen=True, slots=True)
class Look:
    """What the link's page shows."""

    session: ConnectSession
    target: Target
    scopes: tuple[ScopeRow, ...]
    variables: tuple[Variable, ...]
    """Values that the person has to type, because nobody has given them."""
    form_token: str
    is_elsewhere: bool = False
    """Another browser has continued from it a moment ago."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, for the last page."""

    session: ConnectSession
    title: str
    """The provider's name."""
    confirm_code: str = ""
    return_url: str = ""
    """Where to go on instead of showing the code."""


class ConnectBrowser:
    """What the pages do.

    Args:
        store: The sessions.
        targets: The integrations.
        oauth: Speaks with the provider.
        landing: Takes the tokens.
        keys: Tokens of links and forms, codes.
        clock: Where time comes from.
        public_url: Where browsers reach these pages; part of each redirect URI.
    """

    def __init__(
        self,
        store: ConnectStore,
        targets: Targets,
        oauth: OAuthClient,
        landing: Landing,
        keys: ConnectKeys,
        clock: Clock,
        *,
        public_url: str,
    ) -> None:
        self._store = store
        self._targets = targets
        self._oauth = oauth
        self._landing = landing
        self._keys = keys
        self._clock = clock
        self._public_url = public_url

    def redirect_uri(self, integration_id: str) -> str:
        """Returns the one address that answers of this integration come to: no two integrations share one."""
        return redirect_uri(self._public_url, integration_id)

    async def look(self, link: str, cookie: str) -> Look:
        """Returns what the link's page shows.

        Raises:
            NotHereError: There is no such link.
            NotFound, FailedPrecondition: The integration is gone, or switched off.
        """
        session = await self._linked(link)
        target = await self._targets.with_id(session.workspace_id, session.integration_id)
        return Look(
            session,
            target,
            tuple(_scope_rows(target, session.scopes)),
            missing_variables(target.app.provider, session.variables),
            self._keys.form_token(session.session_id, cookie),
            is_elsewhere=session.state is not SessionState.PENDING and not self._is_bound(session, cookie),
        )

    async def proceed(self, link: str, cookie: str, form_token: str, variables: Mapping[str, str]) -> str:
        """Binds the session to the browser and returns the address at the provider.

        Args:
            link: The link's token.
            cookie: The browser's.
            form_token: The form's.
            variables: Values that nobody has given before, as the person typed them.

        Raises:
            NotHereError: There is no such link, or the form is not this browser's.
            InvalidArgument: A value is missing, or does not fit.
            OutOfDateError: The session is over, or goes on in another browser.
            TokenRefused: The integration lacks something.
        """
        session = await self._linked(link)
        if not is_cookie(cookie) or not self._keys.is_form_token(form_token, session.session_id, cookie):
            raise NotHereError
        target = await self._targets.with_id(session.workspace_id, session.integration_id)
        asked = {item.name for item in missing_variables(target.app.provider, session.variables)}
        typed = {name: value.strip() for name, value in variables.items() if name in asked}
        attempt = Attempt.make(checked_variables(target.app.provider, typed, session.variables))
        state = new_state()
        url = self._url(session, target, attempt, state)
        begun = await self._store.begin_authorizing(
            session.session_id,
            await self._authorization(session, target, attempt, state, plain_hash(cookie)),
            seconds=AUTHORIZE_SECONDS,
        )
        if begun is None:
            raise OutOfDateError
        log.info("connect_authorizing", session_id=session.session_id, integration=target.name)
        return url

    async def answer(self, integration_id: str, params: Mapping[str, str], cookie: str) -> str:
        """Takes the provider's answer and returns where the browser goes next.

        The order of the checks is that of docs/connect.md. Until the browser is known to be the right one, nothing is
        changed and nothing is said.

        Raises:
            OutOfDateError: No sign-in waits for this answer.
            OtherBrowserError: One does, in another browser.
        """
        state = params.get("state", "")
        if not state or len(state) > MAX_STATE_CHARACTERS:
            raise OutOfDateError
        state_hash = plain_hash(state)
        session = await self._store.find_session_by_state(state_hash)
        if session is None:
            raise OutOfDateError
        if not self._is_bound(session, cookie):
            log.warning("answer_in_another_browser", session_id=session.session_id)
            raise OtherBrowserError
        done = self._done(session)
        if session.integration_id != integration_id:
            # An answer at another integration's address: one provider poses as another (RFC 9700 §4.4).
            await self._landing.fail(session, "integration_mismatch")
            return done
        target = await self._targets.with_id(session.workspace_id, session.integration_id)
        spec = target.app.provider.oauth
        assert spec is not None
        if session.expected_issuer != (spec.issuer or ""):
            await self._landing.fail(session, "integration_changed")
            return done
        try:
            self._oauth.check_callback(target.app, params)
        except TokenRefused:
            is_about_issuer = "iss" in params or spec.iss_in_callback
            await self._landing.fail(session, "iss_mismatch" if is_about_issuer else "signature_mismatch")
            return done
        if "error" in params:
            await self._refused(session, target, params["error"])
            return done
        code = params.get(spec.callback_code_param, "")
        if not code or len(code) > MAX_CODE_CHARACTERS:
            await self._landing.fail(session, "code_missing")
            return done
        return await self._exchange(session, target, state_hash, code, params, cookie)

    async def outcome(self, link: str, cookie: str) -> Outcome:
        """Returns what the last page shows: only to the browser that completed the session.

        Raises:
            NotHereError: There is no such link, or it is not this browser's.
        """
        session = await self._linked(link)
        if not self._is_bound(session, cookie):
            raise NotHereError
        title = session.integration
        try:
            title = (await self._targets.with_id(session.workspace_id, session.integration_id)).title
        except Exception:
            log.info("integration_unknown", session_id=session.session_id)
        if session.state is not SessionState.CONFIRMING:
            return Outcome(session, title)
        code = self._keys.confirm_code(session.session_id, cookie)
        to = ""
        if session.return_url:
            to = with_query(session.return_url, session_id=session.session_id, confirm_code=code)
        return Outcome(session, title, code, to)

    # ---------------------------------------------------------------------------------------------------------------

    async def _exchange(
        self,
        session: ConnectSession,
        target: Target,
        state_hash: bytes,
        code: str,
        params: Mapping[str, str],
        cookie: str,
    ) -> str:
        session_id, done = session.session_id, self._done(session)
        try:
            attempt = Attempt.from_document(await self._keys.open(session_id, session.sealed))
        except SecretDamagedError:
            await self._landing.fail(session, "interrupted")
            return done
        # Invariant: from here on this is the only one that asks for tokens with this code.
        taken = await self._store.consume_state(
            session_id,
            state_hash,
            confirm_hash=self._keys.code_hash(session_id, self._keys.confirm_code(session_id, cookie)),
            secret_path=new_connection_path(session.workspace_id, session.user_id),
            variables=attempt.variables or session.variables,
            seconds=AUTHORIZE_SECONDS,
        )
        crash_point("auth.connect.after_state")
        if taken is None:
            raise OutOfDateError
        target = target.with_variables(taken.variables)
        start = self._clock.monotonic()
        try:
            tokens = await self._oauth.exchange_code(
                target.app,
                code=code,
                redirect_uri=self.redirect_uri(target.integration_id),
                code_verifier=attempt.verifier.reveal(),
                resource=target.resource,
                callback_params=params,
            )
        except TokenRefused as refused:
            log.warning("code_refused", session_id=session_id, kind=refused.kind.value, detail=str(refused))
            if refused.kind is RefusalKind.INTEGRATION and refused.error is not None:
                await self._targets.report(target, session.workspace_id, refused.error)
            await self._landing.fail(taken, refused.error or f"exchange_{refused.kind.name.lower()}")
            return done
        crash_point("auth.connect.before_tokens")
        if self._clock.monotonic() - start > _LANDING_SECONDS:
            await self._revoke(target, tokens)
            await self._landing.fail(taken, "interrupted")
            return done
        nonce = attempt.nonce if asks_for_nonce(session.scopes) else None
        await self._landing.keep(taken, target, tokens, nonce=nonce)
        again = await self._once_more(taken, target, tokens, attempt)
        if again is not None:
            return again
        await self._landing.settle(taken, target)
        await self._targets.accept(target, session.workspace_id)
        return done

    async def _once_more(
        self, session: ConnectSession, target: Target, tokens: TokenSet, attempt: Attempt
    ) -> str | None:
        """Returns where to go when the provider has to be asked for its consent anew, for a refresh token."""
        spec = target.app.provider.oauth
        is_wanted = tokens.refresh_token is None and tokens.expire_time is not None
        if spec is None or not is_wanted or not spec.force_consent_params or attempt.is_consent_forced:
            return None
        await self._landing.drop(session)
        forced, state = Attempt.make(attempt.variables, is_consent_forced=True), new_state()
        url = self._url(session, target, forced, state)
        assert session.browser_hash is not None
        authorization = await self._authorization(session, target, forced, state, session.browser_hash)
        is_asked = await self._store.ask_again(session.session_id, authorization, seconds=AUTHORIZE_SECONDS)
        log.info("consent_asked_again", session_id=session.session_id, integration=target.name)
        return url if is_asked else self._done(session)

    async def _refused(self, session: ConnectSession, target: Target, error: str) -> None:
        # Of the answer nothing is shown but words that are known here: the rest is whatever somebody put into a link.
        if error == "access_denied":
            await self._landing.end(session, SessionState.DECLINED, error)
            return
        is_known = error in VERDICTS or error in _AUTHORIZATION_ERRORS
        if is_known and error in VERDICTS and VERDICTS[error].kind is RefusalKind.INTEGRATION:
            await self._targets.report(target, session.workspace_id, error)
        await self._landing.fail(session, error if is_known else "provider_error")

    async def _authorization(
        self, session: ConnectSession, target: Target, attempt: Attempt, state: str, browser_hash: bytes
    ) -> Authorization:
        spec = target.app.provider.oauth
        return Authorization(
            browser_hash=browser_hash,
            state_hash=plain_hash(state),
            sealed=await self._keys.seal(session.session_id, attempt.to_document()),
            expected_issuer="" if spec is None else spec.issuer or "",
        )

    def _url(self, session: ConnectSession, target: Target, attempt: Attempt, state: str) -> str:
        return self._oauth.authorization_url(
            target.app.with_variables(attempt.variables),
            redirect_uri=self.redirect_uri(target.integration_id),
            state=state,
            code_challenge=attempt.challenge,
            scopes=session.scopes,
            nonce=attempt.nonce if asks_for_nonce(session.scopes) else None,
            resource=target.resource,
            force_consent=attempt.is_consent_forced,
        )

    async def _revoke(self, target: Target, tokens: TokenSet) -> None:
        try:
            await self._oauth.revoke(target.app, tokens)
        except TokenRefused as refused:
            log.warning("not_revoked", integration=target.name, detail=str(refused))

    async def _linked(self, link: str) -> ConnectSession:
        session_id = self._keys.session_of(link)
        session = None if session_id is None else await self._store.find_session(session_id)
        if session is None or session.mode is not ConnectMode.BROWSER:
            raise NotHereError
        if not session.state.is_end and session.expire_time <= self._clock.now():
            # The background has not come by yet.
            return replace(session, state=SessionState.EXPIRED)
        return session

    def _is_bound(self, session: ConnectSession, cookie: str) -> bool:
        return is_cookie(cookie) and self._keys.is_hash(plain_hash(cookie), session.browser_hash)

    def _done(self, session: ConnectSession) -> str:
        return f"/connect/{self._keys.link_token(session.session_id)}/done"


def is_cookie(value: str) -> bool:
    """Tells whether this may be a cookie of ours."""
    return _COOKIE.fullmatch(value) is not None


def asks_for_nonce(scopes: tuple[str, ...]) -> bool:
    """Tells whether an ID token is asked for."""
    return "openid" in scopes


def _scope_rows(target: Target, scopes: tuple[str, ...]) -> list[ScopeRow]:
    known = target.app.provider.scopes
    order = list(Sensitivity)
    rows = [
        ScopeRow(name, known[name].words, known[name].sensitivity) if name in known else ScopeRow(name, "", None)
        for name in scopes
    ]
    # What matters most first; what is not known may matter more than all.
    return sorted(
        rows, key=lambda row: len(order) if row.sensitivity is None else order.index(row.sensitivity), reverse=True
    )
