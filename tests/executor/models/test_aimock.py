"""Both adapters against a mock of the providers that nobody here wrote."""

from __future__ import annotations

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models import Credential, Model, ModelRegistry
from tests.executor.models.aimock import KEY
from tests.executor.models.calls import (
    WEATHER,
    Heard,
    assistant,
    calls_of,
    credential,
    fail,
    request,
    result,
    text_of,
    user,
)

# The first test installs the server.
pytestmark = [pytest.mark.timeout(300), pytest.mark.parametrize("provider", ["openai", "anthropic"])]

CITIES = [("call_sf", '{"city":"San Francisco","days":2}'), ("call_ny", '{"city":"New York","days":1}')]


@pytest.fixture
def model(provider: str, registry: ModelRegistry) -> Model:
    return registry.get(provider)


@pytest.fixture
def key(provider: str, aimock_url: str) -> Credential:
    return credential(f"{aimock_url}/v1" if provider == "openai" else aimock_url, KEY)


async def test_text_arrives_in_pieces_with_usage_and_names(model: Model, key: Credential, provider: str) -> None:
    heard = Heard()

    answer = await model.answer(request(user("say hello"), instructions="You are kind."), key, heard)

    assert text_of(answer) == heard.text == "Hello, and a very good morning to you too!"
    assert len(heard.pieces) > 1
    assert answer.usage == content_pb2.Usage(input_tokens=21, output_tokens=9)
    assert answer.finish_reason == {"openai": "stop", "anthropic": "end_turn"}[provider]
    assert (answer.response_id, answer.response_model) == ("answer-1", "served-model")


async def test_parallel_calls_arrive_whole_beside_the_text(model: Model, key: Credential, provider: str) -> None:
    heard = Heard()

    answer = await model.answer(request(user("the weather?"), tools=[WEATHER]), key, heard)

    assert calls_of(answer) == [(call_id, "get_weather", arguments) for call_id, arguments in CITIES]
    assert heard.text == text_of(answer) == "I look it up."
    assert answer.finish_reason == {"openai": "tool_calls", "anthropic": "tool_use"}[provider]


async def test_results_reach_the_provider_with_the_calls_that_they_answer(model: Model, key: Credential) -> None:
    question = user("the weather?")
    first = await model.answer(request(question, tools=[WEATHER]), key, Heard())
    results = [result("call_sf", "get_weather", "sun"), result("call_ny", "get_weather", "rain")]

    second = await model.answer(request(question, first.message, *results, tools=[WEATHER]), key, Heard())

    assert text_of(second) == "It rains in New York."
    assert second.finish_reason in ("stop", "end_turn")


async def test_call_without_arguments_has_an_empty_object(model: Model, key: Credential) -> None:
    answer = await model.answer(request(user("one call"), tools=[WEATHER]), key, Heard())

    [(call_id, tool, arguments)] = calls_of(answer)
    assert call_id
    assert (tool, arguments) == ("get_weather", "{}")


async def test_thinking_is_kept_apart_from_the_text_and_the_tool_loop_goes_on(
    model: Model, key: Credential, provider: str
) -> None:
    name = "claude-opus-4-6" if provider == "anthropic" else "o4-mini"
    spec = agent_pb2.ModelSpec(name=name, parameters={"reasoning_effort": "low"})
    question = user("think hard")
    heard = Heard()

    first = await model.answer(request(question, spec=spec, tools=[WEATHER]), key, heard)
    reasoning = next(part.reasoning for part in first.message.parts if part.HasField("reasoning"))
    answered = result("call_think", "get_weather", "mild")
    second = await model.answer(request(question, first.message, answered, spec=spec, tools=[WEATHER]), key, Heard())

    assert reasoning.text == "It is a question of scale."
    assert heard.text == ""
    assert text_of(second) == "Thought and done."


async def test_answer_cut_by_its_length_is_an_answer(model: Model, key: Credential, provider: str) -> None:
    answer = await model.answer(request(user("too long for you")), key, Heard())

    assert answer.finish_reason == {"openai": "length", "anthropic": "max_tokens"}[provider]


async def test_rate_limit_carries_the_wait_that_was_asked_for(model: Model, key: Credential) -> None:
    failure = await fail(model, request(user("be rate limited")), key)

    assert failure.reason == "PROVIDER_RATE_LIMITED"
    assert failure.failure_class == content_pb2.FAILURE_CLASS_RATE_LIMITED
    assert failure.retry_after_millis > 0


@pytest.mark.parametrize(
    ("prompt", "reason", "failure_class"),
    [
        ("fall over", "PROVIDER_ERROR", content_pb2.FAILURE_CLASS_RETRYABLE),
        ("be overloaded", "PROVIDER_OVERLOADED", content_pb2.FAILURE_CLASS_RETRYABLE),
        ("refuse", "PROVIDER_REFUSED", content_pb2.FAILURE_CLASS_PERMANENT),
        ("hang up at once", "PROVIDER_UNREACHABLE", content_pb2.FAILURE_CLASS_RETRYABLE),
        ("talk rubbish", "PROVIDER_BAD_RESPONSE", content_pb2.FAILURE_CLASS_RETRYABLE),
        ("break off", "PROVIDER_STREAM_BROKEN", content_pb2.FAILURE_CLASS_RETRYABLE),
    ],
)
async def test_fault_is_classified(
    model: Model, key: Credential, prompt: str, reason: str, failure_class: content_pb2.FailureClass
) -> None:
    failure = await fail(model, request(user(prompt)), key)

    assert (failure.reason, failure.failure_class) == (reason, failure_class)


async def test_wrong_key_is_a_failure_of_the_credential(model: Model, key: Credential) -> None:
    failure = await fail(model, request(user("say hello")), credential(key.base_url))

    assert (failure.reason, failure.failure_class) == ("PROVIDER_AUTH", content_pb2.FAILURE_CLASS_AUTH)


async def test_history_of_earlier_runs_with_repeated_ids_is_accepted(model: Model, key: Credential) -> None:
    # Two runs of a scripted agent, say, whose session goes on with another model.
    history = [user("a"), assistant("", *_calls()), *_results(), user("b"), assistant("", *_calls()), *_results()]

    answer = await model.answer(
        request(*history, assistant("done"), user("say hello"), instructions="You are kind."), key, Heard()
    )

    assert text_of(answer).startswith("Hello")


def _calls() -> list[content_pb2.ToolCall]:
    return [content_pb2.ToolCall(call_id="call_0_0", tool="get_weather", arguments_json="{}")]


def _results() -> list[content_pb2.Message]:
    return [result("call_0_0", "get_weather", "sun")]
