"""GrantService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import grant_service_pb2 as pb
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceServicer
from services.auth.api_keys import LocalAuthenticator
from services.auth.grants import GrantedConnection, RunGrants
from services.auth.servicers.messages import to_timestamp


class GrantServicer(GrantServiceServicer):
    """Serves GrantService.

    Args:
        grants: The rules.
        authenticator: Tells who the caller of the run's start is.
    """

    def __init__(self, grants: RunGrants, authenticator: LocalAuthenticator) -> None:
        self._grants = grants
        self._authenticator = authenticator

    async def IssueRunGrant(self, request: pb.IssueRunGrantRequest, context: Any) -> pb.IssueRunGrantResponse:
        """Signs a run's grant."""
        caller = await self._authenticator.verify(request.caller_credential, peer="")
        grant, expire_time = self._grants.issue(
            caller,
            run_id=request.run_id,
            user_id=request.user_id,
            agent=request.agent,
            connections=[GrantedConnection(item.name, tuple(item.scopes)) for item in request.connections],
        )
        return pb.IssueRunGrantResponse(run_grant=grant, expire_time=to_timestamp(expire_time))

    async def DeriveRunGrant(self, request: pb.DeriveRunGrantRequest, context: Any) -> pb.DeriveRunGrantResponse:
        """Signs the grant of a run that another run starts."""
        derived = self._grants.derive(
            request.parent_run_grant,
            workspace_id=request.workspace_id,
            parent_run_id=request.parent_run_id,
            run_id=request.run_id,
            agent=request.agent,
            connections=[GrantedConnection(item.name, tuple(item.scopes)) for item in request.connections],
        )
        if derived is None:
            return pb.DeriveRunGrantResponse()
        grant, expire_time = derived
        return pb.DeriveRunGrantResponse(run_grant=grant, expire_time=to_timestamp(expire_time))
