"""DataKeyService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import data_key_service_pb2 as pb
from holdfast.api.auth.v1.data_key_service_pb2_grpc import DataKeyServiceServicer
from services.auth.data_keys import DataKeys
from services.auth.servicers.messages import to_payload_sealing


class DataKeyServicer(DataKeyServiceServicer):
    """Serves DataKeyService."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    async def CreateDataKey(self, request: pb.CreateDataKeyRequest, context: Any) -> pb.CreateDataKeyResponse:
        """Makes a data key."""
        made = await self._keys.create(request.workspace_id)
        return pb.CreateDataKeyResponse(key=made.key.reveal(), wrapped=made.wrapped)

    async def UnwrapDataKey(self, request: pb.UnwrapDataKeyRequest, context: Any) -> pb.UnwrapDataKeyResponse:
        """Unwraps a data key."""
        key = await self._keys.unwrap(request.workspace_id, request.wrapped)
        return pb.UnwrapDataKeyResponse(key=key.reveal())

    async def CheckPayloadSealing(
        self, request: pb.CheckPayloadSealingRequest, context: Any
    ) -> pb.CheckPayloadSealingResponse:
        """Tells what workspaces have chosen about sealing."""
        found = await self._keys.sealing_of(request.workspace_ids)
        return pb.CheckPayloadSealingResponse(payload_sealing=map(to_payload_sealing, found))
