"""A service dies, stops or drains while runs are under way: the others go on, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from holdfast import Agent, Client, tool
from holdfast.agent import http_tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.trace.v1 import query_service_pb2 as query_pb2
from holdfast.errors import Unavailable
from holdfast.ids import new_uuid7
from holdfast.runs import RunEvent, RunHandle
from holdfast.testing import Suite, call, scripted, turn
from holdfast.tool import Effect, Tool, ToolContext
from tests.suite.effects import Answer, Executions, Gate, HttpCall, HttpEffects
from tests.suite.histories import changes_of, check_history, read_history
from tests.suite.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LONGEST = 60


@dataclass
class Stage:
    """A suite, its endpoint, and its worker's tool `pack`."""

    suite: Suite
    http: HttpEffects
    packed: Executions
    pack: Tool[..., Any]

    def tool(self, name: str, effect: Effect = "at_most_once") -> agent_pb2.ToolSpec:
        """A tool at the endpoint's path of the same name."""
        return http_tool(name, self.http.url(f"/{name}"), effect=effect)

    def client(self, *executors: str) -> Client:
        """A client that knows several executors."""
        return Client(
            ",".join(self.suite.address(name) for name in executors),
            self.suite.api_key,
            auth_address=self.suite.address("auth"),
            trace_address=self.suite.address("trace"),
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    packed = Executions()

    @tool
    async def pack(context: ToolContext, box: int = 0) -> str:
        """Packs a box."""
        packed.note(context.run_id, context.idempotency_key)
        return f"box {box}"

    async with HttpEffects() as http, Suite(settings={"HOLDFAST_HTTP_TOOLS_ALLOW": "127.0.0.0/8"}) as suite:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(suite.worker([pack]).run())
            yield Stage(suite, http, packed, pack)
            serving.cancel()


@pytest_asyncio.fixture(loop_scope="module")
async def executor(stage: Stage) -> AsyncIterator[str]:
    """An executor that the test may end as it likes; the suite's own is away meanwhile, and is back afterwards."""
    name = await stage.suite.start_executor()
    await stage.suite.terminate("executor")
    yield name
    if not stage.suite.is_running("executor"):
        await stage.suite.restart("executor")
    if stage.suite.is_running(name):
        stage.suite.resume(name)
        await stage.suite.terminate(name)


async def start_many(client: Client, agent: Agent, count: int) -> list[RunHandle]:
    return list(await asyncio.gather(*(client.start(agent, f"run {number}") for number in range(count))))


async def histories_of(handles: list[RunHandle]) -> list[list[run_pb2.Event]]:
    histories = [await read_history(handle) for handle in handles]
    for events in histories:
        assert check_history(events).state == run_pb2.RUN_STATE_SUCCEEDED
    return histories


async def approval_of(handle: RunHandle) -> run_pb2.Approval:
    async for event in handle.events(deltas=False):
        assert isinstance(event, RunEvent)
        for change in event.changes:
            if change.HasField("approval_requested"):
                return change.approval_requested.approval
    raise AssertionError("the run ended without a question")


# ---------------------------------------------------------------------------------------------------------- executors


@pytest.mark.promise("P2")
async def test_all_runs_of_a_killed_executor_are_taken_over_by_the_standby(stage: Stage, executor: str) -> None:
    gate = Gate()
    stage.http.on("/fifty", gate.answer)
    agent = Agent(
        "fifty",
        model=scripted(turn("", call("fifty"), call("pack", box=1)), "done"),
        tools=[stage.tool("fifty", effect="read_only"), stage.pack],
    )
    async with asyncio.timeout(LONGEST), stage.client(executor, "executor") as client:
        await client.apply(agent)
        handles = await start_many(client, agent, 50)
        await stage.http.until(lambda: all(stage.http.of(handle.id, "/fifty") for handle in handles))
        await stage.suite.restart("executor")
        killed_at = time.time()
        await stage.suite.kill(executor)
        gate.open()
        async with asyncio.timeout(30):
            await asyncio.gather(*(handle.result() for handle in handles))
        took_over = []
        for events in await histories_of(handles):
            claims = [event for event in events if any(change.HasField("run_claimed") for change in event.changes)]
            took_over.append(claims[-1].time.ToNanoseconds() / 1e9 - killed_at)
            assert len(changes_of(events, "attempt_failed")) == 1
    assert all(len(stage.packed.of(handle.id)) == 1 for handle in handles)
    print(f"50 runs taken over between {min(took_over):.2f} s and {max(took_over):.2f} s after the kill")


@pytest.mark.promise("P3")
async def test_an_executor_that_was_stopped_past_its_lease_is_refused_when_it_goes_on(
    stage: Stage, executor: str
) -> None:
    gate = Gate()
    stage.http.on("/transfer", gate.answer)
    agent = Agent("transfer", model=scripted(call("transfer"), "{{result}}"), tools=[stage.tool("transfer")])
    async with asyncio.timeout(LONGEST), stage.client(executor) as first, stage.client("executor") as client:
        await first.apply(agent)
        run_id = (await first.start(agent, "go")).id
        await stage.http.until(lambda: bool(stage.http.of(run_id, "/transfer")))
        stage.suite.pause(executor)
        await stage.suite.restart("executor")
        handle = await client.run(run_id)
        # The standby has taken over and asks; meanwhile the stopped one holds the result without knowing it.
        question = await approval_of(handle)
        gate.open()
        stage.suite.resume(executor)
        await until(lambda: any(entry.get("event") == "lease_lost" for entry in stage.suite.events(executor)))
        await client.approvals.resolve(question.approval_id, "done", result="the receipt")
        assert await handle.result() == "the receipt"
        events = await read_history(handle)
    check_history(events)
    assert len(stage.http.of(handle.id, "/transfer")) == 1
    assert stage.suite.is_running(executor), "it serves other runs from now on"


@pytest.mark.promise("P3")
@pytest.mark.promise("P5")
async def test_a_call_that_was_to_begin_while_its_executor_was_stopped_is_not_made_by_it(
    stage: Stage, executor: str
) -> None:
    async def busy_once(made: HttpCall) -> Answer:
        if len(stage.http.of(made.run_id, "/later")) == 1:
            return Answer("busy", status=429, headers={"Retry-After": "3"})
        return Answer("moved")

    stage.http.on("/later", busy_once)
    agent = Agent("later", model=scripted(call("later"), "{{result}}"), tools=[stage.tool("later")])
    async with asyncio.timeout(LONGEST), stage.client(executor) as first, stage.client("executor") as client:
        await first.apply(agent)
        started = await first.start(agent, "go")
        async for event in started.events(deltas=False):
            assert isinstance(event, RunEvent)
            if any(change.HasField("attempt_started") for change in event.changes):
                break
        stage.suite.pause(executor)
        await stage.suite.restart("executor")
        handle = await client.run(started.id)
        question = await approval_of(handle)
        await client.approvals.resolve(question.approval_id, "not_done")
        assert await handle.result() == "moved"
        assert len(stage.http.of(handle.id, "/later")) == 2
        # It was stopped in the middle of the delay, which is over when it goes on. It looks before it calls.
        stage.suite.resume(executor)
        await until(lambda: any(entry.get("event") == "leases_not_renewed" for entry in stage.suite.events(executor)))
        await stage.suite.terminate(executor)
        check_history(await read_history(handle))
    assert len(stage.http.of(handle.id, "/later")) == 2


async def test_a_drained_executor_hands_its_runs_back_at_once_and_loses_nothing(stage: Stage, executor: str) -> None:
    gate = Gate()
    stage.http.on("/slow", gate.answer)
    slow = Agent(
        "drained",
        model=scripted(turn("", call("slow"), call("pack")), turn("", call("pack"), delay=0.2), "done"),
        tools=[stage.tool("slow"), stage.pack],
    )
    async with asyncio.timeout(LONGEST), stage.client("executor", executor) as client:
        await client.apply(slow)
        handles = await start_many(client, slow, 20)
        await stage.http.until(lambda: all(stage.http.of(handle.id, "/slow") for handle in handles))
        await stage.suite.restart("executor")
        draining = asyncio.create_task(stage.suite.terminate(executor))
        await until(lambda: "draining" in stage.suite.log(executor))
        gate.open()
        assert await draining == 0
        await asyncio.gather(*(handle.result() for handle in handles))
        for events in await histories_of(handles):
            # What was under way was finished and stored, so that nobody had to guess.
            assert not changes_of(events, "attempt_failed")
            assert not changes_of(events, "step_in_doubt")
    for handle in handles:
        assert len(stage.http.of(handle.id, "/slow")) == 1
        assert len(stage.packed.of(handle.id)) == 2


# -------------------------------------------------------------------------------------------------------------- state


@pytest.mark.promise("P1")
@pytest.mark.promise("P12")
async def test_nothing_acknowledged_is_lost_when_state_is_killed_in_the_middle(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/once", gate.answer)
    agent = Agent(
        "steady",
        model=scripted(turn("", call("once"), call("pack")), turn("", call("pack"), delay=0.5), "done"),
        tools=[stage.tool("once"), stage.pack],
    )
    async with asyncio.timeout(LONGEST), stage.client("executor") as client:
        await client.apply(agent)
        handles = await start_many(client, agent, 10)
        watching = [asyncio.create_task(read_history(handle)) for handle in handles]
        await stage.http.until(lambda: all(stage.http.of(handle.id, "/once") for handle in handles))
        await stage.suite.kill("state")
        # Results come in and new runs are asked for while nobody can store them.
        gate.open()
        starting = [asyncio.create_task(start_until_accepted(client, agent)) for _ in range(5)]
        await until(
            lambda: any(
                entry.get("event") == "state_is_away" or "journal_stream_broken" in str(entry)
                for entry in stage.suite.events("executor")
            )
        )
        await stage.suite.restart("state")
        handles += await asyncio.gather(*starting)
        await asyncio.gather(*(handle.result() for handle in handles))
        histories = await histories_of(handles)
        assert [await watched for watched in watching] == histories[:10], "watchers attached again by themselves"
        for events in histories:
            assert not changes_of(events, "step_in_doubt")
    for handle in handles:
        assert len(stage.http.of(handle.id, "/once")) == 1
        assert len(stage.packed.of(handle.id)) == 2


async def start_until_accepted(client: Client, agent: Agent) -> RunHandle:
    request_id = new_uuid7()
    while True:
        try:
            return await client.start(agent, "go", request_id=request_id)
        except Unavailable:
            continue


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "crash_point", ["state.before_commit:2", "state.before_commit:5", "state.after_commit:1", "state.after_commit:4"]
)
async def test_a_run_survives_the_death_of_state_at(stage: Stage, crash_point: str) -> None:
    agent = Agent(
        "journaled",
        model=scripted(turn("", call("pay"), call("pack", box=1)), turn("", call("pack", box=2)), "done"),
        tools=[stage.tool("pay"), stage.pack],
    )
    async with asyncio.timeout(LONGEST), stage.client("executor") as client:
        await client.apply(agent)
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": crash_point})
        starting = asyncio.create_task(start_until_accepted(client, agent))
        assert await stage.suite.wait_for_exit("state") == 137
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
        handle = await starting
        assert await handle.result() == "done"
        events = await read_history(handle)
    check_history(events)
    assert not changes_of(events, "step_in_doubt")
    assert len(stage.http.of(handle.id, "/pay")) == 1
    assert len(stage.packed.of(handle.id)) == 2


# ----------------------------------------------------------------------------------------------------- trace and auth


@pytest.mark.promise("P9")
async def test_a_run_is_traced_whole_although_trace_was_killed_while_it_ran(stage: Stage) -> None:
    halfway, may_end = asyncio.Event(), asyncio.Event()

    async def answer(made: HttpCall) -> Answer:
        if len(stage.http.of(made.run_id, "/many")) == 10:
            halfway.set()
            await may_end.wait()
        return Answer("fine")

    stage.http.on("/many", answer)
    turns = [turn("", call("many"), call("noop")) for _ in range(20)]
    agent = Agent("traced", model=scripted(*turns, "done"), tools=[stage.tool("many"), "noop"])
    async with asyncio.timeout(LONGEST), stage.client("executor") as client:
        await client.apply(agent)
        handle = await client.start(agent, "go")
        await halfway.wait()
        await stage.suite.kill("trace")
        may_end.set()
        await handle.result()
        run = await handle.get()
        await stage.suite.restart("trace")
        tree = await client.trace.tree(run.run_id, min_seq=run.last_seq, timeout=30)
    kinds = (query_pb2.SPAN_KIND_MODEL, query_pb2.SPAN_KIND_TOOL, query_pb2.SPAN_KIND_WAIT)
    steps = [span.step for span in tree.spans if span.kind in kinds]
    assert sorted(steps) == list(range(1, run.step_count + 1)), "one span for each step"
    assert len({span.span_id for span in tree.spans}) == len(tree.spans)
    assert len([span for span in tree.spans if span.kind == query_pb2.SPAN_KIND_RUN]) == 1


async def test_runs_go_on_without_auth_and_unknown_callers_are_told_why_they_have_to_wait(stage: Stage) -> None:
    gate = Gate()
    stage.http.on("/meanwhile", gate.answer)
    agent = Agent("unbothered", model=scripted(call("meanwhile"), "done"), tools=[stage.tool("meanwhile")])
    async with asyncio.timeout(LONGEST), stage.client("executor") as client:
        await client.apply(agent)
        _, other_key = await client.keys.create("another", ["runs:read"])
        handle = await client.start(agent, "go")
        watching = asyncio.create_task(read_history(handle))
        await stage.http.until(lambda: bool(stage.http.of(handle.id, "/meanwhile")))
        await stage.suite.kill("auth")
        gate.open()
        events = await watching
        assert check_history(events).state == run_pb2.RUN_STATE_SUCCEEDED
        async with stage.suite.client(api_key=other_key) as other:
            with pytest.raises(Unavailable) as refused:
                await other.run(handle.id)
            assert refused.value.reason == "AUTH_UNAVAILABLE"
            await stage.suite.restart("auth")
            while True:
                try:
                    assert (await other.run(handle.id)).run.state == run_pb2.RUN_STATE_SUCCEEDED
                    break
                except Unavailable:
                    continue


async def test_services_that_are_started_in_any_order_wait_for_each_other(stage: Stage) -> None:
    suite = stage.suite

    def says_that_it_waits(name: str, peer: str, before: int) -> Callable[[], bool]:
        return lambda: f"waiting for {peer}" in suite.log(name)[before:]

    async with asyncio.timeout(LONGEST):
        for name in ("executor", "trace", "auth", "state"):
            await suite.terminate(name)
        seen = {name: len(suite.log(name)) for name in ("executor", "trace")}
        starting = [asyncio.create_task(suite.restart(name)) for name in ("executor", "trace")]
        await until(says_that_it_waits("executor", "state", seen["executor"]))
        await until(says_that_it_waits("trace", "state", seen["trace"]))
        await suite.restart("auth")
        await suite.restart("state")
        await asyncio.gather(*starting)
        async with stage.client("executor") as client:
            agent = Agent("late", model=scripted("here"))
            await client.apply(agent)
            assert await (await client.start(agent, "go")).result() == "here"
