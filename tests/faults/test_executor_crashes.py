"""The executor dies at each boundary of its loop, and another process takes over: nothing is lost, nothing is done twice.

The first executor of a case has one crash point armed (`HOLDFAST_CRASH_POINT`), the one after it has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from holdfast import Agent, Client, Worker, tool
from holdfast.agent import http_tool
from holdfast.api.common.v1 import run_pb2
from holdfast.errors import HoldfastError, Unavailable
from holdfast.ids import new_uuid7
from holdfast.resources import Resolution
from holdfast.runs import RunEvent, RunHandle
from holdfast.testing import Suite, call, scripted, turn
from holdfast.tool import ToolContext
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
    # What the person said about calls in doubt, by run: (idempotency key as far as it is known, resolution).
    resolved: dict[str, list[Resolution]] = field(default_factory=dict)

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
                http_tool("look", http.url("/look"), method="GET", effect="read_only"),
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


# How often a run passes a point at least; results that arrive together share a transition.
VISITS = {"before_commit": 12, "after_commit": 12, "after_intent": 12, "after_call": 9}
CASES = [("sqlite", f"executor.{point}:{visit}") for point, visits in VISITS.items() for visit in range(1, visits + 1)]


@pytest.mark.promise("P2")
@pytest.mark.promise("P4")
@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@pytest.mark.parametrize(("database_url", "crash_point"), CASES, indirect=["database_url"], scope="module")
async def test_a_run_survives_the_death_of_its_executor_at(stage: Stage, crash_point: str) -> None:
    await crash_and_take_over(stage, crash_point)
