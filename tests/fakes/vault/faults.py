"""What goes wrong, at which call: planned by a test, used up as it happens."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from enum import Enum

from tests.fakes.vault.wire import Request


class Point(Enum):
    """Where in a call the fault is."""

    BEFORE = "before"
    """Nothing was done."""
    AFTER = "after"
    """It was done, and nobody is told."""


@dataclass(slots=True)
class Fault:
    """A fault of the next matching calls."""

    path: str
    """A regular expression that the whole path has to match."""
    method: str = ""
    point: Point = Point.BEFORE
    status: int = 0
    """The status of the answer; 0 drops the connection."""
    error: str = ""
    location: str = ""
    """Of a redirect."""
    times: int = 1
    hold: threading.Event | None = None
    """Waited for before anything else: a slow call, that ends when the test says."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when a call is at the fault."""

    def matches(self, request: Request) -> bool:
        """Tells whether the call is meant."""
        return (
            self.times > 0
            and (not self.method or self.method == request.method)
            and re.fullmatch(self.path, request.path) is not None
        )


class Faults:
    """The plan."""

    def __init__(self) -> None:
        self._plan: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Plans a fault."""
        with self._lock:
            self._plan.append(fault)
        return fault

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._plan.clear()

    def take(self, request: Request) -> Fault | None:
        """Returns the fault of this call and counts it."""
        with self._lock:
            for fault in self._plan:
                if fault.matches(request):
                    fault.times -= 1
                    fault.reached.set()
                    return fault
        return None
