"""What the group commit does when the database fails it: nobody is left without an answer, and the writer lives on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import HoldfastError, NotFound, Reason, ResourceExhausted, Unavailable
from holdfast.ids import new_uuid7
from services.shared.clock import Clock
from services.shared.database import Database
from services.shared.migrations import upgrade
from services.shared.seals import Seals, is_sealed
from services.state import group_commit, tables
from services.state.app import MIGRATIONS
from services.state.change_feed import read_feed
from services.state.claims import short_journals
from tests.fakes.clock import FakeClock
from tests.fakes.data_keys import MemoryKeys
from tests.state.builders import WORKSPACE, asks, in_blob, model_says, new_run, starts, transition
from tests.state.sql_store import SqlStateStore, empty, migrated, opened, sqlite
from tests.state.support import finished

# Its fixtures: the store on either database.
pytest_plugins = ["tests.state.sql_fixtures"]

ADA = new_uuid7()


class FailingDatabase(Database):
    """Fails as a test says: before the transaction, or after its commit, when the answer is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fail_reads = 0
        self.fail_writes: list[HoldfastError] = []
        self.lose_answers = 0
        self.is_away = False

    async def read(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fail_reads:
            self.fail_reads -= 1
            raise Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE)
        return await super().read(fn, *args, **kwargs)

    async def write(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_away:
            raise Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE)
        if self.fail_writes:
            raise self.fail_writes.pop(0)
        result = await super().write(fn, *args, **kwargs)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE)
        return result


@asynccontextmanager
async def failing(folder: Path, clock: Clock | None = None) -> AsyncIterator[tuple[SqlStateStore, FailingDatabase]]:
    async with migrated(sqlite(folder)):
        pass
    async with FailingDatabase(sqlite(folder), schema="state", synchronous="NORMAL") as db, opened(db, clock) as store:
        yield store, db


async def claimed(store: SqlStateStore, count: int) -> list[tuple[str, int]]:
    await store.commit(*(new_run() for _ in range(count)))
    await store.renew(ADA)
    return list((await store.claim(ADA)).items())


def reason_of(answer: object) -> str:
    assert isinstance(answer, HoldfastError), answer
    return answer.reason


@pytest.mark.promise("P1")
async def test_commit_whose_answer_was_lost_is_found_and_answered(tmp_path: Path) -> None:
    async with failing(tmp_path) as (store, db):
        [(run_id, epoch)] = await claimed(store, 1)
        sent = transition(run_id, epoch, 2, starts(1))
        db.lose_answers = 1
        assert await store.commit(sent) == [2]
        assert await store.commit(sent) == [2]
        assert [event.seq for event in await store.events(run_id)] == [1, 2]


async def test_new_run_whose_answer_was_lost_is_one_run(tmp_path: Path) -> None:
    async with failing(tmp_path) as (store, db):
        new = new_run(request_id="r-1", fingerprint=b"f")
        db.lose_answers = 1
        [made] = await store.commit(new)
        assert isinstance(made, run_pb2.Run) and made.run_id == new.run_id
        assert (await store.feed())[0] == [(new.run_id, 1)]


async def test_operations_wait_for_a_storage_that_is_away_and_keep_their_order(tmp_path: Path) -> None:
    async with failing(tmp_path) as (store, db):
        runs = await claimed(store, 3)
        away = Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE)
        db.fail_writes += [away, away, away]
        operations = [transition(run_id, epoch, seq) for seq in (2, 3, 4) for run_id, epoch in runs]
        assert await store.commit(*operations) == [operation.seq for operation in operations]


async def test_operations_that_have_waited_for_too_long_are_told_so(tmp_path: Path) -> None:
    clock = FakeClock()
    async with failing(tmp_path, clock) as (store, db):
        (first, e1), (second, e2) = await claimed(store, 2)
        db.is_away = True
        early = asyncio.create_task(store.commit(transition(first, e1, 2)))
        await clock.wait_for_sleepers()
        while clock.monotonic() - 1_000_000.0 < group_commit.PATIENCE_SECONDS - 5:
            await clock.advance(group_commit.LONGEST_PAUSE_SECONDS)
            await clock.wait_for_sleepers()
        late = asyncio.create_task(store.commit(transition(second, e2, 2)))
        while not early.done():
            await clock.advance(group_commit.LONGEST_PAUSE_SECONDS)
            async with asyncio.timeout(20):
                while not (early.done() or clock.sleeping):
                    await asyncio.sleep(0)
        assert reason_of((await early)[0]) == Reason.STORAGE_UNAVAILABLE
        await clock.wait_for_sleepers()
        assert not late.done(), "it came later and is still tried"
        db.is_away = False
        await clock.advance(group_commit.LONGEST_PAUSE_SECONDS)
        assert await late == [2]


async def test_full_disk_refuses_with_its_reason_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async with failing(tmp_path) as (store, db):
        [(run_id, epoch)] = await claimed(store, 1)
        db.fail_writes.append(ResourceExhausted("full", reason=Reason.STORAGE_FULL, retry_delay_seconds=30.0))
        [refused] = await store.commit(transition(run_id, epoch, 2))
        assert reason_of(refused) == Reason.STORAGE_FULL
        assert await store.commit(transition(run_id, epoch, 2)) == [2]


async def test_database_that_fails_between_commit_and_diagnosis_is_asked_again(tmp_path: Path) -> None:
    async with failing(tmp_path) as (store, db):
        (good, good_epoch), (bad, bad_epoch) = await claimed(store, 2)
        db.fail_reads = 1
        committed, refused = await store.commit(transition(good, good_epoch, 2), transition(bad, bad_epoch + 1, 2))
        assert committed == 2
        assert reason_of(refused) == Reason.LEASE_LOST
        assert await store.commit(transition(bad, bad_epoch, 2)) == [2]


async def test_operation_that_cannot_be_stored_fails_alone(sql_store: SqlStateStore) -> None:
    runs = await claimed(sql_store, 4)
    approval_id = new_uuid7()
    (first, e1), (second, e2), (third, e3), (fourth, e4) = runs
    # The same question twice breaks the whole statement, not only its condition.
    poison = transition(second, e2, 2, asks(approval_id), asks(approval_id))
    _, blob = in_blob(model_says("kept"))
    given = await sql_store.commit(
        transition(first, e1, 2), poison, transition(third, e3, 2, blobs=[blob]), transition(fourth, e4, 2)
    )
    assert [given[0], given[2], given[3]] == [2, 2, 2]
    assert isinstance(given[1], HoldfastError)
    assert [event.seq for event in await sql_store.events(second)] == [1]
    assert await sql_store.blob(blob.hash) == blob.data


async def test_text_that_a_database_cannot_store_fails_alone(sql_store: SqlStateStore) -> None:
    good, bad, other = await sql_store.commit(new_run(), new_run(user_id="\x00"), new_run())
    assert isinstance(good, run_pb2.Run) and isinstance(other, run_pb2.Run)
    # SQLite takes it; PostgreSQL has no such text.
    assert isinstance(bad, HoldfastError) or sql_store.db.dialect == "sqlite"


async def test_operations_of_one_run_keep_their_order_across_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_BATCH", 3)
    async with migrated(sqlite(tmp_path)) as db, opened(db) as store:
        runs = await claimed(store, 5)
        operations = [transition(run_id, epoch, seq) for seq in range(2, 12) for run_id, epoch in runs]
        assert await store.commit(*operations) == [operation.seq for operation in operations]


async def test_operation_is_answered_once(tmp_path: Path) -> None:
    async with migrated(sqlite(tmp_path)) as db, opened(db) as store:
        runs = await claimed(store, 20)
        answers: list[journal_pb2.OperationResult] = []
        all_answered = asyncio.Event()

        def answered(result: journal_pb2.OperationResult) -> None:
            answers.append(result)
            if len(answers) == 20:
                all_answered.set()

        for number, (run_id, epoch) in enumerate(runs):
            operation = journal_pb2.Operation(id=number, transition=transition(run_id, epoch, 2))
            store.commits.submit(operation, answered)
        async with asyncio.timeout(20):
            await all_answered.wait()
        assert sorted(answer.id for answer in answers) == list(range(20))
        assert {answer.WhichOneof("kind") for answer in answers} == {"committed"}


# ----------------------------------------------------------------------------------------------------- sealed payloads


@asynccontextmanager
async def sealing(folder: Path, keys: MemoryKeys, clock: Clock | None = None) -> AsyncIterator[SqlStateStore]:
    async with migrated(sqlite(folder)):
        pass
    seals = Seals(keys, is_on=True)
    async with (
        Database(sqlite(folder), schema="state", synchronous="NORMAL", seals=seals) as db,
        opened(db, clock) as store,
    ):
        yield store


async def test_operations_wait_for_their_key_in_their_order_and_delay_nobody(tmp_path: Path) -> None:
    keys = SlowKeys()
    async with sealing(tmp_path, keys) as store:
        slow, quick = new_run(), new_run()
        keys.slow = slow.workspace_id
        quick.workspace_id = new_uuid7()
        first = asyncio.create_task(store.commit(slow))
        await keys.asked_for_slow.wait()
        again = asyncio.create_task(store.commit(new_run(workspace_id=slow.workspace_id)))
        (answer,) = await store.commit(quick)
        assert not isinstance(answer, HoldfastError)
        assert not (first.done() or again.done())
        keys.go_on.set()
        for (answer,) in (await first, await again):
            assert not isinstance(answer, HoldfastError)
        assert keys.brought == 2, "one key for each workspace"


async def test_what_was_sealed_and_cannot_have_a_key_any_more_is_refused(tmp_path: Path) -> None:
    keys = MemoryKeys()
    run = new_run()
    await keys.current(run.workspace_id)
    keys.trouble = NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
    async with sealing(tmp_path, keys) as store:
        (answer,) = await store.commit(run)
        assert reason_of(answer) == Reason.WORKSPACE_NOT_FOUND
        keys.trouble = None
        (answer,) = await store.commit(new_run())
        assert not isinstance(answer, HoldfastError)


async def test_keys_that_are_away_are_waited_for_as_long_as_the_storage(tmp_path: Path) -> None:
    keys = MemoryKeys()
    keys.trouble = Unavailable("auth is away", reason=Reason.AUTH_UNAVAILABLE)
    clock = FakeClock()
    async with sealing(tmp_path, keys, clock) as store:
        waiting = asyncio.create_task(store.commit(new_run()))
        while not waiting.done():
            await clock.advance(1)
            await asyncio.sleep(0)
        (answer,) = await waiting
        assert reason_of(answer) == Reason.AUTH_UNAVAILABLE
        assert clock.monotonic() >= group_commit.PATIENCE_SECONDS


async def test_a_key_that_was_dropped_meanwhile_is_brought_again(postgres_state: str) -> None:
    keys = MemoryKeys()
    seals = Seals(keys, is_on=True)
    async with (
        Database(postgres_state, schema="state", synchronous="NORMAL", seals=seals) as db,
        opened(db) as store,
    ):
        await db.write(empty)
        (run_id, epoch), *_ = await claimed(store, 1)
        seals.is_ready = lambda workspace_id: True  # type: ignore[method-assign]
        for _ in range(2):
            await seals.refresh()
        (answer,) = await store.commit(transition(run_id, epoch, 2, starts(1)))
        assert answer == 2


@pytest.mark.promise("P11")
async def test_runs_in_flight_go_on_while_their_workspace_is_sealed_and_unsealed(either_url: str) -> None:
    keys = MemoryKeys()
    seals = Seals(keys)
    async with (
        Database(either_url, schema="state", synchronous="NORMAL", seals=seals) as db,
        opened(db) as store,
    ):
        await upgrade(db, MIGRATIONS)
        await db.write(empty)
        chosen, beside = await claimed(store, 2)
        other = new_uuid7()
        for seq, choice in enumerate((False, True, False, True), start=2):
            keys.chosen[WORKSPACE] = choice
            await seals.refresh_choices()
            # Of the other workspace in the same batch.
            created = asyncio.create_task(store.commit(new_run(workspace_id=other)))
            _, blob = in_blob(model_says(f"{seq}"))
            sent = [transition(*chosen, seq), transition(*beside, seq, blobs=[blob])]
            assert await store.commit(*sent) == [seq, seq]
            assert await store.blob(blob.hash) == blob.data
            await created
        stored = await db.read(_stored_bodies, chosen[0])
        assert [is_sealed(body) for body in stored] == [False, False, True, False, True]
        assert [event.seq for event in await store.events(chosen[0])] == [1, 2, 3, 4, 5]
        entries, _, _ = await db.read(read_feed, db, b"", 100)
        assert {entry.event.seq: entry.is_sealed for entry in entries if entry.event.run_id == chosen[0]} == {
            1: False,
            2: False,
            3: True,
            4: False,
            5: True,
        }
        assert not any(entry.is_sealed for entry in entries if entry.workspace_id == other)


async def test_events_of_a_kilobyte_are_stored_compressed_and_read_as_they_were(either_url: str) -> None:
    words = "what the customer was told about invoice {}, ".format
    async with Database(either_url, schema="state", synchronous="NORMAL") as db, opened(db) as store:
        await upgrade(db, MIGRATIONS)
        await db.write(empty)
        [(run_id, epoch)] = await claimed(store, 1)
        said = [finished(step, "".join(words(n) for n in range(20 * step))) for step in (1, 2, 3)]
        for seq, change in enumerate(said, start=2):
            assert await store.commit(transition(run_id, epoch, seq, change)) == [seq]
            assert await store.commit(transition(run_id, epoch, seq, change)) == [seq], "sent again, it is the same"
        _, *sizes = map(len, await db.read(_stored_bodies, run_id))
        # The last is long enough for PostgreSQL to compress it.
        assert [size < change.ByteSize() / 2 for size, change in zip(sizes, said, strict=True)] == [True, True, False]
        written = [list(event.changes) for event in await store.events(run_id)][1:]
        entries, _, _ = await db.read(read_feed, db, b"", 100)
        journals = await db.read_once(short_journals, [run_id], 1_000_000)
        expected = [[change] for change in said]
        assert written == expected
        assert [list(entry.event.changes) for entry in entries if entry.event.run_id == run_id][1:] == expected
        assert [list(event.changes) for event in journals[run_id]][1:] == expected


def _stored_bodies(connection: sa.Connection, run_id: str) -> list[bytes]:
    j = tables.journal.c
    stored = sa.select(sa.type_coerce(j.body, sa.LargeBinary)).where(j.run_id == run_id).order_by(j.seq)
    return [bytes(body) for body in connection.execute(stored).scalars()]


class SlowKeys(MemoryKeys):
    """Makes one workspace wait."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = ""
        self.asked_for_slow = asyncio.Event()
        self.go_on = asyncio.Event()
        self.brought = 0

    async def current(self, workspace_id: str) -> tuple[bytes, bytes]:
        if workspace_id == self.slow:
            self.asked_for_slow.set()
            await self.go_on.wait()
        self.brought += 1
        return await super().current(workspace_id)
