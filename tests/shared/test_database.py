"""Store functions on SQLite and on PostgreSQL: transactions, time, trouble of the database, migrations."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
import sqlalchemy as sa

from holdfast.errors import Reason, ResourceExhausted, Unavailable
from services.shared.database import Database, now_sql
from services.shared.migrations import check_is_current, current, make_ready, upgrade
from services.shared.server import StartupError
from services.shared.settings import SettingsError
from services.shared.timestamps import Timestamp
from tests.fakes.clock import FakeClock

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("create_time", Timestamp()),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data/test.db"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    async with Database(url, schema="test", pool_size=3) as database:
        await database.ensure_schema()
        await database.write(METADATA.create_all)
        yield database


def insert(connection: sa.Connection, item_id: int, name: str = "x") -> int:
    connection.execute(ITEMS.insert().values(id=item_id, name=name))
    return item_id


def names(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(ITEMS.c.name).order_by(ITEMS.c.id)).scalars())


async def test_a_write_is_committed_when_it_returns(db: Database, url: str) -> None:
    assert await db.write(insert, 1, name="one") == 1
    async with Database(url, schema="test") as other:
        assert await other.read(names) == ["one"]


async def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        insert(connection, 1)
        raise LookupError("half-way")

    with pytest.raises(LookupError):
        await db.write(fail)
    with pytest.raises(sa.exc.IntegrityError):
        await db.write(lambda connection: [insert(connection, 2), insert(connection, 2)])
    assert await db.read(names) == []
    await db.write(insert, 3)
    assert await db.read(names) == ["x"]


async def test_a_read_cannot_write(db: Database) -> None:
    with pytest.raises((sa.exc.DBAPIError, Unavailable)):
        await db.read(insert, 1)
    assert await db.read(names) == []


async def test_a_read_sees_one_state_while_others_write(db: Database) -> None:
    loop = asyncio.get_running_loop()
    first_read, written = asyncio.Event(), asyncio.Event()

    # On PostgreSQL the function runs in the event loop, so the pause between its statements is a write by another
    # connection from inside it; on SQLite it runs in a thread and waits for the loop to write.
    def read_twice(connection: sa.Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        if db.dialect == "sqlite":
            loop.call_soon_threadsafe(first_read.set)
            asyncio.run_coroutine_threadsafe(written.wait(), loop).result(5)
        else:
            with psycopg.connect(db.url.set(drivername="postgresql").render_as_string(False)) as other:
                other.execute("INSERT INTO test.items (id, name) VALUES (1, 'x')")
        return before, names(connection)

    async def write() -> None:
        if db.dialect == "sqlite":
            await first_read.wait()
            await db.write(insert, 1)
            written.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(write())
        reading = group.create_task(db.read(read_twice))
    assert reading.result() == ([], [])
    assert await db.read(names) == ["x"]


async def test_concurrent_writes_all_happen(db: Database) -> None:
    async with asyncio.TaskGroup() as group:
        for item_id in range(20):
            group.create_task(db.write(insert, item_id))
    assert len(await db.read(names)) == 20


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_writer_commits_each_function_and_survives_a_failure(db: Database, autocommit: bool) -> None:
    async with db.writer(autocommit=autocommit) as writer:
        await writer.run(insert, 1)
        with pytest.raises(sa.exc.IntegrityError):
            await writer.run(insert, 1)
        await writer.run(insert, 2)
        assert await db.read(names) == ["x", "x"]


INSERT = {
    "sqlite": "INSERT INTO items (id, name) VALUES (:id, :name) RETURNING id, name",
    "postgresql": "INSERT INTO items (id, name) VALUES (%(id)s, %(name)s) RETURNING id, name",
}


async def test_a_statement_in_the_drivers_own_form_commits_by_itself_and_a_failed_one_leaves_the_writer(
    db: Database,
) -> None:
    async with db.writer(autocommit=True) as writer:
        assert await writer.fetch(INSERT[db.dialect], {"id": 1, "name": "one"}) == [(1, "one")]
        with pytest.raises(sa.exc.IntegrityError):
            await writer.fetch(INSERT[db.dialect], {"id": 1, "name": "again"})
        await writer.fetch(INSERT[db.dialect], {"id": 2, "name": "two"})
        assert await db.read(names) == ["one", "two"]


async def test_a_long_statement_in_the_drivers_own_form_names_a_parameter_twice_and_takes_bytes(
    postgres: Database,
) -> None:
    statement: LiteralString = (
        "SELECT CAST(%(name)s AS text), CAST(%(data)b AS bytea), CAST(%(name)s AS text) /* " + "long " * 1_000 + "*/"
    )
    async with postgres.writer(autocommit=True) as writer:
        for name in ("50 %", "%(data)s"):
            rows = await writer.fetch(statement, {"data": b"\x00\xff", "name": name, "unused": 1})
            assert rows == [(name, b"\x00\xff", name)]


async def test_a_single_statement_commits_by_itself(db: Database) -> None:
    await db.write_autocommit(insert, 1)
    assert await db.read(names) == ["x"]


async def test_a_cancelled_write_leaves_the_database_usable(db: Database) -> None:
    async with db.writer() as writer:
        for run in (db.write, writer.run):
            task = asyncio.ensure_future(run(insert, 1))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await db.write(lambda connection: connection.execute(ITEMS.delete()))
            await run(insert, 2)
            await db.write(lambda connection: connection.execute(ITEMS.delete()))


async def test_timestamps_keep_the_instant_to_the_microsecond(db: Database) -> None:
    moment = datetime(2026, 3, 1, 12, 30, 15, 123457, tzinfo=timezone(timedelta(hours=2)))

    def store(connection: sa.Connection) -> datetime | None:
        connection.execute(ITEMS.insert().values(id=1, name="x", create_time=moment))
        return connection.execute(sa.select(ITEMS.c.create_time)).scalar_one()

    stored = await db.write(store)
    assert stored == moment
    assert stored is not None
    assert stored.tzinfo is UTC


async def test_a_timestamp_without_a_zone_is_refused(db: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="time zone"):
        await db.write(
            lambda connection: connection.execute(
                ITEMS.insert().values(id=1, name="x", create_time=datetime(2026, 1, 1))
            )
        )


async def test_the_databases_time_compares_with_stored_times(db: Database) -> None:
    def compare(connection: sa.Connection) -> tuple[int, datetime]:
        now = db.now(connection)
        connection.execute(ITEMS.insert().values(id=1, name="old", create_time=now - timedelta(seconds=5)))
        connection.execute(ITEMS.insert().values(id=2, name="new", create_time=now + timedelta(seconds=60)))
        query = sa.select(sa.func.count()).where(ITEMS.c.create_time <= now_sql(db))
        return connection.execute(query).scalar_one(), now

    count, now = await db.write(compare)
    assert count == 1
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)


# ------------------------------------------------------------------------------------------------------------- SQLite


async def test_sqlite_is_private_durable_and_on_the_given_clock(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "folder" / "state.db"
    async with Database(f"sqlite:///{path}", schema="state", clock=clock) as db:

        def pragmas(connection: sa.Connection) -> list[object]:
            return [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]

        assert await db.write(pragmas) == ["wal", 2, 1]
        assert await db.write(db.now) == clock.now()
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/full.db", schema="state") as db:
        await db.write(METADATA.create_all)

        def limit(connection: sa.Connection, pages: int) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        def fill(connection: sa.Connection) -> None:
            insert(connection, 1)
            insert(connection, 2, "x" * 200_000)

        await db.write(limit, 1)
        with pytest.raises(ResourceExhausted) as caught:
            await db.write(fill)
        assert caught.value.reason == Reason.STORAGE_FULL
        assert await db.read(names) == []
        await db.write(limit, 100_000)
        await db.write(fill)
        assert len(await db.read(names)) == 2


async def test_a_file_held_by_another_process_is_unavailable_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.shared.database_sqlite._BUSY_TIMEOUT_SECONDS", 0.01)
    async with Database(f"sqlite:///{tmp_path}/held.db", schema="state") as db:
        await db.write(METADATA.create_all)
        holder = sqlite3.connect(tmp_path / "held.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            await db.write(insert, 1)
        holder.execute("ROLLBACK")
        holder.close()
        await db.write(insert, 1)
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE


def test_a_file_that_cannot_be_used_is_refused_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is a text, long enough not to be taken for an empty database file" * 20)
    for path, why in ((f"{tmp_path}/file", "not a database"), (f"{tmp_path}/file/below.db", "")):
        with pytest.raises(SettingsError, match=f"^HOLDFAST_DATABASE_URL: {path} cannot be used: .*{why}"):
            Database(f"sqlite:///{path}", schema="state")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://root@db/x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"postgresql://.* or sqlite:///"):
        Database(url, schema="state")


# --------------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture
async def postgres(postgres_database: str) -> AsyncIterator[Database]:
    async with Database(postgres_database, schema="test", pool_size=3) as database:
        await database.ensure_schema()
        await database.write(METADATA.create_all)
        yield database


def cut(postgres_url: str) -> None:
    """Ends every connection of the services, as a restart of the server does."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast-test'"
        )


async def test_tables_live_in_the_services_schema(postgres: Database) -> None:
    query = sa.text("SELECT table_schema FROM information_schema.tables WHERE table_name = 'items'")
    assert await postgres.read(lambda connection: connection.execute(query).scalar_one()) == "test"


async def test_connections_from_before_a_restart_are_replaced(postgres: Database, postgres_url: str) -> None:
    async with postgres.writer() as writer:
        await writer.run(insert, 1)
        await asyncio.to_thread(cut, postgres_url)
        await writer.run(insert, 2)
        await asyncio.to_thread(cut, postgres_url)
        await postgres.write(insert, 3)
        await asyncio.to_thread(cut, postgres_url)
        assert len(await postgres.read(names)) == 3


async def test_a_statement_lost_with_its_connection_is_not_repeated_when_it_may_have_happened(
    postgres: Database, postgres_url: str
) -> None:
    async with postgres.writer(autocommit=True) as writer:
        await writer.run(insert, 1)
        await asyncio.to_thread(cut, postgres_url)
        with pytest.raises(Unavailable) as caught:
            await writer.run(insert, 2)
        assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
        await writer.run(insert, 2)
    assert len(await postgres.read(names)) == 2


async def test_a_fetch_lost_with_its_connection_is_not_repeated_and_the_next_one_has_another(
    postgres: Database, postgres_url: str
) -> None:
    async with postgres.writer(autocommit=True) as writer:
        await writer.fetch(INSERT["postgresql"], {"id": 1, "name": "x"})
        await asyncio.to_thread(cut, postgres_url)
        with pytest.raises(Unavailable) as caught:
            await writer.fetch(INSERT["postgresql"], {"id": 2, "name": "x"})
        assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
        await writer.fetch(INSERT["postgresql"], {"id": 2, "name": "x"})
        task = asyncio.ensure_future(writer.fetch("SELECT pg_sleep(60)", {}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await writer.fetch(INSERT["postgresql"], {"id": 3, "name": "x"})
    assert len(await postgres.read(names)) == 3


async def test_a_fetch_undone_for_others_is_tried_again(postgres: Database) -> None:
    await postgres.write(lambda connection: connection.execute(sa.text("CREATE SEQUENCE attempts")))
    await postgres.write(
        lambda connection: connection.execute(
            sa.text(
                "CREATE FUNCTION fail_twice() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN "
                "n := nextval('attempts'); IF n < 3 THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF; "
                "RETURN n; END $$"
            )
        )
    )
    async with postgres.writer(autocommit=True) as writer:
        assert await writer.fetch("SELECT fail_twice()", {}) == [(3,)]


async def test_a_transaction_undone_for_others_is_tried_again(postgres: Database) -> None:
    attempts = 0

    def fail_twice(connection: sa.Connection) -> int:
        nonlocal attempts
        attempts += 1
        insert(connection, 1)
        if attempts < 3:
            connection.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))
        return attempts

    assert await postgres.write(fail_twice) == 3
    assert await postgres.read(names) == ["x"]


async def test_a_transaction_that_always_fails_is_given_up(postgres: Database) -> None:
    attempts = 0

    def fail(connection: sa.Connection) -> None:
        nonlocal attempts
        attempts += 1
        connection.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$"))

    with pytest.raises(Unavailable):
        await postgres.write(fail)
    assert attempts == 5


@pytest.mark.parametrize(
    ("state", "expected"),
    [("53100", ResourceExhausted), ("57P03", Unavailable), ("53300", Unavailable), ("57014", Unavailable)],
)
async def test_the_servers_own_trouble_has_a_status_of_ours(
    postgres: Database, state: str, expected: type[Exception]
) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = '{state}'; END $$"))

    with pytest.raises(expected) as caught:
        await postgres.write(fail)
    assert "secret" not in str(caught.value)


async def test_a_server_that_is_away_is_unavailable(unused_tcp_port: int) -> None:
    async with Database(f"postgresql://u:hunter2@127.0.0.1:{unused_tcp_port}/x", schema="test") as db:
        with pytest.raises(Unavailable) as caught:
            await db.ping()
        assert "hunter2" not in db.location
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE


async def test_a_notification_reaches_a_listener(postgres: Database) -> None:
    listener = await postgres.listen("holdfast_test")
    assert listener is not None
    async with listener, asyncio.timeout(20):
        await postgres.write(lambda connection: connection.execute(sa.text("NOTIFY holdfast_test, 'run-1'")))
        async for notification in listener.notifies():
            assert notification.payload == "run-1"
            break


# --------------------------------------------------------------------------------------------------------- migrations


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text("from services.shared.migrations import run_env\n\nrun_env()\n")
    add_revision(folder, "r1", None, 'op.create_table("items", sa.Column("id", sa.Integer, primary_key=True))')
    return folder


def add_revision(folder: Path, revision: str, down: str | None, body: str) -> None:
    (folder / "versions" / f"{revision}.py").write_text(
        textwrap.dedent(
            f"""
            import sqlalchemy as sa
            from alembic import op

            revision = {revision!r}
            down_revision = {down!r}

            def upgrade() -> None:
                {body}
            """
        )
    )


async def test_migrations_bring_an_empty_database_to_the_newest_revision(url: str, scripts: Path) -> None:
    async with Database(url, schema="fresh") as db:
        assert await current(db) == ()
        with pytest.raises(StartupError, match=r"is at nothing, this release needs r1: run .*fresh migrate"):
            await check_is_current(db, scripts)

        await upgrade(db, scripts)
        await upgrade(db, scripts)

        assert await current(db) == ("r1",)
        await check_is_current(db, scripts)
        add_revision(scripts, "r2", "r1", 'op.add_column("items", sa.Column("name", sa.Text))')
        with pytest.raises(StartupError, match="is at r1, this release needs r2"):
            await check_is_current(db, scripts)
        await upgrade(db, scripts)
        assert await current(db) == ("r2",)


async def test_several_processes_may_migrate_at_once(url: str, scripts: Path) -> None:
    add_revision(scripts, "r2", "r1", 'op.add_column("items", sa.Column("name", sa.Text))')
    async with Database(url, schema="fresh") as one, Database(url, schema="fresh") as two:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for db in (one, two):
                group.create_task(upgrade(db, scripts))
        assert await current(one) == ("r2",)


async def test_a_failed_migration_leaves_the_revision_before_it(url: str, scripts: Path) -> None:
    async with Database(url, schema="fresh") as db:
        await upgrade(db, scripts)
        add_revision(
            scripts, "r2", "r1", 'op.create_table("more", sa.Column("id", sa.Integer)); raise RuntimeError("half-way")'
        )
        with pytest.raises(RuntimeError, match="half-way"):
            await upgrade(db, scripts)
        assert await current(db) == ("r1",)
        assert not await db.read(lambda connection: sa.inspect(connection).has_table("more"))


async def test_an_older_release_starts_on_a_newer_schema(url: str, scripts: Path) -> None:
    async with Database(url, schema="fresh") as db:
        add_revision(scripts, "r2", "r1", "pass")
        await upgrade(db, scripts)
        (scripts / "versions" / "r2.py").unlink()

        await check_is_current(db, scripts)
        await upgrade(db, scripts)
        assert await current(db) == ("r2",)


@pytest.mark.parametrize("revision", ["r3_since_r2", "0003_since_0002"])
async def test_a_release_that_is_too_old_for_the_schema_is_refused(url: str, scripts: Path, revision: str) -> None:
    async with Database(url, schema="fresh") as db:
        add_revision(scripts, "r2", "r1", "pass")
        add_revision(scripts, revision, "r2", "pass")
        await upgrade(db, scripts)
        (scripts / "versions" / f"{revision}.py").unlink()
        await check_is_current(db, scripts)

        (scripts / "versions" / "r2.py").unlink()
        for start in (check_is_current, upgrade):
            with pytest.raises(StartupError, match=f"is at {revision}, which needs a release that knows revision 2"):
                await start(db, scripts)
        assert await current(db) == (revision,)


async def test_a_migration_lets_others_pass_while_it_waits_for_a_table(
    postgres_database: str, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.shared.migrations._LOCK_SECONDS", 0.1)
    monkeypatch.setattr("services.shared.migrations._RETRY_SECONDS", 0.1)
    async with Database(postgres_database, schema="fresh") as db:
        await upgrade(db, scripts)
        add_revision(scripts, "r2", "r1", 'op.add_column("items", sa.Column("name", sa.Text))')
        with psycopg.connect(postgres_database) as holder:
            holder.execute("SELECT * FROM fresh.items")
            async with asyncio.timeout(20):
                migrating = asyncio.create_task(upgrade(db, scripts))
                waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'fresh.items'::regclass"
                with psycopg.connect(postgres_database, autocommit=True) as other:
                    while not other.execute(waits).fetchone():
                        await asyncio.sleep(0.01)
                    # It is in the queue before this one, which gets the table all the same.
                    other.execute("SELECT * FROM fresh.items")
                assert not migrating.done()
                holder.rollback()
                await migrating
        assert await current(db) == ("r2",)


async def test_sqlite_migrates_at_start_and_postgresql_when_told(url: str, scripts: Path) -> None:
    async with Database(url, schema="fresh") as db:
        if db.dialect == "postgresql":
            with pytest.raises(StartupError, match="HOLDFAST_MIGRATE_ON_START=true"):
                await make_ready(db, scripts, migrate_on_start=False, stop=asyncio.Event())
        await make_ready(db, scripts, migrate_on_start=db.dialect == "postgresql", stop=asyncio.Event())
        assert await current(db) == ("r1",)


async def test_waiting_for_the_database_ends_when_told_to_stop(unused_tcp_port: int, scripts: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    async with Database(f"postgresql://u@127.0.0.1:{unused_tcp_port}/x", schema="fresh") as db:
        with pytest.raises(StartupError, match="stopped while waiting"):
            async with asyncio.timeout(10):
                await make_ready(db, scripts, migrate_on_start=False, stop=stop)
