"""Commands beside the server, for whoever has the database and the master key: `create-key`, `rotate-master-key`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from holdfast.errors import HoldfastError, ResourceExhausted, Unavailable
from services.auth.app import open_core
from services.auth.callers import ADMIN, Caller
from services.auth.files import replace, sync_folder, write_private
from services.auth.key_file import KeyFile
from services.auth.keyring import rotate
from services.auth.master_key import keychain_of, next_key_path, read_key_file
from services.auth.roles import ROLES, SCOPES, checked_scopes
from services.auth.sealing import MasterKey
from services.auth.settings import StorageSettings
from services.shared.clock import SystemClock
from services.shared.server import EXIT_CONFIGURATION, EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE, StartupError
from services.shared.settings import SettingsError, load
from services.shared.telemetry import configure_logging

_ACTOR: Final = "cli"
_MAX_DAYS: Final = 36_500

Command = Callable[[StorageSettings, argparse.Namespace], Coroutine[Any, Any, None]]


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as exit_:
        return EXIT_USAGE if exit_.code else EXIT_OK
    configure_logging("auth", level="error")
    try:
        settings = load(StorageSettings)
        command: Command = options.command
        asyncio.run(command(settings, options))
    except SettingsError as error:
        return fail(error, EXIT_CONFIGURATION)
    except StartupError as error:
        return fail(error, error.exit_code)
    except HoldfastError as error:
        return fail(error, EXIT_TEMPORARY if isinstance(error, Unavailable | ResourceExhausted) else EXIT_USAGE)
    return EXIT_OK


def fail(error: Exception, exit_code: int) -> int:
    """Writes why a command failed, and returns its exit code."""
    violations = getattr(error, "field_violations", ())
    detail = "".join(f" ({violation.field}: {violation.description})" for violation in violations)
    sys.stderr.write(f"auth: {error}{detail}\n")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.auth")
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create-key", help="make an API key, and its workspace when it does not exist")
    create.add_argument("--workspace", required=True, metavar="NAME", help="the workspace")
    create.add_argument("--name", default="", metavar="TEXT", help="what the key is called, for people")
    create.add_argument(
        "--scopes",
        nargs="+",
        default=[ADMIN],
        metavar="SCOPE",
        help=f"what it may do (default: {ADMIN}): roles ({', '.join(ROLES)}) or scopes ({', '.join(sorted(SCOPES))})",
    )
    create.add_argument(
        "--networks", nargs="+", default=[], metavar="CIDR", help="where it may be used from; everywhere when not given"
    )
    create.add_argument("--expires", type=_days, metavar="DAYS", help="when it ends by itself; never when not given")
    create.add_argument(
        "--out", type=Path, metavar="FILE", help="a new file for the key, mode 0600; standard output when not given"
    )
    create.set_defaults(command=create_key)
    rotation = commands.add_parser(
        "rotate-master-key", help="seal everything with another master key; restart the replicas with it afterwards"
    )
    rotation.add_argument(
        "--new-key-file",
        type=Path,
        metavar="FILE",
        help="file of the new key (made when missing); not needed for a key that was generated beside the database",
    )
    rotation.set_defaults(command=rotate_master_key)
    return parser


def _days(text: str) -> timedelta:
    try:
        days = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("expected a number of days") from None
    if not 0 < days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most {_MAX_DAYS} days")
    return timedelta(days=days)


async def create_key(settings: StorageSettings, options: argparse.Namespace) -> None:
    """Makes a key and writes it to standard output, or to a file."""
    clock = SystemClock()
    scopes = checked_scopes(scope for argument in options.scopes for scope in argument.split(",") if scope)
    expire_time = None if options.expires is None else clock.now() + options.expires
    out: Path | None = options.out
    async with open_core(settings, asyncio.Event(), clock=clock) as core:
        workspace = await core.workspaces.ensure(options.workspace, actor=_ACTOR)
        caller = Caller(workspace.workspace_id, _ACTOR, frozenset({ADMIN}))
        if out is None:
            created = await core.api_keys.create(
                caller,
                display_name=options.name,
                scopes=scopes,
                expire_time=expire_time,
                networks=options.networks,
            )
            assert created.secret is not None
            sys.stdout.write(created.secret.reveal() + "\n")
            return
        file = KeyFile(out, core.api_keys)
        async with file.locked(clock):
            if await asyncio.to_thread(out.exists):
                raise StartupError(f"{out} exists already; no key was made")
            await file.withdraw(_ACTOR)
            key = await file.create(
                caller,
                display_name=options.name,
                scopes=scopes,
                expire_time=expire_time,
                networks=options.networks,
            )
        sys.stderr.write(f"key {key.api_key_id} of workspace {workspace.name} is in {out}\n")


async def rotate_master_key(settings: StorageSettings, options: argparse.Namespace) -> None:
    """Seals everything with another master key."""
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        path: Path | None = options.new_key_file
        if path is not None:
            master = await asyncio.to_thread(_read_or_make, path)
            count = await rotate(core.db, core.keyring, master)
            sys.stderr.write(
                f"{count} secrets are sealed with the key in {path}: set HOLDFAST_MASTER_KEY_FILE={path} (instead of "
                "the old key) and restart every replica of auth, then destroy the old key\n"
            )
            return
        path = settings.generated_key_path
        if settings.master_key is not None or path is None:
            raise StartupError("the master key comes from the settings: give the new one with --new-key-file")
        # A crash from here on is finished by the next start, which finds both keys and tries which one fits.
        master = MasterKey.generate()
        keychain = await asyncio.to_thread(keychain_of, path)
        if keychain is not None:
            await asyncio.to_thread(keychain.write_next, master)
            count = await rotate(core.db, core.keyring, master)
            await asyncio.to_thread(keychain.promote)
            sys.stderr.write(
                f"{count} secrets are sealed with the new key, {keychain}; restart auth if it is running\n"
            )
            return
        await asyncio.to_thread(_write_key, next_key_path(path), master)
        count = await rotate(core.db, core.keyring, master)
        await asyncio.to_thread(replace, next_key_path(path), path)
        sys.stderr.write(f"{count} secrets are sealed with the new key in {path}; restart auth if it is running\n")


def _read_or_make(path: Path) -> MasterKey:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_key(path, MasterKey.generate())
    return read_key_file(path)


def _write_key(path: Path, master: MasterKey) -> None:
    write_private(path, master.export() + "\n")
    sync_folder(path.parent)
