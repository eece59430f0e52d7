"""The seam to keys that stay where they are kept: a workspace's, under which data keys lie, and the system's own.

Deleting a workspace's key makes everything under it unreadable, in every copy and backup (crypto-shredding).
"""

from __future__ import annotations

from typing import Final, Protocol

from services.auth.secrets import Opaque, Secret

DATA_KEY_BYTES: Final = 32

MAX_SEALED_BYTES: Final = 64 * 1024
"""Longest text that `Envelopes.seal` takes; longer things are sealed under a data key."""


class KeyBytes(Opaque):
    """A data key in the clear."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) != DATA_KEY_BYTES:
            raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes")
        self._value = value

    def reveal(self) -> bytes:
        """Returns the key. The caller does not log, store or raise it."""
        return self._value


class DataKey(Opaque):
    """A new data key, in the clear to be used now, and wrapped to be kept beside what it sealed."""

    __slots__ = ("key", "wrapped")

    def __init__(self, key: KeyBytes, wrapped: str) -> None:
        self.key = key
        self.wrapped = wrapped


class Envelopes(Protocol):
    """Keys of workspaces, and sealing of small texts under the system's own key.

    Every method raises `Unavailable` (STORAGE_UNAVAILABLE) while the keys cannot be reached.
    """

    async def data_key(self, workspace_id: str) -> DataKey:
        """Returns a new data key of the workspace, whose own key is made when it has none.

        Raises:
            NotFound: The workspace's key was destroyed (CONTENT_REMOVED), as far as the keeper of the keys remembers
                it. A new key of the same workspace opens nothing of the old one's.
        """

    async def unwrap(self, workspace_id: str, wrapped: str) -> KeyBytes:
        """Returns the data key that was wrapped for the workspace, also before rotations.

        Raises:
            NotFound: The workspace's key was destroyed (CONTENT_REMOVED): what the data key sealed is gone for good.
            SecretDamagedError: It is not what was wrapped, or was wrapped for another workspace.
        """

    async def rewrap(self, workspace_id: str, wrapped: str) -> str:
        """Returns the same data key wrapped under the current version of the workspace's key. Raises as `unwrap`."""

    async def rotate(self, workspace_id: str) -> None:
        """Gives the workspace's key a new version; what older versions wrapped stays readable."""

    async def destroy(self, workspace_id: str) -> None:
        """Deletes the workspace's key in all versions, for good. May be repeated."""

    async def seal(self, plaintext: Secret, *, context: str) -> str:
        """Returns the text sealed for one place, which `context` names; for secrets of at most `MAX_SEALED_BYTES`.

        Raises:
            ValueError: The text is longer.
        """

    async def open(self, sealed: str, *, context: str) -> Secret:
        """Returns what was sealed for the same context.

        Raises:
            SecretDamagedError: It was altered, or sealed for another context.
        """


def check_sealable(plaintext: Secret) -> bytes:
    """Returns the bytes of a text that is to be sealed.

    Raises:
        ValueError: There are more than `MAX_SEALED_BYTES`.
    """
    value = plaintext.reveal().encode()
    if len(value) > MAX_SEALED_BYTES:
        raise ValueError(f"a sealed text has at most {MAX_SEALED_BYTES} bytes")
    return value
