"""Conditions of approvals: what is wrong with one is said, and what cannot be evaluated needs approval."""

from __future__ import annotations

import json

import pytest

from services.executor.approval_conditions import MAX_ARGUMENTS_BYTES, condition_problem, evaluate


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("args.amount > 100", ""),
        ("has(args.note) && args.note.matches('(?i)urgent')", ""),
        ("args.urgent", ""),
        ("args.items.exists(i, i.price > 10.5)", ""),
        ("timestamp(args.when) < timestamp('2030-01-01T00:00:00Z')", ""),
        ("", "expected a condition"),
        ("args.amount >", "line 1, column 14: Syntax error"),
        ("amount > 100", "line 1, column 1: undeclared reference to 'amount'"),
        ("args.amount + 1", "expected a condition, which is true or false; this is int"),
        ("true ||\n  nothing", "line 2, column 3: undeclared reference to 'nothing'"),
        ("args.items.map(i, i) == []", "undeclared reference"),
        ("'a' + 'b' == args.c", "no matching overload"),
        ("x" * 2_001, "at most 2,000 characters"),
        ("(" * 200 + "true" + ")" * 200, "recursion limit"),
    ],
)
def test_a_condition_is_checked_before_it_is_used(condition: str, problem: str) -> None:
    found = condition_problem(condition)
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("condition", "arguments", "holds"),
    [
        ("args.amount > 100", {"amount": 100}, False),
        ("args.amount > 100", {"amount": 100.5}, True),
        ("args.amount > 100.0", {"amount": 101}, True),
        ("args.to.endsWith('@example.com')", {"to": "a@example.org"}, False),
        ("args.lines.all(l, l.quantity < 5)", {"lines": [{"quantity": 1}, {"quantity": 2}]}, True),
        ("args['a b'] == null", {"a b": None}, True),
        ("args.ok", {"ok": False}, False),
    ],
)
def test_a_condition_holds_or_not(condition: str, arguments: dict[str, object], holds: bool) -> None:
    verdict = evaluate(condition, arguments, json.dumps(arguments))
    assert (verdict.holds, verdict.problem) == (holds, "")


@pytest.mark.parametrize(
    ("condition", "arguments"),
    [
        ("args.amount > 100", {}),
        ("args.amount > 100", {"amount": "much"}),
        ("args.amount > 100", {"amount": 2**70}),
        ("args.ok", {"ok": "yes"}),
        ("args.text.matches(args.pattern)", {"text": "a", "pattern": "("}),
        # More iterations than are allowed.
        ("!args.a.all(x, args.a.all(y, args.a.all(z, true)))", {"a": list(range(1_000))}),
        ("false", {"text": "a" * MAX_ARGUMENTS_BYTES}),
        ("written by another release", {}),
    ],
)
def test_what_cannot_be_evaluated_needs_approval_and_says_why(condition: str, arguments: dict[str, object]) -> None:
    verdict = evaluate(condition, arguments, json.dumps(arguments))
    assert verdict.holds
    assert verdict.problem
