"""Walls between workspaces: what is foreign answers exactly like what does not exist, for every RPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import (
    api_key_service_pb2,
    connect_service_pb2,
    connection_feed_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    workspace_service_pb2,
)
from holdfast.errors import NotFound, PermissionDenied, Unauthenticated
from services.auth.access import ACCESS
from tests.auth.support import Auth, Client, failure, new_connection

pytestmark = pytest.mark.promise("P11")

Call = Callable[[Client, Auth, str, str, str], Awaitable[Any]]

# What takes a name or an id: as the foreigner, with (own workspace, the id of the key, the name of the connection).
BY_NAME: dict[str, Call] = {
    "ApiKeyService/RevokeApiKey": lambda client, _, __, key_id, name: client.api_keys.RevokeApiKey(
        api_key_service_pb2.RevokeApiKeyRequest(api_key_id=key_id)
    ),
    "ConnectService/StartConnect": lambda client, _, __, key_id, name: client.connect.StartConnect(
        connect_service_pb2.StartConnectRequest(integration=name)
    ),
    # A session that exists, of another workspace: tests/auth/connect/test_service.py.
    "ConnectService/GetConnectSession": lambda client, _, __, key_id, name: client.connect.GetConnectSession(
        connect_service_pb2.GetConnectSessionRequest(session_id=key_id)
    ),
    "ConnectService/ConfirmConnect": lambda client, _, __, key_id, name: client.connect.ConfirmConnect(
        connect_service_pb2.ConfirmConnectRequest(session_id=key_id)
    ),
    "ConnectService/CancelConnect": lambda client, _, __, key_id, name: client.connect.CancelConnect(
        connect_service_pb2.CancelConnectRequest(session_id=key_id)
    ),
    "ConnectionService/GetConnection": lambda client, _, __, key_id, name: client.connections.GetConnection(
        connection_service_pb2.GetConnectionRequest(name=name)
    ),
    "ConnectionService/RevokeConnection": lambda client, _, __, key_id, name: client.connections.RevokeConnection(
        connection_service_pb2.RevokeConnectionRequest(name=name)
    ),
    "ConnectionService/RefreshConnection": lambda client, _, __, key_id, name: client.connections.RefreshConnection(
        connection_service_pb2.RefreshConnectionRequest(name=name)
    ),
    "ConnectionService/UpdateConnection": lambda client, _, __, key_id, name: client.connections.UpdateConnection(
        connection_service_pb2.UpdateConnectionRequest(name=name, update_mask=FieldMask(paths=["agents"]))
    ),
    "IntegrationService/GetIntegration": lambda client, _, __, key_id, name: client.integrations.GetIntegration(
        integration_service_pb2.GetIntegrationRequest(name=name)
    ),
    "IntegrationService/UpdateIntegration": lambda client, _, __, key_id, name: client.integrations.UpdateIntegration(
        integration_service_pb2.UpdateIntegrationRequest(name=name, update_mask=FieldMask(paths=["agents"]))
    ),
    "IntegrationService/DeleteIntegration": lambda client, _, __, key_id, name: client.integrations.DeleteIntegration(
        integration_service_pb2.DeleteIntegrationRequest(name=name)
    ),
    "CredentialService/ResolveCredential": lambda _, auth, own, key_id, name: auth.resolve(own, name),
}
# What takes none: its answer holds nothing of the other workspace, which is asserted below.
WITHOUT_NAME = {
    "ApiKeyService/CreateApiKey",
    "ApiKeyService/ListApiKeys",
    "AuditService/ExportAuditRecords",
    "AuditService/ListAuditRecords",
    "AuditService/VerifyAuditTrail",
    "ConnectionService/CreateConnection",
    "ConnectionService/ListConnections",
    "IntegrationService/CreateIntegration",
    "IntegrationService/ListIntegrations",
    "IntegrationService/ListProviders",
    "WorkspaceService/GetWorkspace",
    "WorkspaceService/SetPayloadSealing",
}
# For the executor or the operator alone, of all workspaces; what is asked about one of them is asserted below.
OF_ALL = {
    "AuditService/CheckAuditTrails",
    "ConnectionFeedService/CheckSignIns",
    "ConnectionFeedService/WatchConnections",
    "CredentialService/RecordCredentialUses",
}
# For the executor, for state, and for the operator, of all workspaces: test_closing.py.
NOT_FOR_KEYS = {
    "ConnectionService/EraseUserConnections",
    "DataKeyService/CreateDataKey",
    "DataKeyService/CheckPayloadSealing",
    "DataKeyService/UnwrapDataKey",
    "WorkspaceService/CloseWorkspace",
    "WorkspaceService/DeleteWorkspace",
}
# Takes a key, or a grant, which is the identity itself.
BY_KEY = {
    "ApiKeyService/VerifyApiKey",
    "GrantService/DeriveRunGrant",
    "GrantService/IssueRunGrant",
    "ConnectService/RequestSignIn",
}


def test_every_rpc_is_looked_at() -> None:
    methods = {name.removeprefix("/holdfast.api.auth.v1.") for name in ACCESS}
    assert methods == BY_NAME.keys() | WITHOUT_NAME | BY_KEY | OF_ALL | NOT_FOR_KEYS


@pytest.mark.parametrize("method", BY_NAME)
async def test_what_is_foreign_is_not_found_like_what_is_absent(auth: Auth, method: str) -> None:
    acme, acme_id = await auth.workspace("acme")
    foreigner, foreign_id = await auth.workspace("other")
    created = await acme.connections.CreateConnection(new_connection(name="secret-thing"))
    integration = await acme.integrations.CreateIntegration(
        integration_service_pb2.CreateIntegrationRequest(name="secret-thing", provider="github", client_id="app")
    )
    keys = await acme.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest())
    call = BY_NAME[method]
    foreign = await failure(call(foreigner, auth, foreign_id, keys.api_keys[0].api_key_id, "secret-thing"))
    absent = await failure(call(foreigner, auth, foreign_id, "A" * 12, "absent-thing"))
    assert type(foreign) is NotFound
    assert (foreign.reason, foreign.message, foreign.metadata) == (absent.reason, absent.message, absent.metadata)
    # Nothing has happened to it.
    credential = await auth.resolve(acme_id, "secret-thing")
    assert credential.connection_id == created.connection.connection_id
    assert await acme.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest()) == keys
    kept = await acme.integrations.GetIntegration(integration_service_pb2.GetIntegrationRequest(name="secret-thing"))
    assert kept.integration == integration.integration


async def test_answers_hold_nothing_of_another_workspace(auth: Auth) -> None:
    acme, acme_id = await auth.workspace("acme")
    foreigner, foreign_id = await auth.workspace("other")
    await acme.connections.CreateConnection(new_connection(name="secret-thing", base_url="https://acme.example"))
    await acme.api_keys.CreateApiKey(
        api_key_service_pb2.CreateApiKeyRequest(display_name="acme's key", scopes=["admin"])
    )
    await acme.integrations.CreateIntegration(
        integration_service_pb2.CreateIntegrationRequest(name="acme", provider="github", client_id="acme-app")
    )
    answers = [
        await foreigner.integrations.ListIntegrations(integration_service_pb2.ListIntegrationsRequest()),
        await foreigner.integrations.CreateIntegration(
            integration_service_pb2.CreateIntegrationRequest(name="github", provider="github", client_id="ours")
        ),
        await foreigner.connections.ListConnections(connection_service_pb2.ListConnectionsRequest()),
        await foreigner.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest()),
        await foreigner.workspaces.GetWorkspace(workspace_service_pb2.GetWorkspaceRequest()),
        # The same names are free here.
        await foreigner.connections.CreateConnection(new_connection(name="secret-thing")),
        await foreigner.api_keys.CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(display_name="ours", scopes=["admin"])
        ),
    ]
    text = "".join(str(answer) for answer in answers)
    assert "acme" not in text
    assert acme_id not in text
    own = await auth.resolve(foreign_id, "secret-thing")
    assert own.base_url == ""


async def test_no_rpc_answers_without_an_identity(auth: Auth) -> None:
    nobody, wrong = auth.as_nobody(), auth.as_bearer("hfst_wrong")
    for client in (nobody, wrong):
        for name in ACCESS:
            call = client.channel.unary_unary(
                name, request_serializer=bytes, response_deserializer=credential_service_pb2.ResolveCredentialRequest
            )
            error = await failure(call(b""))
            # A wrong key is not even looked at where only services may call.
            takes_no_keys = client is wrong and ACCESS[name].scope is None
            assert type(error) is (PermissionDenied if takes_no_keys else Unauthenticated), name


# ----------------------------------------------------------------------------------------------- walls between users

OF_USER: dict[str, Callable[[Client, str], Awaitable[Any]]] = {
    "GetConnection": lambda client, user: client.connections.GetConnection(
        connection_service_pb2.GetConnectionRequest(name="mine", user_id=user)
    ),
    "RefreshConnection": lambda client, user: client.connections.RefreshConnection(
        connection_service_pb2.RefreshConnectionRequest(name="mine", user_id=user)
    ),
    "UpdateConnection": lambda client, user: client.connections.UpdateConnection(
        connection_service_pb2.UpdateConnectionRequest(
            name="mine", user_id=user, update_mask=FieldMask(paths=["agents"])
        )
    ),
    "RevokeConnection": lambda client, user: client.connections.RevokeConnection(
        connection_service_pb2.RevokeConnectionRequest(name="mine", user_id=user)
    ),
}


@pytest.mark.parametrize("method", OF_USER)
@pytest.mark.parametrize("user", ["bob", "", "ANN", "ann "])
async def test_a_users_connection_is_not_there_under_another_users_name(auth: Auth, method: str, user: str) -> None:
    acme, _ = await auth.workspace("acme")
    created = await acme.connections.CreateConnection(new_connection(name="mine", user_id="ann"))
    foreign = await failure(OF_USER[method](acme, user))
    absent = await failure(acme.connections.GetConnection(connection_service_pb2.GetConnectionRequest(name="absent")))
    assert type(foreign) is NotFound
    assert (foreign.reason, foreign.message, foreign.metadata) == (absent.reason, absent.message, absent.metadata)
    kept = await acme.connections.GetConnection(connection_service_pb2.GetConnectionRequest(name="mine", user_id="ann"))
    assert kept == connection_service_pb2.GetConnectionResponse(connection=created.connection)


async def test_lists_and_sign_ins_of_a_user_hold_nothing_of_another_user_or_workspace(auth: Auth) -> None:
    acme, acme_id = await auth.workspace("acme")
    _, other_id = await auth.workspace("other")
    for user in ("ann", "bob"):
        await acme.connections.CreateConnection(new_connection(name=f"of-{user}", user_id=user))
    listed = await acme.connections.ListConnections(connection_service_pb2.ListConnectionsRequest(user_id="bob"))
    assert [connection.name for connection in listed.connections] == ["of-bob"]
    asked = [(acme_id, "ann"), (acme_id, "bob"), (acme_id, ""), (other_id, "ann"), ("", "ann")]
    checked = await auth.as_service("executor").feed.CheckSignIns(
        connection_feed_service_pb2.CheckSignInsRequest(
            sign_ins=[
                connection_feed_service_pb2.SignIn(workspace_id=workspace, user_id=user, connection="of-ann")
                for workspace, user in asked
            ]
        )
    )
    assert list(checked.is_usable) == [True, False, False, False, False]
