"""What happens in a simulated world, and what is measured of it. Numbers are parts of the two that a caller chooses."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.simulation.clock import START, VirtualClock
from benchmarks.simulation.measured import Cost, MeasuredDatabase
from benchmarks.simulation.rows import id_of, insert_runs, put_workspace
from benchmarks.simulation.world import World
from services.shared.migrations import upgrade
from services.state import tables as t
from services.state.app import MIGRATIONS, SERVICE
from services.state.transitions import QUEUED, WAITING

# The first seconds of a world: streams are opened.
SETTLED: Final = 2.0
A_DAY: Final = 86_400.0


@dataclass(frozen=True)
class Size:
    """How large a world is.

    Attributes:
        executors: How many executors.
        runs: How many runs wait for something.
        slots: How many runs an executor drives at once.
        replicas: How many processes of state.
        tenants: Over how many workspaces the waiting runs are spread.
    """

    executors: int = 1_000
    runs: int = 1_000_000
    slots: int = 8
    replicas: int = 4
    tenants: int = 1_000

    @property
    def crowd(self) -> int:
        """A tenth of all runs: what bursts, or is due at once."""
        return self.runs // 10


@dataclass
class Result:
    """What a scenario showed.

    Attributes:
        name: The scenario's.
        seconds: How long it was simulated.
        figures: Name and value, in the order of the table.
        series: Name and events by their times, for the plot.
        costs: What the store functions cost, by name.
    """

    name: str
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)


def percentile(values: Sequence[float], part: float) -> float:
    """Returns the value that this part of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def jain(values: Sequence[float]) -> float:
    """Returns Jain's index: 1 when all have the same, 1 / n when one has everything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


@asynccontextmanager
async def world_of(size: Size, seed: int, service_seconds: float) -> AsyncIterator[World]:
    """A world with its waiting runs, which wait for longer than any scenario lasts."""
    clock = VirtualClock()
    with tempfile.TemporaryDirectory(prefix="holdfast-simulation-") as folder:
        url = f"sqlite:///{Path(folder) / 'state.db'}"
        async with MeasuredDatabase(url, schema=SERVICE, synchronous="NORMAL", clock=clock) as db:
            await upgrade(db, MIGRATIONS)
            world = World(
                db,
                clock,
                seed=seed,
                executors=size.executors,
                slots=size.slots,
                replicas=size.replicas,
                service_seconds=service_seconds,
            )
            await load(world, size.runs, state=WAITING, wake_at=A_DAY, spread=A_DAY, workspaces=(1, size.tenants))
            await world.begin()
            yield world


async def load(world: World, count: int, **fields: Any) -> None:
    """Stores runs now."""
    first = await world.db.read(_count_of_runs)
    await world.db.write(_insert, first + 1, count, at=world.clock.seconds, **fields)


def _insert(connection: sa.Connection, first: int, count: int, **fields: Any) -> None:
    insert_runs(connection, first, count, **fields)


def _count_of_runs(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT COALESCE(MAX(rowid), 0) FROM runs")).scalar_one())


def _wait_of(world: World, numbers: range) -> list[float]:
    return [wait for number in numbers for _, wait in world.claims[id_of("workspace", number)]]


def _finish(world: World, name: str) -> Result:
    result = Result(name, world.clock.seconds)
    mine = ("claim", "renew", "glance", "sweep", "lost_calls", "repair", "open_stream", "close_stream", "extend_all")
    result.costs = {function: world.db.costs[function] for function in mine if function in world.db.costs}
    return result


# ------------------------------------------------------------------------------------------------------- the scenarios


async def tenant_burst(size: Size, seed: int) -> Result:
    """One tenant submits a tenth of all runs at once, nine have work for longer, one has a limit, a hundred trickle."""
    quiet = max(5, min(100, size.executors))
    burst, backlogged, limited = 10_000, range(10_001, 10_010), 10_010
    trickling = range(10_011, 10_011 + quiet)
    async with world_of(size, seed, 4.0) as world:
        weights = {burst: 1} | {number: 1 + number % 3 for number in backlogged}
        for number in backlogged:
            await world.db.write(put_workspace, number, weight=weights[number])
        most = max(2, size.executors // 5)
        await world.db.write(put_workspace, limited, max_running=most)
        world.limits[id_of("workspace", limited)] = most

        async def submit() -> None:
            await load(world, size.crowd, state=QUEUED, workspaces=(burst, 1))
            await load(world, size.crowd, state=QUEUED, workspaces=(backlogged[0], len(backlogged)))
            await load(world, size.crowd // 10, state=QUEUED, workspaces=(limited, 1))
            world.states[0].hub.runs_ready()

        def trickle(number: int) -> Callable[[], Awaitable[None]]:
            async def one() -> None:
                await load(world, 1, state=QUEUED, workspaces=(number, 1))
                world.states[number % len(world.states)].hub.runs_ready()
                world.clock.after(world.rng.uniform(0.5, 1.5), one)

            return one

        for number in trickling:
            world.clock.at(SETTLED + world.rng.random(), trickle(number))
        begins = SETTLED + 3.0
        world.clock.at(begins, submit)
        await world.clock.run(begins + 12.0)
        result = _finish(world, "tenant burst")
        times = {number: [at for at, _ in world.claims[id_of("workspace", number)]] for number in weights}
        # While all of them have work: until the first has none left.
        counts = {number: size.crowd if number == burst else size.crowd // len(backlogged) for number in weights}
        dry = min((moments[-1] for number, moments in times.items() if len(moments) >= counts[number]), default=1e9)
        shares = [sum(begins < at <= dry for at in moments) / weights[number] for number, moments in times.items()]
        waits = [wait for number in trickling for at, wait in world.claims[id_of("workspace", number)] if at > begins]
        result.figures = {
            "claims per second during the burst": sum(len(m) for m in times.values()) / (world.clock.seconds - begins),
            "Jain index of the ten with a backlog, by weight": jain(shares),
            "wait of a trickling tenant, p50 ms": 1e3 * percentile(waits, 0.5),
            "wait of a trickling tenant, p99 ms": 1e3 * percentile(waits, 0.99),
            "wait of a trickling tenant, worst ms": 1e3 * max(waits, default=0.0),
            "runs of the limited tenant at once, most": world.most_running[id_of("workspace", limited)],
            "its limit": most,
        }
        result.series = {
            "burst": times[burst],
            "nine backlogged": sorted(at for number in backlogged for at in times[number]),
            "trickling": sorted(at for n in trickling for at, _ in world.claims[id_of("workspace", n)]),
        }
        return result


async def executor_loss(size: Size, seed: int) -> Result:
    """A tenth of the executors dies at once under full load: half of them are killed, half fall silent."""
    async with world_of(size, seed, 4.0) as world:
        spread = max(5, size.tenants // 10)
        # Enough for all slots to the end.
        await load(world, max(size.crowd, 5 * size.executors * size.slots), state=QUEUED, workspaces=(1, spread))
        dies = SETTLED + 3.0
        dying = world.rng.sample(world.executors, max(2, size.executors // 10))

        async def die() -> None:
            for number, executor in enumerate(dying):
                await world.kill(executor, breaks=number % 2 == 0)

        world.clock.at(dies, die)
        await world.clock.run(dies + 8.0)
        result = _finish(world, "executor loss")
        killed, silent = world.take_overs["killed"], world.take_overs["silent"]
        result.figures = {
            "runs lost": len(killed) + len(silent) + len(world.lost_at),
            "not taken over": len(world.lost_at),
            "take-over after a kill, p50 s": statistics.median(killed or [0.0]),
            "take-over after a kill, p99 s": percentile(killed, 0.99),
            "take-over after silence, p50 s": statistics.median(silent or [0.0]),
            "take-over after silence, p99 s": percentile(silent, 0.99),
        }
        result.series = {
            "taken over after a kill": sorted(dies + seconds for seconds in killed),
            "taken over after silence": sorted(dies + seconds for seconds in silent),
        }
        return result


async def thundering_timers(size: Size, seed: int) -> Result:
    """A tenth of all runs wakes within the same second."""
    async with world_of(size, seed, 1.0) as world:
        due = SETTLED + 3.0
        await load(world, size.crowd, state=WAITING, wake_at=due, spread=1.0, workspaces=(1, size.tenants))
        await world.clock.run(due + 17.0)
        result = _finish(world, "thundering timers")

        def lateness(connection: sa.Connection) -> list[float]:
            r = t.runs.c
            # Their order is that of their timers.
            query = sa.select(r.ready_at).where(r.run_id > id_of("run", size.runs)).order_by(r.run_id)
            ready = [(row.ready_at - START).total_seconds() for row in connection.execute(query)]
            return [at - (due + number / size.crowd) for number, at in enumerate(ready)]

        late = await world.db.read(lateness)
        claims = sorted(at for moments in world.claims.values() for at, _ in moments)
        fired = sorted(due + number / size.crowd + seconds for number, seconds in enumerate(late))
        result.figures = {
            "timers due within a second": size.crowd,
            "fired": sum(seconds >= -1e-3 for seconds in late),
            "late, p50 ms": 1e3 * percentile(late, 0.5),
            "late, p99 ms": 1e3 * percentile(late, 0.99),
            "late, worst ms": 1e3 * max(late),
            "all fired after, s": fired[-1] - due,
            "all claimed after, s": claims[-1] - due if len(claims) == size.crowd else float("inf"),
        }
        result.series = {"fired": fired, "claimed": claims}
        return result


SCENARIOS: Final = {
    "burst": tenant_burst,
    "loss": executor_loss,
    "timers": thundering_timers,
}
