"""A secret store in memory that can be told to fail, before or after the effect."""

from __future__ import annotations

from holdfast.errors import Conflict, HoldfastError
from services.auth.secrets import Secret, StoredSecret, check_path, check_size


class MemorySecretStore:
    """Keeps secrets in a dictionary."""

    def __init__(self) -> None:
        self.secrets: dict[str, StoredSecret] = {}
        self.fail_before: HoldfastError | None = None
        """Raised by every write, which then does nothing."""
        self.fail_after: HoldfastError | None = None
        """Raised by every write after it was done: the answer is lost."""

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """See `SecretStore.put`."""
        check_path(path)
        check_size(secret)
        self._raise(self.fail_before)
        current = self.secrets.get(path)
        if (0 if current is None else current.version) != expected_version:
            raise Conflict("the secret has another version")
        self.secrets[path] = StoredSecret(secret, expected_version + 1)
        self._raise(self.fail_after)
        return expected_version + 1

    async def get(self, path: str) -> StoredSecret | None:
        """See `SecretStore.get`."""
        return self.secrets.get(check_path(path))

    async def delete(self, path: str) -> None:
        """See `SecretStore.delete`."""
        check_path(path)
        self._raise(self.fail_before)
        self.secrets.pop(path, None)
        self._raise(self.fail_after)

    async def version(self, path: str) -> int:
        """See `SecretStore.version`."""
        current = self.secrets.get(check_path(path))
        return 0 if current is None else current.version

    def _raise(self, error: HoldfastError | None) -> None:
        if error is not None:
            raise error
