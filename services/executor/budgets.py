"""What the next call needs of a run's budget, and whether that is left: decided from the journal alone (P4, P10).

A model call needs, at most, the tokens that are sent and its longest answer. What is sent is estimated from above: what
the provider counted of the same conversation before, answer included, and of what is new a token for each byte: a token
stands for one byte at least. Instructions and tools get an allowance for what providers put around them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final

from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import prices
from services.executor.journal_view import RunView
from services.executor.models.anthropic import DEFAULT_MAX_OUTPUT_TOKENS
from services.executor.tools.schema import canonical_json
from services.shared.run_budgets import BUDGET_EXCEEDED, Amounts, Ledger, Shortfall

# What providers put around a message, a tool, and tools at all.
_TOKENS_AROUND_A_MESSAGE: Final = 16
_TOKENS_AROUND_A_TOOL: Final = 32
_TOKENS_AROUND_TOOLS: Final = 600
# The note of the last call is shorter.
_TOKENS_OF_LAST_NOTE: Final = 600
_ANSWER_NOW: Final = "There are no tools any more, and no further turns: answer now, with what you have."

_UNITS: Final = {
    "max_cost_usd_nanos": "",
    "max_input_tokens": " input tokens",
    "max_output_tokens": " output tokens",
    "max_total_tokens": " tokens",
    "max_model_calls": " model calls",
    "max_tool_calls": " tool calls",
}


class BudgetGuard:
    """Says what a run's next calls need and whether it is left.

    Args:
        ledger: What was used and is reserved; of the run's view, so that each decision is seen by the next.
        spec: The agent's definition.
        tools: Its tools as the model sees them.
        prior: The messages of the session's earlier runs.
        is_child: Another run has started it.
    """

    def __init__(
        self,
        ledger: Ledger,
        spec: agent_pb2.AgentSpec,
        tools: Collection[agent_pb2.ToolSpec],
        prior: Sequence[content_pb2.Message],
        *,
        is_child: bool = False,
    ) -> None:
        self._ledger = ledger
        self._spec = spec
        self._tools = tools
        self._prior = prior
        self._is_child = is_child

    def next_call(self, view: RunView, now: datetime) -> run_pb2.ModelIntent | Shortfall | content_pb2.Failure:
        """The next model call with what is reserved for it, by the model that it is made with; or what it lacks, or why
        the run cannot go on."""
        short: Shortfall | None = None
        for is_cheaper in (False, True) if self._degrades else (False,):
            if self._ledger.is_degraded and not is_cheaper:
                continue
            model = self._model(is_cheaper)
            reserved = self._reservation(view, is_cheaper, now)
            if reserved is None:
                return price_unknown_failure(model)
            short = self.shortfall(reserved, now)
            if short is None:
                return run_pb2.ModelIntent(
                    provider=model.provider, model=model.name, reserved=reserved, is_cheaper=is_cheaper
                )
        assert short is not None
        return short

    def goes_on_cheaper(self, short: Shortfall) -> bool:
        """Whether what has no room may have it with the cheaper model, which was not used so far."""
        return self._degrades and not self._ledger.is_degraded and short.limit != "max_tool_calls"

    @property
    def _degrades(self) -> bool:
        return self._spec.limits.on_budget_exceeded == agent_pb2.BUDGET_POLICY_DEGRADE

    def _model(self, is_cheaper: bool) -> agent_pb2.ModelSpec:
        return self._spec.limits.cheaper_model if is_cheaper else self._spec.model

    def _reservation(self, view: RunView, is_cheaper: bool, now: datetime) -> run_pb2.Reservation | None:
        model = self._model(is_cheaper)
        reserved = run_pb2.Reservation(output_tokens=longest_answer(model) or 0)
        # What another model has counted is nothing to go by: it counts in its own way.
        is_counted = self._ledger.last_is_cheaper == is_cheaper
        return reserved if self._fill(reserved, self._input_tokens(view, is_counted), now, model) else None

    def _fill(
        self, reserved: run_pb2.Reservation, input_tokens: int, now: datetime, model: agent_pb2.ModelSpec | None = None
    ) -> bool:
        """Completes a reservation; False when its price is not known."""
        model = self._spec.model if model is None else model
        reserved.input_tokens = input_tokens
        if self._ledger.limits_cost:
            usage = content_pb2.Usage(input_tokens=input_tokens, output_tokens=reserved.output_tokens)
            cost, source = prices.price_of(model, model.name, usage, "", now)
            if cost is None:
                return False
            reserved.cost_usd_nanos, reserved.price_source = cost, source
        return True

    def shortfall(self, reserved: run_pb2.Reservation, now: datetime) -> Shortfall | None:
        """What a model call lacks; None when it fits, and leaves what is kept back for a last one."""
        needed = Amounts(reserved.cost_usd_nanos, reserved.input_tokens, reserved.output_tokens, model_calls=1)
        return self._ledger.shortfall(self._with_last(needed, now))

    def shortfall_of_attempt(self, step: int, now: datetime) -> Shortfall | None:
        """What another attempt of an open model step lacks; None when it fits."""
        needed = self._ledger.reservation_of(step)
        return self._ledger.shortfall(needed if step == self._ledger.final_step else self._with_last(needed, now))

    def last_call(self, view: RunView, short: Shortfall, now: datetime) -> run_pb2.ModelIntent | None:
        """The intent of a last model call without tools; None when there is to be none, was one, or it does not fit."""
        if not self._finalises or self._ledger.final_step:
            return None
        intent = run_pb2.ModelIntent(final_note=f"{exceeded_failure(short).message} {_ANSWER_NOW}")
        reserved = self._reservation(view, False, now)
        if reserved is None:
            return None
        self._fill(reserved, reserved.input_tokens + len(intent.final_note) + _TOKENS_AROUND_A_MESSAGE, now)
        intent.reserved.CopyFrom(reserved)
        needed = Amounts(reserved.cost_usd_nanos, reserved.input_tokens, reserved.output_tokens, model_calls=1)
        return intent if self._ledger.shortfall(needed) is None else None

    @property
    def _finalises(self) -> bool:
        return self._spec.limits.on_budget_exceeded == agent_pb2.BUDGET_POLICY_FINALISE

    def _with_last(self, needed: Amounts, now: datetime) -> Amounts:
        """With what is kept back: for a call that is sent all of this one, its longest answer, and a note."""
        if not self._finalises or self._ledger.final_step:
            return needed
        last = run_pb2.Reservation(output_tokens=needed.output_tokens)
        self._fill(last, needed.input_tokens + needed.output_tokens + _TOKENS_OF_LAST_NOTE, now)
        total = Amounts(last.cost_usd_nanos, last.input_tokens, last.output_tokens, model_calls=1)
        total.add(needed)
        return total

    def shortfall_of_tool_calls(self, count: int) -> Shortfall | None:
        """What so many calls of tools lack; None when they fit."""
        return self._ledger.shortfall(Amounts(tool_calls=count))

    def question_about(self, short: Shortfall) -> run_pb2.BudgetShortfall | None:
        """What a person is asked for; None when nobody is to be asked, or somebody was and gave nothing.

        Of a run that another one has started, the budget is a part of that one's: only the root's can grow.
        """
        policy = self._spec.limits.on_budget_exceeded
        if policy != agent_pb2.BUDGET_POLICY_ASK or self._ledger.is_declined or self._is_child:
            return None
        return run_pb2.BudgetShortfall(
            limit=short.limit, max=short.max, used=short.used, reserved=short.reserved, needed=short.needed
        )

    def _input_tokens(self, view: RunView, is_counted: bool) -> int:
        last, turn = self._ledger.last_answer, view.turn
        if is_counted and last is not None and last.input_tokens > 0 and turn is not None:
            return last.input_tokens + last.output_tokens + _tokens_of(turn.results.values())
        asked = len(self._spec.instructions.encode()) + _TOKENS_AROUND_A_MESSAGE + _tokens_of_tools(self._tools)
        return asked + _tokens_of(self._prior) + _tokens_of(view.conversation())


def guard_of(
    view: RunView,
    spec: agent_pb2.AgentSpec,
    tools: Collection[agent_pb2.ToolSpec],
    prior: Sequence[content_pb2.Message],
) -> BudgetGuard | None:
    """The guard of a run's budget; None for a run that has none. See `BudgetGuard`."""
    if view.ledger is None:
        return None
    is_child = view.created is not None and bool(view.created.parent_run_id)
    return BudgetGuard(view.ledger, spec, tools, prior, is_child=is_child)


def _tokens_of(messages: Iterable[content_pb2.Message]) -> int:
    return sum(message.ByteSize() + _TOKENS_AROUND_A_MESSAGE for message in messages)


def _tokens_of_tools(tools: Collection[agent_pb2.ToolSpec]) -> int:
    if not tools:
        return 0
    tokens = _TOKENS_AROUND_TOOLS
    for tool in tools:
        schema = canonical_json(json_format.MessageToDict(tool.input_schema))
        tokens += len(f"{tool.name}{tool.description}{schema}".encode()) + _TOKENS_AROUND_A_TOOL
    return tokens


def longest_answer(model: agent_pb2.ModelSpec) -> int | None:
    """How many tokens an answer of the model can have; None when nothing limits it."""
    if model.parameters.HasField("max_output_tokens"):
        return model.parameters.max_output_tokens
    return DEFAULT_MAX_OUTPUT_TOKENS if model.provider == "anthropic" else None


async def prepare(ledger: Ledger, spec: agent_pb2.AgentSpec) -> None:
    """Loads what the guard needs for its decisions, which themselves wait for nothing."""
    has_agents = any(tool.WhichOneof("kind") == "agent" for tool in spec.tools)
    has_own_prices = spec.model.HasField("price") and (
        spec.limits.cheaper_model.HasField("price") or not spec.limits.HasField("cheaper_model")
    )
    if ledger.limits_cost and (has_agents or not has_own_prices):
        await asyncio.to_thread(prices.load)


def exceeded_failure(short: Shortfall) -> content_pb2.Failure:
    """Why a run ends: the limit, what is used of it, and what the next call would have needed."""
    unit = _UNITS[short.limit]
    held = f" and {_amount(short, short.reserved)} reserved" if short.reserved else ""
    return content_pb2.Failure(
        reason=BUDGET_EXCEEDED,
        message=(
            f"The run's budget has no room for what comes next: of {_amount(short, short.max)}{unit} "
            f"(limits.budget.{short.limit}) {_amount(short, short.used)} are used{held}, and "
            f"{_amount(short, short.needed)} more could be needed."
        ),
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def tools_after_last_call_failure() -> content_pb2.Failure:
    """Why a run ends whose model calls tools where it was to answer."""
    return content_pb2.Failure(
        reason=BUDGET_EXCEEDED,
        message="The run's budget had no room for more, and the model called tools where it was asked for its answer.",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def price_unknown_failure(model: agent_pb2.ModelSpec) -> content_pb2.Failure:
    """Why a run ends whose cost is limited and whose model has no price any more."""
    return content_pb2.Failure(
        reason="PRICE_UNKNOWN",
        message=f"The run's cost is limited, and no price of {model.provider}/{model.name} is known (model.price).",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def _amount(short: Shortfall, amount: int) -> str:
    if short.limit != "max_cost_usd_nanos":
        return f"{amount:,}"
    dollars = f"{amount / 1e9:,.9f}".rstrip("0")
    whole, _, cents = dollars.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"
