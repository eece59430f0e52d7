"""From Python annotations to JSON Schema, and from JSON to the values they promise; both walk the same types.

What is not listed here is refused when a tool is defined, so that no tool meets its first unknown type in production.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import json
import math
import re
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, Literal, NamedTuple

JsonSchema = dict[str, Any]

SUPPORTED: Final = (
    "str, int, float, bool, None, list, tuple, set, dict with str keys, Optional and other unions, Literal, Enum, "
    "dataclasses, TypedDict, NewType, Annotated, datetime, date, time, UUID, Decimal and Any"
)

_TEXT_FORMATS: Final[Mapping[type[Any], tuple[str, Callable[[str], Any]]]] = {
    datetime.datetime: ("date-time", datetime.datetime.fromisoformat),
    datetime.date: ("date", datetime.date.fromisoformat),
    datetime.time: ("time", datetime.time.fromisoformat),
    uuid.UUID: ("uuid", uuid.UUID),
}


class UnsupportedType(TypeError):
    """An annotation that has no JSON Schema here."""


class Mismatch(ValueError):
    """A JSON value that is not what an annotation promises; the text names where and what was expected."""


class Parameter(NamedTuple):
    """One parameter of a function that the caller fills."""

    name: str
    annotation: Any
    is_required: bool


class Signature(NamedTuple):
    """What a function takes, as a schema and as types."""

    description: str
    input_schema: JsonSchema
    parameters: tuple[Parameter, ...]
    injected: tuple[str, ...]
    """Names of the parameters of the injected type; they are not in the schema."""


# ---------------------------------------------------------------------------------------------------------- functions


def read_signature(function: Callable[..., Any], *, injected_type: type[Any]) -> Signature:
    """Reads the schema of a function's arguments from its signature and its Google-style docstring.

    Args:
        function: The function.
        injected_type: A parameter annotated with this type is filled by whoever calls, and is not in the schema.

    Raises:
        UnsupportedType: A parameter has no annotation, or one that has no JSON Schema.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UnsupportedType(f"{name}: the annotation {error.name!r} can't be resolved in its module") from error
    description, documented = parse_docstring(inspect.getdoc(function) or "")
    definitions = _Definitions()
    properties: JsonSchema = {}
    required: list[str] = []
    parameters: list[Parameter] = []
    injected: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints.get(parameter.name, inspect.Parameter.empty)
        if _is_injected(annotation, injected_type):
            injected.append(parameter.name)
            continue
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise UnsupportedType(
                f"{name}: the parameter {parameter.name!r} can't be given by name; tools take named arguments only"
            )
        if annotation is inspect.Parameter.empty:
            raise UnsupportedType(
                f"{name}: the parameter {parameter.name!r} has no annotation, and the model needs its type"
            )
        try:
            schema = definitions.schema(annotation)
        except UnsupportedType as error:
            raise UnsupportedType(f"{name}: the parameter {parameter.name!r}: {error}") from None
        if "description" not in schema and documented.get(parameter.name):
            schema = _described(schema, documented[parameter.name])
        is_required = parameter.default is inspect.Parameter.empty
        if is_required:
            required.append(parameter.name)
        elif parameter.default is not None:
            schema = _with_default(schema, parameter.default)
        properties[parameter.name] = schema
        parameters.append(Parameter(parameter.name, annotation, is_required))
    input_schema: JsonSchema = {"type": "object", "properties": properties}
    if required:
        input_schema["required"] = required
    input_schema["additionalProperties"] = False
    if definitions.found:
        input_schema["$defs"] = definitions.found
    return Signature(description, input_schema, tuple(parameters), tuple(injected))


def _is_injected(annotation: Any, injected_type: type[Any]) -> bool:
    if annotation is injected_type:
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return injected_type in typing.get_args(annotation)
    return False


def _with_default(schema: JsonSchema, default: Any) -> JsonSchema:
    try:
        value = json.loads(encode_json(default))
    except (TypeError, ValueError):
        # A default that JSON does not know is still the function's own; the model need not see it.
        return schema
    return {**schema, "default": value}


def decode_arguments(parameters: Sequence[Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turns parsed JSON into the values that the annotations promise.

    Raises:
        Mismatch: An argument is missing, unknown or of another type.
    """
    known = {parameter.name for parameter in parameters}
    for name in arguments:
        if name not in known:
            raise Mismatch(f"{name}: there is no such argument")
    values = {}
    for parameter in parameters:
        if parameter.name in arguments:
            values[parameter.name] = decode(parameter.annotation, arguments[parameter.name], parameter.name)
        elif parameter.is_required:
            raise Mismatch(f"{parameter.name}: this argument is missing")
    return values


# ---------------------------------------------------------------------------------------------------------- docstrings

_SECTION: Final = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?|Attributes|See Also|Warnings?|Todo):\s*"
)
_ARGUMENT: Final = re.compile(r"\*{0,2}(?P<name>\w+)\s*(?:\([^)]*\))?\s*:\s*(?P<text>.*)")


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Splits a Google-style docstring into its description and the texts of its arguments."""
    description: list[str] = []
    arguments: dict[str, list[str]] = {}
    section: str | None = None
    current: str | None = None
    indentation: int | None = None
    for line in inspect.cleandoc(text).splitlines():
        if match := _SECTION.fullmatch(line):
            section, current, indentation = match[1], None, None
            continue
        if section is not None and line and not line[0].isspace():
            # Text at the margin after a section is description again.
            section = None
        if section is None:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            indentation = depth if indentation is None else indentation
            match = _ARGUMENT.fullmatch(line.strip())
            if depth == indentation and match:
                current = match["name"]
                arguments[current] = [match["text"].strip()]
            elif current is not None:
                arguments[current].append(line.strip())
    paragraphs = re.split(r"\n\s*\n", "\n".join(description).strip())
    return "\n\n".join(paragraphs).strip(), {name: " ".join(filter(None, lines)) for name, lines in arguments.items()}


# ------------------------------------------------------------------------------------------------------------- schemas


class _Definitions:
    """Makes schemas; a class that contains itself becomes a `$defs` entry."""

    def __init__(self) -> None:
        self.found: JsonSchema = {}
        self._open: list[Any] = []
        self._names: dict[Any, str] = {}

    def schema(self, annotation: Any) -> JsonSchema:
        if annotation is Any:
            return {}
        if annotation is None or annotation is type(None):
            return {"type": "null"}
        if isinstance(annotation, typing.NewType):
            return self.schema(annotation.__supertype__)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self._annotated(arguments)
        if origin in (typing.Required, typing.NotRequired):
            return self.schema(arguments[0])
        if origin is Literal:
            return _literal(arguments)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments)
        return self._container(annotation, origin, arguments) or self._class(annotation)

    def _annotated(self, arguments: tuple[Any, ...]) -> JsonSchema:
        schema = self.schema(arguments[0])
        for extra in arguments[1:]:
            if isinstance(extra, str):
                schema = _described(schema, extra)
            elif isinstance(extra, Mapping):
                # Constraints in JSON Schema's own words: Annotated[int, {"minimum": 1}].
                schema = {**schema, **extra}
        return schema

    def _union(self, arguments: tuple[Any, ...]) -> JsonSchema:
        schemas = [self.schema(argument) for argument in arguments]
        if any(schema == {} for schema in schemas):
            return {}
        if all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in schemas):
            return {"type": list(dict.fromkeys(schema["type"] for schema in schemas))}
        return {"anyOf": schemas}

    def _container(self, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> JsonSchema | None:
        kind = origin if origin is not None else annotation
        if not isinstance(kind, type) or typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
            return None
        if issubclass(kind, tuple) and not hasattr(kind, "_fields"):
            return self._tuple(arguments)
        if issubclass(kind, (list, set, frozenset)) or kind is Sequence:
            schema: JsonSchema = {"type": "array"}
            if arguments and (items := self.schema(arguments[0])):
                schema["items"] = items
            if issubclass(kind, (set, frozenset)):
                schema["uniqueItems"] = True
            return schema
        if issubclass(kind, dict) or kind is Mapping:
            if arguments and arguments[0] not in (str, Any):
                raise UnsupportedType("the keys of a JSON object are str")
            schema = {"type": "object"}
            if len(arguments) == 2 and (values := self.schema(arguments[1])):
                schema["additionalProperties"] = values
            return schema
        return None

    def _tuple(self, arguments: tuple[Any, ...]) -> JsonSchema:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": self.schema(arguments[0])}
        if not arguments:
            return {"type": "array"}
        return {
            "type": "array",
            "prefixItems": [self.schema(argument) for argument in arguments],
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }

    def _class(self, cls: Any) -> JsonSchema:
        if not isinstance(cls, type):
            raise UnsupportedType(f"{cls!r} has no JSON Schema; supported are {SUPPORTED}")
        if issubclass(cls, enum.Enum):
            return _enumeration([member.value for member in cls], cls.__name__)
        if cls is bool:
            return {"type": "boolean"}
        if cls is int:
            return {"type": "integer"}
        if cls is float:
            return {"type": "number"}
        if cls is str:
            return {"type": "string"}
        if cls in _TEXT_FORMATS:
            return {"type": "string", "format": _TEXT_FORMATS[cls][0]}
        if cls is decimal.Decimal:
            return {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}
        if dataclasses.is_dataclass(cls) or typing.is_typeddict(cls):
            return self._object(cls)
        raise UnsupportedType(f"{cls.__name__} has no JSON Schema; supported are {SUPPORTED}")

    def _object(self, cls: type[Any]) -> JsonSchema:
        if cls in self._open or cls in self._names:
            name = self._names.setdefault(cls, self._free_name(cls.__name__))
            return {"$ref": f"#/$defs/{name}"}
        self._open.append(cls)
        schema = _object_schema(cls, self.schema)
        self._open.remove(cls)
        if cls not in self._names:
            return schema
        self.found[self._names[cls]] = schema
        return {"$ref": f"#/$defs/{self._names[cls]}"}

    def _free_name(self, name: str) -> str:
        taken = set(self._names.values())
        return next(
            candidate
            for candidate in (name, *(f"{name}{number}" for number in range(2, len(taken) + 3)))
            if candidate not in taken
        )


def _object_schema(cls: type[Any], schema_of: Callable[[Any], JsonSchema]) -> JsonSchema:
    text = inspect.cleandoc(cls.__doc__) if cls.__doc__ and not _is_generated_docstring(cls) else ""
    description, documented = parse_docstring(text)
    attributes = _documented_attributes(text)
    properties: JsonSchema = {}
    required: list[str] = []
    for name, annotation, is_required, default in _fields_of(cls):
        schema = schema_of(annotation)
        explained = documented.get(name) or attributes.get(name)
        if explained and "description" not in schema:
            schema = _described(schema, explained)
        if is_required:
            required.append(name)
        elif default is not None:
            schema = _with_default(schema, default)
        properties[name] = schema
    result: JsonSchema = {"type": "object", "properties": properties}
    if required:
        result["required"] = required
    result["additionalProperties"] = False
    return _described(result, description) if description else result


def _described(schema: JsonSchema, description: str) -> JsonSchema:
    return {**schema, "description": description}


def _is_generated_docstring(cls: type[Any]) -> bool:
    # dataclasses writes the signature where there is no docstring.
    return dataclasses.is_dataclass(cls) and (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def _documented_attributes(text: str) -> dict[str, str]:
    return parse_docstring(re.sub(r"^Attributes:", "Args:", text, flags=re.MULTILINE))[1] if text else {}


def _fields_of(cls: type[Any]) -> list[tuple[str, Any, bool, Any]]:
    """Returns name, annotation, whether it must be given, and the default, of a dataclass or TypedDict."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if typing.is_typeddict(cls):
        required: frozenset[str] = getattr(cls, "__required_keys__", frozenset())
        # Under postponed evaluation the class does not see its own Required and NotRequired.
        marks = {typing.Required: True, typing.NotRequired: False}
        return [
            (name, annotation, marks.get(typing.get_origin(annotation), name in required), None)
            for name, annotation in hints.items()
        ]
    missing = dataclasses.MISSING
    return [
        (
            field.name,
            hints[field.name],
            field.default is missing and field.default_factory is missing,
            None if field.default is missing else field.default,
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]


def _literal(values: tuple[Any, ...]) -> JsonSchema:
    return _enumeration([value.value if isinstance(value, enum.Enum) else value for value in values], "Literal")


def _enumeration(values: list[Any], name: str) -> JsonSchema:
    if any(not isinstance(value, (str, int, float, bool, type(None))) for value in values):
        raise UnsupportedType(f"{name}: the values of an enumeration are texts, numbers, booleans or null")
    if all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": values}
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return {"type": "integer", "enum": values}
    return {"enum": values}


# ------------------------------------------------------------------------------------------------------------ decoding


def decode(annotation: Any, value: Any, path: str) -> Any:
    """Turns one parsed JSON value into what the annotation promises.

    Raises:
        Mismatch: It is something else.
    """
    if annotation is Any:
        return value
    if annotation is None or annotation is type(None):
        if value is not None:
            raise _mismatch(path, "null", value)
        return None
    if isinstance(annotation, typing.NewType):
        return decode(annotation.__supertype__, value, path)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return decode(arguments[0], value, path)
    if origin is Literal:
        for option in arguments:
            plain = option.value if isinstance(option, enum.Enum) else option
            if plain == value and isinstance(plain, bool) == isinstance(value, bool):
                return option
        raise _mismatch(path, f"one of {', '.join(map(repr, arguments))}", value)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, path)
    return _decode_class(annotation, origin, arguments, value, path)


def _decode_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    # The exact type first: 1 for `float | int` is the int.
    for option in sorted(options, key=lambda option: option is not type(value)):
        try:
            return decode(option, value, path)
        except Mismatch:
            continue
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise _mismatch(path, names, value)


def _decode_class(annotation: Any, origin: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    kind: Any = origin if origin is not None else annotation
    if kind is bool:
        return _checked(value, isinstance(value, bool), path, "true or false")
    if kind is str:
        return _checked(value, isinstance(value, str), path, "a text")
    if kind is int:
        # JSON knows one kind of number: 3.0 is the integer 3 (JSON Schema says the same).
        is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == math.floor(value)
        return int(_checked(value, is_whole, path, "an integer"))
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_checked(value, is_number, path, "a number"))
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, path)
    if kind is Sequence or issubclass(kind, (list, set, frozenset, tuple)):
        return _decode_array(kind, arguments, _checked(value, isinstance(value, list), path, "an array"), path)
    if kind is Mapping or issubclass(kind, dict):
        _checked(value, isinstance(value, dict), path, "an object")
        item = arguments[1] if len(arguments) == 2 else Any
        return {key: decode(item, entry, f"{path}.{key}") for key, entry in value.items()}
    if issubclass(kind, enum.Enum):
        for member in kind:
            if member.value == value and isinstance(member.value, bool) == isinstance(value, bool):
                return member
        raise _mismatch(path, f"one of {', '.join(repr(member.value) for member in kind)}", value)
    text = _checked(value, isinstance(value, str), path, "a text")
    try:
        if kind is decimal.Decimal:
            return decimal.Decimal(text)
        text_format, parse = _TEXT_FORMATS[kind]
    except decimal.InvalidOperation:
        raise _mismatch(path, "a decimal number as a text", value) from None
    except KeyError:
        raise UnsupportedType(f"{kind!r} has no JSON form") from None
    try:
        return parse(text)
    except ValueError:
        raise _mismatch(path, f"a text of the format {text_format}", value) from None


def _decode_array(kind: Any, arguments: tuple[Any, ...], value: list[Any], path: str) -> Any:
    if issubclass(kind, tuple) and arguments and Ellipsis not in arguments:
        if len(arguments) != len(value):
            raise Mismatch(f"{path}: expected {len(arguments)} items, found {len(value)}")
        return tuple(
            decode(argument, entry, f"{path}[{index}]")
            for index, (argument, entry) in enumerate(zip(arguments, value, strict=True))
        )
    item = arguments[0] if arguments else Any
    entries = [decode(item, entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    return entries if kind is Sequence else kind(entries)


def _decode_object(cls: Any, value: Any, path: str) -> Any:
    _checked(value, isinstance(value, dict), path, "an object")
    fields = _fields_of(cls)
    known = {name for name, *_ in fields}
    for key in value:
        if key not in known:
            raise Mismatch(f"{path}.{key}: there is no such field")
    values = {}
    for name, annotation, is_required, _ in fields:
        if name in value:
            values[name] = decode(annotation, value[name], f"{path}.{name}")
        elif is_required:
            raise Mismatch(f"{path}.{name}: this field is missing")
    return cls(**values)


def _checked(value: Any, is_right: bool, path: str, expected: str) -> Any:
    if not is_right:
        raise _mismatch(path, expected, value)
    return value


def _mismatch(path: str, expected: str, value: Any) -> Mismatch:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return Mismatch(f"{path}: expected {expected}, found {shown if len(shown) <= 60 else shown[:59] + '…'}")


# ------------------------------------------------------------------------------------------------------------ encoding


def encode_json(value: Any) -> str:
    """Returns a tool's result as JSON text: dataclasses, enums, times, sets and the like have their obvious form.

    Raises:
        TypeError: Something in it has no JSON form.
        ValueError: It contains itself, or a number that JSON does not know.
    """
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, default=_plain_leaf)


def _plain(value: Any) -> Any:
    # Enums first: a StrEnum is a str, and an IntEnum an int, whose JSON form is its value all the same.
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_key(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _plain_leaf(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (uuid.UUID, decimal.Decimal, PurePath)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return [_plain(entry) for entry in sorted(value, key=repr)]
    raise TypeError(f"a value of type {type(value).__qualname__} has no JSON form")


def _key(key: Any) -> str:
    plain = key.value if isinstance(key, enum.Enum) else key
    if isinstance(plain, str):
        return plain
    if isinstance(plain, (int, uuid.UUID, datetime.date)) and not isinstance(plain, bool):
        return str(plain)
    raise TypeError(f"a key of type {type(key).__qualname__} has no JSON form")
