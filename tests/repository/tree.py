"""The checkout as the tests of this folder see it: where its Python is, and what each file imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SERVICES = ("executor", "state", "auth", "trace")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `module` is the whole dotted path, so that `from a import b` counts as `a.b`."""

    module: str
    line: int
    level: int
    is_at_module_level: bool
    is_for_typing: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file of the checkout."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the repository root, with forward slashes."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return _parse(self.path)

    def imports(self) -> Iterator[Import]:
        """Yields every import, wherever it stands."""
        yield from _imports(self.tree, at_module_level=True, for_typing=False)

    def __str__(self) -> str:
        return self.name


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(node: ast.AST, *, at_module_level: bool, for_typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, 0, at_module_level, for_typing)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                module = f"{child.module or ''}.{alias.name}".strip(".")
                yield Import(module, child.lineno, child.level, at_module_level, for_typing)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(
                child,
                at_module_level=at_module_level and not is_function,
                for_typing=for_typing or is_guard,
            )


def python_sources(*folders: str) -> list[Source]:
    """Returns the written (not generated) Python files below the given folders, in a stable order."""
    return [
        Source(path)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not {"__pycache__", "node_modules"} & set(path.parts) and not is_generated(path)
    ]


def is_generated(path: Path) -> bool:
    """Whether the file belongs to the generated stubs."""
    return path.is_relative_to(ROOT / "holdfast" / "api")


def is_in(module: str, package: str) -> bool:
    """Whether a dotted path is the package itself or something in it."""
    return module == package or module.startswith(f"{package}.")
