"""A credential for one call of one run: the right is checked, the value found, put into form and recorded (P8, P11).

Three things have to agree before a value leaves: the executor that asks (by the access table), the run's signed grant,
and the connection as it stands now. Whoever cannot use a connection is answered as if there were none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from holdfast.errors import (
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    PermissionDenied,
    Reason,
)
from holdfast.ids import is_uuid, new_uuid7
from services.auth.audit import AuditTrail
from services.auth.connection_choice import Choice, ConnectionChoices
from services.auth.connection_news import covers
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore, CredentialKind
from services.auth.connections import connection_not_found
from services.auth.grants import GrantedConnection, RunGrant, RunGrants
from services.auth.injection import Injected, injected_fields, targets_of
from services.auth.requests import is_name
from services.auth.secret_cache import SecretCache
from services.auth.secrets import Secret
from services.auth.store import CredentialUse
from services.shared.auth_failure_signals import AuthFailureSignal
from services.shared.clock import Clock
from services.shared.egress import EgressRule

DEFAULT_MIN_VALID: Final = timedelta(seconds=30)
MAX_USES: Final = 500

_OAUTH: Final = (CredentialKind.OAUTH2, CredentialKind.CLIENT_CREDENTIALS)
_TARGET: Final = re.compile(r"https?://[\x21-\x7e]{1,300}")


class Token(Protocol):
    """A token as it is good for now."""

    @property
    def secret(self) -> Secret: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def expire_time(self) -> datetime | None: ...
    @property
    def extra(self) -> Mapping[str, str]: ...


class TokenSource(Protocol):
    """Hands out the tokens of OAuth connections, renewed where needed."""

    async def get(
        self, connection: Connection, *, min_valid_for: timedelta, rejected_fingerprint: str | None = None
    ) -> Token:
        """Returns a token that is good for `min_valid_for`, other than the one that was rejected.

        Raises:
            FailedPrecondition: The user has to connect again (CONNECTION_NEEDS_REAUTH).
            Unavailable: There is none now (CREDENTIAL_UNAVAILABLE, STORAGE_UNAVAILABLE).
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the executor asks for; see `ResolveCredentialRequest`."""

    workspace_id: str
    connection: str
    run_id: str
    step: int
    run_grant: str = field(repr=False)
    tool: str = ""
    target: str = ""
    method: str = ""
    scopes: tuple[str, ...] = ()
    min_valid_for: timedelta = DEFAULT_MIN_VALID
    rejected_fingerprint: str = ""
    is_raw: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A third party's credential with all that is needed to use it once."""

    connection: Connection
    secret: Secret
    fingerprint: str
    expire_time: datetime | None = None
    injected: Sequence[Injected] = ()
    targets: Sequence[EgressRule] = ()
    signals: Sequence[AuthFailureSignal] = ()
    """How the provider says that it is over."""


class Credentials:
    """Resolves connections to credentials; every use is recorded before the credential is handed out.

    Args:
        connections: Is told when they were used.
        choices: Which connection is meant, how its credential is sent, and where.
        secrets: Keys and passwords, remembered for seconds.
        tokens: Tokens of OAuth connections.
        grants: Checks the runs' rights.
        audit: Takes the records.
        clock: The time of uses.
    """

    def __init__(
        self,
        connections: ConnectionStore,
        choices: ConnectionChoices,
        secrets: SecretCache,
        tokens: TokenSource,
        grants: RunGrants,
        audit: AuditTrail,
        clock: Clock,
    ) -> None:
        self._connections = connections
        self._choices = choices
        self._secrets = secrets
        self._tokens = tokens
        self._grants = grants
        self._audit = audit
        self._clock = clock
        # Connections (workspace, id) that were used since the last write, to the minute.
        self._uses: dict[tuple[str, str], datetime] = {}

    async def resolve(self, request: Request, *, actor: str) -> Credential:
        """Returns the credential for one step of a run.

        Raises:
            InvalidArgument: It is not said for which step of which run.
            PermissionDenied: The run, its agent or the target may not have it.
            NotFound: The run's user and the workspace have no such connection.
            FailedPrecondition: It cannot be used until somebody does something.
            Unavailable: The store cannot be read, the token not renewed, or the use not recorded.
        """
        _check(request)
        await self._audit.admit()
        use = CredentialUse(
            record_id=new_uuid7(),
            workspace_id=request.workspace_id,
            time=self._clock.now(),
            actor=actor,
            outcome="OK",
            connection=request.connection,
            connection_id=None,
            fingerprint=None,
            run_id=request.run_id,
            step=request.step,
            tool=request.tool or None,
            host=request.target or None,
        )
        try:
            grant = self._grants.verify(request.run_grant, workspace_id=request.workspace_id, run_id=request.run_id)
            use = replace(use, user_id=grant.user_id or None)
            granted = _granted(grant, request)
            chosen = await self._choose(grant, request.connection)
            use = replace(use, connection_id=chosen.connection.connection_id)
            credential = await self._credential(chosen, granted, request)
        except HoldfastError as error:
            self._audit.record(replace(use, outcome=error.reason))
            raise
        self._audit.record(replace(use, fingerprint=credential.fingerprint or None))
        minute = use.time.replace(second=0, microsecond=0)
        self._uses[request.workspace_id, chosen.connection.connection_id] = minute
        return credential

    async def record(self, uses: Sequence[CredentialUse]) -> None:
        """Takes the records of uses that an executor made of what it remembered.

        Raises:
            InvalidArgument: There are too many.
            Unavailable: They cannot be recorded now.
        """
        if len(uses) > MAX_USES:
            raise InvalidArgument("too many records", field="uses", description=f"at most {MAX_USES}")
        await self._audit.admit()
        for use in uses:
            self._audit.record(use)

    async def write_uses(self) -> None:
        """Stores when connections were last used; called every few seconds.

        Raises:
            Unavailable: The storage is away; it is done later.
        """
        uses = dict(self._uses)
        await self._connections.record_connection_uses([(*key, minute) for key, minute in uses.items()])
        for key, minute in uses.items():
            if self._uses.get(key) == minute:
                del self._uses[key]

    async def _choose(self, grant: RunGrant, name: str) -> Choice:
        choice = await self._choices.choose(grant.workspace_id, grant.user_id, name)
        integration = choice.integration
        for agents in (choice.connection.agents, integration.agents if integration is not None else ()):
            if agents and grant.agent not in agents:
                # As if there were none: what other agents have is none of this one's business.
                raise connection_not_found()
        return choice

    async def _credential(self, chosen: Choice, granted: GrantedConnection, request: Request) -> Credential:
        connection = chosen.connection
        if connection.state is ConnectionState.DISABLED:
            raise connection_not_found()
        missing = _missing_scopes(connection, request.scopes or granted.scopes)
        if missing:
            raise FailedPrecondition(
                f"the connection {connection.name!r} lacks permissions: {' '.join(missing)}",
                reason=Reason.SCOPE_INSUFFICIENT,
                metadata={"connection": connection.name, "scopes": " ".join((*connection.scopes, *missing))},
            )
        if request.is_raw and not connection.allow_raw_token:
            raise PermissionDenied(
                f"the connection {connection.name!r} does not allow its secret to be handed out",
                reason=Reason.RAW_TOKEN_NOT_ALLOWED,
            )
        expire_time = None
        values: dict[str, str | Secret] = dict(chosen.integration.variables) if chosen.integration is not None else {}
        if connection.kind in _OAUTH:
            token = await self._tokens.get(
                connection,
                min_valid_for=request.min_valid_for,
                rejected_fingerprint=request.rejected_fingerprint or None,
            )
            secret, fingerprint, expire_time = token.secret, token.fingerprint, token.expire_time
            values |= {**token.extra, "access_token": secret}
        else:
            document = await self._secrets.get(connection)
            secret, fingerprint = document.api_key, connection.fingerprint
            values |= {**document.variables, **document.values}
        targets = targets_of(chosen.provider, connection, values)
        # A model's request goes to the connection's own address; what a tool's does is said, and looked at here too.
        if request.target and not any(_reaches(rule, request) for rule in targets):
            raise PermissionDenied(
                f"the credential of {connection.name!r} may not be sent to this address",
                reason=Reason.HOST_NOT_ALLOWED,
                metadata={"connection": connection.name},
            )
        return Credential(
            connection,
            secret,
            fingerprint,
            expire_time,
            injected_fields(chosen.provider, connection, values),
            targets,
            () if chosen.provider is None else chosen.provider.auth_failure_signals,
        )


def _check(request: Request) -> None:
    if not is_uuid(request.run_id):
        raise InvalidArgument("run_id is required", field="run_id", description="expected the id of a run")
    if request.step < 0:
        raise InvalidArgument("step is negative", field="step", description="expected 0 or more")
    if request.target and _TARGET.fullmatch(request.target) is None:
        raise InvalidArgument("target is no address", field="target", description="expected https://host[:port]")
    if not is_uuid(request.workspace_id) or not is_name(request.connection):
        raise connection_not_found()


def _granted(grant: RunGrant, request: Request) -> GrantedConnection:
    granted = grant.connection(request.connection)
    if granted is None:
        raise PermissionDenied(
            f"the agent did not declare the connection {request.connection!r} when the run was started",
            reason=Reason.CONNECTION_NOT_GRANTED,
        )
    beyond = set(request.scopes) - set(granted.scopes) if granted.scopes else set()
    if beyond:
        raise PermissionDenied(
            f"the agent did not declare these permissions: {' '.join(sorted(beyond))}",
            reason=Reason.CONNECTION_NOT_GRANTED,
        )
    return granted


def _missing_scopes(connection: Connection, wanted: Sequence[str]) -> tuple[str, ...]:
    # A provider that never said what it granted is asked; its refusal then names what is missing.
    if covers(connection, wanted):
        return ()
    return tuple(scope for scope in wanted if scope not in connection.scopes)


def _reaches(rule: EgressRule, request: Request) -> bool:
    """Tells whether a rule may allow a request to the target; its path is looked at where the request is made."""
    at_root = replace(rule, path_prefix="/", methods=rule.methods if request.method else frozenset())
    return at_root.allows(f"{request.target}/", request.method or "GET")
