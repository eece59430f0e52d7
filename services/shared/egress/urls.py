"""The one parser of addresses to which credentials go: what two parsers could read differently is refused."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

MAX_URL_CHARACTERS: Final = 8_192

_URL: Final = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?", re.I)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# Whatever a resolver takes for a number, and so for an address in one of its many spellings.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS: Final = {"http": 80, "https": 443}
_MAX_HOST_CHARACTERS: Final = 253
# A server, or a proxy before it, may decode more than once.
_DECODINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Destination:
    """An address taken apart. There is one spelling of each: `url` is what is sent, whatever was given."""

    scheme: str
    """`https` or `http`."""
    host: str
    """A name in lower case or an address, without brackets."""
    port: int
    path: str
    """Begins with `/`, has no `.` or `..` in it, however often it is decoded."""
    query: str
    """Without its `?`; empty when there is none."""

    @property
    def authority(self) -> str:
        """Host and, when it is not the scheme's own, port: the `Host` of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole address."""
        return f"{self.origin}{self.path}" + (f"?{self.query}" if self.query else "")


def parse_destination(url: str) -> Destination:
    """Returns the address taken apart.

    Raises:
        ValueError: It cannot be used; the text says what was expected and repeats nothing of it.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"expected at most {MAX_URL_CHARACTERS} characters")
    # Backslashes and letters outside ASCII are where parsers differ; a name in another script is written as xn--….
    if not url.isascii() or re.search(r"[\s\\\x00-\x20\x7f]", url):
        raise ValueError("expected ASCII without spaces, backslashes and control characters")
    if "#" in url:
        raise ValueError("expected no fragment (#…): it is never sent")
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("expected an address that starts with https:// or http://")
    scheme = found["scheme"].lower()
    host, port = _host_and_port(found["authority"].lower())
    path = found["path"] or "/"
    if has_dot_segment(path):
        raise ValueError("expected no `.` or `..` in the path")
    return Destination(scheme, host, port or _PORTS[scheme], path, found["query"] or "")


def parse_host(text: str) -> str:
    """Returns a host as this module writes it: a name of ASCII labels, or an address in its usual spelling.

    Raises:
        ValueError: It is no host, or an address in an unusual spelling (`0x7f.1`, `127.1`, `2130706433`).
    """
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1] if "%" not in text else ""))
        except ValueError:
            raise ValueError("expected an IPv6 address without a zone between the brackets") from None
    labels = text.split(".")
    if len(text) > _MAX_HOST_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("expected a host name in ASCII (xn--… for others), or an IP address")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError("expected an IPv4 address as four decimal numbers") from None
    return text


def has_dot_segment(path: str) -> bool:
    """Tells whether a part of the path means "here" or "up", now or after it is decoded."""
    for _ in range(_DECODINGS + 1):
        if any(part in (".", "..") for part in re.split(r"[/\\]", path)):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    # Encoded more often than anybody has a reason to.
    return True


def _host_and_port(authority: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise ValueError("expected no user name or password in the address")
    host, separator, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    if not separator:
        host = authority
    if ":" in host and not host.startswith("["):
        raise ValueError("expected an IPv6 address in brackets")
    # The dot of the root names the same host; written without it, rules meet it.
    parsed = parse_host(host.removesuffix("."))
    if not separator:
        return parsed, None
    if not (port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise ValueError("expected a port from 1 to 65535")
    return parsed, int(port)
