"""What the store of connections promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import AlreadyExists, Unavailable
from holdfast.ids import new_uuid7
from services.auth.app import MIGRATIONS
from services.auth.connection_store import (
    SHARED,
    Connection,
    ConnectionState,
    CredentialKind,
    NewConnection,
    TokenStatus,
)
from services.auth.connection_store_sql import SqlConnectionStore
from services.auth.secret_paths import new_connection_path
from services.auth.store import Request
from services.auth.store_sql import SqlAuthStore
from services.shared.database import Database
from services.shared.migrations import upgrade

NOW = datetime.now(UTC).replace(microsecond=0)
SOON = NOW + timedelta(hours=1)


@dataclass
class Setting:
    """A store with two workspaces."""

    store: SqlConnectionStore
    db: Database
    acme: str
    other: str

    async def save(self, name: str, user_id: str = SHARED, **fields: Any) -> Connection:
        """Stores an OAuth connection with an announced secret."""
        workspace_id = fields.pop("workspace_id", self.acme)
        replacing = fields.pop("replace", False)
        path = new_connection_path(workspace_id, user_id)
        await self.store.announce_secret(path)
        new = NewConnection(
            workspace_id=workspace_id,
            connection_id=new_uuid7(),
            name=name,
            user_id=user_id,
            **{
                "provider": "github",
                "kind": CredentialKind.OAUTH2,
                "secret_path": path,
                "token_version": 1,
                "fingerprint": "000000000001",
                **fields,
            },
        )
        return (await self.store.save_connection(new, replace=replacing, actor="test", request=None)).connection

    async def events(self) -> list[tuple[str, ConnectionState]]:
        """What has happened to which connection, in order."""
        return [(event.connection_id, event.state) for event in await self.store.events_after(0, limit=1000)]


def tokens(of: Connection, version: int, **changes: Any) -> TokenStatus:
    """The row's view of the next token document."""
    assert of.secret_path is not None
    status = TokenStatus(
        secret_path=of.secret_path,
        token_version=version,
        fingerprint=f"{version:012}",
        scopes=("repo",),
        expire_time=SOON,
        grant_expire_time=None,
        refresh_time=SOON,
    )
    return replace(status, **changes)


async def failed(setting: Setting, of: Connection, version: int, state: ConnectionState) -> Connection | None:
    """Records that a token could not be renewed."""
    assert of.secret_path is not None
    return await setting.store.record_refresh_failure(
        of.workspace_id,
        of.connection_id,
        secret_path=of.secret_path,
        token_version=version,
        state=state,
        state_reason="provider_unavailable",
        refresh_time=SOON,
    )


@pytest.fixture(params=["sqlite", "postgresql"])
async def setting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setting]:
    """A store that holds no connections."""
    url = (
        f"sqlite:///{tmp_path / 'auth.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_database")
    )
    async with Database(url, schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        accounts = SqlAuthStore(db)
        ids = [
            (await accounts.ensure_workspace(name, workspace_id=new_uuid7(), actor="test")).workspace_id
            for name in ("acme", "other")
        ]
        yield Setting(SqlConnectionStore(db), db, *ids)


# -------------------------------------------------------------------------------------------------- names and isolation


async def test_a_name_is_free_for_every_user_and_for_the_workspace(setting: Setting) -> None:
    made = [await setting.save("github", user) for user in (SHARED, "ann@example.com", "Bob")]
    assert len({connection.connection_id for connection in made}) == 3
    for connection in made:
        found = await setting.store.find_connection(setting.acme, connection.user_id, "github")
        assert found == connection
        assert await setting.store.get_connection(setting.acme, connection.connection_id) == connection
        with pytest.raises(AlreadyExists):
            await setting.save("github", connection.user_id)


async def test_nothing_is_found_in_another_workspace_or_for_another_user(setting: Setting) -> None:
    mine = await setting.save("github", "ann")
    assert await setting.store.find_connection(setting.other, "ann", "github") is None
    assert await setting.store.find_connection(setting.acme, "bob", "github") is None
    assert await setting.store.find_connection(setting.acme, SHARED, "github") is None
    assert await setting.store.get_connection(setting.other, mine.connection_id) is None
    assert await setting.store.connections_for(setting.other, "ann", "github") == []
    assert await setting.store.connections_for(setting.acme, "bob", "github") == []
    assert await setting.store.list_connections(setting.other, limit=10, after=None) == []
    assert await setting.store.record_tokens(setting.other, mine.connection_id, tokens(mine, 2)) is None
    assert await failed(setting, replace(mine, workspace_id=setting.other), 1, ConnectionState.NEEDS_REAUTH) is None
    revoked = await setting.store.revoke_connection(setting.acme, "bob", "github", actor="test", request=None)
    assert revoked is None
    await setting.store.postpone_refresh(setting.other, mine.connection_id, NOW)
    await setting.store.record_connection_uses([(setting.other, mine.connection_id, NOW)])
    assert await setting.store.get_connection(setting.acme, mine.connection_id) == mine


async def test_a_run_means_the_users_own_connection_before_a_shared_one(setting: Setting) -> None:
    shared = await setting.save("github")
    own = await setting.save("github", "ann")
    gone = await setting.save("github", "bob")
    await setting.store.revoke_connection(setting.acme, "bob", "github", actor="test", request=None)
    broken = await failed(setting, own, 1, ConnectionState.NEEDS_REAUTH)
    assert await setting.store.connections_for(setting.acme, "ann", "github") == [broken, shared]
    assert await setting.store.connections_for(setting.acme, gone.user_id, "github") == [shared]
    assert await setting.store.connections_for(setting.acme, SHARED, "github") == [shared]


async def test_connections_are_listed_by_name_and_user_and_filtered(setting: Setting) -> None:
    made = [
        await setting.save(name, user)
        for name, user in [("b", "zoe"), ("b", SHARED), ("a", "Zoe"), ("b", "ann"), ("a", "ann"), ("c", "ä")]
    ]
    ordered = sorted(made, key=lambda connection: (connection.name, connection.user_id.encode()))
    listed: list[Connection] = []
    after = None
    while page := await setting.store.list_connections(setting.acme, limit=2, after=after):
        listed += page
        after = (page[-1].name, page[-1].user_id)
    assert listed == ordered
    of_ann = await setting.store.list_connections(setting.acme, limit=10, after=None, user_ids=("ann",))
    assert [connection.name for connection in of_ann] == ["a", "b"]
    await setting.store.revoke_connection(setting.acme, "ann", "a", actor="test", request=None)
    revoked = await setting.store.list_connections(
        setting.acme, limit=10, after=None, state=ConnectionState.REVOKED, user_ids=("ann",)
    )
    assert [connection.name for connection in revoked] == ["a"]
    none = await setting.store.list_connections(setting.acme, limit=10, after=None, integration_id=new_uuid7())
    assert none == []


# -------------------------------------------------------------------------------------------------------------- renewal


async def test_tokens_make_a_failing_connection_active_again(setting: Setting) -> None:
    connection = await setting.save("github", "ann")
    await failed(setting, connection, 1, ConnectionState.DEGRADED)
    failing = await failed(setting, connection, 1, ConnectionState.UNAVAILABLE)
    assert failing is not None
    assert (failing.state, failing.failure_count, failing.refresh_time) == (ConnectionState.UNAVAILABLE, 2, SOON)
    assert failing.state_reason == "provider_unavailable"
    renewed = await setting.store.record_tokens(setting.acme, connection.connection_id, tokens(connection, 2))
    assert renewed is not None
    assert (renewed.state, renewed.state_reason, renewed.failure_count) == (ConnectionState.ACTIVE, "", 0)
    assert (renewed.token_version, renewed.fingerprint, renewed.scopes) == (2, "000000000002", ("repo",))
    assert renewed.version > failing.version > connection.version
    assert await setting.store.get_connection(setting.acme, connection.connection_id) == renewed
    assert [state for _, state in await setting.events()] == [
        ConnectionState.ACTIVE,
        ConnectionState.DEGRADED,
        ConnectionState.UNAVAILABLE,
        ConnectionState.ACTIVE,
    ]


@pytest.mark.parametrize("version", [1, 2])
async def test_an_older_or_known_token_changes_nothing(setting: Setting, version: int) -> None:
    connection = await setting.save("github", "ann", token_version=2)
    same = await setting.store.record_tokens(setting.acme, connection.connection_id, tokens(connection, version))
    assert same == connection
    assert await setting.store.get_connection(setting.acme, connection.connection_id) == connection


async def test_a_loser_never_downgrades_a_winner(setting: Setting) -> None:
    connection = await setting.save("github", "ann")
    won = await setting.store.record_tokens(setting.acme, connection.connection_id, tokens(connection, 2))
    assert await failed(setting, connection, 1, ConnectionState.NEEDS_REAUTH) == won
    lost = await failed(setting, connection, 2, ConnectionState.NEEDS_REAUTH)
    assert lost is not None
    assert lost.state is ConnectionState.NEEDS_REAUTH


async def test_news_of_a_grant_that_was_replaced_changes_nothing(setting: Setting) -> None:
    old = await setting.save("github", "ann", token_version=7)
    new = await setting.save("github", "ann", replace=True)
    assert new.connection_id == old.connection_id
    assert await setting.store.record_tokens(setting.acme, old.connection_id, tokens(old, 8)) == new
    assert await failed(setting, old, 7, ConnectionState.NEEDS_REAUTH) == new


async def test_nothing_revives_a_revoked_connection(setting: Setting) -> None:
    connection = await setting.save("github", "ann", refresh_time=NOW - timedelta(hours=1))
    saved = await setting.store.revoke_connection(setting.acme, "ann", "github", actor="test", request=None)
    assert saved is not None
    assert saved.abandoned is not None
    assert saved.abandoned.path == connection.secret_path
    await setting.store.postpone_refresh(setting.acme, connection.connection_id, NOW - timedelta(hours=1))
    late = await setting.store.record_tokens(setting.acme, connection.connection_id, tokens(connection, 2))
    assert late == saved.connection == await failed(setting, connection, 1, ConnectionState.DEGRADED)
    assert late.state is ConnectionState.REVOKED
    assert await setting.store.connections_due(limit=10) == []


async def test_of_concurrent_tokens_the_latest_stays(setting: Setting) -> None:
    connection = await setting.save("github", "ann")
    await asyncio.gather(
        *(
            setting.store.record_tokens(setting.acme, connection.connection_id, tokens(connection, version))
            for version in (5, 2, 9, 3, 7, 4, 8, 6)
        )
    )
    found = await setting.store.get_connection(setting.acme, connection.connection_id)
    assert found is not None
    assert (found.token_version, found.fingerprint) == (9, "000000000009")


async def test_what_is_due_comes_longest_due_first_from_all_workspaces(setting: Setting) -> None:
    hour = timedelta(hours=1)
    late = await setting.save("late", "ann", refresh_time=NOW - hour)
    later = await setting.save("later", workspace_id=setting.other, refresh_time=NOW - 2 * hour)
    await setting.save("never")
    await setting.save("tomorrow", refresh_time=NOW + 24 * hour)
    assert await setting.store.connections_due(limit=10) == [later, late]
    assert await setting.store.connections_due(limit=1) == [later]
    await setting.store.postpone_refresh(later.workspace_id, later.connection_id, NOW + 24 * hour)
    assert await setting.store.connections_due(limit=10) == [late]


async def test_uses_are_noted_and_never_set_back(setting: Setting) -> None:
    connection = await setting.save("github", "ann")
    key = (setting.acme, connection.connection_id)
    await setting.store.record_connection_uses([(*key, NOW), (*key, NOW - timedelta(hours=1))])
    await setting.store.record_connection_uses([(*key, NOW - timedelta(hours=2))])
    found = await setting.store.get_connection(*key)
    assert found is not None
    assert found.last_use_time == NOW
    assert found.version == connection.version


# --------------------------------------------------------------------------------------------------------------- events


async def test_followers_read_on_from_where_they_were(setting: Setting) -> None:
    assert await setting.store.last_event_id() == 0
    one = await setting.save("one")
    position = await setting.store.last_event_id()
    two = await setting.save("two", workspace_id=setting.other)
    await setting.store.record_tokens(setting.acme, one.connection_id, tokens(one, 2))
    events = await setting.store.events_after(position, limit=10)
    assert [(event.workspace_id, event.connection_id) for event in events] == [(setting.other, two.connection_id)]
    assert events[0].event_id == await setting.store.last_event_id()


async def test_forgotten_events_do_not_hide_later_ones(setting: Setting) -> None:
    for name in ("one", "two", "three"):
        await setting.save(name)
    last = await setting.store.last_event_id()
    assert await setting.store.forget_events(older_than_seconds=3600) == 0
    assert await setting.store.forget_events(older_than_seconds=-3600) == 2
    assert await setting.store.last_event_id() == last
    four = await setting.save("four")
    assert [event.connection_id for event in await setting.store.events_after(last, limit=10)] == [four.connection_id]


# -------------------------------------------------------------------------------------------------------------- secrets


async def test_a_replaced_grant_becomes_a_stray_and_the_id_stays(setting: Setting) -> None:
    old = await setting.save("github", "ann")
    new = await setting.save("github", "ann", replace=True, scopes=("repo", "user"), agents=("helper",))
    assert (new.connection_id, new.create_time) == (old.connection_id, old.create_time)
    assert (new.scopes, new.agents, new.version) == (("repo", "user"), ("helper",), old.version + 1)
    strays = await setting.store.condemn_strays(older_than_seconds=3600, limit=10)
    assert [stray.path for stray in strays] == [old.secret_path]
    # For a minute it is nobody else's.
    assert await setting.store.condemn_strays(older_than_seconds=3600, limit=10) == []
    assert not await setting.store.condemn_stray(new.secret_path or "")


async def test_a_secret_that_nobody_took_in_time_is_not_taken_later(setting: Setting) -> None:
    path = new_connection_path(setting.acme, "ann")
    await setting.store.announce_secret(path)
    assert [stray.path for stray in await setting.store.condemn_strays(older_than_seconds=-1, limit=10)] == [path]
    new = NewConnection(
        workspace_id=setting.acme,
        connection_id=new_uuid7(),
        name="github",
        user_id="ann",
        provider="github",
        secret_path=path,
    )
    with pytest.raises(Unavailable):
        await setting.store.save_connection(new, replace=False, actor="test", request=None)
    assert await setting.store.find_connection(setting.acme, "ann", "github") is None
    assert await setting.events() == []


async def test_a_repeated_request_gets_the_stored_answer_whole(setting: Setting) -> None:
    request = Request("r1", "CreateConnection", "f")
    new = NewConnection(
        workspace_id=setting.acme,
        connection_id=new_uuid7(),
        name="github",
        user_id="ann",
        provider="github",
        kind=CredentialKind.OAUTH2,
        scopes=("a", "b"),
        missing_scopes=("c",),
        agents=("x",),
        allow_raw_token=True,
        account_id="1",
        account_label="octocat",
        expire_time=SOON,
        grant_expire_time=SOON,
        refresh_time=NOW,
    )
    first = await setting.store.save_connection(new, replace=False, actor="test", request=request)
    again = await setting.store.save_connection(new, replace=False, actor="test", request=request)
    assert again.is_replay
    assert again.connection == first.connection
    assert await setting.store.find_answered_connection(setting.acme, request) == first.connection
    assert await setting.store.find_answered_connection(setting.other, request) is None
