"""The part of a run's budget that a run below it is given, so that the tree never spends more than its root may (P10).

Invariant: for each limit that a run has, a run that it starts has one too: what is left at that moment, divided equally
among the runs that start with the same answer, and never more than its own agent's limit. The whole part is set aside
until that run ends; then what it used is counted, and the rest is there for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor import prices
from services.executor.budget_rules import model_problems, models_of
from services.shared.run_budgets import BUDGET_EXCEEDED, Ledger


@dataclass(slots=True)
class Shares:
    """Among how many what is left is divided while the calls of one answer are begun.

    Attributes:
        agents: How many runs are still to be started, the next one included.
        calls: How many calls are still to begin, the current one included.
    """

    agents: int
    calls: int

    def take(self) -> int:
        """Returns among how many the next run's part is divided; the run after it shares with one fewer."""
        self.agents -= 1
        return self.agents + 1


def part_of(
    ledger: Ledger, agent: agent_pb2.AgentSpec, now: datetime, *, parts: int, calls_to_begin: int
) -> agent_pb2.Budget | content_pb2.Failure:
    """Returns what a run of the agent is given; why it cannot be started otherwise: the model is told.

    Args:
        ledger: Of the run that starts it.
        agent: The definition of the other agent.
        now: For prices.
        parts: How many runs are still to be started with the same answer, this one included.
        calls_to_begin: How many calls of the answer are still to begin, this one included; each is a call of a tool.
    """
    given = agent_pb2.Budget()
    given.CopyFrom(agent.limits.budget)
    reserved = ledger.reserved()
    for name, limit in ledger.limits.items():
        left = limit - ledger.used.of(name) - reserved.of(name)
        if name == "max_tool_calls":
            left -= calls_to_begin
        own: int = getattr(given, name)
        part = max(left, 0) // parts
        part = min(part, own) if own > 0 else part
        if part == 0 and name != "max_tool_calls":
            return _not_called(agent, BUDGET_EXCEEDED, f"nothing is left of the run's budget for it ({name})")
        # A run can do without tools; 0 would be no limit.
        setattr(given, name, part or -1)
    for field, why in model_problems(agent, given, "the budget of the run that calls it:"):
        return _not_called(agent, "BUDGET_NOT_KEPT", f"{field} {why}")
    one = content_pb2.Usage(input_tokens=1, output_tokens=1)
    if given.max_cost_usd_nanos > 0 and any(
        prices.price_of(model, model.name, one, "", now)[0] is None for _, model in models_of(agent)
    ):
        return _not_called(
            agent, "BUDGET_NOT_KEPT", "the run's cost is limited and nobody knows the price of its model"
        )
    return given


def _not_called(agent: agent_pb2.AgentSpec, reason: str, why: str) -> content_pb2.Failure:
    return content_pb2.Failure(
        reason=reason,
        message=f"The agent {agent.name} was not called: {why}.",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )
