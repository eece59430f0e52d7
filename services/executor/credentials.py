"""Credentials for model calls, asked of auth for each call and remembered for seconds; never written anywhere."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from holdfast.api.auth.v1 import credential_service_pb2 as credential_pb2
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.common.v1 import content_pb2
from holdfast.errors import DeadlineExceeded, HoldfastError, NotFound, Reason, ResourceExhausted, Unavailable
from services.executor.models.protocol import Credential, ModelFailed
from services.shared.channels import calling
from services.shared.clock import Clock, SystemClock
from services.shared.scrubber import PROCESS

TTL_SECONDS: Final = 5.0
"""How long a replaced or revoked key may still be used."""

_DEADLINE_SECONDS: Final = 10.0
_MAX_ENTRIES: Final = 1_024


class Credentials:
    """Resolves workspaces' connections.

    Args:
        stub: The auth service.
        clock: Time for the expiry of what is remembered.
    """

    def __init__(self, stub: CredentialServiceStub, *, clock: Clock | None = None) -> None:
        self._stub = stub
        self._clock: Clock = SystemClock() if clock is None else clock
        # Invariant: the workspace is part of the key; nobody is given what another workspace resolved.
        self._known: OrderedDict[tuple[str, str], tuple[float, Credential]] = OrderedDict()

    async def resolve(self, workspace_id: str, connection: str, run_id: str, step: int) -> Credential:
        """Returns the credential of a connection for one step.

        Args:
            workspace_id: The workspace of the run.
            connection: Name of the connection.
            run_id: The run, for auth's record of the use.
            step: Its step.

        Raises:
            ModelFailed: There is none (AUTH, CONNECTION_NOT_FOUND), or auth cannot tell now (RETRYABLE).
        """
        key = (workspace_id, connection)
        known = self._known.get(key)
        if known is not None and known[0] > self._clock.monotonic():
            return known[1]
        self._known.pop(key, None)
        try:
            with calling("auth"):
                response = await self._stub.ResolveCredential(
                    credential_pb2.ResolveCredentialRequest(
                        workspace_id=workspace_id, connection=connection, run_id=run_id, step=step
                    ),
                    timeout=_DEADLINE_SECONDS,
                )
        except HoldfastError as error:
            # Without the context: an error of the transport is of no use to whoever reads the failure.
            raise ModelFailed(_failure_of(error, connection)) from None
        PROCESS.learn(response.secret, response.fingerprint)
        for field in (*response.headers, *response.query):
            PROCESS.learn(field.value, response.fingerprint)
        credential = Credential(
            secret=response.secret,
            base_url=response.base_url,
            connection_id=response.connection_id,
            version=response.version,
        )
        self._known[key] = (self._clock.monotonic() + TTL_SECONDS, credential)
        if len(self._known) > _MAX_ENTRIES:
            self._known.popitem(last=False)
        return credential


def _failure_of(error: HoldfastError, connection: str) -> content_pb2.Failure:
    match error:
        case NotFound():
            return content_pb2.Failure(
                reason=Reason.CONNECTION_NOT_FOUND,
                message=f"The workspace has no active connection named {connection!r}; "
                f"`holdfast connections create {connection}` makes one.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
        case Unavailable() | DeadlineExceeded() | ResourceExhausted():
            return content_pb2.Failure(
                reason=Reason.AUTH_UNAVAILABLE,
                message="The auth service did not hand out the credential in time.",
                failure_class=content_pb2.FAILURE_CLASS_RETRYABLE,
                retry_after_millis=round((error.retry_delay_seconds or 0) * 1000),
            )
        case _:
            return content_pb2.Failure(
                reason=error.reason,
                message="The auth service refused to hand out the credential.",
                failure_class=content_pb2.FAILURE_CLASS_AUTH,
            )
