"""Pages of lists: how many rows a caller is given at once, and whether there are more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

MAX_PAGE: Final = 200

T = TypeVar("T")


def page_size(request: Any, maximum: int = MAX_PAGE) -> int:
    """Returns how many rows to answer with: as many as are asked for, within limits."""
    return max(1, min(int(request.page_size), maximum))


def page_of(rows: Sequence[T], request: Any) -> tuple[Sequence[T], bool]:
    """Returns the page of rows that were read with one more than `page_size`, and whether there was one more."""
    size = page_size(request)
    return rows[:size], len(rows) > size
