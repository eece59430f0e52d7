"""ConnectService."""

from __future__ import annotations

from typing import Any, Final

from holdfast.api.auth.v1 import connect_service_pb2 as pb
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceServicer
from services.auth.connect.sessions import ConnectSessions, SessionView
from services.auth.connect.store import ConnectMode, SessionState
from services.auth.grants import RunGrants
from services.auth.servicers.messages import current_caller, to_connection, to_datetime, to_timestamp
from services.shared.identity import acting_user

_MODES: Final = {
    pb.CONNECT_MODE_UNSPECIFIED: ConnectMode.BROWSER,
    pb.CONNECT_MODE_BROWSER: ConnectMode.BROWSER,
    pb.CONNECT_MODE_DEVICE: ConnectMode.DEVICE,
}


class ConnectServicer(ConnectServiceServicer):
    """Serves ConnectService.

    Args:
        sessions: The rules.
        grants: Checks the grants of runs.
    """

    def __init__(self, sessions: ConnectSessions, grants: RunGrants) -> None:
        self._sessions = sessions
        self._grants = grants

    async def StartConnect(self, request: pb.StartConnectRequest, context: Any) -> pb.StartConnectResponse:
        """Begins a session."""
        view = await self._sessions.start(
            current_caller(),
            integration=request.integration,
            user_id=acting_user(request.user_id),
            connection=request.connection,
            mode=_MODES.get(request.mode, ConnectMode.BROWSER),
            scopes=tuple(request.scopes),
            variables=dict(request.variables),
            return_url=request.return_url,
            request_id=request.request_id,
        )
        return pb.StartConnectResponse(session=to_session(view))

    async def GetConnectSession(
        self, request: pb.GetConnectSessionRequest, context: Any
    ) -> pb.GetConnectSessionResponse:
        """Returns a session, now or when it has moved on."""
        known = None
        if request.known_state != pb.CONNECT_SESSION_STATE_UNSPECIFIED:
            name = pb.ConnectSessionState.Name(request.known_state)
            known = SessionState(name.removeprefix("CONNECT_SESSION_STATE_"))
        view = await self._sessions.wait(current_caller(), request.session_id, known, request.wait_seconds)
        return pb.GetConnectSessionResponse(session=to_session(view))

    async def ConfirmConnect(self, request: pb.ConfirmConnectRequest, context: Any) -> pb.ConfirmConnectResponse:
        """Makes the connection usable."""
        view, connection = await self._sessions.confirm(current_caller(), request.session_id, request.confirm_code)
        return pb.ConfirmConnectResponse(session=to_session(view), connection=to_connection(connection))

    async def CancelConnect(self, request: pb.CancelConnectRequest, context: Any) -> pb.CancelConnectResponse:
        """Gives a session up."""
        view = await self._sessions.cancel(current_caller(), request.session_id)
        return pb.CancelConnectResponse(session=to_session(view))

    async def RequestSignIn(self, request: pb.RequestSignInRequest, context: Any) -> pb.RequestSignInResponse:
        """Begins the session that a run needs, or returns the one that is open."""
        view = await self._sessions.request_sign_in(
            self._grants.verify(request.run_grant, workspace_id=request.workspace_id),
            connection=request.connection,
            scopes=tuple(request.scopes),
            expire_time=to_datetime(request.expire_time, "expire_time") if request.HasField("expire_time") else None,
            request_id=request.request_id,
        )
        return pb.RequestSignInResponse(session=to_session(view))


def to_session(view: SessionView) -> pb.ConnectSession:
    """Returns the message of a session."""
    session = view.session
    return pb.ConnectSession(
        session_id=session.session_id,
        integration=session.integration,
        user_id=session.user_id,
        connection=session.connection,
        mode=f"CONNECT_MODE_{session.mode.value}",
        scopes=session.scopes,
        state=f"CONNECT_SESSION_STATE_{session.state.value}",
        failure_reason=session.failure_reason,
        account_label=session.account_label,
        connect_url=view.connect_url,
        user_code="" if session.state.is_end else session.user_code,
        verification_url="" if session.state.is_end else session.verification_url,
        create_time=to_timestamp(session.create_time),
        expire_time=to_timestamp(session.expire_time),
        variables=session.variables,
    )
