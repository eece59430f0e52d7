"""Settings of the auth service."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from services.auth.connect.return_urls import parse_return_urls
from services.auth.persons import OidcRules
from services.auth.requests import is_name
from services.auth.roles import ROLES
from services.auth.sealing import MasterKey
from services.auth.vault.settings import VaultSettings
from services.shared.database_postgres import one_url_of_several_hosts
from services.shared.egress import parse_allowed_targets, parse_destination
from services.shared.settings import (
    CommonSettings,
    comma_list,
    database_pool_size_setting,
    database_url_setting,
    host_port,
    is_loopback,
    listen_setting,
    migrate_on_start_setting,
    services_listen_setting,
    setting,
)


def _issuer(text: str) -> str:
    address = parse_destination(text)
    if address.scheme != "https" and not is_loopback(
        f"[{address.host}]:1" if ":" in address.host else f"{address.host}:1"
    ):
        raise ValueError("an address that starts with https://, as tokens are verified by what it answers")
    if address.query:
        raise ValueError("an address without a query")
    return text


def _role_pairs(text: str) -> tuple[str, ...]:
    pairs = comma_list(text)
    for pair in pairs:
        value, separator, role = pair.rpartition("=")
        if not separator or not value or role not in ROLES:
            raise ValueError(f"value=role,value=role with the roles {', '.join(ROLES)}")
    return pairs


def parse_name(text: str) -> str:
    """Parses the name of a workspace."""
    if not is_name(text):
        raise ValueError("a lower-case letter, then up to 62 lower-case letters, digits and hyphens")
    return text


@dataclass(frozen=True, kw_only=True)
class StorageSettings(VaultSettings):
    """Where auth keeps what it knows, and the key to it: all that the commands beside the server need."""

    database_url: str = database_url_setting()
    database_pool_size: int = database_pool_size_setting()
    migrate_on_start: bool = migrate_on_start_setting()
    master_key: MasterKey | None = setting(
        "HOLDFAST_MASTER_KEY",
        default=None,
        parse=MasterKey.parse,
        secret=True,
        doc="Key that seals the stored credentials: 32 bytes as base64, the same for every replica. Without it, and "
        "without the file below, one is generated beside the database.",
    )
    master_key_file: Path | None = setting(
        "HOLDFAST_MASTER_KEY_FILE",
        default=None,
        doc="File with that key, readable by its owner only (mode 0600).",
    )
    data_dir: Path | None = setting(
        "HOLDFAST_DATA_DIR",
        default=None,
        doc="Folder of the generated master key; the folder of the SQLite database when it is not set.",
    )

    secret_store: Literal["embedded", "vault"] = setting(
        "HOLDFAST_SECRET_STORE",
        default="embedded",
        doc="Where third parties' secrets lie: sealed in auth's own database, or in HashiCorp Vault or OpenBao.",
    )

    @property
    def generated_key_path(self) -> Path | None:
        """Where a generated master key lies; None when there is no place for one."""
        url = make_url(one_url_of_several_hosts(self.database_url))
        if url.get_backend_name() == "sqlite" and url.database:
            database = Path(url.database)
            return (self.data_dir or database.parent) / f"{database.stem}.master-key"
        return self.data_dir / "auth.master-key" if self.data_dir is not None else None

    def problems(self) -> list[str]:
        """Returns what is wrong in the combination of the settings, one line each."""
        return storage_problems(self)


def storage_problems(settings: StorageSettings) -> list[str]:
    """Returns what is wrong with the master key's settings, one line each."""
    problems = []
    if settings.master_key_file is not None and (problem := private_file_problem(settings.master_key_file)):
        problems.append(f"HOLDFAST_MASTER_KEY_FILE={str(settings.master_key_file)!r} {problem}")
    if settings.master_key is None and settings.generated_key_path is None:
        problems.append(
            "HOLDFAST_MASTER_KEY or HOLDFAST_MASTER_KEY_FILE is required with PostgreSQL, the same for every replica: "
            "`openssl rand -base64 32` makes a key"
        )
    if settings.secret_store == "vault":
        problems.extend(settings.vault_problems())
        for name, path in (
            ("HOLDFAST_VAULT_SECRET_ID_FILE", settings.vault_secret_id_file),
            ("HOLDFAST_VAULT_TOKEN_FILE", settings.vault_token_file),
        ):
            if path is not None and (problem := private_file_problem(path)):
                problems.append(f"{name}={str(path)!r} {problem}")
    return problems


def private_file_problem(path: Path) -> str | None:
    """Returns what is wrong with the rights of a file that holds a key; None when nothing is."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if mode & 0o077:
        return f"can be read by others (mode {mode:04o}): run `chmod 600` on it"
    return None


def parse_public_url(text: str) -> str:
    """Parses the address of auth's pages as browsers see it."""
    parts = urlsplit(text)
    is_loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback):
        raise ValueError("https://host[:port], or http:// on this machine's loopback")
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment or not parts.hostname:
        raise ValueError("an address without user, path, query and fragment")
    return text.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class AuthSettings(CommonSettings, StorageSettings):
    """Settings of the auth service."""

    listen: str = listen_setting(7402)
    services_listen: str = services_listen_setting()

    @property
    def oidc(self) -> OidcRules | None:
        """Whose tokens are taken; None when nobody's."""
        if not self.oidc_issuer:
            return None
        return OidcRules(
            issuer=self.oidc_issuer,
            audience=self.oidc_audience,
            user_claim=self.oidc_user_claim,
            workspace=self.oidc_workspace,
            workspace_claim=self.oidc_workspace_claim,
            role_claim=self.oidc_role_claim,
            roles={value: role for value, _, role in (pair.rpartition("=") for pair in self.oidc_roles)},
        )

    bootstrap_workspace: str = setting(
        "HOLDFAST_BOOTSTRAP_WORKSPACE",
        default="",
        parse=parse_name,
        doc="Workspace that is made at start when it does not exist; none when empty.",
    )
    bootstrap_key_file: Path | None = setting(
        "HOLDFAST_BOOTSTRAP_KEY_FILE",
        default=None,
        doc="File that holds a key with the scope admin for that workspace after the start (mode 0600): made when it "
        "is missing, or when its key is not valid any more.",
    )

    public_url: str = setting(
        "HOLDFAST_PUBLIC_URL",
        default="",
        parse=parse_public_url,
        doc="Where people's browsers reach auth's own pages: https, or http on this machine's loopback. Redirect URIs "
        "that are registered at providers begin with it. Without it, the address on which the pages are served.",
    )
    http_listen: str = setting(
        "HOLDFAST_AUTH_HTTP_LISTEN",
        default="127.0.0.1:7404",
        parse=host_port,
        doc="Address on which auth serves its pages for browsers, in plain HTTP, as host:port; port 0: a free one.",
    )
    connect_return_urls: tuple[str, ...] = setting(
        "HOLDFAST_CONNECT_RETURN_URLS",
        default=(),
        parse=parse_return_urls,
        doc="Addresses of your own applications to which a browser may be sent with the code that confirms a connected "
        "account, separated by commas; they are compared as they are. Loopback addresses are always allowed.",
    )
    egress_allow: tuple[str, ...] = setting(
        "HOLDFAST_AUTH_EGRESS_ALLOW",
        default=(),
        parse=parse_allowed_targets,
        doc="Hosts and networks (CIDR) beyond the public internet where auth may call providers' endpoints, such as an "
        "identity provider of one's own.",
    )
    oidc_issuer: str = setting(
        "HOLDFAST_OIDC_ISSUER",
        default="",
        parse=_issuer,
        doc="Identity provider whose tokens people show, exactly as their claim iss has it; none when empty.",
    )
    oidc_audience: str = setting(
        "HOLDFAST_OIDC_AUDIENCE", default="", doc="Audience (claim aud) of the tokens; required with an issuer."
    )
    oidc_user_claim: str = setting("HOLDFAST_OIDC_USER_CLAIM", default="sub", doc="Claim that is the user's id.")
    oidc_workspace: str = setting(
        "HOLDFAST_OIDC_WORKSPACE",
        default="",
        doc="Workspace of everybody who has a token; when empty, the claim below names it.",
    )
    oidc_workspace_claim: str = setting(
        "HOLDFAST_OIDC_WORKSPACE_CLAIM", default="holdfast_workspace", doc="Claim that names a person's workspace."
    )
    oidc_role_claim: str = setting(
        "HOLDFAST_OIDC_ROLE_CLAIM",
        default="roles",
        doc="Claim with a person's roles, one or a list; with dots for one inside others, such as realm_access.roles.",
    )
    oidc_roles: tuple[str, ...] = setting(
        "HOLDFAST_OIDC_ROLES",
        default=(),
        parse=_role_pairs,
        doc="What that claim's values mean, as value=role,value=role; when empty, a value is the role of that name.",
    )
    providers_folder: Path | None = setting(
        "HOLDFAST_PROVIDERS_FOLDER",
        default=None,
        doc="Folder with providers of one's own (`*.yaml`), beside those of the release; one of the same name wins.",
    )

    def problems(self) -> list[str]:
        """Returns what is wrong in the combination of the settings, one line each."""
        problems = [*super().problems(), *storage_problems(self)]
        if not is_loopback(self.http_listen):
            if not self.allow_plaintext:
                problems.append(
                    f"HOLDFAST_AUTH_HTTP_LISTEN={self.http_listen!r} reaches beyond this machine, and is not "
                    "encrypted: use a loopback address with a proxy before it, or set HOLDFAST_ALLOW_PLAINTEXT=true "
                    "if nobody else can read that network"
                )
            if not self.public_url:
                problems.append("HOLDFAST_PUBLIC_URL is required when HOLDFAST_AUTH_HTTP_LISTEN is no loopback address")
        if self.oidc_issuer and not self.oidc_audience:
            problems.append(
                "HOLDFAST_OIDC_AUDIENCE is required with HOLDFAST_OIDC_ISSUER: tokens for others are not taken"
            )
        if self.bootstrap_key_file is not None and not self.bootstrap_workspace:
            problems.append("HOLDFAST_BOOTSTRAP_KEY_FILE is set, but HOLDFAST_BOOTSTRAP_WORKSPACE is not: set both")
        if self.secret_store == "vault" and not self.allow_plaintext:
            problems.extend(self.plaintext_problems())
        return problems
