"""What a workspace keeps: how long, all of it as an export, how much it is, and its erasure. For administrators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.common.v1 import workspace_pb2
from holdfast.api.executor.v1 import workspace_service_pb2
from holdfast.api.executor.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.errors import InvalidArgument
from holdfast.ids import new_uuid7
from holdfast.transport import Transport, cancelling

STORAGE_SECONDS: Final = 60.0


def scope(*, session_id: str = "", user_id: str = "", everything: bool = False) -> workspace_pb2.DataScope:
    """Returns a part of a workspace's data.

    Raises:
        InvalidArgument: Not exactly one is given.
    """
    if bool(session_id) + bool(user_id) + everything != 1:
        raise InvalidArgument("name a session, a user, or everything", field="scope")
    if session_id:
        return workspace_pb2.DataScope(session_id=session_id)
    return workspace_pb2.DataScope(user_id=user_id) if user_id else workspace_pb2.DataScope(everything=True)


class Housekeeping:
    """The workspace of the client's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", WorkspaceServiceStub)

    async def settings(self) -> workspace_pb2.WorkspaceSettings:
        """Returns what the workspace may use and how long it keeps what has ended."""
        request = workspace_service_pb2.GetWorkspaceSettingsRequest()
        return (await self._transport.call("executor", self._stub.GetWorkspaceSettings, request)).settings

    async def update_settings(
        self, settings: workspace_pb2.WorkspaceSettings, fields: list[str], *, etag: str = ""
    ) -> workspace_pb2.WorkspaceSettings:
        """Changes how long the workspace keeps what has ended.

        Args:
            settings: The new values.
            fields: Which of them to take; one that is named and unset goes back to its default.
            etag: Change nothing unless the settings are still those of this etag.

        Raises:
            InvalidArgument: With the fields that are wrong.
            Conflict: The settings were changed since.
        """
        request = workspace_service_pb2.UpdateWorkspaceSettingsRequest(
            settings=settings, update_mask=FieldMask(paths=fields), etag=etag, request_id=new_uuid7()
        )
        return (await self._transport.call("executor", self._stub.UpdateWorkspaceSettings, request)).settings

    async def keep(
        self,
        *,
        ended_runs: timedelta | None = None,
        idle_sessions: timedelta | None = None,
        keep_latest_runs: int = 0,
    ) -> workspace_pb2.WorkspaceSettings:
        """Says how long the workspace keeps what has ended; None is for ever."""
        settings = workspace_pb2.WorkspaceSettings(keep_latest_runs=keep_latest_runs)
        if ended_runs is not None:
            settings.ended_runs_kept.FromTimedelta(ended_runs)
        if idle_sessions is not None:
            settings.idle_sessions_kept.FromTimedelta(idle_sessions)
        return await self.update_settings(settings, ["ended_runs_kept", "idle_sessions_kept", "keep_latest_runs"])

    async def export(
        self, *, session_id: str = "", user_id: str = "", cursor: str = ""
    ) -> AsyncIterator[workspace_service_pb2.ExportWorkspaceDataResponse]:
        """Yields the workspace's data, or that of a session or user, in pieces.

        Args:
            session_id: Only this conversation.
            user_id: Only the conversations of this user.
            cursor: Goes on behind a piece of an earlier, broken export of the same.
        """
        everything = not (session_id or user_id)
        request = workspace_service_pb2.ExportWorkspaceDataRequest(
            scope=scope(session_id=session_id, user_id=user_id, everything=everything), cursor=cursor
        )
        try:
            async with cancelling(
                self._stub.ExportWorkspaceData(request, metadata=self._transport.metadata())
            ) as frames:
                async for frame in frames:
                    yield frame
        except grpc.RpcError as error:
            raise self._transport.error("executor", error) from error

    async def erase(
        self,
        *,
        session_id: str = "",
        user_id: str = "",
        everything: bool = False,
        cancel_first: bool = False,
        dry_run: bool = False,
    ) -> AsyncIterator[workspace_service_pb2.EraseWorkspaceDataResponse]:
        """Erases a conversation, those of a user, or everything, and yields how far it is.

        It stops when its reader leaves; the same again goes on.

        Args:
            session_id: This conversation.
            user_id: The conversations of this user.
            everything: All that the workspace has.
            cancel_first: Cancel what runs, instead of refusing.
            dry_run: Erase nothing, and say what would be erased.

        Raises:
            FailedPrecondition: SESSION_BUSY: runs have not ended.
        """
        request = workspace_service_pb2.EraseWorkspaceDataRequest(
            scope=scope(session_id=session_id, user_id=user_id, everything=everything),
            cancel_first=cancel_first,
            validate_only=dry_run,
            request_id=new_uuid7(),
        )
        try:
            async with cancelling(
                self._stub.EraseWorkspaceData(request, metadata=self._transport.metadata())
            ) as frames:
                async for frame in frames:
                    yield frame
        except grpc.RpcError as error:
            raise self._transport.error("executor", error) from error

    async def storage(self) -> workspace_pb2.WorkspaceStorage:
        """Returns how much the workspace keeps."""
        request = workspace_service_pb2.GetWorkspaceStorageRequest()
        response = await self._transport.call(
            "executor", self._stub.GetWorkspaceStorage, request, timeout=STORAGE_SECONDS
        )
        return response.storage
