"""The executor dies at each boundary of its loop and another process takes over: nothing is lost, nothing done twice.

The first executor of a case has one crash point armed (`HOLDFAST_CRASH_POINT`), the one after it has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from holdfast import Agent, Client, Worker, tool
from holdfast.agent import http_tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import HoldfastError, Unavailable
from holdfast.ids import new_uuid7
from holdfast.resources import Resolution
from holdfast.runs import RunEvent, RunHandle
from holdfast.testing import Suite, call, scripted, turn
from holdfast.tool import Effect, ToolContext
from tests.suite.effects import Answer, Executions, HttpCall, HttpEffects
from tests.suite.histories import changes_of, check_history, read_history, results_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

KILLED = 137
CASE_SECONDS = 60
ASK = call("ask_user", question="Go on?")
SCRIPT = scripted(
    turn("First I look.", call("noop", a=1), call("look"), call("pack", box=1)),
    turn("Now I pay.", call("pay", amount=5), call("look")),
    turn("May I?", ASK, call("sleep_until", seconds=0.2)),
    turn("Twice.", call("pay", amount=7), call("pack", box=2)),
    "Paid: {{result.pay}}, packed: {{result.pack}}.",
)


@dataclass
class Stage:
    """One suite with its tools, its worker and a person who answers; every case has its own run on it."""

    suite: Suite
    client: Client
    http: HttpEffects
    agent: Agent
    packed: Executions
    # What the person said about calls in doubt, by run.
    resolved: dict[str, list[Resolution]] = field(default_factory=dict)

    def tool(self, name: str, effect: Effect = "at_most_once") -> agent_pb2.ToolSpec:
        """A tool at the endpoint's path of the same name."""
        return http_tool(name, self.http.url(f"/{name}"), effect=effect)

    async def arm(self, crash_point: str) -> None:
        """Starts the executor anew, with a crash point or with none."""
        await self.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": crash_point})

    async def start(self) -> RunHandle:
        """Starts a run; the executor may die before it answers, or be away."""
        request_id = new_uuid7()
        while True:
            try:
                return await self.client.start(self.agent, "go", request_id=request_id)
            except Unavailable:
                continue

    async def run_to_its_end(self) -> RunHandle:
        """Starts a run, follows it to its end and answers what it asks, by what really happened."""
        handle = await self.start()
        async for event in handle.events(deltas=False):
            assert isinstance(event, RunEvent)
            for change in event.changes:
                if change.HasField("approval_requested"):
                    await self._answer(change.approval_requested.approval)
        return handle

    async def _answer(self, approval: run_pb2.Approval) -> None:
        while True:
            try:
                if approval.kind == run_pb2.APPROVAL_KIND_QUESTION:
                    await self.client.approvals.answer(approval.approval_id, "yes")
                    return
                # The truth is with the endpoint: the second payment is in doubt only after the first is settled.
                amounts = [made.body["amount"] for made in self.http.of(approval.run_id, "/pay")]
                was_made = f'"amount":{7 if 7 in amounts else 5}' in approval.arguments_json.replace(" ", "")
                was_made = was_made and bool(amounts)
                resolution: Resolution = "done" if was_made else "not_done"
                await self.client.approvals.resolve(
                    approval.approval_id, resolution, result="paid" if was_made else None
                )
                self.resolved.setdefault(approval.run_id, []).append(resolution)
                return
            except HoldfastError as error:
                # Its executor dies now and then; the same decision again is answered the same.
                if not isinstance(error, Unavailable):
                    raise


@pytest.fixture(scope="module")
def database_url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("module_postgres_database"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(database_url: str) -> AsyncIterator[Stage]:
    packed = Executions()

    @tool
    async def pack(context: ToolContext, box: int) -> str:
        """Packs a box."""
        packed.note(context.run_id, context.idempotency_key)
        return f"box {box}"

    async def pay(made: HttpCall) -> Answer:
        return Answer("paid")

    settings = {"HOLDFAST_HTTP_TOOLS_ALLOW": "127.0.0.0/8", "HOLDFAST_LOG_LEVEL": "info"}
    async with HttpEffects() as http, Suite(database_url=database_url, settings=settings) as suite:
        http.on("/pay", pay)
        agent = Agent(
            "payer",
            model=SCRIPT,
            tools=[
                http_tool("look", http.url("/look"), effect="read_only"),
                http_tool("pay", http.url("/pay")),
                pack,
                "noop",
                "ask_user",
                "sleep_until",
            ],
        )
        worker: Worker = suite.worker([pack])
        async with suite.client() as client, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(worker.run())
            await client.apply(agent)
            yield Stage(suite, client, http, agent, packed)
            serving.cancel()


async def crash_and_take_over(stage: Stage, crash_point: str) -> None:
    await stage.arm(crash_point)
    async with asyncio.timeout(CASE_SECONDS), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(stage.run_to_its_end())
        assert await stage.suite.wait_for_exit("executor") == KILLED, "the crash point was reached"
        await stage.arm("")
        handle = await running
    run = await handle.get()
    events = await read_history(handle)
    view = check_history(events)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
    assert run.last_seq == len(events)

    # What a worker executed is executed once, whatever became of the executor.
    packed = stage.packed.of(run.run_id)
    assert len(packed) == len(set(packed)) == 2
    # What a person said was not done is made again, and nothing else.
    paid = stage.http.of(run.run_id, "/pay")
    resolved = stage.resolved.get(run.run_id, [])
    assert len(paid) <= 2 + resolved.count("not_done")
    assert sorted({made.body["amount"] for made in paid}) == [5, 7]
    assert len({made.key for made in paid}) == 2
    assert len(changes_of(events, "step_in_doubt")) == len(resolved)
    # What changes nothing may be made again, with the same key.
    looked = stage.http.of(run.run_id, "/look")
    assert len({made.key for made in looked}) == 2
    assert {result.is_error for result in results_of(view).values()} == {False}


# Visits of each point on each database. A run passes them at least so often, however many results share a transition.
# What is stored is the same after a commit and after an intent, so that one of the two is enough for most visits.
VISITS: dict[str, dict[str, Iterable[int]]] = {
    "sqlite": {
        "before_commit": range(1, 13),
        "after_commit": (1, 5, 9, 12),
        "after_intent": (2, 3, 4, 6, 7, 8, 10, 11),
        "after_call": range(1, 10),
    },
    "postgresql": {"before_commit": (2, 5), "after_commit": (1, 8), "after_intent": (3, 7), "after_call": (2, 6)},
}


def cases(database: str) -> list[str]:
    return [f"executor.{point}:{visit}" for point, visits in VISITS[database].items() for visit in visits]


def on(database: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("database_url", [database], indirect=True, scope="module")


@pytest.mark.promise("P2")
@pytest.mark.promise("P4")
@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@on("sqlite")
@pytest.mark.parametrize("crash_point", cases("sqlite"))
async def test_a_run_survives_the_death_of_its_executor_at(stage: Stage, crash_point: str) -> None:
    await crash_and_take_over(stage, crash_point)


@pytest.mark.promise("P2")
@on("postgresql")
@pytest.mark.parametrize("crash_point", cases("postgresql"))
async def test_on_postgresql_a_run_survives_the_death_of_its_executor_at(stage: Stage, crash_point: str) -> None:
    await crash_and_take_over(stage, crash_point)


# ------------------------------------------------------------------------------------------------------ calls in flight


async def kill_in_flight(stage: Stage, agent: Agent, is_in_flight: Callable[[str], bool]) -> RunHandle:
    """Starts a run, kills the executor once its call is in flight, and starts the next one."""
    await stage.client.apply(agent)
    if not stage.suite.is_running("executor"):
        await stage.arm("")
    handle = await stage.client.start(agent, "go")
    await stage.http.until(lambda: is_in_flight(handle.id))
    await stage.suite.kill("executor")
    await stage.arm("")
    return handle


async def question_of(stage: Stage, handle: RunHandle) -> run_pb2.Approval:
    async for event in handle.events(deltas=False):
        assert isinstance(event, RunEvent)
        for change in event.changes:
            if change.HasField("approval_requested"):
                return change.approval_requested.approval
    raise AssertionError("the run ended without a question")


@pytest.mark.promise("P5")
@on("sqlite")
@pytest.mark.parametrize(
    ("resolution", "calls", "state", "says"),
    [
        ("done", 1, run_pb2.RUN_STATE_SUCCEEDED, "the receipt"),
        ("not_done", 2, run_pb2.RUN_STATE_SUCCEEDED, "charged"),
        ("tell_model", 1, run_pb2.RUN_STATE_SUCCEEDED, "outcome of this call is unknown"),
        ("fail_run", 1, run_pb2.RUN_STATE_FAILED, "outcome of this call is unknown"),
    ],
)
async def test_a_payment_in_flight_is_in_doubt_and_a_person_decides(
    stage: Stage, resolution: Resolution, calls: int, state: run_pb2.RunState, says: str
) -> None:
    released = asyncio.Event()

    async def charge(made: HttpCall) -> Answer:
        await released.wait()
        return Answer("charged")

    stage.http.on("/charge", charge)
    agent = Agent("charger", model=scripted(call("charge"), "{{result}}"), tools=[stage.tool("charge")])
    async with asyncio.timeout(CASE_SECONDS):
        handle = await kill_in_flight(stage, agent, lambda run_id: bool(stage.http.of(run_id, "/charge")))
        question = await question_of(stage, handle)
        assert question.kind == run_pb2.APPROVAL_KIND_IN_DOUBT
        assert question.tool == "charge"
        released.set()
        result = "the receipt" if resolution == "done" else None
        await stage.client.approvals.resolve(question.approval_id, resolution, result=result)
        run = await handle.wait()
    view = check_history(await read_history(handle))
    made = stage.http.of(run.run_id, "/charge")
    assert len(made) == calls
    assert len({charge.key for charge in made}) == 1, "a call that is made again has the same key"
    assert run.state == state
    assert says in results_of(view)["charge"].content


@pytest.mark.promise("P2")
@on("sqlite")
async def test_a_question_to_the_endpoint_in_flight_is_asked_again_with_the_same_key(stage: Stage) -> None:
    answers = asyncio.Event()

    async def ask(made: HttpCall) -> Answer:
        if len(stage.http.of(made.run_id, "/ask")) == 1:
            await answers.wait()
        return Answer("42")

    stage.http.on("/ask", ask)
    tools = [stage.tool("ask", effect="read_only")]
    agent = Agent("asker", model=scripted(call("ask"), "{{result}}"), tools=tools)
    async with asyncio.timeout(CASE_SECONDS):
        handle = await kill_in_flight(stage, agent, lambda run_id: bool(stage.http.of(run_id, "/ask")))
        assert "42" in await handle.result()
    answers.set()
    events = await read_history(handle)
    check_history(events)
    asked = stage.http.of(handle.id, "/ask")
    assert len(asked) == 2
    assert len({made.key for made in asked}) == 1
    (lost,) = changes_of(events, "attempt_failed")
    assert lost.attempt_failed.failure.reason == "EXECUTOR_LOST"


@pytest.mark.promise("P2")
@on("sqlite")
async def test_a_call_that_a_worker_runs_is_reported_to_the_next_executor(stage: Stage) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    executed: list[str] = []

    @tool
    async def saw(context: ToolContext) -> str:
        """Saws."""
        executed.append(context.run_id)
        begun.set()
        await may_end.wait()
        return "sawn"

    agent = Agent("sawyer", model=scripted(call("saw"), "{{result}}"), tools=[saw])
    await stage.client.apply(agent)
    async with asyncio.timeout(CASE_SECONDS), asyncio.TaskGroup() as tasks:
        worker = stage.suite.worker([saw])
        serving = tasks.create_task(worker.run())
        handle = await stage.client.start(agent, "go")
        await begun.wait()
        await stage.suite.kill("executor")
        may_end.set()
        await stage.arm("")
        assert await handle.result() == "sawn"
        worker.drain()
        await serving
    events = await read_history(handle)
    check_history(events)
    assert executed == [handle.id]
    assert not changes_of(events, "attempt_failed")
