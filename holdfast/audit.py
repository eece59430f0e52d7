"""The audit as a client reads it: records, export, and the check of the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

import grpc

from holdfast.api.auth.v1 import audit_service_pb2
from holdfast.api.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from holdfast.times import to_timestamp
from holdfast.transport import Transport, cancelling

_PAGE_SIZE = 200
_VERIFY_SECONDS = 3600.0


class Audit:
    """Who did what with the workspace's credentials and keys; nothing here changes anything."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("auth", AuditServiceStub)

    async def list(
        self,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        action: str = "",
        actor: str = "",
        user_id: str = "",
        connection: str = "",
        run_id: str = "",
        outcome: str = "",
        tool: str = "",
        api_key_id: str = "",
        fingerprint: str = "",
        oldest_first: bool = False,
    ) -> AsyncIterator[audit_service_pb2.AuditRecord]:
        """Yields records, newest first.

        Args:
            start_time: At or after this time.
            end_time: Before this time.
            action: Such as `credential.resolve`; `connection.*` means all that begin so.
            actor: Who did it, such as `key:<id>`.
            user_id: On whose behalf.
            connection: Name or id of a connection.
            run_id: The run that used it.
            outcome: `OK`, the reason of a refusal, or `!OK` for all that was refused.
            tool: The tool that used it.
            api_key_id: The API key that it is about.
            fingerprint: Fingerprint of the credential.
            oldest_first: Oldest first.
        """
        wanted = audit_service_pb2.AuditFilter(
            start_time=to_timestamp(start_time),
            end_time=to_timestamp(end_time),
            action=action,
            actor=actor,
            user_id=user_id,
            connection=connection,
            run_id=run_id,
            outcome=outcome,
            tool=tool,
            api_key_id=api_key_id,
            fingerprint=fingerprint,
        )
        request = audit_service_pb2.ListAuditRecordsRequest(
            page_size=_PAGE_SIZE, filter=wanted, oldest_first=oldest_first
        )
        async for response in self._transport.pages("auth", self._stub.ListAuditRecords, request):
            for record in response.records:
                yield record

    async def export(self, *, after_seq: int = 0) -> AsyncIterator[str]:
        """Yields the trail in lines of JSON, oldest first; the export itself is the last record.

        Args:
            after_seq: Only records behind this number.
        """
        request = audit_service_pb2.ExportAuditRecordsRequest(after_seq=after_seq)
        try:
            async with cancelling(
                self._stub.ExportAuditRecords(request, metadata=self._transport.metadata())
            ) as pieces:
                async for piece in pieces:
                    for line in piece.lines:
                        yield line
        except grpc.RpcError as error:
            raise self._transport.error("auth", error) from error

    async def verify(
        self, *, first_seq: int = 0, last_seq: int = 0, anchor_hash: str = "", timeout: float = _VERIFY_SECONDS
    ) -> audit_service_pb2.VerifyAuditTrailResponse:
        """Has the service check the chain. What is wrong is in the answer; it is no error.

        Args:
            first_seq: First record to check; 0 means the first of all.
            last_seq: Last record to check; 0 means the last of all.
            anchor_hash: A hash that an earlier check has returned, and that was kept elsewhere.
            timeout: How long it may take, in seconds.
        """
        request = audit_service_pb2.VerifyAuditTrailRequest(
            first_seq=first_seq, last_seq=last_seq, anchor_hash=anchor_hash
        )
        return await self._transport.call("auth", self._stub.VerifyAuditTrail, request, timeout=timeout)
