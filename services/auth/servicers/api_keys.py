"""ApiKeyService."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from holdfast.api.auth.v1 import api_key_service_pb2 as pb
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer
from services.auth.api_keys import OWN_WORKSPACE, ApiKeys, LocalAuthenticator
from services.auth.servicers.messages import current_caller, to_api_key, to_datetime, to_timestamp
from services.shared.identity import current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size

_MAX_PEER_CHARACTERS: Final = 100


class ApiKeyServicer(ApiKeyServiceServicer):
    """Serves ApiKeyService.

    Args:
        api_keys: The rules.
        authenticator: Tells who the bearer of a credential is.
        page_key: Signs page tokens.
    """

    def __init__(self, api_keys: ApiKeys, authenticator: LocalAuthenticator, page_key: bytes) -> None:
        self._api_keys = api_keys
        self._authenticator = authenticator
        self._page_key = page_key

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:
        """Makes a key."""
        created = await self._api_keys.create(
            current_caller(),
            display_name=request.display_name,
            scopes=request.scopes,
            expire_time=to_datetime(request.expire_time, "expire_time") if request.HasField("expire_time") else None,
            networks=request.networks,
            request_id=request.request_id,
        )
        secret = created.secret.reveal() if created.secret is not None else ""
        return pb.CreateApiKeyResponse(api_key=to_api_key(created.key), secret=secret)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Any) -> pb.ListApiKeysResponse:
        """Lists keys, newest first."""
        workspace_id = current_workspace()
        bound_to = ("ListApiKeys", workspace_id)
        size = page_size(request.page_size)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        after = None if position is None else (datetime.fromisoformat(position["time"]), position["id"])
        keys = await self._api_keys.page(workspace_id, limit=size + 1, after=after)
        token = ""
        if len(keys) > size:
            last = keys[size - 1]
            end = {"time": last.create_time.isoformat(), "id": last.api_key_id}
            token = encode_page_token(self._page_key, end, bound_to=bound_to)
        return pb.ListApiKeysResponse(api_keys=[to_api_key(key) for key in keys[:size]], next_page_token=token)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Any) -> pb.RevokeApiKeyResponse:
        """Revokes a key."""
        key = await self._api_keys.revoke(current_caller(), request.api_key_id, request_id=request.request_id)
        return pb.RevokeApiKeyResponse(api_key=to_api_key(key))

    async def VerifyApiKey(self, request: pb.VerifyApiKeyRequest, context: Any) -> pb.VerifyApiKeyResponse:
        """Tells a service who the bearer of a key or token is."""
        identity = await self._authenticator.verify(request.secret, peer=request.peer[:_MAX_PEER_CHARACTERS])
        return pb.VerifyApiKeyResponse(
            workspace_id=identity.workspace_id,
            api_key_id=identity.key_id,
            scopes=sorted(identity.scopes - {OWN_WORKSPACE}),
            expire_time=to_timestamp(identity.expire_time),
            user_id=identity.user_id,
            networks=[str(network) for network in identity.networks],
        )
