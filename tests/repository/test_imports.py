"""The walls between the parts: who may import whom, and which libraries have one place only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions

import pytest

from tests.repository.tree import ROOT, SERVICES, Import, Source, is_in, python_sources

# Import names of the base install's distributions, where they differ from the distribution's name.
IMPORT_NAMES = {"grpcio": "grpc", "protobuf": "google", "googleapis-common-protos": "google", "pyyaml": "yaml"}

# Each may appear in these files (or below these folders) and nowhere else in `holdfast` and `services`.
# ruff's banned-api says the same while one types; it cannot tell one banned name from another in an exempted file.
ONLY_IN = {
    "tenacity": ("services/executor/retries.py", "services/shared/channels.py"),
    "hvac": ("services/auth/vault/",),
    "os.environ": ("services/shared/settings.py", "holdfast/cli/", "holdfast/settings.py"),
    "os.getenv": ("services/shared/settings.py", "holdfast/cli/", "holdfast/settings.py"),
    "time.time": ("services/shared/clock.py", "holdfast/ids.py", "holdfast/cli/"),
    "time.time_ns": ("services/shared/clock.py", "holdfast/ids.py", "holdfast/cli/"),
}


def test_walk_finds_the_sources_of_every_part() -> None:
    # The other tests here would pass on an empty list.
    names = [source.name for source in python_sources("holdfast", "services", "tests")]
    for part in ("holdfast/", "services/shared/", "tests/", *(f"services/{service}/" for service in SERVICES)):
        assert any(name.startswith(part) for name in names), f"no Python under {part}"


@pytest.mark.parametrize("service", SERVICES)
def test_service_imports_no_other_service(service: str) -> None:
    allowed = (f"services.{service}", "services.shared")
    violations = _violations(
        python_sources(f"services/{service}"),
        lambda found: is_in(found.module, "services") and not any(is_in(found.module, package) for package in allowed),
    )
    assert violations == [], "services meet over gRPC only"


def test_shared_code_imports_no_service() -> None:
    violations = _violations(
        python_sources("services/shared"),
        lambda found: is_in(found.module, "services") and not is_in(found.module, "services.shared"),
    )
    assert violations == [], "what is shared knows nothing of who shares it"


def test_services_import_nothing_that_their_extra_does_not_install() -> None:
    """A machine on which a library was installed by hand would hide that it is not declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")
        for requirement in (*project["dependencies"], *extras["server"], *extras["keychain"])
    }
    provided_by = packages_distributions()

    def is_undeclared(found: Import) -> bool:
        top = found.module.partition(".")[0]
        if found.level or top in sys.stdlib_module_names or top in ("services", "holdfast"):
            return False
        distributions = {name.lower().replace("_", "-") for name in provided_by.get(top, ())}
        return not distributions & declared

    violations = _violations(python_sources("services", "holdfast"), is_undeclared)
    assert violations == [], "declare it in pyproject.toml"


def test_every_folder_of_services_is_a_known_service() -> None:
    folders = {path.name for path in (ROOT / "services").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {"shared", *SERVICES}, "a new service must be added to the rules in this file"


def test_the_library_imports_no_service() -> None:
    violations = _violations(python_sources("holdfast"), lambda found: is_in(found.module, "services"))
    assert violations == [], "users install holdfast to call services, not to run inside them"


def test_nothing_that_runs_imports_tests_or_scripts() -> None:
    violations = _violations(
        python_sources("holdfast", "services"),
        lambda found: found.module.split(".")[0] in {"tests", "scripts", "benchmarks", "examples"},
    )
    assert violations == [], "the wheel does not contain these"


def test_imports_are_absolute() -> None:
    violations = _violations(
        python_sources("holdfast", "services", "tests", "examples", "benchmarks", "scripts"),
        lambda found: found.level > 0,
    )
    assert violations == [], "import path = file path"


def test_every_package_of_the_wheel_has_an_init() -> None:
    # Migrations are scripts that Alembic loads by path, not a package.
    folders = {
        source.path.parent for source in python_sources("holdfast", "services") if "migrations" not in source.path.parts
    }
    parents = {
        parent for folder in folders for parent in folder.parents if parent.is_relative_to(ROOT) and parent != ROOT
    }
    missing = [str(folder.relative_to(ROOT)) for folder in folders | parents if not (folder / "__init__.py").is_file()]
    assert sorted(missing) == [], "there are no namespace packages here"


@pytest.mark.parametrize("name", ONLY_IN)
def test_restricted_name_appears_only_in_its_place(name: str) -> None:
    violations = [
        f"{source}:{line}"
        for source in python_sources("holdfast", "services")
        if not source.name.startswith(ONLY_IN[name])
        for line in _uses(source, name)
    ]
    assert violations == [], f"{name} belongs to {', '.join(ONLY_IN[name])}"


def test_the_library_needs_only_the_base_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = [requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]]
    available = {IMPORT_NAMES.get(distribution, distribution) for distribution in distributions}
    available |= {*sys.stdlib_module_names, "holdfast"}
    violations = _violations(
        python_sources("holdfast"),
        # What needs the server extra is imported where it is used, and says so when it is missing.
        lambda found: (
            found.is_at_module_level and not found.is_for_typing and found.module.split(".")[0] not in available
        ),
    )
    assert violations == [], "`pip install holdfast` without extras must import"


def test_importing_the_library_loads_neither_the_cli_nor_the_server() -> None:
    heavy = ("typer", "rich", "sqlalchemy", "opentelemetry", "openai", "anthropic", "services")
    program = f"import sys, holdfast; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == []


def _violations(sources: list[Source], is_forbidden: Callable[[Import], bool]) -> list[str]:
    return [
        f"{source}:{found.line} {found.module}"
        for source in sources
        for found in source.imports()
        if is_forbidden(found)
    ]


def _uses(source: Source, name: str) -> Iterator[int]:
    """Yields the lines that import the name or reach it as an attribute of its module."""
    for found in source.imports():
        if is_in(found.module, name):
            yield found.line
    module, _, attribute = name.rpartition(".")
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == attribute
            and isinstance(node.value, ast.Name)
            and node.value.id == module
        ):
            yield node.lineno
