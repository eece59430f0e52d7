"""Connections of users beside shared ones, passwords, keys through integrations, and switching off, over gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from holdfast.api.auth.v1 import integration_service_pb2
from holdfast.errors import InvalidArgument, NotFound, PermissionDenied, Reason
from services.auth.callers import ADMIN, Caller
from services.auth.connections import require_user
from tests.auth.support import Auth, Client, audit_of, failure, new_connection


async def listed(client: Client, **filters: Any) -> list[tuple[str, str]]:
    """Names and users of what is listed."""
    answer = await client.connections.ListConnections(pb.ListConnectionsRequest(**filters))
    return [(connection.name, connection.user_id) for connection in answer.connections]


def change(*paths: str, name: str = "openai", user_id: str = "", **fields: Any) -> pb.UpdateConnectionRequest:
    """A request that changes a connection."""
    return pb.UpdateConnectionRequest(
        name=name, user_id=user_id, connection=pb.Connection(**fields), update_mask=FieldMask(paths=paths)
    )


async def test_users_and_the_workspace_have_connections_of_one_name(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    users = ["", "ann@example.com", "Bob", "ünï"]
    made = {
        user: (await client.connections.CreateConnection(new_connection(key=f"sk-{n}", user_id=user))).connection
        for n, user in enumerate(users)
    }
    assert len({connection.connection_id for connection in made.values()}) == len(users)
    for user, connection in made.items():
        found = await client.connections.GetConnection(pb.GetConnectionRequest(name="openai", user_id=user))
        assert found.connection == connection
        assert found.connection.user_id == user
    await client.connections.RevokeConnection(pb.RevokeConnectionRequest(name="openai", user_id="Bob"))
    assert await listed(client, state=pb.CONNECTION_STATE_REVOKED) == [("openai", "Bob")]
    assert await listed(client, user_id="ann@example.com") == [("openai", "ann@example.com")]
    assert len(await listed(client)) == len(users)
    records = await audit_of(auth.settings, workspace_id)
    assert records[-1].user_id == "Bob"


async def test_a_page_token_is_good_for_the_same_list_only(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    for n in range(3):
        await client.connections.CreateConnection(new_connection(name=f"c{n}", user_id="ann"))
    page = await client.connections.ListConnections(pb.ListConnectionsRequest(page_size=2, user_id="ann"))
    rest = await listed(client, user_id="ann", page_token=page.next_page_token)
    assert rest == [("c2", "ann")]
    error = await failure(
        client.connections.ListConnections(pb.ListConnectionsRequest(page_token=page.next_page_token))
    )
    assert error.reason == Reason.INVALID_PAGE_TOKEN
    assert await listed(client, integration="absent") == []


async def test_a_password_is_stored_with_its_user_name(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    request = new_connection(
        name="legacy", provider="legacy", key="p@ss", username="ann", base_url="https://legacy.example"
    )
    made = (await client.connections.CreateConnection(request)).connection
    assert made.kind == integration_service_pb2.CREDENTIAL_KIND_BASIC
    assert "p@ss" not in str(made)


async def test_a_key_through_an_integration_needs_no_address(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    await client.integrations.CreateIntegration(
        integration_service_pb2.CreateIntegrationRequest(
            name="keys", provider="api-key", variables={"api_url": "https://crm.example"}
        )
    )
    create = pb.CreateConnectionRequest(integration="keys", api_key="sk-test-1234567890", user_id="ann")
    made = (await client.connections.CreateConnection(create)).connection
    assert (made.name, made.provider, made.integration) == ("keys", "api-key", "keys")
    assert made.kind == integration_service_pb2.CREDENTIAL_KIND_API_KEY
    assert await listed(client, integration="keys") == [("keys", "ann")]
    missing = pb.CreateConnectionRequest(integration="keys", name="b")
    error = await failure(client.connections.CreateConnection(missing))
    assert [violation.field for violation in error.field_violations] == ["api_key"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user_id": "u" * 257}, "user_id"),
        ({"user_id": "a\x00"}, "user_id"),
        ({"user_id": "a\u2028b"}, "user_id"),
        ({"username": "a:b", "base_url": "https://a.example"}, "username"),
        ({"username": "a\n", "base_url": "https://a.example"}, "username"),
        ({"username": "u" * 513, "base_url": "https://a.example"}, "username"),
        ({"agents": ["Helper"]}, "agents"),
        ({"agents": ["a" * 64]}, "agents"),
    ],
)
async def test_a_wrong_field_is_named_and_makes_nothing(
    embedded_auth: Auth, fields: dict[str, Any], field: str
) -> None:
    client, _ = await embedded_auth.workspace("acme")
    error = await failure(client.connections.CreateConnection(new_connection(key="sk-canary", **fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    assert "canary" not in f"{error.message} {error.field_violations}"
    assert await listed(client) == []


async def test_agents_and_state_change_and_nothing_else(auth: Auth) -> None:
    client, _ = await auth.workspace("acme")
    made = (await client.connections.CreateConnection(new_connection())).connection
    changed = (
        await client.connections.UpdateConnection(
            change("agents", "allow_raw_token", agents=["b", "a", "b"], allow_raw_token=True, provider="other")
        )
    ).connection
    assert (list(changed.agents), changed.allow_raw_token) == (["a", "b"], True)
    assert (changed.provider, changed.fingerprint) == (made.provider, made.fingerprint)
    off = await client.connections.UpdateConnection(change("state", state=pb.CONNECTION_STATE_DISABLED))
    assert off.connection.state == pb.CONNECTION_STATE_DISABLED
    on = await client.connections.UpdateConnection(change("state", state=pb.CONNECTION_STATE_ACTIVE))
    assert on.connection.state == pb.CONNECTION_STATE_ACTIVE
    await client.connections.RevokeConnection(pb.RevokeConnectionRequest(name="openai"))
    error = await failure(client.connections.UpdateConnection(change("agents")))
    assert (type(error), error.reason) == (NotFound, Reason.CONNECTION_NOT_FOUND)


@pytest.mark.parametrize(
    ("paths", "fields", "field"),
    [
        ((), {}, "update_mask"),
        (("provider",), {}, "update_mask"),
        (("secret",), {}, "update_mask"),
        (("agents",), {"agents": ["A"]}, "agents"),
        (("state",), {}, "connection.state"),
        (("state",), {"state": pb.CONNECTION_STATE_REVOKED}, "connection.state"),
    ],
)
async def test_a_wrong_change_is_named_and_changes_nothing(
    embedded_auth: Auth, paths: tuple[str, ...], fields: dict[str, Any], field: str
) -> None:
    client, _ = await embedded_auth.workspace("acme")
    made = await client.connections.CreateConnection(new_connection())
    error = await failure(client.connections.UpdateConnection(change(*paths, **fields)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == [field]
    found = await client.connections.GetConnection(pb.GetConnectionRequest(name="openai"))
    assert found.connection == made.connection


@pytest.mark.parametrize(
    ("actor", "scopes", "user", "is_allowed"),
    [
        ("key:1", {"connections:write"}, "ann", True),
        ("key:1", {"connections:write"}, "", True),
        ("user:ann", {"connections:write"}, "ann", True),
        ("user:ann", {"connections:write"}, "bob", False),
        ("user:ann", {"connections:write"}, "", False),
        ("user:ann", {"connections:write"}, "ann ", False),
        ("user:ann", {"connections:write", "connections:impersonate"}, "bob", True),
        ("user:ann", {ADMIN}, "", True),
    ],
)
def test_a_person_acts_for_themselves(actor: str, scopes: set[str], user: str, is_allowed: bool) -> None:
    caller = Caller("w", actor, frozenset(scopes))
    if is_allowed:
        require_user(caller, user)
        return
    with pytest.raises(PermissionDenied) as caught:
        require_user(caller, user)
    assert caught.value.reason == Reason.SCOPE_MISSING
