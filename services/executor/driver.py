"""Drives one run under one lease: read the journal, decide, checkpoint, act; until it ends, waits or is taken away.

Invariant: nothing is dispatched before the transition that holds its intent is committed, and nothing is decided from
a result before that result is part of the next transition (P2). A driver that dies at any line leaves a journal from
which `Planner` goes on (docs/architecture.md, "What a crash leaves").
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import TypeVar

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.errors import Conflict, DeadlineExceeded, InvalidArgument, LeaseLost, ResourceExhausted, Unavailable
from services.executor import budgets, retries
from services.executor.call_approvals import SessionApprovals, has_policies
from services.executor.child_runs import ChildRuns
from services.executor.decide.plan import LocalCall, Outcome, Plan
from services.executor.decide.planner import Planner
from services.executor.journal_view import Joined, RunView
from services.executor.local_calls import LocalCalls, RunContext
from services.executor.revisions import RevisionCache
from services.executor.state_client import JournalClient, StateReader
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger
from services.shared.wire import number_tag_of, repeated, tag_of, whole_number

# A delay longer than this is waited for as rows, not in memory.
LONGEST_WAIT_IN_MEMORY = timedelta(seconds=5)
# What one transition takes of results that are there already: far below the limits of an event and of a message.
MAX_OUTCOME_BYTES = 256 * 1024
MAX_OUTCOME_BLOB_BYTES = 4 * 1024 * 1024

_PARKED = (run_pb2.RUN_STATE_WAITING, run_pb2.RUN_STATE_PAUSED)

# What state answers with, or instead of state, while it can't work.
_AWAY = (Unavailable, ResourceExhausted, DeadlineExceeded)

T = TypeVar("T")

_SEQ = number_tag_of(journal_pb2.Transition, "seq")
_CHANGES = tag_of(journal_pb2.Transition, "changes")
_ENDS_CHILD = journal_pb2.Transition(ends_child=True).SerializeToString()

log = get_logger(__name__)


class DriveEnd(Enum):
    """How a drive ended."""

    ENDED = auto()
    PARKED = auto()
    HANDED_BACK = auto()
    LEASE_LOST = auto()


@dataclass(frozen=True)
class DriverParts:
    """What all drivers of an executor share."""

    executor_id: str
    journal: JournalClient
    reader: StateReader
    revisions: RevisionCache
    local_calls: LocalCalls
    child_runs: ChildRuns
    clock: Clock
    park_after_seconds: float


@dataclass(slots=True)
class _Running:
    """A local call under way: it sleeps until `begins` and is dispatched then."""

    task: asyncio.Task[None]
    begins: datetime | None


class Driver:
    """Drives one claimed run.

    Args:
        parts: What all drivers share.
        claim: The run and its lease.
        lease_holds: Returns once it is known that the lease holds; when it does not, the drive is cancelled meanwhile.
    """

    def __init__(self, parts: DriverParts, claim: lease_pb2.Claim, lease_holds: Callable[[], Awaitable[None]]) -> None:
        self.run_id = claim.run.run_id
        self.epoch = claim.epoch
        self._parts = parts
        self._claim = claim
        self._lease_holds = lease_holds
        self._workspace_id = claim.workspace_id
        # What is the same in all of its transitions.
        self._head = journal_pb2.Transition(
            workspace_id=claim.workspace_id, run_id=self.run_id, epoch=self.epoch
        ).SerializeToString()
        self._news = asyncio.Event()
        self._was_nudged = False
        self._is_stopping = False
        # The database woke the run by its own clock. Where ours is behind, what is due there must be due here, too.
        claimed_at = claim.run.update_time.ToDatetime(tzinfo=UTC)
        self._clock_lag = max(claimed_at - parts.clock.now(), timedelta(0))
        self._view = RunView()
        self._planner: Planner | None = None
        self._prior: list[content_pb2.Message] = []
        self._session_approvals = SessionApprovals()
        self._context: RunContext | None = None
        self._outcomes: list[Outcome] = []
        self._running: dict[int, _Running] = {}

    def _messages(self) -> Sequence[content_pb2.Message]:
        return Joined(self._prior, self._view.conversation())

    def _now(self) -> datetime:
        return self._parts.clock.now() + self._clock_lag

    def nudge(self) -> None:
        """Somebody outside wrote an event of the run."""
        self._was_nudged = True
        self._news.set()

    def stop(self) -> None:
        """Begin nothing more; hand the run back once what is under way is stored."""
        self._is_stopping = True
        self._news.set()

    async def drive(self) -> DriveEnd:
        """Drives until the run ends, waits, or is taken away.

        Raises:
            HoldfastError: State or auth could not be read; the run is to be handed back.
        """
        try:
            await self._load()
            async with asyncio.TaskGroup() as tasks:
                try:
                    return await self._loop(tasks)
                finally:
                    for running in self._running.values():
                        running.task.cancel()
        except LeaseLost:
            pass
        except BaseExceptionGroup as group:
            # Local calls never raise; what comes out of the group is what the loop raised.
            if group.subgroup(LeaseLost) is None:
                raise
        log.info("lease_lost", run_id=self.run_id, epoch=self.epoch)
        return DriveEnd.LEASE_LOST

    # --- the loop ---------------------------------------------------------------------------------------------

    async def _loop(self, tasks: asyncio.TaskGroup) -> DriveEnd:
        while True:
            if self._was_nudged:
                await self._read_on()
            if self._view.has_ended():
                return DriveEnd.ENDED
            if self._view.is_ending:
                await self._stop_local_calls()
            elif self._view.is_pausing:
                await self._stop_sleeping_calls()
            plan = await self._take_next_transition()
            if plan is None:
                continue
            if self._view.has_ended():
                return DriveEnd.ENDED
            if self._view.state in _PARKED:
                return DriveEnd.PARKED
            crash_point("executor.after_intent")
            self._launch(plan, tasks)
            if self._outcomes:
                continue
            if self._is_stopping and all(running.begins is not None for running in self._running.values()):
                # What only sleeps was never dispatched; parking says so to whoever claims the run next.
                if not self._running:
                    return DriveEnd.HANDED_BACK
                if await self._park():
                    return DriveEnd.PARKED
                continue
            if not await self._wait_for_news():
                if await self._park():
                    return DriveEnd.PARKED

    async def _take_next_transition(self) -> Plan | None:
        """Decides and commits; None when another event came first and everything has to be looked at again."""
        assert self._planner is not None
        outcomes, self._outcomes = _that_fit(self._outcomes)
        # Invariant: a step whose outcome is only kept for the next transition counts as running. Nothing that was
        # executed is ever dispatched again because its result is not stored yet.
        busy = self._running.keys() | {_step_of(outcome) for outcome in self._outcomes}
        if agents := self._planner.agent_tools(outcomes):
            child_runs = self._parts.child_runs
            self._planner.targets = await self._patiently(lambda: child_runs.targets(self._workspace_id, agents))
        plan = self._planner.plan(outcomes, self._now(), busy, only_outcomes=self._is_stopping)
        if plan.changes and not (busy or plan.local_calls) and self._rests():
            # What begins to wait says so in the same transition.
            plan.changes.extend(self._planner.park().changes)
        if plan.changes and not await self._commit(plan):
            self._outcomes = outcomes + self._outcomes
            return None
        return plan

    async def _commit(self, plan: Plan) -> bool:
        """Stores a plan as the next event; False when another event came first (the view is read anew then)."""
        transition = self._transition(plan)
        if plan.children:
            transition += await self._children_of(plan)
        crash_point("executor.before_commit")
        try:
            # What was executed must not be lost because the storage is away or full for a moment.
            committed = await self._patiently(lambda: self._parts.journal.commit(transition))
        except Conflict:
            await self._load_again()
            return False
        except InvalidArgument as error:
            # It would be refused each time: a run that cannot be stored any further ends, and is not tried for ever.
            log.error("transition_refused", run_id=self.run_id, seq=self._view.last_seq + 1, exc_info=error)
            await self._give_up(error)
            return False
        crash_point("executor.after_commit")
        self._view.last_seq = committed.seq
        return True

    def _transition(self, plan: Plan) -> bytes:
        # Joined from its parts, as each message put into another is a copy.
        changes = repeated(_CHANGES, [change.SerializeToString() for change in plan.changes])
        transition = self._head + whole_number(_SEQ, self._view.last_seq + 1) + changes
        if plan.blobs or plan.calls:
            transition += journal_pb2.Transition(blobs=plan.blobs, calls=plan.calls).SerializeToString()
        view = self._view
        if view.has_ended() and view.created is not None and view.created.parent_run_id:
            transition += _ENDS_CHILD
        return transition

    async def _children_of(self, plan: Plan) -> bytes:
        child_runs = self._parts.child_runs
        new_runs = await self._patiently(lambda: child_runs.runs_of(self._workspace_id, self.run_id, plan.children))
        return journal_pb2.Transition(children=new_runs).SerializeToString()

    async def _give_up(self, error: InvalidArgument) -> None:
        await self._stop_local_calls()
        failure = content_pb2.Failure(
            reason="INTERNAL",
            message=f"The run could not be stored any further: {error.message}",
            failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
        )
        while True:
            await self._load_again()
            assert self._planner is not None
            if self._view.has_ended():
                return
            plan = self._planner.give_up(failure)
            transition = self._transition(plan)
            try:
                await self._patiently(lambda: self._parts.journal.commit(transition))  # noqa: B023 - awaited at once
            except Conflict:
                continue
            return

    def _launch(self, plan: Plan, tasks: asyncio.TaskGroup) -> None:
        if not plan.local_calls:
            return
        assert self._context is not None
        for call in plan.local_calls:
            begins = call.step.not_before
            if begins is not None and begins <= self._now():
                begins = None
            model_steps = self._view.model_steps_succeeded
            if begins is None and self._parts.local_calls.is_instant(self._context, call, model_steps):
                # What was said is for models.
                messages = self._messages() if call.tool is None else ()
                outcome = self._parts.local_calls.execute_instantly(self._context, call, messages, model_steps)
                crash_point("executor.after_call")
                self._outcomes.append(outcome)
                continue
            self._running[call.step.number] = _Running(tasks.create_task(self._execute(call, begins)), begins)

    async def _execute(self, call: LocalCall, begins: datetime | None) -> None:
        assert self._context is not None
        if begins is not None:
            await self._parts.clock.sleep((begins - self._now()).total_seconds())
            self._running[call.step.number].begins = None
        # Order matters: a process that was stopped and goes on much later finds here that its run is somebody else's.
        await self._lease_holds()
        messages = list(self._messages()) if call.tool is None else []
        outcome = await self._parts.local_calls.execute(self._context, call, messages, self._view.model_steps_succeeded)
        crash_point("executor.after_call")
        self._outcomes.append(outcome)
        del self._running[call.step.number]
        self._news.set()

    def _rests(self) -> bool:
        """Whether a run of which nothing is under way here, or about to be, is to be parked at once."""
        view = self._view
        if self._is_stopping or self._was_nudged or view.has_ended() or view.is_ending or view.is_pausing:
            return False
        assert self._planner is not None
        now = self._now()
        due = self._planner.next_due()
        return (due is None or due > now) and self._seconds_before_parking(now, due) <= 0

    def _seconds_before_parking(self, now: datetime, due: datetime | None) -> float:
        """How long a run is kept here of which nothing is under way here.

        Args:
            now: The time.
            due: When the first of its open steps goes on by itself.
        """
        # A worker may answer in a moment; a person will not.
        has_worker_call = any(step.is_worker_call and not step.is_held for step in self._view.open_steps.values())
        seconds = self._parts.park_after_seconds if has_worker_call else 0.0
        if due is None:
            return seconds
        until_due = (due - now).total_seconds()
        if until_due <= LONGEST_WAIT_IN_MEMORY.total_seconds():
            return max(until_due, 0.0)
        return min(seconds, until_due)

    async def _wait_for_news(self) -> bool:
        """Waits for a result, a nudge, or a short delay's end; False when the run is to be parked."""
        assert self._planner is not None
        now = self._now()
        may_park = all(r.begins is not None and r.begins - now > LONGEST_WAIT_IN_MEMORY for r in self._running.values())
        # A call under way here is not due: it makes the news itself when it ends.
        due = self._planner.next_due(() if may_park else self._running)
        if self._is_stopping or self._view.is_pausing:
            # Nothing is begun any more, so that nothing is due: only the ends of calls under way are waited for.
            due, may_park = None, False
        if may_park:
            timeout: float | None = self._seconds_before_parking(now, due)
        else:
            # None: until there are news, which the call under way makes at its end.
            timeout = None if due is None else (due - now).total_seconds()
        has_news = self._news.is_set()
        if not has_news and (timeout is None or timeout > 0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait()
                    has_news = True
        self._news.clear()
        is_due = due is not None and due <= self._now()
        return has_news or is_due or not may_park

    async def _park(self) -> bool:
        """Makes the run rows; False when something happened meanwhile."""
        assert self._planner is not None
        # Those that sleep were never dispatched: whoever claims the run next announces and makes them.
        await self._stop_local_calls()
        if self._outcomes:
            return False
        return await self._commit(self._planner.park())

    async def _stop_local_calls(self) -> None:
        await self._stop_calls(list(self._running))

    async def _stop_sleeping_calls(self) -> None:
        """What sleeps was never dispatched: it is made when the run goes on. What is under way ends by itself."""
        await self._stop_calls([step for step, running in self._running.items() if running.begins is not None])

    async def _stop_calls(self, steps: list[int]) -> None:
        # Order matters: nothing is waited for between the look at what sleeps and its cancellation.
        tasks = [self._running.pop(step).task for step in steps]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- reading ----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        events = list(self._claim.events)
        if events:
            await self._parts.reader.put_messages_inline(self._workspace_id, events)
        else:
            events = await self._parts.reader.read_events(self._workspace_id, self.run_id, 0)
        await self._begin_view(events)

    async def _load_again(self) -> None:
        self._was_nudged = False
        await self._begin_view(
            await self._patiently(lambda: self._parts.reader.read_events(self._workspace_id, self.run_id, 0))
        )

    async def _begin_view(self, events: list[run_pb2.Event]) -> None:
        view = self._view = RunView()
        view.apply_events(events)
        created = view.created
        assert created is not None, "the first event of a run creates it"
        if self._context is None:
            spec = await self._parts.revisions.get(self._workspace_id, created.agent, created.revision)
            if created.previous_run_id:
                self._prior = await self._parts.reader.messages_before(
                    self._workspace_id, created.session_id, self.run_id
                )
                if has_policies(spec):
                    self._session_approvals = SessionApprovals(
                        await self._parts.reader.session_approvals(self._workspace_id, created.session_id)
                    )
            self._context = RunContext(
                self._workspace_id,
                self.run_id,
                created.agent,
                spec,
                view.input_text(),
                created.user_id,
                root_run_id=created.root_run_id,
            )
        if view.ledger is not None:
            await budgets.prepare(view.ledger, self._context.spec)
        used = self._context.used_call_ids
        for message in (*self._prior, *view.conversation()):
            used.update(part.tool_call.call_id for part in message.parts if part.WhichOneof("kind") == "tool_call")
        self._planner = Planner(
            view,
            self._context.spec,
            run_id=self.run_id,
            epoch=self.epoch,
            executor_id=self._parts.executor_id,
            prior=self._prior,
            session_approvals=self._session_approvals,
        )

    async def _read_on(self) -> None:
        self._was_nudged = False
        seen = self._view.last_seq
        events = await self._patiently(lambda: self._parts.reader.read_events(self._workspace_id, self.run_id, seen))
        self._view.apply_events(events)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats a call while state is away or its storage full; the end of the lease ends this too."""
        try:
            return await call()
        except _AWAY:
            pass

        def announce(attempt: int, error: BaseException | None) -> None:
            if attempt == 1:
                log.warning("state_is_away", run_id=self.run_id, reason=getattr(error, "reason", ""))

        async for attempt in retries.reconnecting(announce, *_AWAY):
            with attempt:
                return await call()
        raise AssertionError("attempts never end by themselves")


def _step_of(outcome: Outcome) -> int:
    change = outcome.change
    kind = change.WhichOneof("kind")
    assert kind is not None
    step: int = getattr(change, kind).step
    return step


def _that_fit(outcomes: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The first outcomes that one transition can hold, at least one, and the rest."""
    if len(outcomes) < 2:
        return outcomes, []
    size = blobs = 0
    for index, outcome in enumerate(outcomes):
        size += outcome.change.ByteSize()
        blobs += sum(len(blob.data) for blob in outcome.blobs)
        if index > 0 and (size > MAX_OUTCOME_BYTES or blobs > MAX_OUTCOME_BLOB_BYTES):
            return outcomes[:index], outcomes[index:]
    return outcomes, []
