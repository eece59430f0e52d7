"""Integrations of servers that nobody has described: found, registered at, connected, used and renewed, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast.api.auth.v1 import connect_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2 import CONNECTION_STATE_ACTIVE, RefreshConnectionRequest
from holdfast.api.auth.v1.integration_service_pb2 import (
    CreateIntegrationRequest,
    GetIntegrationRequest,
    Integration,
    ListProvidersRequest,
)
from holdfast.errors import AlreadyExists, InvalidArgument, Reason
from tests.auth.connect.support import code_on
from tests.auth.connect.test_service import LOOPBACK, base_of, browsing
from tests.auth.oauth.test_discovery import described
from tests.auth.support import Auth, Client, failure, running, settings_for
from tests.fakes.oauth_provider import CLIENT_ID, FakeOAuthProvider


@pytest.fixture
async def auth(database_url: str) -> AsyncIterator[Auth]:
    async with running(settings_for(database_url, egress_allow=LOOPBACK)) as replica:
        yield replica


async def set_up(client: Client, provider: FakeOAuthProvider, **fields: Any) -> Integration:
    request = CreateIntegrationRequest(name="tools", provider="mcp", server_url=f"{provider.url}/mcp", **fields)
    return (await client.integrations.CreateIntegration(request)).integration


async def test_an_account_of_a_discovered_server_is_connected_used_and_renewed(
    auth: Auth, provider: FakeOAuthProvider
) -> None:
    described(provider)
    client, workspace_id = await auth.workspace("acme")
    made = await set_up(client, provider)
    # The server gave out the client: nobody had to register anything.
    assert (made.client_id, made.provider) == (CLIENT_ID, "mcp")
    [registration] = provider.registrations
    assert registration["redirect_uris"] == [made.redirect_uri]
    assert registration["grant_types"] == ["authorization_code", "refresh_token"]
    started = (await client.connect.StartConnect(pb.StartConnectRequest(integration="tools", user_id="ann"))).session
    assert set(started.scopes) == {"read", "offline_access"}
    async with browsing(base_of(started.connect_url)) as browser:
        code = code_on(await browser.complete(started.connect_url))
    done = await client.connect.ConfirmConnect(
        pb.ConfirmConnectRequest(session_id=started.session_id, confirm_code=code)
    )
    assert done.connection.state == CONNECTION_STATE_ACTIVE
    first = await auth.resolve(workspace_id, "tools", user_id="ann", target=f"{provider.url}/mcp")
    assert [(field.name, field.value) for field in first.headers] == [("Authorization", f"Bearer {first.secret}")]
    assert {(rule.host, rule.path_prefix) for rule in first.allowed_targets} == {("127.0.0.1", "/mcp")}

    # After a restart nothing is asked again: what was discovered is kept with the integration.
    provider.documents.clear()
    await client.connections.RefreshConnection(RefreshConnectionRequest(name="tools", user_id="ann"))

    second = await auth.resolve(workspace_id, "tools", user_id="ann", target=f"{provider.url}/mcp")
    assert second.secret != first.secret
    assert len(provider.registrations) == 1


async def test_a_server_that_cannot_be_used_makes_no_integration(auth: Auth, provider: FakeOAuthProvider) -> None:
    client, _ = await auth.workspace("acme")
    for changes, told in (
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
        ({"issuer": "https://elsewhere.example"}, "issuer"),
    ):
        described(provider, **changes)
        error = await failure(set_up(client, provider))
        assert type(error) is InvalidArgument
        [violation] = error.field_violations
        assert violation.field.endswith("server_url") and told in violation.description
    provider.documents.clear()
    assert type(await failure(set_up(client, provider))) is InvalidArgument
    assert provider.registrations == []
    missing = await failure(client.integrations.GetIntegration(GetIntegrationRequest(name="tools")))
    assert missing.reason == Reason.INTEGRATION_NOT_FOUND


async def test_a_server_that_takes_no_new_clients_is_used_with_a_given_one(
    auth: Auth, provider: FakeOAuthProvider
) -> None:
    described(provider)
    del provider.documents["/.well-known/oauth-authorization-server"]["registration_endpoint"]
    client, _ = await auth.workspace("acme")
    assert type(await failure(set_up(client, provider))) is InvalidArgument
    made = await set_up(client, provider, client_id="app-of-ours", client_secret="very-secret")
    assert made.client_id == "app-of-ours"
    assert type(await failure(set_up(client, provider, client_id="app-of-ours"))) is AlreadyExists
    assert provider.registrations == []


async def test_providers_by_discovery_are_listed(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    listed = await client.integrations.ListProviders(ListProvidersRequest(page_size=200))
    assert {"mcp", "oidc"} <= {found.slug for found in listed.providers}
