"""A workspace's application as one request to its provider needs it: provider's data, client id, and client secrets."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from holdfast.errors import FailedPrecondition, Reason
from services.auth.discovered import described
from services.auth.integration_store import (
    Integration,
    IntegrationState,
    IntegrationStore,
    integration_disabled,
    integration_not_found,
)
from services.auth.oauth.tokens import OAuthApp
from services.auth.providers import Provider, ProviderCatalog
from services.auth.secret_paths import integration_path
from services.auth.secrets import Secret, SecretDamagedError, SecretStore
from services.shared.clock import Clock

CACHE_SECONDS: Final = 5.0
"""How long another replica may use a client that was changed or disabled here. This process stops at once."""

_CACHE_ENTRIES: Final = 1024
_DOCUMENT_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class ClientSecrets:
    """The client secrets of an integration, the one to try first in front, and their version in the secret store."""

    secrets: tuple[Secret, ...]
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    ends_at: float
    app: OAuthApp
    is_working: bool


class OAuthApps:
    """Builds `OAuthApp`s from integrations.

    Args:
        store: Keeps the integrations.
        secrets: Keeps their client secrets.
        catalog: The providers.
        clock: For the cache.
    """

    def __init__(self, store: IntegrationStore, secrets: SecretStore, catalog: ProviderCatalog, clock: Clock) -> None:
        self._store = store
        self._secrets = secrets
        self._catalog = catalog
        self._clock = clock
        self._cache: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._changes = 0
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Has `listener` told each workspace of which an integration has changed here."""
        self._listeners.append(listener)

    async def oauth_app(self, workspace_id: str, integration_id: str) -> OAuthApp:
        """Returns the application of an integration that is not disabled.

        Raises:
            NotFound: There is no such integration (INTEGRATION_NOT_FOUND).
            FailedPrecondition: It is disabled (INTEGRATION_DISABLED), or its provider is not known any more
                (PROVIDER_UNKNOWN).
            Unavailable: A store is away.
        """
        key = (workspace_id, integration_id)
        entry = self._cache.get(key)
        if entry is not None and entry.ends_at > self._clock.monotonic():
            return entry.app
        changes, started = self._changes, self._clock.monotonic()
        integration = await self._store.get_integration(workspace_id, integration_id)
        if integration is None:
            raise integration_not_found()
        if integration.state is IntegrationState.DISABLED:
            raise integration_disabled(integration.name)
        app = await self.build(integration)
        # A change during the reading stops what was read from being remembered after it.
        if changes == self._changes:
            is_working = integration.state is IntegrationState.ACTIVE
            self._cache[key] = _Entry(started + CACHE_SECONDS, app, is_working)
            self._cache.move_to_end(key)
            if len(self._cache) > _CACHE_ENTRIES:
                self._cache.popitem(last=False)
        return app

    async def build(self, integration: Integration) -> OAuthApp:
        """Returns the application of an integration in whatever state.

        Raises:
            FailedPrecondition: Its provider is not known any more (PROVIDER_UNKNOWN).
            Unavailable: The secret store is away.
        """
        held = await self.read_secrets(integration)
        return OAuthApp(self.provider_of(integration), integration.client_id, held.secrets, integration.variables)

    def provider_of(self, integration: Integration) -> Provider:
        """Returns the data of the integration's provider.

        Raises:
            FailedPrecondition: It is not known any more (PROVIDER_UNKNOWN).
        """
        provider = self._catalog.get(integration.provider)
        if provider is None:
            raise FailedPrecondition(
                f"the provider {integration.provider!r} of the integration {integration.name!r} is not known any more",
                reason=Reason.PROVIDER_UNKNOWN,
                metadata={"provider": integration.provider},
            )
        return described(provider, integration.discovered)

    async def read_secrets(self, integration: Integration) -> ClientSecrets:
        """Returns the client secrets of an integration, none for a kind without.

        Raises:
            SecretDamagedError: They do not belong to this integration.
            Unavailable: The secret store is away.
        """
        if integration.secret_path is None:
            return ClientSecrets((), 0)
        if integration.secret_path != integration_path(integration.workspace_id, integration.integration_id):
            raise SecretDamagedError("an integration refers to a secret of another one")
        stored = await self._secrets.get(integration.secret_path)
        if stored is None:
            # Deleted meanwhile.
            raise integration_not_found()
        document: dict[str, Any] = json.loads(stored.secret.reveal())
        for field in ("workspace_id", "integration_id", "provider"):
            if document[field] != getattr(integration, field):
                raise SecretDamagedError(f"the sealed {field} of an integration is not that of its row")
        return ClientSecrets(tuple(Secret(value) for value in document["client_secrets"]), stored.version)

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """Notes that the provider refuses the client itself; see `IntegrationStore.record_client_failure`."""
        await self._store.record_client_failure(workspace_id, integration_id, reason)
        self.forget(workspace_id, integration_id)

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """Notes that the provider has accepted the client; most often that is known, and nothing is written."""
        entry = self._cache.get((workspace_id, integration_id))
        if entry is None or not entry.is_working:
            await self._store.record_client_success(workspace_id, integration_id)
            self.forget(workspace_id, integration_id)

    def forget(self, workspace_id: str, integration_id: str) -> None:
        """Drops what is remembered of an integration; called when it has changed."""
        self._changes += 1
        self._cache.pop((workspace_id, integration_id), None)
        for listener in self._listeners:
            listener(workspace_id)


def secrets_document(workspace_id: str, integration_id: str, provider: str, secrets: Sequence[Secret]) -> Secret:
    """Returns the document of client secrets, sealed as one with whose they are and where they may be sent."""
    return Secret(
        json.dumps(
            {
                "schema": _DOCUMENT_SCHEMA,
                "workspace_id": workspace_id,
                "integration_id": integration_id,
                "provider": provider,
                "client_secrets": [secret.reveal() for secret in secrets],
            }
        )
    )
