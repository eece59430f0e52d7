"""Conditions on the arguments of a call, in CEL: checked when a definition is applied, evaluated before a call is made.

Invariant: a condition that cannot be evaluated counts as one that holds, so that a person is asked. What an evaluation
costs is bounded whoever wrote the condition and the arguments: the library allows 10,000 iterations, its regular
expressions are RE2, and nothing that makes values grow (`map`, joined strings and lists) is in the language here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from cel_expr_python import cel

from services.executor.tools.output import shorten

MAX_CONDITION_CHARACTERS: Final = 2_000
MAX_ARGUMENTS_BYTES: Final = 64 * 1024
"""Larger arguments are not looked at; a call with them needs approval."""

_MAX_PROBLEM_BYTES: Final = 400
_ENVIRONMENT: Final = """
name: holdfast
stdlib:
  exclude_macros: [map]
  exclude_functions:
    - name: "_+_"
      overloads: [{id: add_string}, {id: add_list}, {id: add_bytes}]
variables:
  - name: args
    type_name: map
    params: [{type_name: string}, {type_name: dyn}]
"""
_PLACE: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")


class Verdict(NamedTuple):
    """What a condition says of a call.

    Attributes:
        holds: A person has to approve the call.
        problem: Why the condition could not be evaluated; empty when it could.
    """

    holds: bool
    problem: str = ""


def condition_problem(condition: str) -> str:
    """Returns what is wrong with a condition; empty when it can be used."""
    if len(condition) > MAX_CONDITION_CHARACTERS:
        return f"expected at most {MAX_CONDITION_CHARACTERS:,} characters"
    if not condition.strip():
        return "expected a condition such as args.amount > 100"
    try:
        result = _compiled(condition).return_type()
    except RuntimeError as error:
        return _problem_of(error)
    if result not in (cel.Type.BOOL, cel.Type.DYN):
        return f"expected a condition, which is true or false; this is {result.name().lower()}"
    return ""


def evaluate(condition: str, arguments: Mapping[str, Any], arguments_json: str) -> Verdict:
    """Says whether a call with these arguments needs approval.

    Args:
        condition: One that was checked, perhaps by another release.
        arguments: Of the call.
        arguments_json: The same in canonical form.
    """
    if len(arguments_json.encode()) > MAX_ARGUMENTS_BYTES:
        return Verdict(True, f"the arguments have more than {MAX_ARGUMENTS_BYTES:,} bytes")
    try:
        result = _compiled(condition).eval(data={"args": arguments})
        kind, value = result.type(), result.value()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        return Verdict(True, _problem_of(error))
    if kind == cel.Type.BOOL:
        return Verdict(bool(value))
    problem = str(value) if kind == cel.Type.ERROR else f"it is no condition but {kind.name().lower()}"
    return Verdict(True, shorten(problem, _MAX_PROBLEM_BYTES))


@lru_cache(maxsize=1)
def _environment() -> cel.Env:
    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(_ENVIRONMENT))


@lru_cache(maxsize=1024)
def _compiled(condition: str) -> cel.Expression:
    return _environment().compile(condition)


def _problem_of(error: Exception) -> str:
    text = str(error)
    found = _PLACE.search(text)
    if found is not None:
        what = found[3].replace(" (in container '')", "").removesuffix(" [INVALID_ARGUMENT]")
        text = f"line {found[1]}, column {found[2]}: {what}"
    return shorten(text, _MAX_PROBLEM_BYTES)
