"""A worker that says exactly what a test tells it to say, right or wrong."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import grpc.aio

from holdfast.api.executor.v1 import tool_worker_service_pb2 as pb
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import ToolWorkerServiceStub
from holdfast.ids import new_uuid7

_BEAT_SECONDS = 1.0


class RawWorker:
    """One stream of the worker protocol, driven by hand.

    Args:
        address: The executor.
        api_key: The workspace's key.
        tools: Names of the tools that it serves.
    """

    def __init__(self, address: str, api_key: str, *tools: str) -> None:
        self.worker_id = new_uuid7()
        self._tools = tools
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._stub = ToolWorkerServiceStub(self._channel)
        self._writing = asyncio.Lock()
        self._running: set[str] = set()

    async def __aenter__(self) -> Self:
        self._call = self._stub.Work(metadata=self._metadata)
        hello = pb.WorkerHello(
            worker_id=self.worker_id, tools=[pb.ServedTool(name=name) for name in self._tools], slots=4, client="raw"
        )
        await self._write(pb.WorkRequest(hello=hello))
        assert (await self.read()).HasField("welcome")
        self._beating = asyncio.create_task(self._beat_forever())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._beating.cancel()
        self._call.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        await self._channel.close()

    async def read(self) -> pb.WorkResponse:
        """The executor's next message."""
        response = await self._call.read()
        assert isinstance(response, pb.WorkResponse), "the stream has ended"
        return response

    async def offered(self) -> pb.CallOffer:
        """Waits for an offer."""
        while not (response := await self.read()).HasField("offer"):
            pass
        return response.offer

    async def begin(self, offer: pb.CallOffer) -> None:
        """Accepts an offer and waits for `go`."""
        self._running.add(offer.lease)
        await self._write(pb.WorkRequest(start=pb.StartCall(lease=offer.lease)))
        while not (response := await self.read()).HasField("go"):
            assert not response.HasField("cancel"), response

    async def complete(self, lease: str, *, result_json: str | None = None, error: pb.CallError | None = None) -> None:
        """Reports the end of a call.

        Raises:
            AioRpcError: It was refused.
        """
        request = pb.CompleteCallRequest(worker_id=self.worker_id, lease=lease, result_json=result_json, error=error)
        await self._stub.CompleteCall(request, metadata=self._metadata, timeout=15)

    async def _write(self, request: pb.WorkRequest) -> None:
        async with self._writing:
            await self._call.write(request)

    async def _beat_forever(self) -> None:
        while True:
            await self._write(pb.WorkRequest(heartbeat=pb.WorkerHeartbeat(running=dict.fromkeys(self._running, ""))))
            await asyncio.sleep(_BEAT_SECONDS)
