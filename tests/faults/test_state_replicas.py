"""Two processes of state and three executors on one PostgreSQL: whichever is killed, the runs go on, once each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio

from holdfast import Agent, Client
from holdfast.agent import http_tool
from holdfast.api.common.v1 import run_pb2
from holdfast.runs import RunEvent, RunHandle
from holdfast.testing import Suite, call, scripted, turn
from tests.suite.effects import Answer, HttpCall, HttpEffects
from tests.suite.histories import changes_of, check_history, read_history

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

STEPS = 6


@dataclass
class Stage:
    """The suite: `executor` calls both states, `near` and `far` one each."""

    suite: Suite
    http: HttpEffects
    near: str
    far: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(module_postgres_database: str) -> AsyncIterator[Stage]:
    async with HttpEffects() as http, Suite(database_url=module_postgres_database, states=2) as suite:
        first, second = (suite.address(name) for name in suite.states)
        near = await suite.start_executor(settings={"HOLDFAST_STATE_ADDRESS": first})
        far = await suite.start_executor(settings={"HOLDFAST_STATE_ADDRESS": second})
        await suite.restart("executor", settings={"HOLDFAST_STATE_ADDRESS": f"{first},{second}"})
        yield Stage(suite, http, near, far)


def busy_agent(stage: Stage, name: str) -> Agent:
    """Takes a while, and calls a tool in every other step."""

    async def work(_: HttpCall) -> Answer:
        await asyncio.sleep(0.05)
        return Answer("done")

    stage.http.on(f"/{name}", work)
    turns = [turn("", call(name, n=number)) for number in range(STEPS)]
    tool = http_tool(name, stage.http.url(f"/{name}"), effect="idempotent")
    return Agent(name, model=scripted(*turns, "all done"), tools=[tool])


def client_of(stage: Stage, *executors: str) -> Client:
    """A client that knows several executors."""
    return Client(
        ",".join(stage.suite.address(name) for name in executors),
        stage.suite.api_key,
        auth_address=stage.suite.address("auth"),
        trace_address=stage.suite.address("trace"),
    )


def has_begun(stage: Stage, handles: list[RunHandle]) -> bool:
    """Whether some of the runs are in the middle of their work."""
    return any(stage.http.of(handle.id, "/busy") for handle in handles)


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_runs_go_on_whichever_process_is_killed(stage: Stage) -> None:
    agent = busy_agent(stage, "busy")
    everybody = ("executor", stage.near, stage.far)
    handles: list[RunHandle] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(100))
        client = await stack.enter_async_context(client_of(stage, *everybody))
        reader = await stack.enter_async_context(stage.suite.client())
        # An executor with room drives what was started through it: each of them has work.
        own = [await stack.enter_async_context(client_of(stage, name)) for name in everybody]
        await client.apply(agent)
        for victim in (stage.near, "state-2", stage.far, "state", "executor"):
            begun = [await each.start(agent, f"before {victim}") for each in own for _ in range(2)]
            await stage.http.until(partial(has_begun, stage, begun))
            await stage.suite.kill(victim)
            # New runs while it is away.
            begun += [await client.start(agent, f"without {victim}") for _ in range(2)]
            await stage.suite.restart(victim)
            handles += begun
        assert [await handle.result() for handle in handles] == ["all done"] * len(handles)
        histories = [await read_history(await reader.run(handle.id)) for handle in handles]
    executors: set[str] = set()
    for handle, events in zip(handles, histories, strict=True):
        assert check_history(events).state == run_pb2.RUN_STATE_SUCCEEDED
        executors |= {change.run_claimed.executor_id for change in changes_of(events, "run_claimed")}
        effects = stage.http.of(handle.id, "/busy")
        assert len({effect.key for effect in effects}) == STEPS, "a call that was repeated kept its key"
    assert len(executors) >= 3


@pytest.mark.promise("P12")
async def test_a_client_of_one_executor_sees_what_another_one_writes_through_another_state(stage: Stage) -> None:
    agent = busy_agent(stage, "distant")
    await stage.suite.terminate("executor")
    async with (
        asyncio.timeout(60),
        stage.suite.client(executor=stage.near) as near,
        stage.suite.client(executor=stage.far) as far,
    ):
        await near.apply(agent)
        # An executor with room drives what was started through it.
        own = await near.start(agent, "go")
        distant = await far.start(agent, "go")
        handle = await near.run(distant.id)
        events = [event.message async for event in handle.events(deltas=False) if isinstance(event, RunEvent)]
        assert await own.result() == await handle.result() == "all done"
        (here,) = changes_of(await read_history(own), "run_claimed")
    assert check_history(events).state == run_pb2.RUN_STATE_SUCCEEDED
    (there,) = changes_of(events, "run_claimed")
    assert here.run_claimed.executor_id != there.run_claimed.executor_id
