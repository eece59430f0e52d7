"""What a session needs to know of an integration, and the seam to where that comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from holdfast.errors import InvalidArgument
from services.auth.connection_store import CredentialKind
from services.auth.integration_store import (
    Integration,
    IntegrationState,
    IntegrationStore,
    integration_disabled,
    integration_not_found,
)
from services.auth.oauth.tokens import OAuthApp
from services.auth.oauth_apps import OAuthApps
from services.auth.requests import is_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """An integration to which accounts are connected."""

    integration_id: str
    name: str
    app: OAuthApp
    scopes: tuple[str, ...] = ()
    """Always asked for; the provider's own choice when there are none."""
    agents: tuple[str, ...] = ()
    """May use its connections; empty means all."""
    resource: str | None = None
    """The server that the tokens are for (RFC 8707)."""
    is_accepted: bool = True
    """The provider is not known to refuse the integration itself."""

    @property
    def title(self) -> str:
        """The provider's name for people."""
        return self.app.provider.display_name

    def with_variables(self, variables: Mapping[str, str]) -> Target:
        """Returns the integration as one session uses it."""
        return replace(self, app=self.app.with_variables(variables))

    def scopes_with(self, *wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Returns all that is asked for, together with `wanted`."""
        asked = [self.scopes or self.app.provider.default_scopes, *wanted]
        return self.app.provider.with_mandatory_scopes(tuple(dict.fromkeys(scope for part in asked for scope in part)))


class Targets(Protocol):
    """Integrations of kind OAUTH2."""

    async def named(self, workspace_id: str, name: str) -> Target:
        """Returns the integration of the name.

        Raises:
            NotFound: There is none of the name (INTEGRATION_NOT_FOUND).
            FailedPrecondition: It is switched off (INTEGRATION_DISABLED).
            InvalidArgument: It is of another kind: nothing is connected there by signing in.
        """

    async def with_id(self, workspace_id: str, integration_id: str) -> Target:
        """Returns the integration of the id; raises as `named`."""

    async def report(self, target: Target, workspace_id: str, error: str) -> None:
        """Notes that the provider refuses the integration itself, such as `invalid_client`."""

    async def accept(self, target: Target, workspace_id: str) -> None:
        """Notes that the provider has accepted it."""


class IntegrationTargets:
    """`Targets` from the workspace's integrations.

    Args:
        store: Keeps them.
        apps: Builds their applications.
    """

    def __init__(self, store: IntegrationStore, apps: OAuthApps) -> None:
        self._store = store
        self._apps = apps

    async def named(self, workspace_id: str, name: str) -> Target:
        """See `Targets.named`."""
        return await self._target(await self._store.find_integration(workspace_id, name) if is_name(name) else None)

    async def with_id(self, workspace_id: str, integration_id: str) -> Target:
        """See `Targets.with_id`."""
        return await self._target(await self._store.get_integration(workspace_id, integration_id))

    async def report(self, target: Target, workspace_id: str, error: str) -> None:
        """See `Targets.report`."""
        await self._store.record_client_failure(workspace_id, target.integration_id, error)

    async def accept(self, target: Target, workspace_id: str) -> None:
        """See `Targets.accept`."""
        if not target.is_accepted:
            await self._store.record_client_success(workspace_id, target.integration_id)

    async def _target(self, found: Integration | None) -> Target:
        if found is None:
            raise integration_not_found()
        if found.kind is not CredentialKind.OAUTH2:
            raise InvalidArgument(
                f"{found.name} is of another kind: nothing is connected there by signing in",
                field="integration",
                description="expected an integration of kind OAUTH2",
            )
        if found.state is IntegrationState.DISABLED:
            raise integration_disabled(found.name)
        resource = found.discovered.get("metadata", {}).get("resource") or None
        return Target(
            integration_id=found.integration_id,
            name=found.name,
            app=await self._apps.oauth_app(found.workspace_id, found.integration_id),
            scopes=found.scopes,
            agents=found.agents,
            resource=resource,
            is_accepted=found.state is IntegrationState.ACTIVE,
        )
