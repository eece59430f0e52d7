"""`Agent`: the definition of an agent, built in Python; what it makes is the same data as a YAML file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import InvalidArgument
from holdfast.times import to_duration
from holdfast.tool import Effect, Tool, as_tool, effect_class, set_approval

if TYPE_CHECKING:
    from holdfast.agent_files import Locator

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")

BudgetPolicy: TypeAlias = Literal["stop", "ask", "finalise", "degrade"]
_BUDGET_POLICIES: Final[Mapping[str, agent_pb2.BudgetPolicy]] = {
    "ask": agent_pb2.BUDGET_POLICY_ASK,
    "finalise": agent_pb2.BUDGET_POLICY_FINALISE,
    "degrade": agent_pb2.BUDGET_POLICY_DEGRADE,
}

AnyTool: TypeAlias = "Tool[Any, Any] | agent_pb2.ToolSpec | str | Callable[..., Any]"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use of models and tools; a call that would not fit is not made. 0 is no limit.

    Attributes:
        max_cost_usd: Price of all model calls in US dollars, such as 0.25.
        max_input_tokens: Tokens sent, in all model calls together.
        max_output_tokens: Tokens received. This, the cost and the total need the model's `max_output_tokens`.
        max_total_tokens: Tokens sent and received.
        max_model_calls: Calls of the model.
        max_tool_calls: Calls of tools, waits among them.
    """

    max_cost_usd: float | Decimal = 0
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    max_total_tokens: int = 0
    max_model_calls: int = 0
    max_tool_calls: int = 0

    def message(self) -> agent_pb2.Budget:
        """Returns the same as the contract's message."""
        return agent_pb2.Budget(
            # Through its text: a float such as 0.1 means the tenth that it is written as.
            max_cost_usd_nanos=int(Decimal(str(self.max_cost_usd)) * 1_000_000_000),
            max_input_tokens=self.max_input_tokens,
            max_output_tokens=self.max_output_tokens,
            max_total_tokens=self.max_total_tokens,
            max_model_calls=self.max_model_calls,
            max_tool_calls=self.max_tool_calls,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the agent's runs may use at most.

    Attributes:
        max_steps: Model calls, tool calls and waits of one run together; 0 leaves it to the runtime (100).
        max_concurrent_runs: How many runs of the agent may be driven at once in the workspace; 0 is no limit.
        budget: What a run may use of models and tools.
        on_budget_exceeded: `stop` ends the run before the call that has no room; `ask` asks a person for more;
            `finalise` lets the model answer with what it has, from what was kept back for that; `degrade` goes on with
            `cheaper_model`.
        cheaper_model: For `degrade`, as the agent's `model`.
        max_depth: How many levels of sub-agents may stand below a run; 0 leaves it to the runtime (5).
        max_children: How many runs of sub-agents a run may start; 0 leaves it to the runtime (50).
    """

    max_steps: int = 0
    max_concurrent_runs: int = 0
    budget: Budget | Mapping[str, Any] | None = None
    on_budget_exceeded: BudgetPolicy = "stop"
    cheaper_model: str | agent_pb2.ModelSpec | None = None
    max_depth: int = 0
    max_children: int = 0


class Agent:
    """The definition of an agent: data, so that a run that began under it can go on without the code that made it.

    Example:
        agent = Agent(
            "support",
            model="anthropic/claude-sonnet-4-5",
            instructions="You answer the shop's mail.",
            tools=[read_mail, refund_invoice, "ask_user"],
        )

    Args:
        name: Unique in the workspace.
        model: `provider/name`, or a `ModelSpec` where more is to be said.
        instructions: The system prompt.
        tools: Tools made by `@tool` and plain functions (they run in a `Worker`), what `http_tool` and `agent_tool`
            return, other `ToolSpec` messages, and names of the runtime's own tools: `ask_user`, `sleep_until`, `noop`.
        limits: What its runs may use at most.
        description: For people.

    Raises:
        InvalidArgument: The name or the model is not of the right form, or two tools have one name.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | agent_pb2.ModelSpec,
        instructions: str = "",
        tools: Iterable[AnyTool] = (),
        limits: Limits | Mapping[str, Any] | None = None,
        description: str = "",
    ) -> None:
        self.tools: tuple[AnyTool, ...] = tuple(tools)
        self.locator: Locator | None = None
        self.spec = agent_pb2.AgentSpec(
            name=name,
            description=description,
            instructions=instructions,
            model=_model_spec(model),
            tools=[_tool_spec(tool) for tool in self.tools],
        )
        if limits is not None:
            given = limits if isinstance(limits, Limits) else Limits(**limits)
            self.spec.limits.max_steps = given.max_steps
            self.spec.limits.max_concurrent_runs = given.max_concurrent_runs
            if given.budget is not None:
                budget = given.budget if isinstance(given.budget, Budget) else Budget(**given.budget)
                self.spec.limits.budget.CopyFrom(budget.message())
            if given.on_budget_exceeded != "stop":
                self.spec.limits.on_budget_exceeded = _BUDGET_POLICIES[given.on_budget_exceeded]
            if given.cheaper_model is not None:
                self.spec.limits.cheaper_model.CopyFrom(_model_spec(given.cheaper_model))
            self.spec.limits.max_depth = given.max_depth
            self.spec.limits.max_children = given.max_children
        check_spec(self.spec)

    @classmethod
    def from_spec(cls, spec: agent_pb2.AgentSpec, *, locator: Locator | None = None) -> Agent:
        """Returns an agent around an existing definition.

        Args:
            spec: The definition.
            locator: Where each field of it was written, for messages about it.
        """
        agent = cls.__new__(cls)
        agent.tools = tuple(spec.tools)
        agent.locator = locator
        agent.spec = spec
        return agent

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.spec.name

    @property
    def worker_tools(self) -> tuple[Tool[Any, Any], ...]:
        """The Python tools among the agent's tools: what a `Worker` must serve."""
        return tuple(as_tool(tool) for tool in self.tools if isinstance(tool, Tool) or _is_function(tool))

    def fill_from(self, tools: Iterable[Tool[Any, Any]]) -> list[str]:
        """Completes worker tools that lack a schema, description, effect, connection or approval policy.

        They get those of the Python tools.

        What the definition declares itself stays as it is.

        Args:
            tools: The Python tools.

        Returns:
            Names of the tools that were completed.
        """
        named = {tool.name: tool for tool in tools}
        filled = []
        for spec in self.spec.tools:
            tool = named.get(spec.name)
            if tool is None or spec.WhichOneof("kind") not in ("worker", None):
                continue
            before = spec.SerializeToString(deterministic=True)
            source = tool.spec()
            if not spec.HasField("input_schema"):
                spec.input_schema.CopyFrom(source.input_schema)
            if not spec.description:
                spec.description = source.description
            if not spec.effect:
                spec.effect = source.effect
            if not spec.HasField("timeout") and source.HasField("timeout"):
                spec.timeout.CopyFrom(source.timeout)
            if not spec.HasField("auth") and source.HasField("auth"):
                spec.auth.CopyFrom(source.auth)
            if not spec.HasField("approval") and source.HasField("approval"):
                spec.approval.CopyFrom(source.approval)
            spec.worker.SetInParent()
            if spec.SerializeToString(deterministic=True) != before:
                filled.append(spec.name)
        return filled

    def __repr__(self) -> str:
        return f"<Agent {self.spec.name}: {len(self.spec.tools)} tools>"


def http_tool(
    name: str,
    url: str,
    *,
    method: str = "POST",
    description: str = "",
    input_schema: Mapping[str, Any] | None = None,
    effect: Effect = "at_most_once",
    headers: Mapping[str, str] | None = None,
    query: Sequence[str] = (),
    timeout: float | None = None,
    connection: str = "",
    scopes: Sequence[str] = (),
    approval: bool | str = False,
    approval_expires_after: float | None = None,
) -> agent_pb2.ToolSpec:
    """Returns a tool that is an HTTP endpoint; the idempotency key travels as `Idempotency-Key`.

    Args:
        name: As the model sees it.
        url: `{name}` in the path or query is replaced by the argument of that name.
        method: GET, POST, PUT, PATCH or DELETE.
        description: For the model.
        input_schema: JSON Schema of the arguments.
        effect: What a call that was lost may have done.
        headers: Sent as they stand. Not for credentials: the definition is readable.
        query: Arguments that are sent in the query.
        timeout: How long one attempt may take, in seconds.
        connection: Name of the connection, or of the integration, whose credential is put into each request; that of
            the run's user, or one that the workspace shares.
        scopes: Permissions that the tool needs, in the provider's words.
        approval: True: a person has to approve each call. A text: those for which this condition on the arguments
            holds, in CEL, such as `args.amount > 100`.
        approval_expires_after: How long a call waits for its approval before it is refused, in seconds; 72 h when not
            given.
    """
    spec = agent_pb2.ToolSpec(
        name=name,
        description=description,
        effect=effect_class(effect),
        http=agent_pb2.HttpTool(method=method, url=url, headers=headers, query=query),
    )
    if input_schema is not None:
        spec.input_schema.update(input_schema)
    if timeout is not None:
        spec.timeout.CopyFrom(to_duration(timeout))
    if connection:
        spec.auth.connection = connection
        spec.auth.scopes.extend(scopes)
    set_approval(spec, approval, approval_expires_after)
    return spec


def agent_tool(
    agent: str | Agent,
    *,
    name: str = "",
    revision: str = "",
    description: str = "",
    input_schema: Mapping[str, Any] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    max_attempts: int = 0,
) -> agent_pb2.ToolSpec:
    """Returns a tool that is another agent of the workspace: each call is a run of its own.

    Args:
        agent: The agent, or its name.
        name: As the model sees it; by default the agent's name with `_` for `-`.
        revision: A revision or a label, looked up when a call begins; by default `latest`.
        description: For the model; by default that of an agent that is given as such.
        input_schema: JSON Schema of the arguments, which the other agent is then given as JSON; by default it is given
            one text.
        output_schema: JSON Schema of the answer, which has to be JSON then; by default it is a text.
        timeout: How long the other agent's run may take in all, in seconds; by default as long as it wants.
        max_attempts: How many runs may be tried when they fail; by default one.
    """
    called = agent if isinstance(agent, str) else agent.name
    spec = agent_pb2.ToolSpec(
        name=name or called.replace("-", "_"),
        description=description or ("" if isinstance(agent, str) else agent.spec.description),
        agent=agent_pb2.AgentTool(agent=called, revision=revision),
    )
    if input_schema is not None:
        spec.input_schema.update(input_schema)
    if output_schema is not None:
        spec.output_schema.update(output_schema)
    if timeout is not None:
        spec.timeout.CopyFrom(to_duration(timeout))
    if max_attempts:
        spec.retry.max_attempts = max_attempts
    return spec


def check_spec(spec: agent_pb2.AgentSpec) -> None:
    """Refuses at once what no service would accept; the services check everything else.

    Raises:
        InvalidArgument: With the field that is wrong.
    """
    for field, problem in problems_of(spec):
        raise InvalidArgument(f"{field}: {problem}", field=field, description=problem)


def problems_of(spec: agent_pb2.AgentSpec) -> Iterable[tuple[str, str]]:
    """Yields the field and what is wrong with it."""
    if not spec.name:
        yield "name", "an agent needs a name"
    elif not NAME_PATTERN.fullmatch(spec.name):
        yield "name", f"{spec.name!r} is no name of an agent: it matches {NAME_PATTERN.pattern}"
    if not spec.HasField("model"):
        yield "model", "an agent needs a model"
    elif not spec.model.provider:
        yield "model.provider", "a model needs a provider: openai, anthropic or scripted"
    seen: dict[str, int] = {}
    for index, tool in enumerate(spec.tools):
        if not tool.name:
            yield f"tools[{index}].name", "a tool needs a name"
        elif tool.name in seen:
            yield f"tools[{index}].name", f"the name {tool.name!r} is taken by tools[{seen[tool.name]}]"
        else:
            seen[tool.name] = index
        if tool.WhichOneof("kind") is None:
            yield f"tools[{index}]", "a tool needs a place to run: `worker: {}`, `http:`, `builtin:` or `agent:`"


def _model_spec(model: str | agent_pb2.ModelSpec) -> agent_pb2.ModelSpec:
    if isinstance(model, agent_pb2.ModelSpec):
        return model
    provider, separator, name = model.partition("/")
    if not separator or not provider or not name:
        raise InvalidArgument(
            f"model: {model!r} is not of the form provider/name, such as openai/gpt-5-mini", field="model"
        )
    return agent_pb2.ModelSpec(provider=provider, name=name)


def _tool_spec(tool: AnyTool) -> agent_pb2.ToolSpec:
    if isinstance(tool, agent_pb2.ToolSpec):
        return tool
    if isinstance(tool, str):
        return agent_pb2.ToolSpec(name=tool, builtin=agent_pb2.BuiltinTool(name=tool))
    return as_tool(tool).spec()


def _is_function(candidate: Any) -> bool:
    return callable(candidate) and not isinstance(candidate, (str, agent_pb2.ToolSpec))
