"""The four services as processes below one: started together, restarted when one dies, drained in order."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from holdfast.cli.launch import SERVICES, Plan, command, wait_until_serving

DRAIN_SECONDS: Final = 10.0
START_SECONDS: Final = 60.0

_QUICK_DEATH_SECONDS: Final = 10.0
_MAX_QUICK_DEATHS: Final = 5
_FIRST_BACKOFF_SECONDS: Final = 0.2
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_TAIL_LINES: Final = 15
_MAX_LINE_BYTES: Final = 256 * 1024
# sysexits.h: the service itself says that a later start may succeed.
_EXIT_TEMPORARY: Final = 75

# The executor first: it gives its runs back to a state service that is still there.
_DRAIN_ORDER: Final = (("executor",), ("trace", "auth"), ("state",))

LogSink = Callable[[str, "dict[str, Any] | str"], None]
"""Receives a service's name and a line of its log: fields, or text when it is no JSON object."""


class SuiteFailure(Exception):
    """The suite can't go on; the text says which service, why, and what it said last."""


class Supervisor:
    """Runs the services of a plan until it is told to stop.

    Args:
        plan: What to start.
        on_log: Receives the services' log lines.
        on_remark: Receives the supervisor's own remarks: a service, what happened.
    """

    def __init__(self, plan: Plan, *, on_log: LogSink, on_remark: Callable[[str, str], None]) -> None:
        self.plan = plan
        self.stop = asyncio.Event()
        """Set it to drain."""
        self._on_log = on_log
        self._on_remark = on_remark
        self._services = {name: _Service(name, self) for name in SERVICES}
        self._failure: SuiteFailure | None = None
        self.is_up = False

    @property
    def process_ids(self) -> Mapping[str, int]:
        """The services' processes that run now."""
        return {
            name: service.process.pid
            for name, service in self._services.items()
            if service.process is not None and service.process.returncode is None
        }

    async def run(self, on_up: Callable[[], Any]) -> None:
        """Starts the services, calls `on_up` once all of them serve, and returns when they are drained.

        Raises:
            SuiteFailure: A service could not start, or died again and again. All of them are stopped by then.
        """
        async with asyncio.TaskGroup() as group:
            for service in self._services.values():
                group.create_task(service.keep_running())
            try:
                if await self._wait_until_up():
                    self.is_up = True
                    on_up()
                    await self.stop.wait()
            except SuiteFailure as failure:
                self.fail(failure)
            except Exception as error:
                # What `on_up` meets must not leave four processes behind.
                self.fail(SuiteFailure(str(error)))
            finally:
                self.stop.set()
            await self._drain()
        if self._failure is not None:
            raise self._failure

    def fail(self, failure: SuiteFailure) -> None:
        """Stops everything because of one failure."""
        if self._failure is None and not self.stop.is_set():
            self._failure = failure
            self.stop.set()

    async def _wait_until_up(self) -> bool:
        healths = [asyncio.ensure_future(wait_until_serving(address)) for address in self.plan.addresses.values()]
        stopped = asyncio.ensure_future(self.stop.wait())
        up = asyncio.ensure_future(asyncio.gather(*healths))
        try:
            await asyncio.wait((up, stopped), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self.stop.is_set():
                return False
            if not up.done():
                waiting = [name for name, health in zip(self.plan.addresses, healths, strict=True) if not health.done()]
                raise SuiteFailure(
                    f"not ready after {START_SECONDS:.0f} s: {', '.join(waiting)}\n"
                    + "\n".join(line for name in waiting for line in self._services[name].tail)
                )
            await up
            return True
        finally:
            for task in (up, stopped):
                task.cancel()
            await asyncio.gather(up, stopped, return_exceptions=True)

    async def _drain(self) -> None:
        if self._failure is None:
            self._on_remark("", "draining; once more to stop at once")
        for names in _DRAIN_ORDER:
            await asyncio.gather(*(self._services[name].end() for name in names))

    def kill(self) -> None:
        """Ends every service at once."""
        for service in self._services.values():
            service.send(signal.SIGKILL)

    # ------------------------------------------------------------------------------------- for the services' tasks

    def log(self, service: str, line: dict[str, Any] | str) -> None:
        self._on_log(service, line)

    def remark(self, service: str, text: str) -> None:
        self._on_remark(service, text)


class _Service:
    """One service and the process that is it at the moment."""

    def __init__(self, name: str, supervisor: Supervisor) -> None:
        self.name = name
        self.process: asyncio.subprocess.Process | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._supervisor = supervisor
        self._quick_deaths = 0

    async def keep_running(self) -> None:
        supervisor = self._supervisor
        loop = asyncio.get_running_loop()
        while not supervisor.stop.is_set():
            began = loop.time()
            code = await self._run_once()
            if supervisor.stop.is_set():
                return
            self._quick_deaths = self._quick_deaths + 1 if loop.time() - began < _QUICK_DEATH_SECONDS else 1
            died = f"died ({_describe(code)})"
            if not supervisor.is_up and code != _EXIT_TEMPORARY:
                supervisor.fail(SuiteFailure(self._story(f"{self.name} could not start ({_describe(code)})")))
                return
            if self._quick_deaths >= _MAX_QUICK_DEATHS:
                supervisor.fail(SuiteFailure(self._story(f"{self.name} {died} {self._quick_deaths} times in a row")))
                return
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (self._quick_deaths - 1), _LONGEST_BACKOFF_SECONDS)
            supervisor.remark(self.name, f"{died}; starting it again in {delay:.1f} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await supervisor.stop.wait()

    async def _run_once(self) -> int:
        self.process = await asyncio.create_subprocess_exec(
            *command(self.name),
            env=self._supervisor.plan.environment(self.name),
            # The write end stays with this process: where the kernel has no other way, its end tells the service.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C in the terminal reaches this process only, which drains the services in order.
            start_new_session=True,
        )
        if self._supervisor.stop.is_set():
            # Told to stop while it was being born: the drain has looked for it already.
            self.send(signal.SIGKILL)
        try:
            assert self.process.stdout is not None
            await self._read_log(self.process.stdout)
            return await self.process.wait()
        finally:
            if self.process.returncode is None:
                self.process.kill()

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        pending = b""
        while chunk := await stream.read(65_536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._take_line(line)
            if len(pending) > _MAX_LINE_BYTES:
                self._take_line(pending)
                pending = b""
        if pending:
            self._take_line(pending)

    def _take_line(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip()
        if not text:
            return
        fields: Any = None
        if text.startswith("{"):
            with suppress(ValueError):
                fields = json.loads(text)
        if isinstance(fields, dict):
            self.tail.append(one_line(self.name, fields))
            self._supervisor.log(self.name, fields)
        else:
            self.tail.append(text)
            self._supervisor.log(self.name, text)

    async def end(self) -> None:
        """Asks the process to drain, and ends it when it takes too long."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await process.wait()
        except TimeoutError:
            self._supervisor.remark(self.name, f"did not drain within {DRAIN_SECONDS:.0f} s and was ended")
            self.send(signal.SIGKILL)
            await process.wait()

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def _story(self, headline: str) -> str:
        # A service that refuses to start says why in plain lines; those alone are enough then.
        said = [line.removeprefix(f"{self.name}: ") for line in self.tail]
        refusals = [line.removeprefix(f"{self.name}: ") for line in self.tail if line.startswith(f"{self.name}: ")]
        shown = refusals or said
        if len(shown) == 1:
            return f"{headline}: {shown[0]}"
        return "\n".join((headline, *(f"  {line}" for line in shown)))


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


_HIDDEN_FIELDS: Final = frozenset({"time", "level", "service", "logger", "event", "trace_id", "span_id", "exception"})


def extra_fields(fields: Mapping[str, Any]) -> str:
    """Returns the fields of a log line beyond those that every line has."""
    return " ".join(f"{name}={_shown(value)}" for name, value in fields.items() if name not in _HIDDEN_FIELDS)


def one_line(service: str, fields: Mapping[str, Any]) -> str:
    """Returns a log line as text."""
    exception = str(fields.get("exception", "")).strip().splitlines()
    parts = [str(fields.get("level", "")), str(fields.get("event", "")), extra_fields(fields), *exception[-1:]]
    return " ".join(part for part in parts if part)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c == '"' for c in text) else text


def install_signals(supervisor: Supervisor) -> Callable[[], None]:
    """Drains at the first SIGINT, SIGTERM or SIGHUP, and kills at the second. Returns what removes the handlers."""
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers.append(signal.SIGHUP)

    def on_signal() -> None:
        if supervisor.stop.is_set():
            supervisor.kill()
        supervisor.stop.set()

    for number in numbers:
        loop.add_signal_handler(number, on_signal)

    def remove() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    return remove
