"""Erasure on request: data is removed for good, batch by batch, and followers of the change feed learn of it.

Each transaction leaves whole runs or none, so that an erasure that was cut short is finished by the same call, and what
it left of runs that are gone already is deleted by housekeeping.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from holdfast.api.common.v1 import workspace_pb2
from holdfast.errors import FailedPrecondition, HoldfastError, Reason
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state import housekeeping_store as store
from services.state import run_store
from services.state import tables as t
from services.state.export import Scope, check_session
from services.state.housekeeping import EVENTS_LIMIT, FORGET_LIMIT, LOOK_LIMIT, Pace
from services.state.housekeeping_store import Erasure
from services.state.hub import Hub
from services.state.run_store import Written
from services.state.transitions import ENDED

SESSIONS_AT_ONCE: Final = 50
CANCEL_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.2

T = TypeVar("T")

log = get_logger(__name__)


class Erasing:
    """Erases, for whoever may.

    Args:
        db: Where everything is.
        hub: Told of what was written.
        clock: Measures batches, and sleeps.
        waiting: How many operations of executors wait for their commit.
    """

    def __init__(self, db: Database, hub: Hub, clock: Clock, waiting: Callable[[], int]) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        self._waiting = waiting

    async def preview(self, scope: Scope) -> workspace_pb2.DataCounts:
        """What would be erased. Bodies that other runs refer to as well are counted, and would stay.

        Raises:
            NotFound: SESSION_NOT_FOUND.
        """
        return await self._db.read(_count, scope)

    async def erase(
        self, scope: Scope, erasure: Erasure, *, cancel_first: bool
    ) -> AsyncIterator[workspace_pb2.DataCounts]:
        """Erases, and yields what was erased so far; the last time when it is done.

        Raises:
            NotFound: SESSION_NOT_FOUND.
            FailedPrecondition: SESSION_BUSY: runs have not ended.
        """
        await self._db.read(check_session, scope)
        if cancel_first:
            await self._cancel(scope, erasure)
        unfinished = await self._db.read(_unfinished, scope, 1)
        if unfinished:
            raise _busy(unfinished[0].run_id)
        pace = Pace()
        erased = workspace_pb2.DataCounts()
        after = ""
        while page := await self._db.read(_sessions_after, scope, after, SESSIONS_AT_ONCE):
            is_cut_short = True
            while is_cut_short:
                removed = await self._paced(
                    pace, store.remove_runs, self._db, scope.workspace_id, page, pace.size, erasure=erasure
                )
                crash_point("state.erase.runs_removed")
                self._hub.feed_changed()
                erased.sessions += removed.sessions
                erased.runs += removed.runs
                erased.events += removed.events
                erased.blobs += removed.blobs
                await self._delete_events(pace, scope)
                yield erased
                is_cut_short = removed.is_cut_short and removed.runs > 0
            after = page[-1]
        # What an erasure that was cut short has left.
        await self._delete_events(pace, scope)
        left = await self._db.read(_left, scope)
        if left is not None:
            raise _busy(left)
        if scope.is_everything:
            await self._erase_the_rest(pace, scope, erased)
        log.info(
            "erased",
            workspace_id=scope.workspace_id,
            sessions=erased.sessions,
            runs=erased.runs,
            agents=erased.agents,
            requested_by=erasure.requested_by,
        )
        yield erased

    async def _cancel(self, scope: Scope, erasure: Erasure) -> None:
        until = self._clock.monotonic() + CANCEL_SECONDS
        while unfinished := await self._db.read(_unfinished, scope, store.CHUNK):
            for row in unfinished:
                if not row.cancel_requested:
                    await self._cancel_run(scope.workspace_id, row.run_id, erasure)
            if self._clock.monotonic() >= until:
                return
            await self._clock.sleep(LOOK_SECONDS)

    async def _cancel_run(self, workspace_id: str, run_id: str, erasure: Erasure) -> None:
        try:
            _, written = await self._db.write(
                run_store.request_cancel, self._db, workspace_id, run_id, erasure.requested_by, "its data is erased"
            )
        except HoldfastError as error:
            if error.reason in (Reason.RUN_ENDED, Reason.RUN_NOT_FOUND):
                return
            raise
        self._tell(written)

    def _tell(self, written: Written) -> None:
        if written.outside is not None:
            self._hub.outside_event(written.run_id, written.outside)
        if written.leases:
            self._hub.calls_cancelled(list(written.leases))

    async def _delete_events(self, pace: Pace, scope: Scope) -> None:
        is_more = True
        while is_more:
            _, is_more = await self._paced(pace, store.delete_events, self._db, EVENTS_LIMIT, scope.workspace_id)
            crash_point("state.erase.events_deleted")

    async def _erase_the_rest(self, pace: Pace, scope: Scope, erased: workspace_pb2.DataCounts) -> None:
        erased.agents += await self._paced(pace, _erase_agents, scope)
        crash_point("state.erase.agents_deleted")
        place: tuple[str, bytes] | None = (scope.workspace_id, b"")
        while place is not None:
            found, place = await self._db.read(store.find_unreferenced, place, LOOK_LIMIT, scope.workspace_id)
            if found:
                hashes = [body for _, body in found]
                erased.blobs += await self._paced(pace, store.delete_unreferenced, scope.workspace_id, hashes)
        while (
            await self._paced(
                pace, store.forget_old_requests, self._db, FORGET_LIMIT, erased_workspace_id=scope.workspace_id
            )
            == FORGET_LIMIT
        ):
            pass

    async def _paced(self, pace: Pace, fn: Callable[..., T], *args: object, **options: object) -> T:
        started = self._clock.monotonic()
        result = await self._db.write(fn, *args, **options)
        seconds = self._clock.monotonic() - started
        pause = pace.pause_after(seconds, self._waiting())
        # Somebody waits for this: beside a service that has little to do it need not rest as long as housekeeping.
        await self._clock.sleep(pause if self._waiting() else min(pause, seconds))
        return result


def _busy(run_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        "runs have not ended: cancel them first, or ask for it",
        reason=Reason.SESSION_BUSY,
        metadata={"run_id": run_id},
    )


def _unfinished(connection: sa.Connection, scope: Scope, limit: int) -> list[Any]:
    r = t.runs.c
    query = sa.select(r.run_id, r.cancel_requested).where(scope.has_run(), r.state.not_in(ENDED))
    # The newest first: one that has not begun is cancelled before the one that it waits behind.
    return list(connection.execute(query.order_by(r.run_id.desc()).limit(limit)).all())


def _left(connection: sa.Connection, scope: Scope) -> str | None:
    """A run that was started while the others were erased."""
    return connection.execute(sa.select(t.runs.c.run_id).where(scope.has_run()).limit(1)).scalar()


def _sessions_after(connection: sa.Connection, scope: Scope, after: str, limit: int) -> list[str]:
    s = t.sessions.c
    query = sa.select(s.session_id).where(scope.has_session())
    if after:
        query = query.where(s.session_id > after)
    return list(connection.execute(query.order_by(s.session_id).limit(limit)).scalars())


def _erase_agents(connection: sa.Connection, scope: Scope) -> int:
    for table in (t.agent_labels, t.agent_revisions):
        connection.execute(sa.delete(table).where(table.c.workspace_id == scope.workspace_id))
    return connection.execute(sa.delete(t.agents).where(t.agents.c.workspace_id == scope.workspace_id)).rowcount


def _count(connection: sa.Connection, scope: Scope) -> workspace_pb2.DataCounts:
    check_session(connection, scope)
    r, f = t.runs.c, t.blob_references.c
    runs, events, unfinished = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(r.last_seq), 0),
            sa.func.count(sa.case((r.state.not_in(ENDED), 1))),
        ).where(scope.has_run())
    ).one()
    sessions = connection.execute(
        sa.select(sa.func.count()).select_from(t.sessions).where(scope.has_session())
    ).scalar_one()
    if scope.is_everything:
        bodies = sa.select(sa.func.count()).select_from(t.blobs).where(t.blobs.c.workspace_id == scope.workspace_id)
    else:
        bodies = (
            sa.select(sa.func.count(sa.distinct(f.hash)))
            .join(t.runs, r.run_id == f.run_id)
            .where(f.workspace_id == scope.workspace_id, scope.has_run())
        )
    counts = workspace_pb2.DataCounts(sessions=sessions, runs=runs, events=int(events), unfinished_runs=unfinished)
    counts.blobs = connection.execute(bodies).scalar_one()
    if scope.is_everything:
        counts.agents = connection.execute(
            sa.select(sa.func.count()).select_from(t.agents).where(t.agents.c.workspace_id == scope.workspace_id)
        ).scalar_one()
    return counts
