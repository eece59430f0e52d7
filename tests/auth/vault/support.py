"""Vaults for tests: the double, and a real server when there is one; opened as auth opens them."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from services.auth.secrets import Secret
from services.auth.vault.backend import Vault, open_vault
from services.auth.vault.client import Address, VaultClient, Wire
from services.auth.vault.login import AppRoleLogin, LoginMethod, TokenLogin
from services.auth.vault.secret_store import Mounts
from services.auth.vault.session import Session
from services.auth.vault.setup import Role, Setup
from services.shared.clock import Clock, SystemClock
from tests.fakes.vault import Cluster

NO_VAULT = "no Vault: set HOLDFAST_TEST_VAULT_ADDR and …_TOKEN, or have vault or bao on the PATH"

_START_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A Vault that answers, with a token that may do everything."""

    addresses: tuple[str, ...]
    root_token: str
    mounts: Mounts = field(default_factory=Mounts)
    role: Role = field(default_factory=Role)

    def address(self, **changes: object) -> Address:
        """How it is reached."""
        return replace(Address(self.addresses), **changes)  # type: ignore[arg-type]

    def own(self) -> Server:
        """The same server with mounts and a role of the test's own."""
        name = f"t{secrets.token_hex(4)}"
        mounts = Mounts(
            f"holdfast-{name}-conn", f"holdfast-{name}-app", f"holdfast-{name}-lease", f"holdfast-{name}-transit"
        )
        return replace(self, mounts=mounts, role=replace(self.role, name=f"holdfast-{name}"))


def of_double(cluster: Cluster) -> Server:
    """The double as a server."""
    return Server(cluster.addresses, cluster.root_token)


@asynccontextmanager
async def as_root(server: Server) -> AsyncIterator[VaultClient]:
    """Calls that may do everything."""
    wire = Wire(server.address(), SystemClock())
    try:
        yield VaultClient(wire, Session(wire, TokenLogin(Secret(server.root_token))))
    finally:
        wire.close()


async def set_up(server: Server) -> tuple[str, str, list[str]]:
    """Applies the setup; returns the role's id, a secret id, and what was reported."""
    lines: list[str] = []
    async with as_root(server) as client:
        setup = Setup(client, server.mounts, server.role, lines.append)
        await setup.apply()
        secret_id = await setup.secret_id(is_wrapped=False)
        return await setup.role_id(), secret_id.reveal(), lines


async def approle(server: Server, folder: Path) -> AppRoleLogin:
    """A login by AppRole on a server that is set up for it."""
    role_id, secret_id, _ = await set_up(server)
    path = folder / "secret-id"
    path.write_text(secret_id)
    return AppRoleLogin(role_id, path, server.role.name)


async def approle_environment(server: Server, folder: Path) -> dict[str, str]:
    """Settings of auth on a server that is set up for it, with a login by AppRole."""
    role_id, secret_id, _ = await set_up(server)
    file = folder / "secret-id"
    file.touch(0o600)
    file.write_text(secret_id)
    return {
        "HOLDFAST_SECRET_STORE": "vault",
        "HOLDFAST_VAULT_ADDR": ",".join(server.addresses),
        "HOLDFAST_VAULT_MOUNT_PREFIX": server.mounts.connections.removesuffix("-conn"),
        "HOLDFAST_VAULT_ROLE": server.role.name,
        "HOLDFAST_VAULT_ROLE_ID": role_id,
        "HOLDFAST_VAULT_SECRET_ID_FILE": str(file),
    }


@asynccontextmanager
async def opened(server: Server, method: LoginMethod, *, clock: Clock | None = None) -> AsyncIterator[Vault]:
    """Vault as auth has it."""
    async with (
        asyncio.timeout(60),
        open_vault(server.address(), method, server.mounts, clock or SystemClock()) as vault,
    ):
        yield vault


@asynccontextmanager
async def vault_of(request: pytest.FixtureRequest, *, is_real: bool, folder: Path) -> AsyncIterator[Vault]:
    """Vault as auth has it, logged in by AppRole under the shipped policies, on the double or on a real server."""
    with ExitStack() as stack:
        if is_real:
            found: Server | None = request.getfixturevalue("real_vault")
            if found is None:
                pytest.skip(NO_VAULT)
            server = found.own()
        else:
            server = of_double(stack.enter_context(Cluster()))
        async with opened(server, await approle(server, folder)) as vault:
            yield vault


@contextmanager
def real_server() -> Iterator[Server | None]:
    """HOLDFAST_TEST_VAULT_ADDR with HOLDFAST_TEST_VAULT_TOKEN, or a server started from the PATH, or None."""
    address = os.environ.get("HOLDFAST_TEST_VAULT_ADDR")
    if address:
        yield Server((address,), os.environ["HOLDFAST_TEST_VAULT_TOKEN"])
        return
    binary = shutil.which("vault") or shutil.which("bao")
    if binary is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    token = f"root-{secrets.token_hex(8)}"
    process = subprocess.Popen(
        [
            binary,
            "server",
            "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={token}",
            f"-dev-listen-address={listen}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(f"http://{listen}/v1/sys/health")
        yield Server((f"http://{listen}",), token)
    finally:
        process.terminate()
        process.wait(10)


def _wait(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
