"""The load: runs that are started, watched, answered, paused, resumed and cancelled, through whatever happens."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

from google.protobuf.duration_pb2 import Duration

from holdfast import Agent, Budget, Client, Limits
from holdfast.agent import agent_tool, http_tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from holdfast.ids import new_uuid7
from holdfast.resources import Scope
from holdfast.runs import ENDED, RunEvent, RunHandle
from holdfast.testing import call, scripted, turn
from tests.campaign.effects import Counted
from tests.campaign.fates import Pause, fate_of
from tests.campaign.worker import tools as worker_tools

T = TypeVar("T")

AGENTS = 8
# Agents that those call, and that call nobody.
HELPERS = 3
# Of runs.
_IN_AN_EARLIER_SESSION = 0.2
_ASKED_FOR_TWICE = 0.1
# What is said of a call that needs approval, and how often.
_VERDICTS = {"once": 4, "run": 1, "session": 1, "edited": 2, "rejected": 2}
_PASSING = (Unavailable, DeadlineExceeded, Cancelled, Aborted, ResourceExhausted)


@dataclass(slots=True)
class Rest:
    """A pause that was acknowledged.

    Attributes:
        began: When it was known here that the run rests, by the loop's clock; None where it was to rest later.
        ended: Before it was resumed; None while it was not.
        seq: The run's last event as it began.
    """

    began: float | None
    seq: int
    ended: float | None = None


@dataclass
class Record:
    """What the campaign knows of a run from outside.

    Attributes:
        number: Which run of the campaign it is.
        run_id: As acknowledged.
        agent: Which agent it runs.
        events: What its watcher was told, in order.
        decisions: What was said about calls in doubt, by idempotency key.
        is_cancelled: Whether somebody asked to cancel it.
        expires_at: When its time is over, as acknowledged; None where it is not limited.
        is_limited: Whether it was given a budget.
        parent: Of a run that another one started: that one.
        pauses: Its pauses.
        resumes: How often it was resumed, as acknowledged.
        problems: What went wrong with it on the way.
    """

    number: int
    run_id: str
    session_id: str
    agent: str
    events: list[run_pb2.Event] = field(default_factory=list)
    decisions: dict[str, str] = field(default_factory=dict)
    is_cancelled: bool = False
    expires_at: datetime | None = None
    is_limited: bool = False
    parent: Record | None = None
    pauses: list[Rest] = field(default_factory=list)
    resumes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def may_be_stopped(self) -> bool:
        """Whether it may end before it has done all that it does."""
        is_ended_with_its_parent = self.parent is not None and (self.is_limited or self.parent.may_be_stopped)
        return self.is_cancelled or self.expires_at is not None or is_ended_with_its_parent


def agents(seed: int, url: Callable[[str], str], *, lost_after: float = 2.0) -> list[Agent]:
    """The agents of a seed: scripts of a few turns with every kind of tool. Those that others call come first.

    Args:
        seed: Decides the scripts.
        url: Where a path of the endpoint is.
        lost_after: Seconds after which a silent worker's call is lost.
    """
    chance = random.Random(f"agents {seed}")
    specs: list[Any] = [
        http_tool("look", url("/look"), effect="read_only"),
        http_tool("put", url("/put"), effect="idempotent"),
        http_tool("pay", url("/pay")),
        http_tool("wire", url("/wire"), approval=True),
        *(made.spec() for made in worker_tools("")),
    ]
    for spec in specs:
        # However often an attempt is lost, it is not the tool's fault.
        spec.retry.max_attempts = 100
        spec.retry.initial_interval.CopyFrom(_duration(0.05))
        spec.retry.max_interval.CopyFrom(_duration(0.5))
        if spec.WhichOneof("kind") == "worker":
            spec.heartbeat_timeout.CopyFrom(_duration(lost_after))
    helpers = [
        Agent(f"helper-{n}", model=_script(chance, _TOOLS), tools=[*specs, *BUILT_IN], description="Helps.")
        for n in range(HELPERS)
    ]
    calls = [agent_tool(helper, name=f"help_{n}", max_attempts=3) for n, helper in enumerate(helpers)]
    for spec in calls:
        spec.retry.initial_interval.CopyFrom(_duration(0.05))
    asking = {**_TOOLS, **dict.fromkeys((spec.name for spec in calls), 1)}
    callers = [
        # One half asks for more where a budget has no room, the other stops.
        Agent(
            f"agent-{n}",
            model=_script(chance, asking),
            tools=[*specs, *calls, *BUILT_IN],
            limits=Limits(on_budget_exceeded="ask" if n % 2 else "stop"),
        )
        for n in range(AGENTS)
    ]
    return [*helpers, *callers]


BUILT_IN = ("noop", "ask_user", "sleep_until")


# And how often each of them is called.
_TOOLS = {"look": 3, "put": 3, "pay": 5, "wire": 3, "pack": 4, "label": 2, "noop": 2, "ask_user": 1, "sleep_until": 1}


def _script(chance: random.Random, tools: Mapping[str, int]) -> agent_pb2.ModelSpec:
    turns: list[Any] = []
    for number in range(chance.randint(2, 5)):
        calls = [_call(chance, 10 * number + n, tools) for n in range(chance.choice((1, 1, 1, 2, 3)))]
        turns.append(turn(f"Turn {number}.", *calls, delay=chance.choice((0.0, 0.0, 0.02, 0.1))))
    return scripted(*turns, "All done.")


def _call(chance: random.Random, number: int, tools: Mapping[str, int]) -> agent_pb2.ScriptCall:
    tool = chance.choices(list(tools), list(tools.values()))[0]
    match tool:
        case "pack" | "label":
            return call(tool, box=number)
        case "ask_user":
            return call(tool, question=f"May I go on? ({number})")
        case "sleep_until":
            return call(tool, seconds=chance.choice((0.1, 0.5)))
        case _ if tool.startswith("help_"):
            return call(tool, input=f"help {number}")
        case _:
            return call(tool, n=number)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


class Load:
    """Keeps runs under way.

    Args:
        seed: Decides what each run is and what happens to it.
        clients: Each knows all executors, in an order of its own.
        counted: What really happened.
        settled: Returns when no process is stopped that may hold a call it has not made yet.
    """

    def __init__(
        self, seed: int, clients: Sequence[Client], counted: Counted, settled: Callable[[], Awaitable[None]]
    ) -> None:
        self._seed = seed
        self._clients = clients
        self._counted = counted
        self._settled = settled
        self.records: list[Record] = []
        # Of runs that those have started.
        self.children: list[Record] = []
        self.unfinished: set[str] = set()
        self.attached = 0

    async def run(self, count: int, window: int, go_on: Callable[[], bool]) -> None:
        """Starts runs, `window` at a time: `count` of them at least, and as long as `go_on` says so; sees all end."""
        slots = asyncio.Semaphore(window)
        async with asyncio.TaskGroup() as tasks:
            number = 0
            while number < count or go_on():
                await slots.acquire()
                task = tasks.create_task(self._one(number))
                task.add_done_callback(lambda _: slots.release())
                number += 1

    async def _one(self, number: int) -> None:
        chance = random.Random(f"run {self._seed} {number}")
        client = self._clients[number % len(self._clients)]
        agent = f"agent-{chance.randrange(AGENTS)}"
        session = ""
        if self.records and chance.random() < _IN_AN_EARLIER_SESSION:
            session = chance.choice(self.records[-20:]).session_id
        request_id = new_uuid7()
        fate = fate_of(self._seed, number)

        budget = None
        if fate.is_limited:
            budget = Budget(max_model_calls=fate.max_model_calls, max_tool_calls=fate.max_tool_calls)

        async def start() -> RunHandle:
            return await client.start(
                agent, f"run {number}", session_id=session, ttl=fate.ttl, budget=budget, request_id=request_id
            )

        twice = chance.random() < _ASKED_FOR_TWICE
        handles = await asyncio.gather(*(persist(start) for _ in range(2 if twice else 1)))
        handle = handles[0]
        record = Record(number, handle.id, handle.run.session_id, agent, is_limited=fate.is_limited)
        if fate.ttl is not None:
            record.expires_at = handle.run.expire_time.ToDatetime(tzinfo=UTC)
        self.records.append(record)
        if {other.id for other in handles} != {handle.id}:
            record.problems.append(f"one request made the runs {sorted(other.id for other in handles)}")
        self.unfinished.add(handle.id)
        async with asyncio.TaskGroup() as tasks:
            if fate.cancelled_after is not None:
                tasks.create_task(self._cancel(handle, record, fate.cancelled_after))
            if fate.pauses:
                tasks.create_task(self._pause(handle, record, fate.pauses))
            await self._watch(handle, record, client, chance, tasks)
        self.unfinished.discard(handle.id)

    async def _watch(
        self, handle: RunHandle, record: Record, client: Client, chance: random.Random, tasks: asyncio.TaskGroup
    ) -> None:
        async for event in handle.events(deltas=False, reattach_seconds=300):
            assert isinstance(event, RunEvent)
            record.events.append(event.message)
            for change in event.changes:
                if child_run_id := child_of(change):
                    tasks.create_task(self._watch_child(child_run_id, record, client, tasks))
                if change.HasField("approval_requested"):
                    delay = chance.choice((0.0, 0.05, 0.3, 1.0))
                    approval = change.approval_requested.approval
                    verdict = chance.choices(list(_VERDICTS), list(_VERDICTS.values()))[0]
                    tasks.create_task(self._answer(client, record, approval, delay, verdict))

    async def _watch_child(self, run_id: str, parent: Record, client: Client, tasks: asyncio.TaskGroup) -> None:
        handle = await persist(partial(client.run, run_id))
        # What it may use is a part of what the run above may.
        record = Record(
            parent.number,
            run_id,
            handle.run.session_id,
            handle.run.agent,
            is_limited=parent.is_limited,
            parent=parent,
        )
        self.children.append(record)
        self.unfinished.add(run_id)
        await self._watch(handle, record, client, random.Random(run_id), tasks)
        self.unfinished.discard(run_id)

    async def _cancel(self, handle: RunHandle, record: Record, delay: float) -> None:
        await asyncio.sleep(delay)
        record.is_cancelled = True
        try:
            await persist(handle.cancel)
        except FailedPrecondition:
            # It had ended.
            pass

    async def _pause(self, handle: RunHandle, record: Record, pauses: Sequence[Pause]) -> None:
        loop = asyncio.get_running_loop()
        try:
            for pause in pauses:
                await asyncio.sleep(pause.after)
                run = await persist(partial(handle.pause, "a pause", request_id=new_uuid7()))
                rest = Rest(loop.time() if run.state == run_pb2.RUN_STATE_PAUSED else None, run.last_seq)
                # Cancelling goes first: then a pause is answered and nothing is written.
                is_written = run.pause_requested
                if is_written:
                    record.pauses.append(rest)
                await asyncio.sleep(pause.seconds)
                rest.ended = loop.time()
                await persist(partial(handle.resume, "it is over", request_id=new_uuid7()))
                record.resumes += is_written
        except FailedPrecondition:
            if (await persist(handle.get)).state not in ENDED:
                record.problems.append("it could not be paused or resumed, and has not ended")

    async def _answer(
        self, client: Client, record: Record, approval: run_pb2.Approval, delay: float, verdict: str
    ) -> None:
        await asyncio.sleep(delay)
        if approval.kind == run_pb2.APPROVAL_KIND_QUESTION:

            async def decide() -> run_pb2.Approval:
                return await client.approvals.answer(approval.approval_id, "yes")
        elif approval.kind == run_pb2.APPROVAL_KIND_BUDGET:

            async def decide() -> run_pb2.Approval:
                if verdict == "rejected":
                    return await client.approvals.resolve(approval.approval_id, "fail_run")
                return await client.approvals.answer(approval.approval_id, 2)
        elif approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:

            async def decide() -> run_pb2.Approval:
                return await _say(client, approval, verdict)
        else:
            # A person looks once nobody is left who may still make the call.
            await self._settled()
            key = key_of(record.events, approval.step)
            was_made = self._counted.calls[key] > 0
            record.decisions[key] = "done" if was_made else "not_done"

            async def decide() -> run_pb2.Approval:
                if was_made:
                    return await client.approvals.resolve(approval.approval_id, "done", result="seen to be done")
                return await client.approvals.resolve(approval.approval_id, "not_done")

        try:
            await persist(decide)
        except FailedPrecondition as error:
            if not record.may_be_stopped:
                record.problems.append(f"the question {approval.approval_id} could not be answered: {error.message}")


async def _say(client: Client, approval: run_pb2.Approval, verdict: str) -> run_pb2.Approval:
    """Decides about a call that needs approval."""
    approvals, seen = client.approvals, approval.arguments_sha256
    if verdict == "rejected":
        return await approvals.reject(approval.approval_id, "not this time", arguments_sha256=seen)
    if verdict == "edited":
        edited = {"n": json.loads(approval.arguments_json)["n"] + 1_000}
        return await approvals.approve(approval.approval_id, arguments=edited, arguments_sha256=seen)
    return await approvals.approve(approval.approval_id, scope=cast(Scope, verdict), arguments_sha256=seen)


def child_of(change: run_pb2.Change) -> str:
    """The run that a change starts; empty when it starts none."""
    return change.step_started.tool.child_run_id or change.attempt_started.child_run_id


def key_of(events: Sequence[run_pb2.Event], step: int) -> str:
    """The idempotency key that a step's calls have: with arguments that a person edited it is another one."""
    key = ""
    for event in events:
        for change in event.changes:
            if change.HasField("step_started") and change.step_started.step == step:
                key = change.step_started.tool.idempotency_key
            elif change.HasField("approval_decided") and change.approval_decided.step == step:
                key = change.approval_decided.idempotency_key or key
    assert key, f"step {step} is asked about and has not begun"
    return key


async def persist(work: Callable[[], Awaitable[T]]) -> T:
    """Does what may be done again until it is answered; what is refused for good is raised."""
    while True:
        try:
            return await work()
        except _PASSING:
            await asyncio.sleep(0.1)
        except Internal as error:
            # A connection that is cut in the middle of a frame; an error that a service made itself is none of these.
            if error.origin != "foreign":
                raise
            await asyncio.sleep(0.1)
        except HoldfastError:
            raise
