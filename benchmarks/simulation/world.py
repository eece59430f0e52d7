"""Executors and processes of state around one database: they claim, beat, sweep and end runs as the real ones do.

What is real: `claims`, `turns`, `Claiming`, the hub, `lease_store` (streams, renewals, sweep, look), `Pulse.beat` and
`apply_transitions`. What is modelled: how long a run is driven, how long a statement takes (the constants below), and
that a broken connection shows at once while a silent one does not show at all.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.measured import MeasuredDatabase
from benchmarks.simulation.rows import id_of
from services.shared.database import Database
from services.state import lease_store
from services.state.claiming import Claiming
from services.state.hub import Hub
from services.state.leases import HEARTBEAT_SECONDS
from services.state.pulse import POSTGRES_SECONDS, Pulse
from services.state.transition_batch import TransitionRow, apply_transitions
from services.state.transitions import SUCCEEDED

# Measured on PostgreSQL with 100,000 ready runs (docs/scaling.md): a claim, and each run that it brings; a sweep of a
# thousand; one look.
CLAIM_SECONDS: Final = 0.0015
CLAIMED_RUN_SECONDS: Final = 0.00005
SWEEP_SECONDS: Final = 0.025
LOOK_SECONDS: Final = 0.001
# How often ends of runs are committed; their executors have free slots then.
COMMIT_SECONDS: Final = 0.005


@dataclass(eq=False)
class Executor:
    """A process that drives runs."""

    number: int
    slots: int
    state: StateProcess
    held: dict[str, Any] = field(default_factory=dict)
    is_alive: bool = True

    @property
    def id(self) -> str:
        """Its id."""
        return id_of("executor", self.number)

    @property
    def stream_id(self) -> str:
        """The stream that speaks for it."""
        return id_of("stream", self.number)

    def runs_ready(self) -> None:
        """It has a stream here, which is told when runs became ready."""
        self.state.wake()

    def nudge(self, run_id: str) -> None:
        """Nobody outside writes."""

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        """There are no workers."""

    def calls_cancelled(self, leases: list[str]) -> None:
        """There are no workers."""

    def wake(self) -> None:
        """Nothing drains."""


class StateProcess:
    """A replica of state: its claims go one after the other, its pulse beats beside them."""

    def __init__(self, world: World, db: Database) -> None:
        self._world = world
        self._clock = world.clock
        self.hub = Hub()
        self.claiming = Claiming(db, self.hub, draw=world.rng.random)
        self.pulse = Pulse(db, self.hub, world.clock, interval_seconds=POSTGRES_SECONDS)
        self._wanting: deque[Executor] = deque()
        self._is_claiming = False

    def offer(self, executor: Executor) -> None:
        """An executor tells how many free slots it has."""
        free = executor.slots - len(executor.held) if executor.is_alive else 0
        self.claiming.set_free_slots(executor.stream_id, free)
        if free and executor not in self._wanting:
            self._wanting.append(executor)
        self.wake()

    def wake(self) -> None:
        """There may be something to claim."""
        if not self._is_claiming and self._wanting and not self.claiming.is_exhausted:
            self._is_claiming = True
            self._clock.after(0.0, self._claim)

    async def _claim(self) -> None:
        self._is_claiming = False
        while self._wanting and not self._wanting[0].is_alive:
            self._wanting.popleft()
        if not self._wanting or self.claiming.is_exhausted:
            return
        executor = self._wanting.popleft()
        claimed = await self.claiming.claim(executor.id, executor.stream_id)
        assert claimed is not None
        takes = CLAIM_SECONDS + CLAIMED_RUN_SECONDS * len(claimed.rows)
        self._world.claimed(executor, claimed.rows, self._clock.seconds + takes)
        if len(executor.held) < executor.slots:
            self._wanting.append(executor)
        self._is_claiming = True
        self._clock.after(takes, self._claim)

    async def beat(self) -> None:
        """One beat of the pulse."""
        seen, pause = await self.pulse.beat()
        self._clock.after(pause + LOOK_SECONDS + (SWEEP_SECONDS if seen.has_due else 0.0), self.beat)
        self.wake()


class World:
    """Everything, and what is noted of it.

    Args:
        db: The database.
        clock: The time.
        seed: Of everything that is random.
        executors: How many executors.
        slots: How many runs each drives at once.
        replicas: How many processes of state.
        service_seconds: How long a run is driven, on average.
    """

    def __init__(
        self,
        db: MeasuredDatabase,
        clock: VirtualClock,
        *,
        seed: int,
        executors: int,
        slots: int,
        replicas: int,
        service_seconds: float,
    ) -> None:
        self.db = db
        self.clock = clock
        self.rng = random.Random(seed)
        self._service_seconds = service_seconds
        self.states = [StateProcess(self, db) for _ in range(replicas)]
        self.executors = [Executor(number, slots, self.states[number % replicas]) for number in range(1, executors + 1)]
        # By workspace: when each claim was made and how long the run had been ready.
        self.claims: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.lost_at: dict[str, float] = {}
        self.take_overs: dict[str, list[float]] = defaultdict(list)
        self._why_lost: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self.running: dict[str, int] = defaultdict(int)
        self.most_running: dict[str, int] = defaultdict(int)
        self.ended = 0
        self._ending: list[tuple[Executor, Any]] = []

    async def begin(self) -> None:
        """Opens the streams and starts the pulses, at moments that are not the same for all."""
        for executor in self.executors:
            self.clock.at(self.rng.uniform(0, HEARTBEAT_SECONDS), self._opening(executor))
        for state in self.states:
            self.clock.at(self.rng.uniform(0, POSTGRES_SECONDS), state.beat)

    def _opening(self, executor: Executor) -> Any:
        async def open_stream() -> None:
            await self.db.write(lease_store.open_stream, self.db, executor.id, executor.stream_id, {})
            # For as long as the world stands.
            executor.state.hub.executor(executor.id, executor).__enter__()
            executor.state.offer(executor)
            self.clock.after(HEARTBEAT_SECONDS, self._heartbeat(executor))

        return open_stream

    def _heartbeat(self, executor: Executor) -> Any:
        async def heartbeat() -> None:
            if executor.is_alive:
                assert await self.db.write(lease_store.renew, self.db, executor.id, executor.stream_id) is not None
                executor.state.offer(executor)
                self.clock.after(HEARTBEAT_SECONDS, heartbeat)

        return heartbeat

    # --- runs -------------------------------------------------------------------------------------------------------

    def claimed(self, executor: Executor, rows: Sequence[Any], at: float) -> None:
        """An executor drives these runs from now on."""
        now = self.clock.now()
        for row in rows:
            assert row.run_id not in executor.held
            executor.held[row.run_id] = row
            self.claims[row.workspace_id].append((self.clock.seconds, (now - row.ready_at).total_seconds()))
            if row.run_id in self.lost_at:
                self.take_overs[self._why_lost.pop(row.run_id)].append(at - self.lost_at.pop(row.run_id))
            if row.workspace_id in self.limits:
                self.running[row.workspace_id] += 1
                most = self.most_running[row.workspace_id] = max(
                    self.most_running[row.workspace_id], self.running[row.workspace_id]
                )
                assert most <= self.limits[row.workspace_id], "a limit was exceeded"
            seconds = self.rng.expovariate(1 / self._service_seconds)
            self.clock.at(at + seconds, self._end_of(executor, row))

    def _end_of(self, executor: Executor, row: Any) -> Any:
        async def end() -> None:
            if executor.is_alive:
                self._ending.append((executor, row))
                if len(self._ending) == 1:
                    self.clock.after(COMMIT_SECONDS, self._commit)

        return end

    async def _commit(self) -> None:
        """The group commit: the ends of all runs that ended lately."""
        ending, self._ending = [(e, row) for e, row in self._ending if e.is_alive], []
        if not ending:
            return
        transitions = [
            TransitionRow(row.run_id, row.workspace_id, row.epoch, row.last_seq + 1, b"", state=SUCCEEDED, is_end=True)
            for _, row in ending
        ]
        applied = await self.db.write(apply_transitions, self.db, transitions)
        assert len(applied) == len(ending), "a run was taken from an executor that is alive"
        self.ended += len(ending)
        for executor, row in ending:
            del executor.held[row.run_id]
            if row.workspace_id in self.limits:
                self.running[row.workspace_id] -= 1
        for executor in dict.fromkeys(executor for executor, _ in ending):
            executor.state.offer(executor)

    async def kill(self, executor: Executor, *, breaks: bool) -> None:
        """An executor dies: its connection breaks with it, or the whole machine falls silent."""
        executor.is_alive = False
        executor.state.claiming.set_free_slots(executor.stream_id, 0)
        for run_id in executor.held:
            self.lost_at[run_id] = self.clock.seconds
            self._why_lost[run_id] = "killed" if breaks else "silent"
        if breaks:
            await self.db.write(lease_store.close_stream, self.db, executor.id, executor.stream_id, in_order=False)
            executor.state.hub.wakes_at(self.clock.now() + lease_store.GRACE)
