"""What goes wrong between a provider and a store, and what must be left afterwards: a grant that works."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from holdfast.errors import FailedPrecondition, Reason, Unavailable
from services.auth.connection_store import ConnectionState
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import Rotation
from services.auth.refresh.lease import LEASE_SECONDS, LeaseRecord, Phase, lease_path
from tests.auth.refresh.world import Replica, World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint


def start(replica: Replica, connection_id: str, **goal: Any) -> asyncio.Task[Any]:
    """A caller that wants a newer token."""
    return asyncio.create_task(replica.refresh(connection_id, **{"newer_than": 1, **goal}))


def lease_of(world: World, connection_id: str) -> LeaseRecord:
    """The lease as it lies there."""
    return LeaseRecord.from_secret(world.secrets.secrets[lease_path(connection_id)].secret)


class Held:
    """A provider that holds its answers."""

    def __init__(self, world: World, *, before: bool = False) -> None:
        self.arrived = asyncio.Event()
        self.answer = asyncio.Event()
        if before:
            world.endpoint.before_effect = self._hold
        else:
            world.endpoint.after_effect = self._hold

    async def _hold(self, name: str) -> None:
        self.arrived.set()
        await self.answer.wait()


# ------------------------------------------------------------------------------------------------- ambiguous writes


@pytest.mark.parametrize("path", ["lease/", "ws/"])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_write_that_was_applied_and_never_answered_is_found_again(world: World, path: str, nth: int) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    one.faults.after = {path: nth}
    assert (await world.outcome(start(one, connection_id))).version == 2
    assert world.endpoint.calls == 1
    assert world.is_alive(connection_id)
    await world.until(lambda: lease_of(world, connection_id).phase is Phase.FREE)


async def test_a_document_whose_write_fails_is_written_when_that_works_again(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    one.faults.before = {"ws/": 5}
    assert (await world.outcome(start(one, connection_id))).version == 2
    await world.until(lambda: world.row(connection_id).token_version == 2)
    assert world.is_alive(connection_id)
    assert world.escrows == {}


async def test_nothing_is_sent_when_the_lease_cannot_be_written(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    one.faults.before = {"lease/": 1}
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    one.faults.before = {"lease/": 0}
    assert world.endpoint.calls == 0
    assert one.metric("holdfast_refresh_total", outcome="store_unavailable") == 1
    # It knows that it sent nothing, and does not wait for its own lease to end.
    began = world.clock.monotonic()
    assert (await world.outcome(start(one, connection_id))).version == 2
    assert world.clock.monotonic() - began < 5


async def test_an_intent_that_cannot_be_written_is_no_call(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    await one.refresh(connection_id, newer_than=1)
    put = one.secrets.put

    async def fails_at_the_intent(path: str, secret: Any, *, expected_version: int) -> int:
        if path.startswith("lease/") and LeaseRecord.from_secret(secret).phase is Phase.SENT:
            one.faults.is_away = True
        return await put(path, secret, expected_version=expected_version)

    one.secrets.put = fails_at_the_intent  # type: ignore[method-assign]
    assert isinstance(await world.outcome(start(one, connection_id, newer_than=2)), Unavailable)
    assert world.endpoint.calls == 1
    assert lease_of(world, connection_id).phase is Phase.ACQUIRED
    # Another replica cannot know that, and watches the lease for its whole time.
    began = world.clock.monotonic()
    assert (await world.outcome(start(two, connection_id, newer_than=2))).version == 3
    assert LEASE_SECONDS <= world.clock.monotonic() - began <= LEASE_SECONDS + 5
    assert world.is_alive(connection_id)


# ------------------------------------------------------------------------------------------------- the store is away


@pytest.mark.parametrize("away_seconds", [10.0, 2 * LEASE_SECONDS, 20 * LEASE_SECONDS])
@pytest.mark.parametrize("has_escrows", [True, False])
async def test_a_store_that_is_sealed_while_the_provider_answers_loses_nothing(
    clock: FakeClock, has_escrows: bool, away_seconds: float
) -> None:
    world = World(clock, MemoryTokenEndpoint(clock), has_escrows=has_escrows)
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    held = Held(world)
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    waiting = start(two, connection_id)
    one.faults.is_away = two.faults.is_away = True
    held.answer.set()
    await world.settle()
    await clock.advance(away_seconds)
    await world.settle()
    if has_escrows:
        # It is safe in the escrow, so that callers get it.
        assert (await world.outcome(call)).version == 2
    else:
        assert not call.done()
        assert one.metric("holdfast_refresh_unsaved") == 1
    one.faults.is_away = two.faults.is_away = False
    assert isinstance(await world.outcome(waiting), Unavailable)
    await world.until(lambda: call.done())
    # Whoever is left finishes it: the holder, or the recovery from the escrow.
    for replica in (one, two):
        await replica.parts.recovery.sweep()
    again = start(two, connection_id)
    assert (await world.outcome(again)).version == 2
    assert world.endpoint.calls == 1
    assert world.is_alive(connection_id)
    assert world.escrows == {}


async def test_both_stores_away_keep_the_tokens_in_memory_until_one_is_back(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    held = Held(world)
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    one.faults.is_away = one.escrow_faults.is_away = True
    held.answer.set()
    await world.settle()
    await world.clock.advance(300)
    assert not call.done()
    assert one.metric("holdfast_refresh_unsaved") == 1
    one.faults.is_away = False
    assert (await world.outcome(call)).version == 2
    assert one.metric("holdfast_refresh_unsaved") == 0
    assert world.is_alive(connection_id)


async def test_a_replica_whose_store_was_away_does_not_take_a_lease_over_at_once(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    one.power.stop()
    held = Held(world, before=True)
    one.power.go_on()
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    thief = start(two, connection_id)
    await world.clock.advance(LEASE_SECONDS - 5)
    two.faults.is_away = True
    assert isinstance(await world.outcome(thief), Unavailable)
    two.faults.is_away = False
    await world.clock.advance(10)
    thief = start(two, connection_id)
    await world.settle()
    await world.clock.advance(10)
    assert two.metric("holdfast_refresh_lease_steals_total") == 0
    held.answer.set()
    assert (await world.outcome(call)).version == 2
    assert (await world.outcome(thief)).version == 2
    assert world.endpoint.calls == 1


# ---------------------------------------------------------------------------------------------- losers and winners


async def test_a_holder_that_was_stopped_past_its_lease_does_not_send(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    put = one.secrets.put
    stopped = asyncio.Event()

    async def stops_after_the_lease(path: str, secret: Any, *, expected_version: int) -> int:
        version = await put(path, secret, expected_version=expected_version)
        if path.startswith("lease/") and not stopped.is_set():
            stopped.set()
            one.power.stop()
            await one.power.needed()
        return version

    one.secrets.put = stops_after_the_lease  # type: ignore[method-assign]
    sleeper = start(one, connection_id)
    await world.until(stopped.is_set)
    assert (await world.outcome(start(two, connection_id))).version == 2
    one.power.go_on()
    # It meets the winner's document.
    assert (await world.outcome(sleeper)).version == 2
    assert world.endpoint.calls == 1
    assert world.is_alive(connection_id)


async def test_the_late_answer_of_a_stopped_holder_is_adopted(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    held = Held(world)
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    one.power.stop()
    held.answer.set()
    # The provider is strict and the old access token works: nobody sends the old refresh token meanwhile.
    thief = await world.outcome(start(two, connection_id))
    assert isinstance(thief, Unavailable)
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.DEGRADED, "refresh_outcome_unknown")
    assert row.refresh_time == row.expire_time
    assert world.endpoint.calls == 1
    one.power.go_on()
    assert (await world.outcome(call)).version == 2
    row = world.row(connection_id)
    assert (row.state, row.token_version) == (ConnectionState.ACTIVE, 2)
    assert world.is_alive(connection_id)


@pytest.mark.parametrize("is_winner_first", [True, False])
async def test_a_losers_invalid_grant_never_downgrades_a_winner(clock: FakeClock, is_winner_first: bool) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, rotation=Rotation.OPTIONAL))
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    held = Held(world, before=True)
    loser = start(one, connection_id)
    await world.until(held.arrived.is_set)
    world.endpoint.before_effect = None
    # It falls silent, is taken for dead, and the winner refreshes.
    one.power.stop()
    winner = start(two, connection_id)
    if is_winner_first:
        assert (await world.outcome(winner)).version == 2
    world.endpoint.refusals.append(_invalid_grant())
    held.answer.set()
    await world.settle()
    one.power.go_on()
    await world.outcome(loser)
    assert (await world.outcome(winner)).version == 2
    row = world.row(connection_id)
    assert (row.state, row.token_version) == (ConnectionState.ACTIVE, 2)
    assert world.is_alive(connection_id)


async def test_an_invalid_grant_with_a_stale_view_adopts_the_escrow(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada", expire_time=None)
    one.faults.before = {"ws/": 1_000}
    # The first one has its tokens in escrow and cannot write the document; then it dies.
    assert (await world.outcome(start(one, connection_id))).version == 2
    one.power.kill()
    assert len(world.escrows) == 1
    await world.clock.advance(10)
    renewed = await world.outcome(start(two, connection_id))
    assert renewed.version == 2
    assert world.endpoint.calls == 1
    assert world.escrows == {}
    assert world.is_alive(connection_id)
    assert two.metric("holdfast_refresh_total", outcome="recovered") == 1


async def test_an_invalid_grant_is_a_proof_for_the_version_that_was_sent(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.grants["ada"].is_alive = False
    error = await world.outcome(start(one, connection_id))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == Reason.CONNECTION_NEEDS_REAUTH
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.NEEDS_REAUTH, "grant_revoked")
    assert lease_of(world, connection_id).phase is Phase.FREE


async def test_a_spent_refresh_token_never_replaces_a_newer_one(clock: FakeClock) -> None:
    endpoint = MemoryTokenEndpoint(clock, rotation=Rotation.GRACE, grace_seconds=3600)
    world = World(clock, endpoint)
    one = world.replica()
    connection_id = await world.connect("ada")
    for version in (1, 2):
        await world.outcome(start(one, connection_id, newer_than=version))
    first = next(iter(endpoint.grants["ada"].spent))
    # The provider rotates, the answer is lost, and the repetition in its window hands back the token of the beginning.
    endpoint.lost_answers = 1
    endpoint.returns_spent = True
    assert isinstance(await world.outcome(start(one, connection_id, newer_than=3)), Unavailable)
    await clock.advance(5)
    renewed = await world.outcome(start(one, connection_id, newer_than=3))
    token = renewed.tokens.refresh_token
    assert token is not None
    assert token.reveal() != first
    assert renewed.version == 4
    assert one.metric("holdfast_refresh_rotation_reuse_detected_total") == 1
    assert world.is_alive(connection_id)


# ------------------------------------------------------------------------------------------------- unknown outcomes


async def test_a_strict_grant_with_a_lost_answer_is_used_up_before_its_token_is_tried_again(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.lost_answers = 1
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.DEGRADED, "refresh_outcome_unknown")
    token = await one.parts.access_tokens.get(row)
    assert token.version == 1
    await world.clock.advance(3590)
    assert (await one.parts.access_tokens.get(world.row(connection_id))).version == 1
    assert world.endpoint.calls == 1
    await world.clock.advance(20)
    error = await world.outcome(start(one, connection_id))
    assert isinstance(error, FailedPrecondition)
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.NEEDS_REAUTH, "refresh_outcome_unknown")
    assert world.endpoint.calls == 2


async def test_a_lost_request_of_a_strict_grant_heals_when_the_token_is_tried_again(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.refusals.append(TokenRefused(RefusalKind.UNKNOWN_OUTCOME, "the connection broke"))
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    await world.clock.advance(3601)
    assert (await world.outcome(start(one, connection_id))).version == 2
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.ACTIVE, "")
    assert world.is_alive(connection_id)


@pytest.mark.parametrize("rotation", [Rotation.NONE, Rotation.OPTIONAL, Rotation.GRACE])
async def test_a_lost_answer_of_a_tolerant_provider_is_asked_for_again(clock: FakeClock, rotation: Rotation) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, rotation=rotation, grace_seconds=600))
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.lost_answers = 1
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    assert (await world.outcome(start(one, connection_id))).version == 2
    assert world.endpoint.calls == 2
    assert world.is_alive(connection_id)


# ------------------------------------------------------------------------------------------------ classes of refusal


async def test_a_misconfigured_app_is_told_of_the_integration_and_not_of_the_user(world: World) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.refusals.append(
        TokenRefused(RefusalKind.INTEGRATION, "fake refused: invalid_client", error="invalid_client", status=401)
    )
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    row = world.row(connection_id)
    assert (row.state, row.state_reason) == (ConnectionState.DEGRADED, "integration_misconfigured")
    assert world.apps.failures == ["invalid_client"]
    assert row.refresh_time is not None
    assert row.refresh_time >= world.clock.now() + timedelta(seconds=30)
    assert (await world.outcome(start(one, connection_id))).version == 2
    assert world.apps.successes == 1


@pytest.mark.parametrize(
    ("refused", "least", "most"),
    [
        (TokenRefused(RefusalKind.TRANSIENT, "503", status=503), 0.5, 2.0),
        (TokenRefused(RefusalKind.TRANSIENT, "no connection", was_sent=False), 0.5, 2.0),
        (TokenRefused(RefusalKind.TRANSIENT, "429", status=429, retry_after_seconds=100.0), 100.0, 110.0),
        (TokenRefused(RefusalKind.TRANSIENT, "a firewall's page", status=403), 30.0, 120.0),
    ],
)
async def test_what_is_no_proof_waits_and_tries_again(
    world: World, refused: TokenRefused, least: float, most: float
) -> None:
    one = world.replica()
    connection_id = await world.connect("ada")
    world.endpoint.refusals.append(refused)
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    row = world.row(connection_id)
    assert (row.state, row.failure_count) == (ConnectionState.DEGRADED, 1)
    assert row.refresh_time is not None
    assert least <= (row.refresh_time - world.clock.now()).total_seconds() <= most
    assert lease_of(world, connection_id).phase is Phase.FREE
    await world.clock.advance(4000)
    world.endpoint.refusals.append(refused)
    assert isinstance(await world.outcome(start(one, connection_id)), Unavailable)
    assert world.row(connection_id).state is ConnectionState.UNAVAILABLE
    assert (await world.outcome(start(one, connection_id))).version == 2
    assert world.row(connection_id).state is ConnectionState.ACTIVE


# ------------------------------------------------------------------------------------------------------------- drain


async def test_a_drain_finishes_what_was_sent_and_takes_nothing_new(world: World) -> None:
    one = world.replica()
    connection_id, other = await world.connect("ada"), await world.connect("eve")
    held = Held(world)
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    drain = asyncio.create_task(one.parts.coordinator.drain())
    await world.settle()
    assert not drain.done()
    refused = await world.outcome(start(one, other))
    assert isinstance(refused, Unavailable)
    assert refused.reason == Reason.DRAINING
    held.answer.set()
    assert (await world.outcome(call)).version == 2
    async with asyncio.timeout(20):
        await drain
    assert world.is_alive(connection_id)
    assert lease_of(world, connection_id).phase is Phase.FREE


async def test_a_drain_stops_what_was_not_sent_and_gives_the_lease_back(world: World) -> None:
    one, two = world.replica(), world.replica()
    connection_id = await world.connect("ada")
    one.power.stop()
    call = start(one, connection_id)
    await world.settle()
    drain = asyncio.create_task(one.parts.coordinator.drain())
    await world.settle()
    one.power.go_on()
    refused = await world.outcome(call)
    assert isinstance(refused, Unavailable)
    async with asyncio.timeout(20):
        await drain
    assert world.endpoint.calls == 0
    assert (await world.outcome(start(two, connection_id))).version == 2


# ------------------------------------------------------------------------------------------------------------ clocks


class SkewedClock:
    """The shared clock as a machine with a wrong wall clock has it."""

    def __init__(self, clock: FakeClock, skew: timedelta) -> None:
        self._clock = clock
        self.skew = skew

    def now(self) -> Any:
        """See `Clock.now`."""
        return self._clock.now() + self.skew

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await self._clock.sleep(seconds)


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_replicas_with_wrong_wall_clocks_share_one_call_and_agree_on_the_lease(
    clock: FakeClock, minutes: int
) -> None:
    world = World(clock, MemoryTokenEndpoint(clock, answer_seconds=0.2))
    right, wrong = world.replica(), world.replica(SkewedClock(clock, timedelta(minutes=minutes)))
    connection_id = await world.connect("ada")
    for version in range(1, 5):
        calls = [start(replica, connection_id, newer_than=version) for replica in (right, wrong) for _ in range(4)]
        for call in calls:
            assert (await world.outcome(call)).version == version + 1
        assert world.endpoint.calls == version
    assert world.is_alive(connection_id)


async def test_a_wall_clock_that_steps_back_neither_ends_a_lease_nor_a_grant(clock: FakeClock) -> None:
    world = World(clock, MemoryTokenEndpoint(clock))
    stepping = SkewedClock(clock, timedelta(0))
    one, two = world.replica(stepping), world.replica()
    connection_id = await world.connect("ada")
    held = Held(world)
    call = start(one, connection_id)
    await world.until(held.arrived.is_set)
    waiting = start(two, connection_id)
    stepping.skew = timedelta(hours=-1)
    await world.clock.advance(10)
    held.answer.set()
    assert (await world.outcome(call)).version == 2
    assert (await world.outcome(waiting)).version == 2
    assert world.endpoint.calls == 1
    assert world.is_alive(connection_id)


def _invalid_grant() -> TokenRefused:
    from services.auth.oauth.refusals import ReauthReason

    return TokenRefused(
        RefusalKind.PERMANENT,
        "fake refused: invalid_grant",
        error="invalid_grant",
        reauth_reason=ReauthReason.GRANT_REVOKED,
    )
