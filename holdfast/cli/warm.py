"""Services that start warm: as forks of a process that has their code loaded, which saves most of the start's time.

A forked service is a process of its own like one that its command started: same code, environment and files, and dead
when the process that asked for it is. Only Linux has what this takes; elsewhere nothing starts warm.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from signal import SIGKILL, Signals
from typing import IO, BinaryIO, Final, Protocol

from holdfast.cli.launch import command, suite_root

_ANSWER_BYTES: Final = 64
_FORKER: Final = Path(__file__).with_name("forker.py")


class ServiceProcess(Protocol):
    """What one does with a service's process; `subprocess.Popen` has it too."""

    pid: int

    @property
    def stdin(self) -> IO[bytes] | None:
        """Closed by whoever forgets the process."""

    @property
    def returncode(self) -> int | None:
        """Its exit code once it was seen to have ended; negative is the signal that killed it."""

    def poll(self) -> int | None:
        """Looks whether it has ended, and returns its exit code then."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """

    def send_signal(self, sig: int) -> None:
        """Sends a signal, unless it was seen to have ended."""

    def kill(self) -> None:
        """Kills it."""


class WarmService:
    """One service, loaded and ready to be forked. Ends with the last reference to it, and with this process.

    Args:
        service: Its name.
        environment: Variables of the interpreter; each start brings all of its own.
    """

    def __init__(self, service: str, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", str(_FORKER)),
                    *(str(suite_root()), f"services.{service}", str(os.getpid()), str(theirs.fileno())),
                ],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # What is wrong with the code is said by the service itself, when it is started the other way.
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        weakref.finalize(self, _end, process, self._control, os.getpid())

    def load(self) -> None:
        """Returns when the service's code is loaded.

        Raises:
            OSError: It cannot be.
        """
        self._ask({"ready": True})

    def start(self, environment: Mapping[str, str], log: BinaryIO) -> WarmProcess:
        """Starts the service and returns once it is a process, which waits for its code if that is not loaded yet.

        Args:
            environment: All of its variables.
            log: Where its output goes.

        Raises:
            OSError: It cannot be started this way.
        """
        request = {"environment": dict(environment), "folder": os.getcwd()}
        reading, writing = os.pipe()
        try:
            process_id = self._ask(request, (reading, log.fileno()))
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return WarmProcess(self, process_id, os.fdopen(writing, "wb"))

    def reap(self, process_id: int) -> int:
        """Returns the exit code of a service that has ended, which is forgotten with that."""
        try:
            return self._ask({"reap": process_id})
        except OSError:
            # It went with the process that it was forked from.
            return -SIGKILL

    def _ask(self, request: object, files: tuple[int, ...] = ()) -> int:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], files)
            answer = self._control.recv(_ANSWER_BYTES)
        if not answer:
            raise ConnectionResetError("the process to be forked has ended")
        return int(answer)


def _end(process: subprocess.Popen[bytes], control: socket.socket, owner: int) -> None:
    control.close()
    if os.getpid() == owner:
        # A copy of this process, which ends before it, has no say in that.
        process.kill()
        process.wait()


class WarmProcess:
    """A service that was forked; used as a `subprocess.Popen` is.

    Attributes:
        pid: Its process id, nobody else's as long as `returncode` is None.
        stdin: The writing end of its standard input.
        returncode: Its exit code once it was seen to have ended; negative is the signal that killed it.
    """

    def __init__(self, service: WarmService, process_id: int, stdin: BinaryIO) -> None:
        self.pid = process_id
        self.stdin: IO[bytes] | None = stdin
        self.returncode: int | None = None
        self._service = service
        self._lock = threading.Lock()
        self._ended = os.pidfd_open(process_id)
        weakref.finalize(self, os.close, self._ended)

    def poll(self) -> int | None:
        """Looks whether it has ended, and returns its exit code then."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        code = self._look(None if timeout is None else round(timeout * 1_000))
        if code is None:
            raise subprocess.TimeoutExpired([f"process {self.pid}"], timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Sends a signal, unless it was seen to have ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, sig)

    def kill(self) -> None:
        """Kills it."""
        self.send_signal(Signals.SIGKILL)

    def _look(self, milliseconds: int | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._ended, select.POLLIN)
            if not waiting.poll(milliseconds):
                return None
            with self._lock:
                # Another thread may have come first.
                if self.returncode is None:
                    self.returncode = self._service.reap(self.pid)
        return self.returncode


class _Loaded(threading.local):
    """The services that are loaded, by name and by the interpreter's variables.

    Of each thread its own: the kernel ends a process together with the thread that started it.
    """

    def __init__(self) -> None:
        self.services: dict[tuple[str, frozenset[tuple[str, str]]], WarmService] = {}


_loaded: Final = _Loaded()


def warm_service(service: str, environment: Mapping[str, str]) -> WarmService | None:
    """Returns a service that can be forked, for all starts of this thread; None where there is no such thing.

    Args:
        service: Its name.
        environment: All variables of the start that it is wanted for.
    """
    if not _can_start_warm():
        return None
    variables = {name: value for name, value in environment.items() if not name.startswith("HOLDFAST_")}
    key = service, frozenset(variables.items())
    if key not in _loaded.services:
        _loaded.services[key] = WarmService(service, variables)
    return _loaded.services[key]


def start_service(service: str, environment: Mapping[str, str], log: BinaryIO, *, warm: bool = True) -> ServiceProcess:
    """Starts a service in a session of its own: warm if it may and can, by its command otherwise.

    Args:
        service: Its name.
        environment: All of its variables.
        log: Where its output goes.
        warm: Whether it may.
    """
    loaded = warm_service(service, environment) if warm else None
    if loaded is not None:
        with suppress(OSError):
            return loaded.start(environment, log)
    return subprocess.Popen(
        command(service),
        env=dict(environment),
        # Where the kernel has no other way, the end of this pipe tells the service that its starter is gone.
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@cache
def _can_start_warm() -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        # An older kernel, or a sandbox.
        return False
    return True
