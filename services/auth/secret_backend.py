"""Which keeper of secrets the service has: its own database, or Vault. The settings decide, nothing else knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from services.auth.envelopes import Envelopes
from services.auth.envelopes_embedded import EmbeddedEnvelopes
from services.auth.envelopes_moved import MovedEnvelopes
from services.auth.keyring import Keyring
from services.auth.secrets import SecretStore
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import StorageSettings
from services.auth.vault.backend import open_vault
from services.shared.clock import Clock
from services.shared.database import Database

READ_HEALTH: Final = "auth.read"
"""Name in grpc.health.v1 of what goes on while the secret store is away: credentials that are remembered."""
WRITE_HEALTH: Final = "auth.refresh"
"""Name of what does not: new connections, refreshes, everything that is written."""

Listener = Callable[[bool], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SecretBackend:
    """The keeper of secrets and keys."""

    secrets: SecretStore
    envelopes: Envelopes
    watch: Callable[[Listener], Coroutine[Any, Any, None]]
    """Tells whether it can be written to, at first and at each change; goes on as long as there can be changes."""


@asynccontextmanager
async def open_secret_backend(
    settings: StorageSettings, db: Database, keyring: Keyring, clock: Clock
) -> AsyncIterator[SecretBackend]:
    """Opens the keeper of secrets that the settings name. Vault may be away: it is used when it is there."""
    if settings.secret_store == "vault":
        async with open_vault(settings.vault_address, settings.vault_login, settings.vault_mounts, clock) as vault:
            envelopes = MovedEnvelopes(vault.envelopes, EmbeddedEnvelopes(db, keyring))
            yield SecretBackend(vault.secrets, envelopes, vault.watch)
        return

    async def watch(on_change: Listener) -> None:
        # The database has no health of its own here: a call that cannot reach it says so.
        await on_change(True)

    yield SecretBackend(EmbeddedSecretStore(db, keyring), EmbeddedEnvelopes(db, keyring), watch)
