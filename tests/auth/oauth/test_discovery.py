"""Discovery against servers that say what a test lets them say, and once against a real one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest

from services.auth.oauth.client import OAuthClient
from services.auth.oauth.discovery import AppDescription, Discovery
from services.auth.oauth.metadata import (
    Challenge,
    ClientRegistration,
    RegistrationSource,
    ServerMetadata,
    discovered_provider,
)
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers import ProviderCatalog
from services.auth.providers.schema import ClientAuth, Rotation
from services.shared.clock import SystemClock
from services.shared.egress import EgressClient, TargetPolicy
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Fault
from tests.fakes.oidc_provider import REDIRECT_URI, NodeUnavailable, running

APP = AppDescription(name="Holdfast", redirect_uri=REDIRECT_URI)
RESOURCE_PLACE = "/.well-known/oauth-protected-resource/mcp"
SERVER_PLACE = "/.well-known/oauth-authorization-server"


@pytest.fixture
def discovery(egress: EgressClient) -> Discovery:
    return Discovery(egress, SystemClock())


def described(provider: FakeOAuthProvider, **changes: Any) -> dict[str, Any]:
    """Lets the provider describe an MCP server at /mcp and itself; returns its own metadata."""
    metadata = {
        "issuer": provider.url,
        "authorization_endpoint": f"{provider.url}/authorize",
        "token_endpoint": f"{provider.url}/token",
        "registration_endpoint": f"{provider.url}/register",
        "revocation_endpoint": f"{provider.url}/revoke",
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["read", "write", "offline_access"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "none"],
        **changes,
    }
    provider.documents[RESOURCE_PLACE] = {
        "resource": f"{provider.url}/mcp",
        "authorization_servers": [provider.url],
        "scopes_supported": ["read"],
    }
    provider.documents[SERVER_PLACE] = metadata
    return metadata


async def refused(call: Awaitable[Any]) -> TokenRefused:
    async with asyncio.timeout(10):
        with pytest.raises(TokenRefused) as caught:
            await call
    return caught.value


async def test_mcp_server_leads_to_its_authorization_server_and_a_provider(
    discovery: Discovery, client: OAuthClient, egress: EgressClient, provider: FakeOAuthProvider
) -> None:
    described(provider, authorization_response_iss_parameter_supported=True)
    metadata = await discovery.mcp_server(f"{provider.url}/mcp")
    registration = await discovery.register(metadata, APP)
    assert (registration.source, registration.client_id) == (RegistrationSource.DYNAMIC, CLIENT_ID)
    [said] = provider.registrations
    assert said["redirect_uris"] == [REDIRECT_URI]
    assert said["token_endpoint_auth_method"] == "client_secret_post"

    template = ProviderCatalog.load().get("mcp")
    assert template is not None
    # The integration keeps the document; nothing is asked again to refresh.
    kept = ServerMetadata.from_document(json.loads(json.dumps(metadata.to_document())))
    assert kept == metadata
    data = discovered_provider(template, kept, registration)
    assert data.oauth is not None
    assert (data.oauth.rotation, data.oauth.iss_in_callback) == (Rotation.STRICT, True)
    assert data.default_scopes == ("read", "offline_access")
    assert registration.client_secret is not None
    app = OAuthApp(data, CLIENT_ID, (registration.client_secret,), {"server_url": f"{provider.url}/mcp"})
    [rule] = data.egress_rules(app.variables)
    assert rule.allows(f"{provider.url}/mcp/tools", "POST")
    assert not rule.allows(f"{provider.url}/mcp2", "POST")

    verifier = "v" * 64
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    url = client.authorization_url(
        app, redirect_uri=REDIRECT_URI, state="s", code_challenge=challenge, scopes=data.default_scopes
    )
    answer = await egress.request("GET", url, timeout_seconds=5)
    code = answer.headers["location"].partition("code=")[2].partition("&")[0]
    back = {"code": code, "iss": provider.url}
    tokens = await client.exchange_code(
        app, code=code, redirect_uri=REDIRECT_URI, code_verifier=verifier, callback_params=back
    )
    await client.refresh(app, tokens)
    # RFC 8707: in every one of the requests.
    asked = [item for item in provider.requests if item.path in ("/authorize", "/token")]
    assert [{**item.query, **item.params}["resource"] for item in asked] == [f"{provider.url}/mcp"] * 3


async def test_challenge_says_where_the_resource_is_described(
    discovery: Discovery, provider: FakeOAuthProvider
) -> None:
    described(provider)
    provider.documents["/elsewhere"] = provider.documents.pop(RESOURCE_PLACE)
    header = f'Bearer error="invalid_token", resource_metadata="{provider.url}/elsewhere", scope="write"'
    provider.documents["/mcp"] = Fault(401, b"", {"www-authenticate": header})
    metadata = await discovery.mcp_server(f"{provider.url}/mcp")
    assert (metadata.resource, metadata.resource_scopes) == (f"{provider.url}/mcp", ("write",))


async def test_server_without_resource_metadata_speaks_for_itself(
    discovery: Discovery, provider: FakeOAuthProvider
) -> None:
    described(provider)
    del provider.documents[RESOURCE_PLACE]
    metadata = await discovery.mcp_server(f"{provider.url}/mcp")
    assert (metadata.issuer, metadata.resource) == (provider.url, f"{provider.url}/mcp")


@pytest.mark.parametrize(
    "resource",
    ["https://victim.example/mcp", "{url}/other", "{url}/mc", "{url}/mcp/deeper", "not an address", 7, None],
)
async def test_metadata_about_another_resource_is_refused(
    discovery: Discovery, provider: FakeOAuthProvider, resource: Any
) -> None:
    described(provider)
    named = resource.replace("{url}", provider.url) if isinstance(resource, str) else resource
    provider.documents[RESOURCE_PLACE]["resource"] = named
    assert "another resource" in str(await refused(discovery.mcp_server(f"{provider.url}/mcp")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"issuer": "https://victim.example"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"code_challenge_methods_supported": None}, "PKCE"),
        ({"token_endpoint": None}, "no token endpoint"),
        ({"authorization_endpoint": None}, "no authorization endpoint"),
        ({"token_endpoint": "http://public.example/token"}, "without https"),
        ({"token_endpoint": "https://user:password@public.example/token"}, "cannot be used"),
        ({"token_endpoint": "https://public.example/{client_id}"}, "cannot be used"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "cannot be used"),
        ({"jwks_uri": ["https://public.example/"]}, "cannot be used"),
    ],
)
async def test_server_that_cannot_be_trusted_is_refused(
    discovery: Discovery, provider: FakeOAuthProvider, changes: dict[str, Any], told: str
) -> None:
    described(provider, **changes)
    failed = await refused(discovery.mcp_server(f"{provider.url}/mcp"))
    assert told in str(failed)
    assert failed.kind is RefusalKind.INTEGRATION


async def test_trailing_slash_makes_another_issuer(discovery: Discovery, provider: FakeOAuthProvider) -> None:
    described(provider, issuer=f"{provider.url}/")
    assert "another issuer" in str(await refused(discovery.mcp_server(f"{provider.url}/mcp")))


@pytest.mark.parametrize(
    "server",
    [
        "https://169.254.169.254/",
        "https://10.0.0.1/",
        "http://public.example/",
        "https://[::ffff:10.0.0.1]/",
        "https://2130706433/",
        "file:///etc/passwd",
        "https://{server_url}/",
    ],
)
async def test_metadata_cannot_lead_into_the_operators_network(
    discovery: Discovery, provider: FakeOAuthProvider, server: str
) -> None:
    described(provider)
    provider.documents[RESOURCE_PLACE]["authorization_servers"] = [server]
    failed = await refused(discovery.mcp_server(f"{provider.url}/mcp"))
    assert (failed.kind, failed.was_sent) == (RefusalKind.INTEGRATION, False)


async def test_private_server_is_never_asked(provider: FakeOAuthProvider) -> None:
    egress = EgressClient(TargetPolicy())
    failed = await refused(Discovery(egress, SystemClock()).mcp_server(f"{provider.url}/mcp"))
    await egress.close()
    assert (failed.kind, provider.requests) == (RefusalKind.INTEGRATION, [])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Fault.huge(), RefusalKind.MALFORMED),
        (Fault.unavailable(), RefusalKind.TRANSIENT),
        (Fault.html(200), RefusalKind.INTEGRATION),
        (Fault.redirect("https://elsewhere.example/"), RefusalKind.INTEGRATION),
        (Fault.answer(b"[" * 100_000), RefusalKind.INTEGRATION),
    ],
)
async def test_odd_metadata_is_refused(
    discovery: Discovery, provider: FakeOAuthProvider, answer: Fault, kind: RefusalKind
) -> None:
    described(provider)
    provider.documents[SERVER_PLACE] = answer
    assert (await refused(discovery.mcp_server(f"{provider.url}/mcp"))).kind is kind


async def test_ways_to_an_app_are_tried_in_order(discovery: Discovery, provider: FakeOAuthProvider) -> None:
    described(provider, client_id_metadata_document_supported=True)
    metadata = await discovery.mcp_server(f"{provider.url}/mcp")
    public = replace(APP, metadata_url="https://holdfast.example/oauth/client.json")
    mine = ClientRegistration(source=RegistrationSource.PRE_REGISTERED, issuer=provider.url, client_id="mine")
    elsewhere = replace(mine, issuer="https://other.example")

    assert (await discovery.register(metadata, public, pre_registered=mine)).client_id == "mine"
    by_document = await discovery.register(metadata, public, pre_registered=elsewhere)
    assert (by_document.source, by_document.client_id) == (RegistrationSource.METADATA_DOCUMENT, public.metadata_url)
    assert by_document.client_auth is ClientAuth.NONE
    assert public.metadata_document()["client_id"] == public.metadata_url
    assert provider.registrations == []
    registered = await discovery.register(metadata, APP)
    assert registered.client_secret is not None
    assert (registered.client_secret.reveal(), registered.client_auth) == (CLIENT_SECRET, ClientAuth.POST)
    assert registered.secret_expire_time is None
    closed = replace(metadata, registration_url=None)
    assert "takes no new apps" in str(await refused(discovery.register(closed, APP)))


async def test_registration_that_is_refused_is_told(discovery: Discovery, provider: FakeOAuthProvider) -> None:
    described(provider, registration_endpoint=f"{provider.url}/closed")
    metadata = await discovery.mcp_server(f"{provider.url}/mcp")
    provider.documents["/closed"] = Fault(403, b'{"error": "access_denied"}')
    assert (await refused(discovery.register(metadata, APP))).kind is RefusalKind.INTEGRATION


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (None, Challenge()),
        ("Basic realm=x", Challenge()),
        ("Bearer", Challenge()),
        ('Bearer scope="a b"', Challenge(scopes=("a", "b"))),
        (
            'Basic realm="x", Bearer error="insufficient_scope", scope="a", resource_metadata="https://r.example/m"',
            Challenge("https://r.example/m", ("a",), "insufficient_scope"),
        ),
        ("bearer error=odd", Challenge()),
    ],
)
def test_challenge_is_read(header: str | None, challenge: Challenge) -> None:
    assert Challenge.read(header) == challenge


async def test_real_server_is_discovered_and_takes_an_app(discovery: Discovery, client: OAuthClient) -> None:
    try:
        with running() as panva:
            async with asyncio.timeout(60):
                metadata = await discovery.openid_server(panva.url)
                assert "S256" in metadata.challenge_methods
                registration = await discovery.register(metadata, APP)
                assert registration.source is RegistrationSource.DYNAMIC
                assert registration.client_secret is not None
                app = OAuthApp(
                    discovered_provider(panva.data, metadata, registration),
                    registration.client_id,
                    (registration.client_secret,),
                    {"base": panva.url},
                )
                verifier = "v" * 64
                digest = hashlib.sha256(verifier.encode()).digest()
                back = await panva.sign_in(
                    client.authorization_url(
                        app,
                        redirect_uri=REDIRECT_URI,
                        state="s",
                        code_challenge=base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
                        scopes=("openid", "offline_access"),
                    )
                )
                tokens = await client.exchange_code(
                    app, code=back["code"], redirect_uri=REDIRECT_URI, code_verifier=verifier, callback_params=back
                )
                assert (await client.identify(app, tokens, nonce=None)).account_id == "ada"
                assert (await client.refresh(app, tokens)).refresh_token is not None
    except NodeUnavailable as error:
        pytest.skip(f"oidc-provider cannot run here: {error}")
