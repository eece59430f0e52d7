"""The audit in SQL: records are appended in the transaction that does what they tell of."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from holdfast.ids import new_uuid7
from services.auth.store import Action
from services.auth.tables import audit_records, workspaces

_OK: Final = "OK"


def next_seqs(connection: sa.Connection, workspace_id: str, count: int) -> int | None:
    """Takes `count` numbers and returns the first; None when there is no such workspace."""
    statement = (
        workspaces.update()
        .where(workspaces.c.workspace_id == workspace_id)
        .values(audit_seq=workspaces.c.audit_seq + count)
        .returning(workspaces.c.audit_seq)
    )
    last = connection.execute(statement).scalar_one_or_none()
    return None if last is None else last - count + 1


def append_audit(
    db_connection: sa.Connection, /, workspace_id: str, now: datetime, actor: str, action: Action, **subject: str | None
) -> None:
    """Appends the record of something that this transaction has done."""
    seq = next_seqs(db_connection, workspace_id, 1)
    assert seq is not None
    db_connection.execute(
        audit_records.insert().values(
            workspace_id=workspace_id,
            seq=seq,
            record_id=new_uuid7(),
            time=now,
            actor=actor,
            action=action.value,
            outcome=_OK,
            **subject,
        )
    )
