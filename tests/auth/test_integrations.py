"""The life of an integration, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import integration_service_pb2 as pb
from holdfast.api.auth.v1.api_key_service_pb2 import CreateApiKeyRequest
from holdfast.api.auth.v1.connection_service_pb2 import (
    CONNECTION_STATE_ACTIVE,
    CONNECTION_STATE_REVOKED,
    CreateConnectionRequest,
    GetConnectionRequest,
    ListConnectionsRequest,
    RevokeConnectionRequest,
)
from holdfast.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unavailable,
)
from services.auth.providers import ProviderCatalog
from services.auth.settings import AuthSettings
from services.auth.tables import requests
from services.shared.database import Database
from tests.auth.support import Auth, Client, audit_of, failure, make_key, new_connection, running
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider
from tests.fakes.secret_store import MemorySecretStore

SECRET = "client-secret-canary"


def github(name: str = "github", **fields: Any) -> pb.CreateIntegrationRequest:
    """A request that sets up GitHub."""
    return pb.CreateIntegrationRequest(
        **{"name": name, "provider": "github", "client_id": "app-1", "client_secret": SECRET, **fields}
    )


def fake(provider: FakeOAuthProvider, **fields: Any) -> pb.CreateIntegrationRequest:
    """A request that sets up the provider of the tests for the application itself."""
    return pb.CreateIntegrationRequest(
        **{
            "provider": "fake",
            "kind": pb.CREDENTIAL_KIND_CLIENT_CREDENTIALS,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "variables": {"base": provider.url},
            **fields,
        }
    )


@asynccontextmanager
async def with_provider(
    settings: AuthSettings, provider: FakeOAuthProvider, **parts: Any
) -> AsyncIterator[tuple[Auth, Client, str]]:
    """A replica that knows the provider of the tests, and a client of a workspace."""
    settings = replace(settings, egress_allow=("127.0.0.0/8",))
    catalog = ProviderCatalog([*ProviderCatalog.load(), provider.data])
    async with running(settings, catalog=catalog, **parts) as auth:
        client, workspace_id = await auth.workspace("acme")
        yield auth, client, workspace_id


async def names(client: Client) -> list[str]:
    listed = await client.integrations.ListIntegrations(pb.ListIntegrationsRequest())
    return [integration.name for integration in listed.integrations]


async def held_secrets(secrets: MemorySecretStore) -> str:
    """All that the secret store holds, in the open."""
    return "\n".join(stored.secret.reveal() for stored in secrets.secrets.values())


# ---------------------------------------------------------------------------------------------------------- setting up


async def test_an_integration_is_set_up_and_shows_its_redirect_uri_and_no_secret(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    made = (await client.integrations.CreateIntegration(github(scopes=["repo", "repo"], agents=["b", "a"]))).integration
    assert (made.name, made.provider, made.kind) == ("github", "github", pb.CREDENTIAL_KIND_OAUTH2)
    assert (made.state, made.client_secret_count) == (pb.INTEGRATION_STATE_ACTIVE, 1)
    assert (list(made.scopes), list(made.agents)) == (["repo"], ["a", "b"])
    assert made.redirect_uri.startswith("http://127.0.0.1:")
    assert made.redirect_uri.endswith(f"/oauth/callback/{made.integration_id}")
    assert SECRET not in str(made)
    got = await client.integrations.GetIntegration(pb.GetIntegrationRequest(name="github"))
    assert got.integration == made
    actions = [record.action for record in await audit_of(auth.settings, workspace_id)]
    assert actions[-1] == "integration.create"


async def test_the_name_is_the_providers_unless_given_and_is_held_once(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    assert (await client.integrations.CreateIntegration(github(""))).integration.name == "github"
    error = await failure(client.integrations.CreateIntegration(github()))
    assert (type(error), error.reason) == (AlreadyExists, Reason.INTEGRATION_EXISTS)
    await client.integrations.CreateIntegration(github("github-2"))
    assert await names(client) == ["github", "github-2"]


async def test_a_repeated_request_is_answered_the_same_and_done_once(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    first = await client.integrations.CreateIntegration(github(request_id="r1"))
    assert await client.integrations.CreateIntegration(github(request_id="r1")) == first
    error = await failure(client.integrations.CreateIntegration(github(request_id="r1", client_secret="other")))
    assert error.reason == Reason.REQUEST_ID_REUSED
    actions = [record.action for record in await audit_of(auth.settings, workspace_id)]
    assert actions.count("integration.create") == 1


async def test_of_several_with_one_name_one_is_made_across_replicas(settings: AuthSettings) -> None:
    settings = replace(settings, public_url="https://holdfast.example")
    async with running(settings) as one, running(settings) as two:
        _, key = await make_key(settings, "acme")
        clients = [one.as_bearer(key), two.as_bearer(key)]
        outcomes = await asyncio.gather(
            *(clients[n % 2].integrations.CreateIntegration(github(client_id=f"app-{n}")) for n in range(8)),
            return_exceptions=True,
        )
        made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(made) == 1
        found = await clients[0].integrations.GetIntegration(pb.GetIntegrationRequest(name="github"))
        assert found.integration == made[0].integration


async def test_providers_are_listed_in_pages_with_what_an_admin_has_to_give(embedded_auth: Auth) -> None:
    client, _ = await embedded_auth.workspace("acme")
    found: list[pb.Provider] = []
    token = ""
    while True:
        page = await client.integrations.ListProviders(pb.ListProvidersRequest(page_size=1, page_token=token))
        found += page.providers
        token = page.next_page_token
        if not token:
            break
    assert [provider.slug for provider in found] == sorted(provider.slug for provider in ProviderCatalog.load())
    mcp = next(provider for provider in found if provider.slug == "mcp")
    assert list(mcp.variables) == ["server_url"]
    of_github = next(provider for provider in found if provider.slug == "github")
    assert pb.CREDENTIAL_KIND_OAUTH2 in of_github.kinds
    assert "api.github.com" in of_github.hosts


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"provider": ""}, "provider"),
        ({"provider": "Git Hub"}, "provider"),
        ({"provider": "absent"}, "provider"),
        ({"name": "Main"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"kind": pb.CREDENTIAL_KIND_BASIC}, "kind"),
        ({"kind": 99}, "kind"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": "two words"}, "client_id"),
        ({"client_id": "x" * 513}, "client_id"),
        ({"client_secret": "canary\x00"}, "client_secret"),
        ({"client_secret": "cänary"}, "client_secret"),
        ({"client_secret": "canary" * 2000}, "client_secret"),
        ({"variables": {"tenant": "x"}}, "variables"),
        ({"variables": {"a" * 3000: "x" * 3000}}, "variables"),
        ({"scopes": ["two words"]}, "scopes"),
        ({"scopes": [""]}, "scopes"),
        ({"scopes": ['"']}, "scopes"),
        ({"scopes": [f"s{n}" for n in range(101)]}, "scopes"),
        ({"agents": ["Not A Name"]}, "agents"),
        ({"agents": [f"a{n}" for n in range(101)]}, "agents"),
        ({"server_url": "https://mcp.example"}, "server_url"),
        ({"provider": "mcp", "client_id": "", "client_secret": ""}, "server_url"),
        ({"provider": "mcp", "client_id": "", "client_secret": "", "server_url": "http://mcp.example"}, "server_url"),
        ({"provider": "mcp", "client_id": "", "client_secret": "", "server_url": "https://a@b/"}, "server_url"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_a_wrong_field_is_named_without_the_secret_and_makes_nothing(
    embedded_auth: Auth, fields: dict[str, Any], field: str
) -> None:
    client, _ = await embedded_auth.workspace("acme")
    error = await failure(client.integrations.CreateIntegration(github(**fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert "canary" not in f"{error.message} {error.metadata} {error.field_violations}"
    assert await names(client) == []


@pytest.mark.parametrize("name", ["", "absent", "Not A Name", "a\x00", "x" * 1000])
async def test_an_integration_that_is_not_there_is_not_found(embedded_auth: Auth, name: str) -> None:
    client, _ = await embedded_auth.workspace("acme")
    mask = FieldMask(paths=["scopes"])
    for call in (
        client.integrations.GetIntegration(pb.GetIntegrationRequest(name=name)),
        client.integrations.UpdateIntegration(pb.UpdateIntegrationRequest(name=name, update_mask=mask)),
        client.integrations.DeleteIntegration(pb.DeleteIntegrationRequest(name=name, request_id="r")),
    ):
        error = await failure(call)
        assert (type(error), error.reason) == (NotFound, Reason.INTEGRATION_NOT_FOUND)


async def test_reading_and_writing_take_scopes_of_their_own(auth: Auth) -> None:
    _, reader_key = await make_key(auth.settings, "acme", ["integrations:read"])
    _, other_key = await make_key(auth.settings, "acme", ["connections:write"])
    reader, other = auth.as_bearer(reader_key), auth.as_bearer(other_key)
    await reader.integrations.ListIntegrations(pb.ListIntegrationsRequest())
    for call in (
        reader.integrations.CreateIntegration(github()),
        other.integrations.ListIntegrations(pb.ListIntegrationsRequest()),
        other.integrations.ListProviders(pb.ListProvidersRequest()),
    ):
        error = await failure(call)
        assert (type(error), error.reason) == (PermissionDenied, Reason.SCOPE_MISSING)


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
async def test_a_secret_that_cannot_be_stored_leaves_no_integration(settings: AuthSettings, when: str) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as auth:
        client, _ = await auth.workspace("acme")
        setattr(secrets, when, Unavailable("the store is away"))
        assert type(await failure(client.integrations.CreateIntegration(github(request_id="r1")))) is Unavailable
        assert await names(client) == []
        setattr(secrets, when, None)
        await client.integrations.CreateIntegration(github(request_id="r1"))
        assert await names(client) == ["github"]


# ------------------------------------------------------------------------------------------------------------ changing


def change(*paths: str, **fields: Any) -> pb.UpdateIntegrationRequest:
    """A request that changes the named fields of `github`."""
    outer = {key: fields.pop(key) for key in ("client_secret", "remove_old_secrets", "etag", "name") if key in fields}
    return pb.UpdateIntegrationRequest(
        **{"name": "github", **outer}, integration=pb.Integration(**fields), update_mask=FieldMask(paths=paths)
    )


async def test_only_what_the_mask_names_changes(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    made = (await client.integrations.CreateIntegration(github(scopes=["repo"]))).integration
    changed = (
        await client.integrations.UpdateIntegration(change("agents", agents=["helper"], scopes=["gist"]))
    ).integration
    assert (list(changed.agents), list(changed.scopes)) == (["helper"], ["repo"])
    assert changed.etag != made.etag
    emptied = await client.integrations.UpdateIntegration(change("agents", "scopes"))
    assert (list(emptied.integration.agents), list(emptied.integration.scopes)) == ([], [])
    error = await failure(client.integrations.UpdateIntegration(change("agents", etag=made.etag)))
    assert (type(error), error.reason) == (Conflict, Reason.CONFLICT)
    await client.integrations.UpdateIntegration(change("agents", etag=emptied.integration.etag))


@pytest.mark.parametrize(
    ("paths", "fields", "field"),
    [
        ((), {}, "update_mask"),
        (("name",), {}, "update_mask"),
        (("redirect_uri",), {}, "update_mask"),
        (("nothing",), {}, "update_mask"),
        (("client_id",), {"client_id": ""}, "client_id"),
        (("scopes",), {"scopes": ["two words"]}, "scopes"),
        (("agents",), {"agents": ["A"]}, "agents"),
        (("variables",), {"variables": {"tenant": "x"}}, "variables"),
        (("state",), {"state": pb.INTEGRATION_STATE_MISCONFIGURED}, "integration.state"),
        (("state",), {}, "integration.state"),
        ((), {"client_secret": "canary\x00"}, "client_secret"),
    ],
)
async def test_a_wrong_change_is_named_and_changes_nothing(
    embedded_auth: Auth, paths: tuple[str, ...], fields: dict[str, Any], field: str
) -> None:
    client, _ = await embedded_auth.workspace("acme")
    made = await client.integrations.CreateIntegration(github())
    error = await failure(client.integrations.UpdateIntegration(change(*paths, **fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert "canary" not in f"{error.message} {error.field_violations}"
    found = await client.integrations.GetIntegration(pb.GetIntegrationRequest(name="github"))
    assert found.integration == made.integration


async def test_a_client_secret_is_rotated_without_a_gap(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with FakeOAuthProvider() as provider, with_provider(settings, provider, secrets=secrets) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider, name="github"))
        # The admin enters the new one before the provider knows it: the old one still works.
        added = await client.integrations.UpdateIntegration(change(client_secret="new-secret"))
        assert added.integration.client_secret_count == 2
        again = await client.integrations.UpdateIntegration(change(client_secret="new-secret"))
        assert again.integration.client_secret_count == 2
        await client.connections.CreateConnection(CreateConnectionRequest(name="one", integration="github"))
        provider.client_secrets = ("new-secret",)
        await client.connections.CreateConnection(CreateConnectionRequest(name="two", integration="github"))
        removed = await client.integrations.UpdateIntegration(change(remove_old_secrets=True))
        assert removed.integration.client_secret_count == 1
        assert CLIENT_SECRET not in await held_secrets(secrets)
        await client.connections.CreateConnection(CreateConnectionRequest(name="three", integration="github"))


async def test_client_secrets_do_not_pile_up(embedded_auth: Auth) -> None:
    client, _ = await embedded_auth.workspace("acme")
    await client.integrations.CreateIntegration(github())
    for n in range(4):
        await client.integrations.UpdateIntegration(change(client_secret=f"secret-{n}"))
    error = await failure(client.integrations.UpdateIntegration(change(client_secret="secret-5")))
    assert [violation.field for violation in error.field_violations] == ["client_secret"]
    kept = await client.integrations.UpdateIntegration(change(client_secret="secret-6", remove_old_secrets=True))
    assert kept.integration.client_secret_count == 1


# ------------------------------------------------------------------------------------------ the application's own token


async def test_an_application_gets_a_token_for_itself(settings: AuthSettings) -> None:
    async with FakeOAuthProvider() as provider, with_provider(settings, provider) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider))
        made = (await client.connections.CreateConnection(CreateConnectionRequest(integration="fake"))).connection
        assert (made.name, made.provider, made.integration) == ("fake", "fake", "fake")
        assert (made.kind, made.state) == (pb.CREDENTIAL_KIND_CLIENT_CREDENTIALS, CONNECTION_STATE_ACTIVE)
        assert made.HasField("expire_time")
        assert len(made.fingerprint) == 12
        assert provider.token_calls == 1
        listed = await client.connections.ListConnections(ListConnectionsRequest(integration="fake"))
        assert [connection.name for connection in listed.connections] == ["fake"]


async def test_a_client_that_the_provider_refuses_is_the_admins_to_mend(settings: AuthSettings) -> None:
    async with FakeOAuthProvider() as provider, with_provider(settings, provider) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider, client_secret="wrong"))
        create = CreateConnectionRequest(integration="fake")
        error = await failure(client.connections.CreateConnection(create))
        assert (type(error), error.reason) == (FailedPrecondition, Reason.INTEGRATION_DISABLED)
        assert "wrong" not in error.message
        broken = (await client.integrations.GetIntegration(pb.GetIntegrationRequest(name="fake"))).integration
        assert (broken.state, broken.state_reason) == (pb.INTEGRATION_STATE_MISCONFIGURED, "invalid_client")
        mended = await client.integrations.UpdateIntegration(change(name="fake", client_secret=CLIENT_SECRET))
        assert mended.integration.state == pb.INTEGRATION_STATE_ACTIVE
        await client.connections.CreateConnection(create)


async def test_a_provider_that_is_away_is_tried_again_later(settings: AuthSettings) -> None:
    async with FakeOAuthProvider() as provider, with_provider(settings, provider) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider, variables={"base": "http://127.0.0.1:1"}))
        error = await failure(client.connections.CreateConnection(CreateConnectionRequest(integration="fake")))
        assert (type(error), error.reason) == (Unavailable, Reason.CREDENTIAL_UNAVAILABLE)
        found = await client.integrations.GetIntegration(pb.GetIntegrationRequest(name="fake"))
        assert found.integration.state == pb.INTEGRATION_STATE_ACTIVE


async def test_a_disabled_integration_takes_no_connections(settings: AuthSettings) -> None:
    async with FakeOAuthProvider() as provider, with_provider(settings, provider) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider))
        off = change("state", name="fake", state=pb.INTEGRATION_STATE_DISABLED)
        disabled = await client.integrations.UpdateIntegration(off)
        assert disabled.integration.state == pb.INTEGRATION_STATE_DISABLED
        error = await failure(client.connections.CreateConnection(CreateConnectionRequest(integration="fake")))
        assert (type(error), error.reason) == (FailedPrecondition, Reason.INTEGRATION_DISABLED)
        await client.integrations.UpdateIntegration(change("state", name="fake", state=pb.INTEGRATION_STATE_ACTIVE))
        await client.connections.CreateConnection(CreateConnectionRequest(integration="fake"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"integration": "github"}, "integration"),
        ({"api_key": "sk-canary"}, "api_key"),
        ({"username": "ann"}, "username"),
        ({"base_url": "https://a.example"}, "base_url"),
        ({"provider": "github"}, "provider"),
        ({"agents": ["A B"]}, "agents"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"user_id": "u" * 257}, "user_id"),
    ],
)
async def test_what_does_not_belong_to_the_integration_is_named(
    settings: AuthSettings, fields: dict[str, Any], field: str
) -> None:
    async with FakeOAuthProvider() as provider, with_provider(settings, provider) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider))
        await client.integrations.CreateIntegration(github())
        error = await failure(
            client.connections.CreateConnection(CreateConnectionRequest(**{"integration": "fake", **fields}))
        )
        assert [violation.field for violation in error.field_violations] == [field]
        assert "canary" not in str(error)
        assert provider.token_calls == 0


async def test_an_integration_that_is_not_there_connects_nothing(embedded_auth: Auth) -> None:
    client, _ = await embedded_auth.workspace("acme")
    for name in ("absent", "Not A Name"):
        error = await failure(client.connections.CreateConnection(CreateConnectionRequest(name="a", integration=name)))
        assert (type(error), error.reason) == (NotFound, Reason.INTEGRATION_NOT_FOUND)


# -------------------------------------------------------------------------------------------------------------- the end


async def test_a_revoked_grant_is_ended_at_the_provider_before_its_tokens_are_deleted(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with FakeOAuthProvider() as provider, with_provider(settings, provider, secrets=secrets) as (_, client, _):
        await client.integrations.CreateIntegration(fake(provider))
        await client.connections.CreateConnection(CreateConnectionRequest(integration="fake"))
        revoked = await client.connections.RevokeConnection(RevokeConnectionRequest(name="fake"))
        assert revoked.connection.state == CONNECTION_STATE_REVOKED
        assert [request.path for request in provider.requests] == ["/token", "/revoke"]
        # What is left is the client's secret.
        assert len(secrets.secrets) == 1


async def test_an_integration_goes_with_its_connections_and_its_secret(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with (
        FakeOAuthProvider() as provider,
        with_provider(settings, provider, secrets=secrets) as (auth, client, workspace_id),
    ):
        await client.integrations.CreateIntegration(fake(provider))
        for n in range(3):
            await client.connections.CreateConnection(
                CreateConnectionRequest(name=f"c{n}", integration="fake", user_id="" if n == 0 else f"user-{n}")
            )
        request = pb.DeleteIntegrationRequest(name="fake", request_id="r1")
        deleted = await client.integrations.DeleteIntegration(request)
        assert deleted.revoked_connections == 3
        assert await client.integrations.DeleteIntegration(request) == deleted
        assert await names(client) == []
        found = await client.connections.GetConnection(GetConnectionRequest(name="c1", user_id="user-1"))
        assert (found.connection.state, found.connection.integration) == (CONNECTION_STATE_REVOKED, "")
        actions = [record.action for record in await audit_of(auth.settings, workspace_id)]
        assert actions.count("connection.revoke") == 3
        assert actions[-1] == "integration.delete"
        # The name is free at once, also while the providers are still being told.
        await client.integrations.CreateIntegration(fake(provider, name="fake"))
        error = await failure(client.integrations.DeleteIntegration(pb.DeleteIntegrationRequest(name="other")))
        assert type(error) is NotFound


async def test_an_answer_of_the_release_after_this_one_is_understood(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")

    async def answers() -> list[str]:
        key = await client.api_keys.CreateApiKey(CreateApiKeyRequest(scopes=["runs:read"], request_id="r1"))
        connection = await client.connections.CreateConnection(new_connection(request_id="r2"))
        integration = await client.integrations.CreateIntegration(github(request_id="r3"))
        return [
            key.api_key.api_key_id,
            connection.connection.connection_id,
            integration.integration.integration_id,
        ]

    first = await answers()
    async with Database(auth.settings.database_url, schema="auth") as db:
        response = sa.func.replace(requests.c.response, '{"workspace_id"', '{"later": 1, "workspace_id"')
        later = requests.update().values(response=response)
        assert (await db.write(lambda connection: connection.execute(later).rowcount)) == 3
    assert await answers() == first
