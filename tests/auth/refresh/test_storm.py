"""Ten thousand connections that are due in the same second: one call each, never too many at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from services.auth.connection_store import ConnectionState
from services.auth.refresh.limits import BACKGROUND_CALLS, CALLS_PER_SECOND
from tests.auth.refresh.world import Replica, World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint

CONNECTIONS = 10_000
REPLICAS = 3


async def run_until(world: World, replicas: list[Replica], *, versions: int, limit: float) -> float:
    """Runs the schedulers until every connection has a version; returns how long that took."""
    began = world.clock.monotonic()
    tasks = [asyncio.create_task(replica.parts.scheduler.run()) for replica in replicas]
    try:
        while any(row.token_version < versions for row in world.rows.rows.values()):
            assert world.clock.monotonic() - began < limit
            await world.settle()
            await world.clock.advance(0.25)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return world.clock.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_thousand_due_in_the_same_second_are_one_call_each_and_no_herd(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, answer_seconds=0.1), has_escrows=False)
    replicas = [world.replica() for _ in range(REPLICAS)]
    due = clock.now()
    for number in range(CONNECTIONS):
        await world.connect(f"user{number}", refresh_time=due)
    seconds = await run_until(world, replicas, versions=2, limit=290)
    endpoint = world.endpoint
    assert endpoint.calls == CONNECTIONS
    assert {grant.calls for grant in endpoint.grants.values()} == {1}
    assert all(grant.is_alive for grant in endpoint.grants.values())
    assert endpoint.max_in_flight <= REPLICAS * BACKGROUND_CALLS
    assert max(endpoint.calls_by_second.values()) <= REPLICAS * (CALLS_PER_SECOND + 16)
    # Nobody had to wait: a fifth of an hour's token is left when its refresh is due.
    assert seconds < 300
    print(f"storm: {CONNECTIONS} connections, {REPLICAS} replicas, {seconds:.0f} s,", _table(endpoint))
    # The next round does not come in one second again.
    times = sorted(row.refresh_time for row in world.rows.rows.values() if row.refresh_time is not None)
    assert times[-1] - times[0] > timedelta(seconds=60)


def _table(endpoint: MemoryTokenEndpoint) -> str:
    by_second = endpoint.calls_by_second
    mean = endpoint.calls / len(by_second)
    return f"calls/s max {max(by_second.values())}, mean {mean:.0f}; at once {endpoint.max_in_flight}"


async def test_callers_do_not_wait_behind_the_background(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, answer_seconds=1.0))
    one = world.replica()
    for number in range(500):
        await world.connect(f"user{number}", refresh_time=clock.now())
    urgent = await world.connect("urgent", refresh_time=clock.now() + timedelta(hours=1))
    scheduler = asyncio.create_task(one.parts.scheduler.run())
    await world.settle()
    await clock.advance(3)
    began = clock.monotonic()
    await world.outcome(asyncio.create_task(one.refresh(urgent, newer_than=1)), step=0.1)
    assert clock.monotonic() - began < 3
    scheduler.cancel()
    await asyncio.gather(scheduler, return_exceptions=True)


async def test_the_backlog_of_an_outage_is_spread(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock))
    one = world.replica()
    for number in range(100):
        await world.connect(
            f"user{number}", refresh_time=clock.now() - timedelta(minutes=8), integration_id=f"i{number}"
        )
    await run_until(world, [one], versions=2, limit=120)
    seconds = sorted(world.endpoint.calls_by_second)
    assert seconds[-1] - seconds[0] >= 20
    assert max(world.endpoint.calls_by_second.values()) < 30


async def test_the_background_brings_a_row_up_to_date_that_its_winner_left(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    await world.outcome(asyncio.create_task(one.refresh(connection_id, newer_than=1)))
    row = world.row(connection_id)
    world.rows.rows[connection_id] = replace(
        row, token_version=1, state=ConnectionState.NEEDS_REAUTH, refresh_time=world.clock.now()
    )
    await run_until(world, [world.replica()], versions=2, limit=60)
    assert world.row(connection_id).state is ConnectionState.ACTIVE
    assert world.endpoint.calls == 1


async def test_a_verdict_that_holds_is_not_looked_at_for_ever(world: World) -> None:
    connection_id = await world.connect("ada")
    world.rows.rows[connection_id] = replace(
        world.row(connection_id), state=ConnectionState.NEEDS_REAUTH, refresh_time=world.clock.now()
    )
    task = asyncio.create_task(world.replica().parts.scheduler.run())
    await world.until(lambda: world.row(connection_id).refresh_time is None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.endpoint.calls == 0
    assert world.row(connection_id).state is ConnectionState.NEEDS_REAUTH
