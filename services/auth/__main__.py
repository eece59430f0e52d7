"""The process: `python -m services.auth [serve | migrate | …]`, with the commands that `--help` lists."""

from __future__ import annotations

import sys

from services.auth import admin, vault_admin
from services.auth.app import SERVICE, migrate, run
from services.auth.settings import AuthSettings
from services.shared.server import service_main

_COMMANDS = (
    "\nCommands beside the server (each has --help):\n"
    "  create-key         make an API key, and its workspace when it does not exist\n"
    "  rotate-master-key  seal everything with another master key\n"
    "  vault-setup        make what Vault needs: mounts, policies, a role; may be repeated\n"
    "  export-to-vault    copy the sealed secrets into Vault; may be repeated\n"
)


def main(arguments: list[str]) -> None:
    """Runs the server, or one command."""
    match arguments:
        case ["create-key" | "rotate-master-key", *_]:
            sys.exit(admin.main(arguments))
        case ["vault-setup" | "export-to-vault", *_]:
            sys.exit(vault_admin.main(arguments))
        case ["serve", *rest]:
            arguments = rest
    try:
        service_main(run, AuthSettings, service=SERVICE, migrate=migrate, arguments=arguments)
    finally:
        if arguments[:1] in (["-h"], ["--help"]):
            sys.stdout.write(_COMMANDS)


if __name__ == "__main__":
    main(sys.argv[1:])
