"""What of a run's budget is used, reserved and left: a reading of its journal, the same for whoever reads (P4, P10).

Invariant: what a model call may use is reserved by the event that begins it, and held until its attempt is over. Then
it is given back for what was used really. What may have been billed without anybody saying so counts as used whole: an
attempt whose executor was lost, that timed out, or whose answer broke off; a call that says nothing of its usage; of
one whose price is not known, the price. So what is used and reserved is never less than what may have been spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2

BUDGET_EXCEEDED: Final = "BUDGET_EXCEEDED"
"""The reason of whatever ends because there is no budget left for it."""

LIMITS: Final = {
    "max_cost_usd_nanos": "cost_usd_nanos",
    "max_input_tokens": "input_tokens",
    "max_output_tokens": "output_tokens",
    "max_total_tokens": "total_tokens",
    "max_model_calls": "model_calls",
    "max_tool_calls": "tool_calls",
}
"""Each limit of `Budget`, and what of `Amounts` it limits."""

# Nobody worked for an attempt that ended so: the request was refused, or never sent.
_NOT_BILLED_CLASSES: Final = frozenset(
    {
        content_pb2.FAILURE_CLASS_AUTH,
        content_pb2.FAILURE_CLASS_RATE_LIMITED,
        content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS,
        content_pb2.FAILURE_CLASS_PERMANENT,
    }
)
_NOT_BILLED: Final = frozenset({"PROVIDER_OVERLOADED", "AUTH_UNAVAILABLE"})
# Its class says that trying again is useless, and nothing of how far it came.
_MAY_BE_BILLED: Final = frozenset({"INTERNAL"})


@dataclass(slots=True)
class Amounts:
    """What calls use, or may use."""

    cost_usd_nanos: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    # Sent or received, as only their sum is known; less than 0 where the sum is lower than its parts may be.
    unsplit_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens sent and received."""
        return self.input_tokens + self.output_tokens + self.unsplit_tokens

    def of(self, limit: str) -> int:
        """What counts against a limit of `Budget`."""
        amount: int = getattr(self, LIMITS[limit])
        return amount

    def add(self, other: Amounts) -> None:
        """Takes over what another has."""
        self.cost_usd_nanos += other.cost_usd_nanos
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.model_calls += other.model_calls
        self.tool_calls += other.tool_calls
        self.unsplit_tokens += other.unsplit_tokens

    def message(self) -> run_pb2.BudgetUse:
        """The same as the contract's message."""
        return run_pb2.BudgetUse(
            cost_usd_nanos=self.cost_usd_nanos,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            unsplit_tokens=max(self.unsplit_tokens, 0),
            model_calls=self.model_calls,
            tool_calls=self.tool_calls,
        )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit that does not leave room for what comes next.

    Attributes:
        limit: Its name in `Budget`.
        max: The limit.
        used: What is used.
        reserved: What calls under way may use.
        needed: What comes next needs at most.
    """

    limit: str
    max: int
    used: int
    reserved: int
    needed: int


@dataclass(slots=True)
class _ModelCall:
    """A model call under way: what each of its attempts may use, and whether one of them holds that now."""

    reserved: Amounts
    is_cheaper: bool
    holds: bool = True


class Ledger:
    """The budget of one run. Takes the changes of its events in order.

    Args:
        budget: What it was given when it was created.
    """

    def __init__(self, budget: agent_pb2.Budget) -> None:
        self.limits: dict[str, int] = {name: max(limit, 0) for name in LIMITS if (limit := getattr(budget, name))}
        self.used = Amounts()
        self.last_answer: content_pb2.Usage | None = None
        """What the newest answer of the model says that it used; None when it says nothing."""
        self.is_degraded = False
        """Whether the run goes on with its cheaper model."""
        self.last_is_cheaper = False
        """Whether the newest answer is that model's."""
        self.final_step = 0
        self.final_note = ""
        """Of the last model call, which is made without tools, its step and what the model is told; 0 before it."""
        self.is_declined = False
        """Whether somebody was asked for more, and gave nothing."""
        self._asked: dict[str, str] = {}
        self._model_calls: dict[int, _ModelCall] = {}
        self._tool_calls: set[int] = set()
        # What runs below have been given and have not ended with, by the step that waits for them.
        self._lent: dict[int, Amounts] = {}

    @property
    def limits_cost(self) -> bool:
        """Whether calls need a price."""
        return "max_cost_usd_nanos" in self.limits

    def reserved(self) -> Amounts:
        """What calls under way may use."""
        total = Amounts(tool_calls=len(self._tool_calls))
        for call in self._model_calls.values():
            if call.holds:
                total.add(call.reserved)
        for lent in self._lent.values():
            total.add(lent)
        return total

    def is_cheaper(self, step: int) -> bool:
        """Whether an open model step is made with the cheaper model."""
        call = self._model_calls.get(step)
        return call is not None and call.is_cheaper

    def reservation_of(self, step: int) -> Amounts:
        """What each attempt of an open model step may use."""
        return self._model_calls[step].reserved

    def shortfall(self, needed: Amounts) -> Shortfall | None:
        """The first limit that has no room for what comes next; None when it fits."""
        reserved = self.reserved()
        for name, limit in self.limits.items():
            more = needed.of(name)
            used, held = self.used.of(name), reserved.of(name)
            if more > 0 and used + held + more > limit:
                return Shortfall(name, limit, used, held, more)
        return None

    def lines(self) -> list[run_pb2.BudgetLine]:
        """Each limit, with what is used, reserved and left."""
        reserved = self.reserved()
        lines = []
        for name, limit in self.limits.items():
            used, held = self.used.of(name), reserved.of(name)
            lines.append(run_pb2.BudgetLine(limit=name, max=limit, used=used, reserved=held, left=limit - used - held))
        return lines

    def take(self, kind: str, change: run_pb2.Change) -> None:
        """Takes the next change.

        Args:
            kind: Which of its kinds it is.
            change: The change.
        """
        match kind:
            case "step_started":
                self._start(change.step_started)
            case "attempt_started":
                started = change.attempt_started
                if (call := self._model_calls.get(started.step)) is not None:
                    call.holds = True
                elif started.HasField("child_budget"):
                    self._lend(started.step, started.child_budget)
            case "child_ended":
                self._settle(change.child_ended)
            case "attempt_failed":
                failed = change.attempt_failed
                if (call := self._model_calls.get(failed.step)) is not None and call.holds:
                    call.holds = False
                    if may_be_billed(failed.failure):
                        self.used.add(call.reserved)
            case "step_finished":
                self._finish(change.step_finished)
            case "approval_requested":
                approval = change.approval_requested.approval
                if approval.kind == run_pb2.APPROVAL_KIND_BUDGET:
                    self._asked[approval.approval_id] = approval.budget.limit
            case "approval_decided":
                self._decide(change.approval_decided)
            case "approval_closed":
                self.is_declined |= self._asked.pop(change.approval_closed.approval_id, None) is not None

    def _decide(self, decided: run_pb2.ApprovalDecided) -> None:
        limit = self._asked.pop(decided.approval_id, None)
        if limit is None:
            return
        if decided.resolution or not decided.answer_json.isdecimal():
            self.is_declined = True
        else:
            self.limits[limit] = self.limits.get(limit, 0) + int(decided.answer_json)

    def _start(self, started: run_pb2.StepStarted) -> None:
        match started.WhichOneof("intent"):
            case "model":
                reserved = started.model.reserved
                if started.model.final_note:
                    self.final_step, self.final_note = started.step, started.model.final_note
                self._model_calls[started.step] = _ModelCall(
                    Amounts(reserved.cost_usd_nanos, reserved.input_tokens, reserved.output_tokens, model_calls=1),
                    started.model.is_cheaper,
                )
                self.is_degraded |= started.model.is_cheaper
            case "tool":
                self._tool_calls.add(started.step)
                if started.tool.HasField("child_budget"):
                    self._lend(started.step, started.tool.child_budget)

    def _lend(self, step: int, given: agent_pb2.Budget) -> None:
        """A run below is given a part: for each limit that there is here, and whole for as long as it runs."""
        part = {name: max(getattr(given, name), 0) if name in self.limits else 0 for name in LIMITS}
        sent, received, total = part["max_input_tokens"], part["max_output_tokens"], part["max_total_tokens"]
        unsplit = total - sent - received if "max_total_tokens" in self.limits else 0
        cost, calls, tools = part["max_cost_usd_nanos"], part["max_model_calls"], part["max_tool_calls"]
        self._lent[step] = Amounts(cost, sent, received, calls, tools, unsplit)

    def _settle(self, ended: run_pb2.ChildEnded) -> None:
        lent = self._lent.pop(ended.step, None)
        if lent is None:
            return
        said = ended.used
        used = Amounts(
            said.cost_usd_nanos,
            said.input_tokens,
            said.output_tokens,
            said.model_calls,
            said.tool_calls,
            said.unsplit_tokens,
        )
        self.used.add(used if ended.HasField("used") else lent)

    def _finish(self, finished: run_pb2.StepFinished) -> None:
        if finished.step in self._tool_calls:
            self._tool_calls.discard(finished.step)
            if (lent := self._lent.pop(finished.step, None)) is not None:
                # Given up while that run goes on, until it learns of it.
                self.used.add(lent)
            # What was given up at the end of its run, or never begun because of it, is no call that was made.
            self.used.tool_calls += finished.state != run_pb2.STEP_STATE_CANCELLED
            return
        call = self._model_calls.pop(finished.step, None)
        if call is None:
            return
        if finished.state == run_pb2.STEP_STATE_SUCCEEDED:
            usage = finished.usage if finished.HasField("usage") else None
            self.last_answer, self.last_is_cheaper = usage, call.is_cheaper
            self.used.add(call.reserved if usage is None else _used(usage, call.reserved))
        elif call.holds:
            # Given up while it was under way.
            self.used.add(call.reserved)


def ledger_of(created: run_pb2.RunCreated) -> Ledger | None:
    """The budget of a run that was just created; None when nothing is limited."""
    return Ledger(created.budget) if created.HasField("budget") else None


def may_be_billed(failure: content_pb2.Failure) -> bool:
    """Whether the provider may have worked for an attempt that failed."""
    if failure.reason in _MAY_BE_BILLED:
        return True
    return failure.reason not in _NOT_BILLED and failure.failure_class not in _NOT_BILLED_CLASSES


def _used(usage: content_pb2.Usage, reserved: Amounts) -> Amounts:
    cost = usage.cost_usd_nanos if usage.HasField("cost_usd_nanos") else reserved.cost_usd_nanos
    return Amounts(cost, usage.input_tokens, usage.output_tokens, model_calls=1)
