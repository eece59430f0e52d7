"""Addresses of providers with places for variables: a value fills its place and cannot lead elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from services.shared.egress.urls import Destination, parse_destination

_PLACE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# What stands for a value while a template is checked: it may be a label, a part of a path, or a whole origin.
_EXAMPLE_LABEL: Final = "example"
_EXAMPLE_URL: Final = "https://example.com"


class VariableMissing(ValueError):
    """A template needs a variable that has no value."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the variable {name} has no value")
        self.name = name


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """An address such as `https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token`.

    A place at the very beginning holds an address of its own, as `{instance_url}/services/data`; any other place holds
    a piece of a host name or of a path.
    """

    text: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the parsed template.

        Raises:
            ValueError: It is no address of a template; the text says what was expected.
        """
        names = tuple(dict.fromkeys(_PLACE.findall(text)))
        if "{" in _PLACE.sub("", text) or "}" in _PLACE.sub("", text):
            raise ValueError("expected places such as {tenant}")
        example = _PLACE.sub(_EXAMPLE_LABEL, _PLACE.sub(_EXAMPLE_URL, text, count=1) if text.startswith("{") else text)
        if not example.startswith("https://"):
            raise ValueError("expected an address that starts with https://")
        parse_destination(example)
        return cls(text, names)

    @classmethod
    def literal(cls, url: str) -> Self:
        """Returns an address without places, as a server says it about itself.

        Raises:
            ValueError: It is no address, or has what looks like a place.
        """
        if "{" in url or "}" in url:
            raise ValueError("expected an address without places")
        parse_destination(url)
        return cls(url, ())

    @property
    def leading_name(self) -> str | None:
        """The variable that holds the beginning of the address, scheme and host."""
        found = _PLACE.match(self.text)
        return found[1] if found else None

    def expand(self, values: Mapping[str, str]) -> Destination:
        """Returns the address.

        Raises:
            VariableMissing: A variable has no value.
            ValueError: The values make no address.
        """

        def value_of(place: re.Match[str]) -> str:
            name = place[1]
            value = values.get(name, "")
            if not value:
                raise VariableMissing(name)
            if place.start() == 0:
                # A slash at the end belongs to an endpoint that is whole, and is one too many before a path.
                return value if place.end() == len(self.text) else value.rstrip("/")
            # Invariant: a value stays in its place, so the template decides the host.
            if re.search(r"[^A-Za-z0-9._~-]", value):
                raise ValueError(f"the variable {name} is no piece of an address")
            return value

        return parse_destination(_PLACE.sub(value_of, self.text))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Returns a text with its places filled.

    Raises:
        VariableMissing: A variable has no value.
    """

    def value_of(place: re.Match[str]) -> str:
        if place[1] not in values:
            raise VariableMissing(place[1])
        return values[place[1]]

    return _PLACE.sub(value_of, text)


def places(text: str) -> tuple[str, ...]:
    """Returns the names of a text's places."""
    return tuple(dict.fromkeys(_PLACE.findall(text)))
