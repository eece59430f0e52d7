"""What trace calls, in memory behind a real server: state's feed, definitions and blobs, and auth's keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message

from holdfast.api.auth.v1 import api_key_service_pb2
from holdfast.api.common.v1.agent_pb2 import AgentRevision, AgentSpec
from holdfast.api.state.v1 import agent_store_service_pb2, change_feed_service_pb2, journal_service_pb2
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from holdfast.errors import InvalidArgument, NotFound, Reason, Unauthenticated, Unavailable
from services.shared.access import Access, service_access
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import Telemetry

FEED = "holdfast.api.state.v1.ChangeFeedService"
AGENTS = "holdfast.api.state.v1.AgentStoreService"
JOURNAL = "holdfast.api.state.v1.JournalService"
KEYS = "holdfast.api.auth.v1.ApiKeyService"


class FakeFeed:
    """A feed that a test fills, cuts and repeats.

    Attributes:
        frame_size: Most events in a frame, below what the reader asks for.
        redelivered: How many events before the reader's cursor come again when it follows anew.
        frames_until_break: The stream breaks after so many frames; None lets it be.
        generation: Part of every cursor; another one makes the cursors of before unknown.
        starts: The cursors with which readers began, in order.
        frames_sent: Frames with events, over all streams.
        removed: Runs whose events were read and are not stored any more.
    """

    def __init__(self) -> None:
        self.frame_size = 10_000
        self.redelivered = 0
        self.frames_until_break: int | None = None
        self.generation = 1
        self.starts: list[bytes] = []
        self.frames_sent = 0
        self.removed: set[str] = set()
        self.open_streams = 0
        self._entries: list[FeedEntry] = []
        self._allowed: int | None = None
        self._changed = asyncio.Condition()

    async def add(self, *entries: FeedEntry) -> None:
        """Commits events."""
        async with self._changed:
            self._entries.extend(entries)
            self._changed.notify_all()

    async def allow_frames(self, count: int | None) -> None:
        """Holds the feed back until it may send so many more frames; None sets it free."""
        async with self._changed:
            self._allowed = None if count is None else self.frames_sent + count
            self._changed.notify_all()

    async def wait_for_frames(self, count: int) -> None:
        """Returns when so many frames with events were sent."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: self.frames_sent >= count)

    async def wait_for_streams(self, count: int) -> None:
        """Returns when so many readers follow."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: self.open_streams == count)

    def cursor(self, position: int) -> bytes:
        """The cursor after so many events."""
        return f"{self.generation}:{position}".encode()

    async def Follow(
        self, request: change_feed_service_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[change_feed_service_pb2.FollowResponse]:
        """The events after a cursor, then those that follow."""
        self.starts.append(request.cursor)
        generation, _, position = request.cursor.decode().partition(":")
        if request.cursor and generation != str(self.generation):
            raise InvalidArgument("the cursor is not of this feed", field="cursor")
        first = max(0, int(position or 0) - self.redelivered)
        size = min(self.frame_size, request.max_entries or 500)
        await self._count_stream(1)
        try:
            frames = 0
            while True:
                if self.frames_until_break is not None and frames >= self.frames_until_break:
                    raise Unavailable("the feed breaks", reason=Reason.DRAINING)
                async with self._changed:
                    entries = self._entries[first : first + size] if self._may_send() else []
                if entries:
                    first += len(entries)
                yield change_feed_service_pb2.FollowResponse(
                    entries=entries, cursor=self.cursor(first), is_caught_up=first == len(self._entries)
                )
                async with self._changed:
                    if entries:
                        frames += 1
                        self.frames_sent += 1
                        self._changed.notify_all()
                    # A frame without events is the beat; the next one comes when there is something to say.
                    while not self._entries[first:] or not self._may_send():
                        await self._changed.wait()
        finally:
            await self._count_stream(-1)

    async def ReadJournal(
        self, request: journal_service_pb2.ReadJournalRequest, context: Any
    ) -> AsyncIterator[journal_service_pb2.ReadJournalResponse]:
        """The events of a run, each once."""
        events = {
            entry.event.seq: entry.event
            for entry in self._entries
            if (entry.workspace_id, entry.event.run_id) == (request.workspace_id, request.run_id)
        }
        if not events or request.run_id in self.removed:
            raise NotFound("there is no such run", reason=Reason.RUN_NOT_FOUND)
        yield journal_service_pb2.ReadJournalResponse(events=[events[seq] for seq in sorted(events)])

    def _may_send(self) -> bool:
        return self._allowed is None or self.frames_sent < self._allowed

    async def _count_stream(self, change: int) -> None:
        async with self._changed:
            self.open_streams += change
            self._changed.notify_all()


class FakeAgents:
    """Definitions by workspace, agent and revision."""

    def __init__(self) -> None:
        self.specs: dict[tuple[str, str, str], AgentSpec] = {}
        self.reads = 0

    async def GetAgentRevision(
        self, request: agent_store_service_pb2.GetAgentRevisionRequest, context: Any
    ) -> agent_store_service_pb2.GetAgentRevisionResponse:
        """One revision."""
        self.reads += 1
        spec = self.specs.get((request.workspace_id, request.agent, request.revision))
        if spec is None:
            raise NotFound("there is no such revision", reason=Reason.REVISION_NOT_FOUND)
        return agent_store_service_pb2.GetAgentRevisionResponse(
            revision=AgentRevision(revision=request.revision, agent=request.agent, spec=spec)
        )


class FakeBlobs:
    """Bodies by workspace and hash, read in small pieces."""

    def __init__(self) -> None:
        self.bodies: dict[tuple[str, bytes], bytes] = {}
        self.reads = 0

    def keep(self, workspace_id: str, bodies: dict[bytes, bytes]) -> None:
        """Stores bodies for a workspace."""
        self.bodies.update({(workspace_id, blob_hash): body for blob_hash, body in bodies.items()})

    async def ReadBlob(
        self, request: journal_service_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[journal_service_pb2.ReadBlobResponse]:
        """A stored body."""
        self.reads += 1
        body = self.bodies.get((request.workspace_id, request.hash))
        if body is None:
            raise NotFound("there is no such blob", reason=Reason.BLOB_NOT_FOUND)
        for start in range(0, max(1, len(body)), 1_000):
            yield journal_service_pb2.ReadBlobResponse(data=body[start : start + 1_000], size=len(body))


class FakeKeys:
    """API keys: what each may do, and in which workspace."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, tuple[str, ...]]] = {}

    async def VerifyApiKey(
        self, request: api_key_service_pb2.VerifyApiKeyRequest, context: Any
    ) -> api_key_service_pb2.VerifyApiKeyResponse:
        """Whose a key is."""
        found = self.known.get(request.secret)
        if found is None:
            raise Unauthenticated("the API key is not valid", reason=Reason.API_KEY_INVALID)
        workspace_id, scopes = found
        return api_key_service_pb2.VerifyApiKeyResponse(
            workspace_id=workspace_id, api_key_id=f"id-of-{request.secret}", scopes=scopes
        )


class FakePeers:
    """State and auth of a trace service under test, on one port."""

    def __init__(self) -> None:
        self.feed = FakeFeed()
        self.agents = FakeAgents()
        self.blobs = FakeBlobs()
        self.keys = FakeKeys()

    def server(self, settings: CommonSettings, telemetry: Telemetry) -> Server:
        """Returns the server, not yet started. It has the methods that trace calls, and no others."""
        trace = Access(services=("trace",), traced=False)
        access = {
            **service_access(FEED, {"Follow": trace}),
            **service_access(AGENTS, {"GetAgentRevision": trace}),
            **service_access(JOURNAL, {"ReadBlob": trace, "ReadJournal": trace}),
            **service_access(KEYS, {"VerifyApiKey": trace}),
        }
        server = Server(settings, service="state", access=access, telemetry=telemetry)
        server.add(_registers(FEED, "Follow", change_feed_service_pb2.FollowRequest, streams=True), self.feed)
        server.add(_registers(AGENTS, "GetAgentRevision", agent_store_service_pb2.GetAgentRevisionRequest), self.agents)
        server.add(_registers(JOURNAL, "ReadBlob", journal_service_pb2.ReadBlobRequest, streams=True), self.blobs)
        server.add(_registers(JOURNAL, "ReadJournal", journal_service_pb2.ReadJournalRequest, streams=True), self.feed)
        server.add(_registers(KEYS, "VerifyApiKey", api_key_service_pb2.VerifyApiKeyRequest), self.keys)
        return server


def _registers(service: str, method: str, request: type[Message], *, streams: bool = False) -> Any:
    """Returns what generated code has for a whole service, for one of its methods."""
    make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler

    def add_to_server(servicer: object, server: Any) -> None:
        handlers: Any = {
            method: make(
                getattr(servicer, method),
                request_deserializer=request.FromString,
                response_serializer=lambda response: response.SerializeToString(),
            )
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_registered_method_handlers(service, handlers)

    return add_to_server
