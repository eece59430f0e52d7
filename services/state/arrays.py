"""PostgreSQL arrays as text: made here, as the driver takes several times as long for each element."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any


def array(values: Iterable[str | int | bool | bytes | datetime | None]) -> str:
    """An array of ids, numbers, bytes, truth values or times."""
    return f"{{{','.join([_ELEMENTS[type(value)](value) for value in values])}}}"


def array_of_numbers(values: Iterable[int]) -> str:
    """An array of whole numbers."""
    return f"{{{','.join(map(str, values))}}}"


def array_of_text(values: Iterable[str]) -> str:
    """An array of any texts."""
    return "{" + ",".join(['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]) + "}"


# No element needs quotes but those that get them here: ids are UUIDs, and were checked to be.
_ELEMENTS: dict[type[Any], Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "t" if value else "f",
    bytes: lambda value: f'"\\\\x{value.hex()}"',
    datetime: lambda value: f'"{value.isoformat()}"',
    type(None): lambda value: "NULL",
}
