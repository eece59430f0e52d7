"""The secret store in Vault's KV v2: every write under check-and-set, and a lost answer decided by reading back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

from hvac.api.secrets_engines import KvV2

from holdfast.errors import Conflict
from services.auth.secrets import Secret, SecretDamagedError, StoredSecret, check_path, check_size
from services.auth.vault.answers import Troubles, as_errors
from services.auth.vault.client import VaultClient
from services.auth.vault.failures import Refused

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Mounts:
    """Names of the mounts in Vault."""

    connections: str = "holdfast-conn"
    apps: str = "holdfast-app"
    leases: str = "holdfast-lease"
    transit: str = "holdfast-transit"

    def place(self, path: str) -> tuple[str, str]:
        """Returns the mount of a path of the store, and the path in it.

        Raises:
            ValueError: It is no path of a secret store.
        """
        kind, _, rest = check_path(path).partition("/")
        if not rest:
            raise ValueError("a secret's path starts with its kind and a slash")
        match kind:
            case "ws":
                return self.connections, path
            case "app":
                return self.apps, rest
            case "lease":
                return self.leases, rest
        raise ValueError("a secret's path starts with ws/, app/ or lease/")


@dataclass(frozen=True, slots=True)
class _Found:
    version: int
    document: dict[str, Any] | None
    """None when this version was deleted: the path holds nothing, but the next version has another number than 1."""


class VaultSecretStore:
    """A `SecretStore` of one KV v2 secret per path.

    The document of a secret is `{"value": …, "write_id": …, "schema": 1}`.

    Args:
        client: Calls to Vault.
        mounts: Where the kinds of secrets lie.
    """

    def __init__(self, client: VaultClient, mounts: Mounts) -> None:
        self._client = client
        self._mounts = mounts
        self._troubles = Troubles()

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """See `SecretStore.put`. Over a version that was deleted in Vault itself, the count goes on from there."""
        mount, inner = self._mounts.place(path)
        check_size(secret)
        document = {"value": secret.reveal(), "write_id": secrets.token_hex(16), "schema": SCHEMA}
        with as_errors(self._troubles):
            version = await self._put(mount, inner, document, expected_version)
            if version is None and expected_version == 0:
                found = await self._read(mount, inner)
                if found is not None and found.document is None:
                    version = await self._put(mount, inner, document, found.version)
        if version is None:
            raise Conflict("the secret has another version")
        return version

    async def get(self, path: str) -> StoredSecret | None:
        """See `SecretStore.get`."""
        mount, inner = self._mounts.place(path)
        with as_errors(self._troubles):
            found = await self._read(mount, inner)
        if found is None or found.document is None:
            return None
        value = found.document.get("value")
        if not isinstance(value, str) or found.document.get("schema") != SCHEMA:
            raise SecretDamagedError("a secret in Vault was not written by this service, or by a newer release")
        return StoredSecret(Secret(value), found.version)

    async def delete(self, path: str) -> None:
        """See `SecretStore.delete`."""
        mount, inner = self._mounts.place(path)

        def call(adapter: Any) -> Any:
            return KvV2(adapter).delete_metadata_and_all_versions(inner, mount_point=mount)

        with as_errors(self._troubles):
            await self._client.write(call, may_repeat=True)

    async def version(self, path: str) -> int:
        """See `SecretStore.version`."""
        mount, inner = self._mounts.place(path)
        with as_errors(self._troubles):
            found = await self._read(mount, inner)
        return 0 if found is None or found.document is None else found.version

    async def _put(self, mount: str, path: str, document: dict[str, Any], expected_version: int) -> int | None:
        def call(adapter: Any) -> Any:
            return KvV2(adapter).create_or_update_secret(path, document, cas=expected_version, mount_point=mount)

        try:
            # Of the same write done twice at most one succeeds, and its id says that it was ours.
            answer = await self._client.write(call, may_repeat=True)
        except Refused as failure:
            if not failure.is_cas_mismatch:
                raise
            if failure.is_repetition and await self._is_ours(mount, path, document, expected_version + 1):
                return expected_version + 1
            return None
        return int(answer["data"]["version"])

    async def _is_ours(self, mount: str, path: str, document: dict[str, Any], version: int) -> bool:
        found = await self._read(mount, path, version=version)
        return (
            found is not None and found.document is not None and found.document.get("write_id") == document["write_id"]
        )

    async def _read(self, mount: str, path: str, *, version: int | None = None) -> _Found | None:
        def call(adapter: Any) -> Any:
            return KvV2(adapter).read_secret_version(
                path, version=version, mount_point=mount, raise_on_deleted_version=False
            )

        try:
            answer = await self._client.read(call)
        except Refused as failure:
            if failure.status != 404:
                raise
            return None if failure.deleted_version is None else _Found(failure.deleted_version, None)
        data = answer["data"]
        return _Found(int(data["metadata"]["version"]), dict(data["data"] or {}))
