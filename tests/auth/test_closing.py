"""The end of a workspace, and the data keys that end with it, over gRPC."""

from __future__ import annotations

import asyncio
import json

import pytest

from holdfast.api.auth.v1 import (
    api_key_service_pb2,
    connect_service_pb2,
    connection_service_pb2,
    data_key_service_pb2,
    integration_service_pb2,
)
from holdfast.api.auth.v1 import workspace_service_pb2 as pb
from holdfast.api.auth.v1.data_key_service_pb2_grpc import DataKeyServiceStub
from holdfast.errors import (
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from services.auth.app import open_core
from services.auth.callers import ADMIN, Caller
from services.auth.roles import SCOPES
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.shared.clock import SystemClock
from tests.auth.support import Auth, Client, audit_of, failure, make_key, new_connection


def keys_of(auth: Auth) -> DataKeyServiceStub:
    """Data keys, as state asks for them."""
    return DataKeyServiceStub(auth.as_service("state").channel)


async def close(auth: Auth, name: str = "acme") -> pb.Workspace:
    answer = await auth.as_service("operator").workspaces.CloseWorkspace(pb.CloseWorkspaceRequest(name=name))
    return answer.workspace


async def delete(auth: Auth, name: str = "acme") -> pb.DeleteWorkspaceResponse:
    return await auth.as_service("operator").workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(name=name))


async def wrapped_for(auth: Auth, workspace_id: str) -> tuple[bytes, str]:
    made = await keys_of(auth).CreateDataKey(data_key_service_pb2.CreateDataKeyRequest(workspace_id=workspace_id))
    return made.key, made.wrapped


async def unwrapped(auth: Auth, workspace_id: str, wrapped: str) -> bytes:
    request = data_key_service_pb2.UnwrapDataKeyRequest(workspace_id=workspace_id, wrapped=wrapped)
    return (await keys_of(auth).UnwrapDataKey(request)).key


# ----------------------------------------------------------------------------------------------------------- data keys


async def test_a_data_key_is_for_its_workspace_and_for_state(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    _, other_id = await auth.workspace("other")
    key, wrapped = await wrapped_for(auth, workspace_id)
    assert len(key) == 32
    assert await unwrapped(auth, workspace_id, wrapped) == key
    await wrapped_for(auth, other_id)
    for wrong in (wrapped[:-4], "nonsense", "", "x" * 2_000):
        assert type(await failure(unwrapped(auth, workspace_id, wrong))) is InvalidArgument
    assert type(await failure(unwrapped(auth, other_id, wrapped))) is InvalidArgument
    request = data_key_service_pb2.CreateDataKeyRequest(workspace_id=workspace_id)
    for channel in (client.channel, auth.as_service("executor").channel):
        assert isinstance(await failure(DataKeyServiceStub(channel).CreateDataKey(request)), PermissionDenied)
    unknown = await failure(wrapped_for(auth, "0198c0de-0000-7000-8000-00000000000f"))
    assert (type(unknown), unknown.reason) == (NotFound, Reason.WORKSPACE_NOT_FOUND)


# ------------------------------------------------------------------------------------------------------------- sealing


async def sealing_of(auth: Auth, *workspace_ids: str) -> list[int]:
    request = data_key_service_pb2.CheckPayloadSealingRequest(workspace_ids=workspace_ids)
    return list((await keys_of(auth).CheckPayloadSealing(request)).payload_sealing)


async def choose(client: Client, choice: pb.PayloadSealing) -> pb.Workspace:
    return (await client.workspaces.SetPayloadSealing(pb.SetPayloadSealingRequest(payload_sealing=choice))).workspace


async def test_a_workspace_chooses_whether_it_is_sealed_and_the_audit_says_who_did(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    _, other_id = await auth.workspace("other")
    unknown = "0198c0de-0000-7000-8000-00000000000f"
    assert await sealing_of(auth, workspace_id, unknown) == [pb.PAYLOAD_SEALING_UNSPECIFIED] * 2
    for choice in (pb.PAYLOAD_SEALING_ON, pb.PAYLOAD_SEALING_OFF, pb.PAYLOAD_SEALING_UNSPECIFIED):
        for _ in range(2):
            assert (await choose(client, choice)).payload_sealing == choice
        got = await client.workspaces.GetWorkspace(pb.GetWorkspaceRequest())
        assert got.workspace.payload_sealing == choice
        assert await sealing_of(auth, other_id, workspace_id) == [pb.PAYLOAD_SEALING_UNSPECIFIED, choice]
    records = [record for record in await audit_of(auth.settings, workspace_id) if record.action == "workspace.seal"]
    assert [json.loads(record.details or "") for record in records] == [
        {"sealing": said} for said in ("on", "off", "default")
    ]
    assert all(record.actor.startswith("key:") for record in records)
    for wrong in (choose(client, 9), sealing_of(auth, *[workspace_id] * 501)):  # type: ignore[arg-type]
        assert type(await failure(wrong)) is InvalidArgument


async def test_only_an_administrator_decides_about_sealing_and_only_state_asks_for_all(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    scopes = sorted(set(SCOPES) - {ADMIN})
    made = await client.api_keys.CreateApiKey(api_key_service_pb2.CreateApiKeyRequest(scopes=scopes))
    for caller in (auth.as_bearer(made.secret), auth.as_service("operator"), auth.as_service("state")):
        assert isinstance(await failure(choose(caller, pb.PAYLOAD_SEALING_OFF)), PermissionDenied)
    request = data_key_service_pb2.CheckPayloadSealingRequest(workspace_ids=[workspace_id])
    for channel in (client.channel, auth.as_service("executor").channel):
        assert isinstance(await failure(DataKeyServiceStub(channel).CheckPayloadSealing(request)), PermissionDenied)
    assert await sealing_of(auth, workspace_id) == [pb.PAYLOAD_SEALING_UNSPECIFIED]


async def test_a_closed_workspace_chooses_nothing_any_more(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await choose(client, pb.PAYLOAD_SEALING_ON)
    await close(auth)
    async with open_core(auth.settings, asyncio.Event(), clock=SystemClock()) as core:
        for choice in (None, True, False):
            with pytest.raises(FailedPrecondition) as refused:
                await core.store.set_sealing(workspace_id, choice, actor="late")
            assert refused.value.reason == Reason.WORKSPACE_CLOSED
    assert await sealing_of(auth, workspace_id) == [pb.PAYLOAD_SEALING_ON], "what runs may end as it was"
    records = [record.action for record in await audit_of(auth.settings, workspace_id)]
    assert records[-1] == "workspace.close"


# ------------------------------------------------------------------------------------------------------------- closing


async def test_a_closed_workspace_lets_nobody_in_and_keeps_what_it_has(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection())
    key, wrapped = await wrapped_for(auth, workspace_id)
    closed = await close(auth)
    assert closed.HasField("close_time") and not closed.HasField("delete_time")
    assert await close(auth) == closed
    assert type(await failure(client.workspaces.GetWorkspace(pb.GetWorkspaceRequest()))) is Unauthenticated
    with pytest.raises(FailedPrecondition) as refused:
        await make_key(auth.settings, "acme")
    assert refused.value.reason == Reason.WORKSPACE_CLOSED
    # What runs may still end, and be read until it is erased.
    assert await unwrapped(auth, workspace_id, wrapped) == key
    assert type(await failure(wrapped_for(auth, workspace_id))) is NotFound
    for name in ("nobody", "Not A Name", ""):
        error = await failure(close(auth, name))
        assert (type(error), error.reason) == (NotFound, Reason.WORKSPACE_NOT_FOUND)
    actions = [record.action for record in await audit_of(auth.settings, workspace_id)]
    assert actions.count("workspace.close") == 1


async def test_nothing_is_given_to_a_workspace_after_it_was_closed(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    made = await client.integrations.CreateIntegration(
        integration_service_pb2.CreateIntegrationRequest(name="code", provider="github", client_id="app")
    )
    assert made.integration.name == "code"

    async def attempts(number: int) -> list[HoldfastError | None]:
        """As calls that were let in before it was closed, and write after it."""
        calls = (
            client.api_keys.CreateApiKey(api_key_service_pb2.CreateApiKeyRequest(scopes=["runs:read"])),
            client.connections.CreateConnection(new_connection(name=f"c{number}")),
            client.integrations.CreateIntegration(
                integration_service_pb2.CreateIntegrationRequest(name=f"i{number}", provider="github", client_id="app")
            ),
            client.connect.StartConnect(
                connect_service_pb2.StartConnectRequest(integration="code", user_id=f"u{number}")
            ),
        )
        return [await outcome(call) for call in calls]

    racing = [asyncio.create_task(attempts(number)) for number in range(4)]
    await close(auth)
    refused = [error for outcomes in await asyncio.gather(*racing) for error in outcomes if error is not None]
    assert {error.reason for error in refused} <= {
        Reason.WORKSPACE_CLOSED,
        Reason.API_KEY_REVOKED,
        Reason.API_KEY_INVALID,
    }
    async with open_core(auth.settings, asyncio.Event(), clock=SystemClock()) as core:
        keys = await core.store.list_api_keys(workspace_id, limit=100, after=None)
        assert keys and all(key.revoke_time is not None for key in keys)
        caller = Caller(workspace_id, "test", frozenset({ADMIN}))
        with pytest.raises(FailedPrecondition):
            await core.api_keys.create(caller, display_name="late", scopes=["runs:read"])
    records = [record.action for record in await audit_of(auth.settings, workspace_id)]
    assert records[-1] == "workspace.close", "nothing was stored after it"


async def outcome(call: object) -> HoldfastError | None:
    try:
        return await failure(call)  # type: ignore[arg-type]
    except AssertionError:
        return None


# ------------------------------------------------------------------------------------------------------------- deleting


async def filled(auth: Auth, name: str) -> tuple[Client, str]:
    client, workspace_id = await auth.workspace(name)
    for user in ("", "ann", "bob"):
        await client.connections.CreateConnection(new_connection(key=f"sk-{name}-{user}", user_id=user))
    await client.connections.CreateConnection(new_connection(name="off", key="sk-off"))
    await client.integrations.CreateIntegration(
        integration_service_pb2.CreateIntegrationRequest(
            name="code", provider="github", client_id="app", client_secret="very-secret"
        )
    )
    return client, workspace_id


async def test_a_deleted_workspace_leaves_its_audit_and_nothing_else(auth: Auth) -> None:
    _, workspace_id = await filled(auth, "acme")
    other, other_id = await filled(auth, "other")
    _, wrapped = await wrapped_for(auth, workspace_id)
    other_key, other_wrapped = await wrapped_for(auth, other_id)
    open_still = await failure(delete(auth))
    assert (type(open_still), open_still.reason) == (FailedPrecondition, Reason.WORKSPACE_NOT_CLOSED)
    await close(auth)

    deleted = await delete(auth)

    assert deleted.deleted_connections == 4
    assert deleted.workspace.HasField("delete_time")
    again = await delete(auth)
    assert (again.workspace, again.deleted_connections) == (deleted.workspace, 0)
    gone = await failure(unwrapped(auth, workspace_id, wrapped))
    assert (type(gone), gone.reason) == (NotFound, Reason.CONTENT_REMOVED)
    assert type(await failure(wrapped_for(auth, workspace_id))) is NotFound
    async with open_core(auth.settings, asyncio.Event(), clock=SystemClock()) as core:
        left = await core.connection_store.list_connections(workspace_id, limit=10, after=None, user_ids=None)
        assert left == []
        kept = await core.connection_store.list_connections(other_id, limit=10, after=None, user_ids=None)
        secrets = EmbeddedSecretStore(core.db, core.keyring)
        assert len(kept) == 4
        for connection in kept:
            assert connection.secret_path is not None and await secrets.get(connection.secret_path) is not None
    records = await audit_of(auth.settings, workspace_id)
    actions = [record.action for record in records]
    assert actions[-1] == "workspace.delete"
    assert actions.count("connection.revoke") == 4 and "integration.delete" in actions
    # The neighbour has noticed nothing.
    assert await unwrapped(auth, other_id, other_wrapped) == other_key
    assert (await auth.resolve(other_id)).secret == "sk-other-"
    assert (await other.workspaces.GetWorkspace(pb.GetWorkspaceRequest())).workspace.name == "other"


async def test_only_the_operator_closes_and_deletes(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    for caller in (client, auth.as_service("executor"), auth.as_service("state")):
        for call in (
            caller.workspaces.CloseWorkspace(pb.CloseWorkspaceRequest(name="acme")),
            caller.workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="acme")),
        ):
            assert isinstance(await failure(call), PermissionDenied)


# ---------------------------------------------------------------------------------------------------------- one user


async def erase_user(auth: Auth, workspace_id: str, user_id: str, *, only_look: bool = False) -> int:
    answer = await auth.as_service("executor").connections.EraseUserConnections(
        connection_service_pb2.EraseUserConnectionsRequest(
            workspace_id=workspace_id, user_id=user_id, requested_by="key-1", validate_only=only_look
        )
    )
    return answer.connections


async def test_an_erased_user_has_no_connections_and_the_others_keep_theirs(auth: Auth) -> None:
    client, workspace_id = await filled(auth, "acme")
    _, other_id = await filled(auth, "other")
    await client.connections.CreateConnection(new_connection(name="gone", user_id="ann"))
    await client.connections.RevokeConnection(
        connection_service_pb2.RevokeConnectionRequest(name="gone", user_id="ann")
    )
    await client.connect.StartConnect(connect_service_pb2.StartConnectRequest(integration="code", user_id="ann"))
    assert await erase_user(auth, workspace_id, "ann", only_look=True) == 2
    assert (await auth.resolve(workspace_id, user_id="ann")).secret == "sk-acme-ann"

    assert await erase_user(auth, workspace_id, "ann") == 2

    listed = await client.connections.ListConnections(connection_service_pb2.ListConnectionsRequest())
    assert {(found.name, found.user_id) for found in listed.connections} == {
        ("openai", ""),
        ("openai", "bob"),
        ("off", ""),
    }
    # What is left for the user's runs is what everybody has.
    assert (await auth.resolve(workspace_id, user_id="ann")).secret == "sk-acme-"
    assert (await auth.resolve(other_id, user_id="ann")).secret == "sk-other-ann"
    assert await erase_user(auth, workspace_id, "ann") == 0
    records = await audit_of(auth.settings, workspace_id)
    erased = [record for record in records if record.action == "user.erase"]
    assert [(record.user_id, record.actor) for record in erased] == [("ann", "key-1")]
    again = await client.connections.CreateConnection(new_connection(key="sk-new", user_id="ann"))
    assert again.connection.state == connection_service_pb2.CONNECTION_STATE_ACTIVE
    assert type(await failure(erase_user(auth, workspace_id, ""))) is InvalidArgument


async def test_a_user_is_erased_while_connections_are_made(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    making = [
        asyncio.create_task(
            outcome(client.connections.CreateConnection(new_connection(key=f"sk-{n}", user_id="ann", replace=True)))
        )
        for n in range(8)
    ]
    await erase_user(auth, workspace_id, "ann")
    assert {error.reason for error in await asyncio.gather(*making) if error is not None} <= {Reason.CONFLICT}
    await erase_user(auth, workspace_id, "ann")
    listed = await client.connections.ListConnections(connection_service_pb2.ListConnectionsRequest())
    assert not listed.connections
