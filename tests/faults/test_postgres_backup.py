"""The recipes of docs/backup.md, run for real: recovery to a point in time, and copies of a SQLite file in use."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest

from holdfast.errors import InvalidArgument
from tests.fakes.cluster import Cluster, cluster_folder
from tests.repository.tree import ROOT
from tests.state.following import WORKSPACE, create, follow, refusal
from tests.state.served import replica

pytestmark = pytest.mark.promise("P1")


async def test_recovery_to_the_moment_before_a_mistake_brings_all_that_was_acknowledged_then() -> None:
    with cluster_folder() as folder:
        archive = folder / "archive"
        archive.mkdir()
        settings = {
            "archive_mode": "on",
            "archive_command": f"'test ! -f {archive}/%f && cp %p {archive}/%f'",
        }
        with Cluster(folder / "primary", settings=settings) as primary:
            primary.own(archive)
            restored = Cluster(folder / "restored")
            async with replica(primary.create_database("state")) as state:
                before = await create(state.executor, 5)
                # The base backup, while everything runs.
                await asyncio.to_thread(primary.base_backup, restored.folder, "-X", "stream")
                before += await create(state.executor, 5)
                cursor = (await follow(state.trace))[1]
                ((moment,),) = primary.execute("SELECT clock_timestamp()::text")
                lost = await create(state.executor, 3)
                told, ahead = await follow(state.trace, cursor)
                assert told == lost
                primary.execute("TRUNCATE state.journal, state.runs", database="state")
            # What the last file of the WAL has is archived when it is full, or by this.
            primary.execute("SELECT pg_switch_wal()")
            await until_archived(primary)
        try:
            restored.configure(
                restore_command=f"'cp {archive}/%f %p'",
                recovery_target_time=f"'{moment}'",
                recovery_target_action="'promote'",
            )
            (restored.folder / "recovery.signal").touch()
            restored.own(restored.folder / "recovery.signal")
            await asyncio.to_thread(restored.start)
            await until_writable(restored)
            async with replica(restored.url("state")) as state:
                for run_id in before:
                    assert len(await state.executor.events(WORKSPACE, run_id)) == 1
                with pytest.raises(Exception, match="no such run"):
                    await state.executor.run(WORKSPACE, lost[0])
                made = await create(state.executor, 10)
                # A follower that had read to the moment goes on; one that had seen more reads again.
                assert (await follow(state.trace, cursor))[0] == made
                assert isinstance(await refusal(state.trace, ahead), InvalidArgument)
                assert (await follow(state.trace))[0] == before + made
        finally:
            await asyncio.to_thread(restored.remove)


async def until_archived(cluster: Cluster) -> None:
    """Returns when no file of the WAL waits to be archived."""
    async with asyncio.timeout(30):
        while not cluster.execute(
            "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver"
        )[0][0]:
            await asyncio.sleep(0.05)


async def until_writable(cluster: Cluster) -> None:
    """Returns when the recovery is over."""
    async with asyncio.timeout(30):
        while cluster.execute("SELECT pg_is_in_recovery()")[0][0]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["backup", "vacuum"])
async def test_a_copy_of_a_sqlite_file_in_use_has_all_that_was_acknowledged(tmp_path: Path, how: str) -> None:
    (tmp_path / "live").mkdir()
    async with replica(f"sqlite:///{tmp_path}/live/state.db") as state:
        stop = asyncio.Event()
        made: list[str] = []

        async def create_on() -> None:
            while not stop.is_set():
                made.extend(await create(state.executor, 1))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(create_on())
            while len(made) < 20:
                await asyncio.sleep(0.01)
            acknowledged = list(made)
            await asyncio.to_thread(copy, tmp_path / "live" / "state.db", tmp_path / "state.db", how)
            goal = len(made) + 5
            while len(made) < goal:
                await asyncio.sleep(0.01)
            stop.set()
        everything, cursor = await follow(state.trace)
        assert everything == made
    async with replica(f"sqlite:///{tmp_path}/state.db") as state:
        told, _ = await follow(state.trace)
        assert told == made[: len(told)]
        assert set(acknowledged) <= set(told)
        again = await create(state.executor, 50)
        assert isinstance(await refusal(state.trace, cursor), InvalidArgument)
        assert (await follow(state.trace))[0] == told + again


def copy(live: Path, target: Path, how: str) -> None:
    """As the document says: the online backup, or a compacted copy."""
    source = sqlite3.connect(live)
    try:
        if how == "vacuum":
            source.execute("VACUUM INTO ?", (str(target),))
        else:
            with sqlite3.connect(target) as made:
                source.backup(made)
            made.close()
    finally:
        source.close()


def test_the_document_has_the_settings_that_are_tested_here() -> None:
    document = (ROOT / "docs" / "backup.md").read_text()
    for setting in (
        "archive_mode",
        "archive_command",
        "restore_command",
        "recovery_target_time",
        "recovery_target_action",
    ):
        assert re.search(rf"^{setting} = ", document, re.MULTILINE), setting
