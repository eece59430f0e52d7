"""Where the completing browser may be sent with its code: this machine's loopback, or what the operator has listed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlencode

from holdfast.errors import InvalidArgument

MAX_CHARACTERS: Final = 2048

# RFC 8252 §7.3, §8.3: the address and not the name, because a name can lead elsewhere. The port is the client's choice.
_LOOPBACK: Final = re.compile(r"http://(?:127\.0\.0\.1|\[::1\]):[0-9]{1,5}(?:/[A-Za-z0-9._~/-]*)?")
_LISTED: Final = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?(?:\?[A-Za-z0-9._~=&%-]*)?")


class ReturnUrls:
    """The addresses that are allowed.

    Args:
        listed: Addresses of the operator's own applications, which are compared as texts.
    """

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self._listed = frozenset(listed)

    def check(self, url: str) -> None:
        """Returns when a browser may be sent to `url`.

        Raises:
            InvalidArgument: It may not.
        """
        if len(url) <= MAX_CHARACTERS and (url in self._listed or _LOOPBACK.fullmatch(url)):
            return
        raise InvalidArgument(
            "return_url is not allowed",
            field="return_url",
            description="expected http://127.0.0.1:port/path, or an address of HOLDFAST_CONNECT_RETURN_URLS",
        )


def parse_return_urls(text: str) -> tuple[str, ...]:
    """Parses a comma list of https addresses without user and fragment (or loopback ones, for development)."""
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    for url in urls:
        if len(url) > MAX_CHARACTERS or not (_LISTED.fullmatch(url) or _LOOPBACK.fullmatch(url)):
            raise ValueError("addresses such as https://app.example.com/connected, separated by commas")
    return urls


def with_query(url: str, **values: str) -> str:
    """Returns `url` with more parameters."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"
