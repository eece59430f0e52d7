"""Tells providers that grants have ended (RFC 7009), before their tokens are deleted."""

from __future__ import annotations

import json
from typing import Final

from holdfast.errors import FailedPrecondition, NotFound
from services.auth.connection_store import Stray
from services.auth.integration_store import IntegrationStore
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth.tokens import TokenSet
from services.auth.oauth_apps import OAuthApps
from services.auth.secrets import SecretDamagedError, SecretStore
from services.shared.telemetry import get_logger

_HEALING: Final = frozenset(
    {RefusalKind.TRANSIENT, RefusalKind.UNKNOWN_OUTCOME, RefusalKind.MALFORMED, RefusalKind.INTEGRATION}
)

log = get_logger(__name__)


class Revocations:
    """`Revoker` that speaks OAuth. Also for connections whose integration has been deleted since.

    Args:
        store: Keeps the integrations.
        apps: Builds their applications.
        client: Speaks to the providers.
        secrets: Keeps the tokens.
    """

    def __init__(self, store: IntegrationStore, apps: OAuthApps, client: OAuthClient, secrets: SecretStore) -> None:
        self._store = store
        self._apps = apps
        self._client = client
        self._secrets = secrets

    async def tell(self, stray: Stray) -> bool:
        """See `Revoker.tell`."""
        assert stray.workspace_id is not None
        assert stray.integration_id is not None
        integration = await self._store.get_integration(stray.workspace_id, stray.integration_id, even_deleted=True)
        if integration is None:
            return True
        try:
            stored = await self._secrets.get(stray.path)
            app = await self._apps.build(integration)
        except (NotFound, FailedPrecondition, SecretDamagedError):
            # Without the tokens, the provider's data or the client's secret nothing can be said, now or later.
            return True
        if stored is None:
            return True
        spec = app.provider.oauth
        if spec is None or not self._client.can_revoke(app):
            return True
        try:
            tokens = TokenSet.from_document(json.loads(stored.secret.reveal()))
            await self._client.revoke(app, tokens)
        except ValueError:
            return True
        except TokenRefused as refused:
            log.info("provider_not_told", provider=app.provider.slug, refusal=refused.kind.value, error=refused.error)
            return refused.kind not in _HEALING
        return True
