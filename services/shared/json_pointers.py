"""Single values of a JSON document, by pointer and as text."""

from __future__ import annotations

from typing import Any


def at_pointer(document: Any, pointer: str) -> Any:
    """Returns what a JSON pointer (RFC 6901) leads to; None when there is nothing."""
    found = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and key.isascii() and key.isdigit() and len(key) < 7 and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def as_text(value: Any) -> str | None:
    """Returns a scalar of JSON as text, booleans as JSON writes them; None for everything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and abs(value) < 10**30 else None
