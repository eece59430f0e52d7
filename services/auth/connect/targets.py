"""What a session needs to know of an integration, and the seam to where that comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.auth.oauth.tokens import OAuthApp


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

    @property
    def title(self) -> str:
        """The provider's name for people."""
        return self.app.provider.display_name

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
