"""What every keeper of envelope keys does, whatever is behind it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.errors import NotFound
from services.auth.app import MIGRATIONS
from services.auth.envelopes import MAX_SEALED_BYTES, Envelopes
from services.auth.envelopes_embedded import EmbeddedEnvelopes
from services.auth.keyring import open_keyring
from services.auth.sealing import MasterKey
from services.auth.secrets import Secret, SecretDamagedError
from services.shared.database import Database
from services.shared.migrations import upgrade
from tests.auth.vault.support import vault_of

ONE = "0198c0de-0000-7000-8000-00000000000a"
OTHER = "0198c0de-0000-7000-8000-00000000000b"


@pytest.fixture(params=["sqlite", "postgresql", "vault", "real-vault"])
async def envelopes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Envelopes]:
    """A keeper that has no keys yet."""
    if request.param in ("vault", "real-vault"):
        async with vault_of(request, is_real=request.param == "real-vault", folder=tmp_path) as vault:
            yield vault.envelopes
        return
    url = (
        f"sqlite:///{tmp_path / 'auth.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_database")
    )
    async with Database(url, schema="auth") as db:
        await upgrade(db, MIGRATIONS)
        yield EmbeddedEnvelopes(db, await open_keyring(db, MasterKey.generate()))


async def test_a_data_key_is_unwrapped_for_its_workspace(envelopes: Envelopes) -> None:
    made = await envelopes.data_key(ONE)
    opened = await envelopes.unwrap(ONE, made.wrapped)
    assert opened.reveal() == made.key.reveal()
    assert base64.b64encode(made.key.reveal()).decode() not in made.wrapped


async def test_each_data_key_is_another(envelopes: Envelopes) -> None:
    keys = {(await envelopes.data_key(ONE)).key.reveal() for _ in range(3)}
    assert len(keys) == 3


async def test_a_data_key_of_another_workspace_does_not_open(envelopes: Envelopes) -> None:
    made = await envelopes.data_key(ONE)
    await envelopes.data_key(OTHER)
    with pytest.raises(SecretDamagedError):
        await envelopes.unwrap(OTHER, made.wrapped)


async def test_what_was_wrapped_before_a_rotation_still_opens(envelopes: Envelopes) -> None:
    made = await envelopes.data_key(ONE)
    await envelopes.rotate(ONE)
    again = await envelopes.rewrap(ONE, made.wrapped)
    assert again != made.wrapped
    for wrapped in (made.wrapped, again):
        assert (await envelopes.unwrap(ONE, wrapped)).reveal() == made.key.reveal()


async def test_nothing_of_a_destroyed_key_opens_ever_again(envelopes: Envelopes) -> None:
    made, kept = await envelopes.data_key(ONE), await envelopes.data_key(OTHER)
    await envelopes.destroy(ONE)
    await envelopes.destroy(ONE)
    with pytest.raises(NotFound, match="destroyed") as caught:
        await envelopes.unwrap(ONE, made.wrapped)
    assert caught.value.reason == "CONTENT_REMOVED"
    # A key that is made anew under the same name is another key.
    await envelopes.data_key(ONE)
    with pytest.raises(SecretDamagedError):
        await envelopes.unwrap(ONE, made.wrapped)
    assert (await envelopes.unwrap(OTHER, kept.wrapped)).reveal() == kept.key.reveal()


@pytest.mark.parametrize("damage", ["", "hfe1:1:AAAA", "vault:v1:AAAA", "vault:v9:" + "A" * 80, "what"])
async def test_what_was_never_wrapped_does_not_open(envelopes: Envelopes, damage: str) -> None:
    await envelopes.data_key(ONE)
    with pytest.raises(SecretDamagedError):
        await envelopes.unwrap(ONE, damage)


@pytest.mark.parametrize("text", ["", "one", "ключ 🔑", "x" * MAX_SEALED_BYTES])
async def test_a_sealed_text_opens_in_its_own_context_only(envelopes: Envelopes, text: str) -> None:
    sealed = await envelopes.seal(Secret(text), context="connect|1")
    assert (await envelopes.open(sealed, context="connect|1")).reveal() == text
    with pytest.raises(SecretDamagedError):
        await envelopes.open(sealed, context="connect|2")


async def test_a_text_that_is_too_long_is_not_sealed(envelopes: Envelopes) -> None:
    with pytest.raises(ValueError, match="at most"):
        await envelopes.seal(Secret("x" * (MAX_SEALED_BYTES + 1)), context="connect|1")


async def test_damaged_sealed_texts_do_not_open(envelopes: Envelopes) -> None:
    sealed = await envelopes.seal(Secret("one"), context="c")
    for damaged in ("", "nothing", sealed[:-8], sealed[:-4] + "AAAA"):
        with pytest.raises(SecretDamagedError):
            await envelopes.open(damaged, context="c")
