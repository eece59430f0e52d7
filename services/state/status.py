"""How state's database is: its clock, its schema, who uses it, and what is dangerous about how it is set up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from services.shared.database import Database
from services.shared.seals import Seals
from services.state import tables as t
from services.state.transitions import ENDED

# A token that somebody typed in, such as one character many times.
_LEAST_DIFFERENT_CHARACTERS: Final = 10
# Of PostgreSQL's connections in use, beyond which the next replica may get none.
_MOST_CONNECTIONS: Final = 0.8


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """What the database says of itself.

    Attributes:
        time: Its clock.
        unfinished_runs: Runs that have not ended.
        executors: Executors that are connected somewhere.
        connections: Connections of state's processes; 0 on SQLite.
        warnings: What is dangerous, one sentence each.
    """

    time: datetime
    unfinished_runs: int
    executors: int
    connections: int
    warnings: Sequence[str]


def read_status(connection: sa.Connection, db: Database) -> DatabaseStatus:
    """Asks the database how it is."""
    now = db.now(connection)
    r, e = t.runs.c, t.executors.c
    unfinished = sa.select(sa.func.count()).select_from(t.runs).where(r.state.not_in(ENDED))
    connected = sa.select(sa.func.count()).select_from(t.executors).where(e.expires_at > now)
    connections = 0
    warnings: list[str] = []
    if db.dialect == "postgresql":
        connections, warnings = _ask_postgres(connection)
    return DatabaseStatus(
        now,
        connection.execute(unfinished).scalar_one(),
        connection.execute(connected).scalar_one(),
        connections,
        warnings,
    )


# A commit that these let through may be lost with the next power cut, although it was acknowledged.
_DURABILITY: Final = ("fsync", "synchronous_commit", "full_page_writes")


def _ask_postgres(connection: sa.Connection) -> tuple[int, list[str]]:
    warnings = [
        f"PostgreSQL runs with {name} = off: what was acknowledged can be lost in a crash"
        for name in _DURABILITY
        if connection.execute(sa.text("SELECT current_setting(:name)"), {"name": name}).scalar_one() == "off"
    ]
    mine, used, most = connection.execute(
        sa.text(
            "SELECT count(*) FILTER (WHERE application_name = 'holdfast-state' AND datname = current_database()), "
            "count(*) FILTER (WHERE backend_type = 'client backend'), "
            "CAST(current_setting('max_connections') AS integer) FROM pg_stat_activity"
        )
    ).one()
    if used > most * _MOST_CONNECTIONS:
        warnings.append(f"PostgreSQL has {used} of at most {most} connections in use: raise max_connections")
    return mine, warnings


def warnings_about_seals(seals: Seals) -> list[str]:
    """What is dangerous about how payloads are sealed now."""
    if not seals.is_out_of_touch():
        return []
    return [
        "state cannot ask auth which workspaces have their payloads sealed: a workspace that turns it on is not sealed "
        "until it can; HOLDFAST_AUTH_ADDRESS of state says where auth is"
    ]


def warnings_about(*, service_token: str, crash_point: str, allow_plaintext: bool) -> list[str]:
    """What is dangerous about a process's settings, one sentence each."""
    found = []
    if len(set(service_token)) < _LEAST_DIFFERENT_CHARACTERS:
        found.append("HOLDFAST_SERVICE_TOKEN is easy to guess: make one with `openssl rand -hex 32`")
    if crash_point:
        found.append("HOLDFAST_CRASH_POINT is set: this process is made to die, which is for tests only")
    if allow_plaintext:
        found.append("HOLDFAST_ALLOW_PLAINTEXT is set: whoever can read the network can read the service token")
    return found
