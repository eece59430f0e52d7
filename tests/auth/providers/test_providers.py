"""Every provider that is shipped: its file loads, and answers in its documented shapes are read as documented."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.auth.oauth.answers import read_tokens
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers import ProviderCatalog
from services.auth.providers.schema import (
    AccountSource,
    AuthKind,
    ClientAuth,
    Flow,
    Pkce,
    Provider,
    Rotation,
    VariableOwner,
)
from services.auth.providers.templates import UrlTemplate
from services.auth.secrets import Secret
from services.shared.clock import SystemClock
from services.shared.egress import Answer, EgressClient, TargetPolicy
from tests.auth.providers.shapes import AT, RT, SHAPES, Refusal, body
from tests.fakes.oauth_provider import FakeOAuthProvider
from tests.repository.tree import ROOT

CATALOG = ProviderCatalog.load()
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(seconds=1)

# Values of variables that have no default.
VALUES = {
    "shop": "acme",
    "user_agent": "linux:example.holdfast:1.0 (by /u/ada)",
    "server_url": "https://mcp.example/v1",
    "api_url": "https://api.example/v1",
    "authorize_url": "https://id.example/authorize",
    "token_url": "https://id.example/token",
}
OAUTH = [provider for provider in CATALOG if provider.oauth is not None]


def slug_of(value: Any) -> str | None:
    return value.slug if isinstance(value, Provider) else None


def variables(provider: Provider) -> dict[str, str]:
    needed = [name for name, item in provider.variables.items() if item.default is None]
    return provider.check_variables({name: VALUES[name] for name in needed})


def read(provider: Provider, answer: Any, status: int = 200) -> TokenSet:
    assert provider.oauth is not None
    return read_tokens(provider.oauth, Answer(status, {}, body(answer)), provider=provider.slug, start=START, now=NOW)


def test_there_are_providers_enough_and_each_has_a_shape() -> None:
    assert len(CATALOG) >= 40
    assert {provider.slug for provider in OAUTH} == set(SHAPES)
    assert len([item for item in CATALOG if item.slug not in ("mcp", "oauth2", "oidc", "basic")]) >= 28


def test_every_provider_is_in_the_documentation() -> None:
    lines = (ROOT / "docs" / "providers.md").read_text().splitlines()
    rows = [line.split(" | ")[:2] for line in lines if line.startswith("| `")]
    listed = {row[0].strip("| `"): row[1] for row in rows}
    assert {provider.slug: provider.display_name for provider in CATALOG}.items() <= listed.items()


@pytest.mark.parametrize("provider", OAUTH, ids=slug_of)
def test_success_is_read_as_documented(provider: Provider) -> None:
    shape = SHAPES[provider.slug]
    tokens = read(provider, shape.success)
    assert tokens.access_token.reveal() == AT
    assert (tokens.refresh_token and tokens.refresh_token.reveal()) == shape.refresh_token
    lifetime = None if tokens.expire_time is None else (tokens.expire_time - START).total_seconds()
    assert lifetime == shape.lifetime
    ends = None if tokens.refresh_expire_time is None else (tokens.refresh_expire_time - START).total_seconds()
    assert ends == shape.refresh_lifetime
    assert tokens.scopes == shape.scopes
    assert tokens.extra == shape.extra
    assert "canary" not in repr(tokens)


@pytest.mark.parametrize(
    ("provider", "refusal"),
    [(provider, refusal) for provider in OAUTH for refusal in SHAPES[provider.slug].refusals],
    ids=slug_of,
)
def test_refusal_is_read_as_documented(provider: Provider, refusal: Refusal) -> None:
    with pytest.raises(TokenRefused) as caught:
        read(provider, refusal.body, refusal.status)
    refused = caught.value
    assert (refused.kind, refused.error, refused.reauth_reason) == (refusal.kind, refusal.error, refusal.reauth_reason)
    assert "canary" not in str(refused)


@pytest.mark.parametrize("provider", OAUTH, ids=slug_of)
def test_page_of_a_firewall_proves_nothing_at_any_provider(provider: Provider) -> None:
    for status in (400, 401, 403, 404, 500, 503):
        with pytest.raises(TokenRefused) as caught:
            read(provider, "<html>error=invalid_grant</html>", status)
        assert caught.value.kind is RefusalKind.TRANSIENT


@pytest.mark.parametrize("provider", [item for item in OAUTH if item.oauth and not item.oauth.discovery], ids=slug_of)
def test_sign_in_begins_at_the_provider_with_what_it_needs(provider: Provider) -> None:
    client = OAuthClient(EgressClient(TargetPolicy()), SystemClock())
    app = OAuthApp(provider, "client-1", (Secret("s"),), variables(provider))
    scopes = provider.with_mandatory_scopes(provider.default_scopes)
    url = client.authorization_url(
        app, redirect_uri="https://h.example/cb", state="state-1", code_challenge="c" * 43, scopes=scopes, nonce="n"
    )
    assert url.startswith("https://")
    query = parse_qs(urlsplit(url).query, strict_parsing=True)
    assert provider.oauth is not None
    spec = provider.oauth
    assert query[spec.param_names.get("client_id", "client_id")] == ["client-1"]
    assert query["state"] == ["state-1"]
    assert query["redirect_uri"] == ["https://h.example/cb"]
    assert ("code_challenge" in query) is (spec.pkce is Pkce.S256)
    assert spec.extra_authorize_params.keys() <= query.keys()
    asked = [
        scope for name in ("scope", "user_scope") for scope in query.get(name, [""])[0].split(spec.scope_separator)
    ]
    assert set(scopes) == {scope for scope in asked if scope}


@pytest.mark.parametrize("provider", list(CATALOG), ids=slug_of)
def test_credential_goes_where_the_data_says_and_nowhere_else(provider: Provider) -> None:
    extra = SHAPES[provider.slug].extra if provider.slug in SHAPES else {}
    rules = provider.egress_rules(variables(provider), extra)
    assert rules, "a credential that may be sent nowhere is of no use"
    for rule in rules:
        host = rule.host.replace("*.", "acme.")
        assert rule.allows(f"https://{host}{rule.path_prefix.rstrip('/')}/x", "GET")
        assert not rule.allows(f"http://{host}{rule.path_prefix}", "GET"), "a credential is never sent in the open"
        assert not rule.allows(f"https://evil-{host}{rule.path_prefix}", "GET") or rule.host.startswith("*.")
        assert not rule.allows(f"https://{host}.evil.example/", "GET")
        assert not rule.allows(f"https://{host}@evil.example/", "GET")
    # Refresh tokens are for the token endpoint; the API's hosts never get one.
    values: dict[str, str | Secret] = {
        "access_token": Secret("the-token"),
        "client_id": "client-1",
        **{name: Secret(f"the-{name}") for name in provider.fields},
    }
    rendered = provider.render(values, {**variables(provider), **extra})
    assert not any(item.in_query for item in rendered)
    assert rendered[0].value.reveal()


@pytest.mark.parametrize("provider", list(CATALOG), ids=slug_of)
def test_texts_are_for_people(provider: Provider) -> None:
    for scope in provider.scopes.values():
        assert not scope.words.endswith("."), scope
    for variable in provider.variables.values():
        assert variable.words != variable.name
    if provider.kind is not AuthKind.OAUTH2:
        assert all(item.words for item in provider.fields.values())


@pytest.mark.parametrize("provider", OAUTH, ids=slug_of)
def test_data_is_of_one_piece(provider: Provider) -> None:
    spec = provider.oauth
    assert spec is not None
    if spec.discovery is None:
        assert spec.client_auth is not ClientAuth.NONE
    if spec.rotation is Rotation.NONE:
        assert spec.refresh_ttl_seconds is None
    if Flow.DEVICE in spec.flows:
        assert spec.device_url is not None
    if provider.account is not None and provider.account.source is AccountSource.ID_TOKEN:
        assert "openid" in provider.with_mandatory_scopes(())


@pytest.fixture
async def whoami() -> AsyncIterator[FakeOAuthProvider]:
    async with FakeOAuthProvider() as server:
        yield server


@pytest.mark.parametrize("provider", [item for item in OAUTH if SHAPES[item.slug].account is not None], ids=slug_of)
async def test_account_is_told_as_documented(provider: Provider, whoami: FakeOAuthProvider) -> None:
    shape = SHAPES[provider.slug]
    assert shape.account is not None
    answer, account_id, label = shape.account
    whoami.documents["/account"] = answer
    assert provider.account is not None
    if provider.account.url is not None:
        rule = replace(provider.account, url=UrlTemplate.literal(f"{whoami.url}/account"))
        provider = replace(provider, account=rule)
    egress = FakeOAuthProvider.egress()
    client = OAuthClient(egress, SystemClock())
    app = OAuthApp(provider, "client-1", (Secret("s"),), variables(provider))
    account = await client.identify(app, read(provider, shape.success), nonce=None)
    await egress.close()
    assert (account.account_id, account.label) == (account_id, label)
    if answer is not None:
        [request] = whoami.requests
        assert AT in json.dumps(dict(request.headers))


# ----------------------------------------------------------------------------------------- quirks that are not answers


def get(slug: str) -> Provider:
    provider = CATALOG.get(slug)
    assert provider is not None
    return provider


def test_token_answer_cannot_widen_where_tokens_go() -> None:
    salesforce, zoho = get("salesforce"), get("zoho")
    for slug, name, value in (
        ("salesforce", "instance_url", "https://evil.example"),
        ("salesforce", "instance_url", "https://salesforce.com.evil.example"),
        ("salesforce", "instance_url", "https://acme.my.salesforce.com@evil.example"),
        ("zoho", "api_domain", "https://www.zohoapis.com.evil.example"),
    ):
        tokens = read(get(slug), {"access_token": AT, name: value})
        assert name not in tokens.extra
    assert salesforce.egress_rules(variables(salesforce), {}) == ()
    assert zoho.egress_rules(variables(zoho), {"api_domain": "https://www.zohoapis.in"})[0].host == "www.zohoapis.in"


def test_shop_is_a_name_and_nothing_else() -> None:
    shopify = get("shopify")
    for shop in ("evil.example/", "acme.myshopify.com", "a@b", "", "-acme", "ACME", "acme\n"):
        with pytest.raises(ValueError, match="shop"):
            shopify.check_variables({"shop": shop}, VariableOwner.CONNECTION)


@pytest.mark.parametrize("header", ["Host", "content-length", "Transfer-Encoding", "Cookie", "X Y", "X:Y", "proxy-x"])
def test_key_cannot_be_put_into_a_header_that_steers_http(header: str) -> None:
    with pytest.raises(ValueError, match="header"):
        get("api-key-header").check_variables({"api_url": "https://api.example", "header": header})


def test_key_goes_into_the_header_of_the_administrators_choice() -> None:
    provider = get("api-key-header")
    chosen = provider.check_variables({"api_url": "https://api.example", "header": "X-Token"})
    [item] = provider.render({"api_key": Secret("k")}, chosen)
    assert (item.name, item.value.reveal()) == ("X-Token", "k")


def test_user_and_password_are_encoded() -> None:
    [item] = get("basic").render({"username": Secret("ada"), "password": Secret("pä{username}ß")})
    assert (item.name, item.value.reveal()) == ("Authorization", "Basic YWRhOnDDpHt1c2VybmFtZX3Dnw==")


def test_provider_says_by_signals_that_a_token_is_over() -> None:
    slack, zoom = get("slack"), get("zoom")
    assert any(item.matches(200, {}, {"ok": False, "error": "token_expired"}) for item in slack.auth_failure_signals)
    assert not any(
        item.matches(200, {}, {"ok": False, "error": "not_in_channel"}) for item in slack.auth_failure_signals
    )
    assert any(item.matches(400, {}, {"code": 124}) for item in zoom.auth_failure_signals)
    [signal] = get("salesforce").auth_failure_signals
    assert signal.matches(403, {}, [{"errorCode": "INVALID_SESSION_ID"}])
    assert not signal.matches(403, {}, None)


def test_rotated_token_without_new_one_keeps_the_old() -> None:
    dropbox = get("dropbox")
    old = replace(read(dropbox, SHAPES["dropbox"].success), refresh_token=Secret(RT))
    new = read(dropbox, SHAPES["dropbox"].success).carrying_over(old)
    assert new.refresh_token is old.refresh_token
