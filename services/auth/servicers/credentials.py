"""CredentialService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceServicer
from holdfast.errors import InvalidArgument
from holdfast.ids import is_uuid
from services.auth.credentials import DEFAULT_MIN_VALID, Credentials, Request
from services.auth.injection import Injected
from services.auth.servicers.messages import to_datetime, to_timestamp
from services.auth.store import CredentialUse
from services.shared.identity import current_identity


class CredentialServicer(CredentialServiceServicer):
    """Serves CredentialService."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def ResolveCredential(
        self, request: pb.ResolveCredentialRequest, context: Any
    ) -> pb.ResolveCredentialResponse:
        """Hands out the credential for one step."""
        credential = await self._credentials.resolve(
            Request(
                workspace_id=request.workspace_id,
                connection=request.connection,
                run_id=request.run_id,
                step=request.step,
                run_grant=request.run_grant,
                tool=request.tool,
                target=request.target,
                method=request.method,
                scopes=tuple(request.scopes),
                min_valid_for=request.min_valid_for.ToTimedelta() or DEFAULT_MIN_VALID,
                rejected_fingerprint=request.rejected_fingerprint,
                is_raw=request.mode == pb.CREDENTIAL_MODE_RAW,
            ),
            actor=current_identity().name,
        )
        connection = credential.connection
        return pb.ResolveCredentialResponse(
            connection_id=connection.connection_id,
            provider=connection.provider,
            secret=credential.secret.reveal(),
            base_url=connection.base_url,
            version=connection.version,
            fingerprint=credential.fingerprint,
            expire_time=to_timestamp(credential.expire_time),
            headers=[_field(item) for item in credential.injected if not item.in_query],
            query=[_field(item) for item in credential.injected if item.in_query],
            allowed_targets=[
                pb.AllowedTarget(
                    scheme=rule.scheme,
                    host=rule.host,
                    port=rule.port or 0,
                    path_prefix="" if rule.path_prefix == "/" else rule.path_prefix,
                    methods=sorted(rule.methods),
                )
                for rule in credential.targets
            ],
            auth_failure_signals=[
                pb.AuthFailureSignal(
                    status=signal.status,
                    pointer=signal.pointer,
                    equals=signal.equals,
                    header=signal.header,
                    contains=signal.contains,
                )
                for signal in credential.signals
            ],
        )

    async def RecordCredentialUses(
        self, request: pb.RecordCredentialUsesRequest, context: Any
    ) -> pb.RecordCredentialUsesResponse:
        """Records uses of what an executor remembered."""
        actor = current_identity().name
        await self._credentials.record([_use(item, actor, f"uses[{n}]") for n, item in enumerate(request.uses)])
        return pb.RecordCredentialUsesResponse()


def _field(item: Injected) -> pb.InjectedField:
    return pb.InjectedField(name=item.name, value=item.value.reveal())


def _use(item: pb.CredentialUse, actor: str, field: str) -> CredentialUse:
    for name in ("record_id", "workspace_id", "run_id"):
        if not is_uuid(getattr(item, name)):
            raise InvalidArgument(f"{name} is not a UUID", field=f"{field}.{name}")
    return CredentialUse(
        record_id=item.record_id,
        workspace_id=item.workspace_id,
        time=to_datetime(item.use_time, f"{field}.use_time"),
        actor=actor,
        outcome="OK",
        connection=item.connection,
        connection_id=item.connection_id or None,
        fingerprint=item.fingerprint or None,
        run_id=item.run_id,
        step=item.step,
        tool=item.tool or None,
        host=item.target or None,
        user_id=item.user_id or None,
    )
