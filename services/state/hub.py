"""Wakes, inside this process, whoever waits for something that was just committed.

Only a hint: every waiter also polls, so that what another replica committed is found too. Deltas of models pass
through here and are kept nowhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, Protocol

from holdfast.api.common.v1 import run_pb2
from services.state.journal import Outside

# What a slow watcher has not taken yet. What falls out is lost if it is a piece of an answer in the making; an event is
# missed by its number and read from the journal.
MAX_PENDING = 1_024
MAX_YOUNG = 10_000


class Ended(NamedTuple):
    """A run that has ended, with its output."""

    workspace_id: str
    run: run_pb2.Run


Look = Callable[[Ended | None], None]


class Watcher:
    """One reader of one run.

    Attributes:
        changed: Set when there is something new, here or in the journal.
        news: Events and pieces of answers as they came, for a reader who is up to date.
        must_read: Whether the journal may hold what `news` does not.
        known_seq: The newest event that was read, or is in `news`.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.news: deque[run_pb2.Event | run_pb2.Delta] = deque(maxlen=MAX_PENDING)
        self.must_read = True
        self.known_seq = 0

    def add(self, news: run_pb2.Event | run_pb2.Delta) -> None:
        """Hands over what just happened."""
        if len(self.news) == MAX_PENDING and isinstance(self.news[0], run_pb2.Event):
            self.must_read = True
        self.news.append(news)
        self.changed.set()


class ExecutorStream(Protocol):
    """The stream of an executor that is connected here. All of these only take note."""

    def runs_ready(self) -> None:
        """There may be something to claim."""

    def nudge(self, run_id: str) -> None:
        """A run that the executor drives got an event from outside."""

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        """Workers' calls became available."""

    def calls_cancelled(self, leases: list[str]) -> None:
        """Workers should stop these calls."""

    def wake(self) -> None:
        """Look around: the server drains."""


class Hub:
    """Everybody who waits in this process."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}
        self._feed = asyncio.Event()
        self._streams: dict[str, ExecutorStream] = {}
        self._awaited: dict[str, set[Look]] = {}
        # Runs that were created here and have not been heard of since, oldest first.
        self._young: dict[str, None] = {}
        # How often runs became ready, as far as is known here.
        self.ready_hints = 1
        # Set by what was committed here and other replicas may want to know; its reader clears it.
        self.ready_here = asyncio.Event()
        # Set when a run was stored here that wakes by itself, the first at `next_wake`; the reader clears both.
        self.wake_set = asyncio.Event()
        self.next_wake: datetime | None = None

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

    def created(self, run_id: str) -> None:
        """A run was created here, and is not over yet."""
        self._young[run_id] = None
        if len(self._young) > MAX_YOUNG:
            del self._young[next(iter(self._young))]

    def is_young(self, run_id: str) -> bool:
        """Whether the run was just created here and is known not to have ended."""
        return run_id in self._young

    def await_end(self, run_id: str, look: Look) -> None:
        """Calls `look` whenever the run may have ended, until it is taken back; with the run where that is known."""
        self._awaited.setdefault(run_id, set()).add(look)

    def forget_end(self, run_id: str, look: Look) -> None:
        """Takes back what `await_end` began."""
        looks = self._awaited.get(run_id, set())
        looks.discard(look)
        if not looks:
            self._awaited.pop(run_id, None)

    def is_end_awaited(self, run_id: str) -> bool:
        """Whether anybody here waits for the end of the run."""
        return run_id in self._awaited

    def may_have_ended(self, run_id: str, ended: Ended | None = None) -> None:
        """The run has ended, or there is a reason to look whether it has."""
        self._young.pop(run_id, None)
        for look in tuple(self._awaited.get(run_id, ())):
            look(ended)

    def run_changed(self, run_id: str) -> None:
        """An event of the run was committed; those who watch read it from the journal."""
        self.may_have_ended(run_id)
        for watcher in self._watchers.get(run_id, ()):
            watcher.must_read = True
            watcher.changed.set()

    @property
    def watched_runs(self) -> list[str]:
        """The runs that somebody here watches."""
        return list(self._watchers)

    @property
    def awaited_runs(self) -> list[str]:
        """The runs whose end somebody here waits for."""
        return list(self._awaited)

    def journal_reaches(self, run_id: str, seq: int) -> None:
        """The journal of a run has been seen to reach `seq`, whoever wrote it."""
        for watcher in self._watchers.get(run_id, ()):
            if watcher.known_seq < seq:
                watcher.must_read = True
                watcher.changed.set()

    def committed(self, event: run_pb2.Event) -> None:
        """Hands a committed event to those who watch its run, so that they need not read it."""
        for watcher in self._watchers.get(event.run_id, ()):
            watcher.add(event)
            watcher.known_seq = max(watcher.known_seq, event.seq)

    def delta(self, delta: run_pb2.Delta) -> None:
        """Passes a piece of an answer to those who watch its run."""
        for watcher in self._watchers.get(delta.run_id, ()):
            watcher.add(delta)

    def runs_ready(self) -> None:
        """A run became ready by a commit of this process."""
        self.ready_here.set()
        self.runs_seen_ready()

    def runs_seen_ready(self) -> None:
        """There may be something to claim, whoever made it ready."""
        self.ready_hints += 1
        for stream in self._streams.values():
            stream.runs_ready()

    def wakes_at(self, moment: datetime) -> None:
        """A run was stored that becomes ready by itself at `moment`."""
        if self.next_wake is None or moment < self.next_wake:
            self.next_wake = moment
            self.wake_set.set()

    @property
    def next_commit(self) -> asyncio.Event:
        """Is set by the next commit. A follower takes it before it reads, and waits for it afterwards."""
        return self._feed

    def feed_changed(self) -> None:
        """Something was committed."""
        self._feed.set()
        self._feed = asyncio.Event()

    @contextmanager
    def executor(self, executor_id: str, stream: ExecutorStream) -> Iterator[None]:
        """An executor whose stream ends here. A newer stream of the same executor takes its place."""
        self._streams[executor_id] = stream
        try:
            yield
        finally:
            if self._streams.get(executor_id) is stream:
                del self._streams[executor_id]

    def nudge(self, executor_id: str | None, run_id: str) -> None:
        """Tells the executor that drives a run to read on."""
        if executor_id is not None and executor_id in self._streams:
            self._streams[executor_id].nudge(run_id)

    def outside_event(self, run_id: str, outside: Outside) -> None:
        """Somebody outside wrote an event: tells whoever drives the run, or that it is ready."""
        self.run_changed(run_id)
        self.nudge(outside.holder, run_id)
        if outside.became_ready:
            self.runs_ready()
        self.feed_changed()

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        """Workers' calls became available."""
        for stream in self._streams.values():
            stream.calls_queued(workspace_id, tool)

    def calls_cancelled(self, leases: list[str]) -> None:
        """Workers should stop these calls."""
        for stream in self._streams.values():
            stream.calls_cancelled(leases)

    async def wake_everybody(self) -> None:
        """Lets everybody who waits see that the server drains."""
        self.feed_changed()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.changed.set()
        for stream in self._streams.values():
            stream.wake()


async def wait_for(event: asyncio.Event, timeout: float) -> bool:
    """Waits for an event, at most so many seconds; tells whether it came."""
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False
