"""Short ways to say in a test what is sent to a model and what came back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models import Credential, Model, ModelAnswer, ModelFailed, ModelRequest

CANARY = "sk-canary-Zq7/+Wd2=Xk4mR9pT1vB"
"""A key that must turn up nowhere. Its characters look different in URLs and in base64."""


def user(text: str) -> content_pb2.Message:
    return content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=text)])


def note(text: str) -> content_pb2.Message:
    return content_pb2.Message(role=content_pb2.ROLE_RUNTIME, parts=[content_pb2.Part(text=text)])


def assistant(text: str = "", *calls: content_pb2.ToolCall) -> content_pb2.Message:
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
    if text:
        message.parts.add(text=text)
    for call in calls:
        message.parts.add(tool_call=call)
    return message


def call(call_id: str, tool: str, arguments_json: str = "{}") -> content_pb2.ToolCall:
    return content_pb2.ToolCall(call_id=call_id, tool=tool, arguments_json=arguments_json)


def result(call_id: str, tool: str, content: str, *, is_error: bool = False) -> content_pb2.Message:
    answered = content_pb2.ToolResult(call_id=call_id, tool=tool, content=content, is_error=is_error)
    return content_pb2.Message(role=content_pb2.ROLE_TOOL, parts=[content_pb2.Part(tool_result=answered)])


def tool(name: str, description: str = "", schema: dict[str, Any] | None = None) -> agent_pb2.ToolSpec:
    spec = agent_pb2.ToolSpec(name=name, description=description)
    if schema is not None:
        spec.input_schema.update(schema)
    return spec


WEATHER = tool(
    "get_weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}},
)


def request(
    *messages: content_pb2.Message,
    spec: agent_pb2.ModelSpec | None = None,
    instructions: str = "",
    tools: Sequence[agent_pb2.ToolSpec] = (),
    model_steps_before: int = 0,
    input_text: str = "",
) -> ModelRequest:
    return ModelRequest(
        spec=agent_pb2.ModelSpec(name="some-model") if spec is None else spec,
        instructions=instructions,
        messages=messages or [user("hello")],
        tools=tools,
        model_steps_before=model_steps_before,
        input_text=input_text,
    )


def credential(base_url: str, secret: str = CANARY, *, version: int = 1) -> Credential:
    return Credential(secret=secret, base_url=base_url, connection_id="connection-1", version=version)


def calls_of(answer: ModelAnswer) -> list[tuple[str, str, str]]:
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    return [(call.call_id, call.tool, call.arguments_json) for call in calls]


def text_of(answer: ModelAnswer) -> str:
    return "".join(part.text for part in answer.message.parts if part.HasField("text"))


@dataclass
class Heard:
    """What `on_text` was called with."""

    pieces: list[str] = field(default_factory=list)

    def __call__(self, piece: str) -> None:
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


async def fail(
    model: Model, request: ModelRequest, credential: Credential | None, on_text: Callable[[str], None] | None = None
) -> content_pb2.Failure:
    """Makes a call that must fail, and returns the failure after looking for the canary in all that it left."""
    with pytest.raises(ModelFailed) as caught:
        await model.answer(request, credential, on_text or Heard())
    error = caught.value
    assert error.__cause__ is None
    # An SDK's exception holds the request, and with it the key.
    assert error.__context__ is None
    for shown in (str(error), repr(error), repr(error.__dict__), repr(credential)):
        assert CANARY not in shown
    return error.failure
