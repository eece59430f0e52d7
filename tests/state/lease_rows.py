"""Rows of runs and workspaces for tests of claims, stored directly: many, and in any state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from holdfast.ids import new_uuid7
from services.state import tables as t
from services.state.turns import INTERACTIVE
from tests.state.support import QUEUED

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def insert_runs(
    connection: sa.Connection, /, workspace_id: str, count: int, *, lane: int = INTERACTIVE, **fields: Any
) -> list[str]:
    """Stores runs, one ready a millisecond after the other from `begins` on; returns their ids."""
    begins = fields.pop("begins", BEGINNING)
    common: dict[str, Any] = {
        column.name: 0 for column in t.runs.c if not column.nullable and isinstance(column.type, sa.Integer)
    }
    common |= {"workspace_id": workspace_id, "agent": "support", "revision": "r", "user_id": "", "ordinal": 1}
    common |= {"lane": lane, "state": QUEUED, "blocked": False, "cancel_requested": False, "last_seq": 1}
    common |= {"created_at": begins, "updated_at": begins, "ready_at": begins, **fields}
    rows = [
        {
            **common,
            "run_id": new_uuid7(),
            "session_id": new_uuid7(),
            "ready_at": begins + timedelta(milliseconds=number),
        }
        for number in range(count)
    ]
    if rows:
        connection.execute(sa.insert(t.runs), rows)
    return [row["run_id"] for row in rows]


def insert_many_runs(connection: sa.Connection, /, workspaces: Sequence[str], count: int, state: int = QUEUED) -> None:
    """Stores so many runs that the database makes them itself (PostgreSQL); a waiting one wakes in a day."""
    run = {column.name: "0" for column in t.runs.c if not column.nullable}
    run |= dict.fromkeys(("run_id", "session_id"), "gen_random_uuid()")
    run |= dict.fromkeys(("agent", "revision", "user_id"), "'x'")
    run |= dict.fromkeys(("blocked", "cancel_requested", "pause_requested", "expiring"), "false")
    run |= dict.fromkeys(("created_at", "updated_at"), "now()")
    run |= {
        "workspace_id": "(CAST(:workspaces AS uuid[]))[1 + i % :spread]",
        "lane": "2",
        "state": ":state",
        "last_seq": "1",
        "ready_at": "now() + i * interval '1 microsecond'",
        "wake_at": "CASE WHEN :state = 3 THEN now() + interval '1 day' + i * interval '1 second' END",
    }
    connection.execute(
        sa.text(
            f"INSERT INTO runs ({', '.join(run)}) SELECT {', '.join(run.values())} FROM generate_series(1, :count) AS i"
        ),
        {"workspaces": f"{{{','.join(workspaces)}}}", "spread": len(workspaces), "count": count, "state": state},
    )


def put_workspace(connection: sa.Connection, /, workspace_id: str, *, weight: int = 1, max_running: int = 0) -> None:
    """Stores what a workspace may use."""
    values: dict[str, Any] = {
        column.name: 0 for column in t.workspaces.c if isinstance(column.type, sa.Integer) and not column.nullable
    }
    values |= {"workspace_id": workspace_id, "weight": weight, "max_running": max_running, "updated_at": BEGINNING}
    connection.execute(sa.delete(t.workspaces).where(t.workspaces.c.workspace_id == workspace_id))
    connection.execute(sa.insert(t.workspaces).values(values))
