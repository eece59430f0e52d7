"""The documents say what the code does: settings, reasons, commands and links are all there."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from holdfast.errors import Reason
from services.shared.settings import Setting, declared_settings
from tests.repository.tree import ROOT, SERVICES, python_sources

DOCUMENTS = sorted(
    path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "services").rglob("*.md"))
)

SETTING_NAME = re.compile(r"HOLDFAST_[A-Z0-9]+(?:_[A-Z0-9]+)*")

# Kinds of change of https://keepachangelog.com/en/1.1.0/.
CHANGELOG_KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_of_a_service_is_documented(service: str) -> None:
    settings = _settings_of(service)
    assert settings, f"no setting found in services/{service}/settings.py"
    assert sorted({declared.name for declared in settings} - _documented_settings()) == [], "not in docs/operations.md"


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_of_a_service_says_what_it_does(service: str) -> None:
    assert [declared.name for declared in _settings_of(service) if not declared.doc] == []


def test_every_setting_of_the_client_is_documented() -> None:
    assert sorted(_client_settings() - _documented_settings()) == [], "not in docs/operations.md"


def test_every_documented_setting_is_read_somewhere() -> None:
    known = _client_settings()
    for service in SERVICES:
        for declared in _settings_of(service):
            known.add(declared.name)
            if declared.secret:
                known.add(f"{declared.name}_FILE")
    assert sorted(_documented_settings() - known) == [], "in docs/operations.md, but nothing reads it"


def test_every_error_reason_is_documented() -> None:
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs" / "errors.md").read_text()))
    assert sorted({reason.value for reason in Reason} - documented) == [], "missing from docs/errors.md"


def test_changelog_keeps_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    for line in releases[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line), line
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= CHANGELOG_KINDS, kinds - CHANGELOG_KINDS


def test_changelog_names_the_version_unless_it_is_unreleased() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased = text.partition("## [Unreleased]")[2].partition("\n## ")[0].strip()
    assert f"## [{version}]" in text or unreleased, f"nothing says what {version} brings"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _without_code(document)):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for commands in re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", document.read_text(), re.MULTILINE):
        assert set(commands.split()) <= targets, commands


def test_make_alone_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony.split()) == described


def _settings_of(service: str) -> list[Setting]:
    module = importlib.import_module(f"services.{service}.settings")
    classes = [value for value in vars(module).values() if isinstance(value, type) and is_dataclass(value)]
    return [declared for cls in classes if cls.__module__ == module.__name__ for declared, _ in declared_settings(cls)]


def _client_settings() -> set[str]:
    # Whole string literals only: a name in a sentence or a docstring is an example.
    return {
        node.value
        for source in python_sources("holdfast")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SETTING_NAME.fullmatch(node.value)
    }


def _documented_settings() -> set[str]:
    names = re.findall(r"\bHOLDFAST_[A-Z0-9_]+\b", (ROOT / "docs" / "operations.md").read_text())
    # Names with this prefix choose what tests run against; see tests/conftest.py.
    return {name for name in names if not name.startswith("HOLDFAST_TEST_")}


def _without_code(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
