"""In one process, one refresh per connection: no caller's impatience ends it, and the drain ends it well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from holdfast.errors import HoldfastError, Reason, Unavailable
from services.auth.connection_store import Connection
from services.auth.refresh.documents import StoredTokens
from services.auth.refresh.goal import Goal
from services.auth.refresh.limits import RefreshLimits
from services.auth.refresh.renewal import Held, Progress, Renewal
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

DRAIN_SECONDS: Final = 30.0
"""How long refreshes whose request has left may go on after SIGTERM."""

_FIRST_POLL: Final = 0.05
_LAST_POLL: Final = 0.5

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Flight:
    connection: Connection
    goal: Goal
    is_patient: bool
    """It waits while another process is at it."""
    result: asyncio.Future[StoredTokens] = field(init=False)
    task: asyncio.Task[None] = field(init=False)


class RefreshCoordinator:
    """Renews tokens for everybody in this process.

    Args:
        renewal: One attempt.
        limits: Slots for calls.
        clock: Waits.
    """

    def __init__(self, renewal: Renewal, limits: RefreshLimits, clock: Clock) -> None:
        self._renewal = renewal
        self._limits = limits
        self._clock = clock
        self._flights: dict[str, _Flight] = {}
        self._is_draining = False

    async def refresh(self, connection: Connection, goal: Goal) -> StoredTokens:
        """Returns tokens that meet the goal, or the newest ones if a refresh could not bring better.

        The refresh goes on when the caller is cancelled.

        Raises:
            NotFound: The connection has no tokens any more.
            FailedPrecondition: Only the user can help (CONNECTION_NEEDS_REAUTH), or the integration is disabled.
            Unavailable: The provider or the store is away, or this process shuts down.
        """
        flight = self._flights.get(connection.connection_id)
        if flight is not None and not self._is_for(flight, connection):
            # It is about a grant that was replaced meanwhile.
            await asyncio.wait([flight.task])
            flight = self._flights.get(connection.connection_id)
        if flight is not None:
            try:
                stored = await asyncio.shield(flight.result)
            except Held:
                # A flight of the background, which does not wait for others.
                pass
            else:
                if goal.is_met(stored.current, self._clock.now()):
                    return stored
            # It flew for somebody who needed less.
            await asyncio.wait([flight.task])
        flight = self._flights.get(connection.connection_id) or self._start(connection, goal, is_patient=True)
        return await asyncio.shield(flight.result)

    async def refresh_in_background(self, connection: Connection, goal: Goal) -> StoredTokens | None:
        """Like `refresh`, within the limits for background work; None when somebody else is at it."""
        # The turn comes first: a caller that needs the token now does not wait behind the background's queue.
        async with self._limits.background(_integration_of(connection)):
            if connection.connection_id in self._flights:
                return None
            flight = self._start(connection, goal, is_patient=False)
            try:
                return await asyncio.shield(flight.result)
            except Held:
                return None

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Takes no new work, and returns when what has been sent is stored; after `seconds` the rest is given up."""
        self._is_draining = True
        tasks = {flight.task for flight in self._flights.values()}
        if not tasks:
            return
        log.info("refresh_drain", in_flight=len(tasks))
        _, left = await asyncio.wait(tasks, timeout=seconds)
        for task in left:
            # Their leases stay as they are, and whoever takes them over knows that something was sent.
            task.cancel()
        if left:
            log.error("refreshes_given_up", count=len(left))
            await asyncio.wait(left)

    @staticmethod
    def _is_for(flight: _Flight, connection: Connection) -> bool:
        return flight.connection.secret_path == connection.secret_path

    def _start(self, connection: Connection, goal: Goal, *, is_patient: bool) -> _Flight:
        if self._is_draining:
            raise Unavailable("auth is shutting down; try again", reason=Reason.DRAINING, retry_delay_seconds=1.0)
        flight = _Flight(connection, goal, is_patient)
        flight.result = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more when it fails.
        flight.result.add_done_callback(lambda future: future.cancelled() or future.exception())
        # Not in a task group: it belongs to no caller, and `drain` ends it.
        flight.task = asyncio.create_task(self._fly(flight), name=f"refresh {connection.connection_id}")
        self._flights[connection.connection_id] = flight
        return flight

    async def _fly(self, flight: _Flight) -> None:
        connection = flight.connection
        try:
            stored = await self._until_done(flight)
            if not flight.result.done():
                flight.result.set_result(stored)
        except asyncio.CancelledError:
            flight.result.cancel()
            raise
        except (HoldfastError, Held) as error:
            if not flight.result.done():
                flight.result.set_exception(error)
        except Exception as error:
            log.exception("refresh_crashed", connection_id=connection.connection_id)
            if not flight.result.done():
                flight.result.set_exception(error)
        finally:
            del self._flights[connection.connection_id]

    async def _until_done(self, flight: _Flight) -> StoredTokens:
        def serve(stored: StoredTokens) -> None:
            if not flight.result.done():
                flight.result.set_result(stored)

        connection = flight.connection
        progress = Progress(serve, lambda: self._is_draining)
        pause = _FIRST_POLL
        while True:
            try:
                async with self._limits.call(_integration_of(connection)):
                    return await self._renewal.attempt(connection, flight.goal, progress)
            except Held:
                if not flight.is_patient:
                    raise
            if self._is_draining:
                raise Unavailable("auth is shutting down; try again", reason=Reason.DRAINING, retry_delay_seconds=1.0)
            progress.has_waited = True
            await self._clock.sleep(pause)
            pause = min(2 * pause, _LAST_POLL)


def _integration_of(connection: Connection) -> str:
    return connection.integration_id or connection.connection_id
