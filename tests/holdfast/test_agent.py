"""Agents built in Python."""

from __future__ import annotations

import pytest

from holdfast import Agent, Limits, http_tool, tool
from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import InvalidArgument


@tool(effect="read_only", timeout=5)
def look(order: str) -> str:
    """Looks up an order."""
    return order


def write(text: str) -> None:
    """Writes."""


def test_agent_becomes_the_contracts_definition() -> None:
    agent = Agent(
        "support",
        model="openai/gpt-5-mini",
        instructions="Help.",
        tools=[look, write, "ask_user", http_tool("ping", "https://x.example/{id}", method="GET", timeout=2)],
        limits=Limits(max_steps=7, max_concurrent_runs=2),
    )
    spec = agent.spec
    assert (spec.name, spec.model.provider, spec.model.name) == ("support", "openai", "gpt-5-mini")
    assert [tool.WhichOneof("kind") for tool in spec.tools] == ["worker", "worker", "builtin", "http"]
    assert spec.tools[0].effect == agent_pb2.EFFECT_CLASS_READ_ONLY
    assert spec.tools[1].effect == agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
    assert spec.tools[2].builtin.name == "ask_user"
    assert spec.tools[3].timeout.seconds == 2
    assert (spec.limits.max_steps, spec.limits.max_concurrent_runs) == (7, 2)
    assert [tool.name for tool in agent.worker_tools] == ["look", "write"]


def test_model_name_may_contain_slashes() -> None:
    spec = Agent("a", model="openai/org/model").spec
    assert (spec.model.provider, spec.model.name) == ("openai", "org/model")


@pytest.mark.parametrize(
    ("name", "model", "field"),
    [("Support", "openai/x", "name"), ("", "openai/x", "name"), ("a", "gpt", "model"), ("a", "/x", "model")],
)
def test_wrong_names_are_refused_with_the_field(name: str, model: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Agent(name, model=model)
    assert caught.value.field_violations[0].field == field


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"tools\[1\].name: the name 'look' is taken by tools\[0\]"):
        Agent("a", model="openai/x", tools=[look, look])


def test_fill_completes_what_the_definition_leaves_open() -> None:
    spec = agent_pb2.AgentSpec(
        name="a",
        tools=[
            agent_pb2.ToolSpec(name="look", worker=agent_pb2.WorkerTool()),
            agent_pb2.ToolSpec(name="write", description="Mine.", worker=agent_pb2.WorkerTool()),
            agent_pb2.ToolSpec(name="other", worker=agent_pb2.WorkerTool()),
        ],
    )
    agent = Agent.from_spec(spec)
    assert agent.fill_from([look, tool(write)]) == ["look", "write"]
    assert spec.tools[0] == look.spec()
    assert spec.tools[1].description == "Mine."
    assert spec.tools[1].HasField("input_schema")
    assert not spec.tools[2].HasField("input_schema")
    assert agent.fill_from([look]) == []


def test_fill_takes_the_approval_policy_but_not_over_one_that_is_declared() -> None:
    @tool(approval="args.amount > 100")
    def pay(amount: int) -> None: ...

    @tool(approval=True)
    def ship(box: int) -> None: ...

    own = agent_pb2.ToolSpec(name="ship", worker=agent_pb2.WorkerTool())
    own.approval.condition = "args.box > 1"
    spec = agent_pb2.AgentSpec(name="a", tools=[agent_pb2.ToolSpec(name="pay", worker=agent_pb2.WorkerTool()), own])
    Agent.from_spec(spec).fill_from([pay, ship])
    assert spec.tools[0].approval.condition == "args.amount > 100"
    assert spec.tools[1].approval.condition == "args.box > 1"
