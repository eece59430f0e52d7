"""The embedded keeper of envelope keys: rotation of the master key, and what a copy of the database tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import Unavailable
from services.auth.app import MIGRATIONS
from services.auth.envelopes_embedded import EmbeddedEnvelopes
from services.auth.keyring import open_keyring, rotate
from services.auth.sealing import MasterKey
from services.auth.secrets import Secret
from services.shared.database import Database
from services.shared.migrations import upgrade
from tests.auth.support import sqlite_url


async def test_a_rotated_master_key_opens_everything_and_the_old_one_nothing(tmp_path: Path) -> None:
    async with Database(sqlite_url(tmp_path), schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        old = await open_keyring(db, MasterKey.generate())
        before = EmbeddedEnvelopes(db, old)
        made = await before.data_key("w1")
        sealed = await before.seal(Secret("verifier"), context="c")
        new_master = MasterKey.generate()
        await rotate(db, old, new_master)

        after = EmbeddedEnvelopes(db, await open_keyring(db, new_master))

        assert (await after.unwrap("w1", made.wrapped)).reveal() == made.key.reveal()
        assert (await after.open(sealed, context="c")).reveal() == "verifier"
        with pytest.raises(Unavailable, match="newer master key"):
            await before.unwrap("w1", made.wrapped)


async def test_no_data_key_lies_in_the_database(tmp_path: Path) -> None:
    async with Database(sqlite_url(tmp_path), schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        envelopes = EmbeddedEnvelopes(db, await open_keyring(db, MasterKey.generate()))
        made = await envelopes.data_key("w1")
    for file in tmp_path.iterdir():
        assert made.key.reveal() not in file.read_bytes()
