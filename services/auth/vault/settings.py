"""Settings of Vault: where it is, how auth logs in, and how the mounts are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from services.auth.secrets import Secret
from services.auth.vault.client import Address
from services.auth.vault.login import AppRoleLogin, KubernetesLogin, LoginMethod, TokenLogin
from services.auth.vault.secret_store import Mounts
from services.shared.settings import is_loopback, setting


def parse_addresses(text: str) -> tuple[str, ...]:
    """Parses `https://host:port`, several separated by commas."""
    found = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for address in found:
        parts = urlsplit(address)
        is_plain = not (parts.path or parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise ValueError("https://host:port, or several of them separated by commas")
    return found


def parse_name(text: str) -> str:
    """Parses a name that becomes part of a path in Vault."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text) is None:
        raise ValueError("letters, digits, hyphens and underscores")
    return text


def parse_secret(text: str) -> Secret:
    """Takes the text as a secret."""
    return Secret(text)


@dataclass(frozen=True, kw_only=True)
class VaultSettings:
    """Where Vault is and how auth gets in."""

    vault_addr: tuple[str, ...] = setting(
        "HOLDFAST_VAULT_ADDR",
        default=(),
        parse=parse_addresses,
        doc="Address of Vault or OpenBao, as https://host:port; of several nodes, separated by commas.",
    )
    vault_namespace: str = setting(
        "HOLDFAST_VAULT_NAMESPACE", default="", doc="Namespace of all paths; none when empty."
    )
    vault_ca_file: Path | None = setting(
        "HOLDFAST_VAULT_CA_FILE",
        default=None,
        doc="Certificate authority of Vault's certificate; the public ones if not set.",
    )
    vault_auth: Literal["approle", "kubernetes", "token"] = setting(
        "HOLDFAST_VAULT_AUTH", default="approle", doc="How auth logs in to Vault."
    )
    vault_auth_mount: str = setting(
        "HOLDFAST_VAULT_AUTH_MOUNT",
        default="",
        parse=parse_name,
        doc="Where that method is mounted; `approle` or `kubernetes` when empty.",
    )
    vault_role: str = setting(
        "HOLDFAST_VAULT_ROLE",
        default="holdfast",
        parse=parse_name,
        doc="Name of auth's role in Vault. Of AppRole, it is what a wrapped secret id must have been made for.",
    )
    vault_role_id: str = setting(
        "HOLDFAST_VAULT_ROLE_ID", default="", doc="Role id of AppRole, as `vault-setup` prints it."
    )
    vault_secret_id_file: Path | None = setting(
        "HOLDFAST_VAULT_SECRET_ID_FILE",
        default=None,
        doc="File with the secret id of AppRole (mode 0600), read anew at each login.",
    )
    vault_secret_id_wrapped: bool = setting(
        "HOLDFAST_VAULT_SECRET_ID_WRAPPED",
        default=False,
        doc="The file holds a response-wrapping token of the secret id, which is good for one start.",
    )
    vault_jwt_file: Path = setting(
        "HOLDFAST_VAULT_JWT_FILE",
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        doc="Token of the pod's service account, read anew at each login.",
    )
    vault_token: Secret | None = setting(
        "HOLDFAST_VAULT_TOKEN",
        default=None,
        parse=parse_secret,
        secret=True,
        doc="The token, with HOLDFAST_VAULT_AUTH=token.",
    )
    vault_token_file: Path | None = setting(
        "HOLDFAST_VAULT_TOKEN_FILE",
        default=None,
        doc="File with that token, such as the sink of Vault's agent; read anew when the token is refused.",
    )
    vault_mount_prefix: str = setting(
        "HOLDFAST_VAULT_MOUNT_PREFIX",
        default="holdfast",
        parse=parse_name,
        doc="First part of the mounts' names: <prefix>-conn, -app, -lease and -transit.",
    )

    @property
    def vault_address(self) -> Address:
        """Where Vault is."""
        return Address(self.vault_addr, self.vault_ca_file, self.vault_namespace)

    @property
    def vault_mounts(self) -> Mounts:
        """Where things lie in Vault."""
        prefix = self.vault_mount_prefix
        return Mounts(f"{prefix}-conn", f"{prefix}-app", f"{prefix}-lease", f"{prefix}-transit")

    @property
    def vault_login(self) -> LoginMethod:
        """How auth gets its token. The settings were found good."""
        if self.vault_auth == "token":
            return TokenLogin(self.vault_token, self.vault_token_file)
        if self.vault_auth == "kubernetes":
            return KubernetesLogin(self.vault_role, self.vault_jwt_file, self.vault_auth_mount or "kubernetes")
        assert self.vault_secret_id_file is not None
        return AppRoleLogin(
            self.vault_role_id,
            self.vault_secret_id_file,
            self.vault_role,
            self.vault_secret_id_wrapped,
            self.vault_auth_mount or "approle",
        )

    def vault_problems(self) -> list[str]:
        """Returns what is missing for a login, one line each."""
        problems = []
        if not self.vault_addr:
            problems.append("HOLDFAST_VAULT_ADDR is required: the address of Vault, as https://host:port")
        if self.vault_ca_file is not None and not self.vault_ca_file.is_file():
            problems.append(f"HOLDFAST_VAULT_CA_FILE={str(self.vault_ca_file)!r} cannot be read")
        if self.vault_auth == "approle" and not (self.vault_role_id and self.vault_secret_id_file):
            problems.append(
                "HOLDFAST_VAULT_ROLE_ID and HOLDFAST_VAULT_SECRET_ID_FILE are required with "
                "HOLDFAST_VAULT_AUTH=approle: `holdfast vault setup` makes both"
            )
        if self.vault_auth == "token" and self.vault_token is None:
            problems.append(
                "HOLDFAST_VAULT_TOKEN or HOLDFAST_VAULT_TOKEN_FILE is required with HOLDFAST_VAULT_AUTH=token"
            )
        return problems

    def plaintext_problems(self) -> list[str]:
        """Returns the addresses to which secrets would travel in the clear, one line each."""
        return [
            f"HOLDFAST_VAULT_ADDR={address!r} is not encrypted and reaches beyond this machine: use https, or set "
            "HOLDFAST_ALLOW_PLAINTEXT=true if nobody else can read that network"
            for address in self.vault_addr
            if address.startswith("http://") and not is_loopback(f"{_bracketed(urlsplit(address).hostname or '')}:80")
        ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
