"""What retention removes, and what it never touches; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.api.common.v1 import content_pb2, workspace_pb2
from holdfast.errors import Conflict, InvalidArgument
from holdfast.ids import new_uuid7
from services.shared.clock import SystemClock
from services.state import change_feed, housekeeping_settings, journal, tables
from services.state import housekeeping_store as store_
from services.state.housekeeping import Housekeeping, Pace
from services.state.invariants import Inspection
from services.state.new_runs import run_values
from tests.state.old_runs import (
    DAY,
    ago,
    count,
    ended_run,
    grow_old,
    id_at,
    left_of,
    policy,
    run_ids,
    settle,
)
from tests.state.support import (
    SUCCEEDED,
    Store,
    asks,
    attempt_failed,
    becomes,
    finished,
    message_blob,
    new_call,
    new_run,
    opened,
    sqlite_url,
    started,
)
from tests.state.test_processes import process


class Unhurried(SystemClock):
    """Does not rest between batches."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def housekeeping(store: Store) -> Housekeeping:
    return Housekeeping(store.db, Unhurried(), lambda: 0)


async def keep_house(store: Store) -> store_.Removed:
    return await housekeeping(store).keep_house()


async def violations(store: Store) -> dict[str, list[str]]:
    """The invariants of everything that is stored and does not hold."""
    inspection = Inspection(store.db, max_journals=None)
    async for _ in inspection.run():
        pass
    return {name: found.examples for name, found in inspection.findings.of.items() if found.violations}


# ------------------------------------------------------------------------------------------------------- what goes


async def test_an_old_run_goes_with_everything_that_belongs_to_it(store: Store) -> None:
    moment = ago(40)
    run = await store.claimed(run_id=id_at(moment), new_session_id=id_at(moment))
    message, blob = message_blob("a long answer")
    await store.advance(run, started(1), asks(1, new_uuid7()))
    await store.advance(run, started(2), calls=[new_call(2)])
    await store.advance(run, attempt_failed(2), finished(3, message=message), blobs=[blob])
    await store.advance(run, becomes(SUCCEEDED))
    await grow_old(store, run, moment)
    newer = await ended_run(store, 1)
    await settle(store, ended_runs_kept=30 * DAY)

    removed = await keep_house(store)

    assert (removed.runs, removed.blobs) == (1, 1)
    assert await left_of(store, run) == {}
    assert await count(store, tables.blobs) == 0
    assert await run_ids(store) == {newer.run_id}
    # The session is a matter of its own.
    assert await count(store, tables.sessions) == 2
    assert await violations(store) == {}


async def test_a_session_without_runs_goes_when_it_has_been_idle_for_its_time(store: Store) -> None:
    young, old = await ended_run(store, 40), await ended_run(store, 100)
    await settle(store, ended_runs_kept=30 * DAY, idle_sessions_kept=60 * DAY)
    await keep_house(store)
    await keep_house(store)
    left = await store.db.read(lambda connection: list(connection.execute(sa.select(tables.sessions.c.session_id))))
    assert [row.session_id for row in left] == [young.session_id]
    assert await left_of(store, young, old) in ({}, {"journal": old.last_seq, "removed_runs": 1})


async def test_nothing_goes_of_a_workspace_that_keeps_everything(store: Store) -> None:
    run = await ended_run(store, 4_000)
    await settle(store, "weight", weight=3)
    await settle(store, workspace=new_uuid7(), ended_runs_kept=DAY)
    assert (await keep_house(store)).runs == 0
    assert (await store.row(run)).last_seq == run.last_seq
    assert len(await store.events(run)) == run.last_seq


async def test_a_conversation_stays_whole_while_a_run_of_it_is_young_or_unfinished(store: Store) -> None:
    first = await ended_run(store, 90)
    await ended_run(store, 2, session=first)
    begun = await ended_run(store, 90)
    live = await store.claimed(session_id=begun.session_id)
    waiting = await ended_run(store, 90)
    queued = await store.create(session_id=waiting.session_id)
    await settle(store, ended_runs_kept=30 * DAY, idle_sessions_kept=DAY)

    assert (await keep_house(store)).runs == 0

    assert {first.run_id, begun.run_id, live.run_id, waiting.run_id, queued.run_id} <= await run_ids(store)


async def test_of_a_session_the_oldest_runs_go_first(store: Store) -> None:
    first = await ended_run(store, 90)
    others = [await ended_run(store, 80 - n, session=first) for n in range(3)]
    removed = await store.db.write(
        store_.remove_runs, store.db, store.workspace, [first.session_id], 2, older_than=30 * DAY
    )
    assert (removed.runs, removed.is_cut_short) == (2, True)
    assert await run_ids(store) == {others[1].run_id, others[2].run_id}
    assert (await store.row(others[1])).previous_run_id is None
    # Nobody is between the two parts: what is read is what is left, from the beginning of a run.
    after = await store.create(session_id=first.session_id)
    assert (await store.row(after)).previous_run_id == others[2].run_id
    assert await violations(store) == {}


async def test_a_session_goes_on_after_its_runs_are_gone(store: Store) -> None:
    first = await ended_run(store, 90)
    await ended_run(store, 1)
    await settle(store, ended_runs_kept=30 * DAY)
    await keep_house(store)
    again = await store.claimed(session_id=first.session_id)
    row = await store.row(again)
    assert (row.previous_run_id, row.ordinal, row.blocked) == (None, 2, False)
    assert await violations(store) == {}


async def test_the_newest_runs_of_an_agent_stay_whatever_their_age(store: Store) -> None:
    def apply(connection: sa.Connection) -> None:
        for name in ("support", "rare"):
            connection.execute(
                sa.insert(tables.agents).values(
                    workspace_id=store.workspace, name=name, description="", created_at=ago(99), updated_at=ago(99)
                )
            )

    await store.db.write(apply)
    runs = [await ended_run(store, 90 - n) for n in range(4)]
    rare = await ended_run(store, 95, agent="rare")
    await settle(store, ended_runs_kept=30 * DAY, keep_latest_runs=2)
    assert (await keep_house(store)).runs == 2
    assert await run_ids(store) == {runs[2].run_id, runs[3].run_id, rare.run_id}


async def test_what_was_asked_long_ago_is_forgotten(store: Store) -> None:
    run = await ended_run(store, 3, request_id="old")
    calling = await store.claimed()
    await store.advance(calling, started(1), calls=[new_call(1)])
    await store.advance(calling, attempt_failed(1), becomes(SUCCEEDED))
    await store.create(request_id="new")

    def turn_back(connection: sa.Connection) -> None:
        q = tables.requests.c
        connection.execute(sa.update(tables.requests).where(q.request_id == "old").values(created_at=ago(8)))

    await store.db.write(turn_back)
    await grow_old(store, calling, ago(2))
    await housekeeping(store).forget()
    assert await count(store, tables.requests) == 1
    assert await count(store, tables.calls) == 0
    assert (await store.row(run)).last_seq == run.last_seq


# ------------------------------------------------------------------------------------------------------- events


async def test_events_go_a_few_at_a_time_and_the_run_is_gone_from_the_first_moment(store: Store) -> None:
    runs = [await ended_run(store, 90, steps=5), await ended_run(store, 90, steps=1)]
    await ended_run(store, 1)
    sessions = [run.session_id for run in runs]
    await store.db.write(store_.remove_runs, store.db, store.workspace, sessions, 10, older_than=DAY)
    total = sum(run.last_seq for run in runs)
    assert (await left_of(store, *runs)) == {"journal": total, "removed_runs": 2}
    assert await violations(store) == {}
    sizes, is_more = [], True
    while is_more:
        deleted, is_more = await store.db.write(store_.delete_events, store.db, 3)
        sizes.append(deleted)
        left = await left_of(store, *runs)
        assert left.get("journal", 0) == total - sum(sizes)
        assert await violations(store) == {}
    assert max(sizes) == 3 and sum(sizes) == total
    assert await left_of(store, *runs) == {}


async def test_the_feeds_newest_event_waits_for_a_newer_one(store: Store) -> None:
    await ended_run(store, 90)
    last = await ended_run(store, 90)
    _, cursor, _ = await store.db.read(change_feed.read_feed, store.db, b"", 1_000)
    await settle(store, ended_runs_kept=30 * DAY)

    assert (await keep_house(store)).runs == 2

    # Whoever follows is not told that its place is of another feed, and misses nothing that comes.
    await store.db.read(change_feed.check_cursor, store.db, cursor)
    assert await left_of(store, last) == {"journal": last.last_seq, "removed_runs": 1}
    fresh = await store.create()
    entries, _, _ = await store.db.read(change_feed.read_feed, store.db, cursor, 1_000)
    assert [(entry.event.run_id, entry.event.seq) for entry in entries] == [(fresh.run_id, 1)]
    await keep_house(store)
    assert await left_of(store, last) == {}
    await store.db.read(change_feed.check_cursor, store.db, cursor)


# ------------------------------------------------------------------------------------------------------- bodies


async def test_a_body_stays_as_long_as_one_run_refers_to_it(store: Store) -> None:
    old, young = await ended_run(store, 90, body="shared"), await ended_run(store, 1, body="shared")
    await ended_run(store, 90, body="its own")
    await settle(store, ended_runs_kept=30 * DAY)
    removed = await keep_house(store)
    assert (removed.runs, removed.blobs) == (2, 1)
    assert await count(store, tables.blobs) == 1
    events = await store.events(young)
    refs = [change.step_finished.message.blob.hash for event in events for change in event.changes]
    (wanted,) = [ref for ref in refs if ref]
    assert await store.db.read(journal.read_blobs, store.workspace, [wanted])
    assert await left_of(store, old) == {}


async def test_a_body_whose_transaction_came_to_nothing_is_swept(store: Store) -> None:
    await ended_run(store, 1, body="kept")

    def leave(connection: sa.Connection) -> None:
        connection.execute(
            sa.insert(tables.blobs).values(
                workspace_id=store.workspace, hash=b"x" * 32, data=b"orphan", created_at=ago(1)
            )
        )

    await store.db.write(leave)
    assert await housekeeping(store).sweep_bodies() == 1
    assert await housekeeping(store).sweep_bodies() == 0
    assert await count(store, tables.blobs) == 1


def _body(words: str) -> content_pb2.Blob:
    data = words.encode()
    return content_pb2.Blob(hash=hashlib.sha256(data).digest(), data=data)


@asynccontextmanager
async def two_connections(url: str) -> AsyncIterator[tuple[sa.Connection, sa.Connection, sa.Engine]]:
    """Two sessions of PostgreSQL beside each other, and an engine to look on."""
    engine = sa.create_engine(
        sa.engine.make_url(url).set(drivername="postgresql+psycopg"),
        connect_args={"options": "-c search_path=state"},
    )
    try:
        with engine.connect() as one, engine.connect() as other:
            yield one, other, engine
    finally:
        engine.dispose()


async def until_blocked(engine: sa.Engine) -> None:
    """Returns when one of the database's sessions waits for a lock of another."""

    def blocked() -> int:
        with engine.connect() as connection:
            return int(
                connection.execute(
                    sa.text(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND wait_event_type = 'Lock'"
                    )
                ).scalar_one()
            )

    async with asyncio.timeout(10):
        while not await asyncio.to_thread(blocked):
            await asyncio.sleep(0.01)


async def test_a_body_that_a_transaction_has_just_referred_to_is_not_swept(postgres_database: str) -> None:
    body, workspace = _body("shared"), new_uuid7()
    async with opened(postgres_database), two_connections(postgres_database) as (writing, sweeping, _):
        # The body is there, and nobody refers to it: what a removal leaves for a moment.
        journal.put_blobs(writing, workspace, first := new_uuid7(), [body], ago(1))
        writing.execute(sa.delete(tables.blob_references).where(tables.blob_references.c.run_id == first))
        writing.commit()

        journal.put_blobs(writing, workspace, new_uuid7(), [body], ago(0))
        # Its reference cannot be seen yet; its lock can.
        assert store_.delete_unreferenced(sweeping, workspace, [body.hash]) == 0
        sweeping.commit()
        writing.commit()
        assert store_.delete_unreferenced(sweeping, workspace, [body.hash]) == 0
        assert journal.read_blobs(sweeping, workspace, [body.hash])


async def test_a_body_that_is_swept_meanwhile_is_stored_again(postgres_database: str) -> None:
    body, workspace = _body("shared"), new_uuid7()
    async with opened(postgres_database), two_connections(postgres_database) as (writing, sweeping, engine):
        journal.put_blobs(sweeping, workspace, first := new_uuid7(), [body], ago(1))
        sweeping.execute(sa.delete(tables.blob_references).where(tables.blob_references.c.run_id == first))
        sweeping.commit()

        assert store_.delete_unreferenced(sweeping, workspace, [body.hash]) == 1
        async with asyncio.TaskGroup() as tasks:
            storing = tasks.create_task(
                asyncio.to_thread(journal.put_blobs, writing, workspace, new_uuid7(), [body], ago(0))
            )
            await until_blocked(engine)
            assert not storing.done()
            sweeping.commit()
        writing.commit()
        assert journal.read_blobs(sweeping, workspace, [body.hash])
        assert store_.delete_unreferenced(sweeping, workspace, [body.hash]) == 0


# ------------------------------------------------------------------------------------------------------- beside others


async def test_a_session_that_somebody_is_adding_a_run_to_is_passed_over(postgres_database: str) -> None:
    async with opened(postgres_database) as store, two_connections(postgres_database) as (adding, removing, _):
        run = await ended_run(store, 90)
        s = tables.sessions.c
        adding.execute(sa.select(s.session_id).where(s.session_id == run.session_id).with_for_update())
        removed = store_.remove_runs(removing, store.db, store.workspace, [run.session_id], 10, older_than=DAY)
        removing.commit()
        assert removed.runs == 0
        adding.rollback()
        assert await run_ids(store) == {run.run_id}


async def test_a_run_that_was_added_a_moment_ago_is_seen(postgres_database: str) -> None:
    """The look that found the session idle is older than the run: the second look, under the lock, decides."""
    async with opened(postgres_database) as store:
        run = await ended_run(store, 90)
        page = await store.db.read(store_.look_at_old_sessions, store.db, policy(store), {}, "", 100)
        assert list(page.with_old_runs) == [run.session_id]
        await store.create(session_id=run.session_id)
        removed = await store.db.write(
            store_.remove_runs, store.db, store.workspace, page.with_old_runs, 10, older_than=DAY
        )
        assert removed.runs == 0


async def test_one_replica_keeps_house_at_a_time(postgres_database: str) -> None:
    async with opened(postgres_database) as store, two_connections(postgres_database) as (other, _, _):
        await ended_run(store, 90)
        await settle(store, ended_runs_kept=30 * DAY)
        assert store_.is_alone(other, store.db)
        assert (await keep_house(store)).runs == 0
        other.rollback()
        assert (await keep_house(store)).runs == 1


async def test_two_replicas_at_once_remove_everything_once(postgres_database: str) -> None:
    async with opened(postgres_database) as store:
        runs = [await ended_run(store, 90 + n) for n in range(20)]
        await ended_run(store, 0)
        await settle(store, ended_runs_kept=30 * DAY)
        total = 0
        while len(await run_ids(store)) > 1:
            passes = await asyncio.gather(keep_house(store), keep_house(store))
            total += sum(removed.runs for removed in passes)
        await keep_house(store)
        assert total == len(runs)
        assert await left_of(store, *runs) == {}
        assert await violations(store) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "point"),
    [("sqlite", "runs_removed"), ("postgresql", "events_deleted"), ("sqlite", "sessions_removed")],
    indirect=["database_url"],
)
async def test_what_a_killed_process_has_begun_is_finished_by_the_next(database_url: str, point: str) -> None:
    async with opened(database_url) as store:
        runs = [await ended_run(store, 90 + n, body=f"body {n}") for n in range(3)]
        await ended_run(store, 0)
        await settle(store, ended_runs_kept=30 * DAY, idle_sessions_kept=DAY)
        workspace = store.workspace
    armed = {"HOLDFAST_CRASH_POINT": f"state.housekeeping.{point}", "HOLDFAST_HOUSEKEEPING_INTERVAL": "100ms"}
    async with process(database_url, **armed) as (child, _), asyncio.timeout(30):
        # Read, or a full pipe would stop it before it dies.
        assert child.stderr is not None
        await child.stderr.read()
        assert await child.wait() == 137
    async with opened(database_url) as store:
        store.workspace = workspace
        assert await violations(store) == {}
        await keep_house(store)
        await keep_house(store)
        assert await left_of(store, *runs) == {}
        assert await count(store, tables.blobs) == 0
        assert await count(store, tables.sessions) == 1
        assert await violations(store) == {}


# ------------------------------------------------------------------------------------------------------- the model


@given(
    sessions=st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["a", "b"])), min_size=0, max_size=4), max_size=6
    ),
    runs_kept=st.none() | st.integers(1, 60),
    sessions_kept=st.none() | st.integers(1, 60),
    keep_latest=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20)
def test_retention_removes_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory,
    sessions: list[list[tuple[int, str]]],
    runs_kept: int | None,
    sessions_kept: int | None,
    keep_latest: int,
    seed: int,
) -> None:
    """Sessions of runs that ended so many days and a half ago, 0 for one that has not."""
    folder = tmp_path_factory.mktemp("model")
    asyncio.run(_against_the_model(folder, sessions, runs_kept, sessions_kept, keep_latest, random.Random(seed)))


async def _against_the_model(
    folder: Path,
    sessions: list[list[tuple[int, str]]],
    runs_kept: int | None,
    sessions_kept: int | None,
    keep_latest: int,
    chance: random.Random,
) -> None:
    async with opened(sqlite_url(folder)) as store:
        # Run id → (session, days, agent).
        made: dict[str, tuple[str, int, str]] = {}
        begun: dict[str, float] = {}

        def fill(connection: sa.Connection) -> None:
            for name in ("a", "b"):
                connection.execute(
                    sa.insert(tables.agents).values(
                        workspace_id=store.workspace, name=name, description="", created_at=ago(99), updated_at=ago(99)
                    )
                )
            for runs in sessions:
                session_id = id_at(ago(70.5))
                begun[session_id] = 70.5
                connection.execute(
                    sa.insert(tables.sessions).values(
                        workspace_id=store.workspace,
                        session_id=session_id,
                        user_id="",
                        run_count=len(runs),
                        created_at=ago(70.5),
                    )
                )
                for ordinal, (days, agent) in enumerate(runs, 1):
                    run_id = id_at(ago(days + 0.75))
                    made[run_id] = (session_id, days, agent)
                    new = new_run(store.workspace, run_id=run_id, session_id=session_id, agent=agent)
                    values = run_values(new, ago(days + 0.75), ordinal, None, False, False)
                    if days:
                        values.update(state=SUCCEEDED, ended_at=ago(days + 0.5))
                    connection.execute(sa.insert(tables.runs).values(values))
                    connection.execute(
                        sa.insert(tables.journal).values(
                            run_id=run_id, seq=1, workspace_id=store.workspace, epoch=0, at=ago(days), body=b""
                        )
                    )

        await store.db.write(fill)
        await settle(
            store,
            "ended_runs_kept",
            "idle_sessions_kept",
            "keep_latest_runs",
            ended_runs_kept=None if runs_kept is None else runs_kept * DAY,
            idle_sessions_kept=None if sessions_kept is None else sessions_kept * DAY,
            keep_latest_runs=keep_latest,
        )
        newest = {
            run_id
            for agent in ("a", "b")
            for run_id in sorted((r for r in made if made[r][2] == agent), reverse=True)[:keep_latest]
        }
        expected, idle = set(made), dict(begun)
        for session_id in begun:
            runs = {run_id: made[run_id] for run_id in made if made[run_id][0] == session_id}
            is_old = runs_kept is not None and all(days and days + 0.5 > runs_kept for _, days, _ in runs.values())
            if runs and is_old and not runs.keys() & newest:
                expected -= runs.keys()
                idle[session_id] = min(days for _, days, _ in runs.values()) + 0.5
        kept_sessions = {
            session_id
            for session_id in begun
            if any(made[run_id][0] == session_id for run_id in expected)
            or sessions_kept is None
            or idle[session_id] <= sessions_kept
        }

        keeper = Housekeeping(store.db, Unhurried(), lambda: 0)
        # However the batches fall.
        keeper._pace.size = chance.randint(1, 5)
        await keeper.keep_house()
        # Sessions that have just lost their runs are looked at by the next pass.
        await keeper.keep_house()

        assert await run_ids(store) == expected
        left = await store.db.read(lambda c: set(c.execute(sa.select(tables.sessions.c.session_id)).scalars()))
        assert left == kept_sessions


# ------------------------------------------------------------------------------------------------------- pace, settings


def test_a_slow_batch_makes_the_next_one_smaller_and_the_pause_longer() -> None:
    pace = Pace()
    assert pace.pause_after(0.01, waiting=0) == Pace.SHORTEST_PAUSE_SECONDS
    assert pace.size == 100
    assert pace.pause_after(0.5, waiting=0) == 0.5 * Pace.PAUSE_FACTOR
    assert pace.size == 50
    assert pace.pause_after(0.01, waiting=Pace.BUSY) == Pace.BUSY_PAUSE_SECONDS
    assert pace.size == 25
    for _ in range(10):
        pace.pause_after(60, waiting=0)
    assert pace.size == Pace.FEWEST
    assert pace.pause_after(60, waiting=0) == Pace.LONGEST_PAUSE_SECONDS
    for _ in range(10):
        pace.pause_after(0, waiting=0)
    assert pace.size == Pace.MOST


async def test_settings_are_defaults_until_they_are_set_and_change_field_by_field(store: Store) -> None:
    found = await store.db.read(housekeeping_settings.get_settings, store.workspace)
    assert (found.weight, found.max_running_runs, found.HasField("ended_runs_kept")) == (1, 0, False)
    await settle(store, ended_runs_kept=30 * DAY, keep_latest_runs=5)
    await settle(store, "keep_latest_runs")
    found = await store.db.read(housekeeping_settings.get_settings, store.workspace)
    assert (found.ended_runs_kept.ToTimedelta(), found.keep_latest_runs, found.weight) == (30 * DAY, 0, 1)
    await settle(store, "ended_runs_kept")
    found = await store.db.read(housekeeping_settings.get_settings, store.workspace)
    assert not found.HasField("ended_runs_kept")
    other = await store.db.read(housekeeping_settings.get_settings, new_uuid7())
    assert other.etag == "0"


async def test_settings_that_changed_since_are_not_overwritten(store: Store) -> None:
    async def set_latest(etag: str, value: int) -> str:
        stored = await store.db.write(
            housekeeping_settings.update_settings,
            store.db,
            store.workspace,
            workspace_pb2.WorkspaceSettings(keep_latest_runs=value),
            ["keep_latest_runs"],
            is_operator=False,
            etag=etag,
        )
        return stored.etag

    first = await set_latest("0", 1)
    with pytest.raises(Conflict):
        await set_latest("0", 2)
    second = await set_latest(first, 3)
    with pytest.raises(Conflict):
        await set_latest(first, 4)
    assert second not in (first, "0")


@pytest.mark.parametrize(
    ("paths", "values", "fields"),
    [
        ([], {}, ["update_mask"]),
        (["weight"], {"weight": 5}, ["settings.weight"]),
        (["max_running_runs", "etag"], {}, ["settings.max_running_runs", "update_mask"]),
        (["ended_runs_kept"], {"ended_runs_kept": timedelta(minutes=59)}, ["settings.ended_runs_kept"]),
        (["idle_sessions_kept"], {"idle_sessions_kept": timedelta(hours=1, milliseconds=1)}, ["settings.idle_sess"]),
        (["ended_runs_kept"], {"ended_runs_kept": timedelta(days=40_000)}, ["settings.ended_runs_kept"]),
        (["keep_latest_runs"], {"keep_latest_runs": -1}, ["settings.keep_latest_runs"]),
    ],
)
async def test_settings_that_cannot_be_are_refused_field_by_field(
    tmp_path: Path, paths: list[str], values: dict[str, object], fields: list[str]
) -> None:
    async with opened(sqlite_url(tmp_path)) as store:
        with pytest.raises(InvalidArgument) as refused:
            await store.db.write(
                housekeeping_settings.update_settings,
                store.db,
                store.workspace,
                workspace_pb2.WorkspaceSettings(**values),  # type: ignore[arg-type]
                paths,
                is_operator=False,
            )
    wrong = [violation.field for violation in refused.value.field_violations]
    assert len(wrong) == len(fields)
    assert all(name.startswith(start) for name, start in zip(wrong, fields, strict=True))


async def test_the_same_request_changes_settings_once(store: Store) -> None:
    async def ask(value: int, fingerprint: bytes = b"f") -> int:
        stored = await store.db.write(
            housekeeping_settings.update_settings,
            store.db,
            store.workspace,
            workspace_pb2.WorkspaceSettings(keep_latest_runs=value),
            ["keep_latest_runs"],
            is_operator=False,
            request_id="r1",
            fingerprint=fingerprint,
        )
        return stored.keep_latest_runs

    assert await ask(1) == 1
    await settle(store, keep_latest_runs=2)
    assert await ask(1) == 2
    with pytest.raises(InvalidArgument, match="request_id"):
        await ask(9, b"g")
