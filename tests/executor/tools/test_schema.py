"""What a model's arguments have to be, and what it is told when they are not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.tools.schema import (
    ArgumentsRefused,
    ResultRefused,
    canonical_json,
    check_arguments,
    check_result,
    parse_json,
    schema_problems,
    struct_to_dict,
)

REFUND = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^A"},
        "quantity": {"type": "integer", "minimum": 1},
        "items": {"type": "array", "items": {"type": "object", "required": ["sku"]}},
        "who": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "way": {"enum": ["card", "cash"]},
    },
    "required": ["order"],
    "additionalProperties": False,
}


def tool(schema: dict[str, Any] | None, **fields: Any) -> agent_pb2.ToolSpec:
    spec = agent_pb2.ToolSpec(name="refund", **fields)
    if schema is not None:
        spec.input_schema.update(schema)
    return spec


def refusal(schema: dict[str, Any] | None, arguments: str) -> str:
    with pytest.raises(ArgumentsRefused) as caught:
        check_arguments(tool(schema), arguments)
    failure = caught.value.failure
    assert (failure.reason, failure.failure_class) == (
        "INVALID_ARGUMENTS",
        content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS,
    )
    return failure.message


def test_fitting_arguments_are_returned_parsed() -> None:
    assert check_arguments(tool(REFUND), '{"order": "A1", "quantity": 2.0}') == {"order": "A1", "quantity": 2}


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_no_arguments_are_an_empty_object(text: str) -> None:
    assert check_arguments(tool(None), text) == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"quantity": 1}', "- $: the required property order is missing"),
        ('{"order": "A", "quantity": 0}', "- $.quantity: expected minimum 1, got integer 0"),
        ('{"order": "A", "quantity": "1"}', '- $.quantity: expected integer, got string "1"'),
        ('{"order": "A", "items": [{}]}', "- $.items[0]: the required property sku is missing"),
        ('{"order": "A", "x": 1}', "the property x is not allowed; allowed: items, order, quantity, way, who"),
        ('{"order": "A", "way": "gold"}', '- $.way: expected one of ["card", "cash"], got string "gold"'),
        ('{"order": "A", "who": 1}', "- $.who: fits none of the 2 alternatives"),
        ('{"order": "B"}', '- $.order: expected pattern "^A", got string "B"'),
    ],
)
def test_the_model_is_told_the_failing_path_and_what_was_expected(arguments: str, told: str) -> None:
    message = refusal(REFUND, arguments)
    assert told in message
    assert "Nothing was executed" in message
    assert "Expected at $" in message


def test_all_problems_are_told_at_once() -> None:
    message = refusal(REFUND, '{"quantity": 0, "way": 1}')
    assert "$.quantity" in message
    assert "$.way" in message
    assert "order is missing" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"order":', "line 1, column 10 (character 9)"),
        ("not json", "line 1, column 1"),
        ("[1]", "must be one JSON object, not array"),
        ('"text"', "must be one JSON object, not string"),
        ('{"order": "A", "order": "B"}', 'the key "order" stands twice'),
        ('{"order": NaN}', "NaN is not JSON"),
        ('{"order": 1e999}', "too large"),
        ('{"order": ' + "9" * 5000 + "}", "too many digits"),
        ('{"order": "\\ud800"}', "surrogate"),
        ("[" * 200_000, "nested too deeply"),
        ('{"order":' + "[" * 600 + "]" * 600 + "}", "nested deeper than 200 levels"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(arguments: str, told: str) -> None:
    assert told in refusal(None, arguments)


def test_message_to_the_model_stays_short() -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(500)}}
    arguments = canonical_json({f"p{n}": "x" * 10_000 for n in range(500)})
    assert len(refusal(schema, arguments)) <= 4_000


def test_schema_that_refers_to_itself_without_end_is_a_refusal_not_a_crash() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}
    assert "without end" in refusal(endless, '{"a": 1}')


def test_remote_reference_is_never_fetched() -> None:
    assert "leads nowhere" in refusal({"type": "object", "$ref": "http://127.0.0.1:9/schema"}, "{}")


def test_result_that_does_not_fit_is_refused() -> None:
    spec = agent_pb2.ToolSpec(name="refund")
    spec.output_schema.update({"type": "object", "required": ["id"]})
    check_result(spec, {"id": 1})
    with pytest.raises(ResultRefused) as caught:
        check_result(spec, {})
    assert caught.value.failure.reason == "INVALID_RESULT"
    assert "has been executed" in caught.value.failure.message or "was executed" in caught.value.failure.message


def test_numbers_of_a_struct_become_integers_where_they_are_whole() -> None:
    spec = tool({"type": "object", "properties": {"n": {"minimum": 1, "multipleOf": 0.5, "enum": [1, 2.5]}}})
    schema = struct_to_dict(spec.input_schema)
    assert schema["properties"]["n"] == {"minimum": 1, "multipleOf": 0.5, "enum": [1, 2.5]}
    assert isinstance(schema["properties"]["n"]["minimum"], int)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "string"}, ".type"),
        ({"properties": {}}, ".type"),
        ({"type": "object", "properties": {"a": {"type": "strng"}}}, ".properties.a.type"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, ".properties.a.pattern"),
        ({"type": "object", "patternProperties": {"(": {}}}, ".patternProperties"),
        ({"type": "object", "required": "a"}, ".required"),
        ({"type": "object", "minProperties": -1}, ".minProperties"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/s"}}}, ".properties.a.$ref"),
        ({"type": "object", "properties": {"a": {"$ref": "other.json#/a"}}}, ".properties.a.$ref"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, ".properties.a.$ref"),
        ({"type": "object", "properties": {"a": {"$ref": "#none"}}}, ".properties.a.$ref"),
        ({"type": "object", "allOf": [{"$dynamicRef": "x"}]}, ".allOf[0].$dynamicRef"),
        ({"type": "object", "properties": {"a": {"$id": "http://x/y"}}}, ".properties.a.$id"),
        ({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}, ".$schema"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, ""),
    ],
)
def test_unusable_schema_is_named_with_its_path(schema: dict[str, Any], path: str) -> None:
    assert path in [problem.path for problem in schema_problems(schema, of_arguments=True)]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        REFUND,
        {"type": "object", "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/a"},
        {"type": "object", "$defs": {"a/b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}},
        {"type": "object", "$defs": {"n": {"$anchor": "n", "type": "object"}}, "properties": {"x": {"$ref": "#n"}}},
        {"type": "object", "properties": {"child": {"$ref": "#"}}},
        # Names of properties, and data, are not keywords.
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "default": {"$ref": "http://x"}},
    ],
)
def test_usable_schema_has_no_problems(schema: dict[str, Any]) -> None:
    assert schema_problems(schema, of_arguments=True) == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_canonical_json_is_json_of_the_same_value_and_is_stable(value: Any) -> None:
    text = canonical_json(value)
    assert parse_json(text) == value
    assert canonical_json(parse_json(text)) == text


def test_canonical_json_does_not_depend_on_order_or_on_how_a_number_is_written() -> None:
    assert canonical_json({"b": 1.0, "a": "ü"}) == canonical_json({"a": "ü", "b": 1}) == '{"a":"ü","b":1}'
