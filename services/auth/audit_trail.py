"""The audit as its readers see it: searched, exported as lines, and checked against its chain."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Final

from holdfast.audit_chain import ChainCheck, Verdict, content_of, line_of, parse_hash
from holdfast.errors import InvalidArgument
from services.auth.audit_store import AuditFilter, AuditStore, FoundRecords
from services.auth.callers import Caller
from services.auth.store import Action, AuditRecord

_BATCH: Final = 500
_MAX_FILTER_CHARACTERS: Final = 200


class AuditReader:
    """Reads the trail of one workspace at a time."""

    def __init__(self, store: AuditStore) -> None:
        self._store = store
        # Two at once would only take twice as long, and more from everybody else.
        self._checking = asyncio.Lock()

    async def page(
        self, workspace_id: str, wanted: AuditFilter, *, limit: int, from_seq: int | None, newest_first: bool
    ) -> FoundRecords:
        """Returns records that fit; see `AuditStore.find_audit_records`.

        Raises:
            InvalidArgument: A filter is longer than anything that is recorded.
        """
        for field in dataclasses.fields(wanted):
            value = getattr(wanted, field.name)
            if isinstance(value, str) and (len(value) > _MAX_FILTER_CHARACTERS or "\0" in value):
                raise InvalidArgument(
                    f"filter.{field.name} is not valid",
                    field=f"filter.{field.name}",
                    description=f"expected at most {_MAX_FILTER_CHARACTERS} characters",
                )
        return await self._store.find_audit_records(
            workspace_id, wanted, limit=limit, from_seq=from_seq, newest_first=newest_first
        )

    async def export(self, caller: Caller, *, after_seq: int) -> AsyncIterator[tuple[list[str], int]]:
        """Yields the trail in lines, with the number of each piece's last record. The export is on record itself,
        before anything is handed out, and ends with that record.

        Raises:
            InvalidArgument: The number is negative.
        """
        _check_seq(after_seq, "after_seq")
        end = await self._store.append_audit_record(
            caller.workspace_id, actor=caller.actor, action=Action.AUDIT_EXPORTED, details={"after_seq": str(after_seq)}
        )
        seq = after_seq
        while seq < end:
            records = await self._store.read_audit_trail(caller.workspace_id, first_seq=seq + 1, limit=_BATCH)
            lines = [
                line_of(content_of(dataclasses.asdict(record), record.previous_hash), record.hash)
                for record in records
                if record.seq <= end
            ]
            if not lines:
                # Records at the end are gone. What there was is out, and a check of it says so.
                return
            seq = records[len(lines) - 1].seq
            yield lines, seq

    async def verify(self, workspace_id: str, *, first_seq: int, last_seq: int, anchor_hash: str) -> Verdict:
        """Checks the chain from one record to another; 0 stands for the first and the last.

        Raises:
            InvalidArgument: A number is negative, or the anchor is no hash.
        """
        _check_seq(first_seq, "first_seq")
        _check_seq(last_seq, "last_seq")
        try:
            anchor = parse_hash(anchor_hash) if anchor_hash else None
        except ValueError as error:
            raise InvalidArgument(
                "anchor_hash is no hash", field="anchor_hash", description="expected 64 hex digits"
            ) from error
        first = max(first_seq, 1)
        # Read before the records: what is written meanwhile is not missed, nor taken for missing.
        written = await self._store.last_audit_seq(workspace_id)
        last = min(last_seq, written) if last_seq else written
        check = ChainCheck(first_seq=first, previous_hash=await self._hash_before(workspace_id, first), anchor=anchor)
        seq = first
        while seq <= last and not check.has_failed:
            records = await self._store.read_audit_trail(workspace_id, first_seq=seq, limit=_BATCH)
            for record in records:
                if record.seq <= last:
                    take(check, record)
            if not records:
                break
            seq = records[-1].seq + 1
        return check.finish(last_seq=last)

    async def verify_all(self) -> AsyncIterator[tuple[str, Verdict]]:
        """Checks the whole chain of every workspace, and yields each one's name with what was found; without a name,
        that of the installation."""
        after = ""
        async with self._checking:
            while found := await self._store.list_workspaces(after=after, limit=_BATCH):
                for workspace_id, name in found:
                    yield name, await self.verify(workspace_id, first_seq=0, last_seq=0, anchor_hash="")
                after = found[-1][0]

    async def _hash_before(self, workspace_id: str, seq: int) -> bytes | None:
        if seq == 1:
            return None
        before = await self._store.read_audit_trail(workspace_id, first_seq=seq - 1, limit=1)
        return before[0].hash if before and before[0].seq == seq - 1 else None


def take(check: ChainCheck, record: AuditRecord) -> None:
    """Gives a stored record to the check."""
    check.take(content_of(dataclasses.asdict(record), record.previous_hash), record.hash)


def _check_seq(seq: int, field: str) -> None:
    if seq < 0:
        raise InvalidArgument(f"{field} is negative", field=field, description="expected 0 or more")
