"""The SDK against a whole suite: definitions, runs, tools in a worker, and a client that outlives an executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from holdfast import Agent, Client, RunEvent, TextDelta, ToolContext, Worker, tool
from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from holdfast.testing import Suite, call, scripted, turn


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[None]:
    """Runs a worker for as long as the block takes."""
    task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(20):
            await worker.connected.wait()
        yield
    finally:
        worker.drain()
        async with asyncio.timeout(20):
            await task


@tool(effect="read_only")
def price(article: str) -> dict[str, object]:
    """Returns the price of an article."""
    return {"article": article, "cents": 250}


async def test_agent_built_in_python_runs_its_python_tools(shared_suite: Suite) -> None:
    keys: list[str] = []

    @tool(effect="idempotent")
    async def order(context: ToolContext, article: str, count: int = 1) -> str:
        keys.append(context.idempotency_key)
        return f"{count} × {article} for {context.user_id}"

    model = scripted(
        turn("Let me see.", call("price", article="lamp")), call("order", article="lamp", count=2), "Done: {{result}}"
    )
    agent = Agent("sdk-shop", model=model, tools=[price, order])
    async with shared_suite.client() as client, serving(shared_suite.worker(agent.worker_tools)):
        revision = await client.apply(agent)
        run = await client.start(agent, "two lamps", user_id="ada")
        assert await run.result(timeout=60) == "Done: 2 × lamp for ada"
        assert run.run.revision == revision.revision
        assert len(keys) == 1 and keys[0]
        items = [item async for item in run.events()]
    events = [item for item in items if isinstance(item, RunEvent)]
    assert [item.seq for item in events] == list(range(1, len(events) + 1))
    assert events[-1].state == run_pb2.RUN_STATE_SUCCEEDED


async def test_text_arrives_before_the_step_that_writes_it_is_over(shared_suite: Suite) -> None:
    agent = Agent("sdk-writer", model=scripted(turn("one two three four", delay=0.3)))
    async with shared_suite.client() as client, asyncio.timeout(60):
        await client.apply(agent)
        run = await client.start(agent, "write")
        items = [item async for item in run.events()]
    pieces = [item for item in items if isinstance(item, TextDelta)]
    assert "".join(piece.text for piece in pieces) == "one two three four"
    [finished] = [
        number
        for number, item in enumerate(items)
        if isinstance(item, RunEvent) and any(change.HasField("step_finished") for change in item.changes)
    ]
    assert items.index(pieces[-1]) < finished


async def test_question_is_answered_and_the_run_goes_on(shared_suite: Suite) -> None:
    agent = Agent(
        "sdk-asker",
        model=scripted(call("ask_user", question="Which colour?"), "You said {{result}}."),
        tools=["ask_user"],
    )
    async with shared_suite.client() as client, asyncio.timeout(60):
        await client.apply(agent)
        run = await client.start(agent, "a lamp")
        async for item in run.events():
            if isinstance(item, RunEvent) and item.state == run_pb2.RUN_STATE_WAITING:
                break
        [approval] = [found async for found in client.approvals.list(run_id=run.id)]
        assert approval.prompt == "Which colour?"
        await client.approvals.answer(approval.approval_id, "red")
        await client.approvals.answer(approval.approval_id, "red")
        with pytest.raises(FailedPrecondition):
            await client.approvals.answer(approval.approval_id, "blue")
        assert "red" in await run.result()


async def test_conversation_goes_on_in_its_session(shared_suite: Suite) -> None:
    agent = Agent("sdk-echo", model=scripted("You said {{input}}"))
    async with shared_suite.client() as client, asyncio.timeout(60):
        await client.apply(agent)
        first = await client.start(agent, "one")
        await first.result()
        second = await client.start(agent, "two", session_id=first.run.session_id)
        await second.result()
        messages = [item.message.parts[0].text async for item in client.sessions.messages(first.run.session_id)]
    assert messages == ["one", "You said one", "two", "You said two"]


async def test_trace_shows_the_run_as_soon_as_it_has_ended(shared_suite: Suite) -> None:
    agent = Agent("sdk-traced", model=scripted("Hello"))
    async with shared_suite.client() as client, asyncio.timeout(60):
        await client.apply(agent)
        run = await client.start(agent, "hi")
        await run.result()
        tree = await client.trace.tree(run.id, min_seq=run.run.last_seq, timeout=30)
        assert tree.run.state == run_pb2.RUN_STATE_SUCCEEDED
        step = await client.trace.step(run.id, 1)
        assert step.model.output.parts[0].text == "Hello"


async def test_mistakes_come_back_as_their_own_classes(shared_suite: Suite) -> None:
    async with shared_suite.client() as client:
        with pytest.raises(NotFound) as missing:
            await client.start("nobody", "hi")
        assert missing.value.reason == "AGENT_NOT_FOUND"
        await client.apply(Agent("sdk-once", model=scripted("Hello")))
        await client.start("sdk-once", "hi", request_id="the-same")
        with pytest.raises(InvalidArgument) as reused:
            await client.start("sdk-once", "something else", request_id="the-same")
        assert reused.value.reason == "REQUEST_ID_REUSED"
    async with shared_suite.client(api_key="hfst_wrong_key") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.start("sdk-once", "hi")


async def test_keys_and_connections_are_managed_and_secrets_stay_inside(shared_suite: Suite) -> None:
    async with shared_suite.client() as client:
        key, secret = await client.keys.create("reader", ["runs:read"])
        async with shared_suite.client(api_key=secret) as reader:
            assert [run async for run in reader.runs.list(agent="no-such-agent")] == []
        assert key.api_key_id in [found.api_key_id async for found in client.keys.list()]
        assert (await client.keys.revoke(key.api_key_id)).HasField("revoke_time")
        made = await client.connections.create("openai", "sk-canary-7261", name="sdk-openai")
        assert "sk-canary-7261" not in str(made)
        assert "sdk-openai" in [found.name async for found in client.connections.list()]
        await client.connections.revoke("sdk-openai")


@pytest.mark.promise("P12")
async def test_client_follows_a_run_across_the_death_of_its_executor(suite: Suite) -> None:
    turns = [turn(f"part {number} of the answer", call("noop"), delay=0.2) for number in range(6)]
    agent = Agent("sdk-survivor", model=scripted(*turns, "the end"), tools=["noop"])
    async with suite.client() as client, asyncio.timeout(90):
        await client.apply(agent)
        run = await client.start(agent, "go")
        seen: list[int] = []
        async for item in run.events():
            if isinstance(item, RunEvent):
                seen.append(item.seq)
                if len(seen) == 5:
                    await suite.kill("executor")
                    await suite.restart("executor")
        assert seen == list(range(1, len(seen) + 1))
        assert await run.result() == "the end"


async def test_worker_drains_into_another_executor(suite: Suite) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @tool(effect="at_most_once")
    async def pay(context: ToolContext) -> str:
        calls.append(context.attempt)
        began.set()
        await may_end.wait()
        return "paid"

    agent = Agent("sdk-payer", model=scripted(call("pay"), "{{result}}"), tools=[pay])
    async with suite.client() as client, serving(suite.worker([pay])), asyncio.timeout(90):
        await client.apply(agent)
        run = await client.start(agent, "go")
        await began.wait()
        await suite.kill("executor")
        may_end.set()
        await suite.restart("executor")
        assert await run.result() == "paid"
    assert calls == [1]


async def test_client_of_a_suite_needs_no_arguments_but_the_environment(
    shared_suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared_suite.environment().items():
        monkeypatch.setenv(name, value)
    async with Client() as client:
        assert (await client.workspace()).name == "default"


async def test_run_says_its_priority_and_runs_of_a_limited_agent_all_end(shared_suite: Suite) -> None:
    agent = Agent(
        "sdk-limited", model=scripted(call("noop"), "done"), tools=["noop"], limits={"max_concurrent_runs": 1}
    )
    async with shared_suite.client() as client:
        await client.apply(agent)
        batch = [await client.start(agent, "go", priority="batch") for _ in range(4)]
        now = await client.start(agent, "go")
        assert [await run.result(timeout=60) for run in (*batch, now)] == ["done"] * 5
        assert (await batch[0].get()).priority == run_pb2.PRIORITY_BATCH
        assert (await now.get()).priority == run_pb2.PRIORITY_INTERACTIVE
        with pytest.raises(InvalidArgument, match="soon"):
            await client.start(agent, "go", priority="soon")  # type: ignore[arg-type]
