"""How much room everything takes: the database and its tables, and each workspace. Exact where that is cheap."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from holdfast.api.common.v1 import workspace_pb2
from services.shared.database import Database
from services.state import housekeeping_store as store
from services.state import tables as t
from services.state.rows import stamp
from services.state.run_store import check_ids

MAX_WORKSPACES: Final = 1_000
# Of the sessions that retention would look at.
MAX_LOOKED_AT: Final = 10_000
# Tables below are counted row by row.
COUNTED_BYTES: Final = 64 * 1024 * 1024
_LOOK: Final = 500

_POSTGRES_TABLES: Final = sa.text(
    "SELECT c.relname, pg_total_relation_size(c.oid), CAST(c.reltuples AS bigint) FROM pg_class AS c "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')"
)
_POSTGRES_BYTES: Final = sa.text("SELECT pg_database_size(current_database())")
_POSTGRES_WAL: Final = sa.text("SELECT COALESCE(sum(size), 0) FROM pg_ls_waldir()")
_SQLITE_TABLE_BYTES: Final = sa.text(
    "SELECT m.tbl_name, sum(d.pgsize) FROM dbstat AS d JOIN sqlite_schema AS m ON m.name = d.name "
    "WHERE d.aggregate = TRUE GROUP BY m.tbl_name"
)


def database_storage(connection: sa.Connection, db: Database) -> workspace_pb2.DatabaseStorage:
    """What the database takes."""
    found = _sqlite(connection, db) if db.dialect == "sqlite" else _postgres(connection)
    found.tables.sort(key=lambda table: (-table.bytes, table.name))
    return found


def _postgres(connection: sa.Connection) -> workspace_pb2.DatabaseStorage:
    found = workspace_pb2.DatabaseStorage(dialect="postgresql", bytes=connection.execute(_POSTGRES_BYTES).scalar_one())
    try:
        with connection.begin_nested():
            found.wal_bytes = int(connection.execute(_POSTGRES_WAL).scalar_one())
    except DBAPIError:
        # The role may not ask.
        pass
    for name, size, estimate in connection.execute(_POSTGRES_TABLES).all():
        is_estimate = size > COUNTED_BYTES and estimate >= 0
        table = t.metadata.tables.get(name)
        if table is None:
            continue
        rows = estimate if is_estimate else _rows(connection, table)
        found.tables.add(name=name, rows=rows, is_estimate=is_estimate, bytes=size)
    return found


def _sqlite(connection: sa.Connection, db: Database) -> workspace_pb2.DatabaseStorage:
    def pragma(name: str) -> int:
        return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    page = pragma("page_size")
    path = Path(str(db.url.database))
    found = workspace_pb2.DatabaseStorage(
        dialect="sqlite", bytes=pragma("page_count") * page, free_bytes=pragma("freelist_count") * page
    )
    try:
        found.disk_free_bytes = shutil.disk_usage(path.parent).free
        found.wal_bytes = path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        # There is no such file while nothing was written, and some file systems do not say.
        pass
    sizes = _sqlite_sizes(connection)
    for table in t.metadata.sorted_tables:
        row = found.tables.add(name=table.name, rows=_rows(connection, table))
        if table.name in sizes:
            row.bytes = sizes[table.name]
    return found


def _sqlite_sizes(connection: sa.Connection) -> dict[str, int]:
    try:
        return {name: int(size) for name, size in connection.execute(_SQLITE_TABLE_BYTES).all()}
    except DBAPIError:
        # SQLite may have been built without it.
        return {}


def _rows(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def workspaces_with_data(connection: sa.Connection) -> list[str]:
    """The workspaces that have runs, sessions or settings; those with the most events first."""
    r = t.runs.c
    by_events = connection.execute(
        sa.select(r.workspace_id)
        .group_by(r.workspace_id)
        .order_by(sa.func.sum(r.last_seq).desc(), r.workspace_id)
        .limit(MAX_WORKSPACES)
    ).scalars()
    found = list(by_events)
    others = sa.union(
        *(sa.select(table.c.workspace_id) for table in (t.sessions, t.workspaces, t.agents, t.removed_runs))
    )
    known = set(found)
    found += sorted(str(value) for value in connection.execute(others).scalars() if value not in known)
    return found[:MAX_WORKSPACES]


def workspace_storage(connection: sa.Connection, db: Database, workspace_id: str) -> workspace_pb2.WorkspaceStorage:
    """What one workspace takes."""
    check_ids(workspace_id=workspace_id)
    r, b, s, x = t.runs.c, t.blobs.c, t.sessions.c, t.removed_runs.c
    found = workspace_pb2.WorkspaceStorage(workspace_id=workspace_id)
    rows: list[Any] = list(
        connection.execute(
            sa.select(r.state, sa.func.count().label("runs"), sa.func.sum(r.last_seq), sa.func.min(r.created_at))
            .where(r.workspace_id == workspace_id)
            .group_by(r.state)
            .order_by(r.state)
        ).all()
    )
    for state, runs, events, _ in rows:
        found.runs.add(state=state, runs=runs)
        found.events += int(events)
    if rows:
        found.oldest_run_time.CopyFrom(stamp(min(row[3] for row in rows)))
    found.event_bytes_estimate = int(found.events * _average_event_bytes(connection))
    found.blobs, blob_bytes = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(b.data)), 0)).where(
            b.workspace_id == workspace_id
        )
    ).one()
    found.blob_bytes = int(blob_bytes)
    found.sessions = connection.execute(
        sa.select(sa.func.count()).select_from(t.sessions).where(s.workspace_id == workspace_id)
    ).scalar_one()
    found.runs_being_deleted = connection.execute(
        sa.select(sa.func.count()).select_from(t.removed_runs).where(x.workspace_id == workspace_id, t.IS_UNDELETED)
    ).scalar_one()
    _add_removable(connection, db, found)
    return found


def _average_event_bytes(connection: sa.Connection) -> float:
    """Of the newest events: their sizes follow what the agents do now."""
    j = t.journal.c
    sample = sa.select(sa.func.length(j.body).label("size")).limit(1_000).subquery()
    return float(connection.execute(sa.select(sa.func.avg(sample.c.size))).scalar() or 0)


def _add_removable(connection: sa.Connection, db: Database, found: workspace_pb2.WorkspaceStorage) -> None:
    w, r = t.workspaces.c, t.runs.c
    row = connection.execute(sa.select(t.workspaces).where(w.workspace_id == found.workspace_id)).one_or_none()
    policy = None if row is None else store.policy_of(row)
    if policy is None or (policy.runs_kept is None and policy.sessions_kept is None):
        return
    kept = store.kept_from(connection, policy)
    after = ""
    for _ in range(MAX_LOOKED_AT // _LOOK):
        page = store.look_at_old_sessions(connection, db, policy, kept, after, _LOOK)
        found.removable_sessions += len(page.abandoned)
        found.removable_runs += connection.execute(
            sa.select(sa.func.count())
            .select_from(t.runs)
            .where(r.workspace_id == found.workspace_id, r.session_id.in_(page.with_old_runs))
        ).scalar_one()
        if page.last is None:
            return
        after = page.last
