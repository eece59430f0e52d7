"""One campaign: starts a suite, loads it, lets faults happen, and says what it found."""

from __future__ import annotations

import asyncio
import random
import shlex
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from holdfast import Client
from holdfast.api.common.v1 import run_pb2
from holdfast.api.trace.v1 import query_service_pb2 as query_pb2
from holdfast.errors import HoldfastError
from holdfast.runs import ENDED, RunEvent
from holdfast.testing import Suite
from tests.campaign import schedule, verdict
from tests.campaign.effects import Counted
from tests.campaign.fates import fate_of
from tests.campaign.faults import Faults, Workers
from tests.campaign.load import Load, Record, agents, persist
from tests.campaign.proxy import state_proxy
from tests.campaign.verdict import Violation
from tests.fakes.cluster import Cluster, cluster_folder
from tests.suite.effects import HttpEffects

# After the last fault everybody comes to an end within this, by far.
END_SECONDS = 120.0
# Every so many faults, what is stored is looked at.
LOOK_EVERY = 25
TRACED = 10
SHOWN = 5
SHOW_SECONDS = 30.0
# Between two switches of what is sealed, in seconds: processes of state follow within ten.
SWITCH_SECONDS = (6.0, 20.0)
SEALINGS = ("never", "always", "switching")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign is.

    Attributes:
        seed: Decides the faults and the runs.
        faults: How many.
        runs: How many at least; there are more when the faults take longer.
        window: How many of them are under way at once.
        database: `postgresql` or `sqlite`.
        executors: How many processes.
        states: How many processes; one with SQLite.
        workers: How many processes.
        longest_pause: No process is stopped for longer, in seconds.
        seals: Whether payloads are sealed where state keeps them: one of `SEALINGS`. With `switching` the workspace
            chooses anew all the time.
        kinds: Only faults of these kinds; all when empty.
    """

    seed: int
    faults: int
    runs: int
    window: int = 40
    database: str = "sqlite"
    executors: int = 2
    states: int = 2
    workers: int = 2
    longest_pause: float = 8.0
    seals: str = "never"
    kinds: tuple[str, ...] = ()

    @property
    def has_postgres(self) -> bool:
        """Whether it runs on PostgreSQL."""
        return self.database == "postgresql"


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        plan: What it was.
        violations: What must not be.
        happened: The faults, with the second at which each began.
        records: The runs.
        children: Runs that those have started.
        switches: How often the workspace was switched to sealing, and back.
        sealed_events: How many events are stored sealed at the end.
        calls: How many effects.
        journals: Of the first runs with a violation, as state gives them out at the end.
        data: The suite's folder, which is kept when something was found.
    """

    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    points_reached: int = 0
    switches: int = 0
    sealed_events: int = 0
    records: list[Record] = field(default_factory=list)
    children: list[Record] = field(default_factory=list)
    calls: int = 0
    journals: dict[str, list[run_pb2.Event]] = field(default_factory=dict)
    seconds: float = 0.0
    data: Path = Path()

    def report(self) -> str:
        """The result as text; with the schedule and the journals concerned when something was found."""
        sealed = "" if self.plan.seals == "never" else f", sealed {self.plan.seals}"
        lines = [
            f"seed {self.plan.seed} on {self.plan.database}{sealed}: {sum(self.kinds.values())} faults "
            f"({self.points_reached} crash points reached), {len(self.records)} runs, {self._events():,} events, "
            f"{self.calls:,} effects, {sum(len(record.decisions) for record in self.records)} calls in doubt, "
            f"{self.seconds:.0f} s: {len(self.violations) or 'no'} violations",
            "  " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())),
            f"  {self.paused} runs were paused ({self.rested} of them at rest when it was answered), "
            + ", ".join(f"{count} {_short(state)}" for state, count in sorted(self.ends().items())),
            f"  {len(self.children)} runs were started by others",
        ]
        if self.switches:
            lines.append(
                f"  sealing was switched {self.switches} times, {self.sealed_events:,} events are stored sealed"
            )
        if self.violations:
            lines += ["", "schedule:", *(f"  {line}" for line in self.happened), "", "violations:"]
            lines += [f"  {found.run_id or '-'}: {found.what}" for found in self.violations]
            for run_id in self.concerned():
                lines += ["", f"journal of {run_id}:", *self._journal(run_id)]
            lines += ["", f"kept: {self.data}", f"again: {again(self.plan)}"]
        return "\n".join(lines)

    @property
    def paused(self) -> int:
        """How many runs were paused."""
        return sum(bool(record.pauses) for record in self.records)

    @property
    def rested(self) -> int:
        """How many of them rested when the pause was answered."""
        return sum(any(rest.began is not None for rest in record.pauses) for record in self.records)

    def ends(self) -> Counter[int]:
        """How the runs ended, as their watchers saw it."""
        return Counter(
            change.run_state_changed.state
            for record in self.records
            for event in record.events
            for change in event.changes
            if change.run_state_changed.state in ENDED
        )

    def concerned(self) -> list[str]:
        """The first runs with a violation."""
        return list(dict.fromkeys(found.run_id for found in self.violations if found.run_id))[:SHOWN]

    def _events(self) -> int:
        return sum(len(record.events) for record in self.records)

    def _journal(self, run_id: str) -> Iterator[str]:
        events = self.journals.get(run_id, [])
        for record in (*self.records, *self.children):
            if record.run_id == run_id:
                yield f"  run {record.number} of {record.agent}, {fate_of(self.plan.seed, record.number)}"
                yield f"  decided: {record.decisions}, paused: {record.pauses}"
                yield f"  its watcher saw {len(record.events)} events"
                # What its watcher saw is left where state cannot be asked any more.
                events = events or record.events
        for event in events:
            yield f"  {MessageToJson(event, indent=None, preserving_proto_field_name=True)}"


def _short(state: int) -> str:
    return run_pb2.RunState.Name(run_pb2.RunState.ValueType(state)).removeprefix("RUN_STATE_")


def again(plan: Plan) -> str:
    """The command that runs the same campaign."""
    words = [
        f"python -m tests.campaign --seed {plan.seed} --faults {plan.faults} --runs {plan.runs}",
        f"--window {plan.window} --database {plan.database} --executors {plan.executors} --states {plan.states}",
        f"--longest-pause {plan.longest_pause:g}",
        *([f"--seal {plan.seals}"] if plan.seals != "never" else []),
        *(f"--only {shlex.quote(kind)}" for kind in plan.kinds),
    ]
    return " ".join(words)


async def run_campaign(plan: Plan, *, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Runs a campaign. What it keeps on disk is removed unless something was found."""
    outcome = Outcome(plan, data=Path(tempfile.mkdtemp(prefix=f"holdfast-campaign-{plan.seed}-")))
    began = time.monotonic()
    with ExitStack() as stack:
        cluster = None
        if plan.has_postgres:
            # At the end of a campaign that found something, the cluster stays as it is.
            cluster = stack.enter_context(_kept_cluster(outcome))
        async with AsyncExitStack() as closing:
            await _Campaign(plan, outcome, cluster, closing, say).run()
        outcome.seconds = time.monotonic() - began
    if not outcome.violations:
        shutil.rmtree(outcome.data, ignore_errors=True)
    return outcome


@contextmanager
def _kept_cluster(outcome: Outcome) -> Iterator[Cluster]:
    with cluster_folder() as folder:
        cluster = Cluster(folder / "primary", settings={"max_connections": "100"})
        cluster.create()
        cluster.start()
        try:
            yield cluster
            if outcome.violations:
                dump = outcome.data / "state-and-auth.sql"
                # With auth's tables, where the keys are of what is sealed.
                dump.write_text(cluster.run("pg_dump", "-h", "127.0.0.1", "-p", str(cluster.port), "-U", "postgres",
                                            "-n", "state", "-n", "auth", "campaign"))  # fmt: skip
        finally:
            cluster.stop("immediate")


class _Campaign:
    def __init__(
        self,
        plan: Plan,
        outcome: Outcome,
        cluster: Cluster | None,
        closing: AsyncExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._outcome = outcome
        self._cluster = cluster
        self._closing = closing
        self._say = say
        self._began = time.monotonic()

    async def run(self) -> None:
        plan, closing = self._plan, self._closing
        url = self._cluster.create_database("campaign") if self._cluster is not None else ""
        http = await closing.enter_async_context(HttpEffects())
        counted = Counted(http, random.Random(f"answers {plan.seed}"))
        suites: list[Suite] = []

        def states() -> list[str]:
            return [suite.address(name) for suite in suites for name in suite.states]

        proxies = [await closing.enter_async_context(state_proxy(states)) for _ in ("executor", "trace")]
        suite = Suite(
            self._outcome.data,
            database_url=url,
            executors=plan.executors,
            states=plan.states if plan.has_postgres else 1,
            settings={
                "HOLDFAST_HTTP_TOOLS_ALLOW": "127.0.0.0/8",
                "HOLDFAST_SEAL_PAYLOADS": "true" if plan.seals == "always" else "false",
            },
            service_settings={
                "executor": {"HOLDFAST_STATE_ADDRESS": proxies[0].address},
                "trace": {"HOLDFAST_STATE_ADDRESS": proxies[1].address},
            },
        )
        suites.append(suite)
        await closing.enter_async_context(suite)
        addresses = [suite.address(name) for name in suite.executors]
        environment = {**suite.environment(), "HOLDFAST_ADDRESS": ",".join(addresses)}
        workers = Workers(plan.workers, http.url(""), environment, suite.data / "workers.log")
        closing.push_async_callback(workers.close)
        clients = []
        for turn in range(len(addresses)):
            order = ",".join([*addresses[turn:], *addresses[:turn]])
            client = Client(
                order, suite.api_key, auth_address=suite.address("auth"), trace_address=suite.address("trace")
            )
            clients.append(await closing.enter_async_context(client))
        for agent in agents(plan.seed, http.url):
            await clients[0].apply(agent)
        for number in range(plan.workers):
            workers.start(number)

        faults = Faults(suite, workers, proxies, self._cluster, self._on_fault)
        load = Load(plan.seed, clients, counted, faults.settled)
        self._outcome.records, self._outcome.children = load.records, load.children
        planned = schedule.plan(
            plan.seed,
            plan.faults,
            executors=plan.executors,
            states=len(suite.states),
            workers=plan.workers,
            has_postgres=plan.has_postgres,
            longest_pause=plan.longest_pause,
        )
        planned = [fault for fault in planned if not plan.kinds or fault.kind in plan.kinds]
        switching = asyncio.create_task(self._switch_seals(clients[0])) if plan.seals == "switching" else None
        try:
            await self._under_faults(faults, load, planned)
        finally:
            if switching is not None:
                switching.cancel()
                await asyncio.gather(switching, return_exceptions=True)
        self._outcome.kinds, self._outcome.points_reached = faults.happened, faults.reached
        self._outcome.calls = sum(counted.calls.values())
        await self._judge(suite, load, counted, clients[0])

    def _on_fault(self, fault: schedule.Fault) -> None:
        line = f"{time.monotonic() - self._began:6.1f} s  {fault}"
        self._outcome.happened.append(line)
        self._say(f"{line}   ({len(self._outcome.records)} runs)")

    async def _under_faults(self, faults: Faults, load: Load, planned: list[schedule.Fault]) -> None:
        """Loads the suite while the faults happen, and until all runs have ended."""
        runs = asyncio.create_task(load.run(self._plan.runs, self._plan.window, lambda: not faults.is_over))
        try:
            for start in range(0, len(planned), LOOK_EVERY):
                happening = asyncio.create_task(faults.run(planned[start : start + LOOK_EVERY]))
                await asyncio.wait((happening, runs), return_when=asyncio.FIRST_COMPLETED)
                if runs.done():
                    happening.cancel()
                    await asyncio.gather(happening, return_exceptions=True)
                    break
                await happening
                # On the living system, under load.
                self._outcome.violations += await verdict.stored_violations(self._outcome.data, under_faults=True)
            faults.is_over = True
            async with asyncio.timeout(END_SECONDS):
                await runs
        except TimeoutError:
            for run_id in sorted(load.unfinished):
                self._outcome.violations.append(Violation(f"it has not ended {END_SECONDS:.0f} s after all", run_id))
        finally:
            runs.cancel()
            await asyncio.gather(runs, return_exceptions=True)

    async def _switch_seals(self, client: Client) -> None:
        """Lets the workspace choose to be sealed and not to be, by turns, until it is cancelled."""
        chosen = random.Random(f"seals {self._plan.seed}")
        while True:
            is_on = self._outcome.switches % 2 == 0
            await persist(partial(client.seal_payloads, is_on))
            self._outcome.switches += 1
            await asyncio.sleep(chosen.uniform(*SWITCH_SECONDS))

    async def _judge(self, suite: Suite, load: Load, counted: Counted, client: Client) -> None:
        found = self._outcome.violations
        for name in ("auth", "trace", *suite.states, *suite.executors):
            if not suite.is_running(name):
                found.append(Violation(f"{name} has died by itself:\n{suite.log_tail(name)}"))
        everyone = [*load.records, *load.children]
        for record in everyone:
            if record.run_id not in load.unfinished:
                found.extend(verdict.run_violations(record, counted))
                found.extend(verdict.doubt_violations(record))
                found.extend(verdict.pause_violations(record, counted))
                found.extend(verdict.expiry_violations(record))
                below = [child for child in load.children if child.parent is record]
                found.extend(verdict.budget_violations(record, counted, below))
                found.extend(verdict.approval_violations(record, counted))
        if not load.unfinished:
            found.extend(verdict.effect_violations(everyone, counted))
            found.extend(verdict.child_violations(load.records, load.children))
        for record in everyone:
            # Every run that was acknowledged is there, and its watcher has seen all of it.
            run = await persist((await persist(lambda id=record.run_id: client.run(id))).get)  # type: ignore[misc]
            if record.run_id not in load.unfinished and (run.state not in ENDED or len(record.events) > run.last_seq):
                state = run_pb2.RunState.Name(run.state)
                found.append(
                    Violation(
                        f"its watcher saw its end in {len(record.events)} events, it is {state} with {run.last_seq}",
                        record.run_id,
                    )
                )
        found.extend(await verdict.stored_violations(suite.data))
        found.extend(await self._traces(load, client))
        stored = await asyncio.to_thread(lambda: list(verdict.stored_events(suite.data, self._cluster)))
        self._outcome.sealed_events = sum(event.is_sealed for event in stored)
        if self._plan.seals != "switching":
            found.extend(verdict.seal_violations(stored, seals=self._plan.seals == "always"))
        for run_id in self._outcome.concerned():
            self._outcome.journals[run_id] = await _journal(client, run_id)

    async def _traces(self, load: Load, client: Client) -> list[Violation]:
        """Whether trace has the newest runs and some others without holes (P9)."""
        found = []
        ended = [record for record in load.records if record.run_id not in load.unfinished]
        chosen = [*ended[:: max(len(ended) // TRACED, 1)], *ended[-1:]]
        kinds = (query_pb2.SPAN_KIND_MODEL, query_pb2.SPAN_KIND_TOOL, query_pb2.SPAN_KIND_WAIT)
        for record in chosen:
            try:
                tree = await client.trace.tree(record.run_id, min_seq=len(record.events), timeout=60)
            except HoldfastError as error:
                found.append(Violation(f"trace does not have it: {error}", record.run_id))
                continue
            # The wait for an approval is a part of its step.
            steps = sorted(
                span.step
                for span in tree.spans
                if span.kind in kinds and not span.name.startswith("holdfast.approval ")
            )
            begun = sorted(
                change.step_started.step
                for event in record.events
                for change in event.changes
                if change.HasField("step_started")
            )
            if steps != begun:
                found.append(Violation(f"trace has the steps {steps}, it began {begun}", record.run_id))
        return found


async def _journal(client: Client, run_id: str) -> list[run_pb2.Event]:
    """A run's events as state gives them out, in the clear; as many of them as can be had."""
    events: list[run_pb2.Event] = []
    with suppress(HoldfastError, TimeoutError):
        async with asyncio.timeout(SHOW_SECONDS):
            handle = await client.run(run_id)
            async with aclosing(handle.events(deltas=False)) as following:
                async for event in following:
                    assert isinstance(event, RunEvent)
                    events.append(event.message)
                    if event.seq >= handle.run.last_seq:
                        break
    return events
