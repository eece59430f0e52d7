"""Addresses of `http` tools: arguments fill the path and the query, and can never change where a call goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlsplit

from services.executor.tools.schema import ArgumentsRefused, canonical_json

MAX_URL_CHARACTERS: Final = 8_192

_TEMPLATE: Final = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?", re.I
)
_HOST: Final = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.I)
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]*")
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
# What may stand in a template's own text as it is; the rest is percent-encoded.
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~"
_QUERY_SAFE: Final = _PATH_SAFE + "?"


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """A parsed address.

    Attributes:
        origin: Scheme, host and port, in lower case.
        host: The host alone, without brackets.
        path: Text of the path with `{name}` places.
        query: Text of the query with `{name}` places, without its `?`.
        names: The names of the places.
    """

    origin: str
    host: str
    path: str
    query: str
    names: frozenset[str]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Returns the parsed template.

        Raises:
            ValueError: It cannot be used; the text says what was expected.
        """
        if len(url) > MAX_URL_CHARACTERS:
            raise ValueError(f"expected at most {MAX_URL_CHARACTERS} characters")
        if re.search(r"[\s\\\x00-\x1f\x7f]", url):
            raise ValueError("expected no spaces, backslashes or control characters")
        if "#" in url:
            raise ValueError("expected no fragment (#…): it is never sent")
        found = _TEMPLATE.fullmatch(url)
        if found is None:
            raise ValueError("expected an address that starts with http:// or https://")
        origin, host = _origin(found["scheme"].lower(), found["authority"].lower())
        path, query = found["path"] or "/", found["query"] or ""
        names = _names(path) | _names(query)
        if _has_dot_segment(_PLACE.sub("x", path)):
            raise ValueError("expected no `.` or `..` in the path")
        return cls(origin, host, path, query, frozenset(names))

    def expand(self, arguments: Mapping[str, Any]) -> str:
        """Returns the address of one call.

        Args:
            arguments: The call's arguments; each name of the template has to be among them.

        Raises:
            ArgumentsRefused: One is missing, is no plain value, or would lead to another path than the template's.
        """
        path = _filled(self.path, arguments, _PATH_SAFE)
        query = _filled(self.query, arguments, _QUERY_SAFE)
        # A server, or a proxy before it, may decode more than once and resolve dots: what means "up" is never sent.
        if _has_dot_segment(path):
            raise ArgumentsRefused("A value in the address's path may not be `.` or `..`. Nothing was called.")
        url = f"{self.origin}{path}"
        if query:
            url += f"?{query}"
        if len(url) > MAX_URL_CHARACTERS:
            raise ArgumentsRefused(f"The address would have more than {MAX_URL_CHARACTERS} characters.")
        # Invariant: whatever the arguments are, the call goes to the template's own host.
        parts = urlsplit(url)
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            raise ArgumentsRefused("The arguments would lead to another host. Nothing was called.")
        return url


def query_value(value: Any) -> str:
    """Returns a value as it stands in a query before its encoding."""
    if isinstance(value, str):
        return value
    return canonical_json(value)


def _origin(scheme: str, authority: str) -> tuple[str, str]:
    if "@" in authority:
        raise ValueError("expected no user name or password in the address")
    if "{" in authority or "}" in authority:
        raise ValueError("expected {name} in the path or the query only: the host is fixed")
    host, separator, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    if not separator:
        host = authority
    if not host or _HOST.fullmatch(host) is None:
        raise ValueError("expected a host name in ASCII (xn--… for others), or an IP address")
    if separator and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("expected a port from 1 to 65535")
    return f"{scheme}://{authority}", host.strip("[]").rstrip(".")


def _names(text: str) -> set[str]:
    names = set(_PLACE.findall(text))
    if "{" in _PLACE.sub("", text) or "}" in _PLACE.sub("", text):
        raise ValueError("expected each { to be closed by a }")
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"expected a name in {{{name}}}: letters, digits, _ and -")
    return names


def _filled(text: str, arguments: Mapping[str, Any], safe: str) -> str:
    pieces: list[str] = []
    end = 0
    for place in _PLACE.finditer(text):
        pieces.append(quote(text[end : place.start()], safe=safe))
        pieces.append(quote(_scalar(place[1], arguments), safe=""))
        end = place.end()
    pieces.append(quote(text[end:], safe=safe))
    return "".join(pieces)


def _scalar(name: str, arguments: Mapping[str, Any]) -> str:
    value = arguments.get(name)
    if value is None:
        raise ArgumentsRefused(f"$.{name}: it is part of the tool's address and is required. Nothing was called.")
    if isinstance(value, dict | list):
        raise ArgumentsRefused(f"$.{name}: it is part of the tool's address: expected a text or a number.")
    text = query_value(value)
    if not text:
        # An empty value would address the whole collection instead of one thing in it.
        raise ArgumentsRefused(f"$.{name}: it is part of the tool's address and may not be empty. Nothing was called.")
    return text


def _has_dot_segment(path: str) -> bool:
    for _ in range(3):
        if any(segment in (".", "..") for segment in re.split(r"[/\\]", path)):
            return True
        path = unquote(path)
    return any(segment in (".", "..") for segment in re.split(r"[/\\]", path))
