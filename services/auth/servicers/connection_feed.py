"""ConnectionFeedService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from holdfast.api.auth.v1 import connection_feed_service_pb2 as pb
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceServicer
from holdfast.errors import InvalidArgument
from services.auth.connection_news import ConnectionNews, SignIn
from services.auth.servicers.messages import to_connection

MAX_SIGN_INS: Final = 500


class ConnectionFeedServicer(ConnectionFeedServiceServicer):
    """Serves ConnectionFeedService."""

    def __init__(self, news: ConnectionNews) -> None:
        self._news = news

    async def WatchConnections(
        self, request: pb.WatchConnectionsRequest, context: Any
    ) -> AsyncIterator[pb.WatchConnectionsResponse]:
        """Streams connections as they change."""
        async for connection in self._news.follow():
            if connection is None:
                yield pb.WatchConnectionsResponse()
            else:
                yield pb.WatchConnectionsResponse(
                    workspace_id=connection.workspace_id, connection=to_connection(connection)
                )

    async def CheckSignIns(self, request: pb.CheckSignInsRequest, context: Any) -> pb.CheckSignInsResponse:
        """Tells which sign-ins exist by now."""
        if len(request.sign_ins) > MAX_SIGN_INS:
            raise InvalidArgument(
                "there are too many sign-ins", field="sign_ins", description=f"expected at most {MAX_SIGN_INS}"
            )
        usable = await self._news.check(
            [
                SignIn(
                    workspace_id=item.workspace_id,
                    user_id=item.user_id,
                    connection=item.connection,
                    scopes=tuple(item.scopes),
                    rejected_fingerprint=item.rejected_fingerprint,
                )
                for item in request.sign_ins
            ]
        )
        return pb.CheckSignInsResponse(is_usable=usable)
