"""The contract of the lease, on every store that holds tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from holdfast.errors import LeaseLost, Unavailable
from services.auth.app import MIGRATIONS
from services.auth.keyring import open_keyring
from services.auth.refresh.lease import LEASE_SECONDS, WATCH_GAP_SECONDS, Lease, Leases, Phase
from services.auth.sealing import MasterKey
from services.auth.secrets import SecretStore
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.shared.database import Database
from services.shared.migrations import upgrade
from tests.auth.refresh.world import away
from tests.fakes.clock import FakeClock
from tests.fakes.secret_store import MemorySecretStore

CONNECTION = "0198c0de-0000-7000-8000-000000000002"
PATH = "ws/0198/shared/c/0199"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SecretStore]:
    """A store that holds nothing."""
    kind: Literal["memory", "sqlite", "postgresql"] = request.param
    if kind == "memory":
        yield MemorySecretStore()
        return
    url = f"sqlite:///{tmp_path / 'auth.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_database")
    async with Database(url, schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        yield EmbeddedSecretStore(db, await open_keyring(db, MasterKey.generate()))


async def take(leases: Leases, version: int = 1, path: str = PATH) -> Lease | None:
    """Looks and takes."""
    return await leases.take(CONNECTION, await leases.look(CONNECTION), secret_path=path, token_version=version)


async def held(leases: Leases, version: int = 1) -> Lease:
    """A lease that is taken without resistance."""
    lease = await take(leases, version)
    assert lease is not None
    return lease


async def watch(leases: Leases, clock: FakeClock, seconds: float) -> None:
    """Looks again and again for a while."""
    passed = 0.0
    while passed < seconds:
        await leases.look(CONNECTION)
        step = min(10.0, seconds - passed)
        await clock.advance(step)
        passed += step


@pytest.fixture
def one(store: SecretStore, clock: FakeClock) -> Leases:
    """A process."""
    return Leases(store, clock, owner="one")


@pytest.fixture
def two(store: SecretStore, clock: FakeClock) -> Leases:
    """Another process."""
    return Leases(store, clock, owner="two")


async def test_of_those_who_take_a_lease_at_once_one_has_it(store: SecretStore, clock: FakeClock) -> None:
    everybody = [Leases(store, clock, owner=str(number)) for number in range(8)]
    taken = await asyncio.gather(*(take(leases) for leases in everybody))
    assert sum(lease is not None for lease in taken) == 1


async def test_a_lease_that_was_given_back_can_be_taken(one: Leases, two: Leases) -> None:
    lease = await held(one)
    assert await take(two) is None
    await lease.mark_sent()
    assert await take(two) is None
    await lease.settle()
    assert (await held(two)).was_stolen is False


async def test_a_lease_is_taken_over_after_it_was_watched_unchanged(one: Leases, two: Leases, clock: FakeClock) -> None:
    lease = await held(one)
    await watch(two, clock, LEASE_SECONDS - 1)
    assert await take(two) is None
    await clock.advance(1)
    stolen = await take(two)
    assert stolen is not None
    assert stolen.was_stolen
    assert not stolen.record.is_unknown(PATH, 1)
    with pytest.raises(LeaseLost):
        await lease.mark_sent()


async def test_a_lease_that_is_extended_is_not_taken_over(one: Leases, two: Leases, clock: FakeClock) -> None:
    lease = await held(one)
    for _ in range(4):
        await watch(two, clock, 20)
        await lease.extend()
        assert await take(two) is None
    assert lease.seconds_left == LEASE_SECONDS


async def test_who_did_not_look_for_a_while_begins_to_watch_anew(one: Leases, two: Leases, clock: FakeClock) -> None:
    await held(one)
    await two.look(CONNECTION)
    await clock.advance(10 * LEASE_SECONDS)
    assert await take(two) is None
    await watch(two, clock, WATCH_GAP_SECONDS)
    assert await take(two) is None


async def test_what_was_sent_by_a_holder_that_was_taken_over_is_unknown(
    one: Leases, two: Leases, clock: FakeClock
) -> None:
    lease = await held(one)
    await lease.mark_sent()
    await watch(two, clock, LEASE_SECONDS)
    stolen = await take(two)
    assert stolen is not None
    assert stolen.record.is_unknown(PATH, 1)
    # It stays so for whoever comes next, until a later version is stored.
    await stolen.free(was_sent=False)
    after = await held(one)
    assert after.record.is_unknown(PATH, 1)
    await after.settle()
    assert not (await held(two, version=2)).record.is_unknown(PATH, 1)


async def test_a_lease_for_a_version_that_is_past_is_over(one: Leases, two: Leases) -> None:
    lease = await held(one)
    await lease.mark_sent()
    next_one = await take(two, version=2)
    assert next_one is not None
    assert not next_one.record.is_unknown(PATH, 2)
    with pytest.raises(LeaseLost):
        await lease.settle()


async def test_a_lease_for_a_grant_that_was_replaced_is_over(one: Leases, two: Leases) -> None:
    await (await held(one)).mark_sent()
    assert await take(two, version=1, path=f"{PATH}/other") is not None


async def test_a_deleted_lease_is_lost(one: Leases, store: SecretStore) -> None:
    lease = await held(one)
    await store.delete(f"lease/c/{CONNECTION}")
    with pytest.raises(LeaseLost):
        await lease.mark_sent()


class LosesAnswers:
    """A store that applies a write, or does not, and says that it is away."""

    def __init__(self, inner: SecretStore) -> None:
        self._inner = inner
        self.lose: Literal["applied", "not applied"] | None = None

    async def put(self, path: str, secret: Any, *, expected_version: int) -> int:
        """See `SecretStore.put`."""
        lose, self.lose = self.lose, None
        if lose == "not applied":
            raise away()
        version = await self._inner.put(path, secret, expected_version=expected_version)
        if lose == "applied":
            raise away()
        return version

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_lease_whose_answer_was_lost_is_held_if_the_write_was_applied(
    store: SecretStore, clock: FakeClock
) -> None:
    losing: Any = LosesAnswers(store)
    leases = Leases(losing, clock, owner="one")
    losing.lose = "applied"
    lease = await held(leases)
    losing.lose = "applied"
    await lease.mark_sent()
    assert lease.record.phase is Phase.SENT
    await lease.settle()


async def test_a_write_that_was_not_applied_is_no_intent(store: SecretStore, clock: FakeClock, two: Leases) -> None:
    losing: Any = LosesAnswers(store)
    leases = Leases(losing, clock, owner="one")
    losing.lose = "not applied"
    with pytest.raises(Unavailable):
        await take(leases)
    lease = await held(leases)
    losing.lose = "not applied"
    with pytest.raises(Unavailable):
        await lease.mark_sent()
    # It knows that it did not send; nobody else does.
    assert await take(two) is None
    assert await take(leases) is not None
