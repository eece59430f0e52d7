"""A master key in the keychain: made once, found again, rotated, and never replaced when it cannot be read."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest

from services.auth.admin import rotate_master_key
from services.auth.app import open_core
from services.auth.secrets import Secret
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import AuthSettings
from services.shared.clock import SystemClock
from services.shared.server import StartupError
from tests.auth.support import settings_for, sqlite_url
from tests.fakes.keychain import MemoryKeychain

PATH = "ws/0198/shared/c/1"


@pytest.fixture
def keychain() -> Iterator[MemoryKeychain]:
    """The keychain of this machine."""
    before, found = keyring.get_keyring(), MemoryKeychain()
    keyring.set_keyring(found)
    yield found
    keyring.set_keyring(before)


@pytest.fixture
def settings(tmp_path: Path) -> AuthSettings:
    """Settings without a key."""
    return replace(settings_for(sqlite_url(tmp_path)), master_key=None)


async def put(settings: AuthSettings) -> None:
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        await EmbeddedSecretStore(core.db, core.keyring).put(PATH, Secret("one"), expected_version=0)


async def value(settings: AuthSettings) -> str:
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        stored = await EmbeddedSecretStore(core.db, core.keyring).get(PATH)
        assert stored is not None
        return stored.secret.reveal()


async def test_the_key_lies_in_the_keychain_and_not_beside_the_data(
    keychain: MemoryKeychain, settings: AuthSettings, tmp_path: Path
) -> None:
    await put(settings)
    assert await value(settings) == "one"
    [key] = keychain.entries.values()
    assert not [file for file in tmp_path.iterdir() if "key" in file.name or key.encode() in file.read_bytes()]


async def test_a_locked_keychain_is_no_reason_for_another_key(keychain: MemoryKeychain, settings: AuthSettings) -> None:
    await put(settings)
    keychain.is_locked = True
    with pytest.raises(StartupError, match="unlock it"):
        await value(settings)
    keychain.is_locked = False
    assert await value(settings) == "one"


async def test_a_keychain_that_takes_nothing_leaves_the_file(
    keychain: MemoryKeychain, settings: AuthSettings, tmp_path: Path
) -> None:
    keychain.fail_at = "set"
    await put(settings)
    assert keychain.entries == {} and (tmp_path / "auth.master-key").exists()
    keychain.fail_at = ""
    # What began as a file stays one.
    assert await value(settings) == "one" and keychain.entries == {}


async def test_without_a_safe_backend_there_is_the_file(settings: AuthSettings, tmp_path: Path) -> None:
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    try:
        await put(settings)
    finally:
        keyring.set_keyring(before)
    assert (tmp_path / "auth.master-key").exists()


@pytest.mark.parametrize("dies_before_the_end", [False, True])
async def test_a_rotation_replaces_the_entry_whenever_it_dies(
    keychain: MemoryKeychain, settings: AuthSettings, dies_before_the_end: bool
) -> None:
    await put(settings)
    [before] = keychain.entries.values()
    if dies_before_the_end:
        keychain.fail_at = "delete"
        with pytest.raises(StartupError):
            await rotate_master_key(settings, Namespace(new_key_file=None))
        keychain.fail_at = ""
    else:
        await rotate_master_key(settings, Namespace(new_key_file=None))
    assert await value(settings) == "one"
    [after] = keychain.entries.values()
    assert after != before
