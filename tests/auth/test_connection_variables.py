"""Connections to installations of one's own: what is given decides where the credential goes, and is sealed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from holdfast.api.auth.v1 import integration_service_pb2 as integration_pb
from holdfast.api.auth.v1.connection_service_pb2 import CreateConnectionRequest, RefreshConnectionRequest
from holdfast.api.auth.v1.credential_service_pb2 import AuthFailureSignal
from holdfast.api.auth.v1.integration_service_pb2 import CreateIntegrationRequest, ListProvidersRequest
from holdfast.errors import InvalidArgument, PermissionDenied
from services.auth.app import open_core
from services.auth.providers import ProviderCatalog, load_provider
from services.auth.settings import AuthSettings
from services.auth.tables import connections
from services.shared.clock import SystemClock
from tests.auth.support import Auth, failure, new_connection, running
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, DATA, FakeOAuthProvider

DESK = """
slug: desk
display_name: Desk
kind: api_key
documentation_url: https://example.com/docs
variables:
  subdomain: {words: "the name before .desk.example", owner: connection, pattern: "[a-z0-9-]{1,40}"}
fields:
  api_key: {words: the key}
inject:
  - {header: Authorization, value: "Bearer {api_key}"}
hosts:
  - {host: "{subdomain}.desk.example", path_prefix: /api}
auth_failure_signals:
  - {status: 200, pointer: /error, equals: invalid_auth}
  - {status: 403, header: X-Reason, contains: expired}
"""
OWN_ADDRESS = DATA.replace("is_url: true}", "is_url: true, owner: connection}").replace("slug: fake", "slug: each")


@pytest.fixture
async def desk(settings: AuthSettings) -> AsyncIterator[Auth]:
    """A replica that knows both providers."""
    catalog = ProviderCatalog(
        [*ProviderCatalog.load(), load_provider(DESK, "desk"), load_provider(OWN_ADDRESS, "each")]
    )
    settings = replace(settings, egress_allow=("127.0.0.0/8",))
    async with running(settings, catalog=catalog) as auth:
        yield auth


async def test_a_key_is_sent_to_the_installation_that_it_was_stored_for(desk: Auth) -> None:
    client, workspace_id = await desk.workspace("acme")
    await client.integrations.CreateIntegration(CreateIntegrationRequest(provider="desk"))
    for name in ("east", "west"):
        create = CreateConnectionRequest(
            integration="desk", name=name, api_key=f"key-of-{name}", variables={"subdomain": name}
        )
        made = (await client.connections.CreateConnection(create)).connection
        assert made.variables == {"subdomain": name}
        answer = await desk.resolve(workspace_id, name, target=f"https://{name}.desk.example")
        assert answer.secret == f"key-of-{name}"
        assert [target.host for target in answer.allowed_targets] == [f"{name}.desk.example"]
    error = await failure(desk.resolve(workspace_id, "east", target="https://west.desk.example"))
    assert type(error) is PermissionDenied


async def test_the_answer_says_how_the_provider_says_that_the_key_is_over(desk: Auth) -> None:
    client, workspace_id = await desk.workspace("acme")
    await client.integrations.CreateIntegration(CreateIntegrationRequest(provider="desk"))
    create = CreateConnectionRequest(integration="desk", api_key="key-1", variables={"subdomain": "acme"})
    await client.connections.CreateConnection(create)
    await client.connections.CreateConnection(new_connection())
    assert list((await desk.resolve(workspace_id, "desk")).auth_failure_signals) == [
        AuthFailureSignal(status=200, pointer="/error", equals="invalid_auth"),
        AuthFailureSignal(status=403, header="x-reason", contains="expired"),
    ]
    assert not (await desk.resolve(workspace_id)).auth_failure_signals


async def test_a_row_that_was_changed_behind_auths_back_sends_the_key_nowhere_else(desk: Auth) -> None:
    client, workspace_id = await desk.workspace("acme")
    await client.integrations.CreateIntegration(CreateIntegrationRequest(provider="desk"))
    create = CreateConnectionRequest(integration="desk", api_key="key-1", variables={"subdomain": "acme"})
    await client.connections.CreateConnection(create)
    async with open_core(desk.settings, asyncio.Event(), clock=SystemClock()) as core:
        await core.db.write(
            lambda connection: connection.execute(sa.update(connections).values(variables='{"subdomain": "evil"}'))
        )
    answer = await desk.resolve(workspace_id, "desk")
    assert [target.host for target in answer.allowed_targets] == ["acme.desk.example"]


async def test_an_application_asks_for_its_token_where_the_connection_says(desk: Auth) -> None:
    async with FakeOAuthProvider() as provider:
        client, workspace_id = await desk.workspace("acme")
        await client.integrations.CreateIntegration(
            CreateIntegrationRequest(
                provider="each",
                kind=integration_pb.CREDENTIAL_KIND_CLIENT_CREDENTIALS,
                client_id=CLIENT_ID,
                client_secret=CLIENT_SECRET,
            )
        )
        create = CreateConnectionRequest(integration="each", variables={"base": provider.url})
        await client.connections.CreateConnection(create)
        await client.connections.RefreshConnection(RefreshConnectionRequest(name="each"))
        assert provider.token_calls == 2
        answer = await desk.resolve(workspace_id, "each")
        assert [(rule.host, str(rule.port)) for rule in answer.allowed_targets] == [
            tuple(provider.url.removeprefix("http://").split(":"))
        ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"integration": "desk", "provider": ""}, "variables.subdomain"),
        ({"integration": "desk", "provider": "", "variables": {"subdomain": "a.b"}}, "variables.subdomain"),
        ({"integration": "desk", "provider": "", "variables": {"subdomain": "a", "shop": "b"}}, "variables.shop"),
        ({"variables": {"subdomain": "a"}}, "variables.subdomain"),
    ],
)
async def test_what_does_not_fit_is_named_and_makes_nothing(desk: Auth, fields: dict, field: str) -> None:
    client, _ = await desk.workspace("acme")
    await client.integrations.CreateIntegration(CreateIntegrationRequest(provider="desk"))
    error = await failure(client.connections.CreateConnection(new_connection(key="sk-canary", **fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert "sk-canary" not in str(error)


async def test_a_provider_says_whose_its_variables_are(desk: Auth) -> None:
    client, _ = await desk.workspace("acme")
    listed = await client.integrations.ListProviders(ListProvidersRequest(page_size=200))
    needs = {item.slug: (list(item.variables), list(item.connection_variables)) for item in listed.providers}
    assert needs["desk"] == ([], ["subdomain"])
    assert needs["shopify"] == ([], ["shop"])
    assert needs["gitlab"] == (["base_url"], [])
