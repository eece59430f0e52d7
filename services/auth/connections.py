"""The life of a connection: a third party's key goes in, is sealed, replaced and revoked, and never comes out here.

A secret and the row that refers to it are two writes, in two stores. The order that is safe: announce the path, write
the secret, let the row take it. Whatever dies in between leaves a stray secret that nobody can use and that is swept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from holdfast.errors import HoldfastError, InvalidArgument, NotFound, Reason
from holdfast.ids import new_uuid7
from services.auth.callers import Caller
from services.auth.connection_store import (
    SHARED,
    Connection,
    ConnectionState,
    ConnectionStore,
    NewConnection,
    connection_exists,
)
from services.auth.keyring import Keyring
from services.auth.requests import identify, is_name, require_name
from services.auth.secret_paths import connection_path, new_connection_path
from services.auth.secrets import Secret, SecretDamagedError, SecretStore
from services.shared.telemetry import get_logger

PROVIDERS_WITH_ADDRESS: Final = frozenset({"anthropic", "openai"})
"""Providers whose own address is known to the executor; every other connection names one."""

MAX_KEY_CHARACTERS: Final = 8192
MAX_URL_CHARACTERS: Final = 2048

STRAY_AGE_SECONDS: Final = 600.0
"""How long an announced secret may wait for its connection; far longer than any call lasts."""

_FINGERPRINT_DIGITS: Final = 12
_DOCUMENT_SCHEMA: Final = 1
_SWEEP_LIMIT: Final = 100

log = get_logger(__name__)

Listener = Callable[[str, str], None]
"""Is told the workspace and name of a connection that has changed."""


class Connections:
    """Makes, lists, replaces and revokes connections.

    Args:
        store: Keeps the connections.
        secrets: Keeps their secrets.
        keyring: Keys of fingerprints.
        on_change: Called after each committed change, before the caller is answered.
    """

    def __init__(self, store: ConnectionStore, secrets: SecretStore, keyring: Keyring, *, on_change: Listener) -> None:
        self._store = store
        self._secrets = secrets
        self._audit_key = keyring.audit_key
        self._request_key = keyring.request_key
        self._on_change = on_change

    async def create(
        self,
        caller: Caller,
        *,
        name: str,
        provider: str,
        api_key: Secret,
        base_url: str = "",
        replace: bool = False,
        request_id: str = "",
    ) -> Connection:
        """Stores an API key as a connection.

        Raises:
            InvalidArgument: A field is wrong.
            AlreadyExists: There is an active connection of the name, and `replace` is not set.
        """
        require_name(provider, "provider")
        name = require_name(name or provider, "name")
        _check_key(api_key)
        _check_base_url(base_url)
        if not base_url and provider not in PROVIDERS_WITH_ADDRESS:
            raise InvalidArgument(f"base_url is required: the address of {provider} is not known", field="base_url")
        if not base_url and api_key.is_empty:
            raise InvalidArgument("api_key is required unless base_url names a server that wants none", field="api_key")
        workspace_id = caller.workspace_id
        content = [name, provider, api_key.reveal(), base_url, replace]
        request = identify(self._request_key, "CreateConnection", request_id, content)
        # The transaction below decides both again; here they spare a secret that would be written for nothing.
        if request is not None:
            answered = await self._store.find_answered_connection(workspace_id, request)
            if answered is not None:
                return answered
        if not replace:
            existing = await self._store.find_connection(workspace_id, SHARED, name)
            if existing is not None and existing.state is not ConnectionState.REVOKED:
                raise connection_exists(name)
        path = None
        if not api_key.is_empty:
            path = new_connection_path(workspace_id, SHARED)
        new = NewConnection(
            workspace_id=workspace_id,
            connection_id=new_uuid7(),
            name=name,
            provider=provider,
            base_url=base_url,
            fingerprint=self._fingerprint(api_key),
            secret_path=path,
            token_version=0 if path is None else 1,
        )
        try:
            if path is not None:
                await self._store.announce_secret(path)
                await self._secrets.put(path, _document(new, api_key), expected_version=0)
            saved = await self._store.save_connection(new, replace=replace, actor=caller.actor, request=request)
        except HoldfastError:
            await self._give_up(path)
            raise
        if saved.is_replay:
            await self._give_up(path)
        else:
            self._on_change(workspace_id, name)
            await self._discard(saved.abandoned_path)
        return saved.connection

    async def get(self, workspace_id: str, name: str) -> Connection:
        """Returns a connection, active or revoked.

        Raises:
            NotFound: The workspace has none of the name.
        """
        found = await self._store.find_connection(workspace_id, SHARED, name) if is_name(name) else None
        if found is None:
            raise connection_not_found()
        return found

    async def page(self, workspace_id: str, *, limit: int, after: tuple[str, str] | None) -> list[Connection]:
        """Returns up to `limit` connections in the order of their names and users, after the given one."""
        return await self._store.list_connections(workspace_id, limit=limit, after=after)

    async def revoke(self, caller: Caller, name: str, *, request_id: str = "") -> Connection:
        """Revokes a connection and deletes its secret. May be repeated.

        When the secret store cannot delete it now, the connection is revoked all the same, and the deletion is
        repeated until it succeeds.

        Raises:
            NotFound: The workspace has no connection of the name.
        """
        request = identify(self._request_key, "RevokeConnection", request_id, name)
        saved = None
        if is_name(name):
            saved = await self._store.revoke_connection(
                caller.workspace_id, SHARED, name, actor=caller.actor, request=request
            )
        if saved is None:
            raise connection_not_found()
        self._on_change(caller.workspace_id, name)
        await self._discard(saved.abandoned_path)
        return saved.connection

    async def sweep(self) -> int:
        """Deletes the secrets that no connection refers to, and returns how many; called now and then."""
        paths = await self._store.condemn_strays(older_than_seconds=STRAY_AGE_SECONDS, limit=_SWEEP_LIMIT)
        for path in paths:
            await self._secrets.delete(path)
            await self._store.forget_stray(path)
        return len(paths)

    def _fingerprint(self, api_key: Secret) -> str:
        if api_key.is_empty:
            return ""
        return hmac.digest(self._audit_key, api_key.reveal().encode(), hashlib.sha256).hex()[:_FINGERPRINT_DIGITS]

    async def _give_up(self, path: str | None) -> None:
        """Deletes an announced secret, unless its connection has it after all: the answer of a commit may be lost."""
        if path is None:
            return
        try:
            if await self._store.condemn_stray(path):
                await self._discard(path)
        except HoldfastError as error:
            log.info("secret_left_for_the_sweeper", reason=error.reason)

    async def _discard(self, path: str | None) -> None:
        if path is None:
            return
        try:
            await self._secrets.delete(path)
            await self._store.forget_stray(path)
        except HoldfastError as error:
            log.warning("secret_left_for_the_sweeper", reason=error.reason)


def connection_not_found() -> NotFound:
    """Returns the one answer for a connection that is absent, revoked where an active one is needed, or foreign."""
    return NotFound("there is no such connection", reason=Reason.CONNECTION_NOT_FOUND)


def _document(new: NewConnection, api_key: Secret) -> Secret:
    # Sealed as one: whoever can write to the database cannot have the key sent to another address, or used elsewhere.
    return Secret(
        json.dumps(
            {
                "schema": _DOCUMENT_SCHEMA,
                "workspace_id": new.workspace_id,
                "name": new.name,
                "provider": new.provider,
                "base_url": new.base_url,
                "api_key": api_key.reveal(),
            }
        )
    )


async def read_api_key(secrets: SecretStore, connection: Connection) -> Secret | None:
    """Returns the key of a connection, or None when its secret is gone: the connection has changed meanwhile.

    Raises:
        SecretDamagedError: The secret does not belong to this connection as it stands.
        Unavailable: The secret store is away.
    """
    path = connection_path(connection)
    if path is None:
        return Secret("")
    stored = await secrets.get(path)
    if stored is None:
        return None
    document = json.loads(stored.secret.reveal())
    for field in ("workspace_id", "name", "provider", "base_url"):
        if document[field] != getattr(connection, field):
            raise SecretDamagedError(f"the sealed {field} of a connection is not that of its row")
    return Secret(document["api_key"])


def _check_key(api_key: Secret) -> None:
    # No message here may hold a part of the key.
    value = api_key.reveal()
    if len(value) > MAX_KEY_CHARACTERS:
        raise InvalidArgument(
            "api_key is too long", field="api_key", description=f"expected at most {MAX_KEY_CHARACTERS} characters"
        )
    if value and (not value.isascii() or not value.isprintable() or " " in value):
        raise InvalidArgument(
            "api_key has characters that no header can carry",
            field="api_key",
            description="expected printable ASCII without spaces or line breaks, also at its ends",
        )


def _check_base_url(url: str) -> None:
    if url and not _is_plain_address(url):
        # The text is not repeated: it may hold a password.
        raise InvalidArgument(
            "base_url is not valid",
            field="base_url",
            description="expected http://host[:port][/path] or https://…, without user, query and fragment",
        )


def _is_plain_address(url: str) -> bool:
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or set(url) & set(' @\\?#<>"'):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
