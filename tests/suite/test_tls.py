"""The four services with certificates, as in production: they find each other, and the operator asks all of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from holdfast.cli import certs
from holdfast.cli.launch import SERVICES, suite_root
from tests.fakes.cluster import free_port

pytestmark = pytest.mark.slow

DOMAIN = "suite.test"


class TlsSuite:
    """Four processes on one machine.

    Args:
        folder: Of their databases and certificates.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in (*SERVICES, "services")}
        certs.dev(out=folder / "certs", trust_domain=DOMAIN, host=None, days=1, renew=False)

    def tls(self, name: str) -> dict[str, str]:
        """The settings that each of them, and the operator, has."""
        folder = self.folder / "certs"
        return {
            "HOLDFAST_TLS_CERT_FILE": str(folder / f"{name}.pem"),
            "HOLDFAST_TLS_KEY_FILE": str(folder / f"{name}.key"),
            "HOLDFAST_TLS_CA_FILE": str(folder / "ca.pem"),
            "HOLDFAST_TLS_TRUST_DOMAIN": DOMAIN,
            "HOLDFAST_STATE_ADDRESS": f"localhost:{self.ports['state']}",
            "HOLDFAST_AUTH_ADDRESS": f"localhost:{self.ports['services']}",
        }

    def settings(self, name: str) -> dict[str, str]:
        found = {
            **self.tls(name),
            "HOLDFAST_LISTEN": f"127.0.0.1:{self.ports[name]}",
            "HOLDFAST_SERVICE_TOKEN": "t" * 40,
            "HOLDFAST_DRAIN_SECONDS": "1",
            "HOLDFAST_DATABASE_URL": f"sqlite:///{self.folder / name}.db",
        }
        if name == "auth":
            found["HOLDFAST_SERVICES_LISTEN"] = f"127.0.0.1:{self.ports['services']}"
            found["HOLDFAST_AUTH_HTTP_LISTEN"] = "127.0.0.1:0"
        return found

    async def health(self, name: str) -> int:
        """What the health check of its container would exit with."""
        return (await run("-P", "-m", "services.shared.healthcheck", **self.settings(name)))[0]


def environment(**settings: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return {**plain, "PYTHONPATH": str(suite_root()), **settings}


async def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[TlsSuite]:
    """The four processes, serving."""
    found = TlsSuite(tmp_path)
    async with asyncio.timeout(90), AsyncExitStack() as stack:
        for name in SERVICES:
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            command = (sys.executable, "-P", "-m", f"services.{name}")
            process = await asyncio.create_subprocess_exec(
                *command, env=environment(**found.settings(name)), stdout=log, stderr=log
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
        for name in SERVICES:
            while await found.health(name) != 0:
                await asyncio.sleep(0.2)
        yield found


async def test_doctor_asks_all_services_by_the_settings_that_they_have(suite: TlsSuite) -> None:
    addresses = {
        "HOLDFAST_ADDRESS": f"localhost:{suite.ports['executor']}",
        "HOLDFAST_TRACE_ADDRESS": f"localhost:{suite.ports['trace']}",
        "HOLDFAST_CONFIG": str(suite.folder / "none.toml"),
    }
    doctor = ("-m", "holdfast.cli", "doctor", "--json")

    code, out, err = await run(*doctor, **suite.tls("operator"), **addresses)

    found = json.loads(out)
    assert (code, found["result"]) == (0, "OK"), out + err
    assert {name: service["health"] for name, service in found["services"].items()} == dict.fromkeys(
        SERVICES, "SERVING"
    )
    assert "audit_chain" in {check["name"] for check in found["checks"]}
    assert not any("audit" in warning for warning in found["warnings"])
    # Another one's certificate is not the operator's, and a clients' address of auth is said to be one.
    code, out, _ = await run(*doctor, **suite.tls("trace"), **addresses)
    assert (code, json.loads(out)["result"]) == (2, "NOT_CHECKED")
    clients = {**suite.tls("operator"), "HOLDFAST_AUTH_ADDRESS": f"localhost:{suite.ports['auth']}"}
    code, out, _ = await run(*doctor, **clients, **addresses)
    found = json.loads(out)
    assert found["services"]["auth"]["health"] == "SERVING"
    assert any("the audit was not checked" in warning for warning in found["warnings"])
    other = {"HOLDFAST_AUTH_SERVICES_ADDRESS": f"localhost:{suite.ports['services']}"}
    code, out, _ = await run(*doctor, **clients, **addresses, **other)
    assert "audit_chain" in {check["name"] for check in json.loads(out)["checks"]}
