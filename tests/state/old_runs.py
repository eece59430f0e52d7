"""Runs and sessions as they are after a long time, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from holdfast.api.common.v1 import workspace_pb2
from services.state import housekeeping_settings, tables
from services.state.housekeeping_store import Policy, first_id_at
from tests.state.support import SUCCEEDED, Held, Store, becomes, finished, message_blob, started

DAY = timedelta(days=1)


def id_at(moment: datetime) -> str:
    """A UUIDv7 that was made at a moment."""
    return first_id_at(moment)[:14] + "7" + str(uuid4())[15:]


def ago(days: float) -> datetime:
    """A moment in the past."""
    return datetime.now(UTC) - days * DAY


def policy(
    store: Store, runs_kept: timedelta | None = 30 * DAY, sessions_kept: timedelta | None = None, keep_latest: int = 0
) -> Policy:
    """A policy of the store's workspace."""
    return Policy(store.workspace, runs_kept, sessions_kept, keep_latest)


async def settle(store: Store, *paths: str, workspace: str = "", **values: Any) -> None:
    """Stores settings of a workspace, as its administrator does."""
    settings = workspace_pb2.WorkspaceSettings(**values)
    await store.db.write(
        housekeeping_settings.update_settings,
        store.db,
        workspace or store.workspace,
        settings,
        paths or list(values),
        is_operator=True,
    )


async def ended_run(
    store: Store,
    days: float,
    *,
    session: Held | None = None,
    steps: int = 1,
    body: str = "",
    **fields: Any,
) -> Held:
    """A run that ended so many days ago, at the end of a session or in one of its own.

    Args:
        body: What one of its steps answered, stored as a body of its own.
    """
    moment = ago(days)
    if session is not None:
        fields["session_id"] = session.session_id
    else:
        fields["new_session_id"] = id_at(moment)
    run = await store.claimed(run_id=id_at(moment), **fields)
    for step in range(1, steps + 1):
        await store.advance(run, started(step), finished(step))
    if body:
        message, blob = message_blob(body)
        await store.advance(run, started(steps + 1), finished(steps + 1, message=message), blobs=[blob])
    await store.advance(run, becomes(SUCCEEDED))
    await grow_old(store, run, moment, is_first=session is None)
    return run


async def grow_old(store: Store, run: Held, moment: datetime, *, is_first: bool = True) -> None:
    """Makes an ended run one that was accepted and ended at a moment."""

    def turn_back(connection: sa.Connection) -> None:
        r, s = tables.runs.c, tables.sessions.c
        connection.execute(
            sa.update(tables.runs).where(r.run_id == run.run_id).values(created_at=moment, ended_at=moment)
        )
        if is_first:
            connection.execute(
                sa.update(tables.sessions).where(s.session_id == run.session_id).values(created_at=moment)
            )

    await store.db.write(turn_back)


async def count(store: Store, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    """How many rows there are."""
    query = sa.select(sa.func.count()).select_from(table).where(*conditions)
    return await store.db.read(lambda connection: int(connection.execute(query).scalar_one()))


async def run_ids(store: Store) -> set[str]:
    """The runs that are there."""
    return await store.db.read(lambda connection: set(connection.execute(sa.select(tables.runs.c.run_id)).scalars()))


async def left_of(store: Store, *runs: Held) -> dict[str, int]:
    """What is left of runs, by table; tables without anything are left out."""
    ids = [run.run_id for run in runs]
    of_runs: Sequence[sa.Table] = (
        tables.runs,
        tables.journal,
        tables.approvals,
        tables.calls,
        tables.blob_references,
        tables.removed_runs,
    )
    found = {table.name: await count(store, table, table.c.run_id.in_(ids)) for table in of_runs}
    return {name: rows for name, rows in found.items() if rows}
