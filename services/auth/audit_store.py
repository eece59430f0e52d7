"""What the reading side of the audit needs of the storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from services.auth.store import Action, AuditRecord

OUTCOME_OK: Final = "OK"
REFUSED: Final = "!OK"
"""As a filter's outcome: everything that was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which records; each field that is set has to fit."""

    start_time: datetime | None = None
    """At or after."""
    end_time: datetime | None = None
    """Before."""
    action: str = ""
    """With `*` at the end: all that begin so."""
    actor: str = ""
    user_id: str = ""
    connection: str = ""
    """Name or id."""
    run_id: str = ""
    outcome: str = ""
    """`OK`, a reason, or `REFUSED`."""
    tool: str = ""
    api_key_id: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """A part of a trail's matching records."""

    records: Sequence[AuditRecord]
    next_seq: int | None
    """Where the search goes on; None when the trail has been searched to its end."""


class AuditStore(Protocol):
    """The audit as it is read. Transactions and errors are as in `AuthStore`."""

    async def find_audit_records(
        self, workspace_id: str, wanted: AuditFilter, *, limit: int, from_seq: int | None, newest_first: bool
    ) -> FoundRecords:
        """Returns up to `limit` fitting records from `from_seq` on (None: from the end that comes first).

        Looks at a bounded number of records, so that no search lasts long; the answer says where to go on.
        """

    async def list_workspaces(self, *, after: str, limit: int) -> list[tuple[str, str]]:
        """Returns up to `limit` workspaces, as id and name, whose ids come after the given one, in their order. The
        installation is one of them, without a name, if it has a trail."""

    async def read_audit_trail(self, workspace_id: str, *, first_seq: int, limit: int) -> list[AuditRecord]:
        """Returns up to `limit` records from number `first_seq` on, in order, exactly as they are stored."""

    async def last_audit_seq(self, workspace_id: str) -> int:
        """Returns the number of the last record that was ever written; 0 when there is none."""

    async def append_audit_record(
        self, workspace_id: str, *, actor: str, action: Action, details: Mapping[str, str] | None = None
    ) -> int:
        """Appends the record of an act that changes nothing else, and returns its number. The installation's trail
        begins with its first record."""
