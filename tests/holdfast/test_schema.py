"""JSON Schema from signatures and docstrings, and the way back from JSON to the annotated values."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import jsonschema
import pytest

from holdfast.schema import (
    Mismatch,
    Parameter,
    UnsupportedType,
    decode,
    decode_arguments,
    encode_json,
    parse_docstring,
    read_signature,
)


class Size(enum.Enum):
    """Sizes."""

    SMALL = "S"
    LARGE = "L"


class Level(enum.IntEnum):
    """Levels."""

    LOW = 1
    HIGH = 2


class Address(TypedDict):
    """Where somebody lives."""

    street: str
    unit: NotRequired[str]


@dataclass
class Item:
    """One position of an order.

    Attributes:
        sku: Which article.
    """

    sku: str
    count: int = 1
    tags: list[str] = field(default_factory=list)


@dataclass
class Node:
    """A tree."""

    name: str
    children: list[Node]


CustomerId = NewType("CustomerId", str)


class Context:
    """Stands for what is injected."""


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (dict, {"type": "object"}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (dict[str, Any], {"type": "object"}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045
        (int | str, {"type": ["integer", "string"]}),
        (list[int] | None, {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, "a", None], {"enum": [1, "a", None]}),
        (Size, {"type": "string", "enum": ["S", "L"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (Annotated[int, "How many."], {"type": "integer", "description": "How many."}),
        (Annotated[int, {"minimum": 1}], {"type": "integer", "minimum": 1}),
        (CustomerId, {"type": "string"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (datetime.date, {"type": "string", "format": "date"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (decimal.Decimal, {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}),
        (
            Address,
            {
                "type": "object",
                "properties": {"street": {"type": "string"}, "unit": {"type": "string"}},
                "required": ["street"],
                "additionalProperties": False,
                "description": "Where somebody lives.",
            },
        ),
        (
            Item,
            {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "description": "Which article."},
                    "count": {"type": "integer", "default": 1},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["sku"],
                "additionalProperties": False,
                "description": "One position of an order.",
            },
        ),
    ],
    ids=str,
)
def test_annotation_becomes_this_schema(annotation: Any, schema: dict[str, Any]) -> None:
    def function(value: object) -> None: ...

    function.__annotations__["value"] = annotation
    read = read_signature(function, injected_type=Context).input_schema
    jsonschema.Draft202012Validator.check_schema(read)
    assert read["properties"]["value"] == schema


def test_class_that_contains_itself_becomes_a_definition() -> None:
    def plant(tree: Node) -> None: ...

    schema = read_signature(plant, injected_type=Context).input_schema
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["properties"]["tree"] == {"$ref": "#/$defs/Node"}
    assert validator.is_valid({"tree": {"name": "a", "children": [{"name": "b", "children": []}]}})
    assert not validator.is_valid({"tree": {"name": "a", "children": [{"name": 1, "children": []}]}})


def test_description_and_arguments_come_from_the_docstring() -> None:
    def refund(context: Context, invoice: str, cents: int = 5, note: str | None = None) -> None:
        """Refunds an invoice.

        It can't be undone.

        Args:
            context: Not shown.
            invoice: Number of the invoice,
                as printed on it.
            cents (int): How much: in cents.

        Returns:
            Nothing that the model needs.

        Raises:
            ValueError: Never.
        """

    read = read_signature(refund, injected_type=Context)
    assert read.description == "Refunds an invoice.\n\nIt can't be undone."
    assert read.injected == ("context",)
    assert read.input_schema == {
        "type": "object",
        "properties": {
            "invoice": {"type": "string", "description": "Number of the invoice, as printed on it."},
            "cents": {"type": "integer", "description": "How much: in cents.", "default": 5},
            "note": {"type": ["string", "null"]},
        },
        "required": ["invoice"],
        "additionalProperties": False,
    }


def test_text_after_a_section_belongs_to_the_description() -> None:
    assert parse_docstring("One.\n\nArgs:\n    a: First.\n\nTwo.") == ("One.\n\nTwo.", {"a": "First."})


def test_function_without_parameters_takes_an_empty_object() -> None:
    def now() -> str:
        return ""

    assert read_signature(now, injected_type=Context).input_schema == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def test_unusable_parameters_are_refused_with_their_names() -> None:
    def bare(value): ...

    def strange(value: object) -> None: ...

    def many(*values: int) -> None: ...

    def keyed(value: dict[int, str]) -> None: ...

    for function, message in (
        (bare, "the parameter 'value' has no annotation"),
        (strange, "the parameter 'value': object has no JSON Schema"),
        (many, "the parameter 'values' can't be given by name"),
        (keyed, "the keys of a JSON object are str"),
    ):
        with pytest.raises(UnsupportedType, match=message):
            read_signature(function, injected_type=Context)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3.0, 3),
        (float, 3, 3.0),
        (Size, "L", Size.LARGE),
        (Level, 2, Level.HIGH),
        (list[Size], ["S"], [Size.SMALL]),
        (set[int], [1, 2], {1, 2}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (dict[str, Size], {"a": "S"}, {"a": Size.SMALL}),
        (Item, {"sku": "x", "count": 2}, Item("x", 2)),
        (list[Item], [{"sku": "x"}], [Item("x")]),
        (Node, {"name": "a", "children": [{"name": "b", "children": []}]}, Node("a", [Node("b", [])])),
        (Address, {"street": "s"}, {"street": "s"}),
        (Item | None, None, None),
        (float | int, 1, 1),
        (int | str, "1", "1"),
        (bool | int, True, True),
        (Literal[1, True], True, True),
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (datetime.datetime, "2024-02-29T10:00:00+01:00", datetime.datetime.fromisoformat("2024-02-29T10:00:00+01:00")),
        (uuid.UUID, "0190f5fe-7c00-7a00-8a00-000000000000", uuid.UUID("0190f5fe-7c00-7a00-8a00-000000000000")),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (Annotated[int, "x"], 1, 1),
        (CustomerId, "c", "c"),
        (Any, {"free": [1]}, {"free": [1]}),
    ],
    ids=str,
)
def test_json_becomes_the_annotated_value(annotation: Any, value: Any, expected: Any) -> None:
    decoded = decode(annotation, value, "value")
    assert decoded == expected
    assert type(decoded) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, 1.5, "value: expected an integer, found 1.5"),
        (int, True, "value: expected an integer, found true"),
        (str, 1, "value: expected a text, found 1"),
        (bool, "yes", 'value: expected true or false, found "yes"'),
        (Size, "M", "value: expected one of 'S', 'L', found \"M\""),
        (list[Item], [{"sku": "a"}, {}], "value[1].sku: this field is missing"),
        (Item, {"sku": "a", "colour": 1}, "value.colour: there is no such field"),
        (tuple[int, int], [1], "value: expected 2 items, found 1"),
        (datetime.date, "soon", 'value: expected a text of the format date, found "soon"'),
        (decimal.Decimal, "x", 'value: expected a decimal number as a text, found "x"'),
        (int | None, "x", 'value: expected int or NoneType, found "x"'),
    ],
    ids=str,
)
def test_other_json_is_refused_with_path_and_expectation(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        decode(annotation, value, "value")
    assert str(caught.value) == message


def test_missing_and_unknown_arguments_are_refused() -> None:
    parameters = (Parameter("a", int, True), Parameter("b", int, False))
    assert decode_arguments(parameters, {"a": 1}) == {"a": 1}
    with pytest.raises(Mismatch, match="a: this argument is missing"):
        decode_arguments(parameters, {})
    with pytest.raises(Mismatch, match="c: there is no such argument"):
        decode_arguments(parameters, {"a": 1, "c": 2})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (Item("x", 2, ["t"]), {"sku": "x", "count": 2, "tags": ["t"]}),
        ({Size.SMALL: Level.LOW}, {"S": 1}),
        ((1, "ü"), [1, "ü"]),
        ({"when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)}, {"when": "2024-01-02T00:00:00+00:00"}),
        (datetime.timedelta(minutes=1), 60.0),
        ({3: {1}}, {"3": [1]}),
        ([decimal.Decimal("1.10")], ["1.10"]),
    ],
    ids=str,
)
def test_result_has_its_obvious_json_form(value: Any, expected: Any) -> None:
    assert json.loads(encode_json(value)) == expected


def test_result_without_a_json_form_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        encode_json({"data": b"x"})
    with pytest.raises(TypeError, match="a key of type tuple"):
        encode_json({(1,): 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json(float("nan"))
    with pytest.raises((ValueError, RecursionError)):
        encode_json(endless)
