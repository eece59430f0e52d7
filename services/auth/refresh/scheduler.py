"""Renews tokens before anybody needs them, a bounded number at a time, and shares the work with the other replicas."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Final, NoReturn

from holdfast.errors import FailedPrecondition, HoldfastError, NotFound
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore
from services.auth.refresh.coordinator import RefreshCoordinator
from services.auth.refresh.goal import Goal
from services.auth.refresh.renewal import Renewal
from services.auth.refresh.rows import ConnectionRows
from services.auth.secrets import SecretDamagedError
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

LOOK_SECONDS: Final = 2.0
"""Between two looks for what is due."""

WORKERS: Final = 64
"""Refreshes in the background at the same time, of all integrations."""

WORKERS_OF_ONE: Final = 24
"""Of those, for one integration: the others are not kept waiting."""

BATCH: Final = 500

BATCH_SECONDS: Final = 10.0
"""How long a batch is worked off before what is due is looked up again: others have done a part of it."""

_REST_SECONDS: Final = 5.0
_PARKED: Final = timedelta(minutes=15)
_OVERDUE_SECONDS: Final = 60.0
_SPREAD_SHARE: Final = 0.1
_MOST_SPREAD: Final = 60.0

log = get_logger(__name__)


class RefreshScheduler:
    """Works off the connections whose refresh is due.

    Every replica runs one. They choose at random among what is due, and a connection that another one holds is left
    alone, so that they seldom meet.

    Args:
        store: Says what is due.
        renewal: Reads documents.
        coordinator: Renews them.
        rows: Are brought up to date where they lag.
        clock: Where time comes from.
        rng: Chooses.
    """

    def __init__(
        self,
        store: ConnectionStore,
        renewal: Renewal,
        coordinator: RefreshCoordinator,
        rows: ConnectionRows,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._renewal = renewal
        self._coordinator = coordinator
        self._rows = rows
        self._clock = clock
        self._rng = rng
        self._busy: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._has_room = asyncio.Event()

    async def run(self) -> NoReturn:
        """Works until it is cancelled; refreshes that have begun go on."""
        async with asyncio.TaskGroup() as group:
            while True:
                pending = await self._due()
                until = self._clock.monotonic() + BATCH_SECONDS
                while pending := self._begin(group, pending):
                    if self._clock.monotonic() > until:
                        break
                    self._has_room.clear()
                    await self._has_room.wait()
                else:
                    await self._clock.sleep(LOOK_SECONDS * self._rng.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    async def _due(self) -> list[Connection]:
        try:
            due = await self._store.connections_due(limit=BATCH)
        except HoldfastError as error:
            log.info("refresh_scheduler_delayed", reason=error.reason)
            return []
        self._forget_rests()
        self._rng.shuffle(due)
        return [row for row in due if row.connection_id not in self._busy and not self._rests(row)]

    def _begin(self, group: asyncio.TaskGroup, pending: list[Connection]) -> list[Connection]:
        """Begins what fits, and returns the rest."""
        of_integration = Counter(self._busy.values())
        rest = []
        for connection in pending:
            integration = connection.integration_id or connection.connection_id
            if len(self._busy) >= WORKERS or of_integration[integration] >= WORKERS_OF_ONE:
                rest.append(connection)
                continue
            of_integration[integration] += 1
            self._busy[connection.connection_id] = integration
            group.create_task(self._work(connection))
        return rest

    def _rests(self, connection: Connection) -> bool:
        now = self._clock.monotonic()
        until = self._not_before.get(connection.connection_id)
        if until is None:
            until = now + self._spread(connection)
            if until > now:
                self._not_before[connection.connection_id] = until
        return until > now

    def _spread(self, connection: Connection) -> float:
        """Returns how long a refresh that an outage has delayed waits, so that not all come back at once."""
        if connection.refresh_time is None:
            return 0.0
        now = self._clock.now()
        overdue = (now - connection.refresh_time).total_seconds()
        if overdue < _OVERDUE_SECONDS:
            return 0.0
        return self._rng.uniform(0.0, min(_SPREAD_SHARE * overdue, _MOST_SPREAD))

    def _forget_rests(self) -> None:
        now = self._clock.monotonic()
        # A rest that has ended is remembered for a while: it is not spread a second time.
        for connection_id, until in list(self._not_before.items()):
            if until + _MOST_SPREAD < now:
                del self._not_before[connection_id]

    async def _work(self, connection: Connection) -> None:
        try:
            await self._refresh(connection)
        except (NotFound, FailedPrecondition, SecretDamagedError) as error:
            # Changed, switched off, or damaged: nothing that the next look would change.
            log.info("refresh_parked", connection_id=connection.connection_id, detail=str(error))
            await self._park(connection)
        except HoldfastError as error:
            self._rest(connection)
            log.debug("refresh_delayed", connection_id=connection.connection_id, reason=error.reason)
        except Exception:
            self._rest(connection)
            log.exception("refresh_crashed", connection_id=connection.connection_id)
        finally:
            del self._busy[connection.connection_id]
            self._has_room.set()

    async def _refresh(self, connection: Connection) -> None:
        if connection.state is ConnectionState.NEEDS_REAUTH:
            # The second look: a winner may have died after it had stored its tokens.
            stored = await self._renewal.read(connection)
            if stored.version > connection.token_version:
                await self._rows.publish(connection, stored)
            else:
                await self._store.postpone_refresh(connection.workspace_id, connection.connection_id, None)
            return
        stored_or_none = await self._coordinator.refresh_in_background(
            connection, Goal(newer_than=connection.token_version)
        )
        if stored_or_none is None:
            self._rest(connection)

    async def _park(self, connection: Connection) -> None:
        try:
            row = await self._store.get_connection(connection.workspace_id, connection.connection_id)
            # What has just ended was given its time by whoever ended it.
            if row is not None and row.state is connection.state and row.secret_path == connection.secret_path:
                await self._store.postpone_refresh(
                    connection.workspace_id, connection.connection_id, self._clock.now() + _PARKED
                )
        except HoldfastError:
            self._rest(connection)

    def _rest(self, connection: Connection) -> None:
        self._not_before[connection.connection_id] = self._clock.monotonic() + self._rng.uniform(
            _REST_SECONDS, 2 * _REST_SECONDS
        )
