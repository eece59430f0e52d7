"""The invariants that only a decoded journal shows, for a few runs at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.state import journal
from services.state import tables as t
from services.state.approval_check import CHECK
from services.state.invariant_list import Findings
from services.state.invariant_rows import MOST, RUN_COLUMNS
from services.state.journal import CALL_OVER
from services.state.journal_check import JournalCheck
from services.state.transitions import ENDED


def sizes_of_journals(connection: sa.Connection, before: str, limit: int) -> list[tuple[str, int]]:
    """Runs, newest first, with the bytes of their events."""
    r, j = t.runs.c, t.journal.c
    newest = sa.select(r.run_id).order_by(r.run_id.desc()).limit(limit)
    if before:
        newest = newest.where(r.run_id < before)
    run_ids = list(connection.execute(newest).scalars())
    sizes = {
        run_id: int(size)
        for run_id, size in connection.execute(
            sa.select(j.run_id, sa.func.sum(sa.func.length(j.body))).where(j.run_id.in_(run_ids)).group_by(j.run_id)
        )
    }
    return [(run_id, sizes.get(run_id, 0)) for run_id in run_ids]


def chunks(sizes: Iterable[tuple[str, int]], most_bytes: int) -> Iterator[list[str]]:
    """Runs whose journals are read together."""
    chunk: list[str] = []
    room = most_bytes
    for run_id, size in sizes:
        if chunk and (size > room or len(chunk) >= 100):
            yield chunk
            chunk, room = [], most_bytes
        chunk.append(run_id)
        room -= size
    if chunk:
        yield chunk


def look_at_journals(connection: sa.Connection, run_ids: list[str]) -> Findings:
    """Decodes the journals of some runs."""
    found = Findings()
    rows = {row.run_id: row for row in connection.execute(sa.select(*RUN_COLUMNS).where(t.runs.c.run_id.in_(run_ids)))}
    checks: dict[str, JournalCheck] = {}
    # A run may have been deleted since its size was read.
    for run_id in rows:
        checks[run_id] = JournalCheck(rows[run_id], _reader(connection, rows[run_id].workspace_id))
    for event in _events(connection, list(rows)):
        checks[event.run_id].take(event.seq, event.epoch, run_pb2.Event.FromString(event.body))
    for run_id, check in checks.items():
        for broken in check.close():
            found.broken(broken.check, f"run {run_id}: {broken.what}")
        found.looked_at("one_result_per_call", check.steps + check.calls)
        found.looked_at("attempts_in_order", check.steps)
        for name in ("lease_epochs", "nothing_after_the_end", "totals_add_up"):
            found.looked_at(name)
        found.looked_at("budgets_hold", check.has_budget)
    _stored_questions(connection, found, checks)
    _open_calls(connection, found, checks)
    _children(connection, found, checks)
    _approved_calls(connection, found, rows, checks)
    _stored_bodies(connection, found, rows, checks)
    return found


def _events(connection: sa.Connection, run_ids: list[str]) -> Iterator[Any]:
    j = t.journal.c
    columns = (j.run_id, j.seq, j.epoch, j.body)
    if len(run_ids) > 1:
        yield from connection.execute(sa.select(*columns).where(j.run_id.in_(run_ids)).order_by(j.run_id, j.seq)).all()
        return
    for run_id in run_ids:
        after = 0
        while page := connection.execute(
            sa.select(*columns).where(j.run_id == run_id, j.seq > after).order_by(j.seq).limit(200)
        ).all():
            yield from page
            after = page[-1].seq


def _reader(connection: sa.Connection, workspace_id: str) -> Any:
    def read(ref: content_pb2.BlobRef) -> content_pb2.Message | None:
        data = journal.read_blobs(connection, workspace_id, [ref.hash]).get(ref.hash)
        return None if data is None else content_pb2.Message.FromString(data)

    return read


def _stored_questions(connection: sa.Connection, found: Findings, checks: dict[str, JournalCheck]) -> None:
    a = t.approvals.c
    asked = {(run_id, approval): step for run_id, check in checks.items() for approval, step in check.questions.items()}
    found.looked_at("questions_are_open", len(asked))
    query = sa.select(a.run_id, a.approval_id, a.step, a.state).where(a.run_id.in_(list(checks)))
    for row in connection.execute(query):
        if asked.pop((row.run_id, row.approval_id), None) is None:
            found.broken("questions_are_open", f"run {row.run_id}: question {row.approval_id} was never asked")
        elif row.state == run_pb2.APPROVAL_STATE_PENDING and row.step in checks[row.run_id].finished_steps:
            found.broken("questions_are_open", f"run {row.run_id}: question {row.approval_id}, whose step is over")
    for run_id, approval_id in asked:
        found.broken("questions_are_open", f"run {run_id}: question {approval_id} was asked and is not stored")


def _open_calls(connection: sa.Connection, found: Findings, checks: dict[str, JournalCheck]) -> None:
    c = t.calls.c
    query = sa.select(c.run_id, c.step).where(c.run_id.in_(list(checks)), c.state != CALL_OVER)
    for row in connection.execute(query):
        if row.step in checks[row.run_id].finished_steps:
            found.broken("calls_are_closed", f"run {row.run_id}: the call of step {row.step}, which is over")


def _children(connection: sa.Connection, found: Findings, checks: dict[str, JournalCheck]) -> None:
    waited_for = {child: run_id for run_id, check in checks.items() for child in check.waits_for}
    found.looked_at("children_are_told_of", len(waited_for))
    r = t.runs.c
    query = sa.select(r.run_id, r.state).where(r.run_id.in_(list(waited_for)))
    states = {row.run_id: row.state for row in connection.execute(query)}
    for child, run_id in waited_for.items():
        if states.get(child) is None or states[child] in ENDED:
            what = "which is not there" if child not in states else "which is over"
            found.broken("children_are_told_of", f"run {run_id}: waits for the run {child}, {what}")


def _approved_calls(
    connection: sa.Connection, found: Findings, rows: dict[str, Any], checks: dict[str, JournalCheck]
) -> None:
    """Compares what workers were given with what was approved, and approvals for sessions with the stored ones."""
    c = t.calls.c
    for run_id, check in checks.items():
        asked, by_session = check.approvals.asked, check.approvals.by_session
        found.looked_at(CHECK, len(asked) + len(by_session))
        if asked:
            query = sa.select(c.step, c.body).where(c.run_id == run_id, c.step.in_(list(asked)))
            for row in connection.execute(query):
                arguments = journal_pb2.NewCall.FromString(row.body).arguments_json
                if hashlib.sha256(arguments.encode()).hexdigest() != asked[row.step].approved_sha256:
                    found.broken(CHECK, f"run {run_id}: the worker's call of step {row.step} is not the approved one")
        if by_session:
            a = t.session_approvals.c
            session = (a.workspace_id == rows[run_id].workspace_id) & (a.session_id == rows[run_id].session_id)
            known = connection.execute(sa.select(a.approval_id, a.tool).where(session)).all()
            for approval_id, tool in sorted(by_session.items() - {(row.approval_id, row.tool) for row in known}):
                found.broken(
                    CHECK, f"run {run_id}: {tool} was called by the approval {approval_id}, which is not stored"
                )


def _stored_bodies(
    connection: sa.Connection, found: Findings, rows: dict[str, Any], checks: dict[str, JournalCheck]
) -> None:
    b, f = t.blobs.c, t.blob_references.c
    for run_id, check in checks.items():
        wanted = sorted(check.references)
        found.looked_at("bodies_are_there", len(wanted))
        for start in range(0, len(wanted), MOST):
            part = wanted[start : start + MOST]
            is_its = (f.workspace_id == b.workspace_id) & (f.hash == b.hash) & (f.run_id == run_id)
            query = (
                sa.select(b.hash, f.run_id)
                .join_from(t.blobs, t.blob_references, is_its, isouter=True)
                .where(b.workspace_id == rows[run_id].workspace_id, b.hash.in_(part))
            )
            stored = {bytes(row.hash): row.run_id for row in connection.execute(query)}
            for body in part:
                if body not in stored:
                    found.broken("bodies_are_there", f"run {run_id}: {body.hex()} is not stored")
                elif stored[body] is None:
                    found.broken("bodies_are_there", f"run {run_id}: {body.hex()} is not known to be in use")
