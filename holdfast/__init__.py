"""Holdfast: agents that survive production. This is what programs import; the names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.agent import Agent, Budget, Limits, agent_tool, http_tool
    from holdfast.agent_files import load_agents
    from holdfast.client import Client
    from holdfast.credential import Credential
    from holdfast.errors import HoldfastError
    from holdfast.runs import (
        RunBudgetExceeded,
        RunCancelled,
        RunError,
        RunEvent,
        RunExpired,
        RunFailed,
        RunHandle,
        TextDelta,
    )
    from holdfast.sync import SyncClient
    from holdfast.tool import SignInNeeded, Tool, ToolContext, ToolError, tool
    from holdfast.version import __version__
    from holdfast.worker import Worker

__all__ = [
    "Agent",
    "Budget",
    "Client",
    "Credential",
    "HoldfastError",
    "Limits",
    "RunBudgetExceeded",
    "RunCancelled",
    "RunError",
    "RunEvent",
    "RunExpired",
    "RunFailed",
    "RunHandle",
    "SignInNeeded",
    "SyncClient",
    "TextDelta",
    "Tool",
    "ToolContext",
    "ToolError",
    "Worker",
    "__version__",
    "agent_tool",
    "http_tool",
    "load_agents",
    "tool",
]

# Where each name lives. Importing gRPC and the contracts takes a tenth of a second, which a program that only
# defines tools does not need to spend.
_HOMES = {
    "Agent": "holdfast.agent",
    "Budget": "holdfast.agent",
    "Client": "holdfast.client",
    "Credential": "holdfast.credential",
    "HoldfastError": "holdfast.errors",
    "Limits": "holdfast.agent",
    "RunBudgetExceeded": "holdfast.runs",
    "RunCancelled": "holdfast.runs",
    "RunError": "holdfast.runs",
    "RunEvent": "holdfast.runs",
    "RunExpired": "holdfast.runs",
    "RunFailed": "holdfast.runs",
    "RunHandle": "holdfast.runs",
    "SignInNeeded": "holdfast.tool",
    "SyncClient": "holdfast.sync",
    "TextDelta": "holdfast.runs",
    "Tool": "holdfast.tool",
    "ToolContext": "holdfast.tool",
    "ToolError": "holdfast.tool",
    "Worker": "holdfast.worker",
    "__version__": "holdfast.version",
    "agent_tool": "holdfast.agent",
    "http_tool": "holdfast.agent",
    "load_agents": "holdfast.agent_files",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# Not lazy: a submodule that is imported is set as an attribute of its package, and would take the place of the
# decorator of the same name.
from holdfast.tool import tool  # noqa: E402
