"""`holdfast up` for real: four processes that start together, come back when they die, and never outlive it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from holdfast.cli import launch
from holdfast.cli.launch import SERVICES, Plan, free_addresses, local_addresses
from holdfast.settings import Profile, load_profiles, save_profile
from tests.repository.tree import ROOT

AGENT = """\
name: greeter
model: {provider: scripted, script: {turns: [{text: "Hello, {{input}}!"}]}}
"""


class Up:
    """A `holdfast up --json` and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process, data: Path, environment: dict[str, str], base: int) -> None:
        self.process = process
        self.data = data
        self.environment = environment
        self.base = base
        self.lines: list[dict[str, Any]] = []

    async def until(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Reads on to the line that is looked for."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while line := await self.process.stdout.readline():
                fields: dict[str, Any] = json.loads(line)
                self.lines.append(fields)
                if is_it(fields):
                    return fields
        raise AssertionError(f"it never said so: {self.lines[-5:]}")

    def services(self) -> dict[str, psutil.Process]:
        """Returns the services' processes by name."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            for service in SERVICES:
                if f"services.{service}" in child.cmdline():
                    found[service] = child
        return found

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Runs another command with the same configuration."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.cli",
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def end(self) -> int:
        """Reads what is left and returns the exit code."""
        async with asyncio.timeout(60):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


def _free_port_base() -> int:
    # Four neighbours: the first of a free block, tried until one is found.
    while True:
        base = int(free_addresses(1)[0].rpartition(":")[2])
        taken = {connection.laddr.port for connection in psutil.net_connections("tcp") if connection.laddr}
        if base < 65_000 and not taken & set(range(base, base + 4)):
            return base


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """A suite that is being started."""
    base, data = _free_port_base(), tmp_path / "data"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOLDFAST_CONFIG": str(tmp_path / "config" / "config.toml"),
        "OPENAI_API_KEY": "sk-canary-5512",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "holdfast.cli",
        "up",
        "--json",
        "--data",
        str(data),
        "--port-base",
        str(base),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1024 * 1024,
    )
    started = Up(process, data, environment, base)
    yield started
    if process.returncode is None:
        process.kill()
    await process.communicate()


def is_up(line: dict[str, Any]) -> bool:
    """Whether this line says that all services are healthy."""
    return line.get("service") == "up" and line.get("event") == "up"


async def test_suite_is_of_use_at_once_and_drains_on_ctrl_c(up: Up, tmp_path: Path) -> None:
    said = await up.until(is_up)
    config = Path(up.environment["HOLDFAST_CONFIG"])
    assert said["config"] == str(config)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(up.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((up.data / "keys" / "default.key").stat().st_mode) == 0o600
    profile = load_profiles(config)["default"]
    assert profile.address == f"127.0.0.1:{up.base}"
    assert profile.api_key == (up.data / "keys" / "default.key").read_text().strip()

    (tmp_path / "agent.yaml").write_text(AGENT)
    code, out, err = await up.command("apply", "-f", str(tmp_path / "agent.yaml"))
    assert code == 0, err
    code, out, err = await up.command("run", "greeter", "world")
    assert (code, out) == (0, "Hello, world!\n"), err
    run_id = err.splitlines()[0].removeprefix("run ")
    code, out, err = await up.command("trace", run_id)
    assert code == 0, err
    assert "chat scripted" in out

    services = up.services()
    assert set(services) == set(SERVICES)
    for service in services.values():
        assert "OPENAI_API_KEY" not in service.environ()

    code, _, err = await up.command("up", "--data", str(up.data), "--port-base", str(_free_port_base()))
    assert code == 1
    assert f"another `holdfast up` (process {up.process.pid}) uses {up.data}" in err
    code, _, err = await up.command("up", "--data", str(tmp_path / "other"), "--port-base", str(up.base))
    assert code == 1
    assert f"port {up.base}, which executor needs, is in use: choose others with --port-base" in err

    up.process.send_signal(signal.SIGINT)
    assert await up.end() == 0
    assert not any(service.is_running() for service in services.values())


async def test_service_that_dies_is_started_again(up: Up) -> None:
    await up.until(is_up)
    services = up.services()
    services["executor"].kill()
    said = await up.until(lambda line: line.get("service") == "executor" and "died" in str(line["event"]))
    assert said["event"] == "died (SIGKILL); starting it again in 0.2 s"
    await up.until(lambda line: line.get("service") == "executor" and line["event"] == "listening")
    assert up.services()["executor"].pid != services["executor"].pid
    code, _, err = await up.command("runs")
    assert code == 0, err
    up.process.terminate()
    assert await up.end() == 0


async def test_services_die_with_it_when_it_is_killed(up: Up) -> None:
    await up.until(is_up)
    services = list(up.services().values())
    up.process.kill()
    await up.end()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, services, 20)
    assert (len(gone), alive) == (4, [])


async def test_service_that_cannot_start_ends_all_with_its_reason(up: Up) -> None:
    # A folder where a file should be: state can't open its database.
    (up.data / "state.db").mkdir(parents=True)
    async with asyncio.timeout(60):
        out, _ = await up.process.communicate()
    assert up.process.returncode == 1
    said = json.loads(out.decode().splitlines()[-1])
    assert said["error"]["message"].startswith("state could not start (exit code")
    assert "Traceback" not in said["error"]["message"]


def test_services_get_no_variable_that_they_do_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ANTHROPIC_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HOLDFAST_API_KEY",
        "HOLDFAST_MASTER_KEY",
        "HOLDFAST_VAULT_TOKEN",
        "HOLDFAST_SERVICE_TOKEN",
        "HOLDFAST_LOG_LEVEL",
        "OPENAI_API_KEY",
    ):
        monkeypatch.setenv(name, "canary")
    plan = Plan(tmp_path, local_addresses(7400))
    environments = {service: plan.environment(service) for service in SERVICES}
    with_canaries = {
        service: sorted(name for name, value in environment.items() if value == "canary")
        for service, environment in environments.items()
    }
    assert with_canaries.pop("auth") == ["HOLDFAST_LOG_LEVEL", "HOLDFAST_MASTER_KEY", "HOLDFAST_VAULT_TOKEN"]
    assert set(map(tuple, with_canaries.values())) == {("HOLDFAST_LOG_LEVEL",)}
    assert "HOLDFAST_DATABASE_URL" not in environments["executor"]
    assert environments["trace"]["PATH"] == os.environ["PATH"]


def test_profile_of_another_machine_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.cli.up import _profile_name

    config = tmp_path / "config.toml"
    monkeypatch.setenv("HOLDFAST_CONFIG", str(config))
    plan = Plan(tmp_path, local_addresses(7400))
    assert _profile_name("default", plan) == "default"
    save_profile(config, "default", Profile("127.0.0.1:9000", api_key="old"))
    assert _profile_name("default", plan) == "default"
    save_profile(config, "default", Profile("https://agents.example:443", api_key="prod"))
    assert _profile_name("default", plan) == "local"


def test_missing_server_is_said_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SERVER_MODULES", ("sqlalchemy", "no_such_module"))
    with pytest.raises(Exception, match=r"pip install 'holdfast\[server\]'.*missing: no_such_module"):
        launch.check_server_is_installed()
