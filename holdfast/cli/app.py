"""The command line itself: groups, options that every command has, and the one place where errors become exit codes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Final, TypeVar

import typer
import typer.core

from holdfast.cli.console import EPILOG, ExitCode, exit_code_of, report
from holdfast.client import Client
from holdfast.errors import FailedPrecondition, HoldfastError

T = TypeVar("T")
CommandT = TypeVar("CommandT", bound=Callable[..., Any])

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; a stream prints one value a line.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="Print at most so many.")]

_profile: ContextVar[str | None] = ContextVar("holdfast_profile", default=None)


@contextmanager
def _reported(ctx: Any) -> Iterator[None]:
    as_json = bool(ctx.params.get("as_json"))
    try:
        yield
    except HoldfastError as error:
        report(error, as_json=as_json)
        raise typer.Exit(int(exit_code_of(error))) from None
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    except FileNotFoundError as error:
        report(FailedPrecondition(f"{error.filename}: {error.strerror}"), as_json=as_json)
        raise typer.Exit(int(ExitCode.ERROR)) from None


class Command(typer.core.TyperCommand):
    """A command whose errors are one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _reported(ctx):
            return super().invoke(ctx)


class Application(typer.Typer):
    """A group of commands that all are `Command`s."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[CommandT], CommandT]:
        """Adds a command."""
        options.setdefault("cls", Command)
        options.setdefault("epilog", EPILOG)
        return super().command(name, **options)


class GroupCommand(typer.core.TyperGroup):
    """A group that does something by itself when no command of it is named."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the group."""
        with _reported(ctx):
            return super().invoke(ctx)


class Root(GroupCommand):
    """The root, which lists its commands in the order in which people meet them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of the commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


_ORDER: Final = (
    "up",
    "apply",
    "agents",
    "worker",
    "run",
    "tail",
    "runs",
    "cancel",
    "approvals",
    "approve",
    "reject",
    "answer",
    "sessions",
    "trace",
    "integrations",
    "connect",
    "connections",
    "audit",
    "keys",
    "workspace",
    "storage",
    "vault",
    "export",
    "erase",
    "doctor",
    "version",
)


def group(name: str, summary: str) -> Application:
    """Returns a group of commands below the root; without a command it lists."""
    made = Application(name=name, help=summary, cls=GroupCommand, epilog=EPILOG, invoke_without_command=True)
    app.add_typer(made)
    return made


app: Final = Application(
    name="holdfast",
    cls=Root,
    help="Holdfast runs agents so that they survive production: start a suite, apply agents, run them, look inside.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", help="Profile of the configuration file; also HOLDFAST_PROFILE."),
    ] = None,
) -> None:
    """Takes the options that come before the command."""
    _profile.set(profile)


def with_client(work: Callable[[Client], Awaitable[T]]) -> T:
    """Runs `work` with a client of the chosen profile."""

    async def run() -> T:
        async with Client(profile=_profile.get()) as client:
            return await work(client)

    return asyncio.run(run())


async def take(items: AsyncIterator[T], limit: int) -> list[T]:
    """Returns the first items of a list; what comes behind them is not asked for."""
    found: list[T] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found


def chosen_profile() -> str | None:
    """Returns the profile that was named before the command."""
    return _profile.get()


def read_text(text: str) -> str:
    """Returns the text of an argument; `-` stands for standard input."""
    return sys.stdin.read().strip() if text == "-" else text
