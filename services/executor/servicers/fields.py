"""Checks of single request fields that the public servicers share."""

from __future__ import annotations

import hashlib
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from holdfast.errors import InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.executor.tools.schema import canonical_json

MAX_USER_ID_CHARACTERS: Final = 256
MAX_REASON_CHARACTERS: Final = 1_000
_MAX_REQUEST_ID_CHARACTERS: Final = 64
_MAX_NAME_CHARACTERS: Final = 256


def uuid_field(field: str, value: str, not_found: Reason) -> str:
    """Returns the id of something that was made here.

    Raises:
        InvalidArgument: It is empty.
        NotFound: It has not the form of such an id, so that nothing can have it.
    """
    if not value:
        raise InvalidArgument("is required", field=field)
    if not is_uuid(value):
        raise NotFound(f"there is no such {field.removesuffix('_id')}", reason=not_found)
    return value


def optional_uuid_field(field: str, value: str, not_found: Reason) -> str:
    """Returns an id that may be left out; see `uuid_field`."""
    return uuid_field(field, value, not_found) if value else ""


def agent_field(value: str) -> str:
    """Returns the name of an agent, which may not exist.

    Raises:
        InvalidArgument: It is empty, or no name could be like that.
    """
    if not value:
        raise InvalidArgument("is required", field="agent")
    return plain_field("agent", value)


def plain_field(field: str, value: str, limit: int = _MAX_NAME_CHARACTERS) -> str:
    """Returns a short text on one line, which may be empty.

    Raises:
        InvalidArgument: It is too long, or has characters that cannot be seen.
    """
    if len(value) > limit or not value.isprintable():
        raise InvalidArgument(f"expected at most {limit} printable characters", field=field)
    return value


def comment_field(field: str, value: str) -> str:
    """Returns a text for people.

    Raises:
        InvalidArgument: It is too long, or has a NUL, which no database keeps.
    """
    if len(value) > MAX_REASON_CHARACTERS or "\0" in value:
        raise InvalidArgument(f"expected a text of at most {MAX_REASON_CHARACTERS} characters", field=field)
    return value


def user_field(value: str) -> str:
    """Returns the caller's id of a user."""
    return plain_field("user_id", value, MAX_USER_ID_CHARACTERS)


def request_id_field(value: str) -> str:
    """Returns a request id, which may be left out."""
    return plain_field("request_id", value, _MAX_REQUEST_ID_CHARACTERS)


def fingerprint(request: Message, *without: str) -> bytes:
    """Returns the hash by which a repeated request is told from another one that has its id.

    Args:
        request: The request, with a `request_id`.
        without: Further fields that say nothing about what is asked for.
    """
    plain = MessageToDict(request, preserving_proto_field_name=True)
    for field in ("request_id", *without):
        plain.pop(field, None)
    return hashlib.sha256(f"{request.DESCRIPTOR.full_name}\0{canonical_json(plain)}".encode()).digest()
