"""What a definition has to be, field by field, and the id of its revision."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import InvalidArgument, Reason
from services.executor.agents import MAX_SPEC_BYTES, canonical_form, revision_id, validate_agent

Changes = dict[str, Any]

SCRIPT = {"turns": [{"text": "hello"}]}


def definition(**changes: Any) -> agent_pb2.AgentSpec:
    fields: Changes = {"name": "support", "model": {"provider": "scripted", "script": SCRIPT}} | changes
    return json_format.ParseDict(fields, agent_pb2.AgentSpec())


def tool(**fields: Any) -> Changes:
    return {"tools": [{"name": "t", "worker": {}} | fields]}


def http(url: str = "https://example.com/{id}", **fields: Any) -> Changes:
    return {"tools": [{"name": "t", "http": {"url": url} | fields}]}


def openai(**model: Any) -> Changes:
    return {"model": {"provider": "openai", "name": "gpt-5-mini"} | model}


def scripted(**turn: Any) -> Changes:
    return {"model": {"provider": "scripted", "script": {"turns": [turn]}}, "tools": [{"name": "t", "worker": {}}]}


def violations(spec: agent_pb2.AgentSpec) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        validate_agent(spec)
    return {violation.field: violation.description for violation in caught.value.field_violations}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"description": "d" * 1_000, "instructions": "Be kind.", "limits": {"maxSteps": 5}},
        openai(connection="my-openai", timeout="30s", parameters={"temperature": 0, "topP": 1, "maxOutputTokens": 1}),
        openai(retry={"maxAttempts": 1, "initialInterval": "0s", "multiplier": 1, "maxInterval": "1s"}),
        openai(parameters={"maxOutputTokens": 9}) | {"limits": {"budget": {"maxCostUsdNanos": 5, "maxTotalTokens": 1}}},
        {"limits": {"budget": {"maxModelCalls": 3, "maxToolCalls": 9, "maxInputTokens": 7}}},
        {"model": {"provider": "anthropic", "name": "m"}, "limits": {"budget": {"maxOutputTokens": 7}}},
        tool(effect="EFFECT_CLASS_READ_ONLY", inDoubt="IN_DOUBT_POLICY_FAIL_RUN", timeout="1s", maxOutputBytes=1),
        tool(inputSchema={"type": "object"}, outputSchema={"type": "string"}),
        tool(inputSchema={}),
        tool(approval={"always": True}),
        tool(approval={"always": False}),
        tool(approval={"condition": "args.amount > 100", "expireAfter": "60s"}),
        {"tools": [{"name": "t", "builtin": {"name": "noop"}, "approval": {"always": True}}]},
        tool(worker=None, builtin={"name": "ask_user"}),
        {"tools": [{"name": "n", "builtin": {"name": "noop"}, "inputSchema": {"type": "object"}}]},
        http(method="GET", headers={"X-Shop": "a"}, query=["dry"]),
        {"tools": [{"name": "t", "http": {"url": "http://127.0.0.1:80/{id}"}, "inputSchema": {
            "type": "object", "properties": {"id": {"type": "string"}}}}]},
        scripted(text="{{input}} {{result}} {{result.t}}", delay="0s"),
        scripted(toolCalls=[{"tool": "t", "arguments": {"a": [1, None]}}]),
    ],
)  # fmt: skip
def test_valid_definition_is_accepted(changes: Changes) -> None:
    validate_agent(definition(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (tool(approval={}), "tools[0].approval"),
        (tool(approval={"expireAfter": "60s"}), "tools[0].approval"),
        (tool(approval={"condition": ""}), "tools[0].approval.condition"),
        (tool(approval={"condition": "args.amount >"}), "tools[0].approval.condition"),
        (tool(approval={"condition": "amount > 100"}), "tools[0].approval.condition"),
        (tool(approval={"condition": "args.amount + 1"}), "tools[0].approval.condition"),
        (tool(approval={"always": True, "expireAfter": "0s"}), "tools[0].approval.expire_after"),
        (
            {"tools": [{"name": "t", "builtin": {"name": "ask_user"}, "approval": {"always": True}}]},
            "tools[0].approval",
        ),
        (
            {"tools": [{"name": "t", "builtin": {"name": "sleep_until"}, "approval": {"always": True}}]},
            "tools[0].approval",
        ),
        ({"name": ""}, "name"),
        ({"name": "Support"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"description": "d" * 1_001}, "description"),
        ({"model": None}, "model"),
        ({"model": {}}, "model.provider"),
        ({"model": {"provider": "gpt"}}, "model.provider"),
        ({"model": {"provider": "openai"}}, "model.name"),
        ({"model": {"provider": "scripted"}}, "model.script.turns"),
        (openai(script=SCRIPT), "model.script"),
        (openai(connection="My OpenAI"), "model.connection"),
        (openai(timeout="0s"), "model.timeout"),
        (openai(timeout="-1s"), "model.timeout"),
        (openai(timeout="40000000s"), "model.timeout"),
        (openai(parameters={"temperature": 2.1}), "model.parameters.temperature"),
        (openai(parameters={"temperature": "NaN"}), "model.parameters.temperature"),
        (openai(parameters={"topP": 0}), "model.parameters.top_p"),
        (openai(parameters={"maxOutputTokens": 0}), "model.parameters.max_output_tokens"),
        (openai(parameters={"stopSequences": ["a", ""]}), "model.parameters.stop_sequences[1]"),
        (openai(retry={"maxAttempts": -1}), "model.retry.max_attempts"),
        (openai(retry={"multiplier": 0.5}), "model.retry.multiplier"),
        (openai(retry={"multiplier": "NaN"}), "model.retry.multiplier"),
        (openai(retry={"initialInterval": "5s", "maxInterval": "1s"}), "model.retry.max_interval"),
        (scripted(toolCalls=[{"tool": "x"}]), "model.script.turns[0].tool_calls[0].tool"),
        (scripted(text="{{result.x}}"), "model.script.turns[0].text"),
        (scripted(delay="-1s"), "model.script.turns[0].delay"),
        ({"limits": {"maxSteps": -1}}, "limits.max_steps"),
        ({"limits": {"maxConcurrentRuns": 100_001}}, "limits.max_concurrent_runs"),
        ({"limits": {"budget": {"maxToolCalls": -1}}}, "limits.budget.max_tool_calls"),
        ({"limits": {"onBudgetExceeded": "BUDGET_POLICY_DEGRADE"}}, "limits.cheaper_model"),
        ({"limits": {"cheaperModel": openai()["model"]}}, "limits.cheaper_model"),
        (
            {"limits": {"onBudgetExceeded": 4, "cheaperModel": {"provider": "openai"}}},
            "limits.cheaper_model.name",
        ),
        (
            {"limits": {"budget": {"maxOutputTokens": 9}, "onBudgetExceeded": 4, "cheaperModel": openai()["model"]},
             "model": {"provider": "anthropic", "name": "m"}},
            "limits.cheaper_model.parameters.max_output_tokens",
        ),
        ({"limits": {"budget": {"maxInputTokens": 10**18}}}, "limits.budget.max_input_tokens"),
        ({"limits": {"budget": {"maxTotalTokens": 10}}}, "model.parameters.max_output_tokens"),
        (openai() | {"limits": {"budget": {"maxCostUsdNanos": 10}}}, "model.parameters.max_output_tokens"),
        (openai(price={"inputUsdNanosPerMillionTokens": -1}), "model.price.input_usd_nanos_per_million_tokens"),
        (tool(name=""), "tools[0].name"),
        (tool(name="1st"), "tools[0].name"),
        (tool(name="a" * 65), "tools[0].name"),
        ({"tools": [{"name": "t", "worker": {}}, {"name": "t", "worker": {}}]}, "tools[1].name"),
        ({"tools": [{"name": f"t{n}", "worker": {}} for n in range(129)]}, "tools"),
        ({"tools": [{"name": "t"}]}, "tools[0]"),
        (tool(inputSchema={"type": "string"}), "tools[0].input_schema.type"),
        (tool(inputSchema={"type": "object", "properties": {"a": {"type": "in"}}}),
         "tools[0].input_schema.properties.a.type"),
        (tool(outputSchema={"$ref": "https://example.com"}), "tools[0].output_schema.$ref"),
        (tool(effect=9), "tools[0].effect"),
        (tool(inDoubt=9), "tools[0].in_doubt"),
        (tool(timeout="0s"), "tools[0].timeout"),
        (tool(startTimeout="0s"), "tools[0].start_timeout"),
        (tool(heartbeatTimeout="0s"), "tools[0].heartbeat_timeout"),
        (tool(retry={"maxAttempts": -1}), "tools[0].retry.max_attempts"),
        (tool(maxOutputBytes=-1), "tools[0].max_output_bytes"),
        (tool(maxOutputBytes=2_000_000), "tools[0].max_output_bytes"),
        (http(url=""), "tools[0].http.url"),
        (http(url="ftp://x/"), "tools[0].http.url"),
        (http(url="https://{host}/"), "tools[0].http.url"),
        (http(method="get"), "tools[0].http.method"),
        (http(query=["id"]), "tools[0].http.query[0]"),
        (http(query=["a", "a"]), "tools[0].http.query[1]"),
        (http(headers={"bad name": "x"}), "tools[0].http.headers[bad name]"),
        (http(headers={"X-A": "a\r\nb"}), "tools[0].http.headers[X-A]"),
        (http(headers={"Idempotency-Key": "x"}), "tools[0].http.headers[Idempotency-Key]"),
        (http(headers={"Authorization": "Bearer x"}), "tools[0].http.headers[Authorization]"),
        ({"tools": [{"name": "t", "http": {"url": "https://x.example/{id}"}, "inputSchema": {
            "type": "object", "properties": {"order": {}}}}]}, "tools[0].http.url"),
        ({"tools": [{"name": "t", "builtin": {}}]}, "tools[0].builtin.name"),
        ({"tools": [{"name": "t", "builtin": {"name": "fly"}}]}, "tools[0].builtin.name"),
        ({"tools": [{"name": "t", "builtin": {"name": "ask_user"}, "inputSchema": {"type": "object"}}]},
         "tools[0].input_schema"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(changes: Changes, field: str) -> None:
    assert field in violations(definition(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"provider": "gpt", "name": "x"}}, Reason.MODEL_UNKNOWN),
        (scripted(toolCalls=[{"tool": "x"}]), Reason.TOOL_UNKNOWN),
        ({"tools": [{"name": "t", "builtin": {"name": "fly"}}]}, Reason.TOOL_UNKNOWN),
        ({"name": ""}, Reason.INVALID_FIELD),
        ({"name": ""} | scripted(toolCalls=[{"tool": "x"}]), Reason.INVALID_FIELD),
    ],
)
def test_reason_says_what_is_unknown(changes: Changes, reason: Reason) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate_agent(definition(**changes))
    assert caught.value.reason == reason


def test_everything_wrong_is_named_at_once() -> None:
    found = violations(definition(name="", model={"provider": "gpt"}, tools=[{"name": "t"}], limits={"maxSteps": -1}))
    assert {"name", "model.provider", "model.name", "tools[0]", "limits.max_steps"} == set(found)


def test_what_is_wrong_is_said_with_what_is_known() -> None:
    found = violations(definition(**scripted(toolCalls=[{"tool": "x"}])))
    assert found["model.script.turns[0].tool_calls[0].tool"] == "the agent has no tool 'x'; it has t"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_is_none_is_refused_wherever_it_stands(number: float) -> None:
    spec = definition(**tool(inputSchema={"type": "object"}))
    spec.tools[0].input_schema.fields["minimum"].number_value = number
    assert "tools[0].input_schema.minimum" in violations(spec)


def test_value_without_a_kind_is_refused() -> None:
    spec = definition(**scripted(toolCalls=[{"tool": "t", "arguments": {"a": 1}}]))
    spec.model.script.turns[0].tool_calls[0].arguments.fields["b"].SetInParent()
    assert "model.script.turns[0].tool_calls[0].arguments.b" in violations(spec)


def test_definition_that_is_too_large_names_the_limit() -> None:
    with pytest.raises(InvalidArgument, match="524288") as caught:
        validate_agent(definition(instructions="x" * MAX_SPEC_BYTES))
    assert caught.value.reason == Reason.MESSAGE_TOO_LARGE


def test_equal_content_is_the_same_revision_in_whatever_order_it_was_written() -> None:
    properties = {f"p{n}": {"type": "integer", "minimum": n} for n in range(20)}
    shuffled = dict(random.Random(1).sample(sorted(properties.items()), 20))
    first = definition(**tool(inputSchema={"type": "object", "properties": properties}))
    second = definition(**tool(inputSchema={"properties": shuffled, "type": "object"}))
    assert revision_id(first) == revision_id(second)
    assert len(revision_id(first)) == 64


def test_any_difference_is_another_revision() -> None:
    ids = {
        revision_id(definition(**changes))
        for changes in (
            {},
            {"instructions": "x"},
            tool(),
            tool(name="u"),
            tool(effect="EFFECT_CLASS_READ_ONLY"),
            http(),
        )
    }
    assert len(ids) == 6


def test_id_of_a_known_definition_never_changes() -> None:
    spec = definition(**tool(inputSchema={"type": "object", "required": ["a"]}, timeout="1.5s"))
    assert canonical_form(spec) == (
        '{"model":{"provider":"scripted","script":{"turns":[{"text":"hello"}]}},"name":"support","tools":[{"input_schema":'
        '{"required":["a"],"type":"object"},"name":"t","timeout":"1.500s","worker":{}}]}'
    )
    assert revision_id(spec) == "bc3971036662dfd7ac4f255b085ba7b80ad7f07b2d2ac8508b044fc52675bccd"
