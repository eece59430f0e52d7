"""The scripted model: plays the turns of the agent's own definition, the same ones in every run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models.conversation import json_of_struct
from services.executor.models.protocol import Credential, ModelAnswer, ModelRequest
from services.shared.clock import Clock

_SCRIPTS_KEPT: Final = 1024
_PLACEHOLDER: Final = re.compile(r"\{\{(input|result|result\.([a-zA-Z_][a-zA-Z0-9_-]{0,63}))\}\}")
# A word with the space around it: joined, the pieces are the text again.
_WORD: Final = re.compile(r"^\s+|\S+\s*")


@dataclass(frozen=True, slots=True)
class _Turn:
    text: str
    has_placeholders: bool
    calls: tuple[tuple[str, str], ...]
    """Tool and arguments as JSON text."""
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class _Script:
    turns: tuple[_Turn, ...]
    is_looped: bool
    name: str

    def index_of(self, number: int) -> int:
        """Which turn is the model's answer number `number`, from 0."""
        return number % len(self.turns) if self.is_looped and self.turns else number


class ScriptedModel:
    """Plays `ModelSpec.script`. It waits only where the script says so.

    Usage counts words: the input is what came since the model's last message, the output its text and arguments.

    Args:
        clock: Where the script's delays pass.
    """

    needs_credential = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Specs live as long as their revision is cached, and serializing one at every step costs more than the step.
        # The spec is kept beside its script, so that its id can't be given to another one.
        self._by_identity: dict[int, tuple[agent_pb2.ModelSpec, _Script]] = {}

    async def answer(
        self, request: ModelRequest, credential: Credential | None, on_text: Callable[[str], None]
    ) -> ModelAnswer:
        """Plays the turn that belongs to the request; see `Model.answer`. Never fails."""
        delay = self.delay_seconds(request.spec, request.model_steps_before)
        if delay:
            await self._clock.sleep(delay)
        return self.play(request, on_text)

    def delay_seconds(self, spec: agent_pb2.ModelSpec, model_steps_before: int) -> float:
        """How long the turn takes that comes next."""
        script = self._script(spec)
        index = script.index_of(model_steps_before)
        return script.turns[index].delay_seconds if index < len(script.turns) else 0.0

    def play(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelAnswer:
        """Returns the answer without its delay."""
        script = self._script(request.spec)
        number = request.model_steps_before
        index = script.index_of(number)
        message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
        output_words = 0
        calls: tuple[tuple[str, str], ...] = ()
        if index < len(script.turns):
            turn = script.turns[index]
            calls = turn.calls
            text = _filled(turn.text, request) if turn.has_placeholders else turn.text
            if text:
                for word in _words(text):
                    on_text(word)
                message.parts.add(text=text)
                output_words += len(text.split())
            for position, (tool, arguments_json) in enumerate(calls):
                call = message.parts.add().tool_call
                call.call_id = f"call_{number}_{position}"
                call.tool = tool
                call.arguments_json = arguments_json
                output_words += len(arguments_json.split())
        return ModelAnswer(
            message=message,
            usage=content_pb2.Usage(input_tokens=_new_words(request), output_tokens=output_words),
            finish_reason="tool_calls" if calls else "stop",
            response_id=f"scripted_{number}",
            response_model=script.name,
        )

    async def close(self) -> None:
        """Forgets the scripts."""
        self._by_identity.clear()

    def _script(self, spec: agent_pb2.ModelSpec) -> _Script:
        known = self._by_identity.get(id(spec))
        if known is not None and known[0] is spec:
            return known[1]
        script = _compiled(spec)
        self._by_identity[id(spec)] = (spec, script)
        if len(self._by_identity) > _SCRIPTS_KEPT:
            del self._by_identity[next(iter(self._by_identity))]
        return script


def _compiled(spec: agent_pb2.ModelSpec) -> _Script:
    return _Script(
        turns=tuple(
            _Turn(
                text=turn.text,
                has_placeholders=_PLACEHOLDER.search(turn.text) is not None,
                calls=tuple(
                    (call.tool, json.dumps(json_of_struct(call.arguments), ensure_ascii=False))
                    for call in turn.tool_calls
                ),
                delay_seconds=turn.delay.ToNanoseconds() / 1e9 if turn.HasField("delay") else 0.0,
            )
            for turn in spec.script.turns
        ),
        is_looped=spec.script.loop,
        name=spec.name or "scripted",
    )


def _filled(text: str, request: ModelRequest) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] == "input":
            return request.input_text
        return _last_result(request, match[2])

    return _PLACEHOLDER.sub(value, text)


def _last_result(request: ModelRequest, tool: str | None) -> str:
    for message in reversed(request.messages):
        if message.role == content_pb2.ROLE_TOOL:
            for part in reversed(message.parts):
                if part.HasField("tool_result") and tool in (None, part.tool_result.tool):
                    return part.tool_result.content
    return ""


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in _WORD.finditer(text))


def _new_words(request: ModelRequest) -> int:
    words = 0
    for message in reversed(request.messages):
        if message.role == content_pb2.ROLE_ASSISTANT:
            break
        for part in message.parts:
            words += len((part.tool_result.content if part.HasField("tool_result") else part.text).split())
    return words
