"""Commands for whoever runs Vault: `vault-setup` makes what auth needs there, `export-to-vault` moves secrets to it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from holdfast.errors import HoldfastError, ResourceExhausted, Unavailable
from services.auth.admin import fail
from services.auth.app import open_core
from services.auth.export import Exported, export_secrets
from services.auth.files import sync_folder, write_private
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import StorageSettings
from services.auth.vault.backend import open_vault
from services.auth.vault.client import VaultClient, Wire
from services.auth.vault.failures import PolicyDenied, VaultFailure
from services.auth.vault.login import TokenLogin
from services.auth.vault.session import Session
from services.auth.vault.settings import VaultSettings
from services.auth.vault.setup import RUNTIME_POLICY, SHREDDING_POLICY, Role, Setup, SetupError
from services.shared.clock import SystemClock
from services.shared.server import EXIT_CONFIGURATION, EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE, StartupError
from services.shared.settings import SettingsError, load
from services.shared.telemetry import configure_logging

_EXIT_DIFFERENT: Final = 1

Command = Callable[[argparse.Namespace], Coroutine[Any, Any, int]]


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as exit_:
        return EXIT_USAGE if exit_.code else EXIT_OK
    configure_logging("auth", level="error")
    command: Command = options.command
    try:
        return asyncio.run(command(options))
    except (SettingsError, SetupError) as error:
        return fail(error, EXIT_CONFIGURATION)
    except StartupError as error:
        return fail(error, error.exit_code)
    except PolicyDenied:
        return fail(
            StartupError("Vault does not allow this: the token needs what the policy holdfast-provisioner allows"),
            EXIT_CONFIGURATION,
        )
    except VaultFailure as error:
        return fail(error, EXIT_TEMPORARY)
    except HoldfastError as error:
        return fail(error, EXIT_TEMPORARY if isinstance(error, Unavailable | ResourceExhausted) else EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.auth")
    commands = parser.add_subparsers(required=True)
    setup = commands.add_parser(
        "vault-setup",
        help="make what auth needs in Vault (mounts, the system's key, policies, an AppRole) and say what was done or "
        "found; needs HOLDFAST_VAULT_ADDR, and HOLDFAST_VAULT_TOKEN (or _FILE) of somebody who may do this",
    )
    setup.add_argument("--no-shredding", action="store_true", help="auth may not delete the keys of deleted workspaces")
    setup.add_argument(
        "--bound-cidr", action="append", default=[], metavar="CIDR", help="from where auth's tokens work"
    )
    setup.add_argument(
        "--secret-id-file", type=Path, metavar="FILE", help="make a secret id and put it into this new file (mode 0600)"
    )
    setup.add_argument(
        "--wrapped",
        action="store_true",
        help="put a wrapping token there instead: good for one start within 10 minutes",
    )
    setup.add_argument(
        "--allow-plaintext", action="store_true", help="send the token without TLS, on a network nobody else can read"
    )
    setup.set_defaults(command=vault_setup)
    export = commands.add_parser(
        "export-to-vault",
        help="copy the secrets of the embedded store into Vault, each read back; stop auth first. May be repeated",
    )
    export.add_argument("--overwrite", action="store_true", help="replace other values that Vault has")
    export.add_argument("--remove", action="store_true", help="delete from the database what Vault has for certain")
    export.set_defaults(command=export_to_vault)
    return parser


async def vault_setup(options: argparse.Namespace) -> int:
    """Applies the setup and prints what it did or found."""
    settings = load(VaultSettings)
    problems = [] if options.allow_plaintext else settings.plaintext_problems()
    if not settings.vault_addr:
        problems.append("HOLDFAST_VAULT_ADDR is required: the address of Vault, as https://host:port")
    if settings.vault_token is None:
        problems.append("HOLDFAST_VAULT_TOKEN or HOLDFAST_VAULT_TOKEN_FILE is required: a token that may set Vault up")
    if problems:
        raise SettingsError(problems)
    path: Path | None = options.secret_id_file
    if path is not None and await asyncio.to_thread(path.exists):
        raise StartupError(f"{path} exists already; nothing was done")
    role = Role(
        settings.vault_role,
        settings.vault_auth_mount or "approle",
        (RUNTIME_POLICY,) if options.no_shredding else (RUNTIME_POLICY, SHREDDING_POLICY),
        tuple(options.bound_cidr),
    )
    wire = Wire(settings.vault_address, SystemClock())
    try:
        await wire.probe()
        login = TokenLogin(settings.vault_token, settings.vault_token_file)
        setup = Setup(VaultClient(wire, Session(wire, login)), settings.vault_mounts, role, _say)
        await setup.apply()
        _say(f"HOLDFAST_VAULT_ROLE_ID={await setup.role_id()}")
        if path is not None:
            secret_id = await setup.secret_id(is_wrapped=options.wrapped)
            await asyncio.to_thread(_write, path, secret_id.reveal())
            _say(f"HOLDFAST_VAULT_SECRET_ID_FILE={path}")
            if options.wrapped:
                _say("HOLDFAST_VAULT_SECRET_ID_WRAPPED=true")
    finally:
        wire.close()
    return EXIT_OK


async def export_to_vault(options: argparse.Namespace) -> int:
    """Copies the embedded secrets and prints how many there were."""
    settings = load(StorageSettings)
    problems = [*settings.vault_problems(), *settings.plaintext_problems()]
    if problems:
        raise SettingsError(problems)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, asyncio.Event(), clock=clock))
        vault = await stack.enter_async_context(
            open_vault(settings.vault_address, settings.vault_login, settings.vault_mounts, clock)
        )
        done: Exported = await export_secrets(
            core.db,
            EmbeddedSecretStore(core.db, core.keyring),
            vault.secrets,
            overwrite=options.overwrite,
            remove=options.remove,
            report=_say,
        )
    _say(
        f"{done.written} secrets written to Vault and read back, {done.found} were there already, "
        f"{done.removed} removed from the database"
    )
    if done.different:
        _say(f"{done.different} have another value in Vault and were left alone: look, then use --overwrite")
        return _EXIT_DIFFERENT
    return EXIT_OK


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _write(path: Path, text: str) -> None:
    write_private(path, text + "\n")
    sync_folder(path.parent)
