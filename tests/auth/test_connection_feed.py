"""News of connections for executors, over gRPC, from one replica and from another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast.api.auth.v1 import connection_feed_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2 import (
    CONNECTION_STATE_ACTIVE,
    CONNECTION_STATE_DISABLED,
    CONNECTION_STATE_REVOKED,
    Connection,
    RevokeConnectionRequest,
    UpdateConnectionRequest,
)
from holdfast.errors import InvalidArgument, PermissionDenied
from services.auth.settings import AuthSettings
from tests.auth.support import Auth, Client, failure, make_key, new_connection, running


async def following(executor: Client) -> Any:
    """A stream that has begun: its first message is a sign of life."""
    stream = executor.feed.WatchConnections(pb.WatchConnectionsRequest())
    async with asyncio.timeout(10):
        first = await stream.read()
    assert first == pb.WatchConnectionsResponse()
    return stream


async def next_news(stream: Any) -> tuple[str, str, str, int]:
    """The next piece of news: workspace, user, name and state."""
    async with asyncio.timeout(20):
        while True:
            message = await stream.read()
            if message.workspace_id:
                connection = message.connection
                return message.workspace_id, connection.user_id, connection.name, connection.state


async def usable(auth: Auth, *sign_ins: pb.SignIn) -> list[bool]:
    """What the executor hears about sign-ins."""
    answer = await auth.as_service("executor").feed.CheckSignIns(pb.CheckSignInsRequest(sign_ins=sign_ins))
    return list(answer.is_usable)


async def test_news_come_from_every_replica_in_order(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as two:
        workspace_id, key = await make_key(settings, "acme")
        here, there = await following(one.as_service("executor")), await following(two.as_service("executor"))
        client = one.as_bearer(key)
        await client.connections.CreateConnection(new_connection(user_id="ann"))
        for stream in (here, there):
            assert await next_news(stream) == (workspace_id, "ann", "openai", CONNECTION_STATE_ACTIVE)
        await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai", user_id="ann"))
        for stream in (here, there):
            assert await next_news(stream) == (workspace_id, "ann", "openai", CONNECTION_STATE_REVOKED)
            stream.cancel()


async def test_what_was_before_is_no_news(embedded_auth: Auth) -> None:
    client, workspace_id = await embedded_auth.workspace("acme")
    await client.connections.CreateConnection(new_connection(name="before"))
    stream = await following(embedded_auth.as_service("executor"))
    await client.connections.CreateConnection(new_connection(name="after"))
    news = await next_news(stream)
    # The change just before may still be on its way to the poller; nothing older is.
    if news[2] == "before":
        news = await next_news(stream)
    assert news == (workspace_id, "", "after", CONNECTION_STATE_ACTIVE)
    stream.cancel()


async def test_a_sign_in_exists_while_a_connection_is_usable(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    of_ann = pb.SignIn(workspace_id=workspace_id, user_id="ann", connection="openai")
    shared = pb.SignIn(workspace_id=workspace_id, connection="openai")
    assert await usable(auth, of_ann, shared) == [False, False]
    await client.connections.CreateConnection(new_connection(user_id="ann"))
    assert await usable(auth, of_ann, shared, of_ann) == [True, False, True]
    off = UpdateConnectionRequest(name="openai", user_id="ann", connection=Connection(state=CONNECTION_STATE_DISABLED))
    off.update_mask.paths.append("state")
    await client.connections.UpdateConnection(off)
    assert await usable(auth, of_ann) == [False]
    # A shared one helps everybody.
    await client.connections.CreateConnection(new_connection())
    assert await usable(auth, of_ann, shared) == [True, True]


async def test_only_executors_follow_and_ask(embedded_auth: Auth) -> None:
    client, _ = await embedded_auth.workspace("acme")
    for caller in (client, embedded_auth.as_service("trace"), embedded_auth.as_service("state")):
        assert type(await failure(caller.feed.CheckSignIns(pb.CheckSignInsRequest()))) is PermissionDenied
        stream = caller.feed.WatchConnections(pb.WatchConnectionsRequest())
        assert type(await failure(stream.read())) is PermissionDenied


@pytest.mark.parametrize("name", ["", "Not A Name", "a\x00b", "x" * 5000])
async def test_what_is_no_name_is_not_usable(embedded_auth: Auth, name: str) -> None:
    sign_in = pb.SignIn(workspace_id="nobody's", user_id=name, connection=name, scopes=[name])
    assert await usable(embedded_auth, sign_in) == [False]


async def test_too_many_sign_ins_are_refused(embedded_auth: Auth) -> None:
    executor = embedded_auth.as_service("executor")
    request = pb.CheckSignInsRequest(sign_ins=[pb.SignIn(connection=f"c{n}") for n in range(501)])
    error = await failure(executor.feed.CheckSignIns(request))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == ["sign_ins"]
