"""`@tool`: names, effect classes, and what a tool tells agents and workers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from holdfast import Tool, ToolContext, ToolError, tool
from holdfast.api.common.v1 import agent_pb2
from holdfast.schema import UnsupportedType
from holdfast.tool import as_tool, by_name


def test_tool_is_still_the_function() -> None:
    @tool(effect="read_only")
    def double(number: int) -> int:
        """Doubles."""
        return number * 2

    assert double(4) == 8
    assert double.__name__ == "double"
    assert isinstance(double, Tool)


def test_decorator_works_without_arguments_and_is_cautious_then() -> None:
    @tool
    def pay() -> None: ...

    assert (pay.name, pay.effect) == ("pay", "at_most_once")


def test_spec_and_announcement_say_the_same() -> None:
    @tool(effect="idempotent", name="refund-invoice", timeout=1.5)
    async def refund(context: ToolContext, invoice: str) -> None:
        """Refunds."""

    spec, served = refund.spec(), refund.served()
    assert refund.is_async
    assert (spec.name, spec.description, spec.effect) == (served.name, served.description, served.effect)
    assert spec.effect == agent_pb2.EFFECT_CLASS_IDEMPOTENT
    assert spec.WhichOneof("kind") == "worker"
    assert spec.timeout.ToMilliseconds() == 1500
    assert spec.input_schema == served.input_schema
    assert "context" not in spec.input_schema["properties"]  # type: ignore[operator]


def test_wrong_declarations_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="expected one of read_only, idempotent, at_most_once"):
        tool(effect=cast(Any, "sometimes"))(lambda: None)
    with pytest.raises(ValueError, match="'<lambda>' is no name of a tool"):
        tool(lambda: None)
    with pytest.raises(ValueError, match="timeout=0"):
        tool(name="a", timeout=0)(lambda: None)
    with pytest.raises(UnsupportedType, match="has no annotation"):
        tool(name="a")(lambda value: value)


def test_context_is_injected_under_any_name_and_may_be_optional() -> None:
    @tool(effect="read_only")
    def tell(number: int, ctx: ToolContext | None = None) -> str:
        return f"{number} {ctx.idempotency_key if ctx else 'nobody'}"

    assert tell(1) == "1 nobody"
    assert tell.bind('{"number": 2}', ToolContext(idempotency_key="k"))() == "2 k"


def test_arguments_that_are_no_object_are_a_tool_error() -> None:
    @tool(effect="read_only")
    def now() -> str:
        return ""

    for arguments in ("[1]", "nonsense", '{"x": 1}'):
        with pytest.raises(ToolError, match="now: "):
            now.bind(arguments, ToolContext(idempotency_key="k"))


def test_heartbeat_details_have_a_limit() -> None:
    said: list[str] = []
    context = ToolContext(idempotency_key="k", on_heartbeat=said.append)
    context.heartbeat("x" * 4096)
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        context.heartbeat("ü" * 2049)
    assert said == ["x" * 4096]


def test_two_tools_of_one_name_are_refused() -> None:
    @tool(name="same")
    def one() -> None: ...

    @tool(name="same")
    def two() -> None: ...

    with pytest.raises(ValueError, match="two tools are named 'same'"):
        by_name([one, two])


def test_plain_function_becomes_a_cautious_tool() -> None:
    def plain(text: str) -> str:
        return text

    assert as_tool(plain).effect == "at_most_once"
    with pytest.raises(TypeError, match="neither a function"):
        as_tool(42)


async def test_async_tool_is_awaited_by_its_caller() -> None:
    @tool(effect="read_only")
    async def wait() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await wait() == "done"


def test_approval_policy_is_part_of_the_definition() -> None:
    @tool(approval=True)
    def pay(amount: int) -> None: ...

    @tool(approval="args.amount > 100", approval_expires_after=1.5)
    def refund(amount: int) -> None: ...

    @tool
    def look() -> None: ...

    assert pay.spec().approval == agent_pb2.ApprovalPolicy(always=True)
    assert refund.spec().approval.condition == "args.amount > 100"
    assert refund.spec().approval.expire_after.ToMilliseconds() == 1500
    assert not look.spec().HasField("approval")
    with pytest.raises(ValueError, match="approval_expires_after=0"):
        tool(approval=True, approval_expires_after=0)(look.function)
    with pytest.raises(ValueError, match="ask for one with approval="):
        tool(approval_expires_after=5)(look.function)
