"""A provider's key goes to the provider and to no other place, also when the provider says it aloud (P8)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from holdfast import Agent
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.cli.launch import SERVICES
from holdfast.errors import HoldfastError
from tests.fakes.provider import FakeProvider, Reply, json_reply, openai_text
from tests.suite.histories import read_history
from tests.suite.stages import Stage, open_stage

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("P8")]

CANARY = "sk-canary/Xq7+TREE=9f27c1d04b"


def forms_of(secret: str) -> Iterator[bytes]:
    """The secret as it might have been written somewhere."""
    raw = secret.encode()
    yield raw
    yield raw[3:]
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield quote(secret, safe="").encode()
    yield quote_plus(secret).encode()
    yield secret.encode("utf-16-le")
    for shift in range(3):
        # Base64 has three forms of the same bytes, by where they begin; the edges belong to the neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * shift + raw)[4 if shift else 0 : -4]


async def test_the_search_finds_the_canary_in_every_form() -> None:
    forms = list(forms_of(CANARY))
    around = b"key " + CANARY.encode() + b" end"
    assert any(form in around for form in forms)
    for padding in range(3):
        assert any(form in base64.b64encode(b"x" * padding + CANARY.encode() + b"yy") for form in forms)
    assert not any(form in b"nothing to see here" for form in forms)


def found_in(content: bytes) -> bool:
    return any(form in content for form in forms_of(CANARY))


async def test_a_providers_key_is_found_nowhere_but_with_the_provider() -> None:
    async with asyncio.timeout(100), open_stage({"HOLDFAST_LOG_LEVEL": "debug"}) as stage, FakeProvider() as provider:
        await stage.client.connections.create("openai", CANARY, name="canary", base_url=provider.url)
        model = agent_pb2.ModelSpec(provider="openai", name="gpt-test", connection="canary")
        model.retry.max_attempts = 2
        model.retry.initial_interval.FromMilliseconds(10)
        agent = Agent("singer", model=model, instructions="Sing.")
        await stage.client.apply(agent)

        echo = {"error": {"message": f"Incorrect API key provided: {CANARY}.", "type": "invalid_request_error"}}
        quoted = {"error": {"message": f"header Authorization: Bearer {quote(CANARY)}", "code": CANARY}}
        encoded = base64.b64encode(f"Bearer {CANARY}".encode()).decode()
        replies: list[list[Reply]] = [
            [openai_text("La la la.")],
            [json_reply(401, echo, X_Request_Id=CANARY)],
            [json_reply(500, quoted), json_reply(500, {"error": {"message": encoded}})],
            [Reply([f"<html>{CANARY}</html>".encode()], 403, {"Content-Type": "text/html"})],
            [Reply([b"data: " + CANARY.encode() + b"\n\n"], 200, {"Content-Type": "text/event-stream"})] * 2,
        ]
        states = []
        seen: list[object] = []
        for script in replies:
            provider.will_reply(*script)
            handle = await stage.client.start(agent, "sing")
            run = await handle.wait()
            states.append(run.state)
            seen += [run, *await read_history(handle), *await answers_of_trace(stage, run)]
        assert states == [run_pb2.RUN_STATE_SUCCEEDED] + [run_pb2.RUN_STATE_FAILED] * 4
        assert {request.headers["authorization"] for request in provider.requests} == {f"Bearer {CANARY}"}

        seen += [connection async for connection in stage.client.connections.list()]
        seen += [await error_of(stage, name) for name in ("canary", "nothing")]
        leaks = [str(answer)[:200] for answer in seen if found_in(str(answer).encode()) or found_in(in_bytes(answer))]
        assert leaks == []

        for name in SERVICES:
            process = Path(f"/proc/{stage.suite.process_id(name)}")
            for part in ("environ", "cmdline"):
                assert not found_in((process / part).read_bytes())
        # Also what is written only when the services end.
        for name in SERVICES:
            await stage.suite.terminate(name)
        files = [path for path in stage.suite.data.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"state.db", "auth.db", "trace.db", "executor.log", "auth.log"}
        assert [path.name for path in files if found_in(path.read_bytes())] == []


async def answers_of_trace(stage: Stage, run: run_pb2.Run) -> list[object]:
    tree = await stage.client.trace.tree(run.run_id, min_seq=run.last_seq, timeout=30)
    steps = [await stage.client.trace.step(run.run_id, step) for step in range(1, run.step_count + 1)]
    return [tree, *steps]


async def error_of(stage: Stage, name: str) -> object:
    """What a caller is told who makes a mistake with the connection."""
    try:
        return await stage.client.connections.create("openai", CANARY, name=name, base_url=f"http://{CANARY}@x/")
    except HoldfastError as error:
        return (str(error), error.reason, error.metadata, error.field_violations)


def in_bytes(answer: object) -> bytes:
    serialize = getattr(answer, "SerializeToString", None)
    return bytes(serialize()) if serialize is not None else repr(answer).encode()
