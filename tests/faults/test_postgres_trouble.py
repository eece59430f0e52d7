"""PostgreSQL in trouble under load: nothing acknowledged is lost, nothing is applied twice, state recovers alone."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from holdfast.errors import HoldfastError, Reason, Unavailable, from_rpc_error
from tests.fakes.cluster import Cluster, cluster_folder, running_cluster
from tests.fakes.proxy import losing_proxy
from tests.faults.load import WORKSPACE, Load, under_load
from tests.state.served import Replica, replica

pytestmark = pytest.mark.promise("P1")


@contextmanager
def counted_lines() -> Iterator[list[str]]:
    """The warnings and errors that the services log meanwhile, by event."""
    lines: list[str] = []

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and record.name.startswith("services"):
                lines.append(record.getMessage())

    handler = Counting()
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


async def health(state: Replica) -> str:
    """What the replica says of itself."""
    answer = await HealthStub(state.executor.channel).Check(health_pb2.HealthCheckRequest())
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def until_health(state: Replica, wanted: str) -> None:
    async with asyncio.timeout(30):
        while await health(state) != wanted:
            await asyncio.sleep(0.05)


async def refusal_of_a_read(state: Replica) -> HoldfastError:
    """What a caller is told who wants to read now."""
    async with asyncio.timeout(30):
        while True:
            try:
                await state.executor.run(WORKSPACE, WORKSPACE)
            except grpc.RpcError as error:
                public = from_rpc_error(error)
                if public.reason != Reason.RUN_NOT_FOUND:
                    return public
            await asyncio.sleep(0.02)


@asynccontextmanager
async def loaded(url: str, **changes: Any) -> AsyncIterator[tuple[Replica, Load]]:
    """A replica of state on a database, under load."""
    async with replica(url, **changes) as state:
        async with under_load([state.executor], follower=state.trace) as load:
            yield state, load


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_loses_nothing_and_is_told_while_it_lasts(mode: Literal["fast", "immediate"]) -> None:
    with running_cluster() as cluster, counted_lines() as lines:
        async with loaded(cluster.create_database("state")) as (state, load):
            await asyncio.to_thread(cluster.stop, mode)
            await until_health(state, "NOT_SERVING")
            refused = await refusal_of_a_read(state)
            assert isinstance(refused, Unavailable)
            assert refused.reason == Reason.STORAGE_UNAVAILABLE
            # RetryInfo: callers know when to come again.
            assert refused.retry_delay_seconds is not None
            assert refused.retry_delay_seconds > 0
            await asyncio.to_thread(cluster.start)
            await until_health(state, "SERVING")
            await load.progress(100)
    assert [line for line in lines if "storage_error" in line], "what is wrong is in the log"
    assert len(lines) < 12, lines


async def test_a_failover_to_a_synchronous_standby_loses_nothing() -> None:
    with running_cluster() as primary:
        standby = primary.standby(primary.folder.parent / "standby", synchronous_standby_names="''")
        try:
            standby.start()
            primary.reload(synchronous_standby_names="'standby'")
            primary.create_database("state")
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            async with loaded(f"postgresql://postgres@{hosts}/state") as (_, load):
                assert primary.execute("SELECT sync_state FROM pg_stat_replication") == [("sync",)]
                await asyncio.to_thread(primary.stop, "immediate")
                await asyncio.to_thread(standby.promote)
                await load.progress(100)
        finally:
            standby.remove()


async def test_a_commit_that_waits_for_a_lost_standby_is_reported_and_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.shared.database_postgres._STUCK_SECONDS", 0.5)
    with running_cluster() as cluster:
        async with loaded(cluster.create_database("state")) as (state, load):
            cluster.reload(synchronous_standby_names="'nobody'")
            await until_health(state, "NOT_SERVING")
            acknowledged = len(load.acknowledged)
            assert await health(state) == "NOT_SERVING"
            assert len(load.acknowledged) == acknowledged
            cluster.reload(synchronous_standby_names="''")
            await until_health(state, "SERVING")
            await load.progress(50)


async def test_a_commit_whose_answer_is_lost_counts_once() -> None:
    with running_cluster() as cluster:
        cluster.create_database("state")
        async with losing_proxy(cluster.port) as proxy:
            async with loaded(cluster.url("state", port=proxy.port)) as (_, load):
                # First the statement that commits by itself, then transactions' COMMIT.
                for words in ((b"written AS",), (b"COMMIT",)):
                    for _ in range(4):
                        proxy.lose_answer_to(*words)
                        await load.create(2)
                        await proxy.until_cut()
                    await load.progress(20)
            assert proxy.cuts == 8


async def test_deadlocks_and_serialization_failures_cost_time_only() -> None:
    with running_cluster(deadlock_timeout="'20ms'") as cluster:
        url = cluster.create_database("state")
        async with loaded(url) as (_, load):
            has_happened = asyncio.Event()

            async def locks_runs_in_its_own_order(order: str) -> None:
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                    rounds = 0
                    while rounds < 15 or not has_happened.is_set():
                        rounds += 1
                        try:
                            async with connection.transaction():
                                for half in ("<", ">="):
                                    await connection.execute(
                                        f"SELECT run_id FROM state.runs WHERE md5(run_id::text) {half} '8' "
                                        f"ORDER BY run_id {order} FOR UPDATE".encode()
                                    )
                                    await asyncio.sleep(0.01)
                        except psycopg.errors.DeadlockDetected:
                            pass

            counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'state'"
            async with asyncio.timeout(50), asyncio.TaskGroup() as group:
                group.create_task(locks_runs_in_its_own_order("ASC"))
                group.create_task(locks_runs_in_its_own_order("DESC"))
                while not cluster.execute(counted)[0][0]:
                    await asyncio.sleep(0.1)
                has_happened.set()
            await load.progress(100)


async def test_an_exhausted_pool_and_a_full_server_refuse_and_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.shared.database_postgres._CHECKOUT_TIMEOUT_SECONDS", 0.5)
    with running_cluster(max_connections="14", superuser_reserved_connections="3") as cluster:
        url = cluster.create_database("state")
        cluster.execute("CREATE ROLE service LOGIN; GRANT ALL ON DATABASE state TO service")
        async with loaded(url.replace("postgres@", "service@"), database_pool_size=2) as (state, load):
            cluster.execute("REVOKE ALL ON DATABASE state FROM PUBLIC")
            with psycopg.connect(url) as holder:
                # Reads wait for the lock, and take every connection of the pool with them.
                holder.execute("LOCK TABLE state.sessions, state.runs IN ACCESS EXCLUSIVE MODE")
                readers = [asyncio.create_task(refusal_of_a_read(state)) for _ in range(6)]
                done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                refused = done.pop().result()
                assert isinstance(refused, Unavailable)
                assert refused.retry_delay_seconds
                for reader in readers:
                    reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await load.progress(50)
            # The server refuses further connections, and state's own are cut: it cannot come back until there is room.
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast-state'"
            cluster.execute("ALTER ROLE service CONNECTION LIMIT 0")
            cluster.execute(kill)
            await until_health(state, "NOT_SERVING")
            assert (await refusal_of_a_read(state)).reason == Reason.STORAGE_UNAVAILABLE
            cluster.execute("ALTER ROLE service CONNECTION LIMIT -1")
            await until_health(state, "SERVING")
            await load.progress(50)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own, which is soon full; skips where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill(path: Path) -> None:
    """Takes all the room that there is."""
    with pytest.raises(OSError, match="No space"), open(path, "ab", buffering=0) as file:
        while True:
            file.write(bytes(8_192))


async def test_a_full_disk_refuses_writes_and_goes_on_when_there_is_room() -> None:
    with (
        counted_lines() as lines,
        cluster_folder() as folder,
        small_disk(folder / "small", 24),
        Cluster(folder / "primary") as cluster,
    ):
        place = folder / "small" / "tablespace"
        place.mkdir(mode=0o700)
        cluster.own(place)
        cluster.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        url = cluster.create_database("state", "TABLESPACE small")
        async with loaded(url) as (state, load):
            fill(folder / "small" / "ballast")
            refused = await load.until_full()
            assert refused.reason == Reason.STORAGE_FULL
            assert refused.retry_delay_seconds
            assert (await state.executor.events(WORKSPACE, load.runs[0]))[0].seq == 1, "reading goes on"
            (folder / "small" / "ballast").unlink()
            await load.progress(50)
    assert [line for line in lines if "storage_error" in line], "what is wrong is in the log"
    assert len(lines) < 12, lines
