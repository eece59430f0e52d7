"""Writes what is sent to a provider: the address of a sign-in, and requests to its token endpoint, by its data."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

from holdfast.ids import new_uuid7
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers.schema import BodyFormat, ClientAuth, OAuthSpec, Pkce
from services.auth.providers.templates import UrlTemplate, VariableMissing, fill
from services.auth.secrets import Secret
from services.shared.egress import Destination

_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, eq=False)
class TokenRequest:
    """One request, ready to be sent. Nothing of it is shown: it holds the secrets in the open."""

    to: Destination
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def oauth_of(app: OAuthApp) -> OAuthSpec:
    """Returns the OAuth part of the app's provider.

    Raises:
        ValueError: It has none.
    """
    if app.provider.oauth is None:
        raise ValueError(f"{app.provider.slug} is not connected by OAuth")
    return app.provider.oauth


def address(app: OAuthApp, template: UrlTemplate | None, extra: Mapping[str, str] | None = None) -> Destination:
    """Returns an endpoint with the variables of the app, and captures before them, in place.

    Raises:
        TokenRefused: The provider has no such endpoint, or the integration lacks a variable.
    """
    slug = app.provider.slug
    if template is None:
        raise _misconfigured(f"{slug} has no such endpoint")
    try:
        return template.expand(values_of(app, extra))
    except VariableMissing as missing:
        raise _misconfigured(f"{slug}: {missing}") from None
    except ValueError:
        raise _misconfigured(f"{slug}: its variables make no address") from None


def values_of(app: OAuthApp, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns what places in the provider's data are filled with."""
    defaults = {item.name: item.default for item in app.provider.variables.values() if item.default is not None}
    return {**defaults, **app.variables, "client_id": app.client_id, **(extra or {})}


def authorization_url(
    app: OAuthApp,
    *,
    redirect_uri: str,
    state: str,
    code_challenge: str,
    scopes: tuple[str, ...],
    nonce: str | None,
    resource: str | None,
    force_consent: bool,
) -> str:
    """Returns where the user's browser goes to sign in."""
    spec = oauth_of(app)
    to = address(app, spec.authorize_url)
    params = {"response_type": "code", "client_id": app.client_id, "redirect_uri": redirect_uri, "state": state}
    params |= _scope_params(app, scopes)
    if spec.pkce is Pkce.S256:
        params |= {"code_challenge": code_challenge, "code_challenge_method": "S256"}
    if nonce is not None:
        params["nonce"] = nonce
    params |= resource_params(app, resource)
    params |= _filled(app, spec.extra_authorize_params)
    if force_consent:
        params |= _filled(app, spec.force_consent_params)
    query = urlencode(_renamed(spec, params), quote_via=quote, safe="")
    return f"{to.url}{'&' if to.query else '?'}{query}"


def token_request(
    app: OAuthApp,
    params: Mapping[str, str],
    *,
    secret: Secret | None,
    now: datetime,
    template: UrlTemplate | None = None,
    extra: Mapping[str, str] | None = None,
    with_auth: bool = True,
) -> TokenRequest:
    """Returns a request to the token endpoint, or to another one that is spoken to in the same way.

    Args:
        app: Whose request it is.
        params: Without the app's own proof.
        secret: The one to prove it with; None for a public client.
        now: For the times of a signed assertion.
        template: The endpoint, when it is not the token endpoint.
        extra: Captures, which fill places in the address.
        with_auth: Whether the app proves itself.
    """
    spec = oauth_of(app)
    to = address(app, template or spec.token_url, extra)
    headers = {"accept": "application/json"}
    headers |= {name.lower(): fill(value, values_of(app, extra)) for name, value in spec.headers.items()}
    sent = dict(params)
    if with_auth:
        _prove(app, sent, headers, secret, now=now, audience=to.url)
    sent = _renamed(spec, sent)
    if spec.body is BodyFormat.JSON:
        headers["content-type"] = "application/json"
        body = json.dumps(sent).encode()
    else:
        headers["content-type"] = "application/x-www-form-urlencoded"
        body = urlencode(sent).encode()
    return TokenRequest(to, headers, body)


def resource_params(app: OAuthApp, resource: str | None) -> dict[str, str]:
    """Returns whom the tokens are for: as the caller says, or else as the provider's data does."""
    named = resource or oauth_of(app).resource
    return {} if named is None else _filled(app, {"resource": named})


def scope_text(spec: OAuthSpec, scopes: tuple[str, ...]) -> str:
    """Returns scopes as the provider wants them."""
    return spec.scope_separator.join(scopes)


def _scope_params(app: OAuthApp, scopes: tuple[str, ...]) -> dict[str, str]:
    spec = oauth_of(app)
    known = app.provider.scopes
    user = tuple(name for name in scopes if name in known and known[name].is_user) if spec.user_scope_param else ()
    rest = tuple(name for name in scopes if name not in user)
    params = {}
    if rest:
        params["scope"] = scope_text(spec, rest)
    if user and spec.user_scope_param:
        params[spec.user_scope_param] = scope_text(spec, user)
    return params


def _prove(
    app: OAuthApp,
    params: dict[str, str],
    headers: dict[str, str],
    secret: Secret | None,
    *,
    now: datetime,
    audience: str,
) -> None:
    """Adds the app's proof of who it is."""
    method = oauth_of(app).client_auth
    if secret is None or secret.is_empty:
        # A public client says who it is and proves it by PKCE.
        params["client_id"] = app.client_id
        return
    match method:
        case ClientAuth.BASIC:
            # RFC 6749 §2.3.1: both are form-encoded before they are joined.
            pair = f"{quote(app.client_id, safe='')}:{quote(secret.reveal(), safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        case ClientAuth.POST:
            params |= {"client_id": app.client_id, "client_secret": secret.reveal()}
        case ClientAuth.PRIVATE_KEY_JWT:
            assertion = _assertion(app, secret, now=now, audience=audience)
            params |= {
                "client_id": app.client_id,
                "client_assertion_type": _ASSERTION_TYPE,
                "client_assertion": assertion,
            }
        case ClientAuth.NONE:
            params["client_id"] = app.client_id


def _assertion(app: OAuthApp, secret: Secret, *, now: datetime, audience: str) -> str:
    """Returns a signed proof for one request (RFC 7523 §2.2)."""
    try:
        key = _private_key(secret)
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519"}[key.key_type]
        at = int(now.timestamp())
        claims = {"iss": app.client_id, "sub": app.client_id, "aud": audience, "jti": str(new_uuid7())}
        header: dict[str, Any] = {"alg": algorithm, "typ": "JWT"}
        if key.kid:
            header["kid"] = key.kid
        return jwt.encode(header, {**claims, "iat": at, "exp": at + _ASSERTION_SECONDS}, key, algorithms=[algorithm])
    except (JoseError, ValueError, KeyError, TypeError):
        # Without the cause: it may show a part of the key.
        raise _misconfigured(f"{app.provider.slug}: the client secret is no private key") from None


def _private_key(secret: Secret) -> Key:
    text = secret.reveal().strip()
    if text.startswith("{"):
        return JWKRegistry.import_key(json.loads(text))
    for kind in ("RSA", "EC", "OKP"):
        try:
            return JWKRegistry.import_key(text, kind)
        except (JoseError, ValueError, TypeError):
            continue
    raise ValueError


def _renamed(spec: OAuthSpec, params: Mapping[str, str]) -> dict[str, str]:
    return {spec.param_names.get(name, name): value for name, value in params.items()}


def _filled(app: OAuthApp, params: Mapping[str, str]) -> dict[str, str]:
    try:
        return {name: fill(value, values_of(app)) for name, value in params.items()}
    except VariableMissing as missing:
        raise _misconfigured(f"{app.provider.slug}: {missing}") from None


def _misconfigured(message: str) -> TokenRefused:
    return TokenRefused(RefusalKind.INTEGRATION, message, was_sent=False)
