"""One refresh for everybody who needs it: in one process, and across replicas."""

from __future__ import annotations

import asyncio

import pytest

from services.auth.connection_store import ConnectionState
from services.auth.providers.schema import Rotation
from tests.auth.refresh.world import World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint


async def test_a_refresh_stores_what_the_provider_answered(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    renewed = await world.outcome(asyncio.create_task(one.refresh(connection_id, newer_than=1)))
    assert renewed.version == 2
    row = world.row(connection_id)
    assert (row.state, row.token_version, row.fingerprint) == (ConnectionState.ACTIVE, 2, renewed.fingerprint)
    assert row.refresh_time is not None
    assert row.expire_time is not None
    assert 0 < (row.expire_time - row.refresh_time).total_seconds() <= 360
    assert world.is_alive(connection_id)
    assert world.escrows == {}
    assert one.secrets.puts == 4


async def test_a_fresh_token_is_not_renewed(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    found = await world.outcome(asyncio.create_task(one.refresh(connection_id, min_valid_seconds=30)))
    assert found.version == 1
    assert world.endpoint.calls == 0


async def test_callers_of_one_process_share_one_call(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    calls = [asyncio.create_task(one.refresh(connection_id, newer_than=1)) for _ in range(8)]
    renewed = [await world.outcome(call) for call in calls]
    assert {stored.version for stored in renewed} == {2}
    assert world.endpoint.calls == 1


@pytest.mark.parametrize("has_escrows", [True, False])
async def test_eight_callers_in_each_of_three_replicas_share_one_call_a_round(
    clock: FakeClock, has_escrows: bool
) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, answer_seconds=0.3), has_escrows=has_escrows)
    replicas = [world.replica() for _ in range(3)]
    connections = [await world.connect(f"user{number}") for number in range(5)]
    for round_number in range(1, 6):
        calls = [
            asyncio.create_task(replica.refresh(connection_id, newer_than=round_number))
            for connection_id in connections
            for replica in replicas
            for _ in range(8)
        ]
        for call in calls:
            assert (await world.outcome(call)).version == round_number + 1
        assert world.endpoint.calls == round_number * len(connections)
    assert all(world.is_alive(connection_id) for connection_id in connections)
    assert all(grant.max_in_flight == 1 for grant in world.endpoint.grants.values())


async def test_a_caller_that_gives_up_ends_nothing(world: World) -> None:
    arrived, answer = asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        arrived.set()
        await answer.wait()

    world.endpoint.after_effect = hold
    one = world.replica()
    connection_id = await world.connect("ada")
    call = asyncio.create_task(one.refresh(connection_id, newer_than=1))
    async with asyncio.timeout(20):
        await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    answer.set()
    await world.until(lambda: world.row(connection_id).token_version == 2)
    assert world.is_alive(connection_id)
    assert world.endpoint.calls == 1


async def test_a_provider_that_does_not_rotate_costs_two_writes_and_the_document(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, rotation=Rotation.NONE))
    one = world.replica()
    connection_id = await world.connect("ada")
    await world.outcome(asyncio.create_task(one.refresh(connection_id, newer_than=1)))
    assert one.secrets.puts == 3
    assert world.is_alive(connection_id)


async def test_a_refresh_token_that_the_answer_leaves_out_is_kept(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, rotation=Rotation.NONE))
    one = world.replica()
    connection_id = await world.connect("ada")
    for version in range(1, 4):
        await world.outcome(asyncio.create_task(one.refresh(connection_id, newer_than=version)))
    token = world.document(connection_id).tokens.refresh_token
    assert token is not None
    assert token.reveal() == "rt-ada-0"
