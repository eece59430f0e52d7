"""LeaseService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import lease_service_pb2 as pb
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceServicer
from services.state.leases import Leases

Context = grpc.aio.ServicerContext[Any, Any]


class LeaseServicer(LeaseServiceServicer):
    """Serves executors' streams."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def Work(
        self, request_iterator: AsyncIterator[pb.WorkRequest], context: Context
    ) -> AsyncIterator[pb.WorkResponse]:
        async for response in self._leases.work(request_iterator):
            yield response
