"""The loop's decisions: from the view of a run to the changes that come next. No clock, no I/O, no randomness but
what is passed in; each decision is folded into the view at once, so that what is decided next sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.ids import new_uuid7
from services.executor import budgets, call_approvals, children, retries
from services.executor.budgets import exceeded_failure, tools_after_last_call_failure
from services.executor.call_approvals import SessionApprovals
from services.executor.child_budgets import part_of
from services.executor.idempotency import idempotency_key
from services.executor.journal_view import RunView, StepView, to_datetime, to_timestamp
from services.executor.tools.builtin import due_time_of, effective_tools, question_of
from services.executor.tools.output import settle_failure, settle_result, shorten
from services.executor.tools.schema import ArgumentsRefused, canonical_json, check_arguments
from services.shared.run_budgets import Shortfall
from services.shared.run_ends import BUDGET, CANCEL, EXPIRY, Ending, failure_of_open_call

DEFAULT_MAX_STEPS = 100
DEFAULT_TOOL_TIMEOUT = timedelta(seconds=60)
DEFAULT_START_TIMEOUT = timedelta(hours=24)
DEFAULT_HEARTBEAT_TIMEOUT = timedelta(seconds=30)
MAX_QUESTION_ARGUMENTS_BYTES = 4_096
QUESTION_EXPIRES_AFTER = timedelta(hours=72)
# A step that lacks a sign-in again and again is not asked about for ever.
MAX_SIGN_INS = 5
# The database's clock wakes a run, the executor's decides what is due: they may differ by this much.
CLOCK_TOLERANCE = timedelta(milliseconds=200)

EXECUTOR_LOST = "EXECUTOR_LOST"
WORKER_START_TIMEOUT = "WORKER_START_TIMEOUT"

# Of several things that a run waits for, the one that is named: what people can do something about comes first.
_WAIT_REASONS = (
    run_pb2.WAIT_REASON_INPUT,
    run_pb2.WAIT_REASON_APPROVAL,
    run_pb2.WAIT_REASON_AUTH,
    run_pb2.WAIT_REASON_IN_DOUBT,
    run_pb2.WAIT_REASON_TOOL,
    run_pb2.WAIT_REASON_CHILD,
    run_pb2.WAIT_REASON_TIMER,
)
_REASON_OF_QUESTION = {
    run_pb2.APPROVAL_KIND_TOOL_CALL: run_pb2.WAIT_REASON_APPROVAL,
    run_pb2.APPROVAL_KIND_SIGN_IN: run_pb2.WAIT_REASON_AUTH,
    run_pb2.APPROVAL_KIND_IN_DOUBT: run_pb2.WAIT_REASON_IN_DOUBT,
}


class LocalCall(NamedTuple):
    """An attempt that this executor makes itself, once its intent is stored."""

    step: StepView
    attempt: int
    tool: agent_pb2.ToolSpec | None
    arguments: dict[str, object] | None
    # Of the last call of a run that has used up its budget: what the model is told; it is offered no tools.
    final_note: str = ""
    # Made with the cheaper model of the agent's limits.
    is_cheaper: bool = False


class Outcome(NamedTuple):
    """What a local call brought: a StepFinished or AttemptFailed, and the bodies it refers to."""

    change: run_pb2.Change
    blobs: tuple[content_pb2.Blob, ...] = ()


@dataclass(slots=True)
class Plan:
    """What to store in one transition, and what to do once it is stored."""

    changes: list[run_pb2.Change] = field(default_factory=list)
    blobs: list[content_pb2.Blob] = field(default_factory=list)
    calls: list[journal_pb2.NewCall] = field(default_factory=list)
    children: list[children.ChildCall] = field(default_factory=list)
    local_calls: list[LocalCall] = field(default_factory=list)
    # When there is something to do without any news from outside.
    next_due: datetime | None = None


class Planner:
    """Decides for one run under one lease.

    Args:
        view: The run; the planner folds its decisions into it.
        spec: The agent's definition.
        epoch: The lease.
        executor_id: Who drives.
        prior: The messages of the session's earlier runs.
        session_approvals: What earlier runs of the session were allowed for the rest of it.
        new_id: Makes ids of questions.
    """

    def __init__(
        self,
        view: RunView,
        spec: agent_pb2.AgentSpec,
        *,
        run_id: str,
        epoch: int,
        executor_id: str,
        prior: Sequence[content_pb2.Message] = (),
        session_approvals: SessionApprovals | None = None,
        new_id: Callable[[], str] = new_uuid7,
    ) -> None:
        self._view = view
        self._spec = spec
        self._tools = effective_tools(spec)
        self._has_agents = any(map(children.is_agent, self._tools.values()))
        self._run_id = run_id
        self._epoch = epoch
        self._executor_id = executor_id
        self._prior_messages = len(prior)
        self._budget = budgets.guard_of(view, spec, self._tools.values(), prior)
        self._is_over_budget = False
        # Of the answer whose calls are begun: those that are left, and how many of them start runs.
        self._calls_to_begin = self._agents_to_begin = 0
        self._session_approvals = session_approvals or SessionApprovals()
        self._new_id = new_id
        self._plan = Plan()
        # Of tools that are agents: those that `plan` may call, looked up before.
        self.targets: children.Targets = {}

    def agent_tools(self, outcomes: Collection[Outcome]) -> list[agent_pb2.ToolSpec]:
        """The tools that are agents and that the next transition may call; `targets` has to know them."""
        if not self._has_agents:
            return []
        names = children.tools_to_begin(self._view, outcomes)
        return [tool for name, tool in self._tools.items() if name in names and children.is_agent(tool)]

    def tool(self, name: str) -> agent_pb2.ToolSpec | None:
        """The definition of a tool as the model sees it."""
        return self._tools.get(name)

    def plan(
        self,
        outcomes: Collection[Outcome],
        now: datetime,
        running: Collection[int],
        *,
        only_outcomes: bool = False,
    ) -> Plan:
        """The next transition: what calls brought, and what follows from it.

        Args:
            outcomes: Results of local calls: a StepFinished or AttemptFailed each, with the bodies it refers to.
            now: The time.
            running: Steps whose local calls are under way.
            only_outcomes: Store what calls brought and begin nothing, because the executor is about to stop. The same
                holds while the run is to be paused; it is, once nothing is under way.
        """
        plan = self._plan = Plan()
        view = self._view
        claims = view.claimed_epoch != self._epoch
        if claims:
            self._add(run_claimed=run_pb2.RunClaimed(executor_id=self._executor_id, epoch=self._epoch))
        for outcome in outcomes:
            change = outcome.change
            kind = change.WhichOneof("kind")
            assert kind is not None
            step = view.steps.get(getattr(change, kind).step)
            if step is not None and step.is_open:
                self._append(change, outcome.blobs)
        if only_outcomes or view.is_pausing:
            if not view.is_ending:
                self._succeed_if_answered()
            # Invariant: a run is paused when every call of it that was dispatched here is over and stored.
            if view.is_pausing and not running and not view.has_ended():
                self._add(run_state_changed=run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_PAUSED))
            if claims and len(plan.changes) == 1:
                plan.changes.clear()
                view.claimed_epoch = 0
            return plan
        if view.is_ending:
            self._cancel()
            return plan
        for step in list(view.open_steps.values()):
            self._continue(step, now, running)
            if view.has_ended():
                return plan
        self._advance(now)
        if claims and len(plan.changes) == 1:
            # Taking over alone says nothing that the next transition will not say.
            plan.changes.clear()
            view.claimed_epoch = 0
        return plan

    def park(self, now: datetime) -> Plan:
        """The transition that makes the run rows: nothing of it runs here, and only outside things are open."""
        self._plan = Plan()
        if self._view.claimed_epoch != self._epoch:
            self._add(run_claimed=run_pb2.RunClaimed(executor_id=self._executor_id, epoch=self._epoch))
        changed = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_WAITING, wait_reason=self._wait_reason())
        due = self.next_due()
        if due is not None:
            changed.wake_time.CopyFrom(to_timestamp(due))
        self._add(run_state_changed=changed)
        return self._plan

    def give_up(self, failure: content_pb2.Failure) -> Plan:
        """The transition that ends a run which cannot go on: every open step and every call gets its end (P7)."""
        self._plan = Plan()
        if self._view.claimed_epoch != self._epoch:
            self._add(run_claimed=run_pb2.RunClaimed(executor_id=self._executor_id, epoch=self._epoch))
        self._refuse_calls_without_steps()
        self._fail(failure)
        return self._plan

    def next_due(self, but: Collection[int] = ()) -> datetime | None:
        """When the first of the open steps goes on by itself.

        Args:
            but: Steps that are not looked at, because their calls are under way.
        """
        dues = [
            due
            for number, step in self._view.open_steps.items()
            if number not in but and (due := self._due_of(step)) is not None
        ]
        return min(dues, default=None)

    # --- the turn ---------------------------------------------------------------------------------------------

    def _advance(self, now: datetime) -> None:
        view = self._view
        turn = view.turn
        if turn is not None and not view.open_steps:
            missing = [call for call in turn.calls if not view.has_step_for(call.call_id)]
            if missing:
                self._begin_calls(missing, now)
                if view.has_ended():
                    return
            if self._succeed_if_answered():
                return
        if not view.open_steps and (turn is None or turn.is_answered) and not view.has_ended():
            self._begin_model_step(now)

    def _succeed_if_answered(self) -> bool:
        """The model's answer ends the run, in the transition that holds it; nothing is begun by that."""
        turn = self._view.turn
        if turn is None or turn.calls or self._view.open_steps:
            return False
        self._end(run_pb2.RUN_STATE_SUCCEEDED)
        return True

    def _begin_model_step(self, now: datetime) -> None:
        if not self._has_room_for(1):
            self._fail(_max_steps_failure(self._max_steps))
            return
        view = self._view
        number = view.step_count + 1
        change = run_pb2.Change()
        started = change.step_started
        started.step, started.kind = number, run_pb2.STEP_KIND_MODEL
        intent = started.model
        intent.provider, intent.model = self._spec.model.provider, self._spec.model.name
        intent.message_count = self._prior_messages + view.message_count
        if self._budget is not None:
            call = self._budget.next_call(view, now)
            if isinstance(call, content_pb2.Failure):
                self._fail(call)
                return
            if isinstance(call, Shortfall):
                self._exceed(call, now)
                return
            # Invariant: what it may use is set aside by the event that lets the call be made (P10).
            intent.MergeFrom(call)
        self._append(change)
        self._run_here(view.steps[number], None, None)

    def _begin_last_call(self, intent: run_pb2.ModelIntent) -> None:
        number = self._view.step_count + 1
        intent.provider, intent.model = self._spec.model.provider, self._spec.model.name
        intent.message_count = self._prior_messages + self._view.message_count
        self._add(step_started=run_pb2.StepStarted(step=number, kind=run_pb2.STEP_KIND_MODEL, model=intent))
        self._run_here(self._view.steps[number], None, None)

    def _begin_calls(self, calls: list[content_pb2.ToolCall], now: datetime) -> None:
        if not self._has_room_for(len(calls)):
            failure = _max_steps_failure(self._max_steps)
            for call in calls:
                self._refuse_call(call, failure, run_pb2.STEP_STATE_CANCELLED)
            self._fail(failure)
            return
        if self._budget is not None and (short := self._budget.shortfall_of_tool_calls(len(calls))) is not None:
            self._exceed(short, now)
            return
        if self._view.ledger is not None and self._view.ledger.final_step:
            # It was offered none.
            self._is_over_budget = True
            self._refuse_calls_without_steps()
            self._end(run_pb2.RUN_STATE_BUDGET_EXCEEDED, tools_after_last_call_failure())
            return
        if self._budget is not None:
            self._agents_to_begin = sum(
                children.is_agent(self._tools[call.tool]) for call in calls if call.tool in self._tools
            )
        for index, call in enumerate(calls):
            self._calls_to_begin = len(calls) - index
            tool = self._tools.get(call.tool)
            if tool is None:
                self._refuse_call(call, _unknown_tool_failure(call.tool, self._tools), run_pb2.STEP_STATE_FAILED)
                continue
            try:
                arguments = check_arguments(tool, call.arguments_json)
                self._begin_call(call, tool, arguments, now)
            except ArgumentsRefused as refused:
                self._refuse_call(call, refused.failure, run_pb2.STEP_STATE_FAILED)
        self._calls_to_begin = self._agents_to_begin = 0

    def _begin_call(
        self, call: content_pb2.ToolCall, tool: agent_pb2.ToolSpec, arguments: dict[str, object], now: datetime
    ) -> None:
        number = self._view.step_count + 1
        builtin = tool.builtin.name if tool.WhichOneof("kind") == "builtin" else ""
        kind = run_pb2.STEP_KIND_WAIT if builtin in ("ask_user", "sleep_until") else run_pb2.STEP_KIND_TOOL
        child: children.ChildCall | None = None
        if children.is_agent(tool):
            planned = self._child(tool, arguments, number, 1, now)
            if isinstance(planned, content_pb2.Failure):
                self._refuse_call(call, planned, run_pb2.STEP_STATE_FAILED)
                return
            kind, child = run_pb2.STEP_KIND_CHILD, planned
        arguments_json = canonical_json(arguments)
        change = self._start_of(call, tool, number, kind, arguments_json)
        intent = change.step_started.tool
        if tool.HasField("approval"):
            gate = call_approvals.gate_of(
                tool,
                arguments,
                run_approvals=self._view.run_approvals,
                session_approvals=self._session_approvals,
            )
            if gate is not None and not gate.approval_id:
                self._append(change)
                self._ask_approval(number, tool, arguments_json, gate.prompt, now)
                return
            intent.approval_id = gate.approval_id if gate is not None else ""
        if child is not None:
            intent.child_run_id = child.run_id
            if child.budget is not None:
                intent.child_budget.CopyFrom(child.budget)
            self._append(change)
            self._plan.children.append(child)
            return
        question: run_pb2.Approval | None = None
        if builtin == "sleep_until":
            intent.due_time.CopyFrom(to_timestamp(due_time_of(arguments, now)))
        elif builtin == "ask_user":
            prompt, answer_schema = question_of(arguments)
            question = self._question(number, run_pb2.APPROVAL_KIND_QUESTION, prompt, now)
            if answer_schema is not None:
                question.answer_schema.update(answer_schema)
        self._append(change)
        step = self._view.steps[number]
        if question is not None:
            self._add(approval_requested=run_pb2.ApprovalRequested(approval=question))
        elif intent.tool_kind == "worker":
            self._queue_call(step, tool, now, not_before=None)
        elif kind == run_pb2.STEP_KIND_TOOL:
            self._run_here(step, tool, arguments)

    def _ask_approval(
        self, number: int, tool: agent_pb2.ToolSpec, arguments_json: str, prompt: str, now: datetime
    ) -> None:
        question = self._question(
            number, run_pb2.APPROVAL_KIND_TOOL_CALL, prompt, now, call_approvals.expires_after(tool)
        )
        self._plan.blobs.extend(call_approvals.fill_question(question, tool, arguments_json))
        self._add(approval_requested=run_pb2.ApprovalRequested(approval=question))

    def _child(
        self, tool: agent_pb2.ToolSpec, arguments: dict[str, object], step: int, attempt: int, now: datetime
    ) -> children.ChildCall | content_pb2.Failure:
        child = children.plan_child(self._view, self._spec, self._run_id, tool, arguments, self.targets, step, attempt)
        ledger = self._view.ledger
        if ledger is None or isinstance(child, content_pb2.Failure):
            return child
        parts, self._agents_to_begin = max(self._agents_to_begin, 1), max(self._agents_to_begin - 1, 0)
        given = part_of(ledger, child.target.spec, now, parts=parts, calls_to_begin=self._calls_to_begin)
        return given if isinstance(given, content_pb2.Failure) else replace(child, budget=given)

    def _refuse_call(self, call: content_pb2.ToolCall, failure: content_pb2.Failure, state: run_pb2.StepState) -> None:
        number = self._view.step_count + 1
        tool = self._tools.get(call.tool) or agent_pb2.ToolSpec(name=call.tool)
        self._append(self._start_of(call, tool, number, run_pb2.STEP_KIND_TOOL, call.arguments_json))
        self._finish_with_failure(self._view.steps[number], failure, state)

    def _start_of(
        self,
        call: content_pb2.ToolCall,
        tool: agent_pb2.ToolSpec,
        number: int,
        kind: run_pb2.StepKind,
        arguments: str,
    ) -> run_pb2.Change:
        # Filled in place: a message that is put into another one is copied.
        change = run_pb2.Change()
        started = change.step_started
        started.step, started.kind = number, kind
        intent = started.tool
        intent.tool, intent.call_id = call.tool, call.call_id
        intent.effect = tool.effect or agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
        intent.idempotency_key = idempotency_key(self._run_id, number, call.tool, arguments)
        intent.tool_kind = tool.WhichOneof("kind") or ""
        return change

    # --- open steps -------------------------------------------------------------------------------------------

    def _continue(self, step: StepView, now: datetime, running: Collection[int]) -> None:
        """Takes an open step on, if anything can be decided about it."""
        if step.number in running:
            return
        question = step.question
        if question is not None:
            if question.decision is not None or now >= to_datetime(question.approval.expire_time):
                self._answer(step, now)
            return
        if step.kind == run_pb2.STEP_KIND_WAIT:
            if step.tool is not None and step.tool.HasField("due_time"):
                due = to_datetime(step.tool.due_time)
                if due <= now + CLOCK_TOLERANCE:
                    self._succeed(step, canonical_json({"slept_until": due.isoformat()}))
            return
        if step.state == run_pb2.STEP_STATE_IN_DOUBT:
            return
        if step.is_child:
            self._continue_child(step, now)
            return
        if step.failure is None and not step.is_worker_call:
            if step.dispatch_epoch == 0:
                # Parked before it was dispatched. The attempt is announced again, so that a crash from here on is seen.
                if step.not_before is None or step.not_before <= now + CLOCK_TOLERANCE:
                    self._begin_attempt(step, step.attempt, None, now)
                return
            if step.dispatch_epoch == self._epoch:
                # Its intent is stored under this lease and nothing of it runs: it has not been dispatched yet.
                self._dispatch(step)
                return
            self._add(
                attempt_failed=run_pb2.AttemptFailed(
                    step=step.number, attempt=step.attempt, failure=_executor_lost_failure(step)
                )
            )
        if step.failure is not None:
            self._after_failure(step, now)

    def _continue_child(self, step: StepView, now: datetime) -> None:
        end = step.child_end
        if step.failure is None and end is None:
            is_due = step.not_before is None or step.not_before <= now + CLOCK_TOLERANCE
            if not step.child_run_id and is_due:
                self._begin_attempt(step, step.attempt, None, now)
            return
        if step.failure is None:
            assert end is not None and step.tool is not None
            tool = self._tools[step.tool.tool]
            if end.state == run_pb2.RUN_STATE_SUCCEEDED:
                self._succeed(step, children.result_of(tool, end))
                return
            failure = children.failure_of(tool, end)
            self._add(attempt_failed=run_pb2.AttemptFailed(step=step.number, attempt=step.attempt, failure=failure))
        self._after_failure(step, now)

    def _after_failure(self, step: StepView, now: datetime) -> None:
        """The current attempt has failed or was lost: again, ask, or over."""
        failure = step.failure
        assert failure is not None
        if step.sign_in is not None and step.attempt <= MAX_SIGN_INS:
            question = self._question(step.number, run_pb2.APPROVAL_KIND_SIGN_IN, failure.message, now)
            question.sign_in.CopyFrom(step.sign_in)
            question.tool = step.tool.tool if step.tool is not None else ""
            self._add(approval_requested=run_pb2.ApprovalRequested(approval=question))
            return
        unknown = failure.failure_class == content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
        is_repeatable = step.tool is None or step.tool.effect in (
            agent_pb2.EFFECT_CLASS_READ_ONLY,
            agent_pb2.EFFECT_CLASS_IDEMPOTENT,
        )
        if unknown and not is_repeatable:
            self._doubt(step, failure, now)
            return
        if unknown:
            failure = content_pb2.Failure()
            failure.CopyFrom(step.failure or failure)
            failure.failure_class = content_pb2.FAILURE_CLASS_RETRYABLE
        delay = None
        lost = failure.reason == EXECUTOR_LOST
        if failure.reason != WORKER_START_TIMEOUT and step.attempt < step.counted_failures + retries.MAX_LOST_ATTEMPTS:
            delay = retries.delay_before_retry(self._retry_policy(step), failure, step.counted_failures, lost=lost)
        if delay is not None:
            not_before = now + timedelta(seconds=delay) if delay > 0 else None
            self._begin_attempt(step, step.attempt + 1, not_before, now)
        else:
            self._fail_step(step, failure)

    def _fail_step(self, step: StepView, failure: content_pb2.Failure) -> None:
        """A step is over without a result: the model is told, unless it was the model that failed."""
        if step.kind == run_pb2.STEP_KIND_MODEL:
            self._add(
                step_finished=run_pb2.StepFinished(
                    step=step.number, attempt=step.attempt, state=run_pb2.STEP_STATE_FAILED, failure=failure
                )
            )
            self._fail(failure)
        else:
            self._finish_with_failure(step, failure, run_pb2.STEP_STATE_FAILED)

    def _begin_attempt(self, step: StepView, attempt: int, not_before: datetime | None, now: datetime) -> None:
        if self._budget is not None and step.kind == run_pb2.STEP_KIND_MODEL and attempt != step.attempt:
            short = self._budget.shortfall_of_attempt(step.number, now)
            if short is not None:
                self._add(
                    step_finished=run_pb2.StepFinished(
                        step=step.number, attempt=step.attempt, state=run_pb2.STEP_STATE_FAILED, failure=step.failure
                    )
                )
                if not self._budget.goes_on_cheaper(short):
                    self._exceed(short, now)
                return
        started = run_pb2.AttemptStarted(step=step.number, attempt=attempt)
        if not_before is not None:
            started.not_before.CopyFrom(to_timestamp(not_before))
        elif step.is_child:
            self._begin_child_attempt(step, started, now)
            return
        self._add(attempt_started=started)
        if step.is_child:
            # Its run is started when it is due.
            return
        if step.tool is not None and step.is_worker_call:
            self._queue_call(step, self._tools[step.tool.tool], now, not_before)
        else:
            self._dispatch(step)

    def _begin_child_attempt(self, step: StepView, started: run_pb2.AttemptStarted, now: datetime) -> None:
        assert step.tool is not None
        tool = self._tools[step.tool.tool]
        arguments = check_arguments(tool, self._view.arguments_of(step))
        child = self._child(tool, arguments, step.number, started.attempt, now)
        if isinstance(child, content_pb2.Failure):
            self._fail_step(step, child)
            return
        started.child_run_id = child.run_id
        if child.budget is not None:
            started.child_budget.CopyFrom(child.budget)
        self._add(attempt_started=started)
        self._plan.children.append(child)

    def _dispatch(self, step: StepView) -> None:
        if step.tool is None:
            self._run_here(step, None, None)
        else:
            tool = self._tools[step.tool.tool]
            self._run_here(step, tool, check_arguments(tool, self._view.arguments_of(step)))

    def _doubt(self, step: StepView, failure: content_pb2.Failure, now: datetime) -> None:
        assert step.tool is not None
        tool = self._tools[step.tool.tool]
        self._add(step_in_doubt=run_pb2.StepInDoubt(step=step.number, attempt=step.attempt, failure=failure))
        if tool.in_doubt == agent_pb2.IN_DOUBT_POLICY_TELL_MODEL:
            self._finish_with_failure(step, failure, run_pb2.STEP_STATE_FAILED)
        elif tool.in_doubt == agent_pb2.IN_DOUBT_POLICY_FAIL_RUN:
            self._finish_with_failure(step, failure, run_pb2.STEP_STATE_FAILED)
            self._fail(failure)
        else:
            prompt = (
                f"The call of {step.tool.tool} was started and its result is missing ({failure.message}) "
                "Did it take effect?"
            )
            question = self._question(step.number, run_pb2.APPROVAL_KIND_IN_DOUBT, prompt, now)
            question.tool = step.tool.tool
            # Short: the questions of a whole turn are one event, and events are small. The call itself has all of it.
            question.arguments_json = shorten(self._view.arguments_of(step), MAX_QUESTION_ARGUMENTS_BYTES)
            self._add(approval_requested=run_pb2.ApprovalRequested(approval=question))

    def _answer(self, step: StepView, now: datetime) -> None:
        """A question is decided or has expired."""
        question = step.question
        assert question is not None
        approval_id = question.approval.approval_id
        decision = question.decision
        if question.approval.kind == run_pb2.APPROVAL_KIND_BUDGET:
            self._go_on_with_budget(step, approval_id, decision)
            return
        if decision is None:
            self._add(
                approval_closed=run_pb2.ApprovalClosed(approval_id=approval_id, state=run_pb2.APPROVAL_STATE_EXPIRED)
            )
            failure = content_pb2.Failure(
                reason="APPROVAL_EXPIRED",
                message="Nobody answered in time. The call was not carried out further; ask again if still needed.",
                failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
            )
            if step.failure is not None:
                # Of a call in doubt, or one that lacks a sign-in: what the model has to know is that.
                failure = step.failure
            elif step.is_held:
                failure = call_approvals.expired_failure()
            self._fail_step(step, failure)
            return
        step.question = None
        if question.approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
            self._after_approval(step, decision, now)
            return
        if question.approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN:
            self._after_sign_in(step, decision, now)
            return
        if question.approval.kind == run_pb2.APPROVAL_KIND_QUESTION:
            self._succeed(step, decision.answer_json)
            return
        doubt = step.failure or content_pb2.Failure(reason="UNKNOWN_OUTCOME", message="The outcome is unknown.")
        if decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_DONE:
            self._succeed(step, decision.answer_json or "null")
        elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE:
            self._begin_attempt(step, step.attempt + 1, None, now)
        elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN:
            self._finish_with_failure(step, doubt, run_pb2.STEP_STATE_FAILED)
            self._fail(doubt)
        else:
            self._finish_with_failure(step, doubt, run_pb2.STEP_STATE_FAILED)

    def _after_approval(self, step: StepView, decision: run_pb2.ApprovalDecided, now: datetime) -> None:
        assert step.tool is not None
        tool = self._tools[step.tool.tool]
        arguments = check_arguments(tool, self._view.arguments_of(step))
        refusal = call_approvals.refusal_of(decision, canonical_json(arguments))
        if refusal is not None:
            self._fail_step(step, refusal)
        else:
            self._begin_attempt(step, step.attempt, None, now)

    def _go_on_with_budget(self, step: StepView, approval_id: str, decision: run_pb2.ApprovalDecided | None) -> None:
        """What a person has given is in the ledger already; what comes next is decided anew by that."""
        state = run_pb2.STEP_STATE_SUCCEEDED
        if decision is None:
            state = run_pb2.STEP_STATE_FAILED
            self._add(
                approval_closed=run_pb2.ApprovalClosed(approval_id=approval_id, state=run_pb2.APPROVAL_STATE_EXPIRED)
            )
        self._add(step_finished=run_pb2.StepFinished(step=step.number, attempt=step.attempt, state=state))

    def _after_sign_in(self, step: StepView, decision: run_pb2.ApprovalDecided, now: datetime) -> None:
        failure = step.failure
        assert failure is not None
        if decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN and step.tool is not None:
            self._finish_with_failure(step, failure, run_pb2.STEP_STATE_FAILED)
            self._fail(failure)
        elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED:
            self._begin_attempt(step, step.attempt + 1, None, now)
        else:
            self._fail_step(step, failure)

    # --- ends -------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        """Every open call gets its one result, every open step its end."""
        self._refuse_calls_without_steps()
        # Also where somebody had asked to cancel it: that came to nothing in time.
        self._end(run_pb2.RUN_STATE_EXPIRED if self._view.has_expired else run_pb2.RUN_STATE_CANCELLED)

    def _refuse_calls_without_steps(self) -> None:
        turn = self._view.turn
        for call in turn.calls if turn is not None else ():
            if not self._view.has_step_for(call.call_id):
                self._refuse_call(call, self._open_failure(None), run_pb2.STEP_STATE_CANCELLED)

    def _exceed(self, short: Shortfall, now: datetime) -> None:
        """There is no room for what comes next: the run stops before it, or what its agent says happens instead."""
        assert self._budget is not None
        needed = self._budget.question_about(short)
        if needed is not None and self._has_room_for(1):
            number = self._view.step_count + 1
            self._add(step_started=run_pb2.StepStarted(step=number, kind=run_pb2.STEP_KIND_WAIT))
            prompt = f"{exceeded_failure(short).message} How much more may it use?"
            question = self._question(number, run_pb2.APPROVAL_KIND_BUDGET, prompt, now)
            question.budget.CopyFrom(needed)
            self._add(approval_requested=run_pb2.ApprovalRequested(approval=question))
            return
        self._is_over_budget = True
        self._refuse_calls_without_steps()
        # Order matters: what the calls came to is part of what a last call is sent.
        if self._has_room_for(1) and (intent := self._budget.last_call(self._view, short, now)) is not None:
            self._is_over_budget = False
            self._begin_last_call(intent)
            return
        self._end(run_pb2.RUN_STATE_BUDGET_EXCEEDED, exceeded_failure(short))

    def _fail(self, failure: content_pb2.Failure) -> None:
        self._end(run_pb2.RUN_STATE_FAILED, failure)

    def _end(self, state: run_pb2.RunState, failure: content_pb2.Failure | None = None) -> None:
        for step in list(self._view.open_steps.values()):
            if step.question is not None and step.question.decision is None:
                self._add(
                    approval_closed=run_pb2.ApprovalClosed(
                        approval_id=step.question.approval.approval_id, state=self._ending.question_state
                    )
                )
            if step.tool is None:
                self._add(
                    step_finished=run_pb2.StepFinished(
                        step=step.number,
                        attempt=step.attempt,
                        state=run_pb2.STEP_STATE_CANCELLED,
                        failure=self._open_failure(None),
                    )
                )
            else:
                self._finish_with_failure(step, self._open_failure(step), run_pb2.STEP_STATE_CANCELLED)
        changed = run_pb2.RunStateChanged(state=state)
        if failure is not None:
            changed.failure.CopyFrom(failure)
        view = self._view
        if view.ledger is not None and view.created is not None and view.created.parent_run_id:
            # Of the budget that it was given, the rest is its parent's again.
            changed.used.CopyFrom(view.ledger.used.message())
        self._plan.local_calls.clear()
        self._plan.calls.clear()
        if self._plan.children:
            children.withdraw(self._plan.changes)
            self._plan.children.clear()
        self._add(run_state_changed=changed)

    @property
    def _ending(self) -> Ending:
        if self._is_over_budget:
            return BUDGET
        return EXPIRY if self._view.has_expired else CANCEL

    def _open_failure(self, step: StepView | None) -> content_pb2.Failure:
        may_have_happened = (
            step is not None
            and step.tool is not None
            and not step.is_held
            and (
                step.state == run_pb2.STEP_STATE_IN_DOUBT or (step.tool.tool_kind != "builtin" and step.failure is None)
            )
        )
        return failure_of_open_call(self._ending, may_have_happened=may_have_happened)

    # --- small parts ------------------------------------------------------------------------------------------

    def _add(self, **kind: object) -> None:
        self._append(run_pb2.Change(**kind))  # type: ignore[arg-type]

    def _append(self, change: run_pb2.Change, blobs: Collection[content_pb2.Blob] = ()) -> None:
        self._plan.changes.append(change)
        self._plan.blobs.extend(blobs)
        self._view.apply(_with_message_inline(change, blobs), self._epoch)

    def _run_here(self, step: StepView, tool: agent_pb2.ToolSpec | None, arguments: dict[str, object] | None) -> None:
        ledger = self._view.ledger
        note = ledger.final_note if ledger is not None and ledger.final_step == step.number else ""
        is_cheaper = ledger is not None and ledger.is_cheaper(step.number)
        self._plan.local_calls.append(LocalCall(step, step.attempt, tool, arguments, note, is_cheaper))

    def _queue_call(
        self,
        step: StepView,
        tool: agent_pb2.ToolSpec,
        now: datetime,
        not_before: datetime | None,
    ) -> None:
        assert step.tool is not None and self._view.created is not None
        start_timeout = tool.start_timeout.ToTimedelta() if tool.HasField("start_timeout") else DEFAULT_START_TIMEOUT
        new_call = journal_pb2.NewCall(
            step=step.number,
            attempt=step.attempt,
            tool=step.tool.tool,
            call_id=step.tool.call_id,
            arguments_json=canonical_json(check_arguments(tool, self._view.arguments_of(step))),
            arguments_edited=bool(step.edited_arguments_json),
            idempotency_key=step.tool.idempotency_key,
            start_deadline=to_timestamp((not_before or now) + start_timeout),
            timeout=_duration(tool, "timeout", DEFAULT_TOOL_TIMEOUT),
            heartbeat_timeout=_duration(tool, "heartbeat_timeout", DEFAULT_HEARTBEAT_TIMEOUT),
            agent=self._view.created.agent,
            user_id=self._view.created.user_id,
            revision=self._view.created.revision,
            root_run_id=self._view.created.root_run_id,
        )
        if not_before is not None:
            new_call.not_before.CopyFrom(to_timestamp(not_before))
        self._plan.calls.append(new_call)

    def _question(
        self,
        step: int,
        kind: run_pb2.ApprovalKind,
        prompt: str,
        now: datetime,
        expires_after: timedelta = QUESTION_EXPIRES_AFTER,
    ) -> run_pb2.Approval:
        return run_pb2.Approval(
            approval_id=self._new_id(),
            run_id=self._run_id,
            step=step,
            kind=kind,
            state=run_pb2.APPROVAL_STATE_PENDING,
            prompt=prompt,
            expire_time=to_timestamp(now + expires_after),
        )

    def _succeed(self, step: StepView, result_json: str) -> None:
        assert step.tool is not None
        settled = settle_result(
            self._tools[step.tool.tool], step.tool.call_id, result_json, note=call_approvals.note_of(step)
        )
        finished = run_pb2.StepFinished(
            step=step.number,
            attempt=step.attempt,
            state=run_pb2.STEP_STATE_FAILED if settled.failure else run_pb2.STEP_STATE_SUCCEEDED,
            message=settled.message,
            failure=settled.failure,
            output=settled.output,
        )
        self._append(run_pb2.Change(step_finished=finished), settled.blobs)

    def _finish_with_failure(self, step: StepView, failure: content_pb2.Failure, state: run_pb2.StepState) -> None:
        assert step.tool is not None
        tool = self._tools.get(step.tool.tool) or agent_pb2.ToolSpec(name=step.tool.tool)
        settled = settle_failure(tool, step.tool.call_id, failure, note=call_approvals.note_of(step))
        self._plan.blobs.extend(settled.blobs)
        self._add(
            step_finished=run_pb2.StepFinished(
                step=step.number, attempt=step.attempt, state=state, message=settled.message, failure=failure
            )
        )

    def _due_of(self, step: StepView) -> datetime | None:
        if step.question is not None:
            return to_datetime(step.question.approval.expire_time)
        if step.tool is not None and step.tool.HasField("due_time"):
            return to_datetime(step.tool.due_time)
        if step.state == run_pb2.STEP_STATE_STARTED and not step.is_worker_call:
            return step.not_before
        return None

    def _wait_reason(self) -> run_pb2.WaitReason:
        reasons: set[run_pb2.WaitReason] = set()
        for step in self._view.open_steps.values():
            if step.question is not None:
                reasons.add(_REASON_OF_QUESTION.get(step.question.approval.kind, run_pb2.WAIT_REASON_INPUT))
            elif step.is_worker_call:
                reasons.add(run_pb2.WAIT_REASON_TOOL)
            elif step.child_run_id:
                reasons.add(run_pb2.WAIT_REASON_CHILD)
            else:
                reasons.add(run_pb2.WAIT_REASON_TIMER)
        return min(reasons, key=_WAIT_REASONS.index)

    @property
    def _max_steps(self) -> int:
        return self._spec.limits.max_steps or DEFAULT_MAX_STEPS

    def _has_room_for(self, steps: int) -> bool:
        return self._view.step_count + steps <= self._max_steps

    def _retry_policy(self, step: StepView) -> agent_pb2.RetryPolicy:
        if step.tool is not None:
            return self._tools[step.tool.tool].retry
        ledger = self._view.ledger
        is_cheaper = ledger is not None and ledger.is_cheaper(step.number)
        return self._spec.limits.cheaper_model.retry if is_cheaper else self._spec.model.retry


def _with_message_inline(change: run_pb2.Change, blobs: Collection[content_pb2.Blob]) -> run_pb2.Change:
    """The change as the view reads it: a large message itself, not the reference to its body that is stored."""
    if change.WhichOneof("kind") != "step_finished" or change.step_finished.message.WhichOneof("body") != "blob":
        return change
    wanted = change.step_finished.message.blob.hash
    body = next(blob.data for blob in blobs if blob.hash == wanted)
    inline = run_pb2.Change()
    inline.CopyFrom(change)
    inline.step_finished.message.message.CopyFrom(content_pb2.Message.FromString(body))
    return inline


def _duration(tool: agent_pb2.ToolSpec, name: str, default: timedelta) -> Duration:
    if tool.HasField(name):
        return getattr(tool, name)  # type: ignore[no-any-return]
    duration = Duration()
    duration.FromTimedelta(default)
    return duration


def _executor_lost_failure(step: StepView) -> content_pb2.Failure:
    # A model call changes nothing outside; for a tool, only its effect class says what may be repeated.
    unknown = step.tool is not None
    return content_pb2.Failure(
        reason=EXECUTOR_LOST,
        message="The executor that made this attempt was lost before its result was stored.",
        failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME if unknown else content_pb2.FAILURE_CLASS_RETRYABLE,
    )


def _max_steps_failure(max_steps: int) -> content_pb2.Failure:
    return content_pb2.Failure(
        reason="MAX_STEPS_EXCEEDED",
        message=f"The run would need more than its {max_steps} steps (limits.max_steps).",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def _unknown_tool_failure(name: str, tools: Collection[str]) -> content_pb2.Failure:
    known = ", ".join(sorted(tools)) or "none"
    return content_pb2.Failure(
        reason="TOOL_UNKNOWN",
        message=f"There is no tool {name!r}. The tools are: {known}.",
        failure_class=content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS,
    )
