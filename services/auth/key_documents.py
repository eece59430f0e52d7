"""How an API key or a password lies in the secret store: as one document with all that says where it may be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.auth.connection_store import SHARED, Connection, NewConnection
from services.auth.secret_paths import connection_path
from services.auth.secrets import Secret, SecretDamagedError, SecretStore

API_KEY: Final = "api_key"
USERNAME: Final = "username"
PASSWORD: Final = "password"

_DOCUMENT_SCHEMA: Final = 1
_BOUND: Final = ("workspace_id", "user_id", "name", "provider", "base_url")


@dataclass(frozen=True, slots=True, eq=False)
class KeyDocument:
    """A key or password as stored."""

    values: Mapping[str, Secret]
    """By the names of the provider's fields, or `api_key`, or `username` and `password`."""
    api_key: Secret
    """The key, or the password: what the fingerprint is of. Empty for a server that wants none."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of the provider's variables: they say where it may be sent."""


def key_document(new: NewConnection, values: Mapping[str, Secret], api_key: Secret) -> Secret:
    """Returns the document of a connection's key."""
    # Sealed as one: whoever can write to the database cannot have the key sent to another address, or used elsewhere.
    return Secret(
        json.dumps(
            {
                "schema": _DOCUMENT_SCHEMA,
                **{name: getattr(new, name) for name in _BOUND},
                "api_key": api_key.reveal(),
                "values": {name: value.reveal() for name, value in values.items()},
                "variables": dict(new.variables),
            }
        )
    )


async def read_key_document(secrets: SecretStore, connection: Connection) -> KeyDocument | None:
    """Returns the key of a connection, or None when its secret is gone: the connection has changed meanwhile.

    Raises:
        SecretDamagedError: The secret does not belong to this connection as it stands.
        Unavailable: The secret store is away.
    """
    path = connection_path(connection)
    if path is None:
        return KeyDocument({API_KEY: Secret("")}, Secret(""))
    stored = await secrets.get(path)
    if stored is None:
        return None
    document: dict[str, Any] = {"user_id": SHARED, **json.loads(stored.secret.reveal())}
    for name in _BOUND:
        if document.get(name) != getattr(connection, name):
            raise SecretDamagedError(f"the sealed {name} of a connection is not that of its row")
    api_key = Secret(document["api_key"])
    # Documents of an earlier release have the key alone.
    values = document.get("values") or {API_KEY: document["api_key"]}
    variables = document.get("variables", {})
    return KeyDocument({name: Secret(value) for name, value in values.items()}, api_key, variables)
