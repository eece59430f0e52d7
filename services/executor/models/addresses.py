"""Where providers answer: their own addresses, and whether an address is one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

OWN_ADDRESSES: Final[Mapping[str, str]] = {
    "anthropic": "https://api.anthropic.com",
    "openai": "https://api.openai.com/v1",
}
"""What an empty `base_url` means."""


def is_own_address(provider: str, base_url: str) -> bool:
    """Whether the provider itself answers there, and not a server that is compatible with it.

    Its regional hosts (`eu.api.openai.com`) are its own.
    """
    own = OWN_ADDRESSES.get(provider)
    if own is None:
        return False
    own_host = urlsplit(own).hostname or ""
    try:
        host = urlsplit(base_url or own).hostname or ""
    except ValueError:
        return False
    return host == own_host or host.endswith("." + own_host)


def problem_of(base_url: str) -> str:
    """Returns why nothing can be sent to an address, or an empty text. The address itself is not in it."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        return "it cannot be parsed"
    if parts.scheme not in ("http", "https"):
        return "its scheme is neither http nor https"
    if not parts.hostname:
        return "it names no host"
    if parts.username is not None or parts.password is not None:
        return "it contains a user name or password"
    if parts.query or parts.fragment:
        return "it contains a query or fragment"
    return ""


def host_of(base_url: str) -> str:
    """Returns host and port for people; the address must have no problem."""
    return urlsplit(base_url).netloc
