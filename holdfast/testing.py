"""A whole suite for tests, as processes of its own; and scripted models, which need no key and always do the same.

Example:
    async with Suite() as suite:
        async with suite.client() as client:
            agent = Agent("greeter", model=scripted("Hello, {{input}}!"))
            await client.apply(agent)
            run = await client.start(agent, "world")
            assert await run.result() == "Hello, world!"
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from holdfast.api.common.v1 import agent_pb2
from holdfast.cli.launch import SERVICES, Plan, check_server_is_installed, free_addresses, wait_until_serving
from holdfast.cli.warm import ServiceProcess, start_service, warm_service
from holdfast.client import Client
from holdfast.times import to_duration
from holdfast.worker import Worker

START_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 15.0

_LOG_TAIL_LINES: Final = 40


class SuiteError(Exception):
    """The suite could not be started, or a service of it died; the text ends with the last lines of its log."""


@dataclass
class _Process:
    """One process of a service."""

    name: str
    service: str
    address: str
    environment: Mapping[str, str]
    log: Path
    process: ServiceProcess | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def forget(self) -> None:
        """Closes what is left of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-_LOG_TAIL_LINES:])


class Suite:
    """The four services on free ports, with everything they keep in one folder.

    Args:
        data: Folder of what the suite keeps; a temporary one when not given, removed at the end.
        database_url: PostgreSQL for all services, each with its own schema; SQLite files when not given.
        executors: How many executors to start.
        states: How many processes of state; more than one share a PostgreSQL. The other services call the first one,
            unless HOLDFAST_STATE_ADDRESS in `service_settings` names what leads to all of them.
        settings: Further `HOLDFAST_*` settings of every service.
        service_settings: Further settings of single services, such as `{"state": {"HOLDFAST_LOG_LEVEL": "debug"}}`.
        warm: Start services as forks of processes that have their code loaded, where the system can do that: suites
            after the first one are up in a fraction of its time. False for who measures the processes or looks into
            them: each is started by its own command then.

    Attributes:
        data: The folder.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        database_url: str = "",
        executors: int = 1,
        states: int = 1,
        settings: Mapping[str, str] | None = None,
        service_settings: Mapping[str, Mapping[str, str]] | None = None,
        warm: bool = True,
    ) -> None:
        if states > 1 and not database_url:
            raise ValueError("several processes of state need a PostgreSQL: give its database_url")
        self._cleanup = ExitStack()
        self._given = data
        self.data = data if data is not None else Path()
        self._database_url = database_url
        self._executors = executors
        self._states = states
        self._settings = dict(settings or {})
        self._service_settings = dict(service_settings or {})
        self._warm = warm
        self._plan: Plan | None = None
        self._processes: dict[str, _Process] = {}

    # ---------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts all services and returns when they serve.

        Raises:
            SuiteError: One could not start.
        """
        check_server_is_installed()
        if self._given is None:
            # What a killed process left open must not keep the rest of the folder from being removed.
            folder = tempfile.TemporaryDirectory(prefix="holdfast-suite-", ignore_cleanup_errors=True)
            self.data = Path(self._cleanup.enter_context(folder))
        addresses = dict(zip(SERVICES, free_addresses(len(SERVICES)), strict=True))
        self._plan = Plan(
            self.data,
            addresses,
            database_url=self._database_url,
            settings=self._settings,
            service_settings=self._service_settings,
        )
        self._plan.prepare()
        try:
            await self._load()
            for service in SERVICES:
                self._launch(self._new_process(service, service, addresses[service]))
            for number in range(2, self._states + 1):
                self._launch(self._new_process(f"state-{number}", "state", free_addresses(1)[0]))
            for _ in range(1, self._executors):
                self._launch(self._new_executor())
            await self._wait(*self._processes)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drains all services and removes what the suite kept, unless the folder was given."""
        for names in (self.executors, ["trace", "auth"], self.states):
            for name in names:
                self._signal(name, signal.SIGTERM)
            await asyncio.gather(*(self._ended(name, DRAIN_SECONDS) for name in names))
        self._cleanup.close()

    # ---------------------------------------------------------------------------------------------------- services

    @property
    def plan(self) -> Plan:
        """What was started."""
        if self._plan is None:
            raise SuiteError("the suite is not started")
        return self._plan

    @property
    def executors(self) -> list[str]:
        """Names of the executors: `executor`, `executor-2`, …"""
        return [name for name, process in self._processes.items() if process.service == "executor"]

    @property
    def states(self) -> list[str]:
        """Names of the processes of state: `state`, `state-2`, …"""
        return [name for name, process in self._processes.items() if process.service == "state"]

    def address(self, name: str = "executor") -> str:
        """Returns where a service listens."""
        return self._processes[name].address

    def process_id(self, name: str = "executor") -> int:
        """Returns the process id of a service that runs."""
        process = self._processes[name].process
        if process is None:
            raise SuiteError(f"{name} is not started")
        return process.pid

    def is_running(self, name: str) -> bool:
        """Tells whether a service's process is there."""
        return self._processes[name].is_running

    def log(self, name: str) -> str:
        """Returns what a service has logged."""
        return self._processes[name].log.read_text(errors="replace")

    def log_tail(self, name: str) -> str:
        """Returns the last lines that a service has logged."""
        return self._processes[name].tail()

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the log lines of a service as fields."""
        for line in self.log(name).splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry

    async def start_executor(self, *, settings: Mapping[str, str] | None = None) -> str:
        """Starts one more executor and returns its name when it serves.

        Args:
            settings: Further settings of this one.
        """
        process = self._new_executor(settings)
        self._launch(process)
        await self._wait(process.name)
        return process.name

    async def kill(self, name: str = "executor") -> None:
        """Kills a service as a crash would (SIGKILL), and returns when it is gone."""
        self._signal(name, signal.SIGKILL)
        await self._ended(name, DRAIN_SECONDS)

    async def terminate(self, name: str = "executor") -> int:
        """Drains a service (SIGTERM), and returns its exit code when it is gone."""
        self._signal(name, signal.SIGTERM)
        return await self._ended(name, DRAIN_SECONDS)

    def pause(self, name: str = "executor") -> None:
        """Stops a service in the middle of whatever it does (SIGSTOP)."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str = "executor") -> None:
        """Lets a paused service go on (SIGCONT)."""
        self._signal(name, signal.SIGCONT)

    async def restart(self, name: str, *, settings: Mapping[str, str] | None = None) -> None:
        """Starts a service again at the same address, after ending it if it still runs.

        Args:
            name: The service.
            settings: Further settings from now on.
        """
        if self._processes[name].is_running:
            await self.terminate(name)
        self.launch(name, settings=settings)
        await self._wait(name)

    def launch(self, name: str, *, settings: Mapping[str, str] | None = None) -> None:
        """Starts a service that has ended at the same address, without waiting until it serves.

        Args:
            name: The service.
            settings: Further settings from now on.
        """
        process = self._processes[name]
        if settings:
            process.environment = {**process.environment, **settings}
        self._launch(process)

    async def wait_for_exit(self, name: str, *, timeout: float = 30.0) -> int:
        """Waits until a service has ended by itself, and returns its exit code.

        Raises:
            TimeoutError: It still runs.
        """
        process = self._processes[name].process
        assert process is not None
        try:
            return await asyncio.to_thread(process.wait, timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} still runs after {timeout:.0f} s") from None

    # ----------------------------------------------------------------------------------------------------- clients

    @property
    def api_key(self) -> str:
        """A key of the workspace `default` that may do everything in it."""
        return self.plan.key_file.read_text().strip()

    def client(self, *, executor: str = "executor", api_key: str | None = None, timeout: float = 15.0) -> Client:
        """Returns a client of the suite; close it, or use it as an async context manager.

        Args:
            executor: Which executor it talks to.
            api_key: Another key than the suite's own.
            timeout: Deadline of its calls, in seconds.
        """
        return Client(
            self.address(executor),
            api_key or self.api_key,
            auth_address=self.address("auth"),
            trace_address=self.address("trace"),
            timeout=timeout,
        )

    def worker(self, tools: Sequence[Any], *, slots: int = 8, executor: str = "executor") -> Worker:
        """Returns a worker that serves tools to the suite's agents; run it with `await worker.run()`."""
        return Worker(tools, slots=slots, address=self.address(executor), api_key=self.api_key)

    def environment(self, executor: str = "executor") -> dict[str, str]:
        """Returns the variables with which `holdfast` and other programs find the suite."""
        return {
            "HOLDFAST_ADDRESS": self.address(executor),
            "HOLDFAST_AUTH_ADDRESS": self.address("auth"),
            "HOLDFAST_TRACE_ADDRESS": self.address("trace"),
            "HOLDFAST_API_KEY": self.api_key,
        }

    # --------------------------------------------------------------------------------------------------- processes

    def _new_process(
        self, name: str, service: str, address: str, settings: Mapping[str, str] | None = None
    ) -> _Process:
        environment = self.plan.environment(service, listen=address, extra=settings)
        process = _Process(name, service, address, environment, self.data / f"{name}.log")
        self._processes[name] = process
        return process

    def _new_executor(self, settings: Mapping[str, str] | None = None) -> _Process:
        name = f"executor-{len(self.executors) + 1}"
        return self._new_process(name, "executor", free_addresses(1)[0], settings)

    async def _load(self) -> None:
        """Has the code of all services loaded, side by side: suites after the first one find it there."""
        if not self._warm:
            return
        loading = [warm_service(service, self.plan.environment(service)) for service in SERVICES]
        # What cannot be loaded is started by its command, and its log says why.
        await asyncio.gather(*(asyncio.to_thread(warm.load) for warm in loading if warm), return_exceptions=True)

    def _launch(self, process: _Process) -> None:
        process.forget()
        with open(process.log, "ab") as log:
            process.process = start_service(process.service, process.environment, log, warm=self._warm)

    async def _wait(self, *names: str) -> None:
        async def one(name: str) -> None:
            process = self._processes[name]
            serving = asyncio.ensure_future(wait_until_serving(process.address))
            try:
                while process.is_running and not serving.done():
                    await asyncio.wait((serving,), timeout=0.1)
                if not serving.done():
                    assert process.process is not None
                    raise SuiteError(f"{name} ended with {process.process.poll()}\n{process.tail()}")
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

        try:
            async with asyncio.timeout(START_SECONDS), asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(one(name))
        except TimeoutError:
            tails = "\n".join(f"--- {name}\n{self._processes[name].tail()}" for name in names)
            raise SuiteError(f"not ready after {START_SECONDS:.0f} s\n{tails}") from None
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is not None and process.is_running:
            assert process.process is not None
            process.process.send_signal(number)

    async def _ended(self, name: str, seconds: float) -> int:
        process = self._processes.get(name)
        if process is None or process.process is None:
            return 0
        try:
            code = await asyncio.to_thread(process.process.wait, seconds)
        except subprocess.TimeoutExpired:
            process.process.kill()
            code = await asyncio.to_thread(process.process.wait)
        process.forget()
        return code


# ------------------------------------------------------------------------------------------------------ scripted models


def call(tool: str, /, **arguments: Any) -> agent_pb2.ScriptCall:
    """Returns a tool call of a scripted model."""
    made = agent_pb2.ScriptCall(tool=tool)
    made.arguments.update(arguments)
    return made


def turn(text: str = "", *calls: agent_pb2.ScriptCall, delay: float = 0.0) -> agent_pb2.ScriptTurn:
    """Returns one answer of a scripted model.

    Args:
        text: What it says; `{{input}}` and `{{result}}` are replaced.
        calls: What it calls.
        delay: Seconds before its first word.
    """
    made = agent_pb2.ScriptTurn(text=text, tool_calls=calls)
    if delay:
        made.delay.CopyFrom(to_duration(delay))
    return made


def scripted(*turns: str | agent_pb2.ScriptTurn | agent_pb2.ScriptCall, loop: bool = False) -> agent_pb2.ModelSpec:
    """Returns a model that plays these turns: a text, one tool call, or a `turn`.

    Args:
        turns: The turns in order.
        loop: Begin again after the last one.
    """
    script = agent_pb2.Script(loop=loop)
    for given in turns:
        if isinstance(given, str):
            script.turns.append(turn(given))
        elif isinstance(given, agent_pb2.ScriptCall):
            script.turns.append(turn("", given))
        else:
            script.turns.append(given)
    return agent_pb2.ModelSpec(provider="scripted", script=script)
