"""`module:name`: the user's tools, imported the way Python itself would from the current folder."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from holdfast.errors import InvalidArgument
from holdfast.tool import Tool
from holdfast.worker import Worker, tools_of


@dataclass(frozen=True, slots=True)
class Target:
    """What `module:name` stands for.

    Attributes:
        tools: The tools.
        worker: The worker, when the name is one.
    """

    tools: Sequence[Tool[Any, Any]]
    worker: Worker | None = None


def load_tools(target: str) -> Target:
    """Imports the tools of `module:name`, or all `@tool` functions of `module`.

    Raises:
        InvalidArgument: There is no such module or name, it fails while it is imported, or has no tools.
    """
    module_name, separator, name = target.partition(":")
    if not module_name or (separator and not name):
        raise InvalidArgument(f"{target!r} is not of the form module or module:name, such as shop.tools:TOOLS")
    module = _import(module_name)
    if not separator:
        found = [value for value in vars(module).values() if isinstance(value, Tool)]
        # The same tool under two names is one tool.
        tools = list({id(tool): tool for tool in found}.values())
        if not tools:
            raise InvalidArgument(f"the module {module_name} has no @tool functions; name a list of them: module:name")
        return Target(tools)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise InvalidArgument(f"the module {module_name} has no {name!r}")
        value = getattr(value, part)
    try:
        return Target(tools_of(value), value if isinstance(value, Worker) else None)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{target}: {error}") from error


def _import(name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidArgument(f"there is no module {name!r} in {folder} or on Python's path") from error
        raise InvalidArgument(_failure(name, error)) from error
    except Exception as error:
        raise InvalidArgument(_failure(name, error)) from error


def _failure(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        return f"{name} can't be imported: {error.filename}:{error.lineno}: {error.msg}"
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{name} can't be imported: {type(error).__name__}: {error}{place}"
