"""Runs by the hundred thousand, written into the database by SQL, with ids that count."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from benchmarks.simulation.clock import START
from services.state import tables as t
from services.state.journal import to_micros
from services.state.turns import INTERACTIVE

_KINDS = {"workspace": 1, "run": 2, "session": 3, "executor": 4, "stream": 5}


def id_of(kind: str, number: int) -> str:
    """The UUID of the so manieth thing of a kind."""
    return f"0000000{_KINDS[kind]}-0000-7000-8000-{number:012x}"


def insert_runs(
    connection: sa.Connection,
    first: int,
    count: int,
    *,
    state: int,
    workspaces: tuple[int, int],
    at: float,
    wake_at: float | None = None,
    spread: float = 0.0,
    lane: int = INTERACTIVE,
) -> None:
    """Stores runs in one statement.

    Args:
        first: Number of the first of them.
        count: How many.
        state: Their state.
        workspaces: Number of the first workspace, and over how many they are spread.
        at: When they were created, in seconds of the simulation.
        wake_at: When the first of them wakes.
        spread: Over how many seconds the others follow it.
        lane: Their lane.
    """
    beginning = to_micros(START)
    created = beginning + int(at * 1e6)
    wake = "NULL" if wake_at is None else f"{beginning + int(wake_at * 1e6)} + i * {int(spread * 1e6)} / {count}"
    values = {column.name: "0" for column in t.runs.c if not column.nullable}
    values |= {
        "run_id": f"printf('{id_of('run', 0)[:24]}%012x', {first} + i)",
        "session_id": f"printf('{id_of('session', 0)[:24]}%012x', {first} + i)",
        "workspace_id": f"printf('{id_of('workspace', 0)[:24]}%012x', {workspaces[0]} + i % {workspaces[1]})",
        "agent": "'support'",
        "revision": "'r'",
        "user_id": "''",
        "ordinal": "1",
        "lane": str(lane),
        "state": str(state),
        "last_seq": "1",
        "ready_at": str(created),
        "wake_at": wake,
        "created_at": str(created),
        "updated_at": str(created),
    }
    connection.exec_driver_sql(
        f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count}) "
        f"INSERT INTO runs ({', '.join(values)}) SELECT {', '.join(values.values())} FROM n"
    )


def put_workspace(connection: sa.Connection, number: int, *, weight: int = 1, max_running: int = 0) -> None:
    """Stores what a workspace may use."""
    values: dict[str, Any] = {column.name: 0 for column in t.workspaces.c if not column.nullable}
    values |= {
        "workspace_id": id_of("workspace", number),
        "weight": weight,
        "max_running": max_running,
        "updated_at": START,
    }
    connection.execute(sa.insert(t.workspaces).values(values))
