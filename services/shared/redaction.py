"""Messages as text without the fields that carry secrets: protobuf's own text of a message shows those too."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_REDACTED: Final = "[redacted]"
_MAX_CHARACTERS: Final = 2_000


def redacted(message: Message) -> str:
    """Returns a message on one line, with `[redacted]` for every field that is marked `debug_redact`."""
    text = f"{message.DESCRIPTOR.name}({_fields(message)})"
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


@lru_cache(maxsize=1_024)
def secret_fields(descriptor: Descriptor) -> frozenset[str]:
    """Returns the names of a message's fields that carry secrets."""
    return frozenset(field.name for field in descriptor.fields if field.GetOptions().debug_redact)


def _fields(message: Message) -> str:
    hidden = secret_fields(message.DESCRIPTOR)
    return ", ".join(
        f"{field.name}={_REDACTED if field.name in hidden else _value(field, value)}"
        for field, value in message.ListFields()
    )


def _value(field: FieldDescriptor, value: Any) -> str:
    if field.message_type is None:
        return repr(list(value)) if isinstance(value, list) or hasattr(value, "append") else repr(value)
    if field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return "{" + ", ".join(f"{name!r}: {_value(entry, value[name])}" for name in value) + "}"
    if isinstance(value, Message):
        return f"({_fields(value)})"
    return "[" + ", ".join(f"({_fields(entry)})" for entry in value) + "]"
