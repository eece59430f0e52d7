"""Looks at the database a few times a second for what time and other replicas brought, and acts on it.

One cheap statement that writes and locks nothing, for the whole process, however many executors, watchers and followers
wait here; only what it shows costs more. The hub's hints make the common case faster; this makes all of them true.
"""

from __future__ import annotations

import asyncio
from typing import Final

from holdfast.errors import HoldfastError
from services.shared.clock import Clock
from services.shared.database import Database, Writer
from services.shared.telemetry import get_logger
from services.state import lease_store
from services.state.hub import Hub

POSTGRES_SECONDS: Final = 0.25
# Nobody else writes to the file: only time brings something.
SQLITE_SECONDS: Final = 0.5
# Longer than any beat takes; executors cannot have renewed for about as long.
AWAY_SECONDS: Final = 2.5
REPAIR_SECONDS: Final = 10.0
HOUSEKEEPING_SECONDS: Final = 600.0

log = get_logger(__name__)


class Pulse:
    """The permanent sweeper of this process."""

    def __init__(self, db: Database, hub: Hub, clock: Clock) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        self._mark = 0
        self._horizon = 0
        self._repaired_at = -REPAIR_SECONDS
        self._cleaned_at = clock.monotonic()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        # A connection of its own, and one statement without a transaction around it: this is what an idle process does.
        async with self._db.writer(autocommit=True) as look:
            await self._run(look)

    async def _run(self, look: Writer) -> None:
        interval = POSTGRES_SECONDS if self._db.dialect == "postgresql" else SQLITE_SECONDS
        # None: state itself was away until now.
        answered_at: float | None = None
        is_failing = False
        while True:
            try:
                if answered_at is None or self._clock.monotonic() - answered_at > AWAY_SECONDS:
                    # Nobody could renew while state or its storage was away: executors that are alive come back and
                    # find their runs.
                    await self._db.write(lease_store.extend_all, self._db, lease_store.LEASE_DURATION)
                await self._beat(look)
                answered_at = self._clock.monotonic()
                is_failing = False
            except HoldfastError as error:
                level = log.debug if is_failing else log.warning
                level("sweep_failed", reason=error.reason)
                is_failing = True
            await asyncio.sleep(interval)

    async def _beat(self, look: Writer) -> None:
        if self._db.dialect == "postgresql":
            seen = await look.run(lease_store.glance, self._db)
        else:
            # There, a writer would lock the file.
            seen = await self._db.read(lease_store.glance, self._db)
        if seen.has_due:
            await self._sweep()
        if seen.has_ready:
            self._hub.runs_ready()
        await self._notice_commits(seen)
        now = self._clock.monotonic()
        if now - self._repaired_at >= REPAIR_SECONDS:
            self._repaired_at = now
            stranded = await self._db.write(lease_store.repair, self._db)
            if stranded:
                log.warning("stranded_runs_made_ready", runs=stranded)
                self._hub.runs_ready()
        if now - self._cleaned_at >= HOUSEKEEPING_SECONDS:
            self._cleaned_at = now
            await self._db.write(lease_store.forget_old_requests, self._db)
            await self._db.write(lease_store.forget_old_calls, self._db)

    async def _sweep(self) -> None:
        found = await self._db.write(lease_store.sweep, self._db)
        if found.ready_runs:
            log.info("runs_returned_or_woken", runs=found.ready_runs)
            self._hub.runs_ready()
        for workspace_id, tool in found.calls_queued:
            self._hub.calls_queued(workspace_id, tool)
        for lost in await self._db.read(lease_store.lost_calls, self._db):
            outside = await self._db.write(lease_store.lose_call, self._db, lost)
            if outside is not None:
                log.info("call_lost", run_id=lost.run_id, step=lost.step, attempt=lost.attempt)
                self._hub.outside_event(lost.run_id, outside)

    async def _notice_commits(self, seen: lease_store.Glance) -> None:
        """Tells followers and watchers of what other replicas committed."""
        # The feed ends at the newest transaction, or before the oldest that is still open.
        mark = min(seen.newest, seen.horizon - 1)
        if mark != self._mark:
            self._hub.feed_changed()
        runs = self._hub.watched_runs
        if runs and self._horizon and (seen.newest >= self._horizon):
            # Order matters: from the horizon of the look before, as what was open then may have committed since.
            for run_id, seq in await self._db.read(lease_store.reached_since, runs, self._horizon):
                self._hub.journal_reaches(run_id, seq)
        self._mark, self._horizon = mark, seen.horizon
