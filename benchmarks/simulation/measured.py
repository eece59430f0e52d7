"""The database of the simulation, which notes what each store function costs."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from services.shared.database import Database
from services.shared.database_sqlite import SqliteBackend


@dataclass
class Cost:
    """What the calls of one store function cost.

    Attributes:
        calls: How many.
        statements: SQL statements of all of them.
        seconds: Real time of all of them.
        at: When each was made, in seconds of the simulation.
    """

    calls: int = 0
    statements: int = 0
    seconds: float = 0.0
    at: list[float] = field(default_factory=list)


class MeasuredDatabase(Database):
    """A database that counts."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._statements = 0
        sa.event.listen(sa.Engine, "before_cursor_execute", self._count)

    def _count(self, *_: Any) -> None:
        self._statements += 1

    async def close(self) -> None:
        """Closes every connection."""
        sa.event.remove(sa.Engine, "before_cursor_execute", self._count)
        await super().close()

    # In this thread: nothing happens at once here, and each way to another thread would cost more than a statement. The
    # simulation awaits each call, so that the statements between two moments are this call's.
    async def write(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Database.write`."""
        return self._measure(self._sqlite._write, fn, args, kwargs)

    async def read(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Database.read`."""
        return self._measure(self._sqlite._read, fn, args, kwargs)

    @property
    def _sqlite(self) -> SqliteBackend:
        assert isinstance(self._backend, SqliteBackend)
        return self._backend

    def _measure(self, run: Any, fn: Any, args: Any, kwargs: Any) -> Any:
        before, began = self._statements, time.perf_counter()
        result = run(lambda connection: fn(connection, *args, **kwargs))
        cost = self.costs[fn.__name__]
        cost.calls += 1
        cost.statements += self._statements - before
        cost.seconds += time.perf_counter() - began
        cost.at.append(self._clock.monotonic())
        return result
