"""`holdfast worker`: serves the user's tools from this process."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from holdfast.cli.app import JsonOption, app, chosen_profile
from holdfast.cli.console import err
from holdfast.cli.targets import load_tools
from holdfast.worker import Worker


@app.command()
def worker(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:NAME]",
            help="A list of tools, a Worker, or a module whose @tool functions are all served. The current folder is "
            "on Python's path.",
        ),
    ],
    slots: Annotated[int | None, typer.Option(min=1, help="How many calls are executed at once.  [default: 8]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve Python tools to the agents of the workspace. Ctrl-C finishes the running calls first."""
    found = load_tools(target)
    _configure_logging(as_json)
    if found.worker is not None and slots is None:
        found.worker.run_forever()
        return
    Worker(found.tools, slots=slots if slots is not None else 8, profile=chosen_profile()).run_forever()


class _Text(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        console = err()
        console.print(Text.assemble((f"{clock} ", "dim"), (record.getMessage(), style)))
        if record.exc_info:
            # The user's own code failed: where is what its author wants to know.
            console.print(Text(logging.Formatter().formatException(record.exc_info)), style="dim")


class _Json(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = logging.Formatter().formatException(record.exc_info)
        sys.stderr.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _configure_logging(as_json: bool) -> None:
    root = logging.getLogger()
    # A module that has set up its own logging keeps it.
    if not root.handlers:
        root.addHandler(_Json() if as_json else _Text())
        root.setLevel(logging.INFO)
