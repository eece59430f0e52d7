"""Protobuf messages joined from parts that are bytes already: what the library writes, without its copies.

To put a message into another one, the library writes it and reads it again. On the way of a step that was done three
times; here a part is written once, and what is around it is joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import Message

_LENGTH_DELIMITED: Final = 2
_SHORT: Final = 1 << 14


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_VARINTS: Final = tuple(_varint(number) for number in range(_SHORT))


def tag_of(message: type[Message], field: str) -> bytes:
    """Returns what stands before each value of a field of messages."""
    found = message.DESCRIPTOR.fields_by_name[field]
    assert found.message_type is not None, "only messages are put into messages"
    return _varint(found.number << 3 | _LENGTH_DELIMITED)


def number_tag_of(message: type[Message], field: str) -> bytes:
    """Returns what stands before the value of a whole-number field of messages."""
    found = message.DESCRIPTOR.fields_by_name[field]
    assert found.message_type is None, "only numbers are written as such"
    return _varint(found.number << 3)


def whole_number(tag: bytes, value: int) -> bytes:
    """Returns a whole number that is not negative as the value of a field."""
    return tag + (_VARINTS[value] if value < _SHORT else _varint(value))


def embedded(tag: bytes, part: bytes) -> bytes:
    """Returns a serialized message as the value of the field of another one."""
    size = len(part)
    return b"".join((tag, _VARINTS[size] if size < _SHORT else _varint(size), part))


def repeated(tag: bytes, parts: Iterable[bytes]) -> bytes:
    """Returns serialized messages as the values of a repeated field, in their order."""
    pieces: list[bytes] = []
    for part in parts:
        size = len(part)
        pieces += (tag, _VARINTS[size] if size < _SHORT else _varint(size), part)
    return b"".join(pieces)
