"""The tools of the runtime itself: what the model sees of them, and what their arguments mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from holdfast.api.common.v1 import agent_pb2
from services.executor.tools.schema import ArgumentsRefused, canonical_json, schema_problems

ASK_USER: Final = "ask_user"
SLEEP_UNTIL: Final = "sleep_until"
NOOP: Final = "noop"

LONGEST_SLEEP: Final = timedelta(days=365)

_MAX_QUESTION_CHARACTERS: Final = 8_000
_MAX_SCHEMA_BYTES: Final = 16 * 1024
_MAX_OPTIONS: Final = 50
_SPECS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in tool as the model sees it. Without a schema of its own, the agent's stands."""

    description: str
    input_schema: Mapping[str, Any] | None


BUILTINS: Final[Mapping[str, Builtin]] = {
    ASK_USER: Builtin(
        "Asks a person a question and waits for the answer, which may take days. Give `options` when the answer is one "
        "of a few, or `schema` (JSON Schema) when it is structured; with neither, the answer is a text.",
        {
            "type": "object",
            "properties": {
                "question": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": _MAX_QUESTION_CHARACTERS,
                    "description": "The question, with all that the person needs to know to answer it.",
                },
                "options": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 500},
                    "minItems": 1,
                    "maxItems": _MAX_OPTIONS,
                    "uniqueItems": True,
                    "description": "The possible answers, if they are few.",
                },
                "schema": {"type": "object", "description": "JSON Schema of the answer, if it is structured."},
            },
            "required": ["question"],
            "additionalProperties": False,
        },
    ),
    SLEEP_UNTIL: Builtin(
        "Waits until a time, at most one year from now. Give either `time` or `seconds`.",
        {
            "type": "object",
            "properties": {
                "time": {
                    "type": "string",
                    "description": "RFC 3339 with an offset, such as 2026-03-01T09:00:00Z. A past time does not wait.",
                },
                "seconds": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": LONGEST_SLEEP.total_seconds(),
                    "description": "From now.",
                },
            },
            "additionalProperties": False,
        },
    ),
    NOOP: Builtin("Does nothing and returns its arguments.", None),
}


AGENT_ARGUMENTS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "input": {
            "type": "string",
            "minLength": 1,
            "description": "What the agent is asked to do, with all that it needs to know: it sees nothing else.",
        },
    },
    "required": ["input"],
    "additionalProperties": False,
}
"""What a tool that is an agent takes unless it has a schema of its own."""


def effective_tool(tool: agent_pb2.ToolSpec) -> agent_pb2.ToolSpec:
    """Returns the tool as the model sees it: a built-in with its description, schema and effect filled in, an agent
    with what it takes."""
    if tool.WhichOneof("kind") == "agent":
        return _agent_tool(tool)
    if tool.WhichOneof("kind") != "builtin" or tool.builtin.name not in BUILTINS:
        return tool
    builtin = BUILTINS[tool.builtin.name]
    effective = agent_pb2.ToolSpec()
    effective.CopyFrom(tool)
    effective.description = tool.description or builtin.description
    if builtin.input_schema is not None:
        effective.input_schema.Clear()
        effective.input_schema.update(dict(builtin.input_schema))
    # Nothing outside changes, so that whatever was lost may be done again.
    effective.effect = agent_pb2.EFFECT_CLASS_READ_ONLY
    return effective


def _agent_tool(tool: agent_pb2.ToolSpec) -> agent_pb2.ToolSpec:
    effective = agent_pb2.ToolSpec()
    effective.CopyFrom(tool)
    effective.description = tool.description or f"Asks the agent {tool.agent.agent}, and waits for its answer."
    if not tool.HasField("input_schema"):
        effective.input_schema.update(dict(AGENT_ARGUMENTS))
    return effective


# Specs live as long as their revision is cached. The spec is kept beside its tools, so that its id cannot be given to
# another one.
_effective: dict[int, tuple[agent_pb2.AgentSpec, dict[str, agent_pb2.ToolSpec]]] = {}


def effective_tools(spec: agent_pb2.AgentSpec) -> Mapping[str, agent_pb2.ToolSpec]:
    """Returns the agent's tools as the model sees them, by name; see `effective_tool`."""
    known = _effective.get(id(spec))
    if known is not None and known[0] is spec:
        return known[1]
    tools = {tool.name: effective_tool(tool) for tool in spec.tools}
    _effective[id(spec)] = (spec, tools)
    if len(_effective) > _SPECS_KEPT:
        del _effective[next(iter(_effective))]
    return tools


def question_of(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Returns the question of an `ask_user` call, and the JSON Schema of its answer or None for a text.

    Args:
        arguments: Fitting the schema of the tool.

    Raises:
        ArgumentsRefused: The answer's schema cannot be used.
    """
    question = str(arguments["question"])
    options, schema = arguments.get("options"), arguments.get("schema")
    if options is not None and schema is not None:
        raise ArgumentsRefused("Give `options` or `schema`, not both. Nobody was asked.")
    if options is not None:
        return question, {"type": "string", "enum": list(options)}
    if not schema:
        return question, None
    if len(canonical_json(schema).encode()) > _MAX_SCHEMA_BYTES:
        raise ArgumentsRefused(f"`schema` has more than {_MAX_SCHEMA_BYTES:,} bytes. Nobody was asked.")
    problems = schema_problems(schema)
    if problems:
        lines = "\n".join(f"- $.schema{problem.path}: {problem.description}" for problem in problems[:8])
        raise ArgumentsRefused(f"`schema` is not a usable JSON Schema (2020-12). Nobody was asked.\n{lines}")
    return question, dict(schema)


def due_time_of(arguments: Mapping[str, Any], now: datetime) -> datetime:
    """Returns when a `sleep_until` call is due, in UTC.

    Args:
        arguments: Fitting the schema of the tool.
        now: The time at which the call begins.

    Raises:
        ArgumentsRefused: No time is given, or two, or one that is no time or too far away.
    """
    time, seconds = arguments.get("time"), arguments.get("seconds")
    if (time is None) == (seconds is None):
        raise ArgumentsRefused("Give either `time` or `seconds`.")
    if seconds is not None:
        return now + timedelta(seconds=float(seconds))
    due = _moment(str(time))
    if due - now > LONGEST_SLEEP:
        raise ArgumentsRefused(f"{time} is more than one year from now; it is {now.isoformat(timespec='seconds')}.")
    return due


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ArgumentsRefused(
            f"$.time: expected RFC 3339 with an offset, such as 2026-03-01T09:00:00Z, got {text[:80]!r}."
        ) from error
