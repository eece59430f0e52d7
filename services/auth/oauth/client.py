"""The OAuth client: each method is one conversation with a provider, and ends in tokens or in an honest refusal.

No method repeats a request whose bytes may have left, except with the next client secret after a clear
`invalid_client`. None of them stores anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import unquote

from services.auth.oauth import requests
from services.auth.oauth.answers import parse_document, read_scopes, read_tokens, refuse_errors
from services.auth.oauth.callback import captured_from, check_callback
from services.auth.oauth.expiry import expire_time
from services.auth.oauth.identity import Identity
from services.auth.oauth.refusals import (
    AUTHORIZATION_PENDING,
    SLOW_DOWN,
    DevicePending,
    RefusalKind,
    TokenRefused,
)
from services.auth.oauth.tokens import Account, DeviceAuthorization, OAuthApp, TokenSet
from services.auth.providers.schema import ExpiryUnit, Pkce, Provider
from services.auth.providers.templates import UrlTemplate
from services.auth.secrets import Secret
from services.shared.clock import Clock
from services.shared.egress import Answer, EgressClient, EgressFailed, Failure, parse_destination
from services.shared.json_pointers import as_text

EXCHANGE_SECONDS: Final = 20.0
REFRESH_SECONDS: Final = 20.0
REVOKE_SECONDS: Final = 10.0

_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_DEVICE_INTERVAL: Final = timedelta(seconds=5)
_LONGEST_DEVICE_INTERVAL: Final = 120.0
_DEVICE_LIFETIME: Final = timedelta(minutes=15)


class OAuthClient:
    """Speaks OAuth with any provider.

    Args:
        egress: Through which every request goes.
        clock: Where time comes from.
    """

    def __init__(self, egress: EgressClient, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock
        self._identity = Identity(egress, clock)

    def authorization_url(
        self,
        app: OAuthApp,
        *,
        redirect_uri: str,
        state: str,
        code_challenge: str,
        scopes: tuple[str, ...],
        nonce: str | None = None,
        resource: str | None = None,
        force_consent: bool = False,
    ) -> str:
        """Returns where the user's browser goes to sign in.

        Args:
            app: Who asks.
            redirect_uri: Where the browser comes back to, exactly as it is registered.
            state: Comes back unchanged.
            code_challenge: SHA-256 of the verifier, base64url without padding; left out where the provider has none.
            scopes: What is asked for; the caller adds the mandatory ones.
            nonce: Comes back in the ID token.
            resource: The server the tokens are for (RFC 8707).
            force_consent: Ask the user again, as the last sign-in brought no refresh token.

        Raises:
            TokenRefused: INTEGRATION: a variable of the provider is missing.
        """
        return requests.authorization_url(
            app,
            redirect_uri=redirect_uri,
            state=state,
            code_challenge=code_challenge,
            scopes=scopes,
            nonce=nonce,
            resource=resource,
            force_consent=force_consent,
        )

    def check_callback(self, app: OAuthApp, callback_params: Mapping[str, str]) -> None:
        """Checks that a callback is the provider's own: its `iss` (RFC 9207) and, where it has one, its signature.

        It holds for error callbacks too, of which nothing may be shown when it fails.

        Raises:
            TokenRefused: It is not; nothing was sent.
        """
        check_callback(app, callback_params)

    async def exchange_code(
        self,
        app: OAuthApp,
        *,
        code: str,
        redirect_uri: str,
        code_verifier: str,
        resource: str | None = None,
        callback_params: Mapping[str, str],
        timeout_seconds: float = EXCHANGE_SECONDS,
    ) -> TokenSet:
        """Exchanges a code, once: codes are single use.

        Args:
            app: Who asks.
            code: As it came in the callback; see `OAuthSpec.callback_code_param`.
            redirect_uri: The one of the authorization URL.
            code_verifier: Of the code challenge.
            resource: As in the authorization URL.
            callback_params: All parameters of the callback: some providers say there where to go on.
            timeout_seconds: For everything.

        Raises:
            TokenRefused: There are no tokens.
        """
        check_callback(app, callback_params)
        spec = requests.oauth_of(app)
        captured = captured_from(app, callback_params)
        params = {"grant_type": "authorization_code", "code": unquote(code) if spec.callback_code_is_encoded else code}
        if spec.send_redirect_uri:
            params["redirect_uri"] = redirect_uri
        if spec.pkce is not Pkce.NONE:
            params["code_verifier"] = code_verifier
        params |= requests.resource_params(app, resource)
        params |= spec.extra_token_params
        tokens = await self._tokens(app, params, spec.token_url, captured, timeout_seconds)
        return tokens.with_extra(captured)

    async def refresh(
        self,
        app: OAuthApp,
        tokens: TokenSet,
        *,
        timeout_seconds: float = REFRESH_SECONDS,
        redirect_uri: str | None = None,
        resource: str | None = None,
    ) -> TokenSet:
        """Exchanges the refresh token, once. The caller owns that nobody else does at the same time.

        Args:
            app: Who asks.
            tokens: With a refresh token.
            timeout_seconds: For everything.
            redirect_uri: Of the integration, for the providers that want it again.
            resource: As in the authorization URL, when there was one.

        Returns:
            What the answer holds; `carrying_over(tokens)` adds what it left unsaid.

        Raises:
            TokenRefused: There are no new tokens. UNKNOWN_OUTCOME: the refresh token may be spent.
            ValueError: There is no refresh token.
        """
        if tokens.refresh_token is None:
            raise ValueError("there is no refresh token")
        spec = requests.oauth_of(app)
        params = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token.reveal()}
        if spec.resend_scope and tokens.scopes:
            params["scope"] = requests.scope_text(spec, tokens.scopes)
        if spec.resend_redirect_uri and redirect_uri is not None:
            params["redirect_uri"] = redirect_uri
        params |= requests.resource_params(app, resource)
        params |= spec.extra_refresh_params
        return await self._tokens(app, params, spec.refresh_url or spec.token_url, tokens.extra, timeout_seconds)

    async def client_credentials(
        self,
        app: OAuthApp,
        *,
        scopes: tuple[str, ...],
        resource: str | None = None,
        timeout_seconds: float = EXCHANGE_SECONDS,
    ) -> TokenSet:
        """Gets a token for the app itself. May be repeated: nothing is spent.

        Raises:
            TokenRefused: There is none.
        """
        spec = requests.oauth_of(app)
        params = {"grant_type": "client_credentials"}
        if scopes:
            params["scope"] = requests.scope_text(spec, scopes)
        params |= requests.resource_params(app, resource)
        params |= spec.extra_token_params
        return await self._tokens(app, params, spec.token_url, {}, timeout_seconds)

    async def start_device(self, app: OAuthApp, *, scopes: tuple[str, ...]) -> DeviceAuthorization:
        """Begins a sign-in on another device (RFC 8628).

        Raises:
            TokenRefused: It cannot begin.
        """
        spec = requests.oauth_of(app)
        params = {"client_id": app.client_id}
        if scopes:
            params["scope"] = requests.scope_text(spec, scopes)
        start = self._clock.now()
        answer = await self._ask(app, params, spec.device_url, {}, EXCHANGE_SECONDS)
        slug = app.provider.slug
        document = parse_document(answer.body)
        refuse_errors(spec.answer, answer, document, provider=slug, now=self._clock.now())
        device_code, user_code = (as_text((document or {}).get(name)) for name in ("device_code", "user_code"))
        # `verification_url` is what Google calls it.
        uri = _web_address((document or {}).get("verification_uri") or (document or {}).get("verification_url"))
        if document is None or not device_code or not user_code or uri is None:
            raise TokenRefused(RefusalKind.MALFORMED, f"{slug} answered with no device code", status=answer.status)
        zero = timedelta(0)
        interval = expire_time(document.get("interval"), ExpiryUnit.SECONDS, start=start, skew=zero)
        ends = expire_time(document.get("expires_in"), ExpiryUnit.SECONDS, start=start, skew=zero)
        longest = timedelta(seconds=_LONGEST_DEVICE_INTERVAL)
        return DeviceAuthorization(
            device_code=Secret(device_code),
            user_code="".join(character for character in user_code if character.isprintable())[:64],
            verification_uri=uri,
            verification_uri_complete=_web_address(document.get("verification_uri_complete")),
            expire_time=min(ends or start + _DEVICE_LIFETIME, start + timedelta(hours=1)),
            interval=_DEVICE_INTERVAL
            if interval is None
            else min(max(interval - start, timedelta(seconds=1)), longest),
        )

    async def poll_device(self, app: OAuthApp, device: DeviceAuthorization) -> TokenSet:
        """Asks once whether the user has decided. The caller waits `device.interval` between two calls.

        Raises:
            DevicePending: Not yet.
            TokenRefused: The user declined (`access_denied`), the time is over (`expired_token`), or another refusal.
        """
        if self._clock.now() >= device.expire_time:
            raise TokenRefused(
                RefusalKind.PERMANENT,
                "the time to sign in on the other device is over",
                error="expired_token",
                was_sent=False,
            )
        spec = requests.oauth_of(app)
        params = {"grant_type": _DEVICE_GRANT, "device_code": device.device_code.reveal()}
        try:
            return await self._tokens(app, params, spec.token_url, {}, EXCHANGE_SECONDS)
        except TokenRefused as refused:
            if refused.error in (AUTHORIZATION_PENDING, SLOW_DOWN):
                raise DevicePending(slow_down=refused.error == SLOW_DOWN) from None
            raise

    async def revoke(self, app: OAuthApp, tokens: TokenSet) -> None:
        """Ends the grant at the provider (RFC 7009): the refresh token first, which ends the most. May be repeated.

        At a provider without such an endpoint nothing happens; see `can_revoke`.

        Raises:
            TokenRefused: It is not known to have ended.
        """
        spec = requests.oauth_of(app)
        if spec.revoke_url is None:
            return
        refresh_token = None if spec.revoke_access_token else tokens.refresh_token
        token, hint = (
            (tokens.access_token, "access_token") if refresh_token is None else (refresh_token, "refresh_token")
        )
        params = {"token": token.reveal(), "token_type_hint": hint}
        answer = await self._ask(
            app, params, spec.revoke_url, tokens.extra, REVOKE_SECONDS, with_auth=spec.revoke_with_auth
        )
        try:
            refuse_errors(
                spec.answer, answer, parse_document(answer.body), provider=app.provider.slug, now=self._clock.now()
            )
        except TokenRefused as refused:
            # What the provider does not know any more has ended.
            if refused.error not in ("invalid_grant", "invalid_token"):
                raise

    def can_revoke(self, app: OAuthApp) -> bool:
        """Tells whether the provider has an endpoint to revoke at."""
        return requests.oauth_of(app).revoke_url is not None

    async def identify(self, app: OAuthApp, tokens: TokenSet, *, nonce: str | None) -> Account:
        """Tells whose tokens these are. The tokens are stored before: what fails here never costs them.

        Args:
            app: Whose tokens.
            tokens: As they came from the exchange, with the ID token where there is one.
            nonce: Of the authorization URL; None when there was none.

        Returns:
            The account; its id is empty when the provider has no way to tell.

        Raises:
            TokenRefused: It cannot be told; the tokens may be good nevertheless.
        """
        return await self._identity.identify(app, tokens, nonce=nonce)

    async def identify_fields(
        self, provider: Provider, fields: Mapping[str, Secret], variables: Mapping[str, str]
    ) -> Account:
        """Tells whose key or password this is, and so whether it works.

        Args:
            provider: Of the kind `api_key` or `basic`.
            fields: The texts that make up the connection, checked.
            variables: The checked variables.

        Raises:
            TokenRefused: PERMANENT: the provider does not take it. Otherwise it cannot be told now.
        """
        return await self._identity.identify_fields(provider, fields, variables)

    async def _tokens(
        self,
        app: OAuthApp,
        params: Mapping[str, str],
        template: UrlTemplate | None,
        extra: Mapping[str, str],
        timeout_seconds: float,
    ) -> TokenSet:
        """Asks the token endpoint, with the next client secret when one is clearly refused."""
        spec = requests.oauth_of(app)
        deadline = self._clock.monotonic() + timeout_seconds
        secrets: tuple[Secret | None, ...] = app.client_secrets or (None,)
        for index, secret in enumerate(secrets):
            start = self._clock.now()
            seconds = max(deadline - self._clock.monotonic(), 0.1)
            answer = await self._ask(app, params, template, extra, seconds, secret=secret)
            try:
                return read_tokens(spec, answer, provider=app.provider.slug, start=start, now=self._clock.now())
            except TokenRefused as refused:
                is_last = index == len(secrets) - 1
                # A client that is refused has spent neither code nor refresh token.
                if is_last or refused.error != "invalid_client" or self._clock.monotonic() >= deadline:
                    raise
        raise AssertionError("unreachable: there is at least one attempt")

    async def _ask(
        self,
        app: OAuthApp,
        params: Mapping[str, str],
        template: UrlTemplate | None,
        extra: Mapping[str, str],
        timeout_seconds: float,
        *,
        secret: Secret | None = None,
        with_auth: bool = True,
    ) -> Answer:
        if secret is None and app.client_secrets:
            secret = app.client_secrets[0]
        request = requests.token_request(
            app, params, secret=secret, now=self._clock.now(), template=template, extra=extra, with_auth=with_auth
        )
        try:
            return await self._egress.request(
                "POST", request.to, headers=request.headers, body=request.body, timeout_seconds=timeout_seconds
            )
        except EgressFailed as failed:
            raise refused_by_network(app.provider.slug, failed) from failed


def refused_by_network(provider: str, failed: EgressFailed) -> TokenRefused:
    """Returns what it means that there is no answer: after the first byte nobody knows what the provider did."""
    match failed.kind:
        case Failure.REFUSED:
            # The address is the integration's, not the user's.
            kind = RefusalKind.INTEGRATION
        case Failure.TOO_LARGE:
            kind = RefusalKind.MALFORMED if failed.status is not None and failed.status < 300 else RefusalKind.TRANSIENT
        case _:
            kind = RefusalKind.UNKNOWN_OUTCOME if failed.was_sent else RefusalKind.TRANSIENT
    return TokenRefused(kind, f"{provider}: {failed}", was_sent=failed.was_sent, status=failed.status)


def _web_address(value: Any) -> str | None:
    """Returns an address that may be shown to a person, or None."""
    try:
        to = parse_destination(value)
    except (TypeError, ValueError):
        return None
    return to.url if to.scheme == "https" or to.host in ("127.0.0.1", "localhost", "::1") else None


__all__ = ["DevicePending", "OAuthClient", "TokenRefused", "read_scopes", "refused_by_network"]
