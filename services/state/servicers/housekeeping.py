"""HousekeepingService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import housekeeping_service_pb2 as pb
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceServicer
from services.shared.database import Database
from services.shared.identity import current_identity
from services.state import housekeeping_report as report
from services.state import housekeeping_settings as settings
from services.state.export import export, scope_of
from services.state.housekeeping_erase import Erasing
from services.state.housekeeping_store import Erasure
from services.state.idempotence import write_once

OPERATOR = "operator"

Context = grpc.aio.ServicerContext[Any, Any]


class HousekeepingServicer(HousekeepingServiceServicer):
    """Serves settings, exports, erasures and reports.

    Args:
        db: Where everything is.
        erasing: Erases.
    """

    def __init__(self, db: Database, erasing: Erasing) -> None:
        self._db = db
        self._erasing = erasing

    async def GetWorkspaceSettings(
        self, request: pb.GetWorkspaceSettingsRequest, context: Context
    ) -> pb.GetWorkspaceSettingsResponse:
        found = await self._db.read(settings.get_settings, request.workspace_id)
        return pb.GetWorkspaceSettingsResponse(settings=found)

    async def UpdateWorkspaceSettings(
        self, request: pb.UpdateWorkspaceSettingsRequest, context: Context
    ) -> pb.UpdateWorkspaceSettingsResponse:
        stored = await write_once(
            self._db,
            settings.update_settings,
            self._db,
            request.workspace_id,
            request.settings,
            list(request.update_mask.paths),
            is_operator=current_identity().service == OPERATOR,
            etag=request.etag,
            request_id=request.request_id,
            fingerprint=request.request_fingerprint,
        )
        return pb.UpdateWorkspaceSettingsResponse(settings=stored)

    async def ExportData(self, request: pb.ExportDataRequest, context: Context) -> AsyncIterator[pb.ExportDataResponse]:
        scope = scope_of(request.workspace_id, request.scope)
        async for records, cursor in export(self._db, scope, request.cursor):
            yield pb.ExportDataResponse(records=records, cursor=cursor)

    async def EraseData(self, request: pb.EraseDataRequest, context: Context) -> AsyncIterator[pb.EraseDataResponse]:
        scope = scope_of(request.workspace_id, request.scope)
        if request.validate_only:
            yield pb.EraseDataResponse(erased=await self._erasing.preview(scope), is_done=True)
            return
        last = pb.EraseDataResponse(is_done=True)
        erasure = Erasure(request.requested_by, request.request_id)
        async for erased in self._erasing.erase(scope, erasure, cancel_first=request.cancel_first):
            last.erased.CopyFrom(erased)
            yield pb.EraseDataResponse(erased=erased)
        yield last

    async def GetWorkspaceStorage(
        self, request: pb.GetWorkspaceStorageRequest, context: Context
    ) -> pb.GetWorkspaceStorageResponse:
        found = await self._db.read(report.workspace_storage, self._db, request.workspace_id)
        return pb.GetWorkspaceStorageResponse(storage=found)

    async def GetStorageReport(
        self, request: pb.GetStorageReportRequest, context: Context
    ) -> pb.GetStorageReportResponse:
        response = pb.GetStorageReportResponse(database=await self._db.read(report.database_storage, self._db))
        for workspace_id in await self._db.read(report.workspaces_with_data):
            response.workspaces.append(await self._db.read(report.workspace_storage, self._db, workspace_id))
        return response
