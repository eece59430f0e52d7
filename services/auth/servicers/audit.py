"""AuditService."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from holdfast.api.auth.v1 import audit_service_pb2 as pb
from holdfast.api.auth.v1.audit_service_pb2_grpc import AuditServiceServicer
from holdfast.audit_chain import Verdict
from services.auth.audit_store import AuditFilter
from services.auth.audit_trail import AuditReader
from services.auth.callers import Caller
from services.auth.servicers.messages import current_caller, to_datetime, to_timestamp
from services.auth.store import INSTALLATION_ID, AuditRecord
from services.shared.identity import current_identity
from services.shared.paging import decode_page_token, encode_page_token, page_size


class AuditServicer(AuditServiceServicer):
    """Serves AuditService.

    Args:
        reader: The audit.
        page_key: Signs page tokens.
    """

    def __init__(self, reader: AuditReader, page_key: bytes) -> None:
        self._reader = reader
        self._page_key = page_key

    async def ListAuditRecords(self, request: pb.ListAuditRecordsRequest, context: Any) -> pb.ListAuditRecordsResponse:
        """Lists records."""
        workspace_id = _reader().workspace_id
        wanted = request.filter.SerializeToString(deterministic=True).hex()
        bound_to = ("ListAuditRecords", workspace_id, wanted, str(request.oldest_first))
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        found = await self._reader.page(
            workspace_id,
            _to_filter(request.filter),
            limit=page_size(request.page_size),
            from_seq=None if position is None else position["seq"],
            newest_first=not request.oldest_first,
        )
        token = ""
        if found.next_seq is not None:
            token = encode_page_token(self._page_key, {"seq": found.next_seq}, bound_to=bound_to)
        return pb.ListAuditRecordsResponse(
            records=[_to_record(record) for record in found.records], next_page_token=token
        )

    async def ExportAuditRecords(
        self, request: pb.ExportAuditRecordsRequest, context: Any
    ) -> AsyncIterator[pb.ExportAuditRecordsResponse]:
        """Exports the trail."""
        async for lines, last_seq in self._reader.export(_reader(), after_seq=request.after_seq):
            yield pb.ExportAuditRecordsResponse(lines=lines, last_seq=last_seq)

    async def VerifyAuditTrail(self, request: pb.VerifyAuditTrailRequest, context: Any) -> pb.VerifyAuditTrailResponse:
        """Checks the chain."""
        verdict = await self._reader.verify(
            _reader().workspace_id,
            first_seq=request.first_seq,
            last_seq=request.last_seq,
            anchor_hash=request.anchor_hash,
        )
        return _to_verdict(verdict)

    async def CheckAuditTrails(
        self, request: pb.CheckAuditTrailsRequest, context: Any
    ) -> AsyncIterator[pb.CheckAuditTrailsResponse]:
        """Checks the chains of all workspaces."""
        async for workspace, verdict in self._reader.verify_all():
            yield pb.CheckAuditTrailsResponse(workspace=workspace, verdict=_to_verdict(verdict))


def _reader() -> Caller:
    """Returns who reads, and whose trail: the operator that of the installation, everybody else their workspace's."""
    identity = current_identity()
    return Caller(INSTALLATION_ID, identity.name, identity.scopes) if identity.kind == "service" else current_caller()


def _to_verdict(verdict: Verdict) -> pb.VerifyAuditTrailResponse:
    problem = verdict.problem
    return pb.VerifyAuditTrailResponse(
        record_count=verdict.records,
        before_chain_count=verdict.before_chain,
        last_seq=verdict.last_seq,
        head_hash=verdict.head_hash.hex() if verdict.head_hash is not None else "",
        anchor_seq=verdict.anchor_seq or 0,
        flaw="AUDIT_FLAW_UNSPECIFIED" if problem is None else f"AUDIT_FLAW_{problem.flaw}",
        flaw_seq=0 if problem is None else problem.seq,
        flaw_detail="" if problem is None else problem.detail,
    )


def _to_filter(message: pb.AuditFilter) -> AuditFilter:
    return AuditFilter(
        start_time=to_datetime(message.start_time, "filter.start_time") if message.HasField("start_time") else None,
        end_time=to_datetime(message.end_time, "filter.end_time") if message.HasField("end_time") else None,
        action=message.action,
        actor=message.actor,
        user_id=message.user_id,
        connection=message.connection,
        run_id=message.run_id,
        outcome=message.outcome,
        tool=message.tool,
        api_key_id=message.api_key_id,
        fingerprint=message.fingerprint,
    )


def _to_record(record: AuditRecord) -> pb.AuditRecord:
    return pb.AuditRecord(
        seq=record.seq,
        record_id=record.record_id,
        event_time=to_timestamp(record.time),
        actor=record.actor,
        action=record.action,
        outcome=record.outcome,
        api_key_id=record.api_key_id or "",
        user_id=record.user_id or "",
        connection=record.connection or "",
        connection_id=record.connection_id or "",
        fingerprint=record.fingerprint or "",
        run_id=record.run_id or "",
        step=record.step or 0,
        tool=record.tool or "",
        host=record.host or "",
        details=_details(record.details),
        previous_hash=record.previous_hash.hex() if record.previous_hash is not None else "",
        hash=record.hash.hex() if record.hash is not None else "",
    )


def _details(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        return {str(name): str(value) for name, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError):
        # Somebody has changed it. It is shown as it is; the check of the chain says so.
        return {"unreadable": text}
