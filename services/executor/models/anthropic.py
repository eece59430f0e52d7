"""Anthropic's Messages API, and servers that are compatible with it, by the official SDK."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models.addresses import is_own_address
from services.executor.models.conversation import CallIds, Role, Turn, arguments_object, schema_of, turns_of
from services.executor.models.protocol import ModelRequest
from services.executor.models.provider import Assembly, ProviderModel

DEFAULT_MAX_OUTPUT_TOKENS: Final = 4096
"""Longest answer of a model for which nothing is said; the protocol needs one."""

_TOKEN_COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicModel(ProviderModel):
    """Streams messages. Thinking is kept with its signature and sent back, as tool use with thinking requires."""

    provider: ClassVar[str] = "anthropic"
    path: ClassVar[str] = "/v1/messages"
    loggers: ClassVar[tuple[str, ...]] = ("anthropic",)

    def import_sdk(self) -> Any:
        """Imports `anthropic`."""
        return importlib.import_module("anthropic")

    def build_client(self, sdk: Any, secret: str, address: str, http: Any) -> Any:
        """Makes the SDK's client."""
        client = sdk.AsyncAnthropic(
            api_key=secret,
            base_url=address,
            max_retries=0,
            timeout=http.timeout,
            http_client=http,
            # The runtime traces its calls itself, and tells no provider its trace ids.
            open_telemetry={"traces": False, "propagation": False},
        )
        # The SDK takes headers from the environment, which is the operator's. Compatible servers know the key by its
        # older header only.
        client._custom_headers = {} if is_own_address(self.provider, address) else {"X-Api-Key": secret}
        return client

    def body(self, request: ModelRequest, address: str) -> dict[str, Any]:
        """Returns the request as a Messages body."""
        spec, parameters = request.spec, request.spec.parameters
        body: dict[str, Any] = {
            "model": spec.name,
            "max_tokens": parameters.max_output_tokens
            if parameters.HasField("max_output_tokens")
            else DEFAULT_MAX_OUTPUT_TOKENS,
            "messages": _messages(turns_of(request.messages)),
            "stream": True,
        }
        if request.instructions.strip():
            body["system"] = request.instructions
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
            body["tool_choice"] = {"type": "auto"}
        if parameters.HasField("temperature"):
            body["temperature"] = parameters.temperature
        if parameters.HasField("top_p"):
            body["top_p"] = parameters.top_p
        if parameters.stop_sequences:
            body["stop_sequences"] = list(parameters.stop_sequences)
        if parameters.HasField("reasoning_effort"):
            body["thinking"] = {"type": "adaptive"}
            body["output_config"] = {"effort": parameters.reasoning_effort}
        return body

    def assembly(self, request: ModelRequest, call_ids: CallIds) -> Assembly:
        """Returns what puts the content blocks together."""
        return _Assembly(call_ids)


def _messages(turns: list[Turn]) -> list[dict[str, Any]]:
    """Returns messages whose roles alternate, each with at least one block."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = "assistant" if turn.role == Role.ROLE_ASSISTANT else "user"
        blocks = _blocks(turn)
        if not blocks:
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"].extend(blocks)
        else:
            messages.append({"role": role, "content": blocks})
    if not messages or messages[0]["role"] == "assistant":
        # The API wants a user to begin.
        messages.insert(0, {"role": "user", "content": [_text("(The conversation begins.)")]})
    return messages


def _blocks(turn: Turn) -> list[dict[str, Any]]:
    if turn.result is not None:
        block: dict[str, Any] = {"type": "tool_result", "tool_use_id": turn.result.call_id}
        if turn.result.content.strip():
            block["content"] = turn.result.content
        if turn.result.is_error:
            block["is_error"] = True
        return [block]
    # Thinking comes first: it is refused anywhere else.
    blocks = [thinking for reasoning in turn.reasoning if (thinking := _thinking(reasoning)) is not None]
    # Blocks without a visible character are refused.
    if turn.text.strip():
        blocks.append(_text(f"[Note of the runtime] {turn.text}" if turn.role == Role.ROLE_RUNTIME else turn.text))
    blocks.extend(
        {"type": "tool_use", "id": call.call_id, "name": call.tool, "input": arguments_object(call.arguments_json)}
        for call in turn.calls
    )
    return blocks


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking(reasoning: content_pb2.Reasoning) -> dict[str, Any] | None:
    """Returns the block as it came, or None for what another provider thought."""
    try:
        opaque = json.loads(reasoning.opaque_json) if reasoning.opaque_json else None
    except ValueError:
        return None
    match opaque:
        case {"type": "thinking", "signature": str(signature)}:
            return {"type": "thinking", "thinking": reasoning.text, "signature": signature}
        case {"type": "redacted_thinking", "data": str(data)}:
            return {"type": "redacted_thinking", "data": data}
    return None


def _tool(tool: agent_pb2.ToolSpec) -> dict[str, Any]:
    definition: dict[str, Any] = {
        "name": tool.name,
        "input_schema": schema_of(tool.input_schema, tool.HasField("input_schema")),
    }
    if tool.description:
        definition["description"] = tool.description
    return definition


@dataclass(slots=True, eq=False)
class _Block:
    kind: str
    start: dict[str, Any]
    pieces: list[str] = field(default_factory=list)
    signature: str = ""
    is_open: bool = True


class _Assembly(Assembly):
    """Puts content blocks together."""

    def __init__(self, call_ids: CallIds) -> None:
        super().__init__(call_ids)
        self._blocks: dict[int, _Block] = {}
        self._counts: dict[str, int] = {}
        self._has_stopped = False

    def absorb(self, event: Any) -> str:
        """Takes one event in; kinds that are not known yet are passed over."""
        match event.get("type"):
            case "message_start":
                message = event["message"]
                self.response_id = message.get("id") or ""
                self.response_model = message.get("model") or ""
                self._count(message.get("usage"))
            case "content_block_start":
                start = event["content_block"]
                block = self._blocks[event["index"]] = _Block(start["type"], start)
                return self._begin(block)
            case "content_block_delta":
                return self._extend(self._blocks[event["index"]], event["delta"])
            case "content_block_stop":
                self._blocks[event["index"]].is_open = False
            case "message_delta":
                self.finish_reason = event["delta"].get("stop_reason") or self.finish_reason
                self._count(event.get("usage"))
            case "message_stop":
                self._has_stopped = True
        return ""

    @property
    def is_complete(self) -> bool:
        """Whether the message has stopped, or nothing but that word is missing."""
        return self._has_stopped or (
            bool(self.finish_reason) and not any(block.is_open for block in self._blocks.values())
        )

    def finish(self) -> None:
        """Completes the message, its blocks in their order."""
        position = 0
        for _, block in sorted(self._blocks.items()):
            joined = "".join(block.pieces)
            match block.kind:
                case "text" if joined:
                    self.message.parts.add(text=joined)
                case "thinking":
                    opaque = json.dumps({"type": "thinking", "signature": block.signature}) if block.signature else ""
                    self.message.parts.add(reasoning=content_pb2.Reasoning(text=joined, opaque_json=opaque))
                case "redacted_thinking":
                    opaque = json.dumps({"type": "redacted_thinking", "data": block.start.get("data") or ""})
                    self.message.parts.add(reasoning=content_pb2.Reasoning(opaque_json=opaque))
                case "tool_use":
                    arguments_json = joined or json.dumps(block.start.get("input") or {}, ensure_ascii=False)
                    self.message.parts.add(
                        tool_call=content_pb2.ToolCall(
                            call_id=self.call_ids.take(block.start.get("id") or "", position),
                            tool=block.start.get("name") or "",
                            arguments_json=arguments_json,
                        )
                    )
                    position += 1
        if self._counts:
            self.usage = self._usage()

    def _begin(self, block: _Block) -> str:
        match block.kind:
            case "text":
                text = block.start.get("text") or ""
                block.pieces.append(text)
                return str(text)
            case "thinking":
                block.pieces.append(block.start.get("thinking") or "")
                block.signature = block.start.get("signature") or ""
        return ""

    def _extend(self, block: _Block, delta: dict[str, Any]) -> str:
        match delta.get("type"):
            case "text_delta":
                block.pieces.append(delta["text"])
                return str(delta["text"])
            case "input_json_delta":
                block.pieces.append(delta["partial_json"])
            case "thinking_delta":
                block.pieces.append(delta["thinking"])
            case "signature_delta":
                block.signature += delta["signature"]
        return ""

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Counts are cumulative, and the last event repeats only some of them.
        for name, count in (usage or {}).items():
            if name in _TOKEN_COUNTS and count is not None:
                self._counts[name] = max(int(count), self._counts.get(name, 0))
        details = (usage or {}).get("output_tokens_details")
        if details:
            self._counts["thinking_tokens"] = int(details.get("thinking_tokens") or 0)

    def _usage(self) -> content_pb2.Usage:
        # Here `input_tokens` is what was neither read from nor written to the cache; ours contains both.
        cache_read = self._counts.get("cache_read_input_tokens", 0)
        cache_write = self._counts.get("cache_creation_input_tokens", 0)
        output = self._counts.get("output_tokens", 0)
        return content_pb2.Usage(
            input_tokens=self._counts.get("input_tokens", 0) + cache_read + cache_write,
            output_tokens=output,
            cache_read_input_tokens=cache_read,
            cache_write_input_tokens=cache_write,
            reasoning_output_tokens=min(self._counts.get("thinking_tokens", 0), output),
        )
