"""The allow-list of a credential: the hosts, paths and methods it may be sent to, and nothing beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from services.shared.egress.urls import Destination, has_dot_segment, parse_destination, parse_host

METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One kind of request that is allowed.

    Raises:
        ValueError: It is no rule; the text says what was expected.
    """

    host: str
    """A host, or `*.` and a suffix, which means every name below the suffix and not the suffix itself."""
    scheme: str = "https"
    port: int | None = None
    """None means the scheme's own."""
    path_prefix: str = "/"
    """Ends at a border between parts: `/v1` allows `/v1` and `/v1/x`, not `/v10`."""
    methods: frozenset[str] = frozenset()
    """Empty means all."""

    def __post_init__(self) -> None:
        check_host_pattern(self.host)
        if self.scheme not in ("https", "http"):
            raise ValueError("expected https or http as a rule's scheme")
        if self.port is not None and not 0 < self.port < 65_536:
            raise ValueError("expected a port from 1 to 65535")
        if not self.path_prefix.startswith("/") or re.search(r"[\s\\?#%]", self.path_prefix):
            raise ValueError("expected a path prefix that begins with / and has no ?, #, % or spaces")
        if has_dot_segment(self.path_prefix):
            raise ValueError("expected no `.` or `..` in a path prefix")
        if not self.methods <= METHODS:
            raise ValueError(f"expected methods among {', '.join(sorted(METHODS))}")

    def allows(self, url: str | Destination, method: str) -> bool:
        """Tells whether a request may be sent. An address that the parser refuses is not allowed."""
        try:
            to = parse_destination(url) if isinstance(url, str) else url
        except ValueError:
            return False
        return (
            to.scheme == self.scheme
            and to.port == (self.port or (443 if self.scheme == "https" else 80))
            and host_matches(self.host, to.host)
            and _is_below(self.path_prefix, to.path)
            and (method in self.methods if self.methods else method in METHODS)
        )

    def to_document(self) -> dict[str, object]:
        """Returns the rule as JSON has it; `from_document` reads it."""
        return {
            "host": self.host,
            "scheme": self.scheme,
            "port": self.port,
            "path_prefix": self.path_prefix,
            "methods": sorted(self.methods),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Returns what `to_document` returned.

        Raises:
            ValueError: It is no rule.
        """
        try:
            return cls(
                host=document["host"],
                scheme=document["scheme"],
                port=document["port"],
                path_prefix=document["path_prefix"],
                methods=frozenset(document["methods"]),
            )
        except (KeyError, TypeError, AttributeError):
            raise ValueError("expected the document of a rule") from None


def allows_any(rules: Iterable[EgressRule], url: str | Destination, method: str) -> bool:
    """Tells whether one of the rules allows the request; without rules nothing is allowed."""
    return any(rule.allows(url, method) for rule in rules)


def check_host_pattern(pattern: str) -> None:
    """Checks a host, or a `*.` with a suffix of at least two labels.

    Raises:
        ValueError: It is neither.
    """
    suffix = pattern.removeprefix("*.")
    if "*" in suffix:
        raise ValueError("expected a * only as the first label of a host")
    host = parse_host(suffix)
    if pattern != suffix and (host.count(".") == 0 or host[-1].isdigit() or ":" in host):
        raise ValueError("expected at least two labels behind *.")
    if host != suffix and f"[{host}]" != suffix:
        raise ValueError("expected a host in lower case and its usual spelling")


def host_matches(pattern: str, host: str) -> bool:
    """Tells whether a host as `parse_destination` returns it is what a pattern means."""
    if pattern.startswith("*."):
        # With the dot, so that `evil-example.com` does not end in `example.com`.
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern.strip("[]")


def _is_below(prefix: str, path: str) -> bool:
    if prefix.endswith("/"):
        return path.startswith(prefix)
    return path == prefix or path.startswith(f"{prefix}/")
