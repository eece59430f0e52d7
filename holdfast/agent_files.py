"""Agents as YAML: the contracts' JSON mapping, read node by node, so that every message names file, line and field."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import yaml
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from holdfast.agent import Agent, problems_of
from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import FieldViolation, InvalidArgument

# Aliases let a short file stand for a huge one; no definition is as large as this.
_MAX_NODES: Final = 200_000
_MAX_DEPTH: Final = 100

_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d{1,9})?)(?P<unit>ms|s|m|h|d)")
_UNIT_NANOSECONDS: Final = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3_600 * 1_000_000_000,
    "d": 86_400 * 1_000_000_000,
}

_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class InvalidAgentFile(InvalidArgument):
    """An agent's file is wrong; the text has one line per problem: file, line, field, and what was expected."""


class Locator:
    """Where each field of a definition was written."""

    def __init__(self, file: str, lines: Mapping[str, int]) -> None:
        self.file = file
        self._lines = lines

    def locate(self, field: str) -> str:
        """Returns `file:line` of a field's path, such as `tools[0].name`; of its nearest parent when it is absent."""
        path = _normal(field)
        while path not in self._lines and path:
            path = re.sub(r"(\.?[^.\[\]]+|\[\d+\])$", "", path)
        line = self._lines.get(path)
        return self.file if line is None else f"{self.file}:{line}"


def load_agents(path: str | Path) -> list[Agent]:
    """Reads the agents of a YAML (or JSON) file: one document each.

    Raises:
        InvalidAgentFile: It is not YAML, or not the definition of an agent; every problem is named.
        OSError: It can't be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidAgentFile(f"{path}: not UTF-8 text") from error
    return parse_agents(text, file=str(path))


def parse_agents(text: str, *, file: str) -> list[Agent]:
    """Reads agents from YAML text.

    Args:
        text: The documents.
        file: What messages call it.

    Raises:
        InvalidAgentFile: As `load_agents`.
    """
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InvalidAgentFile(_syntax_error(error, file)) from error
    agents: list[Agent] = []
    problems: list[_Problem] = []
    for node in nodes:
        # An empty document, as after a trailing `---`, defines nothing.
        if _is_null(node):
            continue
        reader = _Reader()
        spec = agent_pb2.AgentSpec()
        reader.message(node, spec, "")
        locator = Locator(file, reader.lines)
        if not reader.problems:
            for field, description in problems_of(spec):
                reader.problems.append(_Problem(reader.nearest_line(field, node), field, description))
        problems.extend(reader.problems)
        agents.append(Agent.from_spec(spec, locator=locator))
    if problems:
        raise _failure(problems, file)
    if not agents:
        raise InvalidAgentFile(f"{file}: there is no agent in this file")
    return agents


def explain(error: InvalidArgument, agent: Agent) -> InvalidArgument:
    """Adds file and line to what a service says about the fields of a definition that came from a file."""
    if agent.locator is None or not error.field_violations:
        return error
    lines = []
    for violation in error.field_violations:
        field = _without_prefix(violation.field)
        lines.append(f"{agent.locator.locate(field)}: {field}: {_without_field(violation.description, field)}")
    return InvalidAgentFile(
        "\n".join(lines), reason=error.reason, metadata=error.metadata, field_violations=error.field_violations
    )


def _failure(problems: list[_Problem], file: str) -> InvalidAgentFile:
    return InvalidAgentFile(
        "\n".join(f"{file}:{problem.line}: {problem.text}" for problem in problems),
        field_violations=[FieldViolation(problem.field, problem.description) for problem in problems],
    )


def _syntax_error(error: yaml.YAMLError, file: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return f"{file}: not valid YAML: {problem}"
    return f"{file}:{mark.line + 1}: not valid YAML (column {mark.column + 1}): {problem}"


class _Problem:
    def __init__(self, line: int, field: str, description: str) -> None:
        self.line = line
        self.field = field
        self.description = description

    @property
    def text(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class _Reader:
    """Fills one message from nodes, noting the line of each field and every problem."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[_Problem] = []
        self._nodes = 0
        self._depth = 0

    def nearest_line(self, field: str, root: Node) -> int:
        place = Locator("", self.lines).locate(field)
        return int(place[1:]) if place else _line(root)

    def _problem(self, node: Node, path: str, description: str) -> None:
        self.problems.append(_Problem(_line(node), path, description))

    def _enter(self, node: Node, path: str) -> bool:
        self._nodes += 1
        self.lines.setdefault(_normal(path), _line(node))
        if self._nodes == _MAX_NODES:
            self._problem(node, path, "the definition is too large")
        return self._nodes < _MAX_NODES

    # ------------------------------------------------------------------------------------------------------ messages

    def message(self, node: Node, message: Message, path: str) -> None:
        if not self._enter(node, path):
            return
        descriptor = message.DESCRIPTOR
        if _is_null(node) and not descriptor.fields:
            # `worker:` with nothing behind it is what `worker: {}` says.
            message.SetInParent()
            return
        if not isinstance(node, MappingNode):
            self._problem(node, path, f"expected a mapping of fields, found {_found(node)}")
            return
        message.SetInParent()
        fields = cast(list[FieldDescriptor], descriptor.fields)
        known = {name: field for field in fields for name in (field.name, field.json_name)}
        for key_node, value, field_path in self._entries(node, path, known):
            field = known[key_node.value]
            # The line of the key is where a reader looks; a block's own mark is the line below it.
            self.lines[_normal(field_path)] = _line(key_node)
            if field.containing_oneof is not None and not _is_synthetic(field):
                taken = message.WhichOneof(field.containing_oneof.name)
                if taken is not None:
                    self._problem(value, field_path, f"only one of `{taken}` and `{field.name}` may be given")
                    continue
            self._field(value, message, field, field_path)

    def _entries(
        self, node: MappingNode, path: str, known: Mapping[str, FieldDescriptor]
    ) -> Iterable[tuple[ScalarNode, Node, str]]:
        seen: set[str] = set()
        for key_node, value in _pairs(node):
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            field_path = f"{path}.{key}" if path else str(key)
            if not isinstance(key_node, ScalarNode) or key is None:
                self._problem(key_node, path, "a key is a plain word")
            elif key not in known:
                names = sorted({field.name for field in known.values()})
                self._problem(key_node, field_path, f"unknown key{_did_you_mean(key, names)}")
            elif known[key].name in seen:
                self._problem(key_node, field_path, "this key is given twice")
            else:
                seen.add(known[key].name)
                yield key_node, value, f"{path}.{known[key].name}" if path else known[key].name

    def _field(self, node: Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if _is_null(node) and not (field.message_type is not None and not field.message_type.fields):
            # The JSON mapping: null is unset.
            return
        if _is_map(field):
            self._map(node, getattr(message, field.name), field, path)
        elif field.is_repeated:
            if not isinstance(node, SequenceNode):
                self._problem(node, path, f"expected a list, found {_found(node)}")
                return
            for index, item in enumerate(node.value):
                item_path = f"{path}[{index}]"
                if field.message_type is not None:
                    self._any_message(item, getattr(message, field.name).add(), item_path)
                else:
                    value = self._scalar(item, field, item_path)
                    if value is not None:
                        getattr(message, field.name).append(value)
        elif field.message_type is not None:
            self._any_message(node, getattr(message, field.name), path)
        else:
            value = self._scalar(node, field, path)
            if value is not None:
                setattr(message, field.name, value)

    def _any_message(self, node: Node, message: Message, path: str) -> None:
        name = message.DESCRIPTOR.full_name
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                self._problem(node, path, "nested too deeply")
            elif name == "google.protobuf.Duration":
                self._duration(node, message, path)
            elif name == "google.protobuf.Struct":
                self._struct(node, message, path)
            else:
                self.message(node, message, path)
        finally:
            self._depth -= 1

    def _map(self, node: Node, target: Any, field: FieldDescriptor, path: str) -> None:
        if not isinstance(node, MappingNode):
            self._problem(node, path, f"expected a mapping, found {_found(node)}")
            return
        entry = field.message_type
        assert entry is not None
        for key_node, value_node in node.value:
            key = self._scalar(key_node, entry.fields_by_name["key"], path)
            if key is None:
                continue
            value = self._scalar(value_node, entry.fields_by_name["value"], f"{path}.{key}")
            if key in target:
                self._problem(key_node, f"{path}.{key}", "this key is given twice")
            elif value is not None:
                target[key] = value

    # ------------------------------------------------------------------------------------------------------- scalars

    def _scalar(self, node: Node, field: FieldDescriptor, path: str) -> Any:
        if not self._enter(node, path):
            return None
        if field.enum_type is not None:
            return self._enum(node, field.enum_type, path)
        if not isinstance(node, ScalarNode):
            self._problem(node, path, f"expected {_expected(field)}, found {_found(node)}")
            return None
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        cpp_type = field.cpp_type
        if cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if kind == "str":
                return node.value
            self._problem(node, path, f'expected a text, found {_found(node)}; write it in quotes: "{node.value}"')
            return None
        if cpp_type == FieldDescriptor.CPPTYPE_BOOL and kind == "bool":
            return _constructed(node)
        if cpp_type in _INTEGERS and kind in ("int", "float"):
            value = _constructed(node)
            low, high = _INTEGERS[cpp_type]
            if math.isfinite(value) and value == int(value):
                if low <= value <= high:
                    return int(value)
                self._problem(node, path, f"expected a whole number from {low} to {high}, found {node.value}")
                return None
        if cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT) and kind in ("int", "float"):
            return float(_constructed(node))
        self._problem(node, path, f"expected {_expected(field)}, found {_found(node)}")
        return None

    def _enum(self, node: Node, enum_type: EnumDescriptor, path: str) -> int | None:
        names = {value.name: value.number for value in enum_type.values if value.number}
        prefix = _enum_prefix(enum_type)
        short = {name.removeprefix(prefix).lower(): number for name, number in names.items()}
        if isinstance(node, ScalarNode):
            word = node.value.strip()
            number = names.get(word.upper(), short.get(word.lower().replace("-", "_")))
            if number is not None:
                return number
            hint = _did_you_mean(word.lower().replace("-", "_"), list(short))
            self._problem(node, path, f"expected one of {', '.join(short)}, found {node.value!r}{hint}")
        else:
            self._problem(node, path, f"expected one of {', '.join(short)}, found {_found(node)}")
        return None

    def _duration(self, node: Node, message: Any, path: str) -> None:
        self._enter(node, path)
        text = node.value if isinstance(node, ScalarNode) else ""
        match = _DURATION.fullmatch(text)
        if match is None:
            self._problem(node, path, f"expected a duration such as 30s, 1.5s, 250ms or 5m, found {_found(node)}")
            return
        whole, _, fraction = match["number"].partition(".")
        unit = _UNIT_NANOSECONDS[match["unit"]]
        nanoseconds = int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        if nanoseconds > 315_576_000_000 * 10**9:
            self._problem(node, path, "this duration is longer than 10,000 years")
            return
        message.FromNanoseconds(nanoseconds)
        message.SetInParent()

    # ------------------------------------------------------------------------------------------------------- structs

    def _struct(self, node: Node, message: Any, path: str) -> None:
        if not isinstance(node, MappingNode):
            self._problem(node, path, f"expected a mapping, found {_found(node)}")
            return
        before = len(self.problems)
        value = self._plain(node, path)
        if len(self.problems) == before:
            message.SetInParent()
            message.update(value)

    def _plain(self, node: Node, path: str) -> Any:
        if not self._enter(node, path):
            return None
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                self._problem(node, path, "nested too deeply")
                return None
            if isinstance(node, MappingNode):
                return self._plain_mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self._plain(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            return self._plain_scalar(cast(ScalarNode, node), path)
        finally:
            self._depth -= 1

    def _plain_mapping(self, node: MappingNode, path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value in _pairs(node):
            if not isinstance(key_node, ScalarNode):
                self._problem(key_node, path, "a key is a plain word")
                continue
            key = key_node.value
            if key in result:
                self._problem(key_node, f"{path}.{key}", "this key is given twice")
            else:
                self.lines.setdefault(_normal(f"{path}.{key}"), _line(key_node))
                result[key] = self._plain(value, f"{path}.{key}")
        return result

    def _plain_scalar(self, node: ScalarNode, path: str) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("null", "bool", "int", "float"):
            value = _constructed(node)
            if isinstance(value, float) and not math.isfinite(value):
                self._problem(node, path, f"{node.value} is no number of JSON")
            return value
        if kind in ("str", "timestamp"):
            # JSON has no dates: what YAML takes for one is the text as it was written.
            return node.value
        self._problem(node, path, f"expected a value of JSON, found {_found(node)}")
        return None


# --------------------------------------------------------------------------------------------------------------- nodes


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Returns keys and values with `<<` resolved: what the mapping says itself goes before what it merges in."""
    if not any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
        return cast(list[tuple[Node, Node]], node.value)
    own = [(key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
    yaml.SafeLoader("").flatten_mapping(node)
    taken = {key.value for key, _ in own if isinstance(key, ScalarNode)}
    merged = {key.value: (key, value) for key, value in node.value[: -len(own) or None] if isinstance(key, ScalarNode)}
    # An alias may lead here again: the node is left without its merge.
    node.value = [*own, *(pair for name, pair in merged.items() if name not in taken)]
    return cast(list[tuple[Node, Node]], node.value)


def _constructed(node: ScalarNode) -> Any:
    return yaml.SafeLoader("").construct_object(node)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"


_KIND_WORDS: Final = {
    "str": "the text",
    "int": "the number",
    "float": "the number",
    "bool": "the boolean",
    "timestamp": "the date",
}


def _found(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null":
        return "nothing"
    shown = node.value if len(node.value) <= 40 else f"{node.value[:39]}…"
    return f"{_KIND_WORDS.get(kind, kind)} {shown!r}" if kind == "str" else f"{_KIND_WORDS.get(kind, kind)} {shown}"


def _expected(field: FieldDescriptor) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "a text"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type in _INTEGERS:
        return "a whole number"
    return "a number"


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_synthetic(field: FieldDescriptor) -> bool:
    # An `optional` scalar lives in a oneof of its own that the compiler made.
    oneof = field.containing_oneof
    return oneof is not None and len(oneof.fields) == 1 and oneof.name == f"_{field.name}"


def _enum_prefix(enum_type: EnumDescriptor) -> str:
    return enum_type.values[0].name.removesuffix("UNSPECIFIED")


def _did_you_mean(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(_snake(word), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(names)}" if len(names) <= 8 else ""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _normal(path: str) -> str:
    return _snake(_without_prefix(path))


def _without_prefix(field: str) -> str:
    for prefix in ("agent.spec.", "spec.", "agent."):
        field = field.removeprefix(prefix)
    return field


def _without_field(description: str, field: str) -> str:
    for prefix in (f"spec.{field}: ", f"{field}: "):
        description = description.removeprefix(prefix)
    return description
