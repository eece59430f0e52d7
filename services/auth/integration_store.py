"""Integrations as stored, and the contract of whatever stores them. Their client secrets are in a `SecretStore`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from holdfast.errors import AlreadyExists, FailedPrecondition, NotFound, Reason
from services.auth.connection_store import Connection, CredentialKind
from services.auth.store import Request


class IntegrationState(StrEnum):
    """Whether an integration works."""

    ACTIVE = "ACTIVE"
    MISCONFIGURED = "MISCONFIGURED"
    """The provider refuses the client itself; it is tried again, and one success makes it ACTIVE."""
    DISABLED = "DISABLED"
    DELETED = "DELETED"
    """Kept for a while without its name, because providers have to be told that its connections have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integration:
    """A workspace's application at a third party, without its secrets."""

    workspace_id: str
    integration_id: str
    name: str
    provider: str
    kind: CredentialKind
    client_id: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Checked values of the provider's variables that belong to integrations."""
    scopes: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    server_url: str = ""
    discovered: Mapping[str, Any] = field(default_factory=dict)
    """What the server said about itself, and how this client was registered there."""
    state: IntegrationState
    state_reason: str = ""
    secret_path: str | None = None
    """Where its client secrets lie, all in one document; None for kinds without."""
    client_secret_count: int = 0
    version: int = 1
    """From 1, one higher with each change."""
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return str(self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIntegration:
    """An integration that is to be stored."""

    workspace_id: str
    integration_id: str
    name: str
    provider: str
    kind: CredentialKind
    client_id: str
    variables: Mapping[str, str]
    scopes: tuple[str, ...]
    agents: tuple[str, ...]
    server_url: str
    discovered: Mapping[str, Any]
    secret_path: str | None
    """Written before, and announced with `announce_secret`."""
    client_secret_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrationChange:
    """What changes; None leaves a field as it is."""

    client_id: str | None = None
    variables: Mapping[str, str] | None = None
    scopes: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    is_disabled: bool | None = None
    client_secret_count: int | None = None
    """Set when the document of client secrets has been written anew."""

    @property
    def is_of_client(self) -> bool:
        """Tells whether the client itself changes, so that a refused one deserves another try."""
        return any(value is not None for value in (self.client_id, self.variables, self.client_secret_count))


def integration_exists(name: str) -> AlreadyExists:
    """Returns the error of a name that another integration holds."""
    return AlreadyExists(
        f"there is an integration {name!r} already",
        reason=Reason.INTEGRATION_EXISTS,
        metadata={"integration": name},
    )


def integration_not_found() -> NotFound:
    """Returns the one answer for an integration that is absent or foreign."""
    return NotFound("there is no such integration", reason=Reason.INTEGRATION_NOT_FOUND)


def integration_disabled(name: str) -> FailedPrecondition:
    """Returns the error of a use of an integration that an admin has switched off."""
    return FailedPrecondition(
        f"the integration {name!r} is disabled",
        reason=Reason.INTEGRATION_DISABLED,
        metadata={"integration": name},
    )


class IntegrationStore(Protocol):
    """Integrations. Transactions, errors, `request` and audit are as in `AuthStore`.

    A deleted integration is found by no method but `get_integration` with `even_deleted`: providers may still have to
    be told about its connections, with its client secret.
    """

    async def create_integration(
        self, new: NewIntegration, *, actor: str, request: Request | None
    ) -> tuple[Integration, bool]:
        """Stores an integration that takes the announced secret; returns it, and whether it is new.

        Raises:
            AlreadyExists: The name is taken (INTEGRATION_EXISTS).
            Unavailable: The announced secret was given up as a stray; it has to be written again.
        """

    async def find_answered_integration(self, workspace_id: str, request: Request) -> Integration | None:
        """Returns the answer to an earlier call with this request, or None."""

    async def get_integration(
        self, workspace_id: str, integration_id: str, *, even_deleted: bool = False
    ) -> Integration | None:
        """Returns the integration of the id, or None."""

    async def find_integration(self, workspace_id: str, name: str) -> Integration | None:
        """Returns the integration of the name, or None."""

    async def list_integrations(self, workspace_id: str, *, limit: int, after: str | None) -> list[Integration]:
        """Returns up to `limit` integrations in the order of their names, after the given one."""

    async def update_integration(
        self,
        workspace_id: str,
        integration_id: str,
        change: IntegrationChange,
        *,
        version: int | None,
        actor: str,
        request: Request | None,
    ) -> Integration | None:
        """Changes an integration and returns it; None when there is none.

        A change of the client itself makes a MISCONFIGURED integration ACTIVE: it deserves another try.

        Raises:
            Conflict: `version` is given and is not the current one.
        """

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """Notes that the provider refuses the client itself. Ignored unless it is ACTIVE or MISCONFIGURED."""

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """Notes that the provider has accepted the client: MISCONFIGURED becomes ACTIVE."""

    async def revoke_connections_of(
        self, workspace_id: str, integration_id: str, *, limit: int, actor: str
    ) -> list[Connection]:
        """Revokes up to `limit` connections of the integration and returns them as they were."""

    async def delete_integration(
        self, workspace_id: str, integration_id: str, *, actor: str, request: Request | None, revoked_connections: int
    ) -> int | None:
        """Deletes a disabled integration whose connections are all revoked, and frees its name.

        Returns:
            `revoked_connections`, or those of the stored answer; None when there is no such integration.

        Raises:
            Conflict: It has a connection that is not revoked, or was enabled meanwhile.
        """

    async def find_answered_deletion(self, workspace_id: str, request: Request) -> int | None:
        """Returns the answer to an earlier `delete_integration` with this request, or None."""

    async def purge_deleted_integrations(self, *, limit: int) -> list[str]:
        """Removes deleted integrations about whose connections no provider has to be told any more.

        Returns:
            Paths of their secrets, which are condemned strays now.
        """
