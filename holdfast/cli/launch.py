"""How a service of the suite is started as a process of its own: command, environment, health.

No process here outlives the one that started it, however that ends: the kernel kills it then.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

import holdfast
from holdfast.cli.operator import write_addresses
from holdfast.errors import FailedPrecondition
from holdfast.settings import PORTS, write_private

SERVICES: Final = ("executor", "state", "auth", "trace")
WORKSPACE: Final = "default"
_PAGES_PORT: Final = 7404

_HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
# The wire form of HealthCheckResponse(status=SERVING): the base install has no stubs for it.
_SERVING: Final = b"\x08\x01"
_POLL_SECONDS: Final = 0.05

# What the services run on and the base install does not bring.
_SERVER_MODULES: Final = ("alembic", "cryptography", "grpc_health", "grpc_reflection", "opentelemetry", "sqlalchemy")

# A service gets these variables of the caller's and no others: providers' keys are in no service's environment.
_PASSED_ON: Final = frozenset(
    {
        "ALL_PROXY",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NO_COLOR",
        "NO_PROXY",
        "PATH",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
_PASSED_ON_PREFIXES: Final = ("LC_", "COV_CORE_", "COVERAGE_")
# Settings that belong to whoever starts the suite; services would warn that they do not know them.
_CLIENT_SETTINGS: Final = frozenset(
    {
        "HOLDFAST_ADDRESS",
        "HOLDFAST_API_KEY",
        "HOLDFAST_AUTH_ADDRESS",
        "HOLDFAST_CA_FILE",
        "HOLDFAST_CONFIG",
        "HOLDFAST_PROFILE",
        "HOLDFAST_TRACE_ADDRESS",
    }
)

# What each service of the plan gets of its own; also as a file, by the name with _FILE behind it.
_PLANNED: Final = frozenset(
    {"HOLDFAST_DATABASE_URL", "HOLDFAST_LISTEN", "HOLDFAST_METRICS_LISTEN", "HOLDFAST_SERVICE_TOKEN"}
)
# The key to all stored credentials is auth's alone, and so is the way into Vault.
_FOR_AUTH_ONLY: Final = ("HOLDFAST_MASTER_KEY", "HOLDFAST_SECRET_STORE", "HOLDFAST_VAULT_")

_BOOTSTRAP: Final = """
import os, sys
root, module, parent = sys.argv[1:4]
del sys.argv[1:4]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != int(parent):
        os._exit(1)
else:
    import threading
    def wait_for_the_end_of_the_parent():
        while os.read(0, 1):
            pass
        os._exit(1)
    threading.Thread(target=wait_for_the_end_of_the_parent, daemon=True).start()
sys.path.insert(0, root)
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def suite_root() -> Path:
    """Returns the folder that holds `services`: inside the installed wheel, or the checkout itself.

    Raises:
        FailedPrecondition: There is none.
    """
    package = Path(holdfast.__file__).resolve().parent
    for root in (package / "_suite", package.parent):
        if (root / "services" / "shared" / "server.py").is_file():
            return root
    raise FailedPrecondition("this installation of holdfast has no services: install it anew")


def check_server_is_installed() -> None:
    """Refuses, with the command to run, when only the client side is installed.

    Raises:
        FailedPrecondition: The server extra is missing.
    """
    missing = [module for module in _SERVER_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise FailedPrecondition(
            "the services are not installed, only the client is: run `pip install 'holdfast[server]'` "
            f"(missing: {', '.join(missing)})"
        )


def command(service: str) -> list[str]:
    """Returns the command that starts a service. Users' code is not on its path: `-P` leaves the folder out."""
    return [sys.executable, "-P", "-c", _BOOTSTRAP, str(suite_root()), f"services.{service}", str(os.getpid())]


@dataclass(frozen=True, slots=True)
class Plan:
    """A suite that is to be started.

    Attributes:
        data: Folder of everything it keeps.
        addresses: Where each service listens.
        pages: Where auth serves its pages for browsers; a free port of this machine when not given.
        database_url: PostgreSQL for all of them; SQLite files in the folder when empty.
        settings: Further settings of every service.
        service_settings: Further settings of single services.
    """

    data: Path
    addresses: Mapping[str, str]
    pages: str = "127.0.0.1:0"
    database_url: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    service_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def token_file(self) -> Path:
        """The secret that the services show to each other."""
        return self.data / "service.token"

    @property
    def key_file(self) -> Path:
        """The workspace's first API key, for its owner."""
        return self.data / "keys" / f"{WORKSPACE}.key"

    def prepare(self) -> None:
        """Makes the folder and the services' token, for the owner only.

        Raises:
            OSError: The folder can't be made or written.
        """
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.key_file.parent.mkdir(exist_ok=True, mode=0o700)
        if not self.token_file.exists():
            write_private(self.token_file, secrets.token_hex(32) + "\n")
        # The operator's commands find state by it.
        write_addresses(self.data, self.addresses)

    def environment(self, service: str, *, listen: str = "", extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Returns the whole environment of a service.

        Args:
            service: Its name.
            listen: Another address than the plan's, for a second process of the same service.
            extra: Settings of this process only.
        """
        environment = _inherited(service)
        environment.update(
            {
                # A terminal's own width and buffering are of no use to a process that writes into a pipe.
                "PYTHONUNBUFFERED": "1",
                "HOLDFAST_LISTEN": listen or self.addresses[service],
                "HOLDFAST_SERVICE_TOKEN_FILE": str(self.token_file),
                "HOLDFAST_LOG_FORMAT": "json",
            }
        )
        if service != "executor":
            environment["HOLDFAST_DATABASE_URL"] = self.database_url or f"sqlite:///{self.data / f'{service}.db'}"
            if self.database_url:
                environment["HOLDFAST_MIGRATE_ON_START"] = "true"
        if service in ("executor", "trace"):
            environment["HOLDFAST_STATE_ADDRESS"] = self.addresses["state"]
        if service != "auth":
            environment["HOLDFAST_AUTH_ADDRESS"] = self.addresses["auth"]
        if service == "executor":
            # Of an embedded suite everything may be on this machine, the endpoints of `http` tools included.
            environment.setdefault("HOLDFAST_HTTP_TOOLS_ALLOW", "127.0.0.0/8,::1")
        if service == "auth":
            environment["HOLDFAST_DATA_DIR"] = str(self.data)
            environment.setdefault("HOLDFAST_AUTH_HTTP_LISTEN", self.pages)
            # As for tools: what an account is connected at may be on this machine, too.
            environment.setdefault("HOLDFAST_AUTH_EGRESS_ALLOW", "127.0.0.0/8,::1")
            environment["HOLDFAST_BOOTSTRAP_WORKSPACE"] = WORKSPACE
            environment["HOLDFAST_BOOTSTRAP_KEY_FILE"] = str(self.key_file)
        environment.update(self.settings)
        environment.update(self.service_settings.get(service, {}))
        environment.update(extra or {})
        return environment


def _inherited(service: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _is_inherited(name, service)}


def _is_inherited(name: str, service: str) -> bool:
    if name.startswith("HOLDFAST_"):
        setting = name.removesuffix("_FILE")
        if setting.startswith(_FOR_AUTH_ONLY):
            return service == "auth"
        return setting not in _CLIENT_SETTINGS and setting not in _PLANNED
    return name.upper() in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)


def local_addresses(port_base: int, *, host: str = "127.0.0.1") -> dict[str, str]:
    """Returns where the services of an embedded suite listen. State, which only services call, stays on loopback."""
    first = PORTS["executor"]
    shown = f"[{host}]" if ":" in host else host
    return {
        service: f"{'127.0.0.1' if service == 'state' else shown}:{port_base + PORTS[service] - first}"
        for service in SERVICES
    }


def local_pages(port_base: int) -> str:
    """Returns where auth of an embedded suite serves its pages: on loopback, because they are plain HTTP."""
    return f"127.0.0.1:{port_base + _PAGES_PORT - PORTS['executor']}"


def free_addresses(count: int) -> list[str]:
    """Returns addresses on this machine at which nobody listens now."""
    # All are bound before any is let go, so that they differ.
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{bound.getsockname()[1]}" for bound in sockets]


async def wait_until_serving(address: str) -> None:
    """Returns when the service at an address says that it serves; the caller sets the time limit."""
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        # A channel of its own: after a restart nothing of the connection before it is in the way.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_HEALTH_CHECK)
        while True:
            try:
                if await check(b"", timeout=2) == _SERVING:
                    return
            except grpc.RpcError:
                # Not there yet, which is what we wait for.
                pass
            await asyncio.sleep(_POLL_SECONDS)
