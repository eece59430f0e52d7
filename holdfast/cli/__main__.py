"""Entry point of `holdfast` and of `python -m holdfast.cli`."""

from __future__ import annotations

import sys

from rich.text import Text

from holdfast.cli import (  # noqa: F401
    agents,
    approvals,
    audit,
    certs,
    connect,
    connections,
    data,
    doctor,
    integrations,
    keys,
    runs,
    sessions,
    storage,
    trace,
    up,
    vault,
    version,
    worker,
    workspace,
)
from holdfast.cli.app import app
from holdfast.cli.console import ExitCode, err

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line; what no command expected is still one sentence."""
    try:
        app(prog_name="holdfast")
    except BrokenPipeError:
        # The reader of a pipe has left: nobody is there to be told.
        sys.stderr.close()
        sys.exit(int(ExitCode.ERROR))
    except Exception as error:
        err().print(
            Text.assemble(("error: ", "bold red"), f"{type(error).__name__}: {error}", (" (UNEXPECTED)", "dim"))
        )
        err().print(Text("hint: this is a bug; please report it with the command that met it"))
        sys.exit(int(ExitCode.ERROR))


if __name__ == "__main__":
    main()
