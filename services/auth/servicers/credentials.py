"""CredentialService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceServicer
from services.auth.credentials import Credentials
from services.shared.interceptors import current_identity


class CredentialServicer(CredentialServiceServicer):
    """Serves CredentialService."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def ResolveCredential(
        self, request: pb.ResolveCredentialRequest, context: Any
    ) -> pb.ResolveCredentialResponse:
        """Hands out the credential for one step."""
        credential = await self._credentials.resolve(
            request.workspace_id,
            request.connection,
            run_id=request.run_id,
            step=request.step,
            actor=current_identity().name,
        )
        return pb.ResolveCredentialResponse(
            connection_id=credential.connection_id,
            provider=credential.provider,
            secret=credential.secret.reveal(),
            base_url=credential.base_url,
            version=credential.version,
            fingerprint=credential.fingerprint,
        )
