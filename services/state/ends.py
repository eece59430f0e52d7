"""Tells of the ends of runs: many are awaited, few have ended, and those are read together.

The hub hands over a run that this process has just seen end, and says when to look at another one; a look at everything
once in a while makes up for a hint that was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import HoldfastError, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.clock import Clock
from services.shared.database import Database, Dialect
from services.shared.telemetry import get_logger
from services.state import run_store
from services.state import tables as t
from services.state.arrays import array
from services.state.hub import Ended, Hub, Look, wait_for
from services.state.rows import run_of
from services.state.transitions import ENDED

LOOK_SECONDS = 5.0
# Runs that are read by one statement.
MAX_TOGETHER = 500

Answer = Callable[[run_pb2.Run | HoldfastError], None]

log = get_logger(__name__)


class Ends:
    """Everybody in this process who waits for the end of a run.

    Args:
        db: Where runs are.
        hub: Tells when a run may have ended.
        clock: Time for pauses.
    """

    def __init__(self, db: Database, hub: Hub, clock: Clock) -> None:
        self._db = db
        self._hub = hub
        self._clock = clock
        self._awaited: dict[tuple[str, str], list[Answer]] = {}
        # Insertion order: those that may have ended first are looked at first.
        self._to_look_at: dict[tuple[str, str], None] = {}
        self._has_work = asyncio.Event()
        self._looks: dict[tuple[str, str], Look] = {}

    def add(self, workspace_id: str, run_id: str, answer: Answer) -> Callable[[], None]:
        """Calls `answer` once, when the run has ended, or when there is none in the workspace.

        Returns:
            Takes it back.
        """
        key = (workspace_id, run_id)
        answers = self._awaited.get(key)
        if answers is None:
            answers = self._awaited[key] = []
            look = self._looks[key] = partial(self._look_at, key)
            # Order matters: first the hint is asked for, then the run is looked at.
            self._hub.await_end(run_id, look)
        answers.append(answer)
        if not self._hub.is_young(run_id):
            self._look_at(key, None)
        return partial(self._withdraw, key, answer)

    def _withdraw(self, key: tuple[str, str], answer: Answer) -> None:
        answers = self._awaited.get(key)
        if answers is not None and answer in answers:
            answers.remove(answer)
            if not answers:
                self._forget(key)

    def _forget(self, key: tuple[str, str]) -> list[Answer]:
        self._to_look_at.pop(key, None)
        self._hub.forget_end(key[1], self._looks.pop(key))
        return self._awaited.pop(key)

    def _look_at(self, key: tuple[str, str], ended: Ended | None) -> None:
        if ended is not None and ended.workspace_id == key[0]:
            self._answer(key, ended.run)
        else:
            self._to_look_at[key] = None
            self._has_work.set()

    def _answer(self, key: tuple[str, str], result: run_pb2.Run | HoldfastError) -> None:
        for answer in self._forget(key):
            answer(result)

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            if not await wait_for(self._has_work, LOOK_SECONDS):
                self._to_look_at.update(dict.fromkeys(self._awaited))
            self._has_work.clear()
            keys = [key for key in self._to_look_at if key in self._awaited]
            self._to_look_at.clear()
            for begin in range(0, len(keys), MAX_TOGETHER):
                together = keys[begin : begin + MAX_TOGETHER]
                try:
                    # One statement in one round trip.
                    found, large = await self._db.read_once(_ended_among, self._db.dialect, together)
                    if large:
                        await self._db.read(_put_outputs, large)
                except HoldfastError as error:
                    log.debug("ends_not_read", reason=error.reason)
                    # The look at everything comes in any case; this is only sooner.
                    for key in together:
                        self._look_at(key, None)
                    await self._clock.sleep(LOOK_SECONDS / 5)
                    continue
                for key, result in found.items():
                    if key in self._awaited:
                        self._answer(key, result)


# The event that holds the output, if there is one.
_OUTPUT = (t.journal.c.run_id == t.runs.c.run_id) & (t.journal.c.seq == t.runs.c.output_seq) & (t.runs.c.output_seq > 0)
_RUNS = sa.select(t.runs, t.journal.c.body.label("output_event_body")).select_from(t.runs.outerjoin(t.journal, _OUTPUT))
_QUERIES = {
    "sqlite": _RUNS.where(t.runs.c.run_id.in_(sa.bindparam("run_ids", expanding=True))),
    # The same text for any number of runs, so that it is prepared once.
    "postgresql": _RUNS.where(sa.text("runs.run_id = ANY(CAST(:run_ids AS uuid[]))")),
}

# Runs whose output is a body of its own, with the event that refers to it.
_Large = list[tuple[str, run_pb2.Run, run_pb2.Event]]


def _ended_among(
    connection: sa.Connection, dialect: Dialect, keys: Sequence[tuple[str, str]]
) -> tuple[dict[tuple[str, str], run_pb2.Run | HoldfastError], _Large]:
    """Those of the runs that have ended, with their outputs, and those that do not exist; and what is to be read."""
    run_ids = list({run_id for _, run_id in keys if is_uuid(run_id)})
    values = {"run_ids": array(run_ids) if dialect == "postgresql" else run_ids}
    rows = {row.run_id: row for row in connection.execute(_QUERIES[dialect], values)}
    large: _Large = []
    found: dict[tuple[str, str], run_pb2.Run | HoldfastError] = {}
    for key in keys:
        workspace_id, run_id = key
        row = rows.get(run_id)
        if row is None or row.workspace_id != workspace_id:
            found[key] = NotFound("no such run", reason=Reason.RUN_NOT_FOUND, metadata={"run_id": run_id})
        elif row.state in ENDED:
            run = found[key] = run_of(row)
            if row.output_event_body is not None:
                event = run_pb2.Event.FromString(row.output_event_body)
                if run_store.has_blob(event):
                    large.append((workspace_id, run, event))
                else:
                    run_store.put_output(run, event)
    return found, large


def _put_outputs(connection: sa.Connection, large: _Large) -> None:
    for workspace_id, run, event in large:
        run_store.set_output(connection, workspace_id, run, event)
