"""The client against a certified OpenID provider that nobody here wrote, with strict rotation of refresh tokens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import DevicePending, ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp, TokenSet
from tests.fakes.oidc_provider import REDIRECT_URI, NodeUnavailable, OidcProvider, running


@pytest.fixture(scope="module")
def panva() -> Iterator[OidcProvider]:
    try:
        with running() as provider:
            yield provider
    except NodeUnavailable as error:
        pytest.skip(f"oidc-provider cannot run here: {error}")


async def signed_in(
    client: OAuthClient,
    panva: OidcProvider,
    app: OAuthApp,
    *,
    nonce: str | None = "nonce-1",
    resource: str | None = None,
) -> TokenSet:
    verifier = secrets.token_urlsafe(48)
    url = client.authorization_url(
        app,
        redirect_uri=REDIRECT_URI,
        state="state-1",
        code_challenge=base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode(),
        scopes=app.provider.with_mandatory_scopes(("email", "read")),
        nonce=nonce,
        resource=resource,
    )
    back = await panva.sign_in(url)
    assert back["state"] == "state-1"
    client.check_callback(app, back)
    return await client.exchange_code(
        app,
        code=back["code"],
        redirect_uri=REDIRECT_URI,
        code_verifier=verifier,
        resource=resource,
        callback_params=back,
    )


@pytest.mark.parametrize("client_id", ["holdfast-post", "holdfast-basic", "holdfast-public"])
async def test_sign_in_refresh_and_reuse_from_end_to_end(
    client: OAuthClient, panva: OidcProvider, client_id: str
) -> None:
    async with asyncio.timeout(60):
        app = panva.app(client_id)
        first = await signed_in(client, panva, app)
        account = await client.identify(app, first, nonce="nonce-1")
        assert (account.account_id, account.label) == ("ada", "ada@example.com")
        assert first.refresh_token is not None
        assert first.expire_time is not None
        second = await client.refresh(app, first)
        assert second.refresh_token is not None
        third = await client.refresh(app, second)
        revoked = (await panva.state())["grants_revoked"]
        # Whoever uses a spent token again, be it a thief or a second replica, ends the grant for everybody.
        with pytest.raises(TokenRefused) as caught:
            await client.refresh(app, first)
        assert caught.value.kind is RefusalKind.PERMANENT
        assert caught.value.reauth_reason is ReauthReason.GRANT_REVOKED
        assert (await panva.state())["grants_revoked"] == revoked + 1
        with pytest.raises(TokenRefused):
            await client.refresh(app, third)


async def test_id_token_of_another_sign_in_identifies_nobody_and_costs_no_token(
    client: OAuthClient, panva: OidcProvider
) -> None:
    app = panva.app()
    tokens = await signed_in(client, panva, app)
    with pytest.raises(TokenRefused, match="another sign-in"):
        await client.identify(app, tokens, nonce="nonce-2")
    assert (await client.refresh(app, tokens)).refresh_token is not None


async def test_callback_without_its_promised_issuer_is_refused(client: OAuthClient, panva: OidcProvider) -> None:
    app = panva.app()
    client.check_callback(app, {"code": "c", "iss": panva.url})
    for back in (
        {"code": "c"},
        {"code": "c", "iss": f"{panva.url}/"},
        {"error": "access_denied", "iss": "https://evil"},
    ):
        with pytest.raises(TokenRefused):
            client.check_callback(app, back)


async def test_token_for_a_resource_is_for_it_alone(client: OAuthClient, panva: OidcProvider) -> None:
    app = panva.app()
    tokens = await signed_in(client, panva, app, resource="https://mcp.example/v1")
    claims = base64.urlsafe_b64decode(tokens.access_token.reveal().split(".")[1] + "==")
    assert b'"aud":"https://mcp.example/v1"' in claims
    refreshed = await client.refresh(app, tokens, resource="https://mcp.example/v1")
    assert refreshed.access_token.reveal().count(".") == 2


async def test_device_flow_waits_for_the_user(client: OAuthClient, panva: OidcProvider) -> None:
    async with asyncio.timeout(60):
        app = panva.app()
        device = await client.start_device(app, scopes=("openid", "offline_access", "email"))
        with pytest.raises(DevicePending):
            await client.poll_device(app, device)
        await panva.approve_device(device)
        tokens = await client.poll_device(app, device)
        assert tokens.refresh_token is not None
        account = await client.identify(app, tokens, nonce=None)
        assert account.account_id == "ada"


async def test_revocation_ends_the_grant(client: OAuthClient, panva: OidcProvider) -> None:
    app = panva.app()
    tokens = await signed_in(client, panva, app)
    await client.revoke(app, tokens)
    with pytest.raises(TokenRefused) as caught:
        await client.refresh(app, tokens)
    assert caught.value.kind is RefusalKind.PERMANENT


async def test_wrong_client_secret_is_the_integrations_fault(client: OAuthClient, panva: OidcProvider) -> None:
    app = panva.app()
    tokens = await signed_in(client, panva, app)
    wrong = panva.app("holdfast-post")
    wrong = replace(wrong, client_secrets=(type(wrong.client_secrets[0])("wrong"),))
    with pytest.raises(TokenRefused) as caught:
        await client.refresh(wrong, tokens)
    assert caught.value.kind is RefusalKind.INTEGRATION
    both = replace(wrong, client_secrets=(*wrong.client_secrets, *app.client_secrets))
    assert (await client.refresh(both, tokens)).refresh_token is not None
