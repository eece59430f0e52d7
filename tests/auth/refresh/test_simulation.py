"""Replicas that are killed, stopped and cut off at every moment: the grant lives, or its loss has its right name.

The one loss that is allowed is the documented one: a strict provider has answered, and the holder died before the
tokens were written anywhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.auth.connection_store import ConnectionState
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import Rotation
from services.auth.refresh.lease import LEASE_SECONDS
from tests.auth.refresh.world import Replica, World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint

REPLICAS = 3

who = st.integers(0, REPLICAS - 1)
ACTIONS = st.one_of(
    st.tuples(st.just("refresh"), who),
    st.tuples(st.just("kill"), who),
    st.tuples(st.just("stop"), who),
    st.tuples(st.just("go on"), who),
    st.tuples(st.just("store away"), who),
    st.tuples(st.just("store back"), who),
    st.tuples(st.just("escrow away"), who),
    st.tuples(st.just("escrow back"), who),
    st.tuples(st.just("lose an answer of the store"), who),
    st.tuples(st.just("fail a write"), who),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("seconds"), st.sampled_from([0.2, 2.0, 20.0, LEASE_SECONDS + 5.0, 400.0])),
    st.tuples(st.just("provider fails"), who),
)


class Simulation:
    """One history."""

    def __init__(self, rotation: Rotation, has_escrows: bool) -> None:
        self.clock = FakeClock()
        self.endpoint = MemoryTokenEndpoint(self.clock, rotation=rotation, grace_seconds=30.0, answer_seconds=1.0)
        self.world = World(self.clock, self.endpoint, has_escrows=has_escrows)
        self.replicas = [self.world.replica() for _ in range(REPLICAS)]
        self.calls: list[asyncio.Task[Any]] = []
        self.connection_id = ""
        self.was_killed = False
        self.was_disturbed = False
        self.steals = 0.0

    async def act(self, action: str, subject: Any) -> None:
        """Does one thing."""
        world = self.world
        if action == "turns":
            for _ in range(subject):
                await asyncio.sleep(0)
            return
        if action == "seconds":
            passed = 0.0
            while passed < subject:
                step = min(1.0, subject - passed)
                await self.clock.advance(step)
                await world.settle()
                passed += step
            return
        if action == "provider fails":
            self.endpoint.refusals.append(TokenRefused(RefusalKind.TRANSIENT, "503", status=503))
            return
        replica: Replica = self.replicas[subject]
        self.was_disturbed |= action != "refresh"
        if action == "refresh":
            version = world.secrets.secrets[self.path].version
            self.calls.append(asyncio.create_task(replica.refresh(self.connection_id, newer_than=version)))
        elif action == "kill":
            self.was_killed = True
            self.steals += replica.metric("holdfast_refresh_lease_steals_total")
            replica.power.kill()
            self.replicas[subject] = world.replica()
        elif action == "stop":
            replica.power.stop()
        elif action == "go on":
            replica.power.go_on()
        elif action.startswith("store"):
            replica.faults.is_away = action == "store away"
        elif action.startswith("escrow"):
            replica.escrow_faults.is_away = action == "escrow away"
        elif action == "lose an answer of the store":
            replica.faults.after = {"": 1}
        else:
            replica.faults.before = {"": 1}

    @property
    def path(self) -> str:
        """Where the tokens lie."""
        path = self.world.row(self.connection_id).secret_path
        assert path is not None
        return path

    async def run(self, actions: list[tuple[str, Any]]) -> None:
        """Does everything, heals everything, and looks at what is left."""
        world = self.world
        self.connection_id = await world.connect("ada")
        for action, subject in actions:
            await self.act(action, subject)
        for replica in self.replicas:
            replica.power.go_on()
            replica.faults.is_away = replica.escrow_faults.is_away = False
            replica.faults.before = replica.faults.after = {}
        self.endpoint.refusals.clear()
        await self.act("seconds", 5.0)
        for replica in self.replicas:
            await replica.parts.recovery.sweep()
        # Past every lease and every access token, somebody wants a token.
        await self.act("seconds", 2 * LEASE_SECONDS)
        await self.clock.advance(3700)
        final: list[asyncio.Task[Any]] = []
        for replica in self.replicas:
            row = world.row(self.connection_id)
            final.append(asyncio.create_task(replica.parts.access_tokens.get(row)))
            await world.until(final[-1].done)
        await self.check(final)
        for task in [*self.calls, *final]:
            task.cancel()
        await asyncio.gather(*self.calls, *final, return_exceptions=True)

    async def check(self, final: list[asyncio.Task[Any]]) -> None:
        """The invariants."""
        grant = self.endpoint.grants["ada"]
        steals = self.steals + sum(replica.metric("holdfast_refresh_lease_steals_total") for replica in self.replicas)
        row = self.world.row(self.connection_id)
        if not self.was_disturbed:
            assert steals == 0
        if steals == 0:
            assert grant.max_in_flight <= 1
        if row.state is ConnectionState.NEEDS_REAUTH:
            # The loss is real, it needed a death or a silence in the one window, and it has its right name.
            assert not self.world.is_alive(self.connection_id)
            assert self.endpoint.rotation is Rotation.STRICT or self.endpoint.rotation is Rotation.GRACE
            assert self.was_killed or steals > 0
            assert row.state_reason == "refresh_outcome_unknown"
        else:
            assert row.state is ConnectionState.ACTIVE
            assert self.world.is_alive(self.connection_id)
            assert all(task.exception() is None for task in final)
        assert self.world.escrows == {}


@settings(max_examples=150)
@given(
    st.lists(ACTIONS, max_size=14),
    st.sampled_from([Rotation.STRICT, Rotation.STRICT, Rotation.GRACE, Rotation.OPTIONAL, Rotation.NONE]),
    st.booleans(),
)
@example([("refresh", 0), ("seconds", 2.0)], Rotation.STRICT, True)
@example([("refresh", 0), ("turns", 12), ("refresh", 1), ("seconds", 20.0)], Rotation.OPTIONAL, True)
@example([("refresh", 0), ("turns", 6), ("kill", 0), ("refresh", 1), ("seconds", 50.0)], Rotation.STRICT, True)
@example([("refresh", 0), ("seconds", 0.2), ("stop", 0), ("refresh", 1), ("seconds", 50.0)], Rotation.STRICT, False)
def test_whatever_happens_the_grant_lives_or_its_loss_is_known(
    actions: list[tuple[str, Any]], rotation: Rotation, has_escrows: bool
) -> None:
    async def history() -> None:
        async with asyncio.timeout(60):
            await Simulation(rotation, has_escrows).run(actions)

    asyncio.run(history())
