"""What trace reads from state when somebody asks for a step: definitions, what was said, and large bodies."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import grpc.aio

from holdfast.api.common.v1.agent_pb2 import AgentSpec
from holdfast.api.common.v1.content_pb2 import BlobRef
from holdfast.api.common.v1.run_pb2 import Event
from holdfast.api.state.v1.agent_store_service_pb2 import GetAgentRevisionRequest
from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceStub
from holdfast.api.state.v1.journal_service_pb2 import ReadBlobRequest, ReadJournalRequest
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.errors import NotFound, Reason
from services.shared.channels import calling

_REVISIONS: Final = 256
_CACHED_BLOB_BYTES: Final = 32 * 1024 * 1024
_PARALLEL_READS: Final = 8
_BLOB_DEADLINE_SECONDS: Final = 30.0
_REVISION_DEADLINE_SECONDS: Final = 10.0


class StateClient:
    """Typed reads from state. Revisions and blobs are kept, bounded, because they are immutable.

    Args:
        channel: To the state service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._agents = AgentStoreServiceStub(channel)
        self._journal = JournalServiceStub(channel)
        # The workspace is part of each key: a name or a hash of one workspace opens nothing of another.
        self._revisions: OrderedDict[tuple[str, str, str], AgentSpec] = OrderedDict()
        self._blobs: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._blob_bytes = 0

    async def agent_spec(self, workspace_id: str, agent: str, revision: str) -> AgentSpec:
        """Returns the definition of a revision.

        Raises:
            NotFound: State has no such revision.
            Unavailable: State does not answer.
        """
        key = (workspace_id, agent, revision)
        known = self._revisions.get(key)
        if known is not None:
            self._revisions.move_to_end(key)
            return known
        with calling("state"):
            response = await self._agents.GetAgentRevision(
                GetAgentRevisionRequest(workspace_id=workspace_id, agent=agent, revision=revision),
                timeout=_REVISION_DEADLINE_SECONDS,
            )
        spec = response.revision.spec
        self._revisions[key] = spec
        while len(self._revisions) > _REVISIONS:
            self._revisions.popitem(last=False)
        return spec

    async def events(self, workspace_id: str, run_id: str) -> list[Event]:
        """Returns a run's events with all that was said.

        Raises:
            NotFound: State does not have the run (any more); the reason is CONTENT_REMOVED.
            Unavailable: State does not answer.
        """
        request = ReadJournalRequest(workspace_id=workspace_id, run_id=run_id)
        try:
            with calling("state"):
                stream = self._journal.ReadJournal(request, timeout=_BLOB_DEADLINE_SECONDS)
                return [event async for frame in stream for event in frame.events]
        except NotFound as error:
            raise NotFound(
                "what was said in the run is not stored any more",
                reason=Reason.CONTENT_REMOVED,
                metadata={"run_id": run_id},
            ) from error

    async def blobs(self, workspace_id: str, refs: Iterable[BlobRef]) -> dict[bytes, bytes]:
        """Returns the bodies under their hashes.

        Raises:
            NotFound: State does not have one of them (any more); the reason is BLOB_NOT_FOUND.
            Unavailable: State does not answer.
        """
        found: dict[bytes, bytes] = {}
        missing: list[bytes] = []
        for blob_hash in {ref.hash for ref in refs}:
            known = self._blobs.get((workspace_id, blob_hash))
            if known is None:
                missing.append(blob_hash)
            else:
                self._blobs.move_to_end((workspace_id, blob_hash))
                found[blob_hash] = known
        turns = asyncio.Semaphore(_PARALLEL_READS)

        async def read(blob_hash: bytes) -> None:
            async with turns:
                found[blob_hash] = await self._read_blob(workspace_id, blob_hash)

        if missing:
            async with asyncio.TaskGroup() as group:
                for blob_hash in missing:
                    group.create_task(read(blob_hash))
        return found

    async def _read_blob(self, workspace_id: str, blob_hash: bytes) -> bytes:
        body = bytearray()
        with calling("state"):
            stream = self._journal.ReadBlob(
                ReadBlobRequest(workspace_id=workspace_id, hash=blob_hash), timeout=_BLOB_DEADLINE_SECONDS
            )
            async for piece in stream:
                body += piece.data
        data = bytes(body)
        if len(data) <= _CACHED_BLOB_BYTES // 4 and (workspace_id, blob_hash) not in self._blobs:
            self._blobs[workspace_id, blob_hash] = data
            self._blob_bytes += len(data)
            while self._blob_bytes > _CACHED_BLOB_BYTES:
                _, dropped = self._blobs.popitem(last=False)
                self._blob_bytes -= len(dropped)
        return data
