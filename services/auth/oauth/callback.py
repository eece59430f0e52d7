"""Whether a callback is the provider's own, and what of it is kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from services.auth.oauth import requests
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers.schema import CaptureSource
from services.auth.providers.templates import VariableMissing, fill


def check_callback(app: OAuthApp, params: Mapping[str, str]) -> None:
    """Checks `iss` by RFC 9207 and the signature of a provider that signs.

    | promised | there | then                               |
    |----------|-------|------------------------------------|
    | yes      | yes   | the texts are equal, or refused    |
    | yes      | no    | refused                            |
    | no       | yes   | the texts are equal, or refused    |
    | no       | no    | good                               |

    Raises:
        TokenRefused: It is not the provider's.
    """
    spec = app.provider.oauth
    if spec is None:
        raise ValueError(f"{app.provider.slug} is not connected by OAuth")
    issuer = params.get("iss")
    expected = _expected_issuer(app, spec.issuer)
    if issuer is None:
        if spec.iss_in_callback:
            raise _foreign("does not say who sent it")
    # No normalization: two texts that differ are two issuers. Without an expectation there is nothing to hold it to:
    # then the redirect URI, which is one integration's alone, is what keeps providers apart.
    elif expected is not None and not hmac.compare_digest(issuer.encode(), expected.encode()):
        raise _foreign("is not from this provider")
    if spec.callback_hmac_param is not None:
        _check_hmac(app, params, spec.callback_hmac_param)


def _expected_issuer(app: OAuthApp, template: str | None) -> str | None:
    """Returns the issuer; None where the data names none, or one that only an ID token completes."""
    if template is None or "{claim." in template:
        return None
    try:
        return fill(template, requests.values_of(app))
    except VariableMissing:
        return None


def captured_from(app: OAuthApp, params: Mapping[str, str]) -> dict[str, str]:
    """Returns what the provider's data keeps of a callback, and only what fits."""
    spec = app.provider.oauth
    captures = () if spec is None else spec.captures
    return {
        item.name: params[item.at]
        for item in captures
        if item.source is CaptureSource.CALLBACK and item.at in params and item.accepts(params[item.at])
    }


def _check_hmac(app: OAuthApp, params: Mapping[str, str], name: str) -> None:
    """Checks an HMAC-SHA256 in hex over the sorted parameters, by any of the client secrets."""
    given = params.get(name, "")
    message = "&".join(f"{key}={value}" for key, value in sorted(params.items()) if key != name).encode()
    signatures = (
        hmac.new(secret.reveal().encode(), message, hashlib.sha256).hexdigest() for secret in app.client_secrets
    )
    # Not `any`: every secret is tried, so that the time does not tell which one fitted.
    fits = [hmac.compare_digest(signature.encode(), given.encode()) for signature in signatures]
    if True not in fits:
        raise _foreign("is not signed by this provider")


def _foreign(what: str) -> TokenRefused:
    return TokenRefused(RefusalKind.MALFORMED, f"the answer to the sign-in {what}", was_sent=False)
