"""Tells readers that wait for a run when this process has stored more of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Progress:
    """A hint only: another replica may be the one that stores, so that readers look for themselves now and then."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def advanced(self, run_ids: Iterable[str]) -> None:
        """Wakes the readers of these runs."""
        if self._waiting:
            for run_id in run_ids:
                for event in self._waiting.get(run_id, ()):
                    event.set()

    @contextmanager
    def watch(self, run_id: str) -> Iterator[asyncio.Event]:
        """Gives an event that is set whenever more of the run is stored; the reader clears it before it looks."""
        changed = asyncio.Event()
        watchers = self._waiting.setdefault(run_id, set())
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)
            if not watchers:
                self._waiting.pop(run_id, None)
