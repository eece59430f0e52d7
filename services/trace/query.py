"""Questions about runs: lists, one run's spans, one step with its full input and output. Reads one workspace only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from holdfast.api.common.v1.agent_pb2 import AgentSpec
from holdfast.api.common.v1.content_pb2 import ROLE_RUNTIME, BlobRef, Message, Part, StoredMessage
from holdfast.api.common.v1.run_pb2 import (
    STEP_KIND_MODEL,
    Approval,
    ApprovalDecided,
    Event,
    ModelIntent,
    StepFinished,
    ToolIntent,
)
from holdfast.errors import DeadlineExceeded, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.clock import Clock
from services.trace.conversation import RunMessages, Said, collect_messages, in_order, tool_calls
from services.trace.progress import Progress
from services.trace.spans import Span, SpanBuilder
from services.trace.store import RunFilter, RunHistory, RunPosition, TraceStore
from services.trace.summary import RunRecord
from services.trace.timeline import Step, Timeline

MAX_DESCENDANTS: Final = 200
# Another replica may be the one that stores; then no hint arrives here.
_POLL_SECONDS: Final = 0.2
# Kept from the caller's deadline, so that it gets an answer and not only its own time-out.
_ANSWER_SECONDS: Final = 0.2


class ImmutableBodies(Protocol):
    """Where definitions, what was said, and large bodies are read."""

    async def events(self, workspace_id: str, run_id: str) -> list[Event]:
        """Returns a run's events with all that was said."""

    async def agent_spec(self, workspace_id: str, agent: str, revision: str) -> AgentSpec:
        """Returns the definition of a revision."""

    async def blobs(self, workspace_id: str, refs: Iterable[BlobRef]) -> dict[bytes, bytes]:
        """Returns the bodies under their hashes."""


@dataclass(frozen=True, slots=True)
class RunTree:
    """One run with its spans."""

    run: RunRecord
    spans: list[Span]
    children: list[RunRecord]


@dataclass(frozen=True, slots=True)
class InputMessage:
    """A message that a model was sent."""

    said: Said
    is_new: bool
    """The previous model call of the run did not have it yet."""


@dataclass(frozen=True, slots=True)
class ModelDetail:
    """What a model was sent and what it answered."""

    spec: AgentSpec
    input: list[InputMessage]
    output: Message | None
    finished: StepFinished | None


@dataclass(frozen=True, slots=True)
class ToolDetail:
    """A tool call."""

    intent: ToolIntent
    arguments_json: str
    shown: Message | None
    output: str
    approvals: list[Approval]
    approved: ApprovalDecided | None


@dataclass(frozen=True, slots=True)
class StepDetail:
    """One step with all that went in and came out."""

    span: Span
    attempts: list[Span]
    detail: ModelDetail | ToolDetail


class Queries:
    """Answers questions.

    Args:
        store: What trace has read.
        bodies: Definitions, what was said, and large bodies, from state.
        progress: Wakes readers that wait for more.
        clock: Time for waiting.
    """

    def __init__(self, store: TraceStore, bodies: ImmutableBodies, progress: Progress, clock: Clock) -> None:
        self._store = store
        self._bodies = bodies
        self._progress = progress
        self._clock = clock

    async def list_runs(
        self, workspace_id: str, wanted: RunFilter, *, after: RunPosition | None, page_size: int
    ) -> tuple[list[RunRecord], RunPosition | None]:
        """Returns a page of runs, newest first, and where the next one begins; None at the end."""
        found = await self._store.list_runs(workspace_id, wanted, after=after, limit=page_size + 1)
        if len(found) <= page_size:
            return found, None
        page = found[:page_size]
        last = page[-1]
        assert last.created_at is not None, "listed runs have their first event"
        return page, RunPosition(last.created_at, last.run_id)

    async def run_tree(
        self, workspace_id: str, run_id: str, *, min_seq: int, timeout_seconds: float, with_children: bool = False
    ) -> RunTree:
        """Returns a run with its spans, once at least event `min_seq` was read; with those of the runs below it.

        Raises:
            NotFound: The workspace has no such run; with a `min_seq`, none arrived in time.
            DeadlineExceeded: The run is there, but not its event `min_seq`.
        """
        _check_run_id(run_id)
        if min_seq > 0:
            await self._wait_for(workspace_id, run_id, min_seq, timeout_seconds - _ANSWER_SECONDS)
        history = await self._store.find_history(workspace_id, run_id)
        if history is None:
            raise _run_not_found(run_id)
        below: list[RunHistory] = []
        if with_children:
            below = await self._store.find_descendants(workspace_id, history.run, MAX_DESCENDANTS)
        spans = [span for one in (history, *below) for span in SpanBuilder(one.run, Timeline(one.events)).all()]
        return RunTree(history.run, spans, [one.run for one in below])

    async def _wait_for(self, workspace_id: str, run_id: str, min_seq: int, timeout_seconds: float) -> None:
        end = self._clock.monotonic() + timeout_seconds
        with self._progress.watch(run_id) as changed:
            while True:
                changed.clear()
                run = await self._store.find_run(workspace_id, run_id)
                if run is not None and run.last_seq >= min_seq:
                    return
                remaining = end - self._clock.monotonic()
                if remaining <= 0:
                    break
                await _set_within(changed, min(_POLL_SECONDS, remaining))
        if run is None:
            raise _run_not_found(run_id)
        raise DeadlineExceeded(
            f"trace has read the run up to event {run.last_seq}, not yet to {min_seq}",
            metadata={"run_id": run_id, "last_seq": str(run.last_seq)},
        )

    async def step(self, workspace_id: str, run_id: str, number: int) -> StepDetail:
        """Returns one step with its full input and output.

        Raises:
            NotFound: The workspace has no such run, or the run no such step, or what was said is not stored any more
                (CONTENT_REMOVED).
            Unavailable: State, which has definitions and what was said, does not answer.
        """
        _check_run_id(run_id)
        history = await self._store.find_history(workspace_id, run_id)
        if history is None:
            raise _run_not_found(run_id)
        if number not in Timeline(history.events).steps:
            raise NotFound(
                "the run has no such step",
                reason=Reason.STEP_NOT_FOUND,
                metadata={"run_id": run_id, "step": str(number)},
            )
        history = await self._with_content(workspace_id, history)
        timeline = Timeline(history.events)
        step = timeline.steps[number]
        spans = SpanBuilder(history.run, timeline)
        detail: ModelDetail | ToolDetail
        if step.kind == STEP_KIND_MODEL:
            detail = await self._model_detail(workspace_id, history, timeline, step)
        else:
            detail = await self._tool_detail(workspace_id, history, step)
        return StepDetail(spans.step(step), list(spans.attempts(step)), detail)

    async def _with_content(self, workspace_id: str, history: RunHistory) -> RunHistory:
        """The same history with what was said, which trace does not keep a second time."""
        events = await self._bodies.events(workspace_id, history.run.run_id)
        return RunHistory(history.run, [event for event in events if event.seq <= history.run.last_seq])

    async def _model_detail(
        self, workspace_id: str, history: RunHistory, timeline: Timeline, step: Step
    ) -> ModelDetail:
        run = history.run
        intent = step.model if step.model is not None else ModelIntent()
        earlier_runs = await self._store.find_predecessors(workspace_id, run)
        messages = [
            collect_messages(earlier.run_id, await self._bodies.events(workspace_id, earlier.run_id))
            for earlier in earlier_runs
        ]
        messages.append(collect_messages(run.run_id, history.events, before_step=step.number))
        output = _message_of(step)
        async with asyncio.TaskGroup() as group:
            reading_spec = group.create_task(self._bodies.agent_spec(workspace_id, run.agent, run.revision))
            reading_bodies = group.create_task(self._resolved(workspace_id, messages, output))
        resolved = reading_bodies.result()
        said = in_order(messages, resolved.message)[: intent.message_count]
        already_sent = max(
            (
                earlier.model.message_count
                for earlier in timeline.steps.values()
                if earlier.number < step.number and earlier.model is not None
            ),
            default=0,
        )
        sent = [InputMessage(item, index >= already_sent) for index, item in enumerate(said)]
        if intent.final_note:
            note = Message(role=ROLE_RUNTIME, parts=[Part(text=intent.final_note)])
            sent.append(InputMessage(Said(run.run_id, step.number, note), True))
        return ModelDetail(
            spec=reading_spec.result(),
            input=sent,
            output=None if output is None else resolved.message(output),
            finished=step.finished,
        )

    async def _tool_detail(self, workspace_id: str, history: RunHistory, step: Step) -> ToolDetail:
        intent = step.tool if step.tool is not None else ToolIntent()
        shown = _message_of(step)
        # The call is in the message of the model step before this one.
        messages = collect_messages(history.run.run_id, history.events, before_step=step.number)
        asked = messages.turns[-1].message if messages.turns else None
        refs = [stored.blob for stored in (shown, asked) if stored is not None and stored.HasField("blob")]
        output = step.finished.output if step.finished is not None and step.finished.HasField("output") else None
        if output is not None:
            refs.append(output)
        resolved = _Resolved(await self._bodies.blobs(workspace_id, refs))
        calls = tool_calls(resolved.message(asked)) if asked is not None else []
        return ToolDetail(
            intent=intent,
            arguments_json=next((call.arguments_json for call in calls if call.call_id == intent.call_id), ""),
            shown=None if shown is None else resolved.message(shown),
            output="" if output is None else resolved.bodies[output.hash].decode(errors="replace"),
            approvals=[question.approval for question in step.questions.values()],
            approved=step.approval,
        )

    async def _resolved(
        self, workspace_id: str, messages: Iterable[RunMessages], output: StoredMessage | None
    ) -> _Resolved:
        stored = [message for run in messages for message in run.stored()]
        if output is not None:
            stored.append(output)
        refs = [message.blob for message in stored if message.HasField("blob")]
        return _Resolved(await self._bodies.blobs(workspace_id, refs))


class _Resolved:
    """Stored messages with their bodies at hand."""

    def __init__(self, bodies: dict[bytes, bytes]) -> None:
        self.bodies = bodies

    def message(self, stored: StoredMessage) -> Message:
        if stored.HasField("blob"):
            return Message.FromString(self.bodies[stored.blob.hash])
        return stored.message


def _message_of(step: Step) -> StoredMessage | None:
    if step.finished is None or not step.finished.HasField("message"):
        return None
    return step.finished.message


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _check_run_id(run_id: str) -> None:
    # What is no id cannot name anything; asking the database would only let its own limits answer.
    if not is_uuid(run_id):
        raise _run_not_found(run_id)


def _run_not_found(run_id: str) -> NotFound:
    return NotFound("there is no such run", reason=Reason.RUN_NOT_FOUND, metadata={"run_id": run_id})
