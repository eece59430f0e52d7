"""Whose account a token is for: ID tokens that prove it and all that do not, and providers that are asked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import Account, OAuthApp, TokenSet
from services.auth.providers import ProviderCatalog
from services.auth.providers.templates import UrlTemplate
from services.auth.secrets import Secret
from services.shared.clock import SystemClock
from services.shared.egress import EgressClient
from tests.fakes.clock import FakeClock
from tests.fakes.oauth_provider import CLIENT_ID, FakeOAuthProvider, Fault, with_oauth


@pytest.fixture
def app(provider: FakeOAuthProvider) -> OAuthApp:
    return provider.with_openid()


def tokens(provider: FakeOAuthProvider, nonce: str | None = "n", **changes: Any) -> TokenSet:
    grant = provider.grant()
    return replace(grant.tokens(), id_token=Secret(provider.id_token(grant, nonce, **changes)))


async def refused(call: Awaitable[Any]) -> TokenRefused:
    async with asyncio.timeout(10):
        with pytest.raises(TokenRefused) as caught:
            await call
    return caught.value


async def test_verified_token_names_the_account(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp
) -> None:
    account = await client.identify(app, tokens(provider), nonce="n")
    assert account == Account("ada", "ada@example.com")
    await client.identify(app, tokens(provider), nonce="n")
    assert [request.path for request in provider.requests] == ["/jwks"], "keys are kept"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"aud": "somebody else"}, "another app"),
        ({"aud": None}, "another app"),
        ({"aud": [CLIENT_ID, "other"]}, "another app"),
        ({"aud": [CLIENT_ID, "other"], "azp": "other"}, "another app"),
        ({"exp": 1}, "not valid now"),
        ({"exp": None}, "without an end"),
        ({"exp": "tomorrow"}, "without an end"),
        ({"nbf": 99_999_999_999}, "not valid now"),
        ({"nonce": "other"}, "another sign-in"),
        ({"nonce": None}, "another sign-in"),
        ({"nonce": 7}, "another sign-in"),
        ({"sub": None}, "whose account"),
        ({"sub": ""}, "whose account"),
        ({"sub": "a" * 300}, "whose account"),
        ({"sub": "a\nb"}, "whose account"),
        ({"sub": ["ada"]}, "whose account"),
    ],
)
async def test_token_that_is_not_for_this_sign_in_names_nobody(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp, changes: dict[str, Any], told: str
) -> None:
    failed = await refused(client.identify(app, tokens(provider, **changes), nonce="n"))
    assert told in str(failed)
    assert failed.kind is RefusalKind.MALFORMED


@pytest.mark.parametrize("seconds", [-50, 50])
async def test_a_minute_of_difference_between_the_clocks_is_borne(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp, seconds: int
) -> None:
    now = int(SystemClock().now().timestamp())
    changes: dict[str, Any] = {"exp": now + seconds} if seconds < 0 else {"nbf": now + seconds}
    assert (await client.identify(app, tokens(provider, **changes), nonce="n")).account_id == "ada"


async def test_token_for_several_names_the_app_it_was_made_for(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp
) -> None:
    several = tokens(provider, aud=[CLIENT_ID, "other"], azp=CLIENT_ID)
    assert (await client.identify(app, several, nonce="n")).account_id == "ada"


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_forged_signatures_name_nobody(client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp) -> None:
    grant = provider.grant()
    good = provider.id_token(grant, "n")
    head, claims, signature = good.split(".")
    public = base64.b64encode(provider.key.as_pem(private=False))
    other = RSAKey.generate_key(2048)
    # The classics: no algorithm, the public key as a shared secret, another key, another content.
    forged = [
        f"{_part({'alg': 'none'})}.{claims}.",
        f"{_part({'alg': 'none', 'kid': provider.key.kid})}.{claims}.{signature}",
        jwt.encode({"alg": "HS256", "kid": provider.key.kid}, {"sub": "eve"}, OctKey.import_key(public)),
        provider_token_with(other, provider, kid=provider.key.kid),
        provider_token_with(other, provider, kid="other"),
        f"{head}.{_part({'iss': provider.url, 'sub': 'eve', 'aud': CLIENT_ID, 'exp': 9_999_999_999})}.{signature}",
        f"{head}.{claims}",
        "not a token",
        "",
        "...",
        "[" * 5_000,
        f"{_part([])}.{claims}.{signature}",
    ]
    for text in forged:
        failed = await refused(client.identify(app, replace(grant.tokens(), id_token=Secret(text)), nonce="n"))
        assert "signed" in str(failed), text[:50]


def provider_token_with(key: RSAKey, provider: FakeOAuthProvider, *, kid: str | None) -> str:
    now = int(SystemClock().now().timestamp())
    claims = {"iss": provider.url, "sub": "eve", "aud": CLIENT_ID, "exp": now + 300, "nonce": "n"}
    return jwt.encode({"alg": "RS256", "kid": kid}, claims, key)


async def test_new_key_of_the_issuer_is_fetched_once_a_minute(
    egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    clock = FakeClock(SystemClock().now())
    client = OAuthClient(egress, clock)
    app = provider.with_openid()
    await client.identify(app, tokens(provider), nonce="n")
    # The issuer rotates its key; whoever shows a token with an unknown key cannot make us ask all the time.
    provider.rotate_key()
    for _ in range(3):
        await refused(client.identify(app, tokens(provider), nonce="n"))
    assert len(provider.requests) == 1
    await clock.advance(61)
    assert (await client.identify(app, tokens(provider), nonce="n")).account_id == "ada"
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    "keys",
    [
        Fault.unavailable(),
        Fault.html(200),
        Fault.redirect("https://evil.example/"),
        {"keys": []},
        {"keys": [{"kty": "oct", "k": "AAAA"}, {"kty": "XYZ"}, 7, {"kty": "RSA"}]},
        {"keys": "x"},
        [],
    ],
)
async def test_issuer_without_usable_keys_proves_nobody(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp, keys: Any
) -> None:
    provider.documents["/keys"] = keys
    app = replace(app, provider=with_oauth(app.provider, jwks_url=UrlTemplate.parse("{base}/keys")))
    failed = await refused(client.identify(app, tokens(provider), nonce="n"))
    assert failed.kind in (RefusalKind.MALFORMED, RefusalKind.TRANSIENT)


async def test_issuer_with_the_users_directory_in_it_is_completed_by_the_claim(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp
) -> None:
    app = replace(app, provider=with_oauth(app.provider, issuer="https://login.example/{claim.tid}/v2.0"))
    good = tokens(provider, iss="https://login.example/d1/v2.0", tid="d1")
    assert (await client.identify(app, good, nonce="n")).account_id == "ada"
    for tid in ("d2", "../d1", None, 7, ""):
        other = tokens(provider, iss="https://login.example/d1/v2.0", tid=tid)
        assert "another issuer" in str(await refused(client.identify(app, other, nonce="n")))


async def test_missing_id_token_names_nobody(client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp) -> None:
    assert "no ID token" in str(await refused(client.identify(app, provider.grant().tokens(), nonce="n")))


# ------------------------------------------------------------------------------------------------- asking the provider


async def test_bad_id_token_beside_a_question_is_a_refusal_too(
    client: OAuthClient, provider: FakeOAuthProvider, app: OAuthApp
) -> None:
    asking = replace(app, provider=replace(app.provider, account=provider.data.account))
    assert (await client.identify(asking, tokens(provider), nonce="n")).label == "Ada"
    assert "another app" in str(await refused(client.identify(asking, tokens(provider, aud="x"), nonce="n")))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Fault.error("x", 401), RefusalKind.PERMANENT),
        (Fault.error("x", 403), RefusalKind.INTEGRATION),
        (Fault.unavailable(), RefusalKind.TRANSIENT),
        (Fault.redirect("https://evil.example/"), RefusalKind.TRANSIENT),
        (Fault.html(200), RefusalKind.MALFORMED),
        (Fault.huge(), RefusalKind.TRANSIENT),
        (Fault.answer(b"[" * 100_000), RefusalKind.MALFORMED),
        ({"name": "Ada"}, RefusalKind.MALFORMED),
        ({"id": None}, RefusalKind.MALFORMED),
        ({"id": {"a": 1}}, RefusalKind.MALFORMED),
        ([], RefusalKind.MALFORMED),
    ],
)
async def test_question_without_an_answer_names_nobody(
    client: OAuthClient, provider: FakeOAuthProvider, answer: Any, kind: RefusalKind
) -> None:
    provider.documents["/who"] = answer
    app = provider.app()
    assert app.provider.account is not None
    rule = replace(app.provider.account, url=UrlTemplate.parse("{base}/who"))
    app = replace(app, provider=replace(app.provider, account=rule))
    assert (await refused(client.identify(app, provider.grant().tokens(), nonce=None))).kind is kind


async def test_label_is_for_people_and_shows_no_control_characters(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    provider.documents["/who"] = {"id": 7, "name": "A\u202eda\n\x1b[31m" + "x" * 500}
    app = provider.app()
    assert app.provider.account is not None
    rule = replace(app.provider.account, url=UrlTemplate.parse("{base}/who"))
    account = await client.identify(
        replace(app, provider=replace(app.provider, account=rule)), provider.grant().tokens(), nonce=None
    )
    assert account.account_id == "7"
    assert account.label.isprintable()
    assert len(account.label) == 255


async def test_provider_without_a_way_to_tell_gives_an_empty_id(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app()
    app = replace(app, provider=replace(app.provider, account=None))
    assert await client.identify(app, provider.grant().tokens(), nonce=None) == Account("", "Fake")


async def test_key_is_tried_where_it_is_entered(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    stripe = ProviderCatalog.load().get("stripe")
    assert stripe is not None
    assert stripe.account is not None
    rule = replace(stripe.account, url=UrlTemplate.literal(f"{provider.url}/who"))
    stripe = replace(stripe, account=rule)
    provider.documents["/who"] = {"id": "acct_1", "email": "ada@example.com"}
    key = Secret("rk_test_canary")
    assert await client.identify_fields(stripe, {"api_key": key}, {}) == Account("acct_1", "ada@example.com")
    assert provider.requests[0].headers["authorization"] == "Bearer rk_test_canary"
    provider.documents["/who"] = Fault.error("invalid", 401)
    failed = await refused(client.identify_fields(stripe, {"api_key": key}, {}))
    assert failed.kind is RefusalKind.PERMANENT
    assert "canary" not in str(failed)
    openai = ProviderCatalog.load().get("openai")
    assert openai is not None
    assert await client.identify_fields(openai, {"api_key": key}, {}) == Account("", "OpenAI")


async def test_expired_id_token_costs_no_token(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    """A refresh is never refused for an ID token beside it: nobody looks at that one (stacklok/toolhive #6194)."""
    grant = provider.grant()
    bad = provider.id_token(grant, "n", aud="somebody else", exp=1)
    body = json.dumps({"access_token": "a", "refresh_token": "r", "id_token": bad}).encode()
    provider.faults.append(Fault.answer(body))
    got = await client.refresh(provider.app(), grant.tokens())
    assert got.refresh_token is not None
    assert got.refresh_token.reveal() == "r"
    assert got.obtain_time - SystemClock().now() < timedelta(seconds=1)
