"""The seam to where secrets lie, and the type that carries one through the process without showing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from services.shared.scrubber import PROCESS

MAX_SECRET_BYTES: Final = 64 * 1024

_PATH: Final = re.compile(r"[a-z0-9-]+(?:/[a-z0-9-]+)*")
_MAX_PATH_CHARACTERS: Final = 250


class Opaque:
    """Base of values that must not be shown, compared, copied or stored by accident: each of these is a crash.

    A crash is found by the first test that reaches it; a leak is found by somebody else.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, format_spec: str) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not formatted")

    def __eq__(self, other: object) -> NoReturn:
        # An ordinary comparison tells by its time how much of a guess was right.
        raise TypeError(f"a {type(self).__name__} is not compared")

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is neither copied nor pickled")


class Secret(Opaque):
    """A secret text. The only way to the value is `reveal`, so that every place that has it can be searched for."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @property
    def is_empty(self) -> bool:
        """Tells whether there is no value, as for a server that wants no key."""
        return not self._value

    def reveal(self) -> str:
        """Returns the value. The caller does not log, store or raise it; in case it is, the scrubber knows it now."""
        PROCESS.learn(self._value)
        return self._value


@dataclass(frozen=True, slots=True, eq=False)
class StoredSecret:
    """A secret as read from the store."""

    secret: Secret
    version: int
    """From 1, one higher with each write to the path."""


class SecretDamagedError(Exception):
    """A stored secret does not open: it was altered, moved, rolled back, or sealed with another key."""


class SecretStore(Protocol):
    """Where secrets lie, each at a path of opaque ids such as `ws/<uuid>/shared/c/<uuid>/<uuid>`.

    A path names no person, provider or purpose: paths are visible to whoever reads the store without its key.
    What must change together is one secret. Nothing else is atomic: a write here and a write to a database are two
    writes, and the caller makes either order safe.

    Every method raises `Unavailable` (STORAGE_UNAVAILABLE) while the store cannot be reached or is sealed, and
    `ValueError` for a path that is none.
    """

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """Stores `secret` as the next version and returns its number, after it is durable.

        The write happens only if the current version is `expected_version`; 0 means that the path holds nothing.
        Of several writers with the same expectation exactly one succeeds. When the answer is lost, `version` says
        whether the write took place.

        Raises:
            Conflict: Another version is current; nothing was written.
            ResourceExhausted: The store is full (STORAGE_FULL); nothing was written.
            ValueError: The secret is longer than `MAX_SECRET_BYTES`.
        """

    async def get(self, path: str) -> StoredSecret | None:
        """Returns the current version, or None when the path holds nothing. A completed `put` is always seen.

        Raises:
            SecretDamagedError: There is something, but it is not what was put there.
        """

    async def delete(self, path: str) -> None:
        """Removes all versions; afterwards the path is as if it had never been used. May be repeated."""

    async def version(self, path: str) -> int:
        """Returns the number of the current version, 0 when the path holds nothing. Does not open the secret."""


def check_path(path: str) -> str:
    """Returns `path`.

    Raises:
        ValueError: It is no path of a secret store.
    """
    if len(path) > _MAX_PATH_CHARACTERS or _PATH.fullmatch(path) is None:
        raise ValueError("a secret's path is made of lower-case letters, digits and hyphens between slashes")
    return path


def check_size(secret: Secret) -> bytes:
    """Returns the secret's bytes.

    Raises:
        ValueError: There are more than `MAX_SECRET_BYTES`.
    """
    value = secret.reveal().encode()
    if len(value) > MAX_SECRET_BYTES:
        raise ValueError(f"a secret has at most {MAX_SECRET_BYTES} bytes")
    return value
