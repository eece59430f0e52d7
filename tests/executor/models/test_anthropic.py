"""The Messages API: what is sent for a conversation, and what is made of content blocks and counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models import Model, ModelAnswer, ModelRegistry, ModelRequest
from services.executor.models.anthropic import AnthropicModel
from services.shared.clock import SystemClock
from tests.executor.models.calls import (
    CANARY,
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
from tests.fakes.provider import FakeProvider, anthropic_events, anthropic_text, event, event_stream, text_block


@pytest.fixture
def model(registry: ModelRegistry) -> Model:
    return registry.get("anthropic")


@pytest.fixture
async def server() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as server:
        yield server


def body(request: ModelRequest) -> dict[str, Any]:
    return AnthropicModel(SystemClock()).body(request, "https://api.anthropic.com")


async def answer(model: Model, server: FakeProvider, *blocks: Any, **fields: Any) -> ModelAnswer:
    server.will_reply(event_stream(*anthropic_events(blocks, **fields)))
    return await model.answer(request(), credential(server.url), Heard())


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def tool_use(id: str, name: str, *arguments: str, **input: Any) -> Any:
    start = {"type": "tool_use", "id": id, "name": name, "input": input}
    return start, [{"type": "input_json_delta", "partial_json": piece} for piece in arguments]


async def test_request_on_the_wire_is_a_streamed_message(model: Model, server: FakeProvider) -> None:
    server.will_reply(anthropic_text("hi"))

    await model.answer(request(user("hello"), instructions="Be kind."), credential(server.url), Heard())

    [received] = server.requests
    assert (received.method, received.path) == ("POST", "/v1/messages")
    assert received.headers["anthropic-version"]
    assert received.headers["x-api-key"] == CANARY
    assert "traceparent" not in received.headers
    assert received.body == {
        "model": "some-model",
        "max_tokens": 4096,
        "system": "Be kind.",
        "messages": [{"role": "user", "content": [text("hello")]}],
        "stream": True,
    }


def test_results_and_notes_of_one_turn_are_one_user_message() -> None:
    calls = [call("call_a", "get_weather", '{"city":"Rome"}'), call("call_b", "noop", "")]
    sent = request(
        user("weather?"),
        assistant("I look.", *calls),
        result("call_b", "noop", "broken", is_error=True),
        note("Answer shortly."),
        result("call_a", "get_weather", "sun"),
        user("and now?"),
    )

    assert body(sent)["messages"] == [
        {"role": "user", "content": [text("weather?")]},
        {
            "role": "assistant",
            "content": [
                text("I look."),
                {"type": "tool_use", "id": "call_a", "name": "get_weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "call_b", "name": "noop", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_a", "content": "sun"},
                {"type": "tool_result", "tool_use_id": "call_b", "content": "broken", "is_error": True},
                text("[Note of the runtime] Answer shortly."),
                text("and now?"),
            ],
        },
    ]


def test_what_the_api_refuses_as_empty_is_left_out() -> None:
    sent = request(user("hi"), assistant(""), user(" \n"), assistant("yes", call("a", "noop")), result("a", "noop", ""))

    assert body(sent)["messages"] == [
        {"role": "user", "content": [text("hi")]},
        {"role": "assistant", "content": [text("yes"), {"type": "tool_use", "id": "a", "name": "noop", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
    ]


def test_conversation_that_the_model_began_gets_a_beginning() -> None:
    assert [message["role"] for message in body(request(assistant("Welcome!"), user("hi")))["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


def test_only_parameters_that_are_set_are_sent() -> None:
    parameters = agent_pb2.ModelParameters(
        temperature=0.0, top_p=0.5, max_output_tokens=9, stop_sequences=["END"], seed=7, reasoning_effort="high"
    )

    sent = body(request(spec=agent_pb2.ModelSpec(name="m", parameters=parameters)))

    expected = {
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 9,
        "stop_sequences": ["END"],
        "output_config": {"effort": "high"},
        "thinking": {"type": "adaptive"},
    }
    assert {key: sent[key] for key in expected} == expected
    # There is no such parameter, and an unknown one is refused.
    assert "seed" not in sent
    assert set(body(request())) == {"model", "max_tokens", "messages", "stream"}


def test_tools_have_object_schemas() -> None:
    sent = body(request(tools=[WEATHER, tool("noop")]))

    assert sent["tool_choice"] == {"type": "auto"}
    assert [definition["name"] for definition in sent["tools"]] == ["get_weather", "noop"]
    assert sent["tools"][0]["input_schema"]["properties"]["city"] == {"type": "string"}
    assert sent["tools"][1] == {"name": "noop", "input_schema": {"type": "object", "properties": {}}}


async def test_thinking_is_sent_back_with_its_signature(model: Model, server: FakeProvider) -> None:
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": "Let me "}, {"type": "thinking_delta", "thinking": "see."}]
    signature = {"type": "signature_delta", "signature": "c2lnbmVk"}
    redacted = {"type": "redacted_thinking", "data": "ZW5jcnlwdGVk"}

    answered = await answer(
        model, server, (thinking, [*deltas, signature]), (redacted, []), tool_use("toolu_1", "noop", "{}")
    )
    sent = body(request(user("hi"), answered.message, result("toolu_1", "noop", "ok")))

    assert answered.message.parts[0].reasoning.text == "Let me see."
    assert sent["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2lnbmVk"},
        redacted,
        {"type": "tool_use", "id": "toolu_1", "name": "noop", "input": {}},
    ]


def test_thoughts_of_another_provider_are_not_sent() -> None:
    message = assistant("Yes.")
    for opaque in ("", "{", '{"type":"other"}', "[]"):
        message.parts.add(reasoning=content_pb2.Reasoning(text="hidden", opaque_json=opaque))

    assert body(request(user("hi"), message))["messages"][1]["content"] == [text("Yes.")]


async def test_blocks_become_parts_in_their_order(model: Model, server: FakeProvider) -> None:
    answered = await answer(
        model,
        server,
        text_block("I ", "look."),
        tool_use("toolu_1", "get_weather", "", '{"city":', ' "Rome"}'),
        tool_use("toolu_2", "noop"),
        tool_use("toolu_3", "noop", n=1),
        stop_reason="tool_use",
    )

    assert text_of(answered) == "I look."
    assert calls_of(answered) == [
        ("toolu_1", "get_weather", '{"city": "Rome"}'),
        ("toolu_2", "noop", "{}"),
        ("toolu_3", "noop", '{"n": 1}'),
    ]
    assert answered.finish_reason == "tool_use"
    assert (answered.response_id, answered.response_model) == ("msg_1", "claude-test-20260101")


async def test_invalid_arguments_are_passed_on_and_can_be_sent_back(model: Model, server: FakeProvider) -> None:
    answered = await answer(model, server, tool_use("toolu_1", "noop", '{"a": '), stop_reason="max_tokens")

    assert calls_of(answered) == [("toolu_1", "noop", '{"a": ')]
    sent = body(request(user("hi"), answered.message, result("toolu_1", "noop", "invalid", is_error=True)))
    assert sent["messages"][1]["content"][0]["input"] == {"invalid_json": '{"a": '}


async def test_usage_contains_what_was_cached(model: Model, server: FakeProvider) -> None:
    start = {
        "input_tokens": 10,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 30},
        "output_tokens": 1,
        "service_tier": "standard",
    }
    end = {"output_tokens": 70, "cache_read_input_tokens": None, "output_tokens_details": {"thinking_tokens": 40}}

    answered = await answer(model, server, text_block("x"), start_usage=start, end_usage=end)

    assert answered.usage == content_pb2.Usage(
        input_tokens=240,
        output_tokens=70,
        cache_read_input_tokens=200,
        cache_write_input_tokens=30,
        reasoning_output_tokens=40,
    )


async def test_counts_that_come_only_at_the_end_are_counted(model: Model, server: FakeProvider) -> None:
    answered = await answer(
        model,
        server,
        text_block("x"),
        start_usage={"input_tokens": 0, "output_tokens": 0},
        end_usage={"input_tokens": 25, "output_tokens": 7},
    )

    assert answered.usage == content_pb2.Usage(input_tokens=25, output_tokens=7)


@pytest.mark.parametrize("stop_reason", ["refusal", "max_tokens", "model_context_window_exceeded"])
async def test_answer_that_was_cut_is_an_answer_with_its_reason(
    model: Model, server: FakeProvider, stop_reason: str
) -> None:
    answered = await answer(model, server, text_block("I"), stop_reason=stop_reason)

    assert (text_of(answered), answered.finish_reason) == ("I", stop_reason)


async def test_events_and_blocks_that_are_not_known_yet_are_passed_over(model: Model, server: FakeProvider) -> None:
    events = anthropic_events([({"type": "hologram"}, [{"type": "hologram_delta", "x": 1}]), text_block("x")])
    server.will_reply(event_stream(events[0], event("weather_report", sky="blue"), *events[1:]))

    answered = await model.answer(request(), credential(server.url), Heard())

    assert text_of(answered) == "x"
    assert len(answered.message.parts) == 1


async def test_empty_answer_is_a_message_without_parts(model: Model, server: FakeProvider) -> None:
    answered = await answer(model, server)

    assert answered.message == content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)


def test_body_is_json() -> None:
    spec = agent_pb2.ModelSpec(name="m", parameters={"stop_sequences": ["a"], "temperature": 1})

    assert json.loads(json.dumps(body(request(spec=spec, tools=[WEATHER]))))["stop_sequences"] == ["a"]
