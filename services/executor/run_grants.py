"""The right of a run to use connections: asked of auth when the run is started, fetched where it is driven."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Final

from holdfast.api.auth.v1 import grant_service_pb2 as grant_pb2
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.common.v1 import agent_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub
from holdfast.errors import NotFound
from services.executor.revisions import RevisionCache
from services.shared.channels import calling

WITHOUT_CREDENTIAL: Final = frozenset({"scripted"})
"""Model providers that want no credential."""

_MAX_ENTRIES: Final = 4_096
_MAX_AGENTS: Final = 100


def model_connection(model: agent_pb2.ModelSpec) -> str:
    """Returns the name of the connection that a model uses; empty when it wants none."""
    return "" if model.provider in WITHOUT_CREDENTIAL else model.connection or model.provider


def declared_connections(*specs: agent_pb2.AgentSpec) -> list[grant_pb2.GrantedConnection]:
    """Returns what agents' models and tools declare, each connection once with the union of its permissions."""
    scopes: dict[str, dict[str, None]] = {}
    for spec in specs:
        if name := model_connection(spec.model):
            scopes.setdefault(name, {})
        if spec.limits.HasField("cheaper_model") and (name := model_connection(spec.limits.cheaper_model)):
            scopes.setdefault(name, {})
        for tool in spec.tools:
            if tool.HasField("auth"):
                scopes.setdefault(tool.auth.connection, {}).update(dict.fromkeys(tool.auth.scopes))
    return [grant_pb2.GrantedConnection(name=name, scopes=wanted) for name, wanted in scopes.items()]


class RunGrants:
    """Grants of runs.

    Args:
        auth: Signs them.
        runs: Keeps them beside the runs.
        revisions: The agents that an agent may call: what they declare is asked for with its own.
    """

    def __init__(self, auth: GrantServiceStub, runs: RunStoreServiceStub, revisions: RevisionCache) -> None:
        self._auth = auth
        self._runs = runs
        self._revisions = revisions
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def issue(
        self, workspace_id: str, spec: agent_pb2.AgentSpec, *, run_id: str, user_id: str, caller_credential: str
    ) -> str:
        """Returns the grant for a run that its caller starts; empty for an agent that declares no connection.

        Raises:
            HoldfastError: Auth refuses it, or does not answer.
        """
        connections = await self._declared(workspace_id, spec)
        if not connections:
            return ""
        with calling("auth"):
            answer = await self._auth.IssueRunGrant(
                grant_pb2.IssueRunGrantRequest(
                    caller_credential=caller_credential,
                    run_id=run_id,
                    user_id=user_id,
                    agent=spec.name,
                    connections=connections,
                )
            )
        return answer.run_grant

    async def derive(self, workspace_id: str, run_id: str, spec: agent_pb2.AgentSpec, child_run_id: str) -> str:
        """Returns the grant for a run that another run starts; empty where that has none of what its agent declares.

        Raises:
            PermissionDenied: RUN_GRANT_INVALID: the other run's grant is over.
            HoldfastError: Auth or state does not answer.
        """
        connections = await self._declared(workspace_id, spec)
        parent_grant = await self.of(workspace_id, run_id) if connections else ""
        if not parent_grant:
            return ""
        with calling("auth"):
            answer = await self._auth.DeriveRunGrant(
                grant_pb2.DeriveRunGrantRequest(
                    workspace_id=workspace_id,
                    parent_run_id=run_id,
                    parent_run_grant=parent_grant,
                    run_id=child_run_id,
                    agent=spec.name,
                    connections=connections,
                )
            )
        return answer.run_grant

    async def _declared(self, workspace_id: str, spec: agent_pb2.AgentSpec) -> list[grant_pb2.GrantedConnection]:
        """What an agent and all those declare that it may call, as they stand now."""
        specs = [spec]
        seen: set[tuple[str, str]] = set()
        for one in specs:
            for tool in one.tools:
                named = (tool.agent.agent, tool.agent.revision)
                if tool.WhichOneof("kind") != "agent" or named in seen or len(seen) >= _MAX_AGENTS:
                    continue
                seen.add(named)
                # One that is gone declares nothing; whoever calls it is told.
                with contextlib.suppress(NotFound):
                    specs.append((await self._revisions.resolve(workspace_id, *named)).spec)
        return declared_connections(*specs)

    async def of(self, workspace_id: str, run_id: str) -> str:
        """Returns the grant of a run; empty when it has none. It never changes, so that it is read once.

        Raises:
            HoldfastError: State does not answer.
        """
        key = (workspace_id, run_id)
        known = self._known.get(key)
        if known is None:
            with calling("state"):
                found = await self._runs.GetRunGrant(store.GetRunGrantRequest(workspace_id=workspace_id, run_id=run_id))
            known = self._known[key] = found.run_grant
            if len(self._known) > _MAX_ENTRIES:
                self._known.popitem(last=False)
        return known
