"""Checks of what callers send, and the identity of an idempotent request."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Final

from holdfast.errors import InvalidArgument
from services.auth.store import Request

MAX_REQUEST_ID_CHARACTERS: Final = 128

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


def is_name(text: str) -> bool:
    """Tells whether `text` has the form of a connection's or workspace's name."""
    return _NAME.fullmatch(text) is not None


def require_name(text: str, field: str) -> str:
    """Returns `text`.

    Raises:
        InvalidArgument: It is no name.
    """
    if not is_name(text):
        raise InvalidArgument(
            f"{field} is not valid",
            field=field,
            description="expected a lower-case letter, then up to 62 lower-case letters, digits and hyphens",
        )
    return text


def identify(key: bytes, method: str, request_id: str, content: object) -> Request | None:
    """Returns the identity of a request, or None when the caller gave it no id.

    Args:
        key: Key of the fingerprint: the content may hold a secret, and the fingerprint is stored.
        method: What is asked for.
        request_id: The caller's id.
        content: All that was asked for, as JSON values.

    Raises:
        InvalidArgument: The id is too long, or not printable.
    """
    if not request_id:
        return None
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise InvalidArgument(
            "request_id is not valid",
            field="request_id",
            description=f"expected up to {MAX_REQUEST_ID_CHARACTERS} printable characters",
        )
    text = json.dumps([method, content], sort_keys=True)
    return Request(request_id, method, hmac.digest(key, text.encode(), hashlib.sha256).hex())
