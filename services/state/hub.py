"""Wakes, inside this process, whoever waits for something that was just committed.

Only a hint: every waiter also polls, so that what another replica committed is found too. Deltas of models pass
through here and are kept nowhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.api.common.v1 import run_pb2
from services.state.journal import Outside

# What a slow watcher has not taken yet. What falls out is lost if it is a piece of an answer in the making; an event is
# missed by its number and read from the journal.
MAX_PENDING = 1_024


class Watcher:
    """One reader of one run.

    Attributes:
        changed: Set when there is something new, here or in the journal.
        news: Events and pieces of answers as they came, for a reader who is up to date.
        must_read: Whether the journal may hold what `news` does not.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.news: deque[run_pb2.Event | run_pb2.Delta] = deque(maxlen=MAX_PENDING)
        self.must_read = True


class Hub:
    """Everybody who waits in this process."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}
        self._ready = asyncio.Event()
        self._feed = asyncio.Event()
        self._nudges: dict[str, Callable[[str], None]] = {}
        self._calls: set[Callable[[str, str], None]] = set()
        self._cancelled_calls: set[Callable[[list[str]], None]] = set()

    @contextmanager
    def watching(self, run_id: str) -> Iterator[Watcher]:
        """A watcher of a run, from now on."""
        watcher = Watcher()
        self._watchers.setdefault(run_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[run_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[run_id]

    def is_watched(self, run_id: str) -> bool:
        """Whether anybody here watches the run."""
        return run_id in self._watchers

    def run_changed(self, run_id: str) -> None:
        """An event of the run was committed; those who watch read it from the journal."""
        for watcher in self._watchers.get(run_id, ()):
            watcher.must_read = True
            watcher.changed.set()

    def committed(self, event: run_pb2.Event) -> None:
        """Hands a committed event to those who watch its run, so that they need not read it."""
        for watcher in self._watchers.get(event.run_id, ()):
            watcher.news.append(event)
            watcher.changed.set()

    def delta(self, delta: run_pb2.Delta) -> None:
        """Passes a piece of an answer to those who watch its run."""
        for watcher in self._watchers.get(delta.run_id, ()):
            watcher.news.append(delta)
            watcher.changed.set()

    def runs_ready(self) -> None:
        """A run became ready."""
        self._ready.set()

    async def wait_for_ready(self, timeout: float) -> None:
        """Returns when a run became ready, or after the time."""
        await _wait(self._ready, timeout)

    def feed_changed(self) -> None:
        """Something was committed."""
        self._feed.set()
        self._feed = asyncio.Event()

    def next_feed_change(self) -> asyncio.Event:
        """Set by the next commit. Taken before the journal is read, so that no commit in between is missed."""
        return self._feed

    async def wait_for_feed(self, change: asyncio.Event, timeout: float) -> None:
        """Returns when the commit has come that `change` stands for, or after the time. For many waiters."""
        try:
            async with asyncio.timeout(timeout):
                await change.wait()
        except TimeoutError:
            return

    @contextmanager
    def executor(
        self,
        executor_id: str,
        nudge: Callable[[str], None],
        calls_queued: Callable[[str, str], None],
        calls_cancelled: Callable[[list[str]], None],
    ) -> Iterator[None]:
        """An executor whose stream ends here."""
        self._nudges[executor_id] = nudge
        self._calls.add(calls_queued)
        self._cancelled_calls.add(calls_cancelled)
        try:
            yield
        finally:
            if self._nudges.get(executor_id) is nudge:
                del self._nudges[executor_id]
            self._calls.discard(calls_queued)
            self._cancelled_calls.discard(calls_cancelled)

    def nudge(self, executor_id: str | None, run_id: str) -> None:
        """Tells the executor that drives a run to read on."""
        if executor_id is not None and executor_id in self._nudges:
            self._nudges[executor_id](run_id)

    def outside_event(self, run_id: str, outside: Outside) -> None:
        """Somebody outside wrote an event: tells whoever drives the run, or that it is ready."""
        self.run_changed(run_id)
        self.nudge(outside.holder, run_id)
        if outside.became_ready:
            self.runs_ready()
        self.feed_changed()

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        """Workers' calls became available."""
        for tell in self._calls:
            tell(workspace_id, tool)

    def calls_cancelled(self, leases: list[str]) -> None:
        """Workers should stop these calls."""
        for tell in self._cancelled_calls:
            tell(leases)


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
