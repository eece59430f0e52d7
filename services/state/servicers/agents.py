"""AgentStoreService."""

from __future__ import annotations

from typing import Any

import grpc.aio

from holdfast.api.state.v1 import agent_store_service_pb2 as pb
from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceServicer
from services.shared.database import Database
from services.state import agent_store
from services.state.idempotence import write_once
from services.state.servicers.pages import page_of, page_size

Context = grpc.aio.ServicerContext[Any, Any]


class AgentStoreServicer(AgentStoreServiceServicer):
    """Serves agents as stored."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def PutAgentRevision(
        self, request: pb.PutAgentRevisionRequest, context: Context
    ) -> pb.PutAgentRevisionResponse:
        revision, created = await write_once(
            self._db,
            agent_store.put_revision,
            self._db,
            request.workspace_id,
            request.revision,
            request.spec,
            request.request_id,
            request.request_fingerprint,
        )
        return pb.PutAgentRevisionResponse(revision=revision, created=created)

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        agent = await self._db.read(agent_store.get_agent, request.workspace_id, request.agent)
        return pb.GetAgentResponse(agent=agent)

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        found = await self._db.read(
            agent_store.list_agents, request.workspace_id, page_size(request) + 1, request.after_name
        )
        agents, has_more = page_of(found, request)
        return pb.ListAgentsResponse(agents=agents, has_more=has_more)

    async def GetAgentRevision(
        self, request: pb.GetAgentRevisionRequest, context: Context
    ) -> pb.GetAgentRevisionResponse:
        revision = await self._db.read(agent_store.get_revision, request.workspace_id, request.agent, request.revision)
        return pb.GetAgentRevisionResponse(revision=revision)

    async def ListAgentRevisions(
        self, request: pb.ListAgentRevisionsRequest, context: Context
    ) -> pb.ListAgentRevisionsResponse:
        revisions, position = await self._db.read(
            agent_store.list_revisions, request.workspace_id, request.agent, page_size(request), request.position
        )
        return pb.ListAgentRevisionsResponse(revisions=revisions, next_position=position)

    async def PutAgentLabel(self, request: pb.PutAgentLabelRequest, context: Context) -> pb.PutAgentLabelResponse:
        agent = await write_once(
            self._db,
            agent_store.put_label,
            self._db,
            request.workspace_id,
            request.agent,
            request.label,
            request.revision,
            request.request_id,
            request.request_fingerprint,
        )
        return pb.PutAgentLabelResponse(agent=agent)
