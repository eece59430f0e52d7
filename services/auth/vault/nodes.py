"""Which of Vault's addresses is asked: the active node, found by `sys/health` and lost by its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final
from urllib.parse import urlsplit

from services.auth.vault.failures import Redirected, Refused, Unreachable, VaultFailure

HEALTH_PATH: Final = "/v1/sys/health"


class NodeState(IntEnum):
    """What a node is good for, best first."""

    ACTIVE = 0
    UNKNOWN = 1
    STANDBY = 2
    """Passes what it is asked on to the active node, and may answer reads from what it has seen so far."""
    UNINITIALISED = 3
    SEALED = 4
    OUT = 5
    """A replica of another cluster, or removed from this one."""
    UNREACHABLE = 6


_STATES: Final = {
    200: NodeState.ACTIVE,
    429: NodeState.STANDBY,
    472: NodeState.OUT,
    473: NodeState.STANDBY,
    474: NodeState.OUT,
    501: NodeState.UNINITIALISED,
    503: NodeState.SEALED,
    530: NodeState.OUT,
}


def origin(url: str) -> str:
    """Returns scheme, host and port of a URL, in one form."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return ""
    return (
        f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{port or (443 if parts.scheme == 'https' else 80)}"
    )


@dataclass(slots=True)
class Node:
    """One configured address."""

    address: str
    state: NodeState = NodeState.UNKNOWN
    trouble: str = ""
    """Why it could not be reached last."""


class Nodes:
    """The configured addresses and what is known of them.

    Args:
        addresses: As https://host:port, in the order of preference.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.all = [Node(address.rstrip("/")) for address in addresses]

    def best(self) -> Node:
        """Returns the node to ask next. Among equals it is the first."""
        return min(self.all, key=lambda node: node.state)

    @property
    def summary(self) -> NodeState:
        """What the best node is."""
        return self.best().state

    def learn(self, node: Node, failure: VaultFailure) -> None:
        """Notes what a failed call says about its node."""
        if isinstance(failure, Redirected):
            node.state = NodeState.STANDBY
            target = origin(failure.location)
            for other in self.all:
                # Only to an address that the operator gave: the token goes nowhere else.
                if other is not node and origin(other.address) == target:
                    other.state = NodeState.ACTIVE
        elif isinstance(failure, Unreachable):
            node.state, node.trouble = NodeState.UNREACHABLE, str(failure)
        elif isinstance(failure, Refused) and failure.is_failover:
            node.state = _STATES.get(failure.status, NodeState.UNREACHABLE)

    def learn_health(self, node: Node, answer: Refused | Unreachable | Redirected | dict[str, Any]) -> None:
        """Notes an answer of `sys/health`."""
        if isinstance(answer, Refused):
            node.state = _STATES.get(answer.status, NodeState.UNREACHABLE)
        elif isinstance(answer, Unreachable):
            node.state, node.trouble = NodeState.UNREACHABLE, str(answer)
        elif isinstance(answer, Redirected):
            node.state = NodeState.STANDBY
        else:
            node.state = NodeState.ACTIVE
