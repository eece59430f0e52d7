"""Chat Completions: what is sent for a conversation, and what is made of the answers of less careful servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models import Model, ModelAnswer, ModelRegistry, ModelRequest
from services.executor.models.openai import OpenAIModel
from services.shared.clock import SystemClock
from tests.executor.models.calls import (
    WEATHER,
    Heard,
    assistant,
    call,
    calls_of,
    credential,
    note,
    request,
    result,
    text_of,
    tool,
    user,
)
from tests.fakes.provider import DONE, FakeProvider, chunk, data, event_stream, openai_text

OWN = "https://api.openai.com/v1"
COMPATIBLE = "http://127.0.0.1:8000/v1"


@pytest.fixture
def model(registry: ModelRegistry) -> Model:
    return registry.get("openai")


@pytest.fixture
async def server() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as server:
        yield server


def body(request: ModelRequest, address: str = COMPATIBLE) -> dict[str, Any]:
    return OpenAIModel(SystemClock()).body(request, address)


async def answer(model: Model, server: FakeProvider, *chunks: bytes, sent: ModelRequest | None = None) -> ModelAnswer:
    server.will_reply(event_stream(*chunks, DONE))
    return await model.answer(sent or request(), credential(server.url), Heard())


def pieces(*tool_calls: dict[str, Any]) -> list[bytes]:
    return [*(chunk({"tool_calls": [piece]}) for piece in tool_calls), chunk(finish_reason="tool_calls")]


def function(name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    return {"function": {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}}


async def test_request_on_the_wire_is_a_streamed_chat_completion(model: Model, server: FakeProvider) -> None:
    server.will_reply(openai_text("hi"))

    await model.answer(request(user("hello"), instructions="Be kind."), credential(f"{server.url}/v1"), Heard())

    [received] = server.requests
    assert (received.method, received.path) == ("POST", "/v1/chat/completions")
    assert received.body == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_conversation_is_mapped_message_by_message() -> None:
    calls = [call("call_a", "get_weather", '{"city":"Rome"}'), call("call_b", "noop", "")]
    thought = assistant("I look.", *calls)
    thought.parts.insert(0, content_pb2.Part(reasoning=content_pb2.Reasoning(text="hidden")))
    sent = request(
        user("weather?"),
        thought,
        result("call_a", "get_weather", "sun"),
        result("call_b", "noop", "broken", is_error=True),
        note("Answer shortly."),
        assistant(""),
    )

    assert body(sent)["messages"] == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                },
                {"id": "call_b", "type": "function", "function": {"name": "noop", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "sun"},
        {"role": "tool", "tool_call_id": "call_b", "content": "broken"},
        {"role": "system", "content": "Answer shortly."},
        {"role": "assistant", "content": ""},
    ]


def test_openai_itself_is_addressed_in_its_newer_words() -> None:
    spec = agent_pb2.ModelSpec(name="o4-mini", parameters={"max_output_tokens": 10})
    sent = request(user("hi"), note("Hurry."), spec=spec, instructions="Be kind.")

    own, compatible = body(sent, OWN), body(sent, COMPATIBLE)

    assert [message["role"] for message in own["messages"]] == ["developer", "user", "developer"]
    assert [message["role"] for message in compatible["messages"]] == ["system", "user", "system"]
    assert own["max_completion_tokens"] == compatible["max_tokens"] == 10
    assert "max_tokens" not in own
    assert "max_completion_tokens" not in compatible


def test_only_parameters_that_are_set_are_sent() -> None:
    parameters = agent_pb2.ModelParameters(
        temperature=0.0, top_p=0.5, stop_sequences=["END"], seed=7, reasoning_effort="low"
    )

    sent = body(request(spec=agent_pb2.ModelSpec(name="m", parameters=parameters)))

    expected = {"temperature": 0.0, "top_p": 0.5, "stop": ["END"], "seed": 7, "reasoning_effort": "low"}
    assert {key: sent[key] for key in expected} == expected
    assert not set(expected) & set(body(request()))


def test_tools_are_functions_with_object_schemas() -> None:
    sent = body(request(tools=[WEATHER, tool("noop")]))

    assert sent["tool_choice"] == "auto"
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
                },
            },
        },
        {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}},
    ]
    # A protobuf Struct has doubles only; `1.0` is no minimum length for some servers.
    assert '"minimum": 1,' in json.dumps(sent)


def test_arguments_that_are_no_json_reach_compatible_servers_as_json() -> None:
    sent = request(user("hi"), assistant("", call("call_a", "noop", '{"a":')), result("call_a", "noop", "invalid"))

    def arguments(address: str) -> str:
        return str(body(sent, address)["messages"][1]["tool_calls"][0]["function"]["arguments"])

    assert arguments(OWN) == '{"a":'
    assert json.loads(arguments(COMPATIBLE)) == {"invalid_json": '{"a":'}


async def test_usage_is_inclusive_and_partitioned(model: Model, server: FakeProvider) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }

    answered = await answer(model, server, chunk({"content": "x"}), chunk(finish_reason="stop"), chunk(usage=usage))

    assert answered.usage == content_pb2.Usage(
        input_tokens=100, output_tokens=50, cache_read_input_tokens=80, reasoning_output_tokens=30
    )


async def test_parts_of_usage_never_exceed_the_whole(model: Model, server: FakeProvider) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }

    answered = await answer(model, server, chunk(finish_reason="stop"), chunk(usage=usage))

    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.output_tokens) == (80, 30)


async def test_last_usage_counts_and_none_is_unknown(model: Model, server: FakeProvider) -> None:
    counted = await answer(
        model,
        server,
        chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        chunk(finish_reason="stop", usage={"prompt_tokens": 5, "completion_tokens": 9}),
    )
    unknown = await answer(model, server, chunk({"content": "x"}), chunk(finish_reason="stop"))

    assert counted.usage == content_pb2.Usage(input_tokens=5, output_tokens=9)
    assert unknown.usage is None


async def test_arguments_are_put_together_and_passed_on_as_they_are(model: Model, server: FakeProvider) -> None:
    answered = await answer(
        model,
        server,
        *pieces(
            {"index": 0, "id": "call_a", **function("noop", "")},
            {"index": 1, "id": "call_b", **function("noop", '{"n"')},
            {"index": 0, **function(None, '{"broken": ')},
            {"index": 1, **function(None, ": 2 }")},
        ),
    )

    assert calls_of(answered) == [("call_a", "noop", '{"broken": '), ("call_b", "noop", '{"n": 2 }')]
    assert answered.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "sent",
    [
        # Every call has index 0.
        [{"index": 0, "id": "x", **function("a", "{}")}, {"index": 0, "id": "y", **function("b", "{}")}],
        # No index.
        [{"id": "x", **function("a", "{")}, function(None, "}"), {"id": "y", **function("b", "{}")}],
        # Neither index nor id.
        [function("a", "{}"), function("b", "{}")],
        # The id comes late, and the arguments as an object.
        [
            {"index": 0, **function("a")},
            {"index": 0, "id": "x", **function(None, "{}")},
            {"index": 1, **function("b", {})},
        ],
    ],
)
async def test_incomplete_pieces_still_make_two_calls(
    model: Model, server: FakeProvider, sent: list[dict[str, Any]]
) -> None:
    answered = await answer(model, server, *pieces(*sent))

    calls = calls_of(answered)
    assert [(name, arguments) for _, name, arguments in calls] == [("a", "{}"), ("b", "{}")]
    ids = [call_id for call_id, _, _ in calls]
    assert all(ids)
    assert len(set(ids)) == 2


async def test_ids_are_made_unique_in_the_whole_conversation(model: Model, server: FakeProvider) -> None:
    # Some servers begin at call_0 with every answer.
    history = [user("go"), assistant("", call("call_0", "a")), result("call_0", "a", "done")]

    answered = await answer(
        model,
        server,
        *pieces(
            {"index": 0, "id": "call_0", **function("a", "{}")}, {"index": 1, "id": "call_0", **function("a", "{}")}
        ),
        sent=request(*history),
    )

    ids = [call_id for call_id, _, _ in calls_of(answered)]
    assert len({"call_0", *ids}) == 3


async def test_reasoning_is_kept_apart_from_the_text(model: Model, server: FakeProvider) -> None:
    answered = await answer(
        model,
        server,
        chunk({"reasoning_content": "First "}),
        chunk({"reasoning": "this."}),
        chunk({"content": "Then that."}),
        chunk(finish_reason="stop"),
    )

    assert text_of(answered) == "Then that."
    assert answered.message.parts[0].reasoning == content_pb2.Reasoning(text="First this.")


@pytest.mark.parametrize("finish_reason", ["content_filter", "length"])
async def test_answer_that_was_cut_is_an_answer_with_its_reason(
    model: Model, server: FakeProvider, finish_reason: str
) -> None:
    answered = await answer(model, server, chunk({"content": "I"}), chunk(finish_reason=finish_reason))

    assert (text_of(answered), answered.finish_reason) == ("I", finish_reason)


async def test_refusal_and_content_in_parts_are_text(model: Model, server: FakeProvider) -> None:
    answered = await answer(
        model,
        server,
        chunk({"content": [{"type": "text", "text": "No, "}]}),
        chunk({"refusal": "I cannot."}),
        chunk(finish_reason="stop"),
    )

    assert text_of(answered) == "No, I cannot."


async def test_empty_answer_is_a_message_without_parts(model: Model, server: FakeProvider) -> None:
    answered = await answer(model, server, data({"choices": [{"delta": {}, "finish_reason": "stop"}]}))

    assert answered.message == content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
