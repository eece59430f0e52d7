"""A running auth service on a free port, and clients that call it as somebody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from holdfast.api.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceStub
from holdfast.api.auth.v1.connection_service_pb2 import CreateConnectionRequest
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.credential_service_pb2 import ResolveCredentialRequest, ResolveCredentialResponse
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2 import GrantedConnection, IssueRunGrantRequest
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.auth.v1.integration_service_pb2_grpc import IntegrationServiceStub
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.errors import HoldfastError, from_rpc_error
from holdfast.ids import is_uuid
from services.auth.app import auth_server, open_core
from services.auth.callers import ADMIN, Caller
from services.auth.providers import ProviderCatalog
from services.auth.sealing import MasterKey
from services.auth.secrets import SecretStore
from services.auth.settings import AuthSettings
from services.auth.store import AuditRecord, AuthStore
from services.shared.channels import ServiceChannel
from services.shared.clock import Clock, SystemClock
from services.shared.settings import load
from services.shared.telemetry import build_telemetry

TOKEN = "a-service-token-of-enough-characters"

RUN = "0198c0de-0000-7000-8000-000000000001"

# The last key that was made in each workspace: who starts its runs.
_keys: dict[str, str] = {}


def settings_for(database_url: str, **changes: Any) -> AuthSettings:
    """Settings of a service on a free port with a master key of its own."""
    loaded = load(
        AuthSettings,
        {
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_SERVICE_TOKEN": TOKEN,
            "HOLDFAST_LISTEN": "127.0.0.1:0",
            "HOLDFAST_AUTH_HTTP_LISTEN": "127.0.0.1:0",
            "HOLDFAST_MASTER_KEY": MasterKey.generate().export(),
            "HOLDFAST_MIGRATE_ON_START": "true",
            "HOLDFAST_DRAIN_SECONDS": "2",
        },
    )
    return replace(loaded, **changes)


class Client:
    """Calls auth as one identity."""

    def __init__(self, address: str, authorization: str | None) -> None:
        inner = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self.channel = ServiceChannel(inner, address=address, identity=authorization, unary_deadline_seconds=10)
        self.api_keys = ApiKeyServiceStub(self.channel)
        self.audit = AuditServiceStub(self.channel)
        self.connect = ConnectServiceStub(self.channel)
        self.connections = ConnectionServiceStub(self.channel)
        self.credentials = CredentialServiceStub(self.channel)
        self.feed = ConnectionFeedServiceStub(self.channel)
        self.grants = GrantServiceStub(self.channel)
        self.integrations = IntegrationServiceStub(self.channel)
        self.workspaces = WorkspaceServiceStub(self.channel)


class Auth:
    """One replica, seen from outside."""

    def __init__(self, settings: AuthSettings, address: str, stack: AsyncExitStack) -> None:
        self.settings = settings
        self.address = address
        self._stack = stack

    def as_bearer(self, key: str) -> Client:
        """A client with an API key."""
        return self._client(f"Bearer {key}")

    def as_service(self, name: str) -> Client:
        """A client that is another service."""
        return self._client(f"Service {name}:{TOKEN}")

    def as_nobody(self) -> Client:
        """A client without an identity."""
        return self._client(None)

    async def workspace(self, name: str) -> tuple[Client, str]:
        """A client with an admin key of a workspace, and the workspace's id."""
        workspace_id, key = await make_key(self.settings, name)
        return self.as_bearer(key), workspace_id

    async def grant(
        self,
        workspace_id: str,
        *connections: str,
        run_id: str = RUN,
        user_id: str = "",
        agent: str = "support",
        scopes: Sequence[str] = (),
    ) -> str:
        """The grant of a run that somebody in the workspace starts."""
        answer = await self.as_service("executor").grants.IssueRunGrant(
            IssueRunGrantRequest(
                caller_credential=_keys[workspace_id],
                run_id=run_id if is_uuid(run_id) else RUN,
                user_id=user_id,
                agent=agent,
                connections=[GrantedConnection(name=name, scopes=scopes) for name in connections],
            )
        )
        return answer.run_grant

    async def resolve(
        self, workspace_id: str, name: str = "openai", *, user_id: str = "", agent: str = "support", **fields: Any
    ) -> ResolveCredentialResponse:
        """The credential of one step, of a run whose agent declares the connection."""
        grant = await self.grant(workspace_id, name, run_id=fields.get("run_id", RUN), user_id=user_id, agent=agent)
        request = use_of(workspace_id, name, run_grant=grant, **fields)
        return await self.as_service("executor").credentials.ResolveCredential(request)

    def _client(self, authorization: str | None) -> Client:
        client = Client(self.address, authorization)
        self._stack.push_async_callback(client.channel.close)
        return client


@asynccontextmanager
async def running(
    settings: AuthSettings,
    *,
    clock: Clock | None = None,
    store: AuthStore | None = None,
    secrets: SecretStore | None = None,
    catalog: ProviderCatalog | None = None,
) -> AsyncIterator[Auth]:
    """One replica."""
    async with (
        auth_server(
            settings,
            build_telemetry("auth"),
            asyncio.Event(),
            clock=clock,
            store=store,
            secrets=secrets,
            catalog=catalog,
        ) as server,
        AsyncExitStack() as stack,
    ):
        yield Auth(settings, server.address, stack)


async def make_key(
    settings: AuthSettings, workspace: str, scopes: Sequence[str] = (ADMIN,), clock: Clock | None = None
) -> tuple[str, str]:
    """Makes a key, as the command beside the server does; returns the workspace's id and the key."""
    async with open_core(settings, asyncio.Event(), clock=clock or SystemClock()) as core:
        made = await core.workspaces.ensure(workspace, actor="test")
        caller = Caller(made.workspace_id, "test", frozenset({ADMIN}))
        created = await core.api_keys.create(caller, display_name="test", scopes=scopes)
        assert created.secret is not None
        key = created.secret.reveal()
        _keys[made.workspace_id] = key
        return made.workspace_id, key


def key_of(workspace_id: str) -> str:
    """The last key that was made in a workspace."""
    return _keys[workspace_id]


async def audit_of(settings: AuthSettings, workspace_id: str) -> list[AuditRecord]:
    """The audit of a workspace, whose numbers are dense."""
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        records = await core.store.list_audit_records(workspace_id, limit=10_000, after_seq=0)
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    return records


async def failure(call: Awaitable[Any]) -> HoldfastError:
    """The error of a call that has to fail."""
    try:
        response = await call
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"the call succeeded: {type(response).__name__}")


def new_connection(name: str = "openai", key: str = "sk-test-1", **fields: Any) -> CreateConnectionRequest:
    """A request that makes a connection."""
    return CreateConnectionRequest(**{"name": name, "provider": "openai", "api_key": key, **fields})


def use_of(workspace_id: str, name: str = "openai", **fields: Any) -> ResolveCredentialRequest:
    """A request for the credential of one step; without a grant it is refused."""
    return ResolveCredentialRequest(
        **{"workspace_id": workspace_id, "connection": name, "run_id": RUN, "step": 3, **fields}
    )


def sqlite_url(folder: Path) -> str:
    """The URL of a new SQLite database."""
    return f"sqlite:///{folder / 'auth.db'}"
