"""OpenAI and every server that speaks its Chat Completions protocol (vLLM, Ollama, gateways), by the official SDK."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models.addresses import is_own_address
from services.executor.models.conversation import CallIds, Role, Turn, arguments_object, schema_of, turns_of
from services.executor.models.protocol import ModelRequest
from services.executor.models.provider import Assembly, ProviderModel


class OpenAIModel(ProviderModel):
    """Streams Chat Completions.

    What the provider sends as reasoning is kept for people and not sent back: this protocol has no place for it.
    """

    provider: ClassVar[str] = "openai"
    path: ClassVar[str] = "/chat/completions"
    loggers: ClassVar[tuple[str, ...]] = ("openai",)

    def import_sdk(self) -> Any:
        """Imports `openai`."""
        return importlib.import_module("openai")

    def build_client(self, sdk: Any, secret: str, address: str, http: Any) -> Any:
        """Makes the SDK's client."""
        client = sdk.AsyncOpenAI(
            api_key=secret, base_url=address, max_retries=0, timeout=http.timeout, http_client=http
        )
        # The SDK takes these from the environment, which is the operator's and no part of a workspace's connection.
        client.organization = client.project = client.admin_api_key = None
        client._custom_headers = {}
        return client

    def body(self, request: ModelRequest, address: str) -> dict[str, Any]:
        """Returns the request as a Chat Completions body."""
        is_own = is_own_address(self.provider, address)
        spec, parameters = request.spec, request.spec.parameters
        body: dict[str, Any] = {
            "model": spec.name,
            "messages": _messages(request, is_own),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
            # Parallel calls are the default; models that cannot make them refuse the parameter.
            body["tool_choice"] = "auto"
        if parameters.HasField("temperature"):
            body["temperature"] = parameters.temperature
        if parameters.HasField("top_p"):
            body["top_p"] = parameters.top_p
        if parameters.HasField("max_output_tokens"):
            # OpenAI's newer models refuse the old name, other servers do not know the new one.
            body["max_completion_tokens" if is_own else "max_tokens"] = parameters.max_output_tokens
        if parameters.stop_sequences:
            body["stop"] = list(parameters.stop_sequences)
        if parameters.HasField("seed"):
            body["seed"] = parameters.seed
        if parameters.HasField("reasoning_effort"):
            body["reasoning_effort"] = parameters.reasoning_effort
        return body

    def assembly(self, request: ModelRequest, call_ids: CallIds) -> Assembly:
        """Returns what puts the chunks together."""
        return _Assembly(call_ids)


def _messages(request: ModelRequest, is_own: bool) -> list[dict[str, Any]]:
    # Compatible servers know only the older name.
    system = "developer" if is_own else "system"
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": system, "content": request.instructions})
    messages.extend(_message(turn, system, is_own) for turn in turns_of(request.messages))
    return messages


def _message(turn: Turn, system: str, is_own: bool) -> dict[str, Any]:
    if turn.result is not None:
        return {"role": "tool", "tool_call_id": turn.result.call_id, "content": turn.result.content}
    if turn.role == Role.ROLE_RUNTIME:
        return {"role": system, "content": turn.text}
    if turn.role != Role.ROLE_ASSISTANT:
        return {"role": "user", "content": turn.text}
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or (None if turn.calls else "")}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.tool, "arguments": _arguments(call.arguments_json, is_own)},
            }
            for call in turn.calls
        ]
    return message


def _arguments(arguments_json: str, is_own: bool) -> str:
    # Chat templates of compatible servers parse the arguments, and fail on what a model once got wrong.
    return (arguments_json or "{}") if is_own else json.dumps(arguments_object(arguments_json), ensure_ascii=False)


def _tool(tool: agent_pb2.ToolSpec) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "parameters": schema_of(tool.input_schema, tool.HasField("input_schema")),
    }
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


@dataclass(slots=True, eq=False)
class _Call:
    index: int | None
    id: str
    name: str = ""
    arguments: str = ""


class _Assembly(Assembly):
    """Puts the chunks of one choice together; tolerates what compatible servers leave out."""

    def __init__(self, call_ids: CallIds) -> None:
        super().__init__(call_ids)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._usage: dict[str, Any] | None = None

    def absorb(self, event: Any) -> str:
        """Takes one chunk in."""
        self.response_id = self.response_id or event.get("id") or ""
        self.response_model = self.response_model or event.get("model") or ""
        # The last one counts: some servers send running totals with every chunk.
        self._usage = event.get("usage") or self._usage
        added = ""
        # The chunk with the usage has no choices.
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            added += _plain_text(delta.get("content")) + _plain_text(delta.get("refusal"))
            self._reasoning.append(_plain_text(delta.get("reasoning_content") or delta.get("reasoning")))
            for piece in delta.get("tool_calls") or ():
                self._absorb_call(piece)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self._text.append(added)
        return added

    @property
    def is_complete(self) -> bool:
        """Whether a finish reason was seen; `[DONE]` is not sent by all."""
        return bool(self.finish_reason)

    def finish(self) -> None:
        """Completes the message: reasoning, text, calls."""
        reasoning, text = "".join(self._reasoning), "".join(self._text)
        if reasoning:
            self.message.parts.add().reasoning.text = reasoning
        if text:
            self.message.parts.add(text=text)
        for position, call in enumerate(self._calls):
            self.message.parts.add(
                tool_call=content_pb2.ToolCall(
                    call_id=self.call_ids.take(call.id, position), tool=call.name, arguments_json=call.arguments or "{}"
                )
            )
        if self._usage:
            self.usage = _usage(self._usage)

    def _absorb_call(self, piece: dict[str, Any]) -> None:
        function = piece.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        if not isinstance(arguments, str):
            # Some servers send the object itself.
            arguments = json.dumps(arguments, ensure_ascii=False)
        call = self._call_of(piece.get("index"), piece.get("id") or "", name)
        call.name = call.name or name
        call.arguments += arguments

    def _call_of(self, index: int | None, id: str, name: str) -> _Call:
        for call in reversed(self._calls):
            same_index = index is None or call.index == index
            # Servers that number every call 0 still tell them apart by id, and each of their pieces is a whole call.
            is_another = bool(id and call.id and id != call.id) or bool(name and call.name and not id and index is None)
            if same_index and not is_another:
                call.id = call.id or id
                return call
            if index is None or same_index:
                break
        self._calls.append(_Call(index, id))
        return self._calls[-1]


def _plain_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_plain_text(part.get("text")) for part in content)
    return content if isinstance(content, str) else ""


def _usage(usage: dict[str, Any]) -> content_pb2.Usage:
    # This protocol's totals contain their parts already. Servers that count the parts beside them are put right.
    input_details = usage.get("prompt_tokens_details") or {}
    output_details = usage.get("completion_tokens_details") or {}
    cache_read = int(input_details.get("cached_tokens") or 0)
    cache_write = int(input_details.get("cache_write_tokens") or 0)
    reasoning = int(output_details.get("reasoning_tokens") or 0)
    return content_pb2.Usage(
        input_tokens=max(int(usage.get("prompt_tokens") or 0), cache_read + cache_write),
        output_tokens=max(int(usage.get("completion_tokens") or 0), reasoning),
        cache_read_input_tokens=cache_read,
        cache_write_input_tokens=cache_write,
        reasoning_output_tokens=reasoning,
    )
