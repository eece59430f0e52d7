"""What a model was sent: the messages of the runs before, then the run's own, in the order the executor sends them.

Pure. Messages that are stored as blobs have to be put inline first, because the order of a turn's results is the order
of the calls in the model's message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from holdfast.api.common.v1.content_pb2 import Message, StoredMessage, ToolCall
from holdfast.api.common.v1.run_pb2 import STEP_KIND_MODEL, STEP_STATE_SUCCEEDED, Event

Resolve = Callable[[StoredMessage], Message]


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the conversation and where it came from."""

    run_id: str
    step: int
    message: Message
    """Step 0 is the run's input."""


@dataclass(slots=True)
class Turn:
    """A model's stored message, and the stored results of its calls."""

    step: int
    message: StoredMessage
    results: dict[str, tuple[int, StoredMessage]] = field(default_factory=dict)


@dataclass(slots=True)
class RunMessages:
    """The stored messages of one run."""

    run_id: str
    input: StoredMessage | None = None
    turns: list[Turn] = field(default_factory=list)

    def stored(self) -> Iterator[StoredMessage]:
        """Yields every message, in no particular order."""
        if self.input is not None:
            yield self.input
        for turn in self.turns:
            yield turn.message
            for _, result in turn.results.values():
                yield result


def collect_messages(run_id: str, events: Iterable[Event], *, before_step: int | None = None) -> RunMessages:
    """Collects the messages of a run.

    Args:
        run_id: The run.
        events: Its events in order.
        before_step: Stop when this step begins: what follows was not known to it.
    """
    found = RunMessages(run_id)
    models: set[int] = set()
    calls: dict[int, str] = {}
    for event in events:
        for change in event.changes:
            match change.WhichOneof("kind"):
                case "run_created":
                    found.input = change.run_created.input
                case "step_started":
                    started = change.step_started
                    if started.step == before_step:
                        return found
                    if started.kind == STEP_KIND_MODEL:
                        models.add(started.step)
                    else:
                        calls[started.step] = started.tool.call_id
                case "step_finished":
                    finished = change.step_finished
                    if finished.step in models:
                        if finished.state == STEP_STATE_SUCCEEDED:
                            found.turns.append(Turn(finished.step, finished.message))
                    elif finished.step in calls and found.turns and finished.HasField("message"):
                        found.turns[-1].results[calls[finished.step]] = (finished.step, finished.message)
    return found


def tool_calls(message: Message) -> list[ToolCall]:
    """Returns the calls that a model's message asks for, in its order."""
    return [part.tool_call for part in message.parts if part.HasField("tool_call")]


def in_order(runs: Sequence[RunMessages], resolve: Resolve) -> list[Said]:
    """Returns the conversation of a chain of runs as a model is to see it.

    Args:
        runs: From the session's first run on.
        resolve: Returns the message itself.
    """
    said: list[Said] = []
    for run in runs:
        if run.input is not None:
            said.append(Said(run.run_id, 0, resolve(run.input)))
        for turn in run.turns:
            message = resolve(turn.message)
            said.append(Said(run.run_id, turn.step, message))
            for call in tool_calls(message):
                # Results arrive in any order; the model sees them in the order in which it asked.
                result = turn.results.get(call.call_id)
                if result is not None:
                    said.append(Said(run.run_id, result[0], resolve(result[1])))
    return said
