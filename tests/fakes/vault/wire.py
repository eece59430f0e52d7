"""Requests and answers as the double's parts see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Request:
    """One request as it arrived; header names are lower-case."""

    method: str
    path: str
    """Without `/v1/`."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: dict[str, Any]
    node: int = 0

    @property
    def token(self) -> str:
        """The token of the request."""
        return self.headers.get("x-vault-token", "")


@dataclass(slots=True)
class Answer:
    """One answer."""

    status: int
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def data(value: dict[str, Any] | None, status: int = 200, **more: Any) -> Answer:
    """An answer with data, in Vault's frame."""
    frame = {
        "request_id": "00000000-0000-0000-0000-000000000000",
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": value,
        "wrap_info": None,
        "warnings": None,
        "auth": None,
    }
    return Answer(status, frame | more)


def nothing() -> Answer:
    """The answer of a write that has none."""
    return Answer(204)


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, *errors: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(status, *errors)
        self.answer = Answer(status, {"errors": list(errors)} if body is None else body)


def denied() -> Refusal:
    """What a bad token and a missing policy get alike."""
    return Refusal(403, "1 error occurred:\n\t* permission denied\n\n")


def not_found() -> Refusal:
    """What a path without content gets."""
    return Refusal(404)
