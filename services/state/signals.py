"""Tells other replicas of ready runs that the executors connected here do not take, by LISTEN and NOTIFY.

A hint only: every replica also looks by itself a few times a second (`pulse`). A notification takes a lock on the whole
database when it commits, so there are a few in a second at most, none while a replica is alone, and none in a
transaction that writes anything else.
"""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg
import sqlalchemy as sa

from holdfast.errors import HoldfastError
from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.shared.database_postgres import back_off
from services.shared.telemetry import get_logger
from services.state.claiming import Claiming
from services.state.hub import Hub, wait_for

CHANNEL: Final = "holdfast_state"
# For executors connected here to take what became ready; then it is offered to others.
FIRST_HERE_SECONDS: Final = 0.01
# At most so often.
SHORTEST_SECONDS: Final = 0.25
# How often a replica says that it is there, and how long it is believed.
PRESENCE_SECONDS: Final = 10.0
BELIEVED_SECONDS: Final = 25.0

_READY: Final = "ready"
_PRESENT: Final = "present"

log = get_logger(__name__)


class Signals:
    """The hints between the replicas of state; nothing at all on SQLite.

    Args:
        db: The database that they share.
        hub: Who is told here.
        claiming: Knows whether everything was taken here.
    """

    def __init__(self, db: Database, hub: Hub, claiming: Claiming) -> None:
        self._db = db
        self._hub = hub
        self._claiming = claiming
        self._name = new_uuid7()
        self._others: dict[str, float] = {}
        self._must_greet = asyncio.Event()

    @property
    def has_others(self) -> bool:
        """Whether another replica was heard of lately."""
        now = asyncio.get_running_loop().time()
        return any(now - heard < BELIEVED_SECONDS for heard in self._others.values())

    async def run(self) -> None:
        """Listens and tells until it is cancelled."""
        if self._db.dialect == "sqlite":
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._be_present())
            tasks.create_task(self._tell())

    async def _listen(self) -> None:
        attempt = 1
        while True:
            try:
                connection = await self._db.listen(CHANNEL)
                assert connection is not None
                async with connection:
                    attempt = 1
                    self._must_greet.set()
                    async for notification in connection.notifies():
                        self._hear(notification.payload)
            except psycopg.Error as error:
                # Without hints, each replica finds out by itself.
                log.debug("signals_lost", detail=type(error).__name__)
            await back_off(min(attempt + 5, 9))
            attempt += 1

    def _hear(self, payload: str) -> None:
        name, _, what = payload.partition(" ")
        if name == self._name:
            return
        if name not in self._others:
            # It does not know of this one yet.
            self._must_greet.set()
        now = asyncio.get_running_loop().time()
        self._others = {other: at for other, at in self._others.items() if now - at < BELIEVED_SECONDS}
        self._others[name] = now
        if what == _READY:
            self._hub.runs_seen_ready()

    async def _be_present(self) -> None:
        while True:
            await wait_for(self._must_greet, PRESENCE_SECONDS)
            self._must_greet.clear()
            await self._notify(_PRESENT)
            await asyncio.sleep(SHORTEST_SECONDS)

    async def _tell(self) -> None:
        while True:
            await self._hub.ready_here.wait()
            await asyncio.sleep(FIRST_HERE_SECONDS)
            self._hub.ready_here.clear()
            if self.has_others and not self._claiming.is_exhausted:
                await self._notify(_READY)
                await asyncio.sleep(SHORTEST_SECONDS)

    async def _notify(self, what: str) -> None:
        try:
            await self._db.write_autocommit(_notify, f"{self._name} {what}")
        except HoldfastError as error:
            log.debug("signal_not_sent", reason=error.reason)


def _notify(connection: sa.Connection, payload: str) -> None:
    connection.execute(sa.select(sa.func.pg_notify(CHANNEL, payload)))
