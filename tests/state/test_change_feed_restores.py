"""The change feed of a restored database: it goes on, and followers that were ahead of it are told to read again."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from holdfast.errors import InvalidArgument, from_rpc_error
from services.shared.database import Database
from services.state.change_feed import read_frame
from services.state.feed_origin import settle_feed
from tests.fakes.cluster import Cluster, cluster_folder, running_cluster
from tests.state.following import create, follow, refusal
from tests.state.served import replica

pytestmark = pytest.mark.promise("P9")


def burn_ids(cluster: Cluster, count: int) -> None:
    """Makes the cluster's transaction ids grow, as years of use do."""
    cluster.execute(
        f"DO $$ BEGIN FOR n IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$", database="state"
    )


def dump_and_restore(source: Cluster, target: Cluster, file: Path, *, name: str = "state") -> None:
    """Brings the database of one cluster to another."""
    source.run("pg_dump", "-Fc", "-f", str(file), source.url("state"))
    target.create_database(name)
    target.run("pg_restore", "-d", target.url(name), str(file))


async def test_a_dump_in_a_new_cluster_goes_on_at_once_for_followers_that_were_not_ahead_of_it() -> None:
    with cluster_folder() as folder, Cluster(folder / "old") as old, Cluster(folder / "new") as new:
        async with replica(old.create_database("state")) as state:
            burn_ids(old, 3_000)
            first = await create(state.executor, 5)
            told, behind = await follow(state.trace)
            first += await create(state.executor, 3)
            dump_and_restore(old, new, folder / "dump")
            first_told, at_the_dump = await follow(state.trace, behind)
            assert told + first_told == first
            lost = await create(state.executor, 2)
            lost_told, ahead = await follow(state.trace, at_the_dump)
            assert lost_told == lost
        async with AsyncExitStack() as stack:
            # Two at once: one of them makes the order go on, the other one finds it so.
            states = await asyncio.gather(*(stack.enter_async_context(replica(new.url("state"))) for _ in range(2)))
            assert (await follow(states[0].trace))[0] == first
            assert isinstance(await refusal(states[0].trace, ahead), InvalidArgument)
            made = await create(states[0].executor, 4) + await create(states[1].executor, 4)
            for state, cursor, rest in ((states[0], behind, first[5:]), (states[1], at_the_dump, [])):
                assert (await follow(state.trace, cursor))[0] == rest + made
            # Also when the new events have passed the place of the cursor that is of no use.
            burn_ids(new, 4_000)
            made += await create(states[0].executor, 1)
            assert isinstance(await refusal(states[1].trace, ahead), InvalidArgument)
            assert (await follow(states[1].trace))[0] == first + made
        # A second time, and into a cluster whose ids are higher than the dump's.
        burn_ids(old, 20_000)
        await asyncio.to_thread(dump_and_restore, new, old, folder / "again", name="again")
        async with replica(old.url("again")) as state:
            made += await create(state.executor, 3)
            assert (await follow(state.trace))[0] == first + made
        async with replica(old.url("again")) as state:
            made += await create(state.executor, 3)
            assert (await follow(state.trace))[0] == first + made


async def test_rows_restored_into_a_schema_that_is_there_already_are_followed_too() -> None:
    with cluster_folder() as folder, Cluster(folder / "old") as old, Cluster(folder / "new") as new:
        async with replica(old.create_database("state")) as state:
            burn_ids(old, 3_000)
            first = await create(state.executor, 5)
        async with replica(new.create_database("state")):
            pass
        old.run("pg_dump", "-Fc", "--data-only", "--exclude-table=state.alembic_version", "--exclude-table=state.feed",
                "-f", str(folder / "dump"), old.url("state"))  # fmt: skip
        new.run("pg_restore", "-d", new.url("state"), str(folder / "dump"))
        async with replica(new.url("state")) as state:
            made = await create(state.executor, 3)
            assert (await follow(state.trace))[0] == first + made


async def test_an_older_base_backup_is_noticed_by_a_replica_that_has_lived_through_the_change() -> None:
    with running_cluster() as cluster:
        async with replica(cluster.create_database("state")) as state:
            first = await create(state.executor, 5)
            cursor = (await follow(state.trace))[1]
            backup = Cluster(cluster.folder.parent / "backup")
            cluster.base_backup(backup.folder)
            await create(state.executor, 5)
            call = state.trace.follow(cursor)
            seen = 0
            async for frame in call:
                seen += len(frame.entries)
                if seen == 5:
                    break
            ahead = frame.cursor
            await asyncio.to_thread(cluster.stop)
            backup.port = cluster.port
            try:
                await asyncio.to_thread(backup.start)
                # The stream was at an event that is not there any more.
                with pytest.raises(Exception) as ended:
                    async with asyncio.timeout(20):
                        async for _ in call:
                            pass
                error = from_rpc_error(ended.value)  # type: ignore[arg-type]
                if not isinstance(error, InvalidArgument):
                    assert isinstance(await refusal(state.trace, ahead), InvalidArgument)
                made = await create(state.executor, 20)
                assert isinstance(await refusal(state.trace, ahead), InvalidArgument)
                assert (await follow(state.trace, cursor))[0] == made
                assert (await follow(state.trace))[0] == first + made
            finally:
                await asyncio.to_thread(backup.remove)


async def test_a_file_of_sqlite_that_was_put_back_is_noticed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    async with replica(url) as state:
        first = await create(state.executor, 5)
        cursor = (await follow(state.trace))[1]
        # While it runs, as the documentation says.
        with sqlite3.connect(tmp_path / "state.db") as source, sqlite3.connect(tmp_path / "backup.db") as target:
            source.backup(target)
        await create(state.executor, 5)
        ahead = (await follow(state.trace))[1]
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "state.db")
    async with replica(url) as state:
        made = await create(state.executor, 20)
        assert isinstance(await refusal(state.trace, ahead), InvalidArgument)
        assert (await follow(state.trace, cursor))[0] == made
        assert (await follow(state.trace))[0] == first + made


async def test_settling_changes_nothing_in_a_database_that_is_at_home(postgres_database: str) -> None:
    async with replica(postgres_database) as state:
        await create(state.executor, 2)
        cursor = (await follow(state.trace))[1]
        async with Database(postgres_database, schema="state") as db:
            for _ in range(2):
                await settle_feed(db)
            frame = await db.read_once(read_frame, db, cursor, 10)
        assert (list(frame.entries), frame.cursor) == ([], cursor)
