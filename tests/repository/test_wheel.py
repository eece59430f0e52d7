"""What users get when they install: one top-level name, with the services and all their files inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, SERVICES

SUITE = "holdfast/_suite/services"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    [path] = folder.glob("*.whl")
    return path


def test_the_only_top_level_name_is_holdfast(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"holdfast"}


def test_every_file_of_the_library_and_the_services_is_inside(wheel: Path) -> None:
    expected = {
        name if name.startswith("holdfast/") else f"holdfast/_suite/{name}"
        for folder in ("holdfast", "services")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (name := path.relative_to(ROOT).as_posix())
    }
    inside = {name for name in _names(wheel) if name.startswith("holdfast/")}
    assert sorted(expected - inside) == [], "missing from the wheel"
    assert sorted(inside - expected) == [], "in the wheel, but not in the checkout"


def test_services_can_start_and_migrate_from_the_wheel(wheel: Path) -> None:
    names = _names(wheel)
    for service in SERVICES:
        assert f"{SUITE}/{service}/__main__.py" in names
    for service in ("state", "auth", "trace"):
        versions = f"{SUITE}/{service}/migrations/versions/"
        assert f"{SUITE}/{service}/migrations/env.py" in names
        assert any(name.startswith(versions) and name.endswith(".py") for name in names), versions


def test_the_wheel_says_that_it_is_typed_and_has_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        assert "holdfast = holdfast.cli.__main__:main" in archive.read(entry_points).decode()
    assert "holdfast/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_services_import_from_the_installed_suite(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import importlib.util, holdfast\n"
        "print(holdfast.__file__)\n"
        "for name in ('shared', 'executor', 'state', 'auth', 'trace'):\n"
        "    print(importlib.util.find_spec(f'services.{name}').origin)\n"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        # The suite's folder goes first on the path, as `holdfast up` does it.
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "holdfast" / "_suite"), str(tmp_path)))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert all(Path(line).is_relative_to(tmp_path) for line in result.stdout.splitlines()), result.stdout


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()
