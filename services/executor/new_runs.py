"""From a client's request to the run that state stores."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, content_pb2
from holdfast.api.executor.v1 import run_service_pb2 as run_service
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import InvalidArgument, Reason
from holdfast.ids import new_uuid7
from services.executor.stored_messages import store_message
from services.shared.interceptors import AUTHORIZATION

MAX_INPUT_BYTES: Final = 1024 * 1024
# Seconds and nanoseconds.
_SHORTEST_TTL: Final = (1, 0)
_LONGEST_TTL: Final = (400 * 86_400, 0)

# Version 00 of https://www.w3.org/TR/trace-context/; ids of zeros only are no ids.
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def input_message(request: run_service.StartRunRequest) -> content_pb2.Message:
    """Returns what a run is asked to do, as a message of the user's.

    Raises:
        InvalidArgument: There is nothing, too much (MESSAGE_TOO_LARGE), or something that is no text of a user's.
    """
    size = request.message.ByteSize() if request.HasField("message") else len(request.text.encode())
    if size > MAX_INPUT_BYTES:
        raise InvalidArgument(
            f"the input has {size} bytes; the limit is {MAX_INPUT_BYTES}",
            reason=Reason.MESSAGE_TOO_LARGE,
            field=request.WhichOneof("input") or "input",
            metadata={"limit_bytes": str(MAX_INPUT_BYTES), "message_bytes": str(size)},
        )
    match request.WhichOneof("input"):
        case "text":
            if not request.text.strip():
                raise InvalidArgument("may not be empty", field="text")
            return content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=request.text)])
        case "message":
            return _checked(request.message)
        case _:
            raise InvalidArgument("expected text or message", field="input")


def _checked(message: content_pb2.Message) -> content_pb2.Message:
    if message.role not in (content_pb2.ROLE_UNSPECIFIED, content_pb2.ROLE_USER):
        raise InvalidArgument("expected ROLE_USER, or nothing", field="message.role")
    for index, part in enumerate(message.parts):
        if part.WhichOneof("kind") != "text":
            raise InvalidArgument("expected a text", field=f"message.parts[{index}]")
    if not any(part.text.strip() for part in message.parts):
        raise InvalidArgument("expected at least one part with a text", field="message.parts")
    return content_pb2.Message(role=content_pb2.ROLE_USER, parts=message.parts)


def ttl_of(request: run_service.StartRunRequest) -> Duration | None:
    """Returns how long a run may take; None when that is not limited.

    Raises:
        InvalidArgument: Less than a second or more than 400 days.
    """
    if not request.HasField("ttl"):
        return None
    length = (request.ttl.seconds, request.ttl.nanos)
    if not (_SHORTEST_TTL <= length <= _LONGEST_TTL and request.ttl.nanos >= 0):
        raise InvalidArgument("expected 1 second to 400 days", field="ttl")
    return request.ttl


def traceparent_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Returns the caller's trace context, or nothing where there is none or one that cannot be read."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            return value
    return ""


def credential_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Returns the credential that the caller of an RPC has shown; it was checked before, by the interceptors."""
    for key, value in metadata or ():
        if key == AUTHORIZATION and isinstance(value, str):
            return value.partition(" ")[2].strip()
    return ""


def new_run(
    *,
    workspace_id: str,
    agent: str,
    revision: str,
    session_id: str,
    user_id: str,
    message: content_pb2.Message,
    reject_when_busy: bool,
    request_id: str,
    request_fingerprint: bytes,
    traceparent: str,
    is_batch: bool = False,
    agent_limit: int = 0,
    ttl: Duration | None = None,
    budget: agent_pb2.Budget | None = None,
) -> journal_pb2.NewRun:
    """Returns the run as state takes it, with ids that sort by time; a repeated request is answered with the first."""
    stored, blobs = store_message(message)
    return journal_pb2.NewRun(
        workspace_id=workspace_id,
        run_id=new_uuid7(),
        session_id=session_id,
        new_session_id="" if session_id else new_uuid7(),
        agent=agent,
        revision=revision,
        user_id=user_id,
        input=stored,
        blobs=blobs,
        reject_when_busy=reject_when_busy,
        request_id=request_id,
        request_fingerprint=request_fingerprint,
        traceparent=traceparent,
        lane=journal_pb2.LANE_BATCH if is_batch else journal_pb2.LANE_INTERACTIVE,
        agent_limit=agent_limit,
        ttl=ttl,
        budget=budget,
    )
