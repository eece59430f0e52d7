"""The audit in SQL: records are appended and chained in the transaction that does what they tell of."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from holdfast.audit_chain import NO_HASH, content_of, hash_of
from holdfast.ids import new_uuid7
from services.auth.sql import insert_ignore
from services.auth.store import INSTALLATION_ID, Action, AuditRecord, CredentialUse, Refusals
from services.auth.tables import audit_records, workspaces

_OK: Final = "OK"
_RECORD_COLUMNS: Final = tuple(audit_records.c[field.name] for field in dataclasses.fields(AuditRecord))


def append_audit(
    db_connection: sa.Connection,
    /,
    workspace_id: str,
    now: datetime,
    actor: str,
    action: Action,
    *,
    outcome: str = _OK,
    details: Mapping[str, str] | None = None,
    **subject: str | None,
) -> None:
    """Appends the record of something that this transaction has done.

    Args:
        db_connection: The transaction.
        workspace_id: The workspace.
        now: The storage's time.
        actor: Who has done it.
        action: What was done.
        outcome: `OK`, or the reason of a refusal.
        details: What else belongs to it; no secrets, and no text of a third party.
        **subject: Other columns of `audit_records`.
    """
    record = {
        "record_id": new_uuid7(),
        "time": now,
        "actor": actor,
        "action": action.value,
        "outcome": outcome,
        "details": details_text(details),
        **subject,
    }
    is_there = _append(db_connection, workspace_id, [record])
    assert is_there


def append_uses(connection: sa.Connection, uses: Sequence[CredentialUse]) -> None:
    """Appends uses of credentials; those that are stored already, or of workspaces that do not exist, are skipped."""
    _append_once(connection, [(use.workspace_id, _use_record(use)) for use in uses])


def append_refusals(connection: sa.Connection, refusals: Sequence[Refusals]) -> None:
    """Appends refused credentials of callers; skips as `append_uses`."""
    _append_once(connection, [(item.workspace_id, _refusal_record(item)) for item in refusals])


def details_text(details: Mapping[str, str] | None) -> str | None:
    """Returns the details as they are stored and hashed."""
    return json.dumps(dict(details), sort_keys=True, separators=(",", ":")) if details else None


def last_seq(connection: sa.Connection, workspace_id: str) -> int:
    """Returns the number of the last record that was ever written to a workspace's trail."""
    statement = sa.select(workspaces.c.audit_seq).where(workspaces.c.workspace_id == workspace_id)
    return connection.execute(statement).scalar_one_or_none() or 0


def read_records(
    connection: sa.Connection,
    workspace_id: str,
    *conditions: sa.ColumnElement[bool],
    limit: int,
    newest_first: bool = False,
) -> list[AuditRecord]:
    """Returns records of a workspace in the order of their numbers."""
    order = audit_records.c.seq.desc() if newest_first else audit_records.c.seq
    statement = (
        sa.select(*_RECORD_COLUMNS)
        .where(audit_records.c.workspace_id == workspace_id, *conditions)
        .order_by(order)
        .limit(limit)
    )
    return [AuditRecord(**row._mapping) for row in connection.execute(statement)]


def _use_record(use: CredentialUse) -> dict[str, Any]:
    record = dataclasses.asdict(use)
    del record["workspace_id"]
    return {**record, "details": details_text(use.details), "action": Action.CREDENTIAL_RESOLVED.value}


def _refusal_record(refusals: Refusals) -> dict[str, Any]:
    record = dataclasses.asdict(refusals)
    del record["workspace_id"]
    # Whoever it was has not shown who they are.
    return {
        **record,
        "details": details_text(refusals.details),
        "actor": "nobody",
        "action": refusals.action.value,
    }


def _append_once(connection: sa.Connection, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    by_workspace: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for workspace_id, record in records:
        by_workspace[workspace_id].append(record)
    # In one order in every replica, so that two never wait for each other's workspaces in a circle.
    for workspace_id, of_workspace in sorted(by_workspace.items()):
        # A write whose answer was lost is sent again with the same ids.
        known = set(
            connection.execute(
                sa.select(audit_records.c.record_id).where(
                    audit_records.c.record_id.in_([record["record_id"] for record in of_workspace])
                )
            ).scalars()
        )
        # By id: an executor that repeats itself may do so within one batch.
        new = {record["record_id"]: record for record in of_workspace if record["record_id"] not in known}
        if new:
            _append(connection, workspace_id, list(new.values()))


def _append(connection: sa.Connection, workspace_id: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Numbers, chains and stores records; False when there is no such workspace."""
    if workspace_id == INSTALLATION_ID:
        _begin_installations_trail(connection, records[0]["time"])
    first = _next_seqs(connection, workspace_id, len(records))
    if first is None:
        return False
    previous_hash = _head_hash(connection, workspace_id, first)
    rows = []
    for seq, record in enumerate(records, first):
        row = {**record, "workspace_id": workspace_id, "seq": seq, "previous_hash": previous_hash}
        row["hash"] = previous_hash = hash_of(content_of(row, previous_hash))
        rows.append(row)
    connection.execute(audit_records.insert(), rows)
    return True


def _begin_installations_trail(connection: sa.Connection, now: datetime) -> None:
    """Makes the row that holds the end of the installation's trail, unless it is there."""
    # Invariant: it is closed and deleted from the first, and no workspace can be called like it: nothing that belongs
    # to a workspace can ever be made in it, and no credential leads there.
    insert_ignore(
        connection,
        workspaces,
        workspace_id=INSTALLATION_ID,
        name="",
        create_time=now,
        close_time=now,
        delete_time=now,
    )


def _next_seqs(connection: sa.Connection, workspace_id: str, count: int) -> int | None:
    """Takes `count` numbers and returns the first; None when there is no such workspace."""
    # Invariant: the row stays locked until the transaction ends, so that numbers are dense and the last record stands.
    statement = (
        workspaces.update()
        .where(workspaces.c.workspace_id == workspace_id)
        .values(audit_seq=workspaces.c.audit_seq + count)
        .returning(workspaces.c.audit_seq)
    )
    last = connection.execute(statement).scalar_one_or_none()
    return None if last is None else last - count + 1


def _head_hash(connection: sa.Connection, workspace_id: str, next_seq: int) -> bytes:
    """Returns the hash that the record `next_seq` is chained to."""
    if next_seq == 1:
        return NO_HASH
    is_before = sa.and_(audit_records.c.workspace_id == workspace_id, audit_records.c.seq < next_seq)
    head = connection.execute(
        sa.select(audit_records.c.hash).where(is_before, audit_records.c.seq == next_seq - 1)
    ).scalar_one_or_none()
    if head is not None:
        return bytes(head)
    chained = connection.execute(
        sa.select(audit_records.c.seq, audit_records.c.hash)
        .where(is_before, audit_records.c.hash.is_not(None))
        .order_by(audit_records.c.seq.desc())
        .limit(1)
    ).one_or_none()
    return NO_HASH if chained is None else _adopt(connection, workspace_id, chained.seq, next_seq, bytes(chained.hash))


def _adopt(connection: sa.Connection, workspace_id: str, seq: int, next_seq: int, head: bytes) -> bytes:
    """Chains what a replica of the release before has written since record `seq`; returns the new head's hash."""
    is_later = audit_records.c.seq > seq
    for record in read_records(connection, workspace_id, is_later, limit=next_seq - seq):
        record_hash = hash_of(content_of(dataclasses.asdict(record), head))
        connection.execute(
            audit_records.update()
            .where(audit_records.c.workspace_id == workspace_id, audit_records.c.seq == record.seq)
            .values(previous_hash=head, hash=record_hash)
        )
        head = record_hash
    return head
