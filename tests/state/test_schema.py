"""The schema that the migrations build, and that frequent queries find their rows by an index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects.postgresql.base import ischema_names

from services.shared.database import Database
from services.shared.migrations import upgrade
from services.state import call_store, claims, lease_store, tables
from services.state.app import MIGRATIONS
from tests.state.builders import WORKSPACE
from tests.state.sql_store import SqlStateStore, migrated, sqlite

# Its fixtures: the store on either database.
pytest_plugins = ["tests.state.sql_fixtures"]


class Xid8(sa.types.UserDefinedType[str]):
    """PostgreSQL's transaction id, which SQLAlchemy does not know."""

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def _is_feed_column(difference: Any) -> bool:
    # The one thing that the tables do not say: the order of the change feed, on PostgreSQL only.
    if difference[0] == "remove_column":
        return bool(difference[2] == "journal" and difference[3].name == "txid")
    return bool(difference[0] == "remove_index" and difference[1].name == "ix_journal_txid")


async def test_migrations_build_what_the_tables_say(sql_store: SqlStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ischema_names, "xid8", Xid8)

    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [found for found in compare_metadata(context, tables.metadata) if not _is_feed_column(found)]

    assert await sql_store.db.read(differences) == []


async def test_migrations_can_be_run_again(sql_store: SqlStateStore) -> None:
    await upgrade(sql_store.db, MIGRATIONS)


async def test_journal_has_its_order_of_commits_on_postgresql(postgres_state: str) -> None:
    async with migrated(postgres_state) as db:
        default = await db.read(
            lambda connection: connection.execute(
                sa.text("SELECT column_default FROM information_schema.columns WHERE column_name = 'txid'")
            ).scalar_one()
        )
    assert "pg_current_xact_id" in default


@contextmanager
def _plans(connection: sa.Connection) -> Iterator[list[str]]:
    """Explains each statement of the block, as SQLite's own lines."""
    plans: list[str] = []
    is_explaining = False

    def explain(_: sa.Connection, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        nonlocal is_explaining
        if is_explaining or not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            return
        is_explaining = True
        rows = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters)
        plans.extend(str(row[3]) for row in rows)
        is_explaining = False

    sa.event.listen(connection, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        sa.event.remove(connection, "before_cursor_execute", explain)


@pytest.mark.parametrize("table", ["runs", "calls"])
async def test_frequent_queries_scan_no_table_that_grows(tmp_path: Any, table: str) -> None:
    def run_each(connection: sa.Connection, db: Database) -> list[str]:
        with _plans(connection) as plans:
            lease_store.open_stream(connection, db, WORKSPACE, WORKSPACE, {})
            claims.claim(connection, db, WORKSPACE, WORKSPACE, 10)
            lease_store.glance(connection, db)
            lease_store.sweep(connection, db)
            lease_store.lost_calls(connection, db)
            lease_store.repair(connection, db)
            lease_store.close_stream(connection, db, WORKSPACE, WORKSPACE, in_order=True)
            call_store.lease_calls(connection, db, WORKSPACE, "worker", ["refund"], 1, call_store.DEFAULT_OFFER)
            call_store.find_call(connection, WORKSPACE, "lease")
        return plans

    async with migrated(sqlite(tmp_path)) as db:
        plans = await db.write(run_each, db)
    assert any(table in plan for plan in plans), "nothing was explained"
    # A covering index that is partial holds only the rows in question.
    assert [plan for plan in plans if plan.startswith(f"SCAN {table}") and "USING" not in plan] == []
