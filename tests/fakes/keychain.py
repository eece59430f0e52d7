"""A keychain in memory, as a backend of the `keyring` package."""

from __future__ import annotations

import keyring.backend
import keyring.errors


class MemoryKeychain(keyring.backend.KeyringBackend):
    """Keeps entries, and refuses when it is told to."""

    priority = 9

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[tuple[str, str], str] = {}
        self.is_locked = False
        self.fail_at = ""
        """A method that fails."""

    def get_password(self, service: str, username: str) -> str | None:
        """Returns an entry."""
        self._check("get")
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keeps an entry."""
        self._check("set")
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        """Drops an entry."""
        self._check("delete")
        del self.entries[service, username]

    def _check(self, method: str) -> None:
        if self.is_locked or self.fail_at == method:
            raise keyring.errors.KeyringError("the keychain is locked")
