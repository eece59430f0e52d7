"""Connecting an account of a user at a third party: begin it, let the person consent, confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from holdfast.api.auth.v1 import connect_service_pb2, connection_service_pb2
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.errors import InvalidArgument
from holdfast.ids import new_uuid7
from holdfast.transport import Transport

ConnectMode = Literal["browser", "device"]

_MODES: Final = {
    "browser": connect_service_pb2.CONNECT_MODE_BROWSER,
    "device": connect_service_pb2.CONNECT_MODE_DEVICE,
}
_OPEN: Final = frozenset(
    {
        connect_service_pb2.CONNECT_SESSION_STATE_PENDING,
        connect_service_pb2.CONNECT_SESSION_STATE_AUTHORIZING,
        connect_service_pb2.CONNECT_SESSION_STATE_CONFIRMING,
    }
)
_WAIT_SECONDS: Final = 25


class ConnectHandle:
    """One attempt to connect an account.

    The person opens `url`, consents at the third party, and their browser gets a code; `confirm` takes it, which shows
    that whoever began is whoever consented. Only the key that began it may do so.

    Args:
        transport: The channels.
        session: As the suite described it.
    """

    def __init__(self, transport: Transport, session: connect_service_pb2.ConnectSession) -> None:
        self._transport = transport
        self._stub = transport.stub("auth", ConnectServiceStub)
        self.session = session
        """As it was when it was last asked for."""

    @property
    def id(self) -> str:
        """Its id."""
        return self.session.session_id

    @property
    def url(self) -> str:
        """The link to open; empty once it was opened, and for a device."""
        return self.session.connect_url

    @property
    def is_open(self) -> bool:
        """Tells whether it has not ended."""
        return self.session.state in _OPEN

    async def refresh(self) -> connect_service_pb2.ConnectSession:
        """Asks where it stands."""
        return await self._get(connect_service_pb2.CONNECT_SESSION_STATE_UNSPECIFIED, 0)

    async def changed(self) -> connect_service_pb2.ConnectSession:
        """Returns when its state is another one than that of `session`, or after half a minute."""
        return await self._get(self.session.state, _WAIT_SECONDS)

    async def confirm(self, code: str = "") -> connection_service_pb2.Connection:
        """Makes the connection usable, and returns it.

        Args:
            code: What the browser showed or brought back; nothing for a device.

        Raises:
            InvalidArgument: The code is wrong (CONFIRM_CODE_INVALID).
            FailedPrecondition: The person has not consented yet, or it has ended.
        """
        request = connect_service_pb2.ConfirmConnectRequest(
            session_id=self.id, confirm_code=code, request_id=new_uuid7()
        )
        response = await self._transport.call("auth", self._stub.ConfirmConnect, request)
        self.session = response.session
        return response.connection

    async def cancel(self) -> connect_service_pb2.ConnectSession:
        """Gives it up; what was granted is given back."""
        request = connect_service_pb2.CancelConnectRequest(session_id=self.id, request_id=new_uuid7())
        self.session = (await self._transport.call("auth", self._stub.CancelConnect, request)).session
        return self.session

    async def _get(
        self, known: connect_service_pb2.ConnectSessionState, seconds: int
    ) -> connect_service_pb2.ConnectSession:
        request = connect_service_pb2.GetConnectSessionRequest(
            session_id=self.id, known_state=known, wait_seconds=seconds
        )
        response = await self._transport.call("auth", self._stub.GetConnectSession, request, timeout=seconds + 15)
        self.session = response.session
        return self.session


async def start_connect(
    transport: Transport,
    integration: str,
    *,
    user_id: str = "",
    connection: str = "",
    scopes: Sequence[str] = (),
    mode: ConnectMode = "browser",
    return_url: str = "",
    variables: Mapping[str, str] | None = None,
) -> ConnectHandle:
    """As `Client.connect`."""
    if mode not in _MODES:
        raise InvalidArgument(f"expected browser or device, not {mode!r}", field="mode")
    request = connect_service_pb2.StartConnectRequest(
        integration=integration,
        user_id=user_id,
        connection=connection,
        mode=_MODES[mode],
        scopes=scopes,
        return_url=return_url,
        variables=variables,
        request_id=new_uuid7(),
    )
    stub = transport.stub("auth", ConnectServiceStub)
    response = await transport.call("auth", stub.StartConnect, request)
    return ConnectHandle(transport, response.session)


async def get_connect(transport: Transport, session_id: str) -> ConnectHandle:
    """As `Client.connect_session`."""
    stub = transport.stub("auth", ConnectServiceStub)
    request = connect_service_pb2.GetConnectSessionRequest(session_id=session_id)
    response = await transport.call("auth", stub.GetConnectSession, request)
    return ConnectHandle(transport, response.session)
