"""What auth's rules keep, and the contract of whatever keeps it. Secrets are elsewhere: in a `SecretStore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A tenant."""

    workspace_id: str
    name: str
    create_time: datetime
    close_time: datetime | None = None
    """When nothing new might begin in it any more; None while it is open."""
    delete_time: datetime | None = None
    """When what auth had of it was deleted."""
    seals_payloads: bool | None = None
    """Its choice about sealing what is said in it; None leaves it to the installation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key without its secret."""

    workspace_id: str
    api_key_id: str
    display_name: str
    scopes: tuple[str, ...]
    """In alphabetical order."""
    create_time: datetime
    expire_time: datetime | None = None
    revoke_time: datetime | None = None
    last_use_time: datetime | None = None
    networks: tuple[str, ...] = ()
    """Where it may be used from, as CIDR; empty means everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """An API key that is to be stored."""

    workspace_id: str
    api_key_id: str
    display_name: str
    scopes: tuple[str, ...]
    digest: bytes
    expire_time: datetime | None
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundApiKey:
    """What the verification of a key needs, read at one moment."""

    key: ApiKey
    digest: bytes
    now: datetime
    """The storage's time: all replicas agree on when a key ends."""


@dataclass(frozen=True, slots=True)
class Request:
    """An idempotent request: the same id, method and content is answered the same."""

    request_id: str
    method: str
    fingerprint: str


INSTALLATION_ID: Final = "00000000-0000-0000-0000-000000000000"
"""In the place of a workspace's id: the trail of the installation itself, which has what belongs to no workspace."""


class Action(StrEnum):
    """What an audit record is about."""

    WORKSPACE_CREATED = "workspace.create"
    PAYLOAD_SEALING_SET = "workspace.seal"
    USER_ERASED = "user.erase"
    WORKSPACE_CLOSED = "workspace.close"
    WORKSPACE_DELETED = "workspace.delete"
    API_KEY_CREATED = "api_key.create"
    API_KEY_REVOKED = "api_key.revoke"
    API_KEY_REFUSED = "api_key.refuse"
    TOKEN_REFUSED = "token.refuse"
    CONNECTION_CREATED = "connection.create"
    CONNECTION_REPLACED = "connection.replace"
    CONNECTION_REVOKED = "connection.revoke"
    CONNECTION_ROTATED = "connection.rotate"
    CONNECTION_STATE_CHANGED = "connection.state"
    CONNECT_STARTED = "connect.start"
    CONNECT_ENDED = "connect.end"
    CONNECTION_UPDATED = "connection.update"
    INTEGRATION_CREATED = "integration.create"
    INTEGRATION_UPDATED = "integration.update"
    INTEGRATION_DELETED = "integration.delete"
    CREDENTIAL_RESOLVED = "credential.resolve"
    AUDIT_EXPORTED = "audit.export"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialUse:
    """One use of a credential, or the refusal of one, as the audit keeps it."""

    record_id: str
    workspace_id: str
    time: datetime
    actor: str
    outcome: str
    """`OK`, or the reason of the refusal."""
    connection: str
    connection_id: str | None
    fingerprint: str | None
    run_id: str
    step: int
    tool: str | None = None
    """The tool that uses it; None for a model."""
    host: str | None = None
    """Where it goes, as `https://host[:port]`."""
    user_id: str | None = None
    """The user on whose behalf."""
    details: Mapping[str, str] | None = None
    """What else belongs to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """Credentials of callers that were refused within one minute, from one place and for one reason."""

    record_id: str
    workspace_id: str
    """Whose key it was, or `INSTALLATION_ID`."""
    time: datetime
    action: Action
    api_key_id: str | None
    """The key; None for what no workspace has."""
    outcome: str
    """The reason of the refusal."""
    details: Mapping[str, str]
    """`count`, `source` and `why`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One line of the audit, as stored."""

    workspace_id: str
    seq: int
    """Dense from 1 in each workspace."""
    record_id: str
    time: datetime
    actor: str
    action: str
    outcome: str
    api_key_id: str | None = None
    connection: str | None = None
    connection_id: str | None = None
    fingerprint: str | None = None
    run_id: str | None = None
    step: int | None = None
    tool: str | None = None
    host: str | None = None
    user_id: str | None = None
    details: str | None = None
    """JSON object of texts."""
    previous_hash: bytes | None = None
    """Hash of the record before it; None in a record from before there was a chain."""
    hash: bytes | None = None
    """As `holdfast.audit_chain` says."""


class AuthStore(Protocol):
    """Auth's own data.

    Each method is one transaction: it happens as a whole or not at all, and has returned only when it is durable.
    Every method raises `Unavailable` (STORAGE_UNAVAILABLE) while the storage is away, and those that write
    `ResourceExhausted` (STORAGE_FULL) when it is full. Times are the storage's. What changes something also appends
    its audit record, with the given `actor`, in the same transaction.

    A method that takes a `request` stores its answer under the request's id. When the id is known already, nothing is
    changed: the same method and fingerprint get the stored answer, others `InvalidArgument` (REQUEST_ID_REUSED). Of
    several at the same time, one is executed and the others get its answer.
    """

    async def ensure_workspace(self, name: str, *, workspace_id: str, actor: str) -> Workspace:
        """Returns the workspace of the name; makes it, with the given id, when there is none."""

    async def find_workspace(self, name: str) -> Workspace | None:
        """Returns the workspace of the name, or None."""

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """Returns the workspace, or None."""

    async def get_sealing(self, workspace_ids: Sequence[str]) -> dict[str, bool | None]:
        """Returns `Workspace.seals_payloads` of those workspaces that exist."""

    async def set_sealing(self, workspace_id: str, seals_payloads: bool | None, *, actor: str) -> Workspace:
        """Stores a workspace's choice and returns the workspace; what is stored already is no change.

        Raises:
            NotFound: There is no such workspace.
            FailedPrecondition: It is closed (WORKSPACE_CLOSED).
        """

    async def close_workspace(self, name: str, *, actor: str) -> Workspace | None:
        """Closes the workspace of the name and revokes its API keys, in one transaction; None when there is none.

        What would give it something new afterwards is refused (WORKSPACE_CLOSED).
        """

    async def forget_user(self, workspace_id: str, user_id: str, *, actor: str) -> int:
        """Deletes what is stored of a user's revoked connections and of the user's sign-ins; returns how many
        connections there were."""

    async def forget_workspace(self, workspace_id: str, *, actor: str) -> Workspace:
        """Deletes the rows of a closed workspace, but for itself, its revoked keys and its audit records."""

    async def find_api_key(self, api_key_id: str) -> FoundApiKey | None:
        """Returns the key of the id, in whichever workspace; revoked and expired ones too. None when there is none."""

    async def create_api_key(self, new: NewApiKey, *, actor: str, request: Request | None) -> tuple[ApiKey, bool]:
        """Stores a key, and returns it and whether it is new rather than an earlier answer.

        Raises:
            AlreadyExists: The id is taken.
        """

    async def list_api_keys(self, workspace_id: str, *, limit: int, after: tuple[datetime, str] | None) -> list[ApiKey]:
        """Returns up to `limit` keys of the workspace, newest first, that come after the given time and id."""

    async def revoke_api_key(
        self, workspace_id: str, api_key_id: str, *, actor: str, request: Request | None
    ) -> ApiKey | None:
        """Revokes a key and returns it; one that is revoked already keeps its time. None when there is none."""

    async def record_key_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        """Notes when keys (workspace, id) were last used. A time before the stored one is ignored."""

    async def find_answered_api_key(self, workspace_id: str, request: Request) -> ApiKey | None:
        """Returns the answer to an earlier `create_api_key` with this request, or None."""

    async def append_credential_uses(self, uses: Sequence[CredentialUse]) -> None:
        """Appends audit records in the given order. One whose `record_id` is stored already is skipped, and so is one
        of a workspace that does not exist."""

    async def append_refusals(self, refusals: Sequence[Refusals]) -> None:
        """Appends audit records; skips as `append_credential_uses`. The installation's trail begins with its first."""

    async def list_audit_records(self, workspace_id: str, *, limit: int, after_seq: int) -> list[AuditRecord]:
        """Returns up to `limit` audit records of the workspace in their order, after the given number."""

    async def forget_requests(self, *, older_than_seconds: float) -> int:
        """Forgets the answers to old requests and returns how many."""
