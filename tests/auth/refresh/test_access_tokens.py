"""The token for one call: from memory, from the store, renewed, and while the store is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from holdfast.errors import FailedPrecondition, NotFound, Reason, Unavailable
from services.auth.connection_store import ConnectionState, CredentialKind
from services.auth.refresh.access_tokens import CACHE_SECONDS, REJECTION_COOLDOWN_SECONDS, STALE_IF_ERROR_SECONDS
from tests.auth.refresh.world import Replica, World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint


async def get(replica: Replica, connection_id: str, **needs: Any) -> Any:
    """What a call gets, while time passes: a `CurrentToken`, or an error."""
    row = replica.world.row(connection_id)
    return await replica.world.outcome(asyncio.create_task(replica.parts.access_tokens.get(row, **needs)))


async def test_a_remembered_token_costs_no_read(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    first = await get(one, connection_id)
    one.faults.is_away = True
    assert await get(one, connection_id) is first
    one.faults.is_away = False
    await world.clock.advance(CACHE_SECONDS)
    assert (await get(one, connection_id)).version == 1
    assert world.endpoint.calls == 0


async def test_a_token_is_renewed_when_it_is_needed_longer_than_it_lives(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    await world.clock.advance(3580)
    token = await get(one, connection_id)
    assert token.version == 2
    assert token.seconds_left(world.clock.now()) == pytest.approx(3600, abs=5)
    longer = await get(one, connection_id, min_valid_for=timedelta(minutes=10))
    assert longer.version == 2
    assert world.endpoint.calls == 1


async def test_a_token_of_a_row_with_a_later_version_is_read_again(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    await get(one, connection_id)
    await world.outcome(asyncio.create_task(two.refresh(connection_id, newer_than=1)))
    assert (await get(one, connection_id)).version == 2


async def test_a_rejected_token_is_renewed_unless_that_has_happened(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    old = await get(one, connection_id)
    tokens = await asyncio.gather(
        *(get(replica, connection_id, rejected_fingerprint=old.fingerprint) for replica in (one, two) for _ in range(4))
    )
    assert {token.version for token in tokens} == {2}
    assert world.endpoint.calls == 1


async def test_a_token_that_is_rejected_again_at_once_is_not_renewed_again(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    first = await get(one, connection_id)
    second = await get(one, connection_id, rejected_fingerprint=first.fingerprint)
    same = await get(one, connection_id, rejected_fingerprint=second.fingerprint)
    assert same.fingerprint == second.fingerprint
    assert world.endpoint.calls == 1
    await world.clock.advance(REJECTION_COOLDOWN_SECONDS)
    third = await get(one, connection_id, rejected_fingerprint=second.fingerprint)
    assert third.version == 3


async def test_tokens_are_served_for_ten_minutes_while_the_store_is_away(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    token = await get(one, connection_id)
    one.faults.is_away = True
    await world.clock.advance(STALE_IF_ERROR_SECONDS - 1)
    assert await get(one, connection_id) is token
    await world.clock.advance(1)
    assert isinstance(await get(one, connection_id), Unavailable)
    one.faults.is_away = False
    assert (await get(one, connection_id)).version == 1


async def test_a_token_that_ends_is_not_served_while_the_store_is_away(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    await world.clock.advance(3300)
    await get(one, connection_id)
    one.faults.is_away = True
    await world.clock.advance(271)
    assert isinstance(await get(one, connection_id), Unavailable)
    assert world.endpoint.calls == 0


async def test_what_was_not_read_before_is_not_served_while_the_store_is_away(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    one.faults.is_away = True
    error = await get(one, connection_id)
    assert isinstance(error, Unavailable)


async def test_a_token_that_still_works_is_served_while_the_provider_is_away(world: World) -> None:
    from services.auth.oauth.refusals import RefusalKind, TokenRefused

    one = world.replica()
    connection_id = await world.connect("ada")
    await world.clock.advance(3585)
    world.endpoint.refusals.extend(TokenRefused(RefusalKind.TRANSIENT, "503", status=503) for _ in range(5))
    assert (await get(one, connection_id)).version == 1
    assert world.row(connection_id).state is ConnectionState.DEGRADED
    calls = world.endpoint.calls
    # The connection rests: callers do not ask a provider that has just refused.
    assert (await get(one, connection_id)).version == 1
    assert world.endpoint.calls == calls
    await world.clock.advance(16)
    error = await get(one, connection_id)
    assert isinstance(error, Unavailable)
    assert error.reason == Reason.CREDENTIAL_UNAVAILABLE
    assert error.retry_delay_seconds is not None


async def test_a_connection_that_needs_its_user_says_so(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.grants["ada"].is_alive = False
    await world.clock.advance(3599)
    for _ in range(2):
        error = await get(one, connection_id)
        assert isinstance(error, FailedPrecondition)
        assert error.reason == Reason.CONNECTION_NEEDS_REAUTH
        assert error.metadata["state_reason"] == "grant_revoked"
    assert world.endpoint.calls == 1


async def test_a_verdict_is_undone_by_a_winner_that_could_not_say_so(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    await world.outcome(asyncio.create_task(one.refresh(connection_id, newer_than=1)))
    row = world.row(connection_id)
    world.rows.rows[connection_id] = replace(
        row, token_version=1, state=ConnectionState.NEEDS_REAUTH, state_reason="grant_revoked"
    )
    assert (await get(world.replica(), connection_id)).version == 2
    assert world.row(connection_id).state is ConnectionState.ACTIVE


@pytest.mark.parametrize("state", [ConnectionState.REVOKED, ConnectionState.DISABLED])
async def test_an_ended_connection_gives_nothing(world: World, state: ConnectionState) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    await get(one, connection_id)
    world.rows.rows[connection_id] = replace(world.row(connection_id), state=state)
    assert isinstance(await get(one, connection_id), NotFound)


async def test_a_grant_without_a_refresh_token_is_used_to_its_end(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    row = world.row(connection_id)
    assert row.secret_path is not None
    document = world.document(connection_id)
    bare = replace(document, tokens=replace(document.tokens, refresh_token=None))
    await world.secrets.put(row.secret_path, bare.to_secret(row), expected_version=1)
    error = await world.outcome(asyncio.create_task(one.parts.access_tokens.refresh_now(row)))
    assert error.reason == Reason.CONNECTION_NOT_REFRESHABLE
    await world.clock.advance(3590)
    token = await get(one, connection_id)
    assert token.version == 2
    # That it is rejected is no proof that it has ended: by the same token its user learns that renewing does not help.
    assert (await get(one, connection_id, rejected_fingerprint=token.fingerprint)).fingerprint == token.fingerprint
    assert world.row(connection_id).state is ConnectionState.ACTIVE
    await world.clock.advance(10)
    assert isinstance(await get(one, connection_id), FailedPrecondition)
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.NEEDS_REAUTH, "no_refresh_token")


async def test_an_app_gets_a_new_token_of_its_own_by_the_same_path(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock))
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("app", kind=CredentialKind.CLIENT_CREDENTIALS)
    await clock.advance(3590)
    tokens = await asyncio.gather(*(get(replica, connection_id) for replica in (one, two) for _ in range(3)))
    assert {token.version for token in tokens} == {2}
    assert world.endpoint.calls == 1
