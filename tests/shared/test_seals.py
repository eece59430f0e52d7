"""Sealed payloads: opened as they were, readable by nobody without their key, and asked for when a key is missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import HoldfastError, NotFound, Reason, Unavailable
from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.shared.seals import (
    NO_SEALS,
    MissingKeyError,
    PayloadDamagedError,
    SealedBytes,
    SealedText,
    Seals,
    is_sealed,
    opened,
    seals_of,
)
from tests.fakes.data_keys import MemoryKeys

GONE = b"gone"


async def ready(keys: MemoryKeys, *workspaces: str) -> Seals:
    """Seals that have the keys of some workspaces."""
    seals = Seals(keys, is_on=True)
    for workspace in workspaces:
        await seals.bring(MissingKeyError(workspace, None))
    return seals


@given(st.binary(max_size=200), st.integers(1, 20))
def test_without_sealing_everything_is_read_as_it_was_written(payload: bytes, times: int) -> None:
    for start in (b"", b"\x00hf", b"\x00hf\x00", b"\x00hf\x01", b"\x00hf\x02"):
        body = start + payload * times
        stored = NO_SEALS.seal("any", body)
        assert opened(stored) == body
        assert len(stored) <= len(body) + 4


def test_what_the_database_would_not_compress_is_stored_compressed() -> None:
    words = b"the customer's words, " * 100
    for size, is_shorter in ((399, False), (400, True), (1_999, True), (2_000, False)):
        stored = NO_SEALS.seal("any", words[:size])
        assert (len(stored) < size / 2) is is_shorter
        assert is_shorter or stored == words[:size]
        assert opened(stored) == words[:size]
        assert not is_sealed(stored)
    # What would not become shorter stays as it is.
    noise = random.Random(1).randbytes(1_000)
    assert NO_SEALS.seal("any", noise) == noise


def test_a_compressed_payload_that_was_altered_is_not_read() -> None:
    stored = bytearray(NO_SEALS.seal("any", b"the customer's words, " * 50))
    stored[-1] ^= 1
    with pytest.raises(PayloadDamagedError):
        opened(bytes(stored))


async def test_what_is_sealed_is_opened_and_shows_nothing() -> None:
    workspace = new_uuid7()
    seals = await ready(MemoryKeys(), workspace)
    payload = b"the customer's words, the customer's words"
    stored = seals.seal(workspace, payload)
    assert opened(stored) == payload
    assert b"customer" not in stored
    assert len(stored) == len(payload) + 64
    assert stored != seals.seal(workspace, payload), "the same words twice cannot be told from others"


async def test_a_payload_that_was_altered_is_not_read() -> None:
    workspace = new_uuid7()
    seals = await ready(MemoryKeys(), workspace)
    stored = bytearray(seals.seal(workspace, b"pay 10"))
    stored[-20] ^= 1
    with pytest.raises(PayloadDamagedError):
        opened(bytes(stored))


async def test_a_key_of_one_workspace_opens_nothing_of_another() -> None:
    one, other = new_uuid7(), new_uuid7()
    seals = await ready(MemoryKeys(), one, other)
    ours, theirs = seals.seal(one, b"ours"), seals.seal(other, b"theirs")
    # The header of one before what belongs to the other.
    with pytest.raises(PayloadDamagedError):
        opened(ours[:36] + theirs[36:])


async def test_a_missing_key_says_which(tmp_path: Path) -> None:
    workspace = new_uuid7()
    keys = MemoryKeys()
    with pytest.raises(MissingKeyError) as missing:
        Seals(keys, is_on=True).seal(workspace, b"x")
    assert (missing.value.workspace_id, missing.value.key_id) == (workspace, None)
    stored = (await ready(keys, workspace)).seal(workspace, b"x")
    [key_id] = keys.keys[workspace]
    assert opened(stored) == b"x"
    assert key_id in stored


async def test_a_destroyed_key_leaves_nothing_to_read() -> None:
    workspace = new_uuid7()
    keys = MemoryKeys()
    seals = await ready(keys, workspace)
    stored = seals.seal(workspace, b"secret words")
    text = seals.seal_text(workspace, "secret words")
    keys.destroyed.add(workspace)
    opened(stored)
    await seals.refresh()
    assert opened(stored, gone=GONE) == GONE
    assert SealedBytes(gone=GONE).process_result_value(stored, sa.engine.default.DefaultDialect()) == GONE
    assert SealedText().process_result_value(text, sa.engine.default.DefaultDialect()) == ""
    with pytest.raises(MissingKeyError):
        seals.seal(workspace, b"more")


async def test_keys_stay_while_they_cannot_be_asked_for_and_go_when_nobody_uses_them() -> None:
    workspace = new_uuid7()
    keys = MemoryKeys()
    seals = await ready(keys, workspace)
    stored = seals.seal(workspace, b"x")
    keys.trouble = Unavailable("away", reason=Reason.AUTH_UNAVAILABLE)
    with pytest.raises(Unavailable):
        await seals.refresh()
    assert opened(stored) == b"x" and seals.is_ready(workspace)
    keys.trouble = None
    await seals.refresh()
    assert seals.is_ready(workspace), "whoever is told so uses it"
    for _ in range(2):
        await seals.refresh()
    assert not seals.is_ready(workspace)
    with pytest.raises(MissingKeyError):
        opened(stored)


async def test_a_workspace_is_asked_about_before_anything_of_it_is_written() -> None:
    one, other, third = (new_uuid7() for _ in range(3))
    keys = MemoryKeys()
    keys.chosen = {one: True, other: False}
    for default in (False, True):
        seals = Seals(keys, is_on=default)
        for workspace, expected in ((one, True), (other, False), (third, default)):
            assert not seals.is_ready(workspace)
            with pytest.raises(MissingKeyError):
                seals.seal(workspace, b"words")
            with pytest.raises(MissingKeyError):
                seals.seal_text(workspace, "words")
            await seals.bring(MissingKeyError(workspace, None))
            assert seals.is_ready(workspace)
            stored = seals.seal(workspace, b"words")
            assert (seals.is_on(workspace), is_sealed(stored), stored == b"words") == (expected, expected, not expected)
            assert opened(stored) == b"words"
        asked = keys.asked
        seals.seal(other, b"more")
        assert keys.asked == asked, "nobody is asked for what is known"


async def test_a_choice_is_followed_both_ways_and_everything_is_read() -> None:
    workspace = new_uuid7()
    keys = MemoryKeys()
    seals = Seals(keys)
    await seals.bring(MissingKeyError(workspace, None))
    stored = [seals.seal(workspace, b"before")]
    for choice in (True, False):
        keys.chosen[workspace] = choice
        await seals.refresh_choices()
        assert seals.is_ready(workspace), "nobody waits for a change"
        stored.append(seals.seal(workspace, b"after"))
    assert [is_sealed(payload) for payload in stored] == [False, True, False]
    assert [opened(payload) for payload in stored] == [b"before", b"after", b"after"]


async def test_a_workspace_whose_key_is_not_to_be_had_yet_works_on_as_it_was() -> None:
    workspace = new_uuid7()
    keys = KeysWithoutVault()
    seals = Seals(keys)
    await seals.bring(MissingKeyError(workspace, None))
    keys.chosen[workspace] = True
    await seals.refresh_choices()
    assert seals.is_ready(workspace) and not seals.is_on(workspace)
    keys.is_away = False
    await seals.refresh_choices()
    assert seals.is_ready(workspace) and seals.is_on(workspace)


async def test_while_auth_is_away_nobody_waits_but_who_was_ever_sealed() -> None:
    never, once = new_uuid7(), new_uuid7()
    keys = MemoryKeys()
    await ready(keys, once)
    keys.trouble = Unavailable("away", reason=Reason.AUTH_UNAVAILABLE)
    seals = Seals(keys)
    await seals.bring(MissingKeyError(never, None))
    assert seals.seal(never, b"words") == b"words"
    with pytest.raises(Unavailable):
        await seals.bring(MissingKeyError(once, None))
    asked = keys.asked
    await seals.bring(MissingKeyError(new_uuid7(), None))
    assert keys.asked == asked, "not asked again for each workspace"
    await seals.refresh_choices()
    assert seals.is_out_of_touch() and seals.is_ready(never)
    keys.trouble = None
    keys.chosen = {never: True, once: False}
    await seals.refresh_choices()
    assert not seals.is_out_of_touch()
    await seals.bring(MissingKeyError(once, None))
    assert seals.is_on(never) and not seals.is_on(once)


async def test_a_workspace_that_nobody_uses_is_forgotten() -> None:
    workspace = new_uuid7()
    seals = Seals(MemoryKeys())
    await seals.bring(MissingKeyError(workspace, None))
    await seals.refresh_choices()
    assert seals.is_ready(workspace)
    for _ in range(2):
        await seals.refresh_choices()
    assert not seals.is_ready(workspace)


async def test_a_process_without_work_notices_that_auth_is_back() -> None:
    keys = MemoryKeys()
    seals = Seals(keys)
    keys.trouble = Unavailable("away", reason=Reason.AUTH_UNAVAILABLE)
    await seals.bring(MissingKeyError(new_uuid7(), None))
    for _ in range(3):
        await seals.refresh_choices()
    assert seals.is_out_of_touch()
    keys.trouble = None
    await seals.refresh_choices()
    assert not seals.is_out_of_touch()
    asked = keys.asked
    await seals.refresh_choices()
    assert keys.asked == asked, "nobody is asked about nobody"


async def test_a_closed_workspace_that_was_never_sealed_can_still_be_written_to() -> None:
    workspace = new_uuid7()
    keys = KeysWithoutVault(NotFound("it is closed", reason=Reason.WORKSPACE_NOT_FOUND))
    keys.chosen[workspace] = True
    seals = Seals(keys)
    await seals.bring(MissingKeyError(workspace, None))
    assert seals.seal(workspace, b"cancelled") == b"cancelled"


async def test_texts_are_sealed_as_texts() -> None:
    workspace = new_uuid7()
    seals = await ready(MemoryKeys(), workspace)
    column = SealedText()
    dialect = sa.engine.default.DefaultDialect()
    for text in ("", "half done", "ünï \u2420hf:x"):
        for writer in (seals, NO_SEALS):
            stored = writer.seal_text(workspace, text)
            assert column.process_result_value(stored, dialect) == text
    assert "half" not in seals.seal_text(workspace, "half done")


class KeysWithoutVault(MemoryKeys):
    """Auth answers, and whoever keeps the keys does not."""

    def __init__(self, why: HoldfastError | None = None) -> None:
        super().__init__()
        self.is_away = True
        self.why = why or Unavailable("away", reason=Reason.STORAGE_UNAVAILABLE)

    async def current(self, workspace_id: str) -> tuple[bytes, bytes]:
        """See `KeySource.current`."""
        if self.is_away:
            raise self.why
        return await super().current(workspace_id)


# ------------------------------------------------------------------------------------------------------- in a database

notes = sa.Table("notes", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True), sa.Column("body", SealedBytes()))


def _write(connection: sa.Connection, workspace: str, body: bytes) -> None:
    notes.metadata.create_all(connection)
    connection.execute(notes.insert().values(body=seals_of(connection).seal(workspace, body)))


def _read(connection: sa.Connection) -> list[bytes]:
    return list(connection.execute(sa.select(notes.c.body)).scalars())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'notes.db'}"
    found: str = request.getfixturevalue("postgres_database")
    return found


async def test_a_database_brings_the_keys_that_its_functions_need(url: str) -> None:
    workspace = new_uuid7()
    keys = MemoryKeys()
    async with Database(url, schema="notes", seals=Seals(keys, is_on=True)) as db:
        await db.ensure_schema()
        await db.write(_write, workspace, b"one")
        async with db.writer() as writer:
            await writer.run(_write, workspace, b"two")
        assert await db.read(_read) == [b"one", b"two"]
        await db.seals.refresh()
        await db.seals.refresh()
        asked = keys.asked
        assert await db.read(_read) == [b"one", b"two"]
        assert keys.asked == asked + 1
        await db.seals.refresh()
        await db.seals.refresh()
        keys.trouble = Unavailable("away", reason=Reason.AUTH_UNAVAILABLE)
        with pytest.raises(Unavailable):
            await db.read(_read)
        keys.trouble = None
        keys.keys.clear()
        with pytest.raises(PayloadDamagedError):
            await db.read(_read)
