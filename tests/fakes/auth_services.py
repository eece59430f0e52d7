"""The part of the auth service that executors call, in memory and behind a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from holdfast.api.auth.v1 import connect_service_pb2 as connect_pb2
from holdfast.api.auth.v1 import connection_feed_service_pb2 as feed_pb2
from holdfast.api.auth.v1 import credential_service_pb2 as credential_pb2
from holdfast.api.auth.v1 import grant_service_pb2 as grant_pb2
from holdfast.api.auth.v1.connect_service_pb2_grpc import (
    ConnectServiceServicer,
    add_ConnectServiceServicer_to_server,
)
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import (
    ConnectionFeedServiceServicer,
    add_ConnectionFeedServiceServicer_to_server,
)
from holdfast.api.auth.v1.credential_service_pb2_grpc import (
    CredentialServiceServicer,
    add_CredentialServiceServicer_to_server,
)
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceServicer, add_GrantServiceServicer_to_server
from holdfast.errors import FailedPrecondition, HoldfastError, InvalidArgument, NotFound, Reason
from services.shared.access import Access
from services.shared.server import Server

CONFIRM_CODE = "ABCD-EFGH"


class FakeAuth:
    """Hands out what a test puts in, and notes what it is asked."""

    def __init__(self) -> None:
        self.requests: list[credential_pb2.ResolveCredentialRequest] = []
        self.uses: list[credential_pb2.CredentialUse] = []
        self.sign_ins_requested: list[connect_pb2.RequestSignInRequest] = []
        self.grants: list[grant_pb2.IssueRunGrantRequest] = []
        self.derived: list[grant_pb2.DeriveRunGrantRequest] = []
        self.confirmed: list[str] = []
        self.failure: Callable[[], HoldfastError] | None = None
        self.answer: Callable[[int], credential_pb2.ResolveCredentialResponse] = self._answer
        # What is connected: (workspace, user, connection).
        self.connected: set[tuple[str, str, str]] = set()
        self.has_page = True
        self._watchers: list[asyncio.Queue[feed_pb2.WatchConnectionsResponse]] = []
        self.watched = asyncio.Event()

    def _answer(self, count: int) -> credential_pb2.ResolveCredentialResponse:
        return credential_pb2.ResolveCredentialResponse(
            connection_id="c1",
            provider="openai",
            secret=f"sk-{self.requests[-1].workspace_id}-{count}",
            base_url="http://localhost:9",
            version=3,
            fingerprint=f"f{count}",
        )

    def connect(self, workspace_id: str, user_id: str, connection: str) -> None:
        """A sign-in is done, and whoever follows hears of it."""
        self.connected.add((workspace_id, user_id, connection))
        for queue in self._watchers:
            queue.put_nowait(feed_pb2.WatchConnectionsResponse(workspace_id=workspace_id))

    def access(self) -> dict[str, Access]:
        """Only the executor may call it."""
        methods = {
            "ConnectService": ("StartConnect", "GetConnectSession", "ConfirmConnect", "CancelConnect", "RequestSignIn"),
            "ConnectionFeedService": ("WatchConnections", "CheckSignIns"),
            "CredentialService": ("ResolveCredential", "RecordCredentialUses"),
            "GrantService": ("IssueRunGrant", "DeriveRunGrant"),
        }
        return {
            f"/holdfast.api.auth.v1.{service}/{method}": Access(services=("executor",))
            for service, names in methods.items()
            for method in names
        }

    def add_to(self, server: Server) -> None:
        """Serves everything."""
        server.add(add_ConnectServiceServicer_to_server, _Connect(self))
        server.add(add_ConnectionFeedServiceServicer_to_server, _Feed(self))
        server.add(add_CredentialServiceServicer_to_server, _Credentials(self))
        server.add(add_GrantServiceServicer_to_server, _Grants(self))

    async def follow(self) -> AsyncIterator[feed_pb2.WatchConnectionsResponse]:
        """News, as they come."""
        queue: asyncio.Queue[feed_pb2.WatchConnectionsResponse] = asyncio.Queue()
        self._watchers.append(queue)
        self.watched.set()
        while True:
            yield await queue.get()


class _Credentials(CredentialServiceServicer):
    def __init__(self, auth: FakeAuth) -> None:
        self._auth = auth

    async def ResolveCredential(
        self, request: credential_pb2.ResolveCredentialRequest, context: Any
    ) -> credential_pb2.ResolveCredentialResponse:
        self._auth.requests.append(request)
        if self._auth.failure is not None:
            raise self._auth.failure()
        return self._auth.answer(len(self._auth.requests))

    async def RecordCredentialUses(
        self, request: credential_pb2.RecordCredentialUsesRequest, context: Any
    ) -> credential_pb2.RecordCredentialUsesResponse:
        self._auth.uses.extend(request.uses)
        return credential_pb2.RecordCredentialUsesResponse()


class _Grants(GrantServiceServicer):
    def __init__(self, auth: FakeAuth) -> None:
        self._auth = auth

    async def IssueRunGrant(
        self, request: grant_pb2.IssueRunGrantRequest, context: Any
    ) -> grant_pb2.IssueRunGrantResponse:
        self._auth.grants.append(request)
        return grant_pb2.IssueRunGrantResponse(run_grant=f"grant-of-{request.run_id}")

    async def DeriveRunGrant(
        self, request: grant_pb2.DeriveRunGrantRequest, context: Any
    ) -> grant_pb2.DeriveRunGrantResponse:
        self._auth.derived.append(request)
        return grant_pb2.DeriveRunGrantResponse(run_grant=f"grant-of-{request.run_id}")


class _Feed(ConnectionFeedServiceServicer):
    def __init__(self, auth: FakeAuth) -> None:
        self._auth = auth

    async def WatchConnections(
        self, request: feed_pb2.WatchConnectionsRequest, context: Any
    ) -> AsyncIterator[feed_pb2.WatchConnectionsResponse]:
        async for news in self._auth.follow():
            yield news

    async def CheckSignIns(self, request: feed_pb2.CheckSignInsRequest, context: Any) -> feed_pb2.CheckSignInsResponse:
        wanted = [(item.workspace_id, item.user_id, item.connection) for item in request.sign_ins]
        return feed_pb2.CheckSignInsResponse(is_usable=[item in self._auth.connected for item in wanted])


class _Connect(ConnectServiceServicer):
    def __init__(self, auth: FakeAuth) -> None:
        self._auth = auth

    async def StartConnect(self, request: Any, context: Any) -> connect_pb2.StartConnectResponse:
        return connect_pb2.StartConnectResponse()

    async def GetConnectSession(self, request: Any, context: Any) -> connect_pb2.GetConnectSessionResponse:
        return connect_pb2.GetConnectSessionResponse()

    async def CancelConnect(self, request: Any, context: Any) -> connect_pb2.CancelConnectResponse:
        return connect_pb2.CancelConnectResponse()

    async def ConfirmConnect(
        self, request: connect_pb2.ConfirmConnectRequest, context: Any
    ) -> connect_pb2.ConfirmConnectResponse:
        if request.session_id != "session-1":
            raise NotFound("there is no such sign-in", reason=Reason.CONNECT_SESSION_NOT_FOUND)
        if request.confirm_code != CONFIRM_CODE:
            raise InvalidArgument("the code is wrong", reason=Reason.CONFIRM_CODE_INVALID, field="confirm_code")
        self._auth.confirmed.append(request.session_id)
        return connect_pb2.ConfirmConnectResponse()

    async def RequestSignIn(
        self, request: connect_pb2.RequestSignInRequest, context: Any
    ) -> connect_pb2.RequestSignInResponse:
        self._auth.sign_ins_requested.append(request)
        if not self._auth.has_page:
            raise FailedPrecondition("nothing can be connected", reason=Reason.INTEGRATION_DISABLED)
        session = connect_pb2.ConnectSession(session_id="session-1", connect_url="https://example.com/connect/1")
        return connect_pb2.RequestSignInResponse(session=session)
