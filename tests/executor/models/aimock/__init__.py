"""Installs and runs `@copilotkit/aimock`, a mock of the providers' HTTP APIs, at the version of the lock file here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes import node_packages
from tests.fakes.node_packages import NodeUnavailable as AimockUnavailable

__all__ = ["FOLDER", "KEY", "AimockUnavailable", "install", "running"]

FOLDER = Path(__file__).parent
KEY = "sk-aimock-0123456789abcdef"
"""The one key that the server accepts."""


def install() -> Path:
    """Returns the folder with the installed package."""
    return node_packages.install(FOLDER, "aimock")


@contextmanager
def running() -> Iterator[str]:
    """Runs the server on a free port of loopback and yields its address."""
    package = install() / "node_modules" / "@copilotkit" / "aimock"
    node, _ = node_packages.node()
    process = subprocess.Popen(
        [node, package / "dist" / "cli.js", "--port", "0", "--fixtures", FOLDER / "fixtures.json", "--strict"],
        env={**node_packages.ENVIRONMENT, "AIMOCK_API_KEYS": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _address(process)
    finally:
        process.terminate()
        # Also empties the pipe, which a chatty server could otherwise fill.
        process.communicate(timeout=30)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if match := re.search(r"listening on (http://\S+)", line):
            return match[1].replace("localhost", "127.0.0.1")
    raise AssertionError("aimock did not start: " + "".join(said))
