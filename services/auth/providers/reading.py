"""Takes a YAML file apart, mapping by mapping: each key once, each with what it has to be, none left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final, TypeVar

import yaml

from services.auth.providers.templates import UrlTemplate
from services.shared.egress.rules import check_host_pattern

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

PARAM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,60}")
POINTER: Final = re.compile(r"(/[^/]+)+")


# libyaml's where PyYAML was built with it: ten times as fast, and the start waits for it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(_Loader):  # type: ignore[misc]
    """Takes no key twice, of which YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class Wrong(Exception):
    """Where in the file, and what was expected there."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)


class Reader:
    """One mapping of the file; every key is taken once, and one that nobody takes is an error."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Wrong(where, "expected a mapping with texts as keys")
        self._left = dict(value)
        self.where = where

    def at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def text(self, key: str, default: str | None = None, pattern: re.Pattern[str] | None = None) -> str:
        value = self.optional_text(key, pattern)
        if value is None:
            if default is None:
                raise Wrong(self.at(key), "is required")
            return default
        return value

    def optional_text(self, key: str, pattern: re.Pattern[str] | None = None) -> str | None:
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise Wrong(self.at(key), f"expected a text, not {value!r}")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise Wrong(self.at(key), f"{value!r} does not match {pattern.pattern}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise Wrong(self.at(key), f"expected true or false, not {value!r}")
        return value

    def number(self, key: str) -> float | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
            raise Wrong(self.at(key), f"expected a positive number, not {value!r}")
        return float(value)

    def choice(self, key: str, options: type[E], default: E) -> E:
        value = self.take(key)
        if value is None:
            return default
        return self._one_of(key, options, value)

    def optional_choice(self, key: str, options: type[E]) -> E | None:
        value = self.take(key)
        return None if value is None else self._one_of(key, options, value)

    def choices(self, key: str, options: type[E], default: tuple[E, ...]) -> tuple[E, ...]:
        values = self._list(key)
        return tuple(self._one_of(key, options, value) for value in values) if values else default

    def texts(self, key: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        values = self._list(key)
        for value in values:
            if not isinstance(value, str) or not value:
                raise Wrong(self.at(key), f"expected texts, not {value!r}")
            if pattern is not None and pattern.fullmatch(value) is None:
                raise Wrong(self.at(key), f"{value!r} does not match {pattern.pattern}")
        return tuple(values)

    def pointers(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        return self.texts(key, POINTER) or default

    def mapping(self, key: str, pattern: re.Pattern[str] = PARAM) -> dict[str, str]:
        value = self.take(key)
        if value is None:
            return {}
        reader = Reader(value, self.at(key))
        for name in list(reader._left):
            if pattern.fullmatch(name) is None:
                raise Wrong(reader.at(name), f"does not match {pattern.pattern}")
        return {name: reader.text(name) for name in list(reader._left)}

    def url(self, key: str) -> UrlTemplate | None:
        text = self.optional_text(key)
        return None if text is None else self._checked(key, text, UrlTemplate.parse)

    def hosts(self, key: str) -> tuple[str, ...]:
        hosts = self.texts(key)
        for host in hosts:
            self._checked(key, host, check_host_pattern)
        return hosts

    def part(self, key: str) -> Reader | None:
        value = self.take(key)
        return None if value is None else Reader(value, self.at(key))

    def parts(self, key: str) -> list[Reader]:
        return [Reader(value, f"{self.at(key)}[{index}]") for index, value in enumerate(self._list(key))]

    def named_parts(self, key: str, pattern: re.Pattern[str] | None) -> list[tuple[str, Reader]]:
        reader = self.part(key)
        if reader is None:
            return []
        for name in reader._left:
            if pattern is not None and pattern.fullmatch(name) is None:
                raise Wrong(reader.at(name), f"does not match {pattern.pattern}")
        return [(name, Reader(reader.take(name), reader.at(name))) for name in list(reader._left)]

    def finish(self) -> None:
        if self._left:
            raise Wrong(self.at(next(iter(self._left))), "is not known")

    def keys(self) -> Iterable[str]:
        return list(self._left)

    def _checked(self, key: str, value: str, check: Callable[[str], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise Wrong(self.at(key), f"{value!r}: {error}") from None

    def _one_of(self, key: str, options: type[E], value: Any) -> E:
        # YAML reads some words as something else: `none` stays a text, `off` would not.
        try:
            return options(value)
        except ValueError:
            known = ", ".join(option.value for option in options)
            raise Wrong(self.at(key), f"expected one of {known}, not {value!r}") from None

    def _list(self, key: str) -> list[Any]:
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value:
            raise Wrong(self.at(key), "expected a list that is not empty")
        return value
