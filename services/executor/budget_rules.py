"""What a budget has to be before an agent or a run gets it: one that can be kept before each call (P10)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import FieldViolation, InvalidArgument
from services.executor import prices
from services.executor.budgets import longest_answer
from services.shared.run_budgets import LIMITS

LARGEST_LIMIT: Final = 10**17

_OF_ANSWERS: Final = ("max_cost_usd_nanos", "max_output_tokens", "max_total_tokens")


def budget_problems(spec: agent_pb2.AgentSpec) -> Iterator[tuple[str, str]]:
    """Yields the fields of an agent's budget and of its model's price that are wrong, and why."""
    for path, model in (("model", spec.model), ("limits.cheaper_model", spec.limits.cheaper_model)):
        for name in ("input_usd_nanos_per_million_tokens", "output_usd_nanos_per_million_tokens"):
            if not 0 <= getattr(model.price, name) <= LARGEST_LIMIT:
                yield f"{path}.price.{name}", f"expected 0 to {LARGEST_LIMIT}"
    degrades = spec.limits.on_budget_exceeded == agent_pb2.BUDGET_POLICY_DEGRADE
    if degrades and not spec.limits.HasField("cheaper_model"):
        yield "limits.cheaper_model", "is needed for on_budget_exceeded: degrade"
    elif spec.limits.HasField("cheaper_model") and not degrades:
        yield "limits.cheaper_model", "is for on_budget_exceeded: degrade only"
    if spec.limits.HasField("budget"):
        for name, problem in _limit_problems(spec.limits.budget):
            yield f"limits.budget.{name}", problem
        yield from model_problems(spec, spec.limits.budget, "limits.budget")


def _limit_problems(budget: agent_pb2.Budget) -> Iterator[tuple[str, str]]:
    for name in LIMITS:
        if not 0 <= getattr(budget, name) <= LARGEST_LIMIT:
            yield name, f"expected 0 (no limit) to {LARGEST_LIMIT}"


def model_problems(spec: agent_pb2.AgentSpec, budget: agent_pb2.Budget, path: str) -> Iterator[tuple[str, str]]:
    """What the model lacks so that a call can be reserved."""
    limit = next((name for name in _OF_ANSWERS if getattr(budget, name) > 0), None)
    for field, model in models_of(spec):
        if limit is not None and longest_answer(model) is None:
            yield (
                f"{field}.parameters.max_output_tokens",
                f"is needed under {path}.{limit}: before each call its longest answer is reserved",
            )


def models_of(spec: agent_pb2.AgentSpec) -> Iterator[tuple[str, agent_pb2.ModelSpec]]:
    """Yields the models that runs of an agent may call, with their fields."""
    yield "model", spec.model
    if spec.limits.HasField("cheaper_model"):
        yield "limits.cheaper_model", spec.limits.cheaper_model


async def check_prices(spec: agent_pb2.AgentSpec, budget: agent_pb2.Budget, path: str) -> None:
    """Refuses a limit of cost where nobody knows what a call costs.

    Raises:
        InvalidArgument: Names the limit.
    """
    if budget.max_cost_usd_nanos <= 0:
        return
    for field, model in models_of(spec):
        if model.HasField("price") or await asyncio.to_thread(prices.is_known, model.provider, model.name):
            continue
        raise InvalidArgument(
            f"{path}.max_cost_usd_nanos: the price of {model.provider}/{model.name} is not known to "
            f"{prices.price_source()}; give it as {field}.price, or limit tokens",
            field=f"{path}.max_cost_usd_nanos",
            description=f"needs a model whose price is known: give it as {field}.price, or limit tokens",
        )


async def budget_of_run(spec: agent_pb2.AgentSpec, asked: agent_pb2.Budget | None) -> agent_pb2.Budget | None:
    """Returns what a run may use: the agent's budget, narrowed by the caller; None when nothing is limited.

    Args:
        spec: The agent's definition.
        asked: What the caller gives.

    Raises:
        InvalidArgument: It is wider than the agent's, or cannot be kept.
    """
    budget = agent_pb2.Budget()
    budget.CopyFrom(spec.limits.budget)
    if asked is not None:
        problems = list(_limit_problems(asked))
        for name in LIMITS:
            own, wanted = getattr(budget, name), getattr(asked, name)
            if own and wanted > own:
                problems.append((name, f"the agent's own limit is {own}; that of a run can only be lower"))
            elif wanted:
                setattr(budget, name, wanted)
        violations = [FieldViolation(f"budget.{name}", problem) for name, problem in problems]
        violations += [
            FieldViolation("budget", f"{field} {why}") for field, why in model_problems(spec, budget, "budget")
        ]
        if violations:
            listed = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
            raise InvalidArgument(f"the run's budget is not valid: {listed}", field_violations=violations)
    if not any(getattr(budget, name) for name in LIMITS):
        return None
    await check_prices(spec, budget, "budget")
    return budget
