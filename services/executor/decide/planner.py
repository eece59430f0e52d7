"""Decides the next transition of a run: what calls brought, what becomes of what is open, and what comes next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.ids import new_uuid7
from services.executor import budgets, children
from services.executor.call_approvals import SessionApprovals
from services.executor.decide import ends, open_steps
from services.executor.decide.draft import Draft
from services.executor.decide.plan import Outcome, Plan
from services.executor.decide.turns import advance
from services.executor.journal_view import RunView, to_timestamp
from services.executor.tools.builtin import effective_tools


class Planner:
    """Decides for one run under one lease.

    Args:
        view: The run; the planner folds its decisions into it.
        spec: The agent's definition.
        run_id: The run's id.
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
        tools = effective_tools(spec)
        self._view = view
        self._epoch = epoch
        self._executor_id = executor_id
        self._agents = [tool for tool in tools.values() if children.is_agent(tool)]
        self._draft = Draft(
            view,
            spec,
            tools,
            run_id,
            epoch,
            budget=budgets.guard_of(view, spec, tools.values(), prior),
            prior_messages=len(prior),
            session_approvals=session_approvals or SessionApprovals(),
            new_id=new_id,
        )

    @property
    def targets(self) -> children.Targets:
        """Of tools that are agents: those that `plan` may call, looked up before."""
        return self._draft.targets

    @targets.setter
    def targets(self, targets: children.Targets) -> None:
        self._draft.targets = targets

    def agent_tools(self, outcomes: Collection[Outcome]) -> list[agent_pb2.ToolSpec]:
        """The tools that are agents and that the next transition may call; `targets` has to know them."""
        if not self._agents:
            return []
        names = children.tools_to_begin(self._view, outcomes)
        return [tool for tool in self._agents if tool.name in names]

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
        view = self._view
        claims = view.claimed_epoch != self._epoch
        plan = self._begin()
        for change, blobs in outcomes:
            kind = change.WhichOneof("kind")
            assert kind is not None
            step = view.steps.get(getattr(change, kind).step)
            if step is not None and step.is_open:
                self._draft.append(change, blobs)
        if only_outcomes or view.is_pausing:
            self._rest(running)
        elif view.is_ending:
            ends.cancel(self._draft)
        else:
            self._go_on(now, running)
        if claims and len(plan.changes) == 1:
            # Taking over alone says nothing that the next transition will not say.
            plan.changes.clear()
            view.claimed_epoch = 0
        return plan

    def park(self) -> Plan:
        """The transition that makes the run rows: nothing of it runs here, and only outside things are open."""
        plan = self._begin()
        changed = run_pb2.RunStateChanged(
            state=run_pb2.RUN_STATE_WAITING, wait_reason=open_steps.wait_reason(self._view)
        )
        due = self.next_due()
        if due is not None:
            changed.wake_time.CopyFrom(to_timestamp(due))
        self._draft.add(run_state_changed=changed)
        return plan

    def give_up(self, failure: content_pb2.Failure) -> Plan:
        """The transition that ends a run which cannot go on: every open step and every call gets its end (P7)."""
        plan = self._begin()
        ends.give_up(self._draft, failure)
        return plan

    def next_due(self, but: Collection[int] = ()) -> datetime | None:
        """When the first of the open steps goes on by itself.

        Args:
            but: Steps that are not looked at, because their calls are under way.
        """
        return open_steps.next_due(self._view, but)

    # --- phases -----------------------------------------------------------------------------------------------

    def _begin(self) -> Plan:
        plan = self._draft.plan = Plan()
        if self._view.claimed_epoch != self._epoch:
            self._draft.add(run_claimed=run_pb2.RunClaimed(executor_id=self._executor_id, epoch=self._epoch))
        return plan

    def _rest(self, running: Collection[int]) -> None:
        """Nothing is begun any more."""
        view = self._view
        if not view.is_ending:
            ends.succeed_if_answered(self._draft)
        # Invariant: a run is paused when every call of it that was dispatched here is over and stored.
        if view.is_pausing and not running and not view.has_ended():
            self._draft.add(run_state_changed=run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_PAUSED))

    def _go_on(self, now: datetime, running: Collection[int]) -> None:
        for step in list(self._view.open_steps.values()):
            if step.number not in running:
                open_steps.go_on(self._draft, step, now)
                if self._view.has_ended():
                    return
        advance(self._draft, now)
