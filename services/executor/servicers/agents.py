"""`AgentService`: definitions become immutable revisions; labels point to them."""

from __future__ import annotations

from typing import Any

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.executor.v1 import agent_service_pb2 as api
from holdfast.api.executor.v1.agent_service_pb2_grpc import AgentServiceServicer
from holdfast.api.state.v1 import agent_store_service_pb2 as store
from holdfast.errors import FieldViolation, InvalidArgument, NotFound, Reason
from services.executor.agents import LABEL_PATTERN, LATEST, revision_id, validate_agent
from services.executor.budget_rules import check_prices
from services.executor.revisions import RevisionCache
from services.executor.servicers.fields import agent_field, fingerprint, plain_field, request_id_field
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.identity import current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size


class AgentServicer(AgentServiceServicer):
    """Translates between clients and state.

    Args:
        state: The state service.
        revisions: Revisions that are known already.
        page_key: Signs page tokens.
    """

    def __init__(self, state: StateStubs, revisions: RevisionCache, *, page_key: bytes) -> None:
        self._agents = state.agents
        self._revisions = revisions
        self._page_key = page_key

    async def ApplyAgent(self, request: api.ApplyAgentRequest, context: Any) -> api.ApplyAgentResponse:
        """Stores a definition as a revision."""
        if not request.HasField("spec"):
            raise InvalidArgument("is required", field="spec")
        request_id = request_id_field(request.request_id)
        validate_agent(request.spec)
        await check_prices(request.spec, request.spec.limits.budget, "limits.budget")
        await self._check_called_agents(current_workspace(), request.spec, set(request.applied_together))
        revision = revision_id(request.spec)
        if request.validate_only:
            return await self._would_be(current_workspace(), revision, request.spec)
        with calling("state"):
            stored = await self._agents.PutAgentRevision(
                store.PutAgentRevisionRequest(
                    workspace_id=current_workspace(),
                    revision=revision,
                    spec=request.spec,
                    request_id=request_id,
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.ApplyAgentResponse(revision=stored.revision, created=stored.created)

    async def _check_called_agents(self, workspace_id: str, spec: agent_pb2.AgentSpec, to_come: set[str]) -> None:
        """Refuses a definition that calls agents which are not there. They may call each other: depth ends that."""
        missing: list[FieldViolation] = []
        for index, tool in enumerate(spec.tools):
            called = tool.agent
            # What is applied here is its own `latest` from now on.
            is_itself = called.agent == spec.name and called.revision in ("", LATEST)
            if tool.WhichOneof("kind") != "agent" or is_itself or called.agent in to_come:
                continue
            try:
                await self._revisions.resolve(workspace_id, called.agent, called.revision)
            except NotFound as error:
                missing.append(FieldViolation(f"tools[{index}].agent", f"{error.message}: apply it first"))
        if missing:
            listed = "; ".join(f"{violation.field}: {violation.description}" for violation in missing[:10])
            raise InvalidArgument(
                f"the agent's definition is not valid: {listed}", reason=Reason.INVALID_FIELD, field_violations=missing
            )

    async def _would_be(self, workspace_id: str, revision: str, spec: agent_pb2.AgentSpec) -> api.ApplyAgentResponse:
        try:
            known = await self._revisions.resolve(workspace_id, spec.name, revision)
        except NotFound:
            new = agent_pb2.AgentRevision(revision=revision, agent=spec.name, spec=spec)
            return api.ApplyAgentResponse(revision=new, created=True)
        return api.ApplyAgentResponse(revision=known, created=False)

    async def GetAgent(self, request: api.GetAgentRequest, context: Any) -> api.GetAgentResponse:
        """One agent."""
        with calling("state"):
            found = await self._agents.GetAgent(
                store.GetAgentRequest(workspace_id=current_workspace(), agent=agent_field(request.agent))
            )
        return api.GetAgentResponse(agent=found.agent)

    async def ListAgents(self, request: api.ListAgentsRequest, context: Any) -> api.ListAgentsResponse:
        """All agents by name."""
        workspace_id = current_workspace()
        bound_to = ("ListAgents", workspace_id)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"after": ""}
        with calling("state"):
            page = await self._agents.ListAgents(
                store.ListAgentsRequest(
                    workspace_id=workspace_id, page_size=page_size(request.page_size), after_name=after["after"]
                )
            )
        response = api.ListAgentsResponse(agents=page.agents)
        if page.has_more and page.agents:
            position = {"after": page.agents[-1].name}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response

    async def GetAgentRevision(
        self, request: api.GetAgentRevisionRequest, context: Any
    ) -> api.GetAgentRevisionResponse:
        """One revision, by its id or a label."""
        agent, revision = agent_field(request.agent), plain_field("revision", request.revision)
        return api.GetAgentRevisionResponse(
            revision=await self._revisions.resolve(current_workspace(), agent, revision)
        )

    async def ListAgentRevisions(
        self, request: api.ListAgentRevisionsRequest, context: Any
    ) -> api.ListAgentRevisionsResponse:
        """The revisions of an agent, newest first."""
        workspace_id, agent = current_workspace(), agent_field(request.agent)
        bound_to = ("ListAgentRevisions", workspace_id, agent)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"position": ""}
        with calling("state"):
            page = await self._agents.ListAgentRevisions(
                store.ListAgentRevisionsRequest(
                    workspace_id=workspace_id,
                    agent=agent,
                    page_size=page_size(request.page_size),
                    position=after["position"],
                )
            )
        response = api.ListAgentRevisionsResponse(revisions=page.revisions)
        if page.next_position:
            position = {"position": page.next_position}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response

    async def SetAgentLabel(self, request: api.SetAgentLabelRequest, context: Any) -> api.SetAgentLabelResponse:
        """Points a label to a revision."""
        agent, request_id = agent_field(request.agent), request_id_field(request.request_id)
        if request.label == LATEST:
            raise InvalidArgument("`latest` is moved by ApplyAgent only", field="label")
        if LABEL_PATTERN.fullmatch(request.label) is None:
            raise InvalidArgument("expected a label of the form [a-z][a-z0-9-]{0,62}", field="label")
        with calling("state"):
            labelled = await self._agents.PutAgentLabel(
                store.PutAgentLabelRequest(
                    workspace_id=current_workspace(),
                    agent=agent,
                    label=request.label,
                    revision=plain_field("revision", request.revision),
                    request_id=request_id,
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.SetAgentLabelResponse(agent=labelled.agent)
