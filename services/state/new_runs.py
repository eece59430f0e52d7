"""New runs: many that begin sessions of their own by one statement, others one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import Conflict, FailedPrecondition, NotFound, Reason
from services.shared.database import Database
from services.shared.seals import Seals, seals_of
from services.state import tables as t
from services.state.arrays import array, array_of_text
from services.state.journal import (
    TOTALS,
    body_of,
    find_request,
    put_blobs,
    remember_request,
    request_values,
    select_run,
)
from services.state.rows import NO_TREE
from services.state.transitions import ENDED, QUEUED, RUNNING

# Of runs that were stored: when, and whether the executor that asked for them drives them.
Stored = Mapping[str, tuple[datetime, bool]]


def insert_run(connection: sa.Connection, db: Database, new: journal_pb2.NewRun) -> sa.Row[Any]:
    """Stores one new run with its first event, or finds the one that the same call made before.

    Raises:
        HoldfastError: REQUEST_ID_REUSED, SESSION_NOT_FOUND, SESSION_BUSY, CONFLICT (the label has moved).
    """
    earlier = find_request(connection, new.workspace_id, new.request_id, "StartRun", new.request_fingerprint)
    row = select_run(connection, new.workspace_id, earlier or new.run_id)
    if row is not None:
        return row
    if new.label and not _has_label(connection, new):
        raise Conflict("the label points to another revision by now")
    now = db.now(connection)
    ordinal, previous = _join_session(connection, new, now)
    blocked = False
    if previous is not None:
        predecessor = connection.execute(
            sa.update(t.runs)
            .where(t.runs.c.run_id == previous, t.runs.c.state.not_in(ENDED))
            .values(successor_run_id=new.run_id)
        )
        blocked = predecessor.rowcount == 1
        if blocked and new.reject_when_busy:
            raise FailedPrecondition(
                "the session has an unfinished run", reason=Reason.SESSION_BUSY, metadata={"run_id": previous}
            )
    put_blobs(connection, new.workspace_id, new.run_id, new.blobs, now)
    claimed = not blocked and bool(_claimable(connection, now, [new]))
    connection.execute(sa.insert(t.runs).values(run_values(new, now, ordinal, previous, blocked, claimed)))
    put_first_events(connection, [new], now, previous)
    put_grants(connection, [new])
    remember_request(connection, new.workspace_id, new.request_id, "StartRun", new.request_fingerprint, new.run_id, now)
    stored = select_run(connection, new.workspace_id, new.run_id)
    assert stored is not None
    return stored


def put_first_events(
    connection: sa.Connection, batch: Sequence[journal_pb2.NewRun], now: datetime, previous: str | None = None
) -> None:
    """Writes the events that create runs."""
    connection.execute(
        sa.insert(t.journal),
        [
            {
                "run_id": new.run_id,
                "seq": 1,
                "workspace_id": new.workspace_id,
                "epoch": 0,
                "at": now,
                "body": _sealed_body(connection, new, previous),
            }
            for new in batch
        ],
    )


def put_grants(connection: sa.Connection, batch: Sequence[journal_pb2.NewRun]) -> None:
    """Keeps the grants of new runs beside them."""
    granted = [new for new in batch if new.run_grant]
    if granted:
        connection.execute(
            sa.insert(t.run_grants),
            [{"run_id": new.run_id, "workspace_id": new.workspace_id, "run_grant": new.run_grant} for new in granted],
        )


def is_claimed_for(new: journal_pb2.NewRun, row: Any) -> bool:
    """Whether a run is driven by the executor that asked for it with the run itself, and was never anybody else's.

    Not a run that an earlier request made, even if the same executor drives it: that request was told so, and to be
    told twice would be to drive it twice under one lease.
    """
    is_own = bool(new.claim_for) and row.run_id == new.run_id
    return is_own and row.holder == new.claim_for and row.epoch == 1 and row.state == RUNNING


def _has_label(connection: sa.Connection, new: journal_pb2.NewRun) -> bool:
    a = t.agent_labels.c
    query = sa.select(a.revision).where(a.workspace_id == new.workspace_id, a.agent == new.agent, a.label == new.label)
    return connection.execute(query).scalar() == new.revision


def _pointed_to(new: journal_pb2.NewRun) -> tuple[str, str, str, str]:
    """What a new run takes for granted of its label."""
    return new.workspace_id, new.agent, new.label, new.revision


def _claimable(connection: sa.Connection, now: datetime, batch: Sequence[journal_pb2.NewRun]) -> set[str]:
    """Those of the runs that may be claimed as they are created, by run id.

    Not those of a workspace or agent with a cap: only a claim counts what runs already.
    """
    asking = [new for new in batch if new.claim_for and not new.agent_limit]
    if not asking:
        return set()
    e, w = t.executors.c, t.workspaces.c
    # Invariant: a run's holder has a row here when the claim commits, and whoever deletes that row returns the run. One
    # whose row is in use right now is passed over: to wait for it with locks on runs could be a deadlock.
    alive = set(
        connection.execute(
            sa.select(e.executor_id)
            .where(e.executor_id.in_({new.claim_for for new in asking}), e.expires_at > now)
            .with_for_update(read=True, skip_locked=True)
        ).scalars()
    )
    capped = set(
        connection.execute(
            sa.select(w.workspace_id).where(w.workspace_id.in_({new.workspace_id for new in asking}), w.max_running > 0)
        ).scalars()
    )
    return {new.run_id for new in asking if new.claim_for in alive and new.workspace_id not in capped}


def run_values(
    new: journal_pb2.NewRun, now: datetime, ordinal: int, previous: str | None, blocked: bool, claimed: bool
) -> dict[str, Any]:
    """The row of a new run."""
    return {
        "run_id": new.run_id,
        "workspace_id": new.workspace_id,
        "session_id": new.session_id or new.new_session_id,
        "ordinal": ordinal,
        "agent": new.agent,
        "revision": new.revision,
        "user_id": new.user_id,
        "lane": lane_of(new),
        "agent_limit": new.agent_limit,
        "state": RUNNING if claimed else QUEUED,
        "wait_reason": 0,
        "blocked": blocked,
        "cancel_requested": False,
        "epoch": 1 if claimed else 0,
        "holder": new.claim_for if claimed else None,
        "last_seq": 1,
        "step_count": 0,
        "ready_at": now,
        **dict.fromkeys(TOTALS, 0),
        "output_seq": 0,
        "previous_run_id": previous,
        "created_at": now,
        "updated_at": now,
        "expire_at": now + new.ttl.ToTimedelta() if new.HasField("ttl") else None,
    }


def _interval(new: journal_pb2.NewRun) -> str | None:
    return f"{new.ttl.seconds}.{new.ttl.nanos // 1_000:06d}s" if new.HasField("ttl") else None


def lane_of(new: journal_pb2.NewRun) -> int:
    """The order of claims: lower ones first."""
    return int(new.lane or journal_pb2.LANE_INTERACTIVE)


def created_body(new: journal_pb2.NewRun, previous: str | None) -> bytes:
    """The first event of a run."""
    created = run_pb2.RunCreated(
        session_id=new.session_id or new.new_session_id,
        agent=new.agent,
        revision=new.revision,
        user_id=new.user_id,
        input=new.input,
        previous_run_id=previous or "",
        traceparent=new.traceparent,
        ttl=new.ttl if new.HasField("ttl") else None,
        budget=new.budget if new.HasField("budget") else None,
    )
    if new.HasField("parent"):
        parent = new.parent
        created.parent_run_id, created.parent_step, created.parent_attempt = parent.run_id, parent.step, parent.attempt
        created.root_run_id, created.depth, created.depth_limit = parent.root_run_id, parent.depth, parent.depth_limit
    return body_of([run_pb2.Change(run_created=created)])


def _sealed_body(connection: sa.Connection, new: journal_pb2.NewRun, previous: str | None) -> bytes:
    return seals_of(connection).seal(new.workspace_id, created_body(new, previous))


def _join_session(connection: sa.Connection, new: journal_pb2.NewRun, now: datetime) -> tuple[int, str | None]:
    """The run's place in its session and the run before it; makes the session where it is new."""
    if not new.session_id:
        connection.execute(
            sa.insert(t.sessions).values(
                workspace_id=new.workspace_id,
                session_id=new.new_session_id,
                user_id=new.user_id,
                last_run_id=new.run_id,
                run_count=1,
                created_at=now,
            )
        )
        return 1, None
    key = (t.sessions.c.workspace_id == new.workspace_id) & (t.sessions.c.session_id == new.session_id)
    session = connection.execute(sa.select(t.sessions).where(key).with_for_update()).one_or_none()
    if session is None:
        raise NotFound("no such session", reason=Reason.SESSION_NOT_FOUND, metadata={"session_id": new.session_id})
    connection.execute(sa.update(t.sessions).where(key).values(last_run_id=new.run_id, run_count=session.run_count + 1))
    return session.run_count + 1, session.last_run_id


# What the row of a new run has by default.
_NOT_YET = {
    "failure": None,
    "ended_at": None,
    "wake_at": None,
    "pause_requested": False,
    "expiring": False,
    **NO_TREE,
}

# Of a new run's row, what is the same for every run that begins a session. {now} is the time of the write.
_NEW_RUN_CONSTANTS = {
    "ordinal": "1",
    "state": f"CASE WHEN is_claimed THEN {RUNNING} ELSE {QUEUED} END",
    "wait_reason": "0",
    "blocked": "false",
    "cancel_requested": "false",
    "epoch": "CASE WHEN is_claimed THEN 1 ELSE 0 END",
    "holder": "CASE WHEN is_claimed THEN claim_for END",
    "last_seq": "1",
    "step_count": "0",
    **dict.fromkeys(("ready_at", "created_at", "updated_at"), "statement_timestamp()"),
    **dict.fromkeys(TOTALS, "0"),
    "output_seq": "0",
    "expire_at": "statement_timestamp() + ttl",
}
_NEW_RUN_COLUMNS = ("run_id", "workspace_id", "session_id", "agent", "revision", "user_id", "lane", "agent_limit")
_NEW_RUN_TEXTS = ("agent", "revision", "user_id", "request_id", "label", "run_grant")
_NEW_RUN_SENT = (
    *((name, "uuid") for name in ("run_id", "workspace_id", "session_id")),
    *((name, "text") for name in _NEW_RUN_TEXTS),
    ("claim_for", "uuid"),
    ("fingerprint", "bytea"),
    ("lane", "smallint"),
    ("agent_limit", "integer"),
    ("ttl", "interval"),
    ("body_at", "integer"),
    ("body_size", "integer"),
)

# Leaves out those whose run or request is stored, or whose label has moved: they are looked at one by one. One that
# another replica stores at the same moment breaks the statement, and is found when it is tried again.
# In the driver's own form, as the batch of transitions is.
POSTGRES_NEW_SESSIONS = f"""
WITH alive AS MATERIALIZED (
  SELECT executor_id FROM executors
  WHERE executor_id = ANY(CAST(%(executors)s AS uuid[])) AND expires_at > statement_timestamp() FOR SHARE SKIP LOCKED
), n AS MATERIALIZED (
  SELECT n.*, n.claim_for IS NOT NULL AND n.agent_limit = 0
      AND EXISTS (SELECT 1 FROM alive WHERE alive.executor_id = n.claim_for)
      AND NOT EXISTS (SELECT 1 FROM workspaces AS w WHERE w.workspace_id = n.workspace_id AND w.max_running > 0)
    AS is_claimed
  FROM unnest({", ".join(f"CAST(%({name})s AS {kind}[])" for name, kind in _NEW_RUN_SENT)})
    AS n({", ".join(name for name, _ in _NEW_RUN_SENT)})
  WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = n.run_id) AND (n.request_id = '' OR NOT EXISTS (
    SELECT 1 FROM requests AS q WHERE q.workspace_id = n.workspace_id AND q.request_id = n.request_id))
  AND (n.label = '' OR EXISTS (
    SELECT 1 FROM agent_labels AS a WHERE a.workspace_id = n.workspace_id AND a.agent = n.agent AND a.label = n.label
      AND a.revision = n.revision))
), s AS (
  INSERT INTO sessions (workspace_id, session_id, user_id, last_run_id, run_count, created_at)
  SELECT workspace_id, session_id, user_id, run_id, 1, statement_timestamp() FROM n
), r AS (
  INSERT INTO runs ({", ".join((*_NEW_RUN_COLUMNS, *_NEW_RUN_CONSTANTS))})
  SELECT {", ".join((*_NEW_RUN_COLUMNS, *_NEW_RUN_CONSTANTS.values()))} FROM n
), j AS (
  INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body)
  SELECT run_id, 1, workspace_id, 0, statement_timestamp(),
    substring(CAST(%(bodies)b AS bytea) FROM body_at FOR body_size) FROM n
), q AS (
  INSERT INTO requests (workspace_id, request_id, method, fingerprint, result, created_at)
  SELECT workspace_id, request_id, 'StartRun', fingerprint, CAST(run_id AS text), statement_timestamp()
  FROM n WHERE request_id <> ''
), g AS (
  INSERT INTO run_grants (run_id, workspace_id, run_grant)
  SELECT run_id, workspace_id, run_grant FROM n WHERE run_grant <> ''
)
SELECT run_id, statement_timestamp(), is_claimed FROM n
"""


def insert_new_sessions(
    connection: sa.Connection, db: Database, batch: Sequence[journal_pb2.NewRun]
) -> dict[str, SimpleNamespace]:
    """Stores many runs that begin sessions of their own, set by set.

    Returns:
        The rows of those that were stored, by run; the others, or their requests, are known already.

    Raises:
        IntegrityError: One of them became known meanwhile; nothing may be kept of the transaction.
    """
    if db.dialect == "postgresql":
        stored = stored_of(connection.exec_driver_sql(POSTGRES_NEW_SESSIONS, postgres_values(batch, db.seals)))
    else:
        known = known_among(connection, batch)
        now = db.now(connection)
        pointing = {_pointed_to(new): new for new in batch if new.label}
        moved = {pointed_to for pointed_to, new in pointing.items() if not _has_label(connection, new)}
        fresh = [new for new in batch if new.run_id not in known and _pointed_to(new) not in moved]
        claimed = _claimable(connection, now, fresh)
        stored = {new.run_id: (now, new.run_id in claimed) for new in fresh}
        _insert_new_sessions(connection, now, fresh, claimed)
    for new in batch:
        if new.blobs and new.run_id in stored:
            put_blobs(connection, new.workspace_id, new.run_id, new.blobs, stored[new.run_id][0])
    return stored_rows(batch, stored)


def stored_rows(batch: Sequence[journal_pb2.NewRun], stored: Stored) -> dict[str, SimpleNamespace]:
    """The rows of those of the batch that were stored, by run."""
    rows: dict[str, SimpleNamespace] = {}
    for new in batch:
        if new.run_id in stored:
            now, is_claimed = stored[new.run_id]
            rows[new.run_id] = SimpleNamespace(**run_values(new, now, 1, None, False, is_claimed), **_NOT_YET)
    return rows


def postgres_values(batch: Sequence[journal_pb2.NewRun], seals: Seals) -> dict[str, Any]:
    """The parameters of `POSTGRES_NEW_SESSIONS`."""
    bodies = [seals.seal(new.workspace_id, created_body(new, None)) for new in batch]
    sizes = [len(body) for body in bodies]
    return {
        "run_id": array(new.run_id for new in batch),
        "workspace_id": array(new.workspace_id for new in batch),
        "session_id": array(new.new_session_id for new in batch),
        **{name: array_of_text(getattr(new, name) for new in batch) for name in _NEW_RUN_TEXTS},
        "claim_for": array(new.claim_for or None for new in batch),
        "executors": array({new.claim_for for new in batch if new.claim_for}),
        "fingerprint": array(new.request_fingerprint for new in batch),
        "lane": array(lane_of(new) for new in batch),
        "agent_limit": array(new.agent_limit for new in batch),
        "ttl": array(_interval(new) for new in batch),
        "bodies": b"".join(bodies),
        "body_at": array(accumulate(sizes[:-1], initial=1)),
        "body_size": array(sizes),
    }


def stored_of(rows: Iterable[Sequence[Any]]) -> Stored:
    """What `POSTGRES_NEW_SESSIONS` stored."""
    return {run_id: (at, is_claimed) for run_id, at, is_claimed in rows}


def _insert_new_sessions(
    connection: sa.Connection, now: datetime, batch: Sequence[journal_pb2.NewRun], claimed: set[str]
) -> None:
    if not batch:
        return
    connection.execute(
        sa.insert(t.sessions),
        [
            {
                "workspace_id": new.workspace_id,
                "session_id": new.new_session_id,
                "user_id": new.user_id,
                "last_run_id": new.run_id,
                "run_count": 1,
                "created_at": now,
            }
            for new in batch
        ],
    )
    connection.execute(
        sa.insert(t.runs), [run_values(new, now, 1, None, False, new.run_id in claimed) for new in batch]
    )
    put_first_events(connection, batch, now)
    asked = [new for new in batch if new.request_id]
    if asked:
        connection.execute(
            sa.insert(t.requests),
            [
                request_values(new.workspace_id, new.request_id, "StartRun", new.request_fingerprint, new.run_id, now)
                for new in asked
            ],
        )
    put_grants(connection, batch)


def known_among(connection: sa.Connection, batch: Sequence[journal_pb2.NewRun]) -> set[str]:
    """Run ids of those whose run or request is stored already."""
    ids = [new.run_id for new in batch]
    known = set(connection.execute(sa.select(t.runs.c.run_id).where(t.runs.c.run_id.in_(ids))).scalars())
    asked = [(new.workspace_id, new.request_id) for new in batch if new.request_id]
    if asked:
        pair = sa.tuple_(t.requests.c.workspace_id, t.requests.c.request_id)
        found = {
            (row.workspace_id, row.request_id)
            for row in connection.execute(
                sa.select(t.requests.c.workspace_id, t.requests.c.request_id).where(pair.in_(asked))
            )
        }
        known |= {new.run_id for new in batch if (new.workspace_id, new.request_id) in found}
    return known
