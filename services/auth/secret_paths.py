"""Where secrets lie in a `SecretStore`. A path says whose a secret is, and names nobody."""

from __future__ import annotations

import hashlib
from typing import Final

from holdfast.ids import new_uuid7
from services.auth.connection_store import SHARED, Connection
from services.auth.secrets import SecretDamagedError

_USER_DIGITS: Final = 32


def new_connection_path(workspace_id: str, user_id: str) -> str:
    """Returns a path that nobody has used, for the secret of a connection of the user, or of a shared one."""
    return f"{_folder(workspace_id, user_id)}{new_uuid7()}"


def connection_path(connection: Connection) -> str | None:
    """Returns where the secret of a connection lies, None when it has none.

    Raises:
        SecretDamagedError: The row refers to a secret of another workspace or user: it was altered.
    """
    path = connection.secret_path
    if path is not None and not path.startswith(_folder(connection.workspace_id, connection.user_id)):
        raise SecretDamagedError("a connection refers to a secret of somebody else")
    return path


def integration_path(workspace_id: str, integration_id: str) -> str:
    """Returns where the client secrets of an integration lie, all in one document."""
    return f"app/ws/{workspace_id}/i/{integration_id}"


def _folder(workspace_id: str, user_id: str) -> str:
    if user_id == SHARED:
        return f"ws/{workspace_id}/shared/c/"
    # A user's id is often an e-mail address, and whoever lists the store reads paths.
    digest = hashlib.sha256(f"{workspace_id}|{user_id}".encode()).hexdigest()[:_USER_DIGITS]
    return f"ws/{workspace_id}/u/{digest}/c/"
