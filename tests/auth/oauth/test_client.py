"""The client against a provider with quirks: what is sent, what comes of it, and what each failure proves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import DevicePending, ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import DeviceAuthorization, OAuthApp, TokenSet
from services.auth.providers.schema import BodyFormat, ClientAuth, Pkce, Scope, Sensitivity
from services.auth.secrets import Secret
from services.shared.clock import SystemClock
from services.shared.egress import EgressClient, TargetPolicy
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Fault, Profile

CALLBACK = "https://holdfast.example/oauth/callback/i1"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def sign_in(
    client: OAuthClient, app: OAuthApp, egress: EgressClient, **url: Any
) -> tuple[dict[str, str], Callable[..., Awaitable[TokenSet]]]:
    """Lets the user sign in; returns the callback's parameters and how to exchange its code."""
    asked = {"state": "state-1", "code_challenge": CHALLENGE, "scopes": ("read",), **url}
    answer = await egress.request(
        "GET", client.authorization_url(app, redirect_uri=CALLBACK, **asked), timeout_seconds=5
    )
    assert answer.status == 302
    back = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}

    async def exchange(**changes: Any) -> TokenSet:
        given = {"code": back["code"], "code_verifier": VERIFIER, "callback_params": back, **changes}
        return await client.exchange_code(app, redirect_uri=CALLBACK, **given)

    return back, exchange


async def refused(call: Awaitable[Any]) -> TokenRefused:
    async with asyncio.timeout(10):
        with pytest.raises(TokenRefused) as caught:
            await call
    # P8 begins here: whatever is logged of an exception, nothing of the conversation is in it.
    shown = "".join(traceback.format_exception(caught.value))
    assert "canary" not in shown, shown
    return caught.value


# ----------------------------------------------------------------------------------------------- the authorization URL


def test_url_has_challenge_state_nonce_and_resource_and_keeps_what_the_endpoint_already_has(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app(extra_authorize_params={"audience": "api"}, force_consent_params={"prompt": "consent"})
    url = client.authorization_url(
        app,
        redirect_uri=CALLBACK,
        state="s t&",
        code_challenge=CHALLENGE,
        scopes=("read", "write"),
        nonce="n1",
        resource="https://mcp.example/",
        force_consent=True,
    )
    assert url.startswith(f"{provider.url}/authorize?")
    assert {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()} == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": CALLBACK,
        "state": "s t&",
        "scope": "read write",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        "nonce": "n1",
        "resource": "https://mcp.example/",
        "audience": "api",
        "prompt": "consent",
    }


def test_url_follows_the_data_where_the_provider_differs(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app = provider.app(
        pkce=Pkce.NONE, scope_separator=",", user_scope_param="user_scope", param_names={"client_id": "client_key"}
    )
    scopes = {**app.provider.scopes, "search": Scope("search", "search", Sensitivity.READ, is_user=True)}
    app = replace(app, provider=replace(app.provider, scopes=scopes))
    url = client.authorization_url(
        app, redirect_uri=CALLBACK, state="s", code_challenge=CHALLENGE, scopes=("read", "write", "search")
    )
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert query["scope"] == "read,write"
    assert query["user_scope"] == "search"
    assert query["client_key"] == CLIENT_ID
    assert {"client_id", "code_challenge"} & set(query) == set()


def test_url_without_a_variable_is_the_integrations_fault(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app = replace(provider.app(), variables={})
    with pytest.raises(TokenRefused, match="the variable base has no value") as caught:
        client.authorization_url(app, redirect_uri=CALLBACK, state="s", code_challenge=CHALLENGE, scopes=())
    assert (caught.value.kind, caught.value.was_sent) == (RefusalKind.INTEGRATION, False)


# -------------------------------------------------------------------------------------------------------- the exchange


async def test_code_becomes_tokens_and_an_account(
    client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app()
    before = SystemClock().now()
    _, exchange = await sign_in(client, app, egress, scopes=("read", "write"))
    tokens = await exchange()
    assert tokens.refresh_token is not None
    assert tokens.access_token.reveal() == provider.grants[0].access_token
    assert tokens.scopes == ("read", "write")
    assert tokens.token_type == "Bearer"
    assert tokens.expire_time is not None
    assert before <= tokens.obtain_time <= tokens.expire_time - timedelta(hours=1)
    account = await client.identify(app, tokens, nonce=None)
    assert (account.account_id, account.label) == ("ada", "Ada")


async def test_code_works_once_and_only_with_its_verifier(
    client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app()
    _, exchange = await sign_in(client, app, egress)
    assert (await refused(exchange(code_verifier="w" * 64))).error == "invalid_grant"
    _, exchange = await sign_in(client, app, egress)
    await exchange()
    assert (await refused(exchange())).kind is RefusalKind.PERMANENT


@pytest.mark.parametrize(
    ("auth", "body"),
    [
        (ClientAuth.BASIC, BodyFormat.FORM),
        (ClientAuth.BASIC, BodyFormat.JSON),
        (ClientAuth.POST, BodyFormat.FORM),
        (ClientAuth.POST, BodyFormat.JSON),
    ],
)
async def test_app_proves_itself_as_the_data_says(
    client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider, auth: ClientAuth, body: BodyFormat
) -> None:
    # What is not a letter has to survive the encoding of Basic (RFC 6749 §2.3.1).
    provider.client_secrets = ("s:e/c+r%e t",)
    app = provider.app(client_auth=auth, body=body, headers={"X-Version": "3"})
    _, exchange = await sign_in(client, app, egress)
    await exchange()
    request = provider.requests[-1]
    assert request.headers["x-version"] == "3"
    assert request.headers["content-type"].endswith("json" if body is BodyFormat.JSON else "urlencoded")
    assert ("client_secret" in request.params) is (auth is ClientAuth.POST)
    assert ("authorization" in request.headers) is (auth is ClientAuth.BASIC)


async def test_public_client_says_only_who_it_is(
    client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    provider.client_secrets = ()
    app = replace(provider.app(client_auth=ClientAuth.NONE), client_secrets=())
    _, exchange = await sign_in(client, app, egress)
    await exchange()
    assert provider.requests[-1].params["client_id"] == CLIENT_ID
    assert "client_secret" not in provider.requests[-1].params


async def test_app_with_a_key_signs_an_assertion_for_the_token_endpoint(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    key = ECKey.generate_key("P-256")
    app = provider.app(key.as_pem(private=True).decode(), client_auth=ClientAuth.PRIVATE_KEY_JWT)
    assert (await refused(client.client_credentials(app, scopes=()))).error == "invalid_client"
    params = provider.requests[-1].params
    claims = jwt.decode(params["client_assertion"], key, algorithms=["ES256"]).claims
    assert (claims["iss"], claims["sub"], claims["aud"]) == (CLIENT_ID, CLIENT_ID, f"{provider.url}/token")
    assert claims["exp"] - claims["iat"] == 60
    assert "client_secret" not in params


async def test_key_that_is_none_is_the_integrations_fault_and_is_not_shown(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app("canary no key", client_auth=ClientAuth.PRIVATE_KEY_JWT)
    failed = await refused(client.client_credentials(app, scopes=()))
    assert (failed.kind, failed.was_sent, provider.requests) == (RefusalKind.INTEGRATION, False, [])


async def test_next_client_secret_is_tried_when_one_is_clearly_refused(
    client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app("old-canary", CLIENT_SECRET)
    _, exchange = await sign_in(client, app, egress)
    assert (await exchange()).refresh_token is not None
    assert [request.params["client_secret"] for request in provider.requests[-2:]] == ["old-canary", CLIENT_SECRET]


async def test_client_whose_every_secret_is_refused_is_the_integrations_fault(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    tokens = provider.grant().tokens()
    failed = await refused(client.refresh(provider.app("canary-1", "canary-2"), tokens))
    assert (failed.kind, failed.error, failed.reauth_reason) == (RefusalKind.INTEGRATION, "invalid_client", None)
    assert provider.token_calls == 2


async def test_other_failures_are_not_repeated_with_the_next_secret(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    tokens = provider.grant().tokens()
    provider.faults.extend([Fault.html(), Fault.html()])
    await refused(client.refresh(provider.app("a", "b"), tokens))
    assert provider.token_calls == 1


# ---------------------------------------------------------------------------------------------------------- refreshing


async def test_refresh_rotates_and_reuse_ends_the_grant(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app, grant = provider.app(), provider.grant()
    first = grant.tokens()
    second = await client.refresh(app, first)
    assert second.refresh_token is not None
    assert second.refresh_token.reveal() == grant.refresh_token
    failed = await refused(client.refresh(app, first))
    assert (failed.kind, failed.reauth_reason) == (RefusalKind.PERMANENT, ReauthReason.GRANT_REVOKED)
    assert (provider.reuses_detected, grant.is_alive) == (1, False)


async def test_answer_without_a_refresh_token_carries_over_the_old_one(client: OAuthClient) -> None:
    async with FakeOAuthProvider(Profile.steady()) as provider:
        old = provider.grant().tokens()
        new = await client.refresh(provider.app(), old)
        assert new.refresh_token is None
        carried = new.carrying_over(replace(old, scopes=("read", "extra"), extra={"realm": "7"}))
        assert carried.refresh_token is old.refresh_token
        assert carried.access_token is new.access_token
        assert carried.scopes == ("read",)
        assert carried.extra == {"realm": "7"}


async def test_refresh_repeats_what_the_data_says(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app = provider.app(resend_scope=True, resend_redirect_uri=True, extra_refresh_params={"duration": "permanent"})
    await client.refresh(app, provider.grant().tokens(), redirect_uri=CALLBACK, resource="https://mcp.example/")
    params = provider.requests[-1].params
    assert (params["scope"], params["redirect_uri"], params["duration"]) == ("read", CALLBACK, "permanent")
    assert params["resource"] == "https://mcp.example/"


async def test_refresh_without_a_refresh_token_is_a_mistake_of_the_caller(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    tokens = replace(provider.grant().tokens(), refresh_token=None)
    with pytest.raises(ValueError, match="no refresh token"):
        await client.refresh(provider.app(), tokens)


@pytest.mark.parametrize(
    ("fault", "kind", "error", "retry_after", "was_sent"),
    [
        (Fault.error("invalid_grant"), RefusalKind.PERMANENT, "invalid_grant", None, True),
        (Fault.error("invalid_grant", 401), RefusalKind.PERMANENT, "invalid_grant", None, True),
        (Fault.error("interaction_required"), RefusalKind.PERMANENT, "interaction_required", None, True),
        (Fault.error("unauthorized_client"), RefusalKind.INTEGRATION, "unauthorized_client", None, True),
        (Fault.error("invalid_scope"), RefusalKind.INTEGRATION, "invalid_scope", None, True),
        (Fault.error("temporarily_unavailable"), RefusalKind.TRANSIENT, "temporarily_unavailable", None, True),
        (Fault.error("something_of_our_own"), RefusalKind.TRANSIENT, None, 300, True),
        # The server's own trouble proves nothing, whatever its body says.
        (Fault.error("invalid_grant", 500), RefusalKind.TRANSIENT, "invalid_grant", None, True),
        (Fault.error("invalid_grant", 429), RefusalKind.TRANSIENT, "invalid_grant", None, True),
        (Fault.error("invalid_grant", 404), RefusalKind.TRANSIENT, None, 300, True),
        (Fault.html(403), RefusalKind.TRANSIENT, None, 300, True),
        (Fault.html(400), RefusalKind.TRANSIENT, None, 300, True),
        (Fault.html(404), RefusalKind.TRANSIENT, None, 300, True),
        (Fault.html(200), RefusalKind.MALFORMED, None, None, True),
        (Fault.too_many("7"), RefusalKind.TRANSIENT, None, 7, True),
        (Fault.too_many("86400"), RefusalKind.TRANSIENT, None, 900, True),
        (Fault.unavailable(), RefusalKind.TRANSIENT, None, None, True),
        (Fault.unavailable(502), RefusalKind.TRANSIENT, None, None, True),
        (Fault.dropped(), RefusalKind.UNKNOWN_OUTCOME, None, None, True),
        (Fault.lost_answer(), RefusalKind.UNKNOWN_OUTCOME, None, None, True),
        (Fault.huge(), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b"{oops"), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b"{}"), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b"[1]"), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b'{"access_token": 7}'), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b'{"access_token": "a\\r\\nX-Evil: 1"}'), RefusalKind.MALFORMED, None, None, True),
        (Fault.answer(b'{"error": "invalid_grant"}'), RefusalKind.PERMANENT, "invalid_grant", None, True),
        (Fault.answer(b'{"error": "hiccup"}'), RefusalKind.TRANSIENT, None, None, True),
    ],
)
async def test_failure_is_classified_by_what_it_proves(
    client: OAuthClient,
    provider: FakeOAuthProvider,
    fault: Fault,
    kind: RefusalKind,
    error: str | None,
    retry_after: float | None,
    was_sent: bool,
) -> None:
    provider.faults.append(fault)
    failed = await refused(client.refresh(provider.app(), provider.grant().tokens()))
    assert (failed.kind, failed.error, failed.retry_after_seconds, failed.was_sent) == (
        kind,
        error,
        retry_after,
        was_sent,
    )
    assert (failed.reauth_reason is not None) is (kind is RefusalKind.PERMANENT)
    assert provider.token_calls == 1


async def test_silence_after_the_request_leaves_its_outcome_unknown(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    provider.faults.append(Fault.silent())
    failed = await refused(client.refresh(provider.app(), provider.grant().tokens(), timeout_seconds=0.3))
    assert (failed.kind, failed.was_sent) == (RefusalKind.UNKNOWN_OUTCOME, True)


async def test_provider_that_is_away_leaves_no_doubt(client: OAuthClient) -> None:
    async with FakeOAuthProvider() as provider:
        app, tokens = provider.app(), provider.grant().tokens()
    failed = await refused(client.refresh(app, tokens))
    assert (failed.kind, failed.was_sent) == (RefusalKind.TRANSIENT, False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_of_the_token_endpoint_is_not_followed(
    client: OAuthClient, provider: FakeOAuthProvider, status: int
) -> None:
    async with FakeOAuthProvider() as thief:
        provider.faults.append(Fault.redirect(f"{thief.url}/token", status))
        failed = await refused(client.refresh(provider.app(), provider.grant().tokens()))
        assert failed.kind is RefusalKind.TRANSIENT
        assert thief.requests == []


async def test_token_endpoint_on_a_private_address_is_never_called(provider: FakeOAuthProvider) -> None:
    egress = EgressClient(TargetPolicy())
    failed = await refused(OAuthClient(egress, SystemClock()).refresh(provider.app(), provider.grant().tokens()))
    await egress.close()
    assert (failed.kind, failed.was_sent, provider.requests) == (RefusalKind.INTEGRATION, False, [])


# ---------------------------------------------------------------------------------------------- providers with quirks


async def test_errors_in_a_success_are_errors(client: OAuthClient) -> None:
    async with FakeOAuthProvider(Profile.github()) as provider:
        grant = provider.grant()
        provider.revoke_grant(grant)
        assert (await refused(client.refresh(provider.app(), grant.tokens()))).error == "invalid_grant"
        assert (await refused(client.refresh(provider.app("wrong"), grant.tokens()))).error == "invalid_client"


async def test_nested_answers_are_found_and_not_ok_is_an_error(client: OAuthClient) -> None:
    async with FakeOAuthProvider(Profile.slack()) as provider:
        grant = provider.grant(scopes=("read", "write"))
        tokens = await client.refresh(provider.app(), grant.tokens())
        assert tokens.access_token.reveal() == grant.access_token
        assert tokens.refresh_token is not None
        assert tokens.expire_time is not None
        assert tokens.scopes == ("read", "write")
        assert tokens.extra == {"team": "T1", "user": "U1"}
        provider.revoke_grant(grant)
        assert (await refused(client.refresh(provider.app(), tokens))).kind is RefusalKind.PERMANENT


async def test_no_expiry_means_not_known_and_a_host_is_kept_only_where_the_data_allows_it(client: OAuthClient) -> None:
    async with FakeOAuthProvider(Profile.salesforce()) as provider:
        app, grant = provider.app(), provider.grant()
        tokens = await client.refresh(app, grant.tokens())
        assert tokens.expire_time is None
        assert tokens.extra == {"instance_url": "https://acme.my.salesforce.com"}
        for elsewhere in ("https://evil-my.salesforce.com", "http://acme.my.salesforce.com", "https://evil.example"):
            body = f'{{"access_token": "x", "instance_url": "{elsewhere}"}}'
            provider.faults.append(Fault.answer(body.encode()))
            assert (await client.refresh(app, grant.tokens())).extra == {}


# ------------------------------------------------------------------------------------- devices, revocation, the rest


async def test_sign_in_on_another_device(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app = provider.app()
    device = await client.start_device(app, scopes=("read",))
    assert device.verification_uri == f"{provider.url}/activate"
    assert device.interval == timedelta(seconds=5)
    device = DeviceAuthorization.from_document(device.to_document())
    with pytest.raises(DevicePending) as pending:
        await client.poll_device(app, device)
    assert not pending.value.slow_down
    provider.decide_device(device.user_code, "slow_down")
    with pytest.raises(DevicePending) as pending:
        await client.poll_device(app, device)
    assert pending.value.slow_down
    provider.decide_device(device.user_code)
    assert (await client.poll_device(app, device)).refresh_token is not None


@pytest.mark.parametrize("decision", ["access_denied", "expired_token"])
async def test_device_that_is_declined_or_late_gets_nothing(
    client: OAuthClient, provider: FakeOAuthProvider, decision: str
) -> None:
    app = provider.app()
    device = await client.start_device(app, scopes=())
    provider.decide_device(device.user_code, decision)
    failed = await refused(client.poll_device(app, device))
    assert (failed.kind, failed.error) == (RefusalKind.PERMANENT, decision)


async def test_device_whose_time_is_over_asks_no_more(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app = provider.app()
    device = replace(await client.start_device(app, scopes=()), expire_time=SystemClock().now())
    assert (await refused(client.poll_device(app, device))).error == "expired_token"
    assert provider.token_calls == 0


async def test_app_gets_a_token_of_its_own(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    tokens = await client.client_credentials(provider.app(), scopes=("read", "write"))
    assert tokens.refresh_token is None
    assert tokens.scopes == ("read", "write")


async def test_revoked_grant_is_over(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app, grant = provider.app(), provider.grant()
    tokens = grant.tokens()
    await client.revoke(app, tokens)
    assert provider.requests[-1].params["token"] == grant.refresh_token
    assert provider.requests[-1].params["token_type_hint"] == "refresh_token"
    assert not grant.is_alive
    await client.revoke(app, tokens)


async def test_provider_without_an_endpoint_to_revoke_is_told_apart(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    app = provider.app(revoke_url=None)
    assert not client.can_revoke(app)
    await client.revoke(app, provider.grant().tokens())
    assert provider.requests == []


# ------------------------------------------------------------------------------------------------------- the documents


def test_stored_tokens_are_the_same_tokens_and_show_nothing(provider: FakeOAuthProvider) -> None:
    tokens = replace(provider.grant().tokens(), extra={"realm": "7"}, id_token=Secret("canary"))
    assert "canary" not in repr(tokens)
    document = tokens.to_document()
    read = TokenSet.from_document({**document, "write_id": "somebody else's"})
    assert read.to_document() == document
    assert read.id_token is None


@pytest.mark.parametrize("document", [{}, {"schema": 2}, {"schema": 1, "access_token": "canary"}])
def test_document_that_is_none_is_refused_without_showing_it(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a token document") as caught:
        TokenSet.from_document(document)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


# ---------------------------------------------------------------------------------------------------- the double itself


async def test_uncoordinated_refreshers_end_a_grant_of_a_strict_provider(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    """What the refresh coordinator is for, seen without it: one of eight wins, and its tokens are dead too."""
    app, grant = provider.app(), provider.grant()
    tokens = grant.tokens()
    with provider.gate() as gate:
        calls = [asyncio.create_task(client.refresh(app, tokens)) for _ in range(8)]
        async with asyncio.timeout(10):
            await gate.wait_for(8)
        gate.release()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, TokenSet) for result in results) == 1
    assert (provider.max_concurrent_token_calls, provider.token_calls, grant.refreshes) == (8, 8, 1)
    assert (provider.reuses_detected, grant.is_alive) == (1, False)


async def test_answer_that_is_lost_has_taken_effect(client: OAuthClient, provider: FakeOAuthProvider) -> None:
    app, grant = provider.app(), provider.grant()
    tokens = grant.tokens()
    provider.faults.append(Fault.lost_answer())
    assert (await refused(client.refresh(app, tokens))).kind is RefusalKind.UNKNOWN_OUTCOME
    assert grant.refreshes == 1
    assert (await refused(client.refresh(app, tokens))).kind is RefusalKind.PERMANENT


async def test_grace_window_gives_the_same_successor_again(client: OAuthClient) -> None:
    async with FakeOAuthProvider(Profile.grace()) as provider:
        app, grant = provider.app(), provider.grant()
        tokens = grant.tokens()
        provider.faults.append(Fault.lost_answer())
        await refused(client.refresh(app, tokens))
        again = await client.refresh(app, tokens)
        assert again.refresh_token is not None
        assert (again.refresh_token.reveal(), grant.is_alive) == (grant.refresh_token, True)


async def test_cancelled_refresh_ends_at_once_and_leaves_the_client_usable(
    client: OAuthClient, provider: FakeOAuthProvider
) -> None:
    app, grant = provider.app(), provider.grant()
    with provider.gate() as gate:
        call = asyncio.create_task(client.refresh(app, grant.tokens()))
        async with asyncio.timeout(20):
            await gate.arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    assert (await client.client_credentials(app, scopes=())).refresh_token is None
