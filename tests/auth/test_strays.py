"""Secrets that are nobody's: what is told to providers first, how long, and what a kill at any point leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import integration_service_pb2 as ipb
from holdfast.api.auth.v1.connection_service_pb2 import CreateConnectionRequest, RevokeConnectionRequest
from holdfast.ids import new_uuid7
from services.auth.app import MIGRATIONS
from services.auth.connection_store import Connection, CredentialKind, NewConnection
from services.auth.connection_store_sql import SqlConnectionStore
from services.auth.integration_store import IntegrationChange, NewIntegration
from services.auth.integration_store_sql import SqlIntegrationStore
from services.auth.oauth.client import OAuthClient
from services.auth.oauth_apps import OAuthApps, secrets_document
from services.auth.providers import ProviderCatalog
from services.auth.refresh.documents import TokenDocument
from services.auth.revocations import Revocations
from services.auth.sealing import MasterKey
from services.auth.secret_paths import integration_path, new_connection_path
from services.auth.secrets import Secret
from services.auth.store_sql import SqlAuthStore
from services.auth.strays import TELLING_PROVIDERS, StraySecrets
from services.auth.tables import connections, integrations, secrets, stray_secrets
from services.shared.database import Database
from services.shared.migrations import upgrade
from tests.auth.support import Client, make_key, new_connection, settings_for
from tests.auth.test_process import environment, process
from tests.fakes.clock import FakeClock
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Grant
from tests.fakes.secret_store import MemorySecretStore

AWAY = "http://127.0.0.1:1"


def is_alive(grant: Grant) -> bool:
    """Tells whether the provider still takes the grant's tokens."""
    return grant.is_alive


@dataclass
class Setting:
    """A workspace with an integration at the provider of the tests, on a clock of its own."""

    workspace_id: str
    integration_id: str
    store: SqlConnectionStore
    integrations: SqlIntegrationStore
    secrets: MemorySecretStore
    strays: StraySecrets
    clock: FakeClock

    async def connected(self, grant: Grant, name: str = "mine") -> Connection:
        """A connection with the tokens of a grant."""
        path = new_connection_path(self.workspace_id, "ann")
        new = NewConnection(
            workspace_id=self.workspace_id,
            connection_id=new_uuid7(),
            name=name,
            user_id="ann",
            integration_id=self.integration_id,
            provider="fake",
            kind=CredentialKind.OAUTH2,
            secret_path=path,
            token_version=1,
        )
        await self.strays.write(path, TokenDocument(tokens=grant.tokens()).to_secret(new))
        return (await self.store.save_connection(new, replace=False, actor="test", request=None)).connection

    async def revoke(self, name: str = "mine") -> None:
        """Revokes a connection, as the RPC does."""
        saved = await self.store.revoke_connection(self.workspace_id, "ann", name, actor="test", request=None)
        assert saved is not None
        await self.strays.discard(saved.abandoned)

    async def move_to(self, base: str) -> None:
        """Says where the provider is."""
        change = IntegrationChange(variables={"base": base})
        await self.integrations.update_integration(
            self.workspace_id, self.integration_id, change, version=None, actor="test", request=None
        )


@asynccontextmanager
async def setting(tmp_path: Path, provider: FakeOAuthProvider) -> AsyncIterator[Setting]:
    """The parts that end grants, on SQLite."""
    clock, kept = FakeClock(), MemorySecretStore()
    async with Database(f"sqlite:///{tmp_path / 'auth.db'}", schema="auth", clock=clock) as db:
        await upgrade(db, MIGRATIONS)
        workspace = await SqlAuthStore(db).ensure_workspace("acme", workspace_id=new_uuid7(), actor="test")
        store, integration_store = SqlConnectionStore(db), SqlIntegrationStore(db)
        apps = OAuthApps(integration_store, kept, ProviderCatalog([provider.data]), clock)
        egress = provider.egress()
        revocations = Revocations(integration_store, apps, OAuthClient(egress, clock), kept)
        strays = StraySecrets(store, kept, revocations, clock)
        integration_id = new_uuid7()
        path = integration_path(workspace.workspace_id, integration_id)
        document = secrets_document(workspace.workspace_id, integration_id, "fake", [Secret(CLIENT_SECRET)])
        await strays.write(path, document)
        await integration_store.create_integration(
            NewIntegration(
                workspace_id=workspace.workspace_id,
                integration_id=integration_id,
                name="fake",
                provider="fake",
                kind=CredentialKind.OAUTH2,
                client_id=CLIENT_ID,
                variables={"base": provider.url},
                scopes=(),
                agents=(),
                server_url="",
                discovered={},
                secret_path=path,
                client_secret_count=1,
            ),
            actor="test",
            request=None,
        )
        try:
            yield Setting(workspace.workspace_id, integration_id, store, integration_store, kept, strays, clock)
        finally:
            await egress.close()


async def test_a_grant_ends_at_the_provider_and_then_its_tokens_go(tmp_path: Path) -> None:
    async with FakeOAuthProvider() as provider, setting(tmp_path, provider) as here:
        grant = provider.grant()
        connection = await here.connected(grant)
        await here.revoke()
        assert not is_alive(grant)
        assert connection.secret_path not in here.secrets.secrets
        # What is left is the lease of its refresh, which was never taken.
        assert await here.strays.sweep() == 1


async def test_a_provider_that_is_away_is_told_later_and_keeps_the_tokens_until_then(tmp_path: Path) -> None:
    async with FakeOAuthProvider() as provider, setting(tmp_path, provider) as here:
        grant = provider.grant()
        connection = await here.connected(grant)
        await here.move_to(AWAY)
        await here.revoke()
        assert is_alive(grant)
        assert connection.secret_path in here.secrets.secrets
        await here.move_to(provider.url)
        # Not at once: whoever is away is asked again after a while.
        await here.strays.sweep()
        assert connection.secret_path in here.secrets.secrets
        await here.clock.advance(61)
        assert await here.strays.sweep() == 1
        assert not is_alive(grant)
        assert connection.secret_path not in here.secrets.secrets


async def test_after_a_day_tokens_are_deleted_even_if_the_provider_never_answered(tmp_path: Path) -> None:
    async with FakeOAuthProvider() as provider, setting(tmp_path, provider) as here:
        grant = provider.grant()
        connection = await here.connected(grant)
        await here.move_to(AWAY)
        await here.revoke()
        for _ in range(int(TELLING_PROVIDERS.total_seconds() // 3600)):
            assert connection.secret_path in here.secrets.secrets
            await here.clock.advance(3600)
            await here.strays.sweep()
        assert connection.secret_path not in here.secrets.secrets
        assert is_alive(grant)


async def test_a_deleted_integration_keeps_its_client_secret_until_its_providers_know(tmp_path: Path) -> None:
    async with FakeOAuthProvider() as provider, setting(tmp_path, provider) as here:
        grants = [provider.grant(account) for account in ("ada", "bob", "cy")]
        for number, grant in enumerate(grants):
            await here.connected(grant, f"c{number}")
        off = IntegrationChange(is_disabled=True)
        await here.integrations.update_integration(
            here.workspace_id, here.integration_id, off, version=None, actor="test", request=None
        )
        await here.integrations.revoke_connections_of(here.workspace_id, here.integration_id, limit=10, actor="test")
        await here.integrations.delete_integration(
            here.workspace_id, here.integration_id, actor="test", request=None, revoked_connections=3
        )
        assert await here.integrations.purge_deleted_integrations(limit=10) == []
        await here.clock.advance(61)
        await here.strays.sweep()
        assert [is_alive(grant) for grant in grants] == [False, False, False]
        for path in await here.integrations.purge_deleted_integrations(limit=10):
            await here.strays.give_up(path)
        assert here.secrets.secrets == {}


async def test_a_replaced_grant_is_not_ended_behind_the_new_one(tmp_path: Path) -> None:
    async with FakeOAuthProvider() as provider, setting(tmp_path, provider) as here:
        grant = provider.grant()
        old = await here.connected(grant)
        path = new_connection_path(here.workspace_id, "ann")
        new = NewConnection(
            workspace_id=here.workspace_id,
            connection_id=new_uuid7(),
            name="mine",
            user_id="ann",
            integration_id=here.integration_id,
            provider="fake",
            kind=CredentialKind.OAUTH2,
            secret_path=path,
            token_version=1,
        )
        # The new document goes on with the old refresh token.
        await here.strays.write(path, TokenDocument(tokens=grant.tokens()).to_secret(new))
        await here.store.save_connection(new, replace=True, actor="test", request=None)
        await here.clock.advance(3600)
        await here.strays.sweep()
        assert is_alive(grant)
        assert old.secret_path not in here.secrets.secrets
        assert path in here.secrets.secrets


# -------------------------------------------------------------------------------------------------------------- kills


async def paths_of(database_url: str) -> tuple[set[str], set[str], set[str]]:
    """Paths that rows refer to, that are strays, and that hold a secret."""

    def read(connection: sa.Connection) -> tuple[set[str], set[str], set[str]]:
        rows = {
            path
            for table in (connections, integrations)
            for path in connection.execute(sa.select(table.c.secret_path)).scalars()
            if path is not None
        }
        strays = set(connection.execute(sa.select(stray_secrets.c.path)).scalars())
        return rows, strays, set(connection.execute(sa.select(secrets.c.path)).scalars())

    async with Database(database_url, schema="auth") as db:
        return await db.read(read)


def keys_integration() -> ipb.CreateIntegrationRequest:
    """An integration whose connections are keys."""
    return ipb.CreateIntegrationRequest(
        name="keys", provider="api-key", variables={"api_url": "https://crm.example"}, request_id="i1"
    )


async def make_key_connection(client: Client) -> Any:
    return await client.connections.CreateConnection(new_connection(request_id="c1"))


async def replace_key(client: Client) -> Any:
    return await client.connections.CreateConnection(new_connection(key="sk-2", replace=True, request_id="c2"))


async def revoke_key(client: Client) -> Any:
    return await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai", request_id="c3"))


async def make_integration(client: Client) -> Any:
    return await client.integrations.CreateIntegration(
        ipb.CreateIntegrationRequest(provider="github", client_id="a", client_secret="s", request_id="i2")
    )


async def rotate_secret(client: Client) -> Any:
    return await client.integrations.UpdateIntegration(
        ipb.UpdateIntegrationRequest(name="github", client_secret="s2", update_mask=FieldMask(), request_id="i3")
    )


async def delete_integration(client: Client) -> Any:
    return await client.integrations.DeleteIntegration(ipb.DeleteIntegrationRequest(name="keys", request_id="i4"))


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    ("point", "act"),
    [
        ("auth.after_announcement", make_key_connection),
        ("auth.after_secret", make_key_connection),
        ("auth.after_row", replace_key),
        ("auth.after_row", revoke_key),
        ("auth.before_deletion", revoke_key),
        ("auth.after_deletion", replace_key),
        ("auth.after_announcement", make_integration),
        ("auth.after_secret", make_integration),
        ("auth.after_client_secret", rotate_secret),
        ("auth.after_cascade", delete_integration),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_a_kill_between_secret_and_row_leaves_no_secret_behind(tmp_path: Path, point: str, act: Any) -> None:
    master = MasterKey.generate()
    url = f"sqlite:///{tmp_path / 'auth.db'}"
    settings = settings_for(url, master_key=master)
    environ = environment(url, HOLDFAST_MASTER_KEY=master.export())
    _, admin_key = await make_key(settings, "acme")
    async with process(settings, environ) as (auth, _):
        client = auth.as_bearer(admin_key)
        if act is not make_key_connection:
            await make_key_connection(client)
        if act is rotate_secret:
            await make_integration(client)
        if act is delete_integration:
            await client.integrations.CreateIntegration(keys_integration())
            for number in range(3):
                await client.connections.CreateConnection(
                    CreateConnectionRequest(name=f"c{number}", integration="keys", api_key="sk-canary")
                )
    async with process(settings, {**environ, "HOLDFAST_CRASH_POINT": point}) as (auth, child):
        with pytest.raises(grpc.RpcError):
            await act(auth.as_bearer(admin_key))
        assert await child.wait() == 137
    rows, strays, held = await paths_of(url)
    # Every secret is some row's or a stray that is swept; no row is without its secret; nothing is both.
    assert held <= rows | strays
    assert rows <= held
    assert not rows & strays
    async with process(settings, environ) as (auth, _):
        client = auth.as_bearer(admin_key)
        # The caller, who got no answer, asks the same again.
        first = await act(client)
        assert await act(client) == first
    rows, strays, held = await paths_of(url)
    assert rows <= held <= rows | strays
