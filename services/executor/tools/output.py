"""What becomes of a call's outcome: one result message for the model, capped, with the whole output kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.stored_messages import blob_ref, make_blob, store_message
from services.executor.tools.schema import (
    INVALID_RESULT,
    ResultRefused,
    canonical_json,
    check_result,
    describe_json_error,
    parse_json,
)
from services.shared.run_ends import told_of_open_call
from services.shared.scrubber import PROCESS

DEFAULT_MAX_OUTPUT_BYTES: Final = 32_768
RESULT_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""Largest result of a tool that is taken at all."""

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
# Together with its envelope such a message always stands inline in its event.
_MAX_FAILURE_BYTES: Final = 6 * 1024


class SettledResult(NamedTuple):
    """The outcome of a call as the journal takes it.

    Attributes:
        message: The one result message.
        blobs: Bodies that `message` and `output` refer to.
        output: The whole output where the message holds a shortened one.
        failure: Set when the result itself is the failure: it is no JSON, or does not fit the output schema.
    """

    message: content_pb2.StoredMessage
    blobs: Sequence[content_pb2.Blob] = ()
    output: content_pb2.BlobRef | None = None
    failure: content_pb2.Failure | None = None


def settle_result(tool: agent_pb2.ToolSpec, call_id: str, result_json: str, *, note: str = "") -> SettledResult:
    """Returns the result message of a call that its tool has answered.

    Args:
        tool: The tool.
        call_id: The model's id of the call.
        result_json: What the tool answered, JSON text.
        note: What the model is told before it.
    """
    try:
        value = parse_result(tool, result_json)
    except ResultRefused as refused:
        return _settle_refused(tool, call_id, refused.failure, result_json, note)
    return settle_value(tool, call_id, value, result_json, note=note)


def settle_value(
    tool: agent_pb2.ToolSpec, call_id: str, value: Any, result_json: str | None = None, *, note: str = ""
) -> SettledResult:
    """Returns the result message of a call whose result is a JSON value already.

    Args:
        tool: The tool.
        call_id: The model's id of the call.
        value: What the tool answered.
        result_json: The same as the tool wrote it, where it wrote a text.
        note: What the model is told before it.
    """
    try:
        check_result(tool, value)
    except ResultRefused as refused:
        said = canonical_json(value) if result_json is None else result_json
        return _settle_refused(tool, call_id, refused.failure, said, note)
    text, media_type = _rendered(value)
    # Order matters: what is cut or stored under its hash first would be out of reach.
    text = PROCESS.exact(text, "journal")
    return _settled(tool, call_id, text, media_type, is_error=False, note=note)


def settle_failure(
    tool: agent_pb2.ToolSpec, call_id: str, failure: content_pb2.Failure, *, note: str = ""
) -> SettledResult:
    """Returns the one result message of a call that failed, was cancelled or is in doubt.

    Args:
        tool: The tool; for one that does not exist, only its name.
        call_id: The model's id of the call.
        failure: Why there is no result.
        note: What the model is told before that.
    """
    text = shorten(PROCESS.exact(_told(failure), "journal"), min(_MAX_FAILURE_BYTES, _cap_of(tool)))
    return _settled(tool, call_id, text, _TEXT, is_error=True, note=note)


def without_secrets(failure: content_pb2.Failure) -> content_pb2.Failure:
    """Returns a failure as the journal may have it: its message may quote what somebody answered."""
    message = PROCESS.exact(failure.message, "journal")
    if message == failure.message:
        return failure
    clean = content_pb2.Failure()
    clean.CopyFrom(failure)
    clean.message = message
    return clean


def parse_result(tool: agent_pb2.ToolSpec, result_json: str) -> Any:
    """Returns a tool's result as a value.

    Raises:
        ResultRefused: It is larger than 8 MiB, or not JSON.
    """
    size = len(result_json.encode(errors="surrogatepass"))
    if size > RESULT_LIMIT_BYTES:
        raise ResultRefused(
            f"The tool {tool.name} has run, but its result has {size:,} bytes; the limit is {RESULT_LIMIT_BYTES:,}"
        )
    try:
        return parse_json(result_json)
    except ValueError as error:
        raise ResultRefused(
            f"The tool {tool.name} was executed, but its result is not valid JSON: {describe_json_error(error)}."
        ) from error


def _settle_refused(
    tool: agent_pb2.ToolSpec, call_id: str, failure: content_pb2.Failure, result_json: str, note: str
) -> SettledResult:
    settled = settle_failure(tool, call_id, failure, note=note)
    body = PROCESS.exact(result_json, "journal").encode(errors="replace")
    blobs, output = list(settled.blobs), None
    # What was refused is evidence of what the tool did; beyond the limit nothing is kept.
    if len(body) <= RESULT_LIMIT_BYTES:
        blob = make_blob(body)
        blobs.append(blob)
        output = blob_ref(blob, _TEXT)
    return SettledResult(settled.message, blobs, output, without_secrets(failure))


def _settled(
    tool: agent_pb2.ToolSpec, call_id: str, text: str, media_type: str, *, is_error: bool, note: str
) -> SettledResult:
    content = shorten(text, _cap_of(tool))
    # Each in its place: a message that is put into another one is copied.
    message = content_pb2.Message(role=content_pb2.ROLE_TOOL)
    result = message.parts.add().tool_result
    result.call_id, result.tool, result.content, result.is_error = call_id, tool.name, note + content, is_error
    stored, blobs = store_message(message)
    output = None
    if content != text:
        whole = make_blob(text.encode())
        blobs.append(whole)
        output = blob_ref(whole, media_type)
    return SettledResult(stored, blobs, output)


def _rendered(value: Any) -> tuple[str, str]:
    # A model reads a text better without quotes and escapes around it.
    if isinstance(value, str):
        return value, _TEXT
    return canonical_json(value), _JSON


def _told(failure: content_pb2.Failure) -> str:
    """Returns what the model is told, which it has to be able to act on."""
    match failure.failure_class:
        case content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS:
            return failure.message
        case content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME:
            return (
                f"The outcome of this call is unknown: {failure.message}\nIt may have taken effect or not. Do not take "
                "either for granted, and do not repeat it without checking."
            )
        case content_pb2.FAILURE_CLASS_CANCELLED:
            return told_of_open_call(failure)
        case _ if failure.reason == INVALID_RESULT:
            return f"{failure.message}\nIt may have taken effect."
        case _:
            return f"The call failed ({failure.reason}): {failure.message}"


def _cap_of(tool: agent_pb2.ToolSpec) -> int:
    return tool.max_output_bytes or DEFAULT_MAX_OUTPUT_BYTES


def shorten(text: str, limit: int) -> str:
    """Returns a text of at most `limit` bytes: its head, a line that says how much is left out, and its tail."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    room = limit - len(_left_out(len(encoded), len(encoded)).encode())
    if room <= 0:
        return encoded[:limit].decode(errors="ignore")
    # The head says what it is, the tail how it ended: the head gets two thirds.
    tail_bytes = room // 3
    head = encoded[: room - tail_bytes].decode(errors="ignore")
    tail = encoded[len(encoded) - tail_bytes :].decode(errors="ignore")
    left_out = len(encoded) - len(head.encode()) - len(tail.encode())
    return f"{head}{_left_out(left_out, len(encoded))}{tail}"


def _left_out(count: int, total: int) -> str:
    return f"\n[… {count:,} of {total:,} bytes are left out here …]\n"
