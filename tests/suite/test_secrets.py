"""A secret goes to whoever it is for and to no other place, also when that one says it aloud (P8)."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any
from urllib.parse import quote

import pytest

from holdfast import Agent, tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import HoldfastError
from tests.fakes.provider import DONE, FakeProvider, Reply, chunk, event_stream, json_reply, openai_text
from tests.suite.canary import Canaries, collecting
from tests.suite.effects import Answer, HttpCall
from tests.suite.histories import read_history
from tests.suite.stages import Stage, open_stage

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P8")]


async def test_the_search_finds_a_canary_in_every_form() -> None:
    canaries = Canaries()
    canary = canaries.new("key", "sk-")
    for content in (
        f"key {canary} end".encode(),
        canary.encode().hex().encode(),
        quote(canary, safe="").encode(),
        json.dumps(canary).replace("/", "\\/").encode(),
        *(base64.b64encode(b"x" * padding + canary.encode() + b"yy") for padding in range(3)),
    ):
        assert canaries.found_in(content) == ["key"]
    assert canaries.found_in(b"nothing to see here") == []


async def test_a_providers_key_is_found_nowhere_but_with_the_provider() -> None:
    canaries = Canaries()
    key, unused = canaries.new("model key", "sk-"), canaries.new("replaced key", "sk-")
    encoded = base64.b64encode(f"Bearer {key}".encode()).decode()

    @tool(effect="read_only")
    def tell() -> dict[str, str]:
        """Tell a secret, as a tool does that prints its surroundings."""
        return {"env": f"OPENAI_API_KEY={key}", "header": encoded, "url": f"https://a.example/?k={quote(key, safe='')}"}

    @tool(effect="read_only")
    def fail() -> str:
        """Fail with a secret in the error."""
        raise ValueError(f"401 for the key {key}")

    async def shout(call: HttpCall) -> Answer:
        return Answer({"you sent": key}, status=500 if "loud" in call.path else 200)

    async with (
        asyncio.timeout(150),
        collecting() as spans,
        open_stage({"HOLDFAST_LOG_LEVEL": "debug", "HOLDFAST_OTLP_ENDPOINT": spans.address}, warm=False) as stage,
        FakeProvider() as provider,
        stage.worker(tell, fail),
    ):
        await stage.client.connections.create("openai", unused, name="canary", base_url=provider.url)
        await stage.client.connections.create("openai", key, name="canary", base_url=provider.url, replace=True)
        model = agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="canary")
        model.retry.max_attempts = 2
        model.retry.initial_interval.FromMilliseconds(10)
        for path in ("/whisper", "/loud"):
            stage.http.on(path, shout)
        tools: list[Any] = [tell, fail, stage.tool("whisper", "read_only"), stage.tool("loud", "read_only")]
        agent = Agent("singer", model=model, instructions="Sing.", tools=tools)
        await stage.client.apply(agent)

        echo = {"error": {"message": f"Incorrect API key provided: {key}.", "type": "invalid_request_error"}}
        quoted = {"error": {"message": f"header Authorization: Bearer {quote(key)}", "code": key}}
        replies: list[list[Reply]] = [
            [openai_text("La la la.")],
            # The gateway in front of the model puts it into the answer, in pieces.
            [openai_text("Your key is ", key[:9], key[9:20], key[20:], " and ", encoded, ".")],
            [calls("tell", "fail", "whisper", "loud", text=f"I use {key}"), openai_text("Done.")],
            [json_reply(401, echo, X_Request_Id=key)],
            [json_reply(500, quoted), json_reply(500, {"error": {"message": encoded}})],
            [Reply([f"<html>{key}</html>".encode()], 403, {"Content-Type": "text/html"})],
            [Reply([b"data: " + key.encode() + b"\n\n"], 200, {"Content-Type": "text/event-stream"})] * 2,
        ]
        states = []
        seen: list[object] = []
        for script in replies:
            provider.will_reply(*script)
            handle = await stage.client.start(agent, "sing")
            # With the deltas, which are nowhere else.
            seen += [event async for event in handle.events()]
            run = await handle.wait()
            states.append(run.state)
            seen += [run, *await read_history(handle), *await answers_of_trace(stage, run)]
        assert states == [run_pb2.RUN_STATE_SUCCEEDED] * 3 + [run_pb2.RUN_STATE_FAILED] * 4
        assert {request.headers["authorization"] for request in provider.requests} == {f"Bearer {key}"}
        # It was taken out, not the whole answer.
        told = "".join(str(answer) for answer in seen)
        assert "Your key is [[secret:" in told
        assert "OPENAI_API_KEY=[[secret:" in told

        seen += [connection async for connection in stage.client.connections.list()]
        seen += [await error_of(stage, name, key) for name in ("canary", "nothing")]
        seen += [record async for record in stage.client.audit.list()]
        seen.append(await stage.command("audit", "verify"))
        await canaries.sweep(stage, seen, spans)
        alerts = [entry for entry in stage.suite.events("executor") if entry["event"] == "secret_scrubbed"]
        assert {entry["sink"] for entry in alerts} >= {"journal", "stream"}


def calls(*tools: str, text: str) -> Reply:
    """An answer that calls tools."""
    pieces = [
        {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for index, name in enumerate(tools)
    ]
    return event_stream(
        chunk({"content": text}), chunk({"tool_calls": pieces}), chunk(finish_reason="tool_calls"), DONE
    )


async def answers_of_trace(stage: Stage, run: run_pb2.Run) -> list[object]:
    tree = await stage.client.trace.tree(run.run_id, min_seq=run.last_seq, timeout=30)
    steps = [await stage.client.trace.step(run.run_id, step) for step in range(1, run.step_count + 1)]
    return [tree, *steps]


async def error_of(stage: Stage, name: str, key: str) -> object:
    """What a caller is told who makes a mistake with the connection."""
    try:
        return await stage.client.connections.create("openai", key, name=name, base_url=f"http://{key}@x/")
    except HoldfastError as error:
        return error
