"""Named places where a process under test dies as if it had been killed; in production they are one comparison.

The crash campaign arms one by `HOLDFAST_CRASH_POINT=name` or `name:3` (the third time it is reached).
"""

from __future__ import annotations

import os

_armed = ""
_visits_left = 0


def arm(point: str) -> None:
    """Makes the process die at a point. Empty disarms.

    Args:
        point: A name, or a name and how many visits it takes, such as `executor.after_intent:3`.
    """
    global _armed, _visits_left
    _armed, _, visits = point.partition(":")
    _visits_left = int(visits or 1)


def crash_point(name: str) -> None:
    """Dies here without any clean-up, if this point is armed and its visits are used up."""
    global _visits_left
    if name != _armed:
        return
    _visits_left -= 1
    if _visits_left <= 0:
        os._exit(137)
