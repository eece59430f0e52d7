"""What a system's program is asked to measure, and how it answers: one JSON object on its last line.

Standard library only: it is imported inside every peer's environment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

STEPS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement of one system.

    Attributes:
        measure: `steps`, `recovery`, `parked`, `approvals` or `limits`.
        concurrency: Runs in flight.
        seconds: How long it is measured.
        warm_up: Seconds of the same load before that.
        body_bytes: Length of each step's result.
        runs: How many runs `recovery` starts and `parked` and `approvals` park.
        database_url: An empty database of its own; empty for a system without PostgreSQL.
        postgres_pid: The server's process.
        folder: An empty folder of its own, on the disk of the database.
        restate_server: Restate's binary; empty for the others.
    """

    measure: str
    concurrency: int
    seconds: float
    warm_up: float
    body_bytes: int
    runs: int
    database_url: str
    postgres_pid: int
    folder: str
    restate_server: str = ""

    def to_argument(self) -> str:
        """As the program's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Self:
        """The task that `to_argument` wrote."""
        return cls(**json.loads(argument))

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)


def run_program(measures: Mapping[str, Callable[[Task], dict[str, Any]]]) -> None:
    """The main function of a system's program: does what the one argument says and prints what it found.

    The process ends at once then: what a system would still tidy up is thrown away with its database.
    """
    _end_with_the_parent()
    task = Task.from_argument(sys.argv[1])
    row = measures[task.measure](task)
    print(json.dumps(row), flush=True)
    os._exit(0)


def _end_with_the_parent() -> None:
    """Ends this process and its group as soon as the end of standard input says that the parent is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(0, 9)

    threading.Thread(target=wait, daemon=True).start()
