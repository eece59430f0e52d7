"""What trace keeps, as a contract: events, runs, and the place in the feed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from holdfast.api.common.v1.run_pb2 import Event
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from services.trace.summary import RunRecord


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list shows; what is empty or None does not restrict."""

    agent: str = ""
    session_id: str = ""
    user_id: str = ""
    states: frozenset[int] = frozenset()
    created_from: datetime | None = None
    """At or after."""
    created_before: datetime | None = None
    parent_run_id: str = ""
    root_run_id: str = ""
    include_children: bool = False
    """Without it, and without the two before, only what callers started."""


@dataclass(frozen=True, slots=True)
class RunPosition:
    """The sort key of a list of runs."""

    created_at: datetime
    run_id: str


@dataclass(frozen=True, slots=True)
class RunHistory:
    """A run and its events 1 … `run.last_seq`, seen in one moment."""

    run: RunRecord
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class StoredEntries:
    """What `Projection.store` did."""

    new_events: int
    """Events that were not stored before."""
    advanced: Sequence[str]
    """Runs whose `last_seq` grew."""
    runs_with_gap: Sequence[str]
    """Runs of which an event is missing before one that is stored."""


class Projection(Protocol):
    """The one writer. Whoever holds it may find out that it does not lead: another replica does."""

    async def try_to_lead(self) -> bool:
        """Tells whether this process is the one that projects. It may be asked again, and stays so until it closes.

        Once it has closed another one may.

        Two replicas that both believe to lead do no harm: only one of their `store` calls succeeds.
        """

    async def cursor(self) -> bytes:
        """Returns the cursor up to which all events are stored; empty before the first."""

    async def store(self, entries: Sequence[FeedEntry], *, after: bytes, cursor: bytes) -> StoredEntries:
        """Stores events, the runs' new summaries and the new cursor: all of it or nothing.

        Storing an event again changes nothing. The event that says that a run was erased removes what is stored of it.

        Args:
            entries: What the feed gave after the cursor `after`. Their events lose their run ids.
            after: The stored cursor.
            cursor: The new one.

        Raises:
            Conflict: The stored cursor is not `after`: another process has stored meanwhile. Nothing was stored.
        """


class TraceStore(Protocol):
    """The readings. A run is visible from its first event on; every method shows one workspace only."""

    def projection(self) -> AbstractAsyncContextManager[Projection]:
        """Opens the writer; it keeps a database connection until it is closed."""

    async def find_run(self, workspace_id: str, run_id: str) -> RunRecord | None:
        """Returns a run; None when the workspace has none of that id."""

    async def list_runs(
        self, workspace_id: str, wanted: RunFilter, *, after: RunPosition | None, limit: int
    ) -> list[RunRecord]:
        """Returns runs, newest first, that come after a position."""

    async def find_history(self, workspace_id: str, run_id: str) -> RunHistory | None:
        """Returns a run with its events; None when the workspace has none of that id."""

    async def find_predecessors(self, workspace_id: str, run: RunRecord) -> list[RunRecord]:
        """Returns the runs that a run follows, from the first of its session."""

    async def find_descendants(self, workspace_id: str, run: RunRecord, limit: int) -> list[RunHistory]:
        """Returns the runs below a run with their events: each behind the one that started it, at most so many."""
