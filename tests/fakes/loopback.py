"""The switch that keeps tests on this machine: inside it, a connection or look-up of another host is an error."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_state = {"is_installed": False, "depth": 0}


class LeftLoopback(BaseException):
    """A test tried to reach another machine. Not an Exception, so that no error handling under test can hide it."""


@contextmanager
def loopback_only() -> Iterator[None]:
    """Forbids this process every address but loopback and local sockets while the block runs."""
    if not _state["is_installed"]:
        # An audit hook stays for the life of the process; outside the block it lets everything pass.
        sys.addaudithook(_check)
        _state["is_installed"] = True
    _state["depth"] += 1
    try:
        yield
    finally:
        _state["depth"] -= 1


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if not _state["depth"]:
        return
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if not _is_loopback(host):
        raise LeftLoopback(f"a test tried to reach {host!r}")


def _is_loopback(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(name).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
