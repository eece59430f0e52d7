"""What every secret store does, whatever is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from holdfast.errors import Conflict
from services.auth.app import MIGRATIONS
from services.auth.keyring import open_keyring
from services.auth.sealing import MasterKey
from services.auth.secrets import MAX_SECRET_BYTES, Secret, SecretStore
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.shared.database import Database
from services.shared.migrations import upgrade
from tests.auth.vault.support import vault_of
from tests.fakes.secret_store import MemorySecretStore

PATH = "ws/0198/shared/c/0199"


@pytest.fixture(params=["memory", "sqlite", "postgresql", "vault", "real-vault"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SecretStore]:
    """A store that holds nothing."""
    kind: Literal["memory", "sqlite", "postgresql", "vault", "real-vault"] = request.param
    if kind == "memory":
        yield MemorySecretStore()
        return
    if kind in ("vault", "real-vault"):
        async with vault_of(request, is_real=kind == "real-vault", folder=tmp_path) as vault:
            yield vault.secrets
        return
    url = f"sqlite:///{tmp_path / 'auth.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_database")
    async with Database(url, schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        yield EmbeddedSecretStore(db, await open_keyring(db, MasterKey.generate()))


async def revealed(store: SecretStore, path: str) -> tuple[int, str] | None:
    stored = await store.get(path)
    return None if stored is None else (stored.version, stored.secret.reveal())


async def test_an_unused_path_holds_nothing(store: SecretStore) -> None:
    assert await store.get(PATH) is None
    assert await store.version(PATH) == 0


@pytest.mark.parametrize("value", ["sk-one", "", "ключ 🔑", "x" * MAX_SECRET_BYTES])
async def test_what_was_put_is_read_back(store: SecretStore, value: str) -> None:
    assert await store.put(PATH, Secret(value), expected_version=0) == 1
    assert await revealed(store, PATH) == (1, value)
    assert await store.version(PATH) == 1


async def test_each_put_makes_the_next_version(store: SecretStore) -> None:
    await store.put(PATH, Secret("one"), expected_version=0)
    assert await store.put(PATH, Secret("two"), expected_version=1) == 2
    assert await revealed(store, PATH) == (2, "two")


@pytest.mark.parametrize("expected", [0, 2, 7])
async def test_a_put_over_another_version_is_refused_and_changes_nothing(store: SecretStore, expected: int) -> None:
    await store.put(PATH, Secret("one"), expected_version=0)
    with pytest.raises(Conflict):
        await store.put(PATH, Secret("other"), expected_version=expected)
    assert await revealed(store, PATH) == (1, "one")


async def test_a_put_over_a_version_that_never_was_is_refused(store: SecretStore) -> None:
    with pytest.raises(Conflict):
        await store.put(PATH, Secret("one"), expected_version=1)
    assert await store.version(PATH) == 0


async def test_of_writers_with_the_same_expectation_one_succeeds(store: SecretStore) -> None:
    await store.put(PATH, Secret("one"), expected_version=0)

    async def write(value: str) -> str | None:
        try:
            await store.put(PATH, Secret(value), expected_version=1)
        except Conflict:
            return None
        return value

    winners = [value for value in await asyncio.gather(*(write(f"two-{n}") for n in range(8))) if value is not None]
    assert len(winners) == 1
    assert await revealed(store, PATH) == (2, winners[0])


async def test_of_writers_that_create_the_same_path_one_succeeds(store: SecretStore) -> None:
    results = await asyncio.gather(
        *(store.put(PATH, Secret(f"one-{n}"), expected_version=0) for n in range(8)), return_exceptions=True
    )
    assert results.count(1) == 1
    assert all(isinstance(result, Conflict) for result in results if result != 1)


async def test_a_deleted_path_is_as_if_never_used(store: SecretStore) -> None:
    await store.put(PATH, Secret("one"), expected_version=0)
    await store.put(PATH, Secret("two"), expected_version=1)
    await store.delete(PATH)
    assert await store.get(PATH) is None
    assert await store.version(PATH) == 0
    assert await store.put(PATH, Secret("three"), expected_version=0) == 1


async def test_a_delete_may_be_repeated(store: SecretStore) -> None:
    await store.delete(PATH)
    await store.put(PATH, Secret("one"), expected_version=0)
    await store.delete(PATH)
    await store.delete(PATH)


async def test_paths_are_apart(store: SecretStore) -> None:
    await store.put(PATH, Secret("one"), expected_version=0)
    await store.put(f"{PATH}/more", Secret("two"), expected_version=0)
    await store.delete(PATH)
    assert await revealed(store, f"{PATH}/more") == (1, "two")


async def test_a_secret_that_is_too_long_is_refused(store: SecretStore) -> None:
    with pytest.raises(ValueError, match="at most"):
        await store.put(PATH, Secret("x" * (MAX_SECRET_BYTES + 1)), expected_version=0)
    assert await store.version(PATH) == 0


@pytest.mark.parametrize("path", ["", "/", "a//b", "a/", "../a", "a b", "A", "a|b", "a\n", "a" * 300])
async def test_what_is_no_path_is_refused(store: SecretStore, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        await store.put(path, Secret("one"), expected_version=0)
    with pytest.raises(ValueError, match="path"):
        await store.get(path)
    with pytest.raises(ValueError, match="path"):
        await store.delete(path)
    with pytest.raises(ValueError, match="path"):
        await store.version(path)
