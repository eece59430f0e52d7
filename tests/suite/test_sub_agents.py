"""Agents that call agents, with real processes: a tree of runs is one piece of work, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from holdfast import Agent, Limits, agent_tool
from holdfast.api.common.v1 import run_pb2
from holdfast.errors import InvalidArgument
from holdfast.runs import RunHandle
from holdfast.testing import call, scripted, turn
from tests.suite.effects import Gate
from tests.suite.histories import changes_of, check_history, read_history
from tests.suite.stages import Stage, until_change, until_waiting
from tests.suite.test_doctor import holdfast

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CHILD = run_pb2.WAIT_REASON_CHILD
PAIR = (("ping", "pong"), ("pong", "ping"))


def caller(name: str, agent: str, **options: Any) -> Agent:
    """An agent that calls another one, and answers with what that says."""
    tool = agent_tool(agent)
    return Agent(name, model=scripted(call(tool.name, input="x"), "{{result}}"), tools=[tool], **options)


def looper(name: str, max_steps: int) -> Agent:
    """An agent whose runs fail."""
    limits = Limits(max_steps=max_steps)
    return Agent(name, model=scripted(call("noop"), loop=True), tools=["noop"], limits=limits)


async def children_of(stage: Stage, handle: RunHandle) -> list[run_pb2.Run]:
    found = [run async for run in stage.client.runs.list(parent_run_id=handle.id)]
    return sorted(found, key=lambda run: run.parent_step)


async def sound(stage: Stage, *handles: RunHandle) -> None:
    """The histories of these runs and of all below them are what they must be, and nothing of them is left open."""
    for handle in handles:
        async for run in stage.client.runs.list(root_run_id=handle.id):
            check_history(await read_history(stage.client.runs.handle(run.run_id)))
            assert run.end_time.seconds, run


async def test_agent_asks_others_at_once_and_goes_on_with_their_answers(stage: Stage) -> None:
    await stage.client.apply(Agent("weather", model=scripted("Sunny in {{input}}.")))
    await stage.client.apply(Agent("counter", model=scripted('{"count": 3}')))
    arguments = {"type": "object", "properties": {"what": {"type": "string"}}}
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    agent = Agent(
        "planner",
        model=scripted(
            turn("", call("weather", input="Rome"), call("counter", what="rain")),
            "{{result.weather}} {{result.counter}}",
        ),
        tools=[
            agent_tool("weather"),
            agent_tool("counter", input_schema=arguments, output_schema=schema),
        ],
    )
    async with asyncio.timeout(40):
        handle = await stage.start(agent, user_id="ada")
        assert await handle.result() == 'Sunny in Rome. {"count":3}'
    begins = next(event for event in await read_history(handle) if changes_of([event], "step_started")[1:])
    assert begins.changes[-1].run_state_changed.wait_reason == CHILD, "it waits from the event on that starts them"
    weather, counter = await children_of(stage, handle)
    assert [weather.agent, counter.agent] == ["weather", "counter"]
    for child in (weather, counter):
        assert (child.root_run_id, child.depth, child.user_id) == (handle.id, 1, "ada")
        assert child.session_id == handle.run.session_id
    asked = (await read_history(stage.client.runs.handle(counter.run_id)))[0].changes[0].run_created
    assert asked.input.message.parts[0].text == '{"what":"rain"}'
    assert [run.run_id async for run in stage.client.runs.list(agent="weather")] == []
    messages = [m async for m in stage.client.sessions.messages(handle.run.session_id)]
    assert len(messages) == 5
    await sound(stage, handle)
    shown = await stage.command("runs", "get", handle.id)
    assert [child["agent"] for child in shown["children"]] in (["weather", "counter"], ["counter", "weather"])


@pytest.mark.promise("P7")
async def test_child_that_fails_or_answers_wrongly_is_told_to_the_model(stage: Stage) -> None:
    await stage.client.apply(looper("looper", 2))
    await stage.client.apply(Agent("talker", model=scripted("no number")))
    agent = Agent(
        "hopeful",
        model=scripted(
            turn("", call("looper", input="x"), call("talker", input="y")), "{{result.looper}} | {{result.talker}}"
        ),
        tools=[agent_tool("looper"), agent_tool("talker", output_schema={"type": "integer"})],
    )
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        said = await handle.result()
    assert "CHILD_FAILED" in said and "MAX_STEPS_EXCEEDED" in said
    assert "not valid JSON" in said
    await sound(stage, handle)


async def test_failed_child_is_repeated_where_its_tool_says_so(stage: Stage) -> None:
    await stage.client.apply(looper("failer", 1))
    tool = agent_tool("failer", max_attempts=2)
    tool.retry.initial_interval.FromMilliseconds(1)
    agent = Agent("stubborn", model=scripted(call("failer", input="x"), "{{result}}"), tools=[tool])
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        assert "CHILD_FAILED" in await handle.result()
    assert len(await children_of(stage, handle)) == 2
    await sound(stage, handle)


async def test_agents_that_call_themselves_end_at_their_depth(stage: Stage) -> None:
    agent = Agent(
        "mirror",
        model=scripted(call("mirror", input="deeper"), "{{result}}"),
        tools=[agent_tool("mirror")],
        limits=Limits(max_depth=2),
    )
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        assert "MAX_DEPTH_EXCEEDED" in await handle.result()
    depths = [run.depth async for run in stage.client.runs.list(root_run_id=handle.id)]
    assert sorted(depths) == [0, 1, 2]
    await sound(stage, handle)


async def test_agent_that_starts_too_many_is_told(stage: Stage) -> None:
    await stage.client.apply(Agent("one-of-many", model=scripted("ok")))
    agent = Agent(
        "crowd",
        model=scripted(turn("", *(call("one_of_many", input="x") for _ in range(3))), "{{result}}"),
        tools=[agent_tool("one-of-many")],
        limits=Limits(max_children=2),
    )
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        assert "MAX_CHILDREN_EXCEEDED" in await handle.result()
    assert len(await children_of(stage, handle)) == 2
    await sound(stage, handle)


async def test_agent_that_is_not_there_cannot_be_called(stage: Stage) -> None:
    with pytest.raises(InvalidArgument, match="apply it first"):
        await stage.client.apply(Agent("lonely", model=scripted("x"), tools=[agent_tool("nobody")]))


async def test_agents_of_one_file_may_call_each_other(stage: Stage, tmp_path: Path) -> None:
    text = """
    name: {name}
    model:
      provider: scripted
      script: {{turns: [{{tool_calls: [{{tool: other, arguments: {{input: x}}}}]}}, {{text: "{name}"}}]}}
    tools: [{{name: other, agent: {{agent: {other}, revision: prod}}}}]
    limits: {{max_depth: 1}}
    """
    file = tmp_path / "agents.yaml"
    file.write_text("---".join(dedent(text.format(name=name, other=other)) for name, other in PAIR))
    for options in (("--check",), ("--label", "prod")):
        code, _, complaint = await holdfast(stage.suite, "apply", "-f", str(file), *options)
        assert code == 0, complaint
    async with asyncio.timeout(40):
        handle = await stage.client.start("ping", "x")
        assert await handle.result() == "ping"
    await sound(stage, handle)


@pytest.mark.promise("P6")
async def test_questions_of_a_child_are_found_at_the_root_while_that_holds_nothing(stage: Stage) -> None:
    await stage.client.apply(
        Agent("asker", model=scripted(call("ask_user", question="Which?"), "{{result}}"), tools=["ask_user"])
    )
    agent = caller("boss", "asker", limits=Limits(max_concurrent_runs=1))
    async with asyncio.timeout(40):
        first, second = await stage.start(agent), await stage.start(agent)
        for handle in (first, second):
            await until_waiting(handle, CHILD)
            questions: list[run_pb2.Approval] = []
            while not questions:
                questions = [q async for q in stage.client.approvals.list(root_run_id=handle.id)]
            assert questions[0].run_id != handle.id
            if handle is first:
                await stage.client.approvals.answer(questions[0].approval_id, "blue")
            else:
                await stage.command("answer", handle.id, "blue")
        assert [await handle.result() for handle in (first, second)] == ["blue", "blue"]
    await sound(stage, first, second)


async def test_cancel_stops_the_whole_tree(stage: Stage) -> None:
    gate = Gate("late")
    stage.http.on("/slow", gate.answer)
    await stage.client.apply(Agent("worker", model=scripted(call("slow"), "done"), tools=[stage.tool("slow")]))
    await stage.client.apply(caller("middle", "worker"))
    agent = caller("top", "middle")
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of_any("/slow")))
        await handle.cancel("enough")
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
        async for run in stage.client.runs.list(root_run_id=handle.id):
            ended = await stage.client.runs.handle(run.run_id).wait()
            assert ended.state == run_pb2.RUN_STATE_CANCELLED
    gate.open()
    await sound(stage, handle)


async def test_time_of_a_parent_is_the_time_of_its_tree(stage: Stage) -> None:
    await stage.client.apply(
        Agent("sleeper", model=scripted(call("sleep_until", seconds=3_600), "x"), tools=["sleep_until"])
    )
    agent = caller("short", "sleeper")
    async with asyncio.timeout(40):
        handle = await stage.start(agent, ttl=1)
        assert (await handle.wait()).state == run_pb2.RUN_STATE_EXPIRED
        (child,) = await children_of(stage, handle)
        assert (await stage.client.runs.handle(child.run_id).wait()).state == run_pb2.RUN_STATE_CANCELLED
        # And of a call, where its tool has one.
        tool = agent_tool("sleeper", name="nap", timeout=1)
        handle = await stage.start(Agent("patient", model=scripted(call("nap", input="x"), "{{result}}"), tools=[tool]))
        assert "CHILD_EXPIRED" in await handle.result()
    await sound(stage, handle)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("crash_point", ["executor.before_commit", "executor.after_commit"])
async def test_executor_that_dies_as_it_starts_a_child_leaves_one_child(stage: Stage, crash_point: str) -> None:
    await stage.client.apply(Agent("helper", model=scripted("helped")))
    gate = Gate("go")
    path = f"/wait_at_{crash_point.rpartition('.')[2]}"
    stage.http.on(path, gate.answer)
    agent = Agent(
        "fragile",
        model=scripted(call(path[1:]), call("helper", input="x"), "{{result}}"),
        tools=[stage.tool(path[1:], effect="idempotent"), agent_tool("helper")],
    )
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of(handle.id, path)))
        await stage.suite.kill("executor")
        gate.open()
        stage.suite.launch("executor", settings={"HOLDFAST_CRASH_POINT": crash_point})
        assert await stage.suite.wait_for_exit("executor") == 137
        await stage.suite.restart("executor", settings={"HOLDFAST_CRASH_POINT": ""})
        assert await handle.result() == "helped"
    assert len(await children_of(stage, handle)) == 1
    await sound(stage, handle)


@pytest.mark.promise("P1")
async def test_state_that_dies_with_the_end_of_a_child_has_told_its_parent(stage: Stage) -> None:
    gate = Gate("late")
    stage.http.on("/end", gate.answer)
    await stage.client.apply(
        Agent("ender", model=scripted(call("end"), "ended"), tools=[stage.tool("end", effect="idempotent")])
    )
    agent = caller("waiter", "ender")
    async with asyncio.timeout(60):
        handle = await stage.start(agent)
        await stage.http.until(lambda: bool(stage.http.of_any("/end")))
        await until_waiting(handle, CHILD)
        await stage.suite.kill("state")
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": "state.child_ends.after_commit"})
        gate.open()
        assert await stage.suite.wait_for_exit("state") == 137
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
        assert await handle.result() == "ended"
    assert len(changes_of(await read_history(handle), "child_ended")) == 1
    await sound(stage, handle)


async def test_state_that_dies_with_the_end_of_a_parent_stops_its_children(stage: Stage) -> None:
    sleeping = scripted(call("sleep_until", seconds=3_600), "x")
    await stage.client.apply(Agent("dozer", model=sleeping, tools=["sleep_until"]))
    async with asyncio.timeout(60):
        handle = await stage.start(caller("guard", "dozer"))
        await until_waiting(handle, CHILD)
        (child,) = await children_of(stage, handle)
        await until_waiting(stage.client.runs.handle(child.run_id), run_pb2.WAIT_REASON_TIMER)
        await stage.suite.kill("state")
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": "state.after_commit"})
        await handle.cancel("enough")
        assert await stage.suite.wait_for_exit("state") == 137
        await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
        assert (await handle.wait()).state == run_pb2.RUN_STATE_CANCELLED
        assert (await stage.client.runs.handle(child.run_id).wait()).state == run_pb2.RUN_STATE_CANCELLED
    await sound(stage, handle)


async def test_long_answer_of_a_child_arrives_whole(stage: Stage) -> None:
    words = " ".join(f"word{number}" for number in range(3_000))
    await stage.client.apply(Agent("verbose", model=scripted(words)))
    async with asyncio.timeout(40):
        handle = await stage.start(caller("reader", "verbose"))
        assert await handle.result() == words
    await sound(stage, handle)


@pytest.mark.promise("P11")
async def test_child_uses_what_its_parent_may_use_and_nothing_else(stage: Stage) -> None:
    await stage.client.connections.create("shop", "s3cret-token", base_url=stage.http.url(""))
    tool = stage.tool("order", connection="shop")
    await stage.client.apply(Agent("buyer", model=scripted(call("order"), "{{result}}"), tools=[tool]))
    async with asyncio.timeout(40):
        # The one at the top is granted what it declares itself, which is nothing, and what those declare that it calls.
        handle = await stage.start(caller("house", "buyer"), user_id="ada")
        assert await handle.result() == "fine"
        (child,) = await children_of(stage, handle)
    assert len(stage.http.of(child.run_id, "/order")) == 1
    assert child.user_id == "ada"


@pytest.mark.promise("P9")
async def test_tree_is_one_trace(stage: Stage) -> None:
    await stage.client.apply(Agent("leaf", model=scripted("a word")))
    await stage.client.apply(caller("branch", "leaf"))
    async with asyncio.timeout(40):
        handle = await stage.start(caller("root", "branch"))
        await handle.result()
        below = [run async for run in stage.client.runs.list(root_run_id=handle.id) if run.depth]
        for run in (*below, await handle.get()):
            await stage.client.trace.tree(run.run_id, min_seq=run.last_seq, timeout=10)
        tree = await stage.client.trace.tree(handle.id, include_children=True)
    assert [(child.agent, child.depth) for child in tree.children] == [("branch", 1), ("leaf", 2)]
    spans = {span.span_id: span for span in tree.spans}
    assert len(spans) == len(tree.spans)
    assert {span.trace_id for span in tree.spans} == {handle.id.replace("-", "")} == {tree.run.trace_id}
    roots = [span for span in tree.spans if span.name.startswith("invoke_agent")]
    assert [span.name for span in roots] == ["invoke_agent root", "invoke_agent branch", "invoke_agent leaf"]
    assert [spans[span.parent_span_id].name for span in roots[1:]] == ["execute_tool branch", "execute_tool leaf"]
    listed = [run.run_id async for run in stage.client.trace.list()]
    assert handle.id in listed and not {run.run_id for run in below} & set(listed)
    assert {run.run_id async for run in stage.client.trace.list(parent_run_id=handle.id)} == {
        run.run_id for run in below if run.depth == 1
    }
    assert len([run async for run in stage.client.trace.list(root_run_id=handle.id)]) == 3
    shown = await stage.command("trace", handle.id)
    assert len(shown["children"]) == 2
    # What was said stays in state.
    assert b"a word" not in b"".join(path.read_bytes() for path in stage.suite.data.glob("trace.db*"))


async def test_doctor_finds_nothing_wrong_with_trees(stage: Stage) -> None:
    report = await stage.command("doctor", "--data", str(stage.suite.data))
    assert report["result"] == "OK", report


async def test_change_of_a_child_is_seen_by_who_watches_its_parent(stage: Stage) -> None:
    await stage.client.apply(Agent("quick", model=scripted("quick")))
    agent = caller("watcher", "quick")
    async with asyncio.timeout(40):
        handle = await stage.start(agent)
        change = await until_change(handle, lambda change: change.HasField("child_ended"))
        assert change.child_ended.state == run_pb2.RUN_STATE_SUCCEEDED
        assert await handle.result() == "quick"
