"""Services as processes of their own, started warm: tests that start many of them wait for none of their imports."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from holdfast.cli.warm import ServiceProcess, start_service


class Process:
    """A running service, used as an `asyncio.subprocess.Process` is; what it logs comes from `stderr`."""

    def __init__(self, process: ServiceProcess, stderr: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self.stderr = stderr
        self.pid = process.pid
        self._process = process
        self._transport = transport

    @property
    def returncode(self) -> int | None:
        """Its exit code when it has ended."""
        return self._process.poll()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Tells it to end."""
        self.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Returns its exit code when it has ended."""
        code = await asyncio.to_thread(self._process.wait)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    async def communicate(self) -> None:
        """Reads what it still says, and returns when it has ended."""
        await self.stderr.read()
        await self.wait()
        self._transport.close()


async def start(service: str, environment: Mapping[str, str]) -> Process:
    """Starts a service.

    Args:
        service: Its name.
        environment: All of its variables.
    """
    # Which test runs is nothing to the service, and a change of the interpreter's variables loads it anew.
    given = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as log:
        process = start_service(service, given, log)
    stderr = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(reading, "rb"))
    return Process(process, stderr, transport)
