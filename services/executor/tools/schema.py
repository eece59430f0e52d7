"""JSON Schema at the tools' edge: what a model sends is checked before it runs, and it is told what was expected."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.struct_pb2 import ListValue, Struct, Value
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from holdfast.api.common.v1 import agent_pb2, content_pb2

INVALID_ARGUMENTS: Final = "INVALID_ARGUMENTS"
INVALID_RESULT: Final = "INVALID_RESULT"

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

MAX_DEPTH: Final = 200
"""Levels of objects and lists in each other that are taken from models, tools and people."""

_MAX_PROBLEMS: Final = 8
_MAX_VALUE_CHARACTERS: Final = 80
_MAX_EXTRACT_CHARACTERS: Final = 600
_MAX_MESSAGE_CHARACTERS: Final = 4_000
_MAX_VALIDATORS: Final = 1_024
_MAX_EXACT_INTEGER: Final = 2**53


class ArgumentsRefused(Exception):
    """A model's arguments do not fit; nothing was executed, and the failure's message is for the model."""

    def __init__(self, message: str) -> None:
        message = _shortened(message, _MAX_MESSAGE_CHARACTERS)
        super().__init__(message)
        self.failure = content_pb2.Failure(
            reason=INVALID_ARGUMENTS,
            message=message,
            failure_class=content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS,
        )


class ResultRefused(Exception):
    """A tool's result does not fit its output schema; the tool has run all the same."""

    def __init__(self, message: str) -> None:
        message = _shortened(message, _MAX_MESSAGE_CHARACTERS)
        super().__init__(message)
        self.failure = content_pb2.Failure(
            reason=INVALID_RESULT, message=message, failure_class=content_pb2.FAILURE_CLASS_PERMANENT
        )


class SchemaProblem(NamedTuple):
    """Something wrong in a schema: its path below the schema (`.properties.qty.type`) and what was expected."""

    path: str
    description: str


# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str) -> Any:
    """Parses JSON that every other parser reads the same way.

    Raises:
        ValueError: It is not JSON, or has what parsers disagree about: a key twice, NaN, half a surrogate pair, more
            than 200 levels.
    """
    try:
        value = _decoder.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    # What is parsed is walked by recursion afterwards, here and by whoever executes it.
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a string has half of a surrogate pair") from error
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            child
            for item in layer
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True


# Made once: with arguments of its own, `json.dumps` makes an encoder at every call.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical_json(value: object) -> str:
    """Returns the one form of a JSON value: sorted keys, no spaces, integral numbers without a fraction."""
    return _encode(_integral(value))


def struct_to_dict(struct: Struct) -> dict[str, Any]:
    """Returns a Struct as plain Python; numbers that are whole become integers, as JSON Schema treats them.

    Keys are sorted: a Struct keeps no order, and what a model is shown must be the same bytes in every process.
    """
    return {name: _plain(struct.fields[name]) for name in sorted(struct.fields)}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return struct_to_dict(value.struct_value)
        case "list_value":
            items: ListValue = value.list_value
            return [_plain(item) for item in items.values]
        case "string_value":
            return value.string_value
        case "number_value":
            return _integral(value.number_value)
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _integral(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT_INTEGER else value
    if isinstance(value, dict):
        return {key: _integral(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_shown(twice)} stands twice in one object")
    return parsed


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > 1_000:
        raise ValueError(f"the number {text[:40]}… has too many digits")
    return int(text)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_without_repeated_keys, parse_float=_finite, parse_int=_bounded, parse_constant=_no_constant
)


def describe_json_error(error: ValueError) -> str:
    """Returns what is wrong with a text that `parse_json` refused, with the position where there is one."""
    if isinstance(error, json.JSONDecodeError):
        around = error.doc[max(0, error.pos - 20) : error.pos + 20]
        place = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        return f"{error.msg} at {place}, near {_shown(around)}"
    return str(error)


# -------------------------------------------------------------------------------------------------- arguments, results


def check_arguments(tool: agent_pb2.ToolSpec, arguments_json: str) -> dict[str, Any]:
    """Returns a model's arguments, parsed and fitting the tool's schema.

    Args:
        tool: The tool, with the schema that the model was shown.
        arguments_json: What the model wrote; nothing at all means no arguments.

    Raises:
        ArgumentsRefused: They are not JSON, no object, or do not fit.
    """
    try:
        arguments = parse_json(arguments_json) if arguments_json.strip() else {}
    except ValueError as error:
        raise ArgumentsRefused(
            f"The arguments of {tool.name} are not valid JSON: {describe_json_error(error)}. "
            "Call it again with one JSON object."
        ) from error
    if not isinstance(arguments, dict):
        raise ArgumentsRefused(
            f"The arguments of {tool.name} must be one JSON object, not {_type_name(arguments)}: {_shown(arguments)}."
        )
    problems = _problems_of(tool.input_schema, arguments) if tool.HasField("input_schema") else ""
    if problems:
        raise ArgumentsRefused(f"The arguments of {tool.name} do not fit its schema. Nothing was executed.\n{problems}")
    return arguments


def check_result(tool: agent_pb2.ToolSpec, value: Any) -> None:
    """Checks a tool's result.

    Raises:
        ResultRefused: It does not fit the tool's output schema.
    """
    if not tool.HasField("output_schema"):
        return
    problems = _problems_of(tool.output_schema, value)
    if problems:
        raise ResultRefused(
            f"The tool {tool.name} was executed, but its result does not fit its output schema.\n{problems}"
        )


def misfit(schema: Struct, value: Any) -> str:
    """Returns how a value does not fit a schema, for a person; empty when it fits."""
    return _problems_of(schema, value)


def _problems_of(schema: Struct, value: Any) -> str:
    try:
        validator = _validator_of(schema)
        errors = sorted(validator.iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path])
    except RecursionError:
        return "- it is nested too deeply, or the schema refers to itself without end"
    except Unresolvable:
        return "- the schema has a reference that leads nowhere"
    if not errors:
        return ""
    lines = [f"- {error.json_path}: {_expectation(error)}" for error in errors[:_MAX_PROBLEMS]]
    if len(errors) > _MAX_PROBLEMS:
        lines.append(f"- and {len(errors) - _MAX_PROBLEMS} more")
    lines.append(f"Expected at {errors[0].json_path}: {_extract(errors[0])}")
    return "\n".join(lines)


def _expectation(error: ValidationError) -> str:
    # Not the library's own texts: they repeat whole values, which may be long.
    expected: Any = error.validator_value
    schema: Any = error.schema
    keyword: Any = error.validator
    instance: Any = error.instance
    got = f"got {_type_name(instance)} {_shown(instance)}"
    match keyword:
        case "type":
            kinds = " or ".join(expected) if isinstance(expected, list) else str(expected)
            return f"expected {kinds}, {got}"
        case "required":
            missing = [name for name in expected if name not in instance]
            return f"the required {_plural('property', missing)} missing"
        case "additionalProperties" | "unevaluatedProperties" if expected is False:
            known: Mapping[str, Any] = schema.get("properties", {})
            unknown = [name for name in instance if name not in known]
            allowed = ", ".join(sorted(known)) or "none"
            return f"the {_plural('property', unknown)} not allowed; allowed: {_shortened(allowed, 400)}"
        case "enum":
            return f"expected one of {_shown(expected, 400)}, {got}"
        case "const":
            return f"expected {_shown(expected, 400)}, {got}"
        case "anyOf" | "oneOf":
            closest = best_match(error.context or ())
            if closest is None:
                return f"fits more than one of the {len(expected)} alternatives, {got}"
            hint = f"; closest, {closest.json_path}: {_expectation(closest)}" if closest.context is not None else ""
            return f"fits none of the {len(expected)} alternatives, {got}{hint}"
        case None:
            return "no value is allowed here"
        case _:
            return f"expected {keyword} {_shown(expected, 400)}, {got}"


def _extract(error: ValidationError) -> str:
    schema: Any = error.schema
    if isinstance(schema, dict):
        # The descriptions of properties are what a model needs least to repair a call.
        schema = {key: value for key, value in schema.items() if key not in ("$defs", "definitions", "description")}
    return _shown(schema, _MAX_EXTRACT_CHARACTERS)


def _plural(noun: str, names: list[str]) -> str:
    listed = _shortened(", ".join(names), 400)
    return f"{noun} {listed} is" if len(names) == 1 else f"{noun[:-1]}ies {listed} are"


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _shown(value: Any, limit: int = _MAX_VALUE_CHARACTERS) -> str:
    if isinstance(value, str):
        value = value[: limit + 1]
    return _shortened(json.dumps(value, ensure_ascii=False, default=str, sort_keys=True), limit)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Validators:
    """Compiled validators by the content of their schema, least recently used first out."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Draft202012Validator] = OrderedDict()

    def of(self, schema: Struct) -> Draft202012Validator:
        key = hashlib.sha256(schema.SerializeToString(deterministic=True)).digest()
        validator = self._known.get(key)
        if validator is None:
            # An empty registry of our own: the library's default one fetches remote documents.
            validator = Draft202012Validator(struct_to_dict(schema), registry=Registry())
            self._known[key] = validator
            if len(self._known) > _MAX_VALIDATORS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return validator


_validators: Final = _Validators()


def _validator_of(schema: Struct) -> Draft202012Validator:
    return _validators.of(schema)


# ------------------------------------------------------------------------------------------------- schemas themselves

_ONE: Final = (
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LIST: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAP: Final = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def schema_problems(schema: dict[str, Any], *, of_arguments: bool = False) -> list[SchemaProblem]:
    """Returns what is wrong with a JSON Schema (2020-12), each with its path; nothing when it can be used.

    Args:
        schema: The schema.
        of_arguments: It describes a tool's arguments, which are an object.
    """
    problems: list[SchemaProblem] = []
    if of_arguments and schema and schema.get("type") != "object":
        problems.append(SchemaProblem(".type", 'expected "object": arguments are one JSON object'))
    dialect = schema.get("$schema", DIALECT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        problems.append(SchemaProblem(".$schema", f"expected {DIALECT} or nothing"))
    try:
        # Order matters: what walks a schema may rely on its shape only once the shape is known to be right.
        shape = _shape_problems(schema)
        problems.extend(shape or _reference_problems(schema))
        if not problems:
            _try(schema)
    except RecursionError:
        problems.append(SchemaProblem("", "the schema is nested too deeply, or refers to itself without end"))
    return problems


def _shape_problems(schema: dict[str, Any]) -> list[SchemaProblem]:
    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    found: dict[SchemaProblem, None] = {}
    for error in checker.iter_errors(schema):
        path = error.json_path.removeprefix("$")
        if error.validator == "format":
            description = f"is not a valid {error.validator_value}: {_shown(error.instance)}"
        else:
            description = _expectation(error)
        found[SchemaProblem(path, description)] = None
    # `pattern` is checked as a format above, but the names of patternProperties are not.
    if not found:
        for path, part in _parts(schema, ""):
            for pattern in part.get("patternProperties", {}):
                if not _compiles(pattern):
                    found[SchemaProblem(f"{path}.patternProperties", f"is not a valid regex: {_shown(pattern)}")] = None
    return list(found)


def _reference_problems(schema: dict[str, Any]) -> list[SchemaProblem]:
    problems = []
    anchors = {
        part[keyword] for _, part in _parts(schema, "") for keyword in ("$anchor", "$dynamicAnchor") if keyword in part
    }
    for path, part in _parts(schema, ""):
        if path and "$id" in part:
            problems.append(SchemaProblem(f"{path}.$id", "an $id is allowed at the top only"))
        for keyword in ("$ref", "$dynamicRef"):
            reference = part.get(keyword)
            if reference is None:
                continue
            if not reference.startswith("#"):
                problems.append(
                    SchemaProblem(f"{path}.{keyword}", "references to other documents are not followed; expected #…")
                )
            elif not _leads_somewhere(schema, reference[1:], anchors):
                problems.append(SchemaProblem(f"{path}.{keyword}", f"{_shown(reference)} leads nowhere"))
    return problems


def _parts(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the schema and all schemas in it; what only looks like one, such as a default value, is not visited."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for keyword in _ONE:
        if keyword in schema:
            yield from _parts(schema[keyword], f"{path}.{keyword}")
    for keyword in _LIST:
        for index, item in enumerate(schema.get(keyword, ())):
            yield from _parts(item, f"{path}.{keyword}[{index}]")
    for keyword in _MAP:
        for name, item in schema.get(keyword, {}).items():
            yield from _parts(item, f"{path}.{keyword}.{name}")


def _leads_somewhere(schema: Any, fragment: str, anchors: set[str]) -> bool:
    if fragment and not fragment.startswith("/"):
        return fragment in anchors
    place = schema
    for token in fragment.split("/")[1:]:
        name = re.sub("%([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), token)
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict) and name in place:
            place = place[name]
        else:
            return False
    return isinstance(place, dict | bool)


def _try(schema: dict[str, Any]) -> None:
    """Validates one value of each kind: a schema that refers to itself without end shows itself here, not in a run."""
    validator = Draft202012Validator(schema, registry=Registry())
    samples: tuple[Any, ...] = ({}, [], "", 0, 0.5, True, None)
    for sample in samples:
        validator.is_valid(sample)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
