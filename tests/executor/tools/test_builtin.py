"""The built-in tools: what the model sees, and what their arguments mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from holdfast.api.common.v1 import agent_pb2
from services.executor.tools.builtin import BUILTINS, due_time_of, effective_tool, question_of
from services.executor.tools.output import settle_value
from services.executor.tools.schema import ArgumentsRefused, canonical_json, check_arguments, schema_problems

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def builtin(name: str) -> agent_pb2.ToolSpec:
    return effective_tool(agent_pb2.ToolSpec(name="it", builtin=agent_pb2.BuiltinTool(name=name)))


@pytest.mark.parametrize("name", BUILTINS)
def test_built_in_has_a_description_a_usable_schema_and_changes_nothing(name: str) -> None:
    tool = builtin(name)
    assert tool.description
    assert schema_problems(dict(BUILTINS[name].input_schema or {}), of_arguments=True) == []
    assert tool.effect == agent_pb2.EFFECT_CLASS_READ_ONLY


def test_other_tools_stay_as_they_are() -> None:
    tool = agent_pb2.ToolSpec(name="it", worker=agent_pb2.WorkerTool())
    assert effective_tool(tool) is tool


def test_own_description_of_a_built_in_stands() -> None:
    tool = agent_pb2.ToolSpec(name="it", description="mine", builtin=agent_pb2.BuiltinTool(name="ask_user"))
    assert effective_tool(tool).description == "mine"
    assert not tool.HasField("input_schema"), "the definition itself is not changed"


def test_question_without_a_form_is_answered_by_a_text() -> None:
    assert question_of({"question": "Why?"}) == ("Why?", None)


def test_options_become_the_schema_of_the_answer() -> None:
    assert question_of({"question": "Which?", "options": ["a", "b"]}) == (
        "Which?",
        {"type": "string", "enum": ["a", "b"]},
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"question": "?", "schema": {"type": "strng"}}, "$.schema.type"),
        ({"question": "?", "schema": {"$ref": "http://x/y"}}, "other documents"),
        ({"question": "?", "schema": {"const": "x" * 20_000}}, "16,384 bytes"),
        ({"question": "?", "schema": {"type": "string"}, "options": ["a"]}, "not both"),
    ],
)
def test_question_with_an_unusable_form_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentsRefused, match="Nobody was asked") as caught:
        question_of(check_arguments(builtin("ask_user"), canonical_json(arguments)))
    assert told in caught.value.failure.message


@pytest.mark.parametrize("arguments", ["{}", '{"question": ""}', '{"question": 1}', '{"question": "?", "x": 1}'])
def test_question_that_is_none_is_refused(arguments: str) -> None:
    with pytest.raises(ArgumentsRefused):
        check_arguments(builtin("ask_user"), arguments)


@pytest.mark.parametrize(
    ("arguments", "due"),
    [
        ({"seconds": 90}, NOW + timedelta(seconds=90)),
        ({"seconds": 0}, NOW),
        ({"time": "2026-03-01T13:00:00Z"}, NOW + timedelta(hours=1)),
        ({"time": "2026-03-01T13:00:00+02:00"}, NOW - timedelta(hours=1)),
        ({"time": "2027-03-01T11:59:59.5Z"}, datetime(2027, 3, 1, 11, 59, 59, 500_000, tzinfo=UTC)),
    ],
)
def test_due_time_is_what_was_asked_for(arguments: dict[str, Any], due: datetime) -> None:
    assert due_time_of(check_arguments(builtin("sleep_until"), canonical_json(arguments)), NOW) == due


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"seconds": 1, "time": "2026-03-01T13:00:00Z"},
        {"seconds": -1},
        {"seconds": 366 * 24 * 3600},
        {"time": "2027-03-01T12:00:01Z"},
        {"time": "2026-03-01T13:00:00"},
        {"time": "tomorrow"},
        {"time": "9999-12-31T23:59:59-23:59"},
        {"time": 5},
    ],
)
def test_due_time_that_is_none_or_too_far_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsRefused):
        due_time_of(check_arguments(builtin("sleep_until"), canonical_json(arguments)), NOW)


def test_noop_returns_its_arguments() -> None:
    settled = settle_value(builtin("noop"), "call_1", {"b": 1.0, "a": None})
    assert settled.message.message.parts[0].tool_result.content == '{"a":null,"b":1}'
