"""The initiator's side of a connect session: begin it, look at it, confirm it, give it up.

Only who began a session may see and confirm it, and confirming takes the code that only the browser got in which the
consent was given: a link that was forwarded to somebody else connects nothing (docs/decisions/0009).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Reason, Unavailable
from holdfast.ids import is_uuid, new_uuid7
from services.auth.callers import Caller
from services.auth.connect.keys import ConnectKeys
from services.auth.connect.landing import Landing, not_confirmable
from services.auth.connect.return_urls import ReturnUrls
from services.auth.connect.store import ConnectMode, ConnectSession, ConnectStore, NewSession, SessionState
from services.auth.connect.targets import Target, Targets
from services.auth.connection_store import (
    SHARED,
    Connection,
    ConnectionState,
    ConnectionStore,
    CredentialKind,
    connection_exists,
)
from services.auth.connection_variables import checked_variables
from services.auth.grants import MAX_USER_ID_CHARACTERS, RunGrant
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import Flow
from services.auth.requests import identify, require_name
from services.auth.secret_paths import new_connection_path
from services.shared.clock import Clock

LINK_SECONDS: Final = 600.0
"""How long a link lives."""

RUN_LINK_SECONDS: Final = 7 * 24 * 3600.0
"""How long the link of a run's question lives at most."""

AUTHORIZE_SECONDS: Final = 600.0
"""How long a person may take at the provider."""

MAX_CODE_ATTEMPTS: Final = 5
MAX_WAIT_SECONDS: Final = 60
MAX_SCOPES: Final = 100
NO_SCOPES: Final[tuple[str, ...]] = ()
NO_VARIABLES: Final[Mapping[str, str]] = {}

_LOOK_SECONDS: Final = 1.0
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 §3.3
_EXECUTOR: Final = "service:executor"
_RUN: Final = "run:"


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session, and what only its initiator is shown."""

    session: ConnectSession
    connect_url: str = ""


class ConnectSessions:
    """What an initiator may do.

    Args:
        store: The sessions.
        connections: The connections, for reconnects.
        targets: The integrations.
        oauth: Begins device flows.
        landing: Makes connections, and gives back.
        keys: Hashes of codes, links.
        request_key: Key of the fingerprints of idempotent requests.
        clock: Where time comes from.
        public_url: Where people's browsers reach the page.
        return_urls: Where a browser may be sent afterwards.
    """

    def __init__(
        self,
        store: ConnectStore,
        connections: ConnectionStore,
        targets: Targets,
        oauth: OAuthClient,
        landing: Landing,
        keys: ConnectKeys,
        clock: Clock,
        *,
        request_key: bytes,
        public_url: str,
        return_urls: ReturnUrls,
    ) -> None:
        self._store = store
        self._connections = connections
        self._targets = targets
        self._oauth = oauth
        self._landing = landing
        self._keys = keys
        self._clock = clock
        self._request_key = request_key
        self._public_url = public_url
        self._return_urls = return_urls

    # ------------------------------------------------------------------------------------------------------- beginning

    async def start(
        self,
        caller: Caller,
        *,
        integration: str,
        user_id: str = SHARED,
        connection: str = "",
        mode: ConnectMode = ConnectMode.BROWSER,
        scopes: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
        return_url: str = "",
        request_id: str = "",
    ) -> SessionView:
        """Begins a session. Of the variables, what is not given is that of the existing connection, or asked for.

        Raises:
            NotFound: There is no such integration.
            InvalidArgument: A field is wrong.
            PermissionDenied: The caller may not act for the user.
            FailedPrecondition: The integration is switched off.
            AlreadyExists: The connection is one of another integration.
        """
        require_name(integration, "integration")
        name = require_name(connection or integration, "connection")
        check_user(caller, user_id)
        _check_scopes(scopes)
        if return_url:
            self._return_urls.check(return_url)
        content = [integration, user_id, name, mode.value, list(scopes), return_url]
        # Only when given: a request of an earlier release, repeated after an update, is the same request.
        request = identify(
            self._request_key, "StartConnect", request_id, [*content, dict(variables)] if variables else content
        )
        target = await self._targets.named(caller.workspace_id, integration)
        existing = await self._existing(caller.workspace_id, user_id, name, target)
        new = NewSession(
            workspace_id=caller.workspace_id,
            session_id=new_uuid7(),
            integration_id=target.integration_id,
            user_id=user_id,
            connection=name,
            initiator=caller.actor,
            mode=mode,
            scopes=target.scopes_with(() if existing is None else existing.scopes, scopes),
            return_url=return_url if mode is ConnectMode.BROWSER else "",
            run_id="",
            lifetime_seconds=LINK_SECONDS,
            variables=checked_variables(
                target.app.provider,
                variables or {},
                None if existing is None else existing.variables,
                # The page asks for the rest; on a device nobody would.
                is_partial=mode is ConnectMode.BROWSER,
            ),
        )
        _require_flow(target, mode)
        if mode is ConnectMode.DEVICE:
            new = await self._with_device(target, new)
        return self._view(await self._store.create_session(new, request=request))

    async def request_sign_in(
        self,
        grant: RunGrant,
        *,
        connection: str,
        scopes: tuple[str, ...] = (),
        expire_time: datetime | None = None,
        request_id: str = "",
    ) -> SessionView:
        """Begins the session for the sign-in that a run needs, or returns the one that is open for it.

        Args:
            grant: The run's, checked.
            connection: Name of a connection, or of an integration.
            scopes: What is missing.
            expire_time: When the question in the run ends; its link lives as long.
            request_id: Makes the call idempotent.

        Raises:
            PermissionDenied: The grant does not name it, or the agent may not use it (CONNECTION_NOT_GRANTED).
            NotFound: There is no such integration.
        """
        require_name(connection, "connection")
        _check_scopes(scopes)
        granted = grant.connection(connection)
        if granted is None:
            raise _not_granted(connection)
        found = await self._of_run(grant, connection)
        if found is None:
            target = await self._targets.named(grant.workspace_id, connection)
            name, user_id, has, known = connection, grant.user_id, NO_SCOPES, NO_VARIABLES
        else:
            assert found.integration_id is not None
            target = await self._targets.with_id(grant.workspace_id, found.integration_id)
            name, user_id, has, known = found.name, found.user_id, found.scopes, found.variables
        if target.agents and grant.agent not in target.agents:
            raise _not_granted(connection)
        _require_flow(target, ConnectMode.BROWSER)
        seconds = LINK_SECONDS
        if expire_time is not None:
            seconds = min(max((expire_time - self._clock.now()).total_seconds(), 1.0), RUN_LINK_SECONDS)
        session = await self._store.create_session(
            NewSession(
                workspace_id=grant.workspace_id,
                session_id=new_uuid7(),
                integration_id=target.integration_id,
                user_id=user_id,
                connection=name,
                initiator=f"{_RUN}{grant.run_id}",
                mode=ConnectMode.BROWSER,
                scopes=target.scopes_with(has, granted.scopes, scopes),
                return_url="",
                run_id=grant.run_id,
                lifetime_seconds=seconds,
                variables=checked_variables(target.app.provider, {}, known, is_partial=True),
            ),
            request=identify(
                self._request_key, "RequestSignIn", request_id, [grant.run_id, connection, sorted(scopes)]
            ),
        )
        return self._view(session)

    # --------------------------------------------------------------------------------------------------------- looking

    async def get(self, caller: Caller, session_id: str) -> SessionView:
        """Returns a session of the caller's.

        Raises:
            NotFound: There is none, or somebody else began it.
        """
        return self._view(await self._own(caller, session_id))

    async def wait(self, caller: Caller, session_id: str, known: SessionState | None, seconds: int) -> SessionView:
        """Returns the session when its state is no longer `known`, or after so many seconds.

        Raises:
            InvalidArgument: `seconds` is negative or too many.
            NotFound: There is none, or somebody else began it.
        """
        if not 0 <= seconds <= MAX_WAIT_SECONDS:
            raise InvalidArgument(
                "wait_seconds is not valid", field="wait_seconds", description=f"expected 0 to {MAX_WAIT_SECONDS}"
            )
        end = self._clock.monotonic() + seconds
        while True:
            session = await self._own(caller, session_id)
            left = end - self._clock.monotonic()
            if session.state is not known or session.state.is_end or left <= 0:
                return self._view(session)
            await self._clock.sleep(min(_LOOK_SECONDS, left))

    # ---------------------------------------------------------------------------------------------------------- ending

    async def confirm(self, caller: Caller, session_id: str, code: str) -> tuple[SessionView, Connection]:
        """Makes the connection usable. May be repeated.

        Raises:
            NotFound: There is no such session, or somebody else began it.
            FailedPrecondition: It is not CONFIRMING (CONNECT_SESSION_NOT_CONFIRMABLE).
            InvalidArgument: The code is wrong (CONFIRM_CODE_INVALID); the fifth time the session ends.
        """
        session = await self._own(caller, session_id)
        if session.state is SessionState.CONNECTED:
            return self._view(session), await self._landing.connection_of(session)
        if session.state is not SessionState.CONFIRMING:
            raise not_confirmable(f"the sign-in is {session.state.value}")
        if session.mode is ConnectMode.BROWSER:
            await self._check_code(session, code)
        session, connection = await self._landing.connect(session, actor=caller.actor)
        return self._view(session), connection

    async def cancel(self, caller: Caller, session_id: str) -> SessionView:
        """Gives a session up. May be repeated; one that has ended stays as it is.

        Raises:
            NotFound: There is no such session, or somebody else began it.
        """
        session = await self._own(caller, session_id)
        if not session.state.is_end:
            session = await self._landing.end(session, SessionState.CANCELLED, "")
        return self._view(session)

    # ----------------------------------------------------------------------------------------------------------------

    async def _check_code(self, session: ConnectSession, code: str) -> None:
        # Counted before it is compared: many guesses at the same time are no more than five.
        attempts = await self._store.count_attempt(session.session_id)
        if 1 <= attempts <= MAX_CODE_ATTEMPTS:
            presented = self._keys.code_hash(session.session_id, code[:64])
            if self._keys.is_hash(presented, session.confirm_hash):
                await self._store.forgive_attempts(session.session_id)
                return
        if attempts >= MAX_CODE_ATTEMPTS:
            await self._landing.end(session, SessionState.FAILED, "too_many_codes")
        raise InvalidArgument(
            "the confirm code is wrong",
            reason=Reason.CONFIRM_CODE_INVALID,
            field="confirm_code",
            description="expected the code that was shown in the browser in which the account was connected",
        )

    async def _own(self, caller: Caller, session_id: str) -> ConnectSession:
        found = await self._store.get_session(caller.workspace_id, session_id) if is_uuid(session_id) else None
        if found is None or not _is_initiator(caller, found):
            raise NotFound("there is no such sign-in", reason=Reason.CONNECT_SESSION_NOT_FOUND)
        return found

    async def _existing(self, workspace_id: str, user_id: str, name: str, target: Target) -> Connection | None:
        found = await self._connections.find_connection(workspace_id, user_id, name)
        if found is None or found.state is ConnectionState.REVOKED:
            return None
        if found.integration_id != target.integration_id:
            raise connection_exists(name)
        return found

    async def _of_run(self, grant: RunGrant, name: str) -> Connection | None:
        """Returns the connection that a sign-in of the run mends, None when it makes one.

        A shared one counts when the run's user has none of their own: another account cannot take its place.
        """
        found = [
            item
            for item in await self._connections.connections_for(grant.workspace_id, grant.user_id, name)
            if item.kind is CredentialKind.OAUTH2 and item.integration_id is not None
        ]
        own = [item for item in found if item.user_id == grant.user_id]
        exact = [item for item in own if item.name == name]
        candidates = exact or own or found
        if len(candidates) > 1:
            raise FailedPrecondition(
                "several connections fit; name one of them",
                reason=Reason.CONNECTION_AMBIGUOUS,
                metadata={"connection": name},
            )
        return candidates[0] if candidates else None

    async def _with_device(self, target: Target, new: NewSession) -> NewSession:
        try:
            app = target.app.with_variables(new.variables)
            device = await self._oauth.start_device(app, scopes=new.scopes)
        except TokenRefused as refused:
            if refused.kind is RefusalKind.INTEGRATION and refused.error is not None:
                await self._targets.report(target, new.workspace_id, refused.error)
            raise refused_at_start(refused) from refused
        sealed = await self._keys.seal(new.session_id, device.to_document())
        fields: Mapping[str, object] = {
            "sealed": sealed,
            "secret_path": new_connection_path(new.workspace_id, new.user_id),
            "user_code": device.user_code,
            "verification_url": device.verification_uri_complete or device.verification_uri,
            "poll_interval_seconds": max(1, round(device.interval.total_seconds())),
            "lifetime_seconds": max((device.expire_time - self._clock.now()).total_seconds(), 1.0),
        }
        values = {name: getattr(new, name) for name in new.__dataclass_fields__}
        return NewSession(**{**values, **fields})

    def _view(self, session: ConnectSession) -> SessionView:
        if session.state is not SessionState.PENDING:
            return SessionView(session)
        return SessionView(session, f"{self._public_url}/connect/{self._keys.link_token(session.session_id)}")


def check_user(caller: Caller, user_id: str) -> None:
    """Returns when the caller may connect an account for the user.

    Raises:
        InvalidArgument: It is no user's id.
        PermissionDenied: The caller is a person, and not this one.
    """
    if len(user_id) > MAX_USER_ID_CHARACTERS or (user_id and not user_id.isprintable()):
        raise InvalidArgument(
            "user_id is not valid",
            field="user_id",
            description=f"expected up to {MAX_USER_ID_CHARACTERS} printable characters",
        )
    if not may_act_for(caller, user_id):
        raise PermissionDenied(
            "only the person, or a caller with the scope connections:impersonate, connects accounts for somebody",
            reason=Reason.SCOPE_MISSING,
            metadata={"scope": "connections:impersonate"},
        )


def may_act_for(caller: Caller, user_id: str) -> bool:
    """Tells whether the caller may connect accounts for the user: a key may for all, a person for themself."""
    if not caller.actor.startswith("user:"):
        return True
    return caller.actor == f"user:{user_id}" or caller.may_grant("connections:impersonate")


def _is_initiator(caller: Caller, session: ConnectSession) -> bool:
    if session.initiator == caller.actor:
        return True
    # A run speaks through the executor; and whoever may begin a session for its user may confirm the run's.
    return session.initiator.startswith(_RUN) and (
        caller.actor == _EXECUTOR or (not caller.actor.startswith("service:") and may_act_for(caller, session.user_id))
    )


def _require_flow(target: Target, mode: ConnectMode) -> None:
    spec = target.app.provider.oauth
    flow = Flow.DEVICE if mode is ConnectMode.DEVICE else Flow.AUTHORIZATION_CODE
    if spec is None or flow not in spec.flows or (mode is ConnectMode.DEVICE and spec.device_url is None):
        how = "by a code on another device" if mode is ConnectMode.DEVICE else "in a browser"
        raise InvalidArgument(f"{target.title} is not connected {how}", field="mode")


def _check_scopes(scopes: tuple[str, ...]) -> None:
    if len(scopes) > MAX_SCOPES or not all(map(_SCOPE.fullmatch, scopes)):
        raise InvalidArgument(
            "scopes are not valid", field="scopes", description=f"expected up to {MAX_SCOPES} names of permissions"
        )


def _not_granted(name: str) -> PermissionDenied:
    return PermissionDenied(
        f"the run may not use the connection {name}",
        reason=Reason.CONNECTION_NOT_GRANTED,
        metadata={"connection": name},
    )


def refused_at_start(refused: TokenRefused) -> FailedPrecondition | Unavailable:
    """Returns the error of a flow that could not begin."""
    if refused.kind is RefusalKind.INTEGRATION:
        return FailedPrecondition(f"{refused}: an admin has to look at the integration")
    return Unavailable(str(refused), retry_delay_seconds=refused.retry_after_seconds or 5.0)
