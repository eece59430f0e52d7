"""Callbacks that are the provider's own, and those that are not: issuer, signature, and what is kept of them."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest

from services.auth.oauth.callback import captured_from, check_callback
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers import ProviderCatalog
from services.auth.secrets import Secret
from tests.fakes.oauth_provider import FakeOAuthProvider, with_oauth

CATALOG = ProviderCatalog.load()
ISSUER = "https://id.example/a"


def app(slug: str, **changes: object) -> OAuthApp:
    provider = CATALOG.get(slug)
    assert provider is not None
    variables = {"shop": "acme"} if slug == "shopify" else {}
    return OAuthApp(with_oauth(provider, **changes), "client-1", (Secret("old"), Secret("new")), variables)


@pytest.mark.parametrize(
    ("promised", "issuer", "is_good"),
    [
        (True, ISSUER, True),
        (True, None, False),
        (True, "https://evil.example", False),
        (False, None, True),
        (False, ISSUER, True),
        (False, "https://evil.example", False),
        # Compared as texts: nothing is normalized.
        (True, f"{ISSUER}/", False),
        (True, "https://ID.example/a", False),
        (True, "https://id.example:443/a", False),
        (True, "https://id.example/%61", False),
        (True, "", False),
        (True, "https://id.exämple/a", False),
    ],
)
@pytest.mark.parametrize("outcome", [{"code": "c"}, {"error": "access_denied", "error_description": "canary"}])
def test_issuer_is_held_to_what_was_promised(
    promised: bool, issuer: str | None, is_good: bool, outcome: dict[str, str]
) -> None:
    made = app("oauth2", issuer=ISSUER, iss_in_callback=promised)
    back = {"state": "s", **outcome} | ({} if issuer is None else {"iss": issuer})
    if is_good:
        check_callback(made, back)
        return
    with pytest.raises(TokenRefused) as caught:
        check_callback(made, back)
    assert (caught.value.kind, caught.value.was_sent) == (RefusalKind.MALFORMED, False)
    assert "canary" not in str(caught.value)
    assert "evil" not in str(caught.value)


async def test_code_of_a_foreign_callback_is_not_exchanged(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    made = provider.app(issuer=provider.url, iss_in_callback=True)
    with pytest.raises(TokenRefused, match="not from this provider"):
        await client.exchange_code(
            made,
            code="c",
            redirect_uri="https://h.example/cb",
            code_verifier="v" * 64,
            callback_params={"code": "c", "iss": "https://evil.example"},
        )
    assert provider.requests == []


def signed(params: dict[str, str], secret: str) -> dict[str, str]:
    message = "&".join(f"{name}={value}" for name, value in sorted(params.items()))
    return params | {"hmac": hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()}


def test_signed_callback_is_taken_with_any_of_the_secrets_and_without_a_change() -> None:
    shopify = app("shopify")
    params = {"code": "c", "shop": "acme.myshopify.com", "state": "s", "timestamp": "1"}
    for secret in ("old", "new"):
        check_callback(shopify, signed(params, secret))
    good = signed(params, "new")
    bad = [
        signed(params, "another"),
        params,
        good | {"hmac": ""},
        good | {"hmac": "é"},
        good | {"code": "d"},
        good | {"extra": "x"},
        good | {"shop": "evil.myshopify.com"},
    ]
    for back in bad:
        with pytest.raises(TokenRefused, match="not signed"):
            check_callback(shopify, back)
    with pytest.raises(TokenRefused, match="not signed"):
        check_callback(replace(shopify, client_secrets=()), good)


def test_only_what_the_data_names_is_kept_and_only_when_it_fits() -> None:
    assert captured_from(app("quickbooks"), {"realmId": "123", "code": "c", "state": "s"}) == {"realm_id": "123"}
    for value in ("", "12a", "1" * 40, "123\n", "123/../4"):
        assert captured_from(app("quickbooks"), {"realmId": value}) == {}
    place = {"accounts-server": "https://accounts.zoho.eu", "location": "eu"}
    assert captured_from(app("zoho"), place) == {"accounts_url": "https://accounts.zoho.eu"}
    for value in ("https://evil.example", "http://accounts.zoho.eu", "https://accounts.zoho.eu@evil.example", "x"):
        assert captured_from(app("zoho"), {"accounts-server": value}) == {}
