"""Whoever can write to the database, but has no master key, cannot make auth hand out the wrong secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from holdfast.errors import Internal, Unavailable
from services.auth.app import open_core
from services.auth.keyring import rotate
from services.auth.sealing import MasterKey
from services.auth.secrets import Secret, SecretDamagedError
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import AuthSettings
from services.auth.tables import connections, sealed_keys, secrets
from services.shared.clock import SystemClock
from services.shared.database import Database
from services.shared.server import StartupError
from tests.auth.support import failure, make_key, new_connection, running, settings_for, sqlite_url

ONE, TWO = "ws/1/shared/c/1", "ws/1/shared/c/2"


async def tamper(db: Database, act: Callable[[sa.Connection], Any]) -> Any:
    return await db.write(act)


def rows(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    return {row.path: dict(row._mapping) for row in connection.execute(sa.select(secrets))}


def overwrite(path: str, **values: Any) -> Callable[[sa.Connection], Any]:
    return lambda connection: connection.execute(secrets.update().where(secrets.c.path == path).values(**values))


@pytest.fixture
async def core(settings: AuthSettings):
    """An opened database."""
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as opened:
        yield opened


async def test_swapped_rows_do_not_open(core) -> None:
    store = EmbeddedSecretStore(core.db, core.keyring)
    await store.put(ONE, Secret("one"), expected_version=0)
    await store.put(TWO, Secret("two"), expected_version=0)
    stored = await core.db.read(rows)
    for path, other in ((ONE, TWO), (TWO, ONE)):
        sealed = {name: stored[other][name] for name in ("nonce", "ciphertext")}
        await tamper(core.db, overwrite(path, **sealed))
    for path in (ONE, TWO):
        with pytest.raises(SecretDamagedError):
            await store.get(path)


async def test_an_older_version_does_not_open_as_the_current_one(core) -> None:
    store = EmbeddedSecretStore(core.db, core.keyring)
    await store.put(ONE, Secret("old"), expected_version=0)
    old = (await core.db.read(rows))[ONE]
    await store.put(ONE, Secret("new"), expected_version=1)
    await tamper(core.db, overwrite(ONE, nonce=old["nonce"], ciphertext=old["ciphertext"]))
    with pytest.raises(SecretDamagedError):
        await store.get(ONE)


async def test_a_row_of_another_database_does_not_open(core, tmp_path) -> None:
    other_settings = settings_for(sqlite_url(tmp_path / "other"), master_key=core.keyring.master)
    async with open_core(other_settings, asyncio.Event(), clock=SystemClock()) as other:
        await EmbeddedSecretStore(other.db, other.keyring).put(ONE, Secret("foreign"), expected_version=0)
        foreign = (await other.db.read(rows))[ONE]
    store = EmbeddedSecretStore(core.db, core.keyring)
    await tamper(core.db, lambda connection: connection.execute(secrets.insert().values(**foreign)))
    with pytest.raises(SecretDamagedError):
        await store.get(ONE)


async def test_the_database_holds_only_ciphertext(core) -> None:
    store = EmbeddedSecretStore(core.db, core.keyring)
    await store.put(ONE, Secret("sk-canary"), expected_version=0)
    row = (await core.db.read(rows))[ONE]
    assert b"canary" not in b"".join(str(value).encode() for value in row.values())
    assert len(bytes(row["ciphertext"])) == len("sk-canary") + 16


@pytest.mark.promise("P11")
async def test_a_connection_row_cannot_be_pointed_at_another_secret_or_address(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        acme, acme_id = await auth.workspace("acme")
        other, other_id = await auth.workspace("other")
        await acme.connections.CreateConnection(new_connection(key="sk-acme"))
        await acme.connections.CreateConnection(new_connection(name="second", key="sk-second"))
        await other.connections.CreateConnection(new_connection(key="sk-other"))

    def path_of(connection: sa.Connection, workspace_id: str, name: str) -> str:
        where = (connections.c.workspace_id == workspace_id, connections.c.name == name)
        path: str = connection.execute(sa.select(connections.c.secret_path).where(*where)).scalar_one()
        return path

    def change(**values: Any) -> Callable[[sa.Connection], Any]:
        where = (connections.c.workspace_id == acme_id, connections.c.name == "openai")
        return lambda connection: connection.execute(connections.update().where(*where).values(**values))

    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        own = await core.db.read(path_of, acme_id, "openai")
        attacks = [
            {"secret_path": await core.db.read(path_of, other_id, "openai")},
            {"secret_path": await core.db.read(path_of, acme_id, "second")},
            {"base_url": "https://evil.example"},
            {"provider": "evil"},
        ]
        for attack in attacks:
            await tamper(core.db, change(**attack))
            async with running(settings) as auth:
                error = await failure(auth.resolve(acme_id))
                assert type(error) is Internal
                assert "sk-" not in error.message
            await tamper(core.db, change(secret_path=own, base_url="", provider="openai"))
    async with running(settings) as auth:
        credential = await auth.resolve(acme_id)
        assert credential.secret == "sk-acme"


async def test_another_master_key_refuses_to_start_with_a_sentence(settings: AuthSettings) -> None:
    async with running(settings):
        pass
    with pytest.raises(StartupError, match=r"the master key is not the one that .* is sealed with: set HOLDFAST_MAST"):
        async with running(replace(settings, master_key=MasterKey.generate())):
            pass
    async with running(settings):
        pass


async def test_two_first_starts_with_one_key_agree_and_with_two_keys_one_is_refused(settings: AuthSettings) -> None:
    other = replace(settings, master_key=MasterKey.generate())

    async def start(with_settings: AuthSettings) -> str | None:
        try:
            async with open_core(with_settings, asyncio.Event(), clock=SystemClock()) as core:
                return core.keyring.store_id
        except StartupError:
            return None

    started = await asyncio.gather(start(settings), start(settings), start(other), start(other))
    assert {len({*started[:2]}), len({*started[2:]})} == {1}
    assert (started[0] is None) != (started[2] is None)


async def test_rotation_changes_the_master_key_and_nothing_else(settings: AuthSettings) -> None:
    new = MasterKey.generate()
    async with running(settings) as auth:
        workspace_id, key = await make_key(settings, "acme")
        client = auth.as_bearer(key)
        made = (await client.connections.CreateConnection(new_connection(key="sk-one"))).connection
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        before = await core.db.read(rows)
        assert await rotate(core.db, core.keyring, new) == 1
        after = await core.db.read(rows)
        assert all(before[path]["ciphertext"] != after[path]["ciphertext"] for path in before)
        pepper = core.keyring.pepper
    with pytest.raises(StartupError):
        async with running(settings):
            pass
    rotated = replace(settings, master_key=new)
    async with running(rotated) as auth:
        credential = await auth.resolve(workspace_id)
        assert (credential.secret, credential.version) == ("sk-one", 1)
        again = auth.as_bearer(key)
        replaced = await again.connections.CreateConnection(new_connection(key="sk-one", replace=True))
        assert replaced.connection.fingerprint == made.fingerprint
    async with open_core(rotated, asyncio.Event(), clock=SystemClock()) as core:
        assert (core.keyring.epoch, core.keyring.pepper) == (2, pepper)


async def test_a_process_with_the_old_key_can_neither_read_nor_write_after_a_rotation(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
            await rotate(core.db, core.keyring, MasterKey.generate())
            with pytest.raises(Unavailable):
                await rotate(core.db, core.keyring, MasterKey.generate())
        error = await failure(auth.resolve(workspace_id))
        assert type(error) is Unavailable
        assert "restarted" in error.message
        error = await failure(client.connections.CreateConnection(new_connection(name="second")))
        assert type(error) is Unavailable


async def test_a_rotation_over_a_damaged_secret_changes_nothing(core) -> None:
    store = EmbeddedSecretStore(core.db, core.keyring)
    await store.put(ONE, Secret("one"), expected_version=0)
    await store.put(TWO, Secret("two"), expected_version=0)
    await tamper(core.db, overwrite(TWO, ciphertext=b"x" * 30))
    with pytest.raises(SecretDamagedError):
        await rotate(core.db, core.keyring, MasterKey.generate())
    found = await store.get(ONE)
    assert found is not None
    assert found.secret.reveal() == "one"


async def test_a_changed_key_of_the_keyring_is_noticed_at_start(settings: AuthSettings) -> None:
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:

        def swap(connection: sa.Connection) -> None:
            found = {row.purpose: row for row in connection.execute(sa.select(sealed_keys))}
            source = found["audit"]
            connection.execute(
                sealed_keys.update()
                .where(sealed_keys.c.purpose == "api-key-pepper")
                .values(nonce=source.nonce, ciphertext=source.ciphertext)
            )

        await tamper(core.db, swap)
    with pytest.raises(StartupError, match="damaged"):
        async with running(settings):
            pass
