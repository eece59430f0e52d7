"""Retention: removes what the workspaces' settings let go of, in small batches that give way to everything else.

Each replica runs this task, and one of them at a time has a batch. Nothing is remembered between passes but in the
database, so that a process may die at any moment.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa

from holdfast.errors import HoldfastError
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import housekeeping_store as store
from services.state.housekeeping_store import Policy, Removed

INTERVAL_SECONDS: Final = 60.0
# What is looked for in the whole database, and not in the workspaces with settings.
RARELY_SECONDS: Final = 600.0
BODIES_SECONDS: Final = 86_400.0
LOOK_LIMIT: Final = 500
EVENTS_LIMIT: Final = 5_000
FORGET_LIMIT: Final = 1_000

T = TypeVar("T")

log = get_logger(__name__)


class Pace:
    """How much one batch takes, and how long the pause after it is. Pure.

    A batch's own time is the measure of the load: it waits for the same disk and, on SQLite, for the same writer as
    everybody else. A fifth of the time at most is spent in batches.
    """

    TARGET_SECONDS: Final = 0.05
    FEWEST: Final = 10
    MOST: Final = 200
    PAUSE_FACTOR: Final = 4.0
    SHORTEST_PAUSE_SECONDS: Final = 0.05
    LONGEST_PAUSE_SECONDS: Final = 30.0
    # Operations that wait for their commit beside it.
    BUSY: Final = 64
    BUSY_PAUSE_SECONDS: Final = 1.0

    def __init__(self) -> None:
        self.size = 50
        """How many runs the next batch removes."""

    def pause_after(self, seconds: float, waiting: int) -> float:
        """Takes note of a batch and returns how long to rest.

        Args:
            seconds: How long the batch took.
            waiting: How many operations of executors waited at its end.
        """
        if seconds > 2 * self.TARGET_SECONDS or waiting >= self.BUSY:
            self.size = max(self.FEWEST, self.size // 2)
        elif seconds < self.TARGET_SECONDS:
            self.size = min(self.MOST, self.size * 2)
        pause = max(self.SHORTEST_PAUSE_SECONDS, seconds * self.PAUSE_FACTOR)
        if waiting >= self.BUSY:
            pause = max(pause, self.BUSY_PAUSE_SECONDS)
        return min(pause, self.LONGEST_PAUSE_SECONDS)


class _Busy(Exception):
    """Another replica keeps house."""


class Housekeeping:
    """The task of this process.

    Args:
        db: Where everything is.
        clock: Measures batches, and sleeps.
        waiting: How many operations of executors wait for their commit.
        interval_seconds: Time between two passes, on average.
    """

    def __init__(
        self, db: Database, clock: Clock, waiting: Callable[[], int], *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._interval_seconds = interval_seconds
        self._db = db
        self._clock = clock
        self._waiting = waiting
        self._pace = Pace()
        self._rarely_at = clock.monotonic()
        self._bodies_at = clock.monotonic()

    async def run(self) -> None:
        """Keeps house until it is cancelled."""
        is_failing = False
        while True:
            # Replicas that were started together do not come at the same moment.
            await self._clock.sleep(self._interval_seconds * random.uniform(0.75, 1.25))
            try:
                await self.keep_house()
                is_failing = False
            except HoldfastError as error:
                level = log.debug if is_failing else log.warning
                level("housekeeping_failed", reason=error.reason)
                is_failing = True
            except Exception as error:
                # What is kept for too long harms nobody today; a service that stops would.
                log.error("housekeeping_failed", exc_info=error)

    async def keep_house(self) -> Removed:
        """Makes one pass over everything that is due; returns what was removed."""
        removed = Removed()
        started = self._clock.monotonic()
        try:
            for policy in await self._db.read(store.policies):
                await self._apply(policy, removed)
            await self._delete_events()
            if started - self._rarely_at >= RARELY_SECONDS:
                await self.forget()
                self._rarely_at = started
            if started - self._bodies_at >= BODIES_SECONDS:
                removed.blobs += await self.sweep_bodies()
                self._bodies_at = started
        except _Busy:
            log.debug("housekeeping_elsewhere")
        if removed.runs or removed.sessions or removed.blobs:
            log.info(
                "removed",
                runs=removed.runs,
                events=removed.events,
                blobs=removed.blobs,
                sessions=removed.sessions,
                seconds=round(self._clock.monotonic() - started, 1),
            )
        return removed

    async def forget(self) -> None:
        """Deletes what is kept for repetitions and latecomers, when none is to be expected any more."""
        for forget in (store.forget_old_requests, store.forget_old_calls, store.delete_tombstones):
            while await self._batch(_alone, self._db, forget, FORGET_LIMIT) == FORGET_LIMIT:
                pass

    async def sweep_bodies(self) -> int:
        """Deletes bodies that no run refers to, wherever they come from; returns how many."""
        deleted = 0
        place: tuple[str, bytes] | None = ("00000000-0000-0000-0000-000000000000", b"")
        while place is not None:
            found, place = await self._db.read(store.find_unreferenced, place, LOOK_LIMIT)
            for workspace_id in {workspace_id for workspace_id, _ in found}:
                hashes = [body for owner, body in found if owner == workspace_id]
                deleted += await self._paced(partial(self._db.write, store.delete_unreferenced, workspace_id, hashes))
        return deleted

    async def _apply(self, policy: Policy, removed: Removed) -> None:
        kept = await self._db.read(store.kept_from, policy)
        after: str | None = ""
        while after is not None:
            page = await self._db.read(store.look_at_old_sessions, self._db, policy, kept, after, LOOK_LIMIT)
            await self._remove_runs(policy, list(page.with_old_runs), removed)
            for start in range(0, len(page.abandoned), store.CHUNK):
                removed.sessions += await self._batch(
                    _remove_sessions, self._db, policy, page.abandoned[start : start + store.CHUNK]
                )
                crash_point("state.housekeeping.sessions_removed")
            after = page.last

    async def _remove_runs(self, policy: Policy, sessions: list[str], removed: Removed) -> None:
        while sessions:
            # As many sessions as runs: each has one at least.
            some = sessions[: self._pace.size]
            batch = await self._batch(_remove_runs, self._db, policy, some, self._pace.size)
            crash_point("state.housekeeping.runs_removed")
            removed.add(batch)
            if not batch.is_cut_short or batch.runs == 0:
                sessions = sessions[len(some) :]
            await self._delete_events()

    async def _delete_events(self) -> None:
        is_more = True
        while is_more:
            _, is_more = await self._batch(_delete_events, self._db, EVENTS_LIMIT)
            crash_point("state.housekeeping.events_deleted")

    async def _batch(self, fn: Callable[..., T | None], *args: object) -> T:
        """Runs one transaction, and rests.

        Raises:
            _Busy: Another replica keeps house.
        """
        result = await self._paced(lambda: self._db.write(fn, *args))
        if result is None:
            raise _Busy
        return result

    async def _paced(self, work: Callable[[], Awaitable[T]]) -> T:
        started = self._clock.monotonic()
        result = await work()
        await self._clock.sleep(self._pace.pause_after(self._clock.monotonic() - started, self._waiting()))
        return result


# Each is one transaction, which does nothing when another replica has one of these open.


def _remove_runs(
    connection: sa.Connection, db: Database, policy: Policy, session_ids: list[str], limit: int
) -> Removed | None:
    if not store.is_alone(connection, db):
        return None
    assert policy.runs_kept is not None, "sessions with old runs are looked for under a policy only"
    return store.remove_runs(
        connection, db, policy.workspace_id, session_ids, limit, older_than=max(policy.runs_kept, store.MIN_KEPT)
    )


def _remove_sessions(connection: sa.Connection, db: Database, policy: Policy, session_ids: list[str]) -> int | None:
    if not store.is_alone(connection, db):
        return None
    assert policy.sessions_kept is not None, "abandoned sessions are looked for under a policy only"
    return store.remove_sessions(
        connection, db, policy.workspace_id, session_ids, max(policy.sessions_kept, store.MIN_KEPT)
    )


def _delete_events(connection: sa.Connection, db: Database, limit: int) -> tuple[int, bool] | None:
    return store.delete_events(connection, db, limit) if store.is_alone(connection, db) else None


def _alone(
    connection: sa.Connection, db: Database, forget: Callable[[sa.Connection, Database, int], int], limit: int
) -> int | None:
    return forget(connection, db, limit) if store.is_alone(connection, db) else None
