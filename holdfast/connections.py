"""Integrations and connections as a client uses them. A secret goes in and never comes out."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal

from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import connection_service_pb2, integration_service_pb2
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.integration_service_pb2_grpc import IntegrationServiceStub
from holdfast.errors import InvalidArgument
from holdfast.ids import new_uuid7
from holdfast.transport import Transport

Kind = Literal["", "api_key", "basic", "oauth2", "client_credentials"]
"""How credentials come about; empty is the provider's usual way."""

_PAGE_SIZE: Final = 200


class Integrations:
    """What an admin sets up once, so that users can connect their accounts."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("auth", IntegrationServiceStub)

    async def providers(self) -> AsyncIterator[integration_service_pb2.Provider]:
        """Yields the providers that the suite knows, by slug."""
        request = integration_service_pb2.ListProvidersRequest(page_size=_PAGE_SIZE)
        async for response in self._transport.pages("auth", self._stub.ListProviders, request):
            for provider in response.providers:
                yield provider

    async def create(
        self,
        provider: str,
        *,
        name: str = "",
        kind: Kind = "",
        client_id: str = "",
        client_secret: str = "",
        variables: Mapping[str, str] | None = None,
        scopes: Sequence[str] = (),
        agents: Sequence[str] = (),
        server_url: str = "",
    ) -> integration_service_pb2.Integration:
        """Sets an integration up.

        Args:
            provider: Slug of the provider; `providers` yields them.
            name: Unique in the workspace; the provider's slug when not given.
            kind: How its connections' credentials come about.
            client_id: OAuth client id.
            client_secret: OAuth client secret, or a PEM private key.
            variables: Values of the provider's variables, such as a tenant.
            scopes: Permissions that are always asked for.
            agents: Agents that may use its connections; all when there are none.
            server_url: The server of a discovered provider, such as an MCP server.
        """
        request = integration_service_pb2.CreateIntegrationRequest(
            name=name,
            provider=provider,
            kind=_kind(kind),
            client_id=client_id,
            client_secret=client_secret,
            variables=variables,
            scopes=scopes,
            agents=agents,
            server_url=server_url,
            request_id=new_uuid7(),
        )
        return (await self._transport.call("auth", self._stub.CreateIntegration, request)).integration

    async def get(self, name: str) -> integration_service_pb2.Integration:
        """Returns an integration, without its secrets."""
        request = integration_service_pb2.GetIntegrationRequest(name=name)
        return (await self._transport.call("auth", self._stub.GetIntegration, request)).integration

    async def list(self) -> AsyncIterator[integration_service_pb2.Integration]:
        """Yields the integrations by name."""
        request = integration_service_pb2.ListIntegrationsRequest(page_size=_PAGE_SIZE)
        async for response in self._transport.pages("auth", self._stub.ListIntegrations, request):
            for integration in response.integrations:
                yield integration

    async def update(
        self,
        name: str,
        *,
        client_id: str | None = None,
        client_secret: str = "",
        remove_old_secrets: bool = False,
        variables: Mapping[str, str] | None = None,
        scopes: Sequence[str] | None = None,
        agents: Sequence[str] | None = None,
        enabled: bool | None = None,
        etag: str = "",
    ) -> integration_service_pb2.Integration:
        """Changes what is given.

        Args:
            name: Of the integration.
            client_id: OAuth client id.
            client_secret: A further client secret, tried first from now on; the old one stays valid.
            remove_old_secrets: Forget all client secrets but the newest.
            variables: Values of the provider's variables.
            scopes: Permissions that are always asked for.
            agents: Agents that may use its connections; all when there are none.
            enabled: Switch it on or off; the connections of one that is off are refused.
            etag: Refuse when it has changed since.
        """
        given = {"client_id": client_id, "variables": variables, "scopes": scopes, "agents": agents}
        paths = [field for field, value in given.items() if value is not None]
        new = integration_service_pb2.Integration(**{field: given[field] for field in paths})  # type: ignore[arg-type]
        if enabled is not None:
            paths.append("state")
            new.state = (
                integration_service_pb2.INTEGRATION_STATE_ACTIVE
                if enabled
                else integration_service_pb2.INTEGRATION_STATE_DISABLED
            )
        request = integration_service_pb2.UpdateIntegrationRequest(
            name=name,
            integration=new,
            update_mask=FieldMask(paths=paths),
            client_secret=client_secret,
            remove_old_secrets=remove_old_secrets,
            etag=etag,
            request_id=new_uuid7(),
        )
        return (await self._transport.call("auth", self._stub.UpdateIntegration, request)).integration

    async def delete(self, name: str) -> int:
        """Deletes an integration with its secrets and all of its connections, and returns how many those were."""
        request = integration_service_pb2.DeleteIntegrationRequest(name=name, request_id=new_uuid7())
        return (await self._transport.call("auth", self._stub.DeleteIntegration, request)).revoked_connections


class Connections:
    """Credentials of third parties, of users or shared by the workspace."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("auth", ConnectionServiceStub)

    async def create(
        self,
        provider: str = "",
        api_key: str = "",
        *,
        name: str = "",
        base_url: str = "",
        replace: bool = False,
        user_id: str = "",
        integration: str = "",
        username: str = "",
        agents: Sequence[str] = (),
        allow_raw_token: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> connection_service_pb2.Connection:
        """Stores a key or a password, or has an application get a token for itself.

        Args:
            provider: `openai`, `anthropic`, or any name; not needed with an integration.
            api_key: The key or password; empty for servers that want none, which need a `base_url`, and for
                integrations of the kind client_credentials.
            name: Unique among those of the user, or among the shared ones; the provider's name when not given.
            base_url: The API's address; the provider's own when not given.
            replace: Replace an existing connection of the name.
            user_id: Whose it is; the workspace's when not given.
            integration: Name of an integration, whose provider says how the credential is sent, and where.
            username: User name for HTTP Basic.
            agents: Agents that may use it; all when there are none.
            allow_raw_token: Workers may be handed the secret itself.
            variables: Values of the provider's variables that are the connection's own, such as a subdomain.
        """
        request = connection_service_pb2.CreateConnectionRequest(
            name=name,
            provider=provider,
            api_key=api_key,
            base_url=base_url,
            replace=replace,
            request_id=new_uuid7(),
            user_id=user_id,
            integration=integration,
            username=username,
            agents=agents,
            allow_raw_token=allow_raw_token,
            variables=variables,
        )
        return (await self._transport.call("auth", self._stub.CreateConnection, request)).connection

    async def get(self, name: str, *, user_id: str = "") -> connection_service_pb2.Connection:
        """Returns a connection of the user, or a shared one."""
        request = connection_service_pb2.GetConnectionRequest(name=name, user_id=user_id)
        return (await self._transport.call("auth", self._stub.GetConnection, request)).connection

    async def list(
        self, *, user_id: str = "", integration: str = "", state: int = 0
    ) -> AsyncIterator[connection_service_pb2.Connection]:
        """Yields the connections by name.

        Args:
            user_id: Only those of this user.
            integration: Only those of this integration.
            state: Only those in this `ConnectionState`.
        """
        request = connection_service_pb2.ListConnectionsRequest(
            page_size=_PAGE_SIZE,
            user_id=user_id,
            integration=integration,
            state=connection_service_pb2.ConnectionState.Name(state),
        )
        async for response in self._transport.pages("auth", self._stub.ListConnections, request):
            for connection in response.connections:
                yield connection

    async def update(
        self,
        name: str,
        *,
        user_id: str = "",
        agents: Sequence[str] | None = None,
        allow_raw_token: bool | None = None,
        enabled: bool | None = None,
    ) -> connection_service_pb2.Connection:
        """Changes what is given.

        Args:
            name: Of the connection.
            user_id: Whose it is; the workspace's when not given.
            agents: Agents that may use it; all when there are none.
            allow_raw_token: Workers may be handed the secret itself.
            enabled: Switch it on or off.
        """
        paths: builtins.list[str] = []
        new = connection_service_pb2.Connection()
        if agents is not None:
            paths.append("agents")
            new.agents.extend(agents)
        if allow_raw_token is not None:
            paths.append("allow_raw_token")
            new.allow_raw_token = allow_raw_token
        if enabled is not None:
            paths.append("state")
            new.state = (
                connection_service_pb2.CONNECTION_STATE_ACTIVE
                if enabled
                else connection_service_pb2.CONNECTION_STATE_DISABLED
            )
        request = connection_service_pb2.UpdateConnectionRequest(
            name=name, user_id=user_id, connection=new, update_mask=FieldMask(paths=paths), request_id=new_uuid7()
        )
        return (await self._transport.call("auth", self._stub.UpdateConnection, request)).connection

    async def refresh(self, name: str, *, user_id: str = "") -> connection_service_pb2.Connection:
        """Renews the token of a connection now, whatever its age, and returns it as it stands afterwards."""
        request = connection_service_pb2.RefreshConnectionRequest(name=name, user_id=user_id)
        return (await self._transport.call("auth", self._stub.RefreshConnection, request)).connection

    async def revoke(self, name: str, *, user_id: str = "") -> connection_service_pb2.Connection:
        """Revokes a connection, tells the provider, and deletes the secret."""
        request = connection_service_pb2.RevokeConnectionRequest(name=name, user_id=user_id, request_id=new_uuid7())
        return (await self._transport.call("auth", self._stub.RevokeConnection, request)).connection


_KINDS: Final = {
    "": integration_service_pb2.CREDENTIAL_KIND_UNSPECIFIED,
    "api_key": integration_service_pb2.CREDENTIAL_KIND_API_KEY,
    "basic": integration_service_pb2.CREDENTIAL_KIND_BASIC,
    "oauth2": integration_service_pb2.CREDENTIAL_KIND_OAUTH2,
    "client_credentials": integration_service_pb2.CREDENTIAL_KIND_CLIENT_CREDENTIALS,
}


def _kind(kind: str) -> integration_service_pb2.CredentialKind:
    if kind not in _KINDS:
        raise InvalidArgument(
            f"there is no kind of credentials {kind!r}",
            field="kind",
            description=f"expected one of {', '.join(name for name in _KINDS if name)}",
        )
    return _KINDS[kind]
