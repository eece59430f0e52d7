"""Looks at the database a few times a second for what time and other replicas brought, and acts on it.

One cheap statement that writes and locks nothing, for the whole process, however many executors, watchers and followers
wait here; only what it shows costs more. It also says when something is due next, so that a timer fires at its time and
not at the next beat. The hub's hints make the common case faster; this makes all of them true.
"""

from __future__ import annotations

import asyncio
from typing import Final

from holdfast.errors import HoldfastError
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.database import Database, Writer
from services.shared.telemetry import get_logger
from services.state import children, expiry, lease_store
from services.state.hub import Hub, wait_for
from services.state.run_store import Written

POSTGRES_SECONDS: Final = 0.25
# Nobody else writes to the file: only time brings something.
SQLITE_SECONDS: Final = 0.5
# Between two sweeps, unless one left something: what is due in quick succession is swept together.
SWEPT_SECONDS: Final = 0.02
# What is due and cannot be swept now is locked by somebody who has it.
LOCKED_SECONDS: Final = 0.05
# Clocks have steps: who looks a little too early looks again.
SHORTEST_SECONDS: Final = 0.002
# Longer than any beat takes; executors cannot have renewed for about as long.
AWAY_SECONDS: Final = 2.5
REPAIR_SECONDS: Final = 10.0

log = get_logger(__name__)


class Pulse:
    """The permanent sweeper of this process.

    Args:
        db: The database.
        hub: Who is told of what is found, and tells of timers that are set here.
        clock: Measures how long state was away.
        interval_seconds: How often it looks when nothing is known to be due.
    """

    def __init__(self, db: Database, hub: Hub, clock: Clock, *, interval_seconds: float | None = None) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        usual = POSTGRES_SECONDS if db.dialect == "postgresql" else SQLITE_SECONDS
        self._interval = usual if interval_seconds is None else interval_seconds
        self._mark = 0
        self._horizon = 0
        self._repaired_at = -REPAIR_SECONDS

    async def run(self) -> None:
        """Looks until it is cancelled."""
        # A connection of its own, and one statement without a transaction around it: this is what an idle process does.
        async with self._db.writer(autocommit=True) as look:
            await self._run(look)

    async def _run(self, look: Writer) -> None:
        # None: state itself was away until now.
        answered_at: float | None = None
        is_failing = False
        while True:
            seen: lease_store.Glance | None = None
            pause = self._interval
            began = asyncio.get_running_loop().time()
            try:
                if answered_at is None or self._clock.monotonic() - answered_at > AWAY_SECONDS:
                    # Nobody could renew while state or its storage was away: executors that are alive come back and
                    # find their runs.
                    await self._db.write(lease_store.extend_all, self._db, lease_store.LEASE_DURATION)
                began = asyncio.get_running_loop().time()
                seen, pause = await self.beat(look)
                answered_at = self._clock.monotonic()
                is_failing = False
            except HoldfastError as error:
                level = log.debug if is_failing else log.warning
                level("sweep_failed", reason=error.reason)
                is_failing = True
                pause = self._interval
            await self._rest(seen, began, pause)

    async def beat(self, look: Writer | None = None) -> tuple[lease_store.Glance, float]:
        """Looks once and acts on what it sees.

        Args:
            look: A writer that commits by itself, for the look on PostgreSQL.

        Returns:
            What was seen, and for how many seconds there is nothing to do.

        Raises:
            HoldfastError: The storage's trouble.
        """
        self._hub.next_wake = None
        if look is not None and self._db.dialect == "postgresql":
            seen = await look.run(lease_store.glance, self._db)
        else:
            # On SQLite a writer would lock the file.
            seen = await self._db.read(lease_store.glance, self._db)
        return seen, await self._act(seen)

    async def _rest(self, seen: lease_store.Glance | None, began: float, pause: float) -> None:
        """Waits for the next beat; not beyond the time of a timer that is set here meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + pause
        while (left := until - loop.time()) > 0:
            if not await wait_for(self._hub.wake_set, left):
                break
            self._hub.wake_set.clear()
            if seen is not None and self._hub.next_wake is not None:
                # The database's clock, carried on by the loop's.
                due = began + (self._hub.next_wake - seen.now).total_seconds()
                until = min(until, max(due, loop.time() + SHORTEST_SECONDS))
        else:
            await asyncio.sleep(0)

    async def _act(self, seen: lease_store.Glance) -> float:
        pause = self._interval
        if seen.has_due:
            pause = await self._sweep(seen)
        elif seen.next_due is not None:
            pause = min(pause, max((seen.next_due - seen.now).total_seconds(), SHORTEST_SECONDS))
        if seen.has_ready:
            self._hub.runs_seen_ready()
        await self._notice_commits(seen)
        now = self._clock.monotonic()
        if now - self._repaired_at >= REPAIR_SECONDS:
            self._repaired_at = now
            stranded = await self._db.write(lease_store.repair, self._db)
            if stranded:
                log.warning("stranded_runs_made_ready", runs=stranded)
                self._hub.runs_ready()
        return pause

    async def _sweep(self, seen: lease_store.Glance) -> float:
        """Sweeps once; returns when to look again."""
        found = await self._db.write_by_keys(lease_store.sweep, self._db)
        if found.ready_runs:
            log.info("runs_returned_or_woken", runs=found.ready_runs)
            self._hub.runs_ready()
        for workspace_id, tool in found.calls_queued:
            self._hub.calls_queued(workspace_id, tool)
        lost_calls = await self._db.read(lease_store.lost_calls, self._db) if seen.has_lost_calls else []
        for lost in lost_calls:
            outside = await self._db.write(lease_store.lose_call, self._db, lost)
            if outside is not None:
                log.info("call_lost", run_id=lost.run_id, step=lost.step, attempt=lost.attempt)
                self._hub.outside_event(lost.run_id, outside)
        # Order matters: after the runs of lost executors were returned, so that what they drove ends here, too.
        expired = await self._db.read(expiry.expired_runs, self._db) if seen.has_expired else []
        for run in expired:
            await self._expire(run)
        # Order matters: after the ends that were just written, so that what they leave behind is found here, too.
        orphans = await self._db.read(children.orphans) if seen.has_orphans or expired else []
        for orphan in orphans:
            await self._cancel_orphan(orphan)
        if len(expired) >= expiry.EXPIRED_LIMIT or len(orphans) >= children.ORPHANS_LIMIT:
            return 0.0
        if found.is_full or len(lost_calls) >= lease_store.LOST_CALLS_LIMIT:
            return 0.0
        is_idle = found.is_empty and not lost_calls and not expired and not orphans
        return LOCKED_SECONDS if is_idle else SWEPT_SECONDS

    async def _cancel_orphan(self, orphan: children.Orphan) -> None:
        written = await self._db.write(children.cancel_orphan, self._db, orphan)
        if written is not None:
            log.info("orphan_cancelled", run_id=orphan.child_run_id)
            self._tell(written)

    async def _expire(self, run: expiry.ExpiredRun) -> None:
        written = await self._db.write(expiry.expire_run, self._db, run)
        if written is not None and written.outside is not None:
            crash_point("state.expiry.after_commit")
            log.info("run_expired", run_id=run.run_id)
            self._tell(written)

    def _tell(self, written: Written) -> None:
        for one in (written, *written.others):
            if one.outside is not None:
                self._hub.outside_event(one.run_id, one.outside)
            if one.leases:
                self._hub.calls_cancelled(list(one.leases))

    async def _notice_commits(self, seen: lease_store.Glance) -> None:
        """Tells followers and watchers of what other replicas committed."""
        # The feed ends at the newest transaction, or before the oldest that is still open.
        mark = min(seen.newest, seen.horizon - 1)
        if mark != self._mark:
            self._hub.feed_changed()
        if self._horizon and seen.newest >= self._horizon:
            # Order matters: from the horizon of the look before, as what was open then may have committed since.
            if watched := self._hub.watched_runs:
                for run_id, seq in await self._db.read_once(lease_store.reached_since, watched, self._horizon):
                    self._hub.journal_reaches(run_id, seq)
            if awaited := self._hub.awaited_runs:
                for run_id in await self._db.read_once(lease_store.ended_since, awaited, self._horizon):
                    self._hub.may_have_ended(run_id)
        self._mark, self._horizon = mark, seen.horizon
