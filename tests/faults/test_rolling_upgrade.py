"""Two releases side by side: a newer schema arrives under load, and this release serves, and starts anew, on it."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest

from services.shared.database import Database
from services.shared.migrations import check_is_current, current, newest, upgrade
from services.shared.server import StartupError
from services.state.app import MIGRATIONS
from tests.faults.load import under_load
from tests.state.served import replica

pytestmark = pytest.mark.promise("P1")

# What a release may do to the schema before its code runs, each in the way that docs/upgrade.md says.
EXPANDS = {
    # A column that may be empty, and one whose default costs nothing.
    "9001": 'op.add_column("runs", sa.Column("colour", sa.Text))\n'
    'op.add_column("journal", sa.Column("shape", sa.SmallInteger, nullable=False, server_default="0"))',
    # A table with an index.
    "9002": 'op.create_table("flags", sa.Column("run_id", sa.Uuid, primary_key=True), sa.Column("name", sa.Text))\n'
    'op.create_index("ix_flags_name", "flags", ["name"])',
    # An index on a table that is in use.
    "9003": "with op.get_context().autocommit_block():\n"
    '    op.execute("DROP INDEX IF EXISTS ix_runs_colour")\n'
    '    op.execute("CREATE INDEX CONCURRENTLY ix_runs_colour ON runs (colour) WHERE colour IS NOT NULL")',
    # A constraint that is checked later, without a lock.
    "9004": "op.execute(\"ALTER TABLE runs ADD CONSTRAINT ck_runs_colour CHECK (colour <> '') NOT VALID\")\n"
    'op.execute("ALTER TABLE runs VALIDATE CONSTRAINT ck_runs_colour")',
}
CONTRACTS = {"9005_since_9004": 'op.drop_column("runs", "colour")'}


def next_release(folder: Path, changes: dict[str, str]) -> Path:
    """The migrations of this release and of those after it."""
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (down,) = newest(MIGRATIONS)
    for revision, body in changes.items():
        (folder / "versions" / f"{revision}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = {revision!r}\ndown_revision = {down!r}\n\n\n"
            f"def upgrade() -> None:\n{textwrap.indent(body, '    ')}\n"
        )
        down = revision
    return folder


async def test_a_newer_schema_arrives_under_load_and_the_older_release_starts_on_it(
    postgres_database: str, tmp_path: Path
) -> None:
    async with (
        replica(postgres_database) as before,
        under_load([before.executor], follower=before.trace) as load,
        Database(postgres_database, schema="state") as db,
    ):
        for count in range(1, len(EXPANDS) + 1):
            changes = dict(list(EXPANDS.items())[:count])
            await upgrade(db, next_release(tmp_path / "next", changes))
            await load.progress(30)
        assert await current(db) == ("9004",)
        async with replica(postgres_database, migrate_on_start=False) as after:
            # Both serve: the one that was there when the schema changed, and one that started on the new one.
            load.clients = [before.executor, after.executor]
            await load.create(4)
            await load.progress(60)
            load.clients = [before.executor]
            await load.progress(30)


async def test_a_schema_that_has_dropped_what_this_release_uses_is_refused(
    postgres_database: str, tmp_path: Path
) -> None:
    async with Database(postgres_database, schema="state") as db:
        await upgrade(db, next_release(tmp_path / "next", {**EXPANDS, **CONTRACTS}))
        with pytest.raises(StartupError, match="needs a release that knows revision 9004"):
            await check_is_current(db, MIGRATIONS)
        with pytest.raises(StartupError, match="start a newer release"):
            async with replica(postgres_database):
                pass
