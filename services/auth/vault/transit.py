"""Envelope keys in Vault's transit engine: a key of each workspace that never leaves it, and one of the system."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from hvac.api.secrets_engines import Transit

from holdfast.errors import NotFound, Reason
from services.auth.envelopes import DataKey, KeyBytes, check_sealable
from services.auth.secrets import Secret, SecretDamagedError
from services.auth.vault.answers import Troubles, as_errors
from services.auth.vault.client import VaultClient
from services.auth.vault.failures import Refused

SYSTEM_KEY: Final = "system"
KEY_TYPE: Final = "aes256-gcm96"
ROTATE_EVERY: Final = "2160h"

_WORKSPACE: Final = re.compile(r"[0-9a-z-]{1,64}")


def workspace_key(workspace_id: str) -> str:
    """Returns the name of a workspace's key.

    Raises:
        ValueError: It is no id of a workspace.
    """
    if _WORKSPACE.fullmatch(workspace_id) is None:
        raise ValueError("no id of a workspace")
    return f"ws-{workspace_id}"


class VaultEnvelopes:
    """`Envelopes` in Vault.

    Args:
        client: Calls to Vault.
        mount: Where the transit engine is.
    """

    def __init__(self, client: VaultClient, mount: str) -> None:
        self._client = client
        self._mount = mount
        self._troubles = Troubles()

    async def data_key(self, workspace_id: str) -> DataKey:
        """See `Envelopes.data_key`. Vault does not remember keys that were destroyed."""
        name = workspace_key(workspace_id)

        def call(adapter: Any) -> Any:
            return _transit(adapter).generate_data_key(name, key_type="plaintext", mount_point=self._mount)

        with as_errors(self._troubles):
            try:
                answer = await self._client.write(call, may_repeat=True)
            except Refused as failure:
                if not failure.is_missing_key:
                    raise
                await self._client.write(lambda adapter: self._create(adapter, name), may_repeat=True)
                answer = await self._client.write(call, may_repeat=True)
        data = answer["data"]
        return DataKey(KeyBytes(base64.b64decode(data["plaintext"])), str(data["ciphertext"]))

    async def unwrap(self, workspace_id: str, wrapped: str) -> KeyBytes:
        """See `Envelopes.unwrap`."""
        plaintext = await self._decrypt(workspace_key(workspace_id), wrapped, None)
        if plaintext is None:
            raise _destroyed()
        try:
            return KeyBytes(plaintext)
        except ValueError:
            raise SecretDamagedError("what was wrapped is no data key") from None

    async def rewrap(self, workspace_id: str, wrapped: str) -> str:
        """See `Envelopes.rewrap`."""
        name = workspace_key(workspace_id)

        def call(adapter: Any) -> Any:
            return _transit(adapter).rewrap_data(name, wrapped, mount_point=self._mount)

        is_missing = is_damaged = False
        answer: Any = None
        with as_errors(self._troubles):
            try:
                answer = await self._client.write(call, may_repeat=True)
            except Refused as failure:
                is_missing, is_damaged = failure.is_missing_key, failure.status == 400
                if not (is_missing or is_damaged):
                    raise
        if is_missing:
            raise _destroyed()
        if is_damaged:
            raise SecretDamagedError("the wrapped key does not open")
        return str(answer["data"]["ciphertext"])

    async def rotate(self, workspace_id: str) -> None:
        """See `Envelopes.rotate`. Vault also does it by itself, as the key's configuration says."""
        name = workspace_key(workspace_id)

        def call(adapter: Any) -> Any:
            return _transit(adapter).rotate_key(name, mount_point=self._mount)

        with as_errors(self._troubles):
            # A second rotation is one version more, and changes nothing that is promised.
            await self._client.write(call, may_repeat=True)

    async def destroy(self, workspace_id: str) -> None:
        """See `Envelopes.destroy`."""
        name = workspace_key(workspace_id)

        def allow(adapter: Any) -> Any:
            return _transit(adapter).update_key_configuration(name, deletion_allowed=True, mount_point=self._mount)

        def delete(adapter: Any) -> Any:
            return _transit(adapter).delete_key(name, mount_point=self._mount)

        with as_errors(self._troubles):
            try:
                await self._client.write(allow, may_repeat=True)
                await self._client.write(delete, may_repeat=True)
            except Refused as failure:
                if not failure.is_missing_key:
                    raise

    async def seal(self, plaintext: Secret, *, context: str) -> str:
        """See `Envelopes.seal`."""
        text = base64.b64encode(check_sealable(plaintext)).decode()

        def call(adapter: Any) -> Any:
            return _transit(adapter).encrypt_data(
                SYSTEM_KEY, text, associated_data=_base64(context), mount_point=self._mount
            )

        with as_errors(self._troubles):
            answer = await self._client.write(call, may_repeat=True)
        return str(answer["data"]["ciphertext"])

    async def open(self, sealed: str, *, context: str) -> Secret:
        """See `Envelopes.open`."""
        plaintext = await self._decrypt(SYSTEM_KEY, sealed, _base64(context))
        if plaintext is None:
            raise SecretDamagedError("the key of sealed texts is gone from Vault")
        return Secret(plaintext.decode())

    async def _decrypt(self, name: str, ciphertext: str, associated_data: str | None) -> bytes | None:
        def call(adapter: Any) -> Any:
            return _transit(adapter).decrypt_data(
                name, ciphertext, associated_data=associated_data, mount_point=self._mount
            )

        is_missing = False
        answer: Any = None
        with as_errors(self._troubles):
            try:
                answer = await self._client.read(call)
            except Refused as failure:
                is_missing = failure.is_missing_key
                if failure.status != 400 and not is_missing:
                    raise
        if is_missing:
            return None
        if answer is None:
            raise SecretDamagedError("the sealed text does not open")
        try:
            return base64.b64decode(answer["data"]["plaintext"] or "", validate=True)
        except (binascii.Error, ValueError):
            raise SecretDamagedError("the sealed text does not open") from None

    def _create(self, adapter: Any, name: str) -> Any:
        # Neither exportable nor with a plaintext backup, which are the defaults; the policy refuses to name them.
        return _transit(adapter).create_key(
            name,
            key_type=KEY_TYPE,
            auto_rotate_period=ROTATE_EVERY,
            mount_point=self._mount,
        )


def _transit(adapter: Any) -> Any:
    # Untyped in the stubs.
    return Transit(adapter)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _destroyed() -> NotFound:
    return NotFound(
        "the key of this workspace was destroyed, and what it sealed with it", reason=Reason.CONTENT_REMOVED
    )
