"""How an API says in its own way that a credential is over: auth hands the signals on, executors look for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.shared.json_pointers import as_text, at_pointer

SIGNAL_BODY_BYTES: Final = 64 * 1024
"""A body with more is a result, and is not looked into."""

_UNAUTHORIZED: Final = 401


@dataclass(frozen=True, slots=True)
class AuthFailureSignal:
    """How the provider's API says that a token is no longer good, beside a plain 401."""

    status: int
    pointer: str | None = None
    """A JSON pointer into the body, whose value is compared."""
    equals: str | None = None
    header: str | None = None
    contains: str | None = None
    """What the header holds."""

    def matches(self, status: int, headers: Mapping[str, str], body: Any) -> bool:
        """Tells whether an answer of the API says so.

        Args:
            status: Of the answer.
            headers: With lower-case names.
            body: The parsed JSON, or None.
        """
        if status != self.status:
            return False
        if self.header is not None and (self.contains or "") not in headers.get(self.header, ""):
            return False
        return self.pointer is None or as_text(at_pointer(body, self.pointer)) == self.equals


def is_refusal(
    signals: Iterable[AuthFailureSignal], status: int, headers: Mapping[str, str], body: bytes | None
) -> bool:
    """Tells whether an answer says that the credential is over, and so that nothing was done: a 401, or a signal.

    The body is parsed only when a signal for this status asks for it.

    Args:
        signals: The provider's.
        status: Of the answer.
        headers: With lower-case names.
        body: As it was read; None when it was not.
    """
    if status == _UNAUTHORIZED:
        return True
    possible = [signal for signal in signals if signal.status == status]
    document = _parsed(body) if depends_on_body(possible, status) else None
    return any(signal.matches(status, headers, document) for signal in possible)


def depends_on_body(signals: Iterable[AuthFailureSignal], status: int) -> bool:
    """Tells whether `is_refusal` of an answer with this status cannot be said without its body."""
    return status != _UNAUTHORIZED and any(signal.status == status and signal.pointer is not None for signal in signals)


def _parsed(body: bytes | None) -> Any:
    if not body or len(body) > SIGNAL_BODY_BYTES:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
