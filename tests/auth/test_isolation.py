"""Walls between workspaces: what is foreign answers exactly like what does not exist, for every RPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from holdfast.api.auth.v1 import (
    api_key_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    workspace_service_pb2,
)
from holdfast.errors import NotFound, PermissionDenied, Unauthenticated
from services.auth.access import ACCESS
from tests.auth.support import Auth, Client, failure, new_connection, use_of

pytestmark = pytest.mark.promise("P11")

Call = Callable[[Client, Client, str, str, str], Awaitable[Any]]

# What takes a name or an id: as the foreigner, with (own workspace, the id of the key, the name of the connection).
BY_NAME: dict[str, Call] = {
    "ApiKeyService/RevokeApiKey": lambda client, _, __, key_id, name: client.api_keys.RevokeApiKey(
        api_key_service_pb2.RevokeApiKeyRequest(api_key_id=key_id)
    ),
    "ConnectionService/GetConnection": lambda client, _, __, key_id, name: client.connections.GetConnection(
        connection_service_pb2.GetConnectionRequest(name=name)
    ),
    "ConnectionService/RevokeConnection": lambda client, _, __, key_id, name: client.connections.RevokeConnection(
        connection_service_pb2.RevokeConnectionRequest(name=name)
    ),
    "CredentialService/ResolveCredential": lambda _, executor, own, key_id, name: (
        executor.credentials.ResolveCredential(use_of(own, name))
    ),
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
    "WorkspaceService/GetWorkspace",
}
# Takes a key, which is the identity itself.
BY_KEY = {"ApiKeyService/VerifyApiKey", "GrantService/IssueRunGrant"}


def test_every_rpc_is_looked_at() -> None:
    methods = {name.removeprefix("/holdfast.api.auth.v1.") for name in ACCESS}
    assert methods == BY_NAME.keys() | WITHOUT_NAME | BY_KEY


@pytest.mark.parametrize("method", BY_NAME)
async def test_what_is_foreign_is_not_found_like_what_is_absent(auth: Auth, method: str) -> None:
    acme, acme_id = await auth.workspace("acme")
    foreigner, foreign_id = await auth.workspace("other")
    executor = auth.as_service("executor")
    created = await acme.connections.CreateConnection(new_connection(name="secret-thing"))
    keys = await acme.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest())
    call = BY_NAME[method]
    foreign = await failure(call(foreigner, executor, foreign_id, keys.api_keys[0].api_key_id, "secret-thing"))
    absent = await failure(call(foreigner, executor, foreign_id, "A" * 12, "absent-thing"))
    assert type(foreign) is NotFound
    assert (foreign.reason, foreign.message, foreign.metadata) == (absent.reason, absent.message, absent.metadata)
    # Nothing has happened to it.
    credential = await executor.credentials.ResolveCredential(use_of(acme_id, "secret-thing"))
    assert credential.connection_id == created.connection.connection_id
    assert await acme.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest()) == keys


async def test_answers_hold_nothing_of_another_workspace(auth: Auth) -> None:
    acme, acme_id = await auth.workspace("acme")
    foreigner, foreign_id = await auth.workspace("other")
    await acme.connections.CreateConnection(new_connection(name="secret-thing", base_url="https://acme.example"))
    await acme.api_keys.CreateApiKey(
        api_key_service_pb2.CreateApiKeyRequest(display_name="acme's key", scopes=["admin"])
    )
    answers = [
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
    executor = auth.as_service("executor")
    own = await executor.credentials.ResolveCredential(use_of(foreign_id, "secret-thing"))
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
