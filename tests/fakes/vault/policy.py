"""Vault's policies: paths with `*` at the end and `+` for a segment, of which the most specific one decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """What one path's block allows."""

    capabilities: frozenset[str]
    parameters: frozenset[str] | None
    """The names that a write may give; None for any."""

    def merged(self, other: Rule) -> Rule:
        """The rule of two policies that both name the path."""
        parameters = None
        if self.parameters is not None and other.parameters is not None:
            parameters = self.parameters | other.parameters
        return Rule(self.capabilities | other.capabilities, parameters)


Rules = Mapping[str, Rule]

DEFAULT = """
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/wrapping/lookup" { capabilities = ["update"] }
path "sys/wrapping/unwrap" { capabilities = ["update"] }
"""

_BLOCK = re.compile(r'path\s+"(?P<path>[^"]+)"\s*\{(?P<body>(?:[^{}]|\{[^}]*\})*)\}')
_CAPABILITIES = re.compile(r"capabilities\s*=\s*\[(?P<list>[^\]]*)\]")
_PARAMETERS = re.compile(r"allowed_parameters\s*=\s*\{(?P<list>[^}]*)\}")


def parse(text: str) -> dict[str, Rule]:
    """Reads a policy."""
    text = re.sub(r"(?m)^\s*#.*$", "", text)
    rules: dict[str, Rule] = {}
    for block in _BLOCK.finditer(text):
        found = _CAPABILITIES.search(block["body"])
        assert found is not None, f"no capabilities for {block['path']}"
        names = frozenset(re.findall(r'"([a-z]+)"', found["list"]))
        allowed = _PARAMETERS.search(block["body"])
        parameters = None if allowed is None else frozenset(re.findall(r'"(\w+)"\s*=', allowed["list"]))
        _merge(rules, block["path"], Rule(names, parameters))
    assert not re.sub(r"\s", "", _BLOCK.sub("", text)), "the policy has something else than path blocks"
    return rules


def is_allowed(policies: Iterable[Rules], path: str, capability: str, parameters: Iterable[str] = ()) -> bool:
    """Tells whether the policies together allow it."""
    merged: dict[str, Rule] = {}
    for rules in policies:
        for pattern, rule in rules.items():
            _merge(merged, pattern, rule)
    matching = [pattern for pattern in merged if _matches(pattern, path)]
    if not matching:
        return False
    best = merged[max(matching, key=_rank)]
    if "deny" in best.capabilities or capability not in best.capabilities:
        return False
    return capability not in ("create", "update") or best.parameters is None or set(parameters) <= best.parameters


def _merge(rules: dict[str, Rule], pattern: str, rule: Rule) -> None:
    rules[pattern] = rules[pattern].merged(rule) if pattern in rules else rule


def _matches(pattern: str, path: str) -> bool:
    is_prefix = pattern.endswith("*")
    expression = "/".join("[^/]+" if part == "+" else re.escape(part) for part in pattern.removesuffix("*").split("/"))
    return re.fullmatch(expression + (".*" if is_prefix else ""), path) is not None


def _rank(pattern: str) -> tuple[int, bool, int, int, str]:
    wildcards = [index for index, sign in enumerate(pattern) if sign in "+*"]
    first = wildcards[0] if wildcards else len(pattern) + 1
    return (first, not pattern.endswith("*"), -pattern.split("/").count("+"), len(pattern), pattern)
