"""Credentials for the calls of runs: asked of auth, remembered for seconds, put into a request at the last hop (P8).

What is remembered belongs to one run and one target. Each use is recorded by auth: a fresh one when it is resolved, a
remembered one by a report that follows within a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from holdfast.api.auth.v1 import connect_service_pb2 as connect_pb2
from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from services.executor.credential_uses import CredentialUses
from services.executor.models.protocol import Credential
from services.executor.run_grants import RunGrants
from services.shared.auth_failure_signals import AuthFailureSignal
from services.shared.channels import calling
from services.shared.clock import Clock, SystemClock
from services.shared.egress import EgressRule
from services.shared.scrubber import PROCESS
from services.shared.telemetry import get_logger

TTL_SECONDS: Final = 5.0
"""How long a replaced or revoked credential may still be used."""

_DEADLINE_SECONDS: Final = 35.0  # A refresh at a slow provider is waited for.
_MAX_ENTRIES: Final = 4_096

CONNECTION_MISSING: Final = "connection_missing"
NEEDS_REAUTH: Final = "needs_reauth"
SCOPE_INSUFFICIENT: Final = "scope_insufficient"
REJECTED: Final = "credential_rejected"
CREDENTIAL_REJECTED: Final = "CREDENTIAL_REJECTED"
"""Reason of a failure: the other side refuses the credential, and there is no newer one."""

_SIGN_IN_REASONS: Final[Mapping[str, str]] = {
    Reason.CONNECTION_NOT_FOUND: CONNECTION_MISSING,
    Reason.CONNECTION_NEEDS_REAUTH: NEEDS_REAUTH,
    Reason.SCOPE_INSUFFICIENT: SCOPE_INSUFFICIENT,
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a step needs a credential for.

    Attributes:
        workspace_id: The workspace of the run.
        run_id: The run.
        user_id: On whose behalf it acts; may be empty.
        step: The step.
        connection: Name of the connection or integration, as the agent declares it.
        tool: The tool; empty for the model.
        target: Where the request goes, as `https://host[:port]`; empty for the connection's own address.
        method: The request's method.
        scopes: Permissions that the tool needs.
        is_raw: A worker is handed the secret itself.
    """

    workspace_id: str
    run_id: str
    user_id: str
    step: int
    connection: str
    tool: str = ""
    target: str = ""
    method: str = ""
    scopes: tuple[str, ...] = ()
    is_raw: bool = False


class CredentialMissing(Exception):
    """There is no credential for a step now.

    Attributes:
        failure: Why, for the journal.
        sign_in: What a person has to do about it; None when waiting or an admin may help, but no sign-in.
    """

    def __init__(self, failure: content_pb2.Failure, sign_in: run_pb2.SignInNeeded | None = None) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure
        self.sign_in = sign_in


@dataclass(frozen=True, slots=True)
class Injection:
    """A header or query parameter that carries a credential; the value is in no representation of it."""

    name: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedCredential(Credential):
    """A credential with how it is sent, and where it may be sent."""

    fingerprint: str = ""
    headers: tuple[Injection, ...] = ()
    query: tuple[Injection, ...] = ()
    allowed: tuple[EgressRule, ...] = ()
    expire_time: datetime | None = None
    signals: tuple[AuthFailureSignal, ...] = ()
    """How the other side says that it is over, beside a 401."""


class Credentials:
    """Resolves connections for runs.

    Args:
        stub: The auth service's credentials.
        connect: The auth service's sign-ins.
        grants: The runs' rights.
        uses: Takes the record of uses that auth did not see.
        clock: Time for the expiry of what is remembered.
    """

    def __init__(
        self,
        stub: CredentialServiceStub,
        connect: ConnectServiceStub,
        grants: RunGrants,
        uses: CredentialUses,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._stub = stub
        self._connect = connect
        self._grants = grants
        self._uses = uses
        self._clock: Clock = SystemClock() if clock is None else clock
        # Invariant: run and target are part of the key; nobody is given what was resolved for another run or host.
        self._known: OrderedDict[Need, tuple[float, ResolvedCredential]] = OrderedDict()

    async def resolve(self, need: Need, *, rejected_fingerprint: str = "") -> ResolvedCredential:
        """Returns the credential for one step.

        Args:
            need: For what.
            rejected_fingerprint: The credential with this fingerprint was refused by the other side: another one is
                wanted, if there is one.

        Raises:
            CredentialMissing: There is none.
        """
        try:
            return await self.hand_out(need, rejected_fingerprint=rejected_fingerprint)
        except HoldfastError as error:
            # Without the context: an error of the transport is of no use to whoever reads the failure.
            raise await self._missing(need, error) from None

    async def why_missing(self, need: Need, *, rejected_fingerprint: str = "") -> CredentialMissing | None:
        """Asks auth anew, whatever is remembered; None when there is a credential by now.

        Args:
            need: For what.
            rejected_fingerprint: What the other side refused although it could not be renewed, or was: it counts as
                missing.
        """
        self._known.pop(replace(need, step=0), None)
        try:
            found = await self.hand_out(need)
        except HoldfastError as error:
            return await self._missing(need, error)
        if not rejected_fingerprint or found.fingerprint != rejected_fingerprint:
            return None
        failure = content_pb2.Failure(
            reason=CREDENTIAL_REJECTED,
            message=f"The other side does not accept the credential of the connection {need.connection!r}.",
            failure_class=content_pb2.FAILURE_CLASS_AUTH,
        )
        sign_in = await self.sign_in(need, REJECTED, need.scopes, rejected_fingerprint=rejected_fingerprint)
        return CredentialMissing(failure, sign_in)

    async def hand_out(self, need: Need, *, rejected_fingerprint: str = "") -> ResolvedCredential:
        """As `resolve`, for callers who are told what auth says.

        Raises:
            HoldfastError: There is none; as auth, or state, raised it.
        """
        # Steps of one run share what is remembered; the record of each use names its own.
        key = replace(need, step=0)
        known = self._known.get(key)
        if known is not None and not rejected_fingerprint and known[0] > self._clock.monotonic():
            self._uses.add(need, known[1].connection_id, known[1].fingerprint)
            return known[1]
        self._known.pop(key, None)
        grant = await self._grants.of(need.workspace_id, need.run_id)
        with calling("auth"):
            response = await self._stub.ResolveCredential(
                pb.ResolveCredentialRequest(
                    workspace_id=need.workspace_id,
                    connection=need.connection,
                    run_id=need.run_id,
                    step=need.step,
                    run_grant=grant,
                    tool=need.tool,
                    target=need.target,
                    method=need.method,
                    scopes=need.scopes,
                    rejected_fingerprint=rejected_fingerprint,
                    mode=pb.CREDENTIAL_MODE_RAW if need.is_raw else pb.CREDENTIAL_MODE_INJECT,
                ),
                timeout=_DEADLINE_SECONDS,
            )
        PROCESS.learn(response.secret, response.fingerprint)
        for item in (*response.headers, *response.query):
            PROCESS.learn(item.value, response.fingerprint)
        credential = _credential_of(response)
        self._known[key] = (self._clock.monotonic() + self._lifetime(credential), credential)
        if len(self._known) > _MAX_ENTRIES:
            self._known.popitem(last=False)
        return credential

    async def sign_in(
        self, need: Need, reason: str, scopes: Sequence[str], *, rejected_fingerprint: str = ""
    ) -> run_pb2.SignInNeeded:
        """Returns what a person has to do, with a page to do it where there is one."""
        # Whatever they do, what is remembered is not what the run goes on with.
        self._known.pop(replace(need, step=0), None)
        needed = run_pb2.SignInNeeded(
            connection=need.connection,
            user_id=need.user_id,
            scopes=scopes,
            reason=reason,
            rejected_fingerprint=rejected_fingerprint,
        )
        try:
            grant = await self._grants.of(need.workspace_id, need.run_id)
            with calling("auth"):
                answer = await self._connect.RequestSignIn(
                    connect_pb2.RequestSignInRequest(
                        workspace_id=need.workspace_id,
                        run_grant=grant,
                        step=need.step,
                        connection=need.connection,
                        scopes=scopes,
                    ),
                    timeout=_DEADLINE_SECONDS,
                )
        except HoldfastError as error:
            # A key that somebody has to store, or an integration that nobody has set up: there is no page for these.
            log.info("no_sign_in_page", connection=need.connection, reason=error.reason)
        else:
            needed.connect_url = answer.session.connect_url
            needed.connect_session_id = answer.session.session_id
        return needed

    def _lifetime(self, credential: ResolvedCredential) -> float:
        if credential.expire_time is None:
            return TTL_SECONDS
        return min(TTL_SECONDS, (credential.expire_time - self._clock.now()).total_seconds())

    async def _missing(self, need: Need, error: HoldfastError) -> CredentialMissing:
        failure = _failure_of(error, need.connection)
        reason = _SIGN_IN_REASONS.get(error.reason)
        if reason is None or not isinstance(error, NotFound | FailedPrecondition):
            return CredentialMissing(failure)
        # A provider that wants more is asked for the union, so that what worked before goes on working.
        scopes = tuple(dict.fromkeys((*need.scopes, *error.metadata.get("scopes", "").split())))
        return CredentialMissing(failure, await self.sign_in(need, reason, scopes))


def _credential_of(response: pb.ResolveCredentialResponse) -> ResolvedCredential:
    return ResolvedCredential(
        secret=response.secret,
        base_url=response.base_url,
        connection_id=response.connection_id,
        version=response.version,
        fingerprint=response.fingerprint,
        headers=tuple(Injection(item.name, item.value) for item in response.headers),
        query=tuple(Injection(item.name, item.value) for item in response.query),
        allowed=tuple(
            EgressRule(
                target.host,
                scheme=target.scheme or "https",
                port=target.port or None,
                path_prefix=target.path_prefix or "/",
                methods=frozenset(target.methods),
            )
            for target in response.allowed_targets
        ),
        expire_time=response.expire_time.ToDatetime(tzinfo=UTC) if response.HasField("expire_time") else None,
        signals=tuple(
            AuthFailureSignal(
                signal.status,
                signal.pointer or None,
                signal.equals if signal.pointer else None,
                signal.header or None,
                signal.contains or None,
            )
            for signal in response.auth_failure_signals
        ),
    )


def _failure_of(error: HoldfastError, connection: str) -> content_pb2.Failure:
    match error:
        case NotFound():
            return content_pb2.Failure(
                reason=Reason.CONNECTION_NOT_FOUND,
                message=f"There is no active connection named {connection!r}: "
                f"`holdfast connections create {connection}` stores a key, `holdfast connect {connection}` signs in.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
        case FailedPrecondition():
            return content_pb2.Failure(
                reason=error.reason,
                message=f"The connection {connection!r} cannot be used: {error.message}.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
        case PermissionDenied():
            return content_pb2.Failure(
                reason=error.reason,
                message=f"The connection {connection!r} may not be used here: {error.message}.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
        case Unavailable() | DeadlineExceeded() | ResourceExhausted():
            return content_pb2.Failure(
                reason=Reason.AUTH_UNAVAILABLE,
                message="The credential was not handed out in time.",
                failure_class=content_pb2.FAILURE_CLASS_RETRYABLE,
                retry_after_millis=round((error.retry_delay_seconds or 0) * 1000),
            )
        case _:
            return content_pb2.Failure(
                reason=error.reason,
                message="The auth service refused to hand out the credential.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
