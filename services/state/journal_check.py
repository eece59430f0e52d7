"""What must be true of one run's journal, whatever happened while it was written. Reads in order, keeps little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.run_budgets import Amounts, Ledger, ledger_of
from services.state.approval_check import ApprovalCheck
from services.state.transitions import ENDED

TOTALS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd_nanos",
    "unpriced_calls",
)
"""The columns of a run's row that are sums over its events."""

# After its end a run gets nothing but the evidence of what came too late.
_AFTER_THE_END: Final = frozenset({"late_result"})

MessageReader = Callable[[content_pb2.BlobRef], content_pb2.Message | None]
"""Returns a message that is stored under its hash; None when it is absent."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that a journal shows and that must not be.

    Attributes:
        check: Name of the check.
        what: What was found, without content.
    """

    check: str
    what: str


class JournalCheck:
    """Takes the events of one run in order, and says at the end what is wrong with them and with the run's row.

    Args:
        run: The run's row, of the same snapshot as the events.
        read_message: Finds messages that are not inline.
    """

    def __init__(self, run: Any, read_message: MessageReader) -> None:
        self._run = run
        self._read_message = read_message
        self._broken: list[Broken] = []
        self._last_seq = 0
        self._last_epoch = 0
        self._claims: set[int] = set()
        # Attempt of each step that has begun; 0 once it is over.
        self._attempts: dict[int, int] = {}
        self._failed: set[tuple[int, int]] = set()
        self._call_of_step: dict[int, str] = {}
        self._asked_calls: set[str] = set()
        self._results: dict[str, int] = {}
        self._totals = dict.fromkeys(TOTALS, 0)
        self._ended_as = 0
        # Of a run with a budget; and the calls that an event begins, whose reservations must have fitted by its end.
        self._ledger: Ledger | None = None
        self._began_model = self._began_tool = False
        self.approvals = ApprovalCheck(self._note)
        """The calls that persons were asked about."""
        self.steps = 0
        self.calls = 0
        # By step.
        self._waits_for: dict[int, str] = {}
        self.questions: dict[str, int] = {}
        """Stored questions, with their step."""
        self.finished_steps: set[int] = set()
        self.references: set[bytes] = set()
        """Hashes of the bodies that the events refer to."""

    @property
    def last_seq(self) -> int:
        """The newest event that was taken."""
        return self._last_seq

    def take(self, seq: int, epoch: int, event: run_pb2.Event) -> None:
        """Takes the next event."""
        if seq != self._last_seq + 1:
            self._note("dense_sequences", f"event {seq} comes after {self._last_seq}")
        if seq == 1 and (not event.changes or event.changes[0].WhichOneof("kind") != "run_created"):
            self._note("dense_sequences", "its first event is not its creation")
        self._last_seq = seq
        if epoch:
            if epoch < self._last_epoch:
                self._note("lease_epochs", f"event {seq} has epoch {epoch}, after {self._last_epoch}")
            if epoch > self._run.epoch:
                self._note("lease_epochs", f"event {seq} has epoch {epoch}, its row {self._run.epoch}")
            self._last_epoch = max(self._last_epoch, epoch)
        was_over = self._ended_as
        self.approvals.next_event()
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if was_over and kind not in _AFTER_THE_END:
                self._note("nothing_after_the_end", f"event {seq} has {kind} after the run's end")
            self._take(kind or "", change)
            self.approvals.take(kind or "", change)
        if self._began_model or self._began_tool:
            self._check_budget(seq)

    def _take(self, kind: str, change: run_pb2.Change) -> None:
        if self._ledger is not None:
            self._spend(self._ledger, kind, change)
        if kind == "run_created":
            self._refer(change.run_created.input)
            self._ledger = ledger_of(change.run_created)
        elif kind == "run_claimed":
            if change.run_claimed.epoch in self._claims:
                self._note("lease_epochs", f"the lease {change.run_claimed.epoch} is announced twice")
            self._claims.add(change.run_claimed.epoch)
        elif kind == "step_started":
            self._start(change.step_started)
        elif kind == "attempt_started":
            self._attempt(change.attempt_started)
        elif kind == "attempt_failed":
            key = (change.attempt_failed.step, change.attempt_failed.attempt)
            if key in self._failed:
                self._note("attempts_in_order", f"attempt {key[1]} of step {key[0]} failed twice")
            self._failed.add(key)
        elif kind == "step_finished":
            self._finish(change.step_finished)
        elif kind == "child_ended":
            self._end_child(change.child_ended)
        elif kind == "approval_requested":
            approval = change.approval_requested.approval
            self.questions[approval.approval_id] = approval.step
            if approval.arguments_shortened:
                self.references.add(bytes.fromhex(approval.arguments_sha256))
        elif kind == "run_state_changed" and change.run_state_changed.state in ENDED:
            self._ended_as = change.run_state_changed.state

    @property
    def has_budget(self) -> bool:
        """Whether the run was given a budget."""
        return self._ledger is not None

    def _spend(self, ledger: Ledger, kind: str, change: run_pb2.Change) -> None:
        ledger.take(kind, change)
        if kind == "step_started":
            started = change.step_started
            intent = started.WhichOneof("intent")
            self._began_model |= intent == "model" or started.tool.HasField("child_budget")
            self._began_tool |= intent == "tool"
            if started.tool.child_run_id and not started.tool.HasField("child_budget"):
                self._note("budgets_hold", f"step {started.step} starts a run that is given no part of the budget")
            if intent == "model" and not started.model.HasField("reserved"):
                self._note("budgets_hold", f"step {started.step} is a model call without a reservation")
        elif kind == "attempt_started":
            again = change.attempt_started
            self._began_model |= again.step not in self._call_of_step or again.HasField("child_budget")
            if again.child_run_id and not again.HasField("child_budget"):
                self._note("budgets_hold", f"step {again.step} starts a run that is given no part of the budget")

    def _check_budget(self, seq: int) -> None:
        """What an event begins fits into what was left. What it began and gave up again holds nothing any more."""
        assert self._ledger is not None
        reserved = self._ledger.reserved()
        for name, limit in self._ledger.limits.items():
            began = self._began_tool if name == "max_tool_calls" else self._began_model
            used, held = self._ledger.used.of(name), reserved.of(name)
            if began and held and used + held > limit:
                self._note("budgets_hold", f"event {seq}: {name} is {limit}, {used} are used and {held} reserved")
        self._began_model = self._began_tool = False

    def _start(self, started: run_pb2.StepStarted) -> None:
        step = started.step
        if step in self._attempts:
            self._note("one_result_per_call", f"step {step} has begun twice")
        elif step != self.steps + 1:
            self._note("one_result_per_call", f"step {step} has begun after step {self.steps}")
        self._attempts[step] = 1
        self.steps = max(self.steps, step)
        if started.WhichOneof("intent") == "tool":
            self._call_of_step[step] = started.tool.call_id
            if started.tool.child_run_id:
                self._waits_for[step] = started.tool.child_run_id

    def _attempt(self, started: run_pb2.AttemptStarted) -> None:
        step, attempt = started.step, started.attempt
        last = self._attempts.get(step)
        if not last:
            self._note("attempts_in_order", f"attempt {attempt} of step {step}, which {_why(last)}")
            return
        # The same number again: it was announced, and its run was parked before it was made.
        if attempt not in (last, last + 1):
            self._note("attempts_in_order", f"attempt {attempt} of step {step} comes after {last}")
        self._attempts[step] = max(attempt, last)
        if started.child_run_id:
            self._waits_for[step] = started.child_run_id

    def _end_child(self, ended: run_pb2.ChildEnded) -> None:
        if self._waits_for.pop(ended.step, "") != ended.child_run_id:
            self._note("children_are_told_of", f"step {ended.step} is told of a run that it does not wait for")
        if ended.HasField("output"):
            self._refer(ended.output)

    @property
    def waits_for(self) -> set[str]:
        """The runs that steps without a result wait for; none where the run has ended."""
        open_steps = self._waits_for.keys() - self.finished_steps
        return set() if self._run.state in ENDED else {self._waits_for[step] for step in open_steps}

    def _finish(self, finished: run_pb2.StepFinished) -> None:
        step = finished.step
        if step in self.finished_steps:
            self._note("one_result_per_call", f"step {step} has two results")
        elif step not in self._attempts:
            self._note("one_result_per_call", f"step {step} has a result and has not begun")
        self.finished_steps.add(step)
        self._attempts[step] = 0
        if finished.HasField("usage"):
            usage = finished.usage
            for name, amount in (
                ("input_tokens", usage.input_tokens),
                ("output_tokens", usage.output_tokens),
                ("cache_read_tokens", usage.cache_read_input_tokens),
                ("cache_write_tokens", usage.cache_write_input_tokens),
                ("reasoning_tokens", usage.reasoning_output_tokens),
                ("cost_usd_nanos", usage.cost_usd_nanos),
                ("unpriced_calls", not usage.HasField("cost_usd_nanos")),
            ):
                self._totals[name] += int(amount)
        if finished.HasField("output"):
            self.references.add(finished.output.hash)
        if finished.HasField("message"):
            message = self._refer(finished.message)
            if message is not None:
                self._read(message, step)

    def _refer(self, stored: content_pb2.StoredMessage) -> content_pb2.Message | None:
        if stored.WhichOneof("body") != "blob":
            return stored.message
        self.references.add(stored.blob.hash)
        # Absent ones are found by their hash, with all that is referred to.
        return self._read_message(stored.blob)

    def _read(self, message: content_pb2.Message, step: int) -> None:
        for part in message.parts:
            kind = part.WhichOneof("kind")
            if kind == "tool_call":
                self.calls += 1
                call_id = part.tool_call.call_id
                if call_id in self._asked_calls:
                    self._note("one_result_per_call", f"step {step} makes the call {_short(call_id)} again")
                self._asked_calls.add(call_id)
            elif kind == "tool_result":
                call_id = part.tool_result.call_id
                self._results[call_id] = self._results.get(call_id, 0) + 1
                if call_id not in self._asked_calls:
                    self._note("one_result_per_call", f"step {step} answers a call that was not made")
                elif self._results[call_id] == 2:
                    self._note("one_result_per_call", f"the call {_short(call_id)} has two results")

    def close(self) -> Iterator[Broken]:
        """Compares the whole with the run's row, and yields all that is wrong."""
        run = self._run
        if self._last_seq != run.last_seq:
            self._note("dense_sequences", f"it has events to {self._last_seq}, its row says {run.last_seq}")
        has_ended = run.state in ENDED
        if has_ended or self._ended_as:
            if self._ended_as != run.state:
                self._note(
                    "nothing_after_the_end", f"it has ended as {self._ended_as or 'nothing'}, its row says {run.state}"
                )
        if has_ended:
            for step in sorted(self._attempts.keys() - self.finished_steps):
                self._note("one_result_per_call", f"step {step} has no result, and the run has ended")
            if self._ledger is not None and self._ledger.reserved() != Amounts():
                self._note("budgets_hold", "it has ended and holds a reservation")
            for call_id in sorted(self._asked_calls - self._results.keys()):
                self._note("one_result_per_call", f"the call {_short(call_id)} has no result, and the run has ended")
        wrong = [
            f"{name} is {getattr(run, name)} and sums up to {total}"
            for name, total in self._totals.items()
            if getattr(run, name) != total
        ]
        if run.step_count != self.steps:
            wrong.append(f"step_count is {run.step_count}, and {self.steps} have begun")
        if wrong:
            self._note("totals_add_up", "; ".join(wrong))
        yield from self._broken

    def _note(self, check: str, what: str) -> None:
        # A journal that is broken all over says so by its first few.
        if len(self._broken) < 100:
            self._broken.append(Broken(check, what))


def _why(last: int | None) -> str:
    return "has not begun" if last is None else "is over"


def _short(call_id: str) -> str:
    # A provider makes it: it may be long, and is no content.
    return call_id[:60]
