"""`holdfast vault`: for whoever runs Vault beside the suite. Works where auth is installed, with auth's settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.app import JsonOption, group
from holdfast.cli.console import print_json, say
from holdfast.cli.launch import check_server_is_installed, command

vault = group("vault", "HashiCorp Vault or OpenBao as the keeper of secrets: set it up, move secrets to it.")


@vault.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """HashiCorp Vault or OpenBao as the keeper of secrets: set it up, move secrets to it."""
    if context.invoked_subcommand is None:
        if as_json:
            print_json({"commands": ["setup", "import"]})
        else:
            say(context.get_help())


@vault.command()
def setup(
    shredding: Annotated[
        bool, typer.Option(help="Auth may delete the keys of deleted workspaces, and with them what lies under them.")
    ] = True,
    bound_cidr: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="From where auth's tokens work. Several times for several.")
    ] = None,
    secret_id_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make a secret id and put it into this new file (mode 0600).")
    ] = None,
    wrapped: Annotated[
        bool, typer.Option("--wrapped", help="Put a wrapping token there: good for one start within 10 minutes.")
    ] = False,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Send the token without TLS, on a network nobody else can read.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make what auth needs in Vault, and print what was done or found. May be repeated.

    Mounts with check-and-set, the system's key, policies and an AppRole. Set HOLDFAST_VAULT_ADDR, and
    HOLDFAST_VAULT_TOKEN or HOLDFAST_VAULT_TOKEN_FILE of somebody who may do this.
    """
    arguments = ["vault-setup"]
    if not shredding:
        arguments.append("--no-shredding")
    for cidr in bound_cidr or ():
        arguments += ["--bound-cidr", cidr]
    if secret_id_file is not None:
        arguments += ["--secret-id-file", str(secret_id_file)]
    if wrapped:
        arguments.append("--wrapped")
    if allow_plaintext:
        arguments.append("--allow-plaintext")
    _run(arguments, as_json=as_json)


@vault.command("import")
def import_secrets(
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other values that Vault has.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete from auth's database what Vault has for certain.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the secrets of auth's own database into Vault, each read back. Stop auth first; may be repeated.

    Needs auth's settings (HOLDFAST_DATABASE_URL, the master key) and those of Vault.
    """
    arguments = ["export-to-vault", *(["--overwrite"] if overwrite else []), *(["--remove"] if remove else [])]
    _run(arguments, as_json=as_json)


def _run(arguments: list[str], *, as_json: bool) -> None:
    check_server_is_installed()
    # The operator's own environment: these commands are given auth's settings by hand. What is done is said on standard
    # output line by line, what went wrong on standard error.
    result = subprocess.run(
        [*command("auth"), *arguments],
        env=dict(os.environ),
        check=False,
        stdout=subprocess.PIPE if as_json else None,
        text=True,
    )
    if as_json:
        print_json({"done": result.stdout.splitlines()})
    raise typer.Exit(result.returncode)
