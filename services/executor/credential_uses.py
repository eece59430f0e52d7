"""Reports uses of remembered credentials to auth, in batches and never more than a second behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.ids import new_uuid7
from services.shared.channels import calling
from services.shared.clock import Clock
from services.shared.lingering import LingeringWriter
from services.shared.telemetry import get_logger

if TYPE_CHECKING:
    from services.executor.credentials import Need

LINGER_SECONDS: Final = 0.5

_MAX_BATCH: Final = 500
# Beyond it something is very wrong; each is dropped with a line in the log rather than kept without end.
_MAX_PENDING: Final = 100_000
_RETRY_SECONDS: Final = 1.0

log = get_logger(__name__)


class CredentialUses:
    """Takes records of uses and sends them in the background. A record that is sent twice is stored once."""

    def __init__(self, stub: CredentialServiceStub, clock: Clock) -> None:
        self._stub = stub
        self._clock = clock
        self._pending: list[pb.CredentialUse] = []
        self._writer = LingeringWriter(
            self.flush,
            self._pending,
            clock,
            linger_seconds=LINGER_SECONDS,
            retry_seconds=_RETRY_SECONDS,
            delayed="credential_uses_delayed",
            lost="credential_uses_lost",
        )

    def add(self, need: Need, connection_id: str, fingerprint: str) -> None:
        """Takes the record of one use."""
        if len(self._pending) >= _MAX_PENDING:
            log.error("credential_use_unrecorded", run_id=need.run_id, step=need.step, connection=need.connection)
            return
        use = pb.CredentialUse(
            record_id=new_uuid7(),
            workspace_id=need.workspace_id,
            connection=need.connection,
            connection_id=connection_id,
            fingerprint=fingerprint,
            run_id=need.run_id,
            step=need.step,
            tool=need.tool,
            target=need.target,
            user_id=need.user_id,
        )
        use.use_time.FromDatetime(self._clock.now())
        self._pending.append(use)
        self._writer.notice()

    async def run(self) -> NoReturn:
        """Sends what arrives, until it is cancelled."""
        await self._writer.run()

    async def flush(self) -> None:
        """Returns when everything that was taken is stored by auth.

        Raises:
            HoldfastError: It is not; what is left is kept.
        """
        while self._pending:
            batch = self._pending[:_MAX_BATCH]
            with calling("auth"):
                await self._stub.RecordCredentialUses(pb.RecordCredentialUsesRequest(uses=batch))
            del self._pending[: len(batch)]

    async def close(self) -> None:
        """Sends what is left, after the last use."""
        await self._writer.close()
