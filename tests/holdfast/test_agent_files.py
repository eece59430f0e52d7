"""Agents as YAML: what is accepted, and that every refusal names file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson

from holdfast.agent_files import InvalidAgentFile, explain, load_agents, parse_agents
from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import FieldViolation, InvalidArgument

GOOD = """\
name: support
description: Helps.
model:
  provider: openai
  name: gpt-5-mini
  timeout: 1.5s
  parameters: {temperature: 0, max_output_tokens: 100, stopSequences: [END]}
  retry: {maxAttempts: 3, initial_interval: 250ms, multiplier: 1.5}
instructions: |
  Two
  lines.
tools:
  - name: refund
    description: Refunds.
    effect: at_most_once
    inDoubt: TELL_MODEL
    timeout: 2m
    worker:
    input_schema:
      type: object
      properties:
        day: {type: string, default: 2024-01-02}
        on: {type: boolean}
  - name: ping
    effect: EFFECT_CLASS_READ_ONLY
    http:
      method: GET
      url: https://x.example/{id}
      headers: {x-one: "1"}
      query: [q]
limits:
  max_steps: 5
"""


def test_definition_is_read_in_snake_case_and_camel_case() -> None:
    [agent] = parse_agents(GOOD, file="a.yaml")
    spec = agent.spec
    assert spec.model.timeout.ToMilliseconds() == 1500
    assert spec.model.parameters.HasField("temperature")
    assert list(spec.model.parameters.stop_sequences) == ["END"]
    assert spec.model.retry.max_attempts == 3
    assert spec.model.retry.initial_interval.ToMilliseconds() == 250
    assert spec.instructions == "Two\nlines.\n"
    refund, ping = spec.tools
    assert refund.effect == agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
    assert refund.in_doubt == agent_pb2.IN_DOUBT_POLICY_TELL_MODEL
    assert refund.timeout.seconds == 120
    assert refund.WhichOneof("kind") == "worker"
    # What YAML takes for a date or a boolean key is what was written.
    assert refund.input_schema["properties"]["day"]["default"] == "2024-01-02"  # type: ignore[index]
    assert "on" in refund.input_schema["properties"]  # type: ignore[operator]
    assert ping.effect == agent_pb2.EFFECT_CLASS_READ_ONLY
    assert dict(ping.http.headers) == {"x-one": "1"}


def test_the_json_mapping_itself_is_accepted() -> None:
    [agent] = parse_agents(GOOD, file="a.yaml")
    [again] = parse_agents(MessageToJson(agent.spec), file="a.json")
    assert again.spec == agent.spec


def test_file_may_hold_several_documents(tmp_path: Path) -> None:
    path = tmp_path / "agents.yaml"
    path.write_text("---\nname: a\nmodel: {provider: openai}\n---\nname: b\nmodel: {provider: openai}\n---\n")
    assert [agent.name for agent in load_agents(path)] == ["a", "b"]


def test_anchors_and_merges_are_resolved() -> None:
    [agent] = parse_agents(
        "name: a\nmodel: {provider: openai, name: x}\ntools:\n"
        "  - &one {name: one, effect: read_only, worker: {}}\n"
        "  - {<<: *one, name: two}\n",
        file="a.yaml",
    )
    assert [(tool.name, tool.effect) for tool in agent.spec.tools] == [("one", 1), ("two", 1)]


def refusal(text: str) -> str:
    """Returns what is said about a definition."""
    with pytest.raises(InvalidAgentFile) as caught:
        parse_agents(text, file="a.yaml")
    return caught.value.message


HEAD = "name: a\nmodel: {provider: openai, name: x}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodle: {}\n", "a.yaml:2: modle: unknown key; did you mean model?"),
        (f"{HEAD}tools:\n  - name: t\n    effekt: x\n", "a.yaml:5: tools[0].effekt: unknown key; did you mean effect?"),
        (
            f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    effect: readonly\n",
            "a.yaml:6: tools[0].effect: expected one of read_only, idempotent, at_most_once, found 'readonly'; "
            "did you mean read_only?",
        ),
        (
            f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    timeout: 30\n",
            "a.yaml:6: tools[0].timeout: expected a duration such as 30s, 1.5s, 250ms or 5m, found the number 30",
        ),
        (
            f"{HEAD}limits:\n  max_steps: many\n",
            "a.yaml:4: limits.max_steps: expected a whole number, found the text 'many'",
        ),
        (
            f"{HEAD}limits: {{max_steps: 3000000000}}\n",
            "a.yaml:3: limits.max_steps: expected a whole number from -2147483648 to 2147483647, found 3000000000",
        ),
        (
            "name: yes\nmodel: {provider: openai}\n",
            'a.yaml:1: name: expected a text, found the boolean yes; write it in quotes: "yes"',
        ),
        (f"{HEAD}tools: {{}}\n", "a.yaml:3: tools: expected a list, found a mapping"),
        (f"{HEAD}limits: 5\n", "a.yaml:3: limits: expected a mapping of fields, found the number 5"),
        (
            f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    http: {{url: x}}\n",
            "a.yaml:6: tools[0].http: only one of `worker` and `http` may be given",
        ),
        (
            f"{HEAD}tools:\n  - name: t\n",
            "a.yaml:4: tools[0]: a tool needs a place to run: `worker: {}`, `http:`, `builtin:` or `agent:`",
        ),
        (
            f"{HEAD}tools:\n  - {{name: t, worker: {{}}}}\n  - {{name: t, worker: {{}}}}\n",
            "a.yaml:5: tools[1].name: the name 't' is taken by tools[0]",
        ),
        ("name: a\nname: b\nmodel: {provider: openai}\n", "a.yaml:2: name: this key is given twice"),
        ("name: a\n", "a.yaml:1: model: an agent needs a model"),
        ("name: A\nmodel: {provider: openai}\n", "a.yaml:1: name: 'A' is no name of an agent: it matches"),
        (f"{HEAD}model: [\n", "a.yaml:4: not valid YAML (column 1):"),
        ("- a\n", "a.yaml:1: expected a mapping of fields, found a list"),
        ("", "a.yaml: there is no agent in this file"),
        (
            f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    input_schema: {{minimum: .nan}}\n",
            "a.yaml:6: tools[0].input_schema.minimum: .nan is no number of JSON",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_mistake_is_refused_with_file_line_and_field(text: str, message: str) -> None:
    assert refusal(text).splitlines()[0].startswith(message)


def test_all_mistakes_are_named_at_once() -> None:
    lines = refusal("nam: a\nmodel: {provider: 1}\ntools: x\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["a.yaml:1", "a.yaml:2", "a.yaml:3"]


def test_second_document_is_located_too() -> None:
    assert refusal(f"{HEAD}---\nname: b\nmodl: 1\n").startswith("a.yaml:5: modl: unknown key")


def test_yaml_bomb_is_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    bomb = "\n        ".join(levels)
    text = f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    input_schema:\n        {bomb}\n"
    assert "the definition is too large" in refusal(text)


def test_definition_that_contains_itself_is_refused() -> None:
    text = f"{HEAD}tools:\n  - name: t\n    worker: {{}}\n    input_schema: &s {{a: *s}}\n"
    assert "nested too deeply" in refusal(text)


def test_what_a_service_says_of_a_field_gets_file_and_line() -> None:
    [agent] = parse_agents(GOOD, file="a.yaml")
    error = InvalidArgument(
        "bad",
        field_violations=[
            FieldViolation("spec.tools[0].input_schema.properties", "not a schema"),
            FieldViolation("spec.model.name", "unknown model"),
            FieldViolation("spec.tools[9].name", "of no line of its own"),
        ],
    )
    assert explain(error, agent).message.splitlines() == [
        "a.yaml:21: tools[0].input_schema.properties: not a schema",
        "a.yaml:5: model.name: unknown model",
        "a.yaml:12: tools[9].name: of no line of its own",
    ]


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidAgentFile, match="not UTF-8"):
        load_agents(path)
