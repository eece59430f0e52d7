"""A stored conversation in the shape that every provider insists on: each call is followed by its result, ids differ.

Providers refuse the whole request otherwise, and a session that was stored like that could never go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value

from holdfast.api.common.v1 import content_pb2

_NO_RESULT: Final = "No result of this call was recorded."
_FOREIGN_ID_CHARACTER: Final = re.compile(r"[^a-zA-Z0-9_-]")

Role = content_pb2.Role


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, with ids of calls that are unique in the conversation and the same in call and result."""

    role: content_pb2.Role
    text: str
    reasoning: tuple[content_pb2.Reasoning, ...] = ()
    calls: tuple[content_pb2.ToolCall, ...] = ()
    result: content_pb2.ToolResult | None = None


def turns_of(messages: Sequence[content_pb2.Message]) -> list[Turn]:
    """Returns the messages with results moved directly behind their calls, in the order of the calls.

    A call without a result gets one that says so; a result without a call is left out. What stands between a call and
    its result (a note of the runtime, say) comes after the results.
    """
    turns: list[Turn] = []
    used: set[str] = set()
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        if message.role == Role.ROLE_TOOL:
            continue
        text = text_of(message)
        if message.role != Role.ROLE_ASSISTANT:
            turns.append(Turn(message.role or Role.ROLE_USER, text))
            continue
        calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
        reasoning = tuple(part.reasoning for part in message.parts if part.HasField("reasoning"))
        # Ids are unique within a run, but a session has many runs, and models may have changed between them.
        ids = [_unused(_FOREIGN_ID_CHARACTER.sub("_", call.call_id) or "call", used) for call in calls]
        sent = tuple(
            content_pb2.ToolCall(call_id=new_id, tool=call.tool, arguments_json=call.arguments_json)
            for call, new_id in zip(calls, ids, strict=True)
        )
        turns.append(Turn(Role.ROLE_ASSISTANT, text, reasoning, sent))
        # Everything up to the model's next message belongs to these calls.
        results: dict[str, content_pb2.ToolResult] = {}
        for follower in messages[index:]:
            if follower.role == Role.ROLE_ASSISTANT:
                break
            if follower.role == Role.ROLE_TOOL:
                for part in follower.parts:
                    results.setdefault(part.tool_result.call_id, part.tool_result)
        for call, new_id in zip(calls, ids, strict=True):
            result = results.get(call.call_id)
            content = _NO_RESULT if result is None else result.content
            answered = content_pb2.ToolResult(
                call_id=new_id, tool=call.tool, content=content, is_error=result is None or result.is_error
            )
            turns.append(Turn(Role.ROLE_TOOL, content, result=answered))
    return turns


def text_of(message: content_pb2.Message) -> str:
    """Returns the message's text parts, one after the other on lines of their own."""
    return "\n".join(part.text for part in message.parts if part.HasField("text"))


class CallIds:
    """Gives the calls of one answer ids that no call of the conversation has.

    Args:
        messages: The conversation so far.
        model_steps_before: Distinguishes ids that are made here from those of other steps of the run.
    """

    def __init__(self, messages: Iterable[content_pb2.Message], model_steps_before: int) -> None:
        self._used = {
            part.tool_call.call_id for message in messages for part in message.parts if part.HasField("tool_call")
        }
        self._turn = model_steps_before

    def take(self, proposed: str, position: int) -> str:
        """Returns the provider's id where it can be used, and one that is made here where not."""
        return _unused(proposed or f"call_{self._turn}_{position}", self._used)


def _unused(wanted: str, used: set[str]) -> str:
    candidate, count = wanted, 1
    while candidate in used:
        count += 1
        candidate = f"{wanted}_{count}"
    used.add(candidate)
    return candidate


def arguments_object(arguments_json: str) -> dict[str, Any]:
    """Returns a call's arguments as an object, for providers that take no other form.

    What is not the JSON of an object is kept under one key, so that the model sees what it wrote.
    """
    try:
        arguments = json.loads(arguments_json) if arguments_json else {}
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"invalid_json": arguments_json}


def json_of_struct(struct: Struct) -> dict[str, Any]:
    """Returns a Struct as Python values; whole numbers become integers, as whoever wrote them meant.

    Keys are sorted: a protobuf map has an order of its own in every process, and what is sent or scripted must not
    (providers' prompt caches compare the text).
    """
    return {key: _json_of_value(value) for key, value in sorted(struct.fields.items())}


def _json_of_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return json_of_struct(value.struct_value)
        case "list_value":
            return [_json_of_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            # Beyond 2^53 a double no longer names one integer.
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def schema_of(input_schema: Struct, is_set: bool) -> dict[str, Any]:
    """Returns a tool's input schema as both providers want it: an object schema with its properties named."""
    schema = json_of_struct(input_schema) if is_set else {}
    schema.setdefault("type", "object")
    schema.setdefault("properties", {})
    return schema
