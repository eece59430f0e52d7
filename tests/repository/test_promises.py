"""A promise that no test holds is a wish."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.suite.promises import PROMISES

TESTS = Path(__file__).resolve().parent.parent


def _named_promises() -> dict[str, set[str]]:
    named: dict[str, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "promise":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant)
                    named.setdefault(str(argument.value), set()).add(path.name)
    return named


@pytest.mark.parametrize("promise", sorted(PROMISES))
def test_every_promise_has_a_test(promise: str) -> None:
    assert promise in _named_promises(), PROMISES[promise]


def test_tests_name_only_promises_that_exist() -> None:
    assert set(_named_promises()) <= set(PROMISES)
