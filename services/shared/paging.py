"""Pages of a list: sizes within limits, and page tokens that are opaque, signed and bound to their list."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from holdfast.errors import InvalidArgument, Reason

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200

_MAC_BYTES: Final = 16
_MAX_TOKEN_CHARACTERS: Final = 4096
_KEY_LABEL: Final = b"holdfast page tokens v1"

Position = Mapping[str, str | int | None]
"""Where the next page starts: the values of the list's sort key."""


def page_key(service_token: str) -> bytes:
    """Returns the key that signs page tokens; every replica of the suite derives the same one."""
    return hmac.digest(service_token.encode(), _KEY_LABEL, hashlib.sha256)


def page_size(requested: int) -> int:
    """Returns how many items a page has: 50 when 0 is asked for, never more than 200.

    Raises:
        InvalidArgument: The number is negative.
    """
    if requested < 0:
        raise InvalidArgument("page_size is negative", field="page_size", description="expected 0 or more")
    return min(requested, MAX_PAGE_SIZE) if requested else DEFAULT_PAGE_SIZE


def encode_page_token(key: bytes, position: Position, *, bound_to: tuple[str, ...]) -> str:
    """Returns the token of the page that starts after `position`.

    Args:
        key: From `page_key`.
        position: Readable by whoever has the token, so it holds only what the page itself showed.
        bound_to: What makes the list this list: the method, the workspace, each filter. The same values have to come
            with the token.
    """
    body = json.dumps(dict(position), separators=(",", ":"), sort_keys=True).encode()
    return base64.urlsafe_b64encode(_mac(key, body, bound_to) + body).rstrip(b"=").decode()


def decode_page_token(key: bytes, token: str, *, bound_to: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns the position in `token`, or None for the first page, whose token is empty.

    Raises:
        InvalidArgument: It was not made by `encode_page_token` for this list.
    """
    if not token:
        return None
    if len(token) > _MAX_TOKEN_CHARACTERS or not token.isascii():
        raise _invalid()
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid() from error
    mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, body, bound_to)):
        raise _invalid()
    position: dict[str, Any] = json.loads(body)
    return position


def _mac(key: bytes, body: bytes, bound_to: tuple[str, ...]) -> bytes:
    # JSON keeps ("a", "bc") and ("ab", "c") apart.
    return hmac.digest(key, json.dumps(bound_to).encode() + b"\0" + body, hashlib.sha256)[:_MAC_BYTES]


def _invalid() -> InvalidArgument:
    return InvalidArgument(
        "the page token is not valid for this list",
        reason=Reason.INVALID_PAGE_TOKEN,
        field="page_token",
        description="expected the next_page_token of the same list with the same filters, or nothing",
    )
