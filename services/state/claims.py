"""Claims: ready runs for an executor, fairly divided between workspaces and never beyond a limit.

A claim looks whose turn it is (an index probe for each workspace that it visits) and takes from each of them what falls
to it. What that costs follows from what is claimed and from the workspaces that are visited, never from how many runs
are ready. Where a workspace or an agent has a limit, an advisory lock of its workspace makes the claims of all replicas
go one after the other, so that what is counted is still true when it is acted on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from services.shared.database import Database
from services.shared.seals import MissingKeyError, PayloadDamagedError, opened
from services.state import tables as t
from services.state.arrays import array, array_of_text
from services.state.journal import put_place, to_micros
from services.state.turns import BATCH, BATCH_SHARE, BEGINNING, Position, Tenant, Turn, lanes, share

MAX_LOOKS: Final = 8
"""How often one claim looks; where workspaces have little or no room, the next claim goes on behind them."""

MAX_WINDOW: Final = 256
_AGENTS_AT_ONCE: Final = 200

RUNNING: Final = int(run_pb2.RUN_STATE_RUNNING)

# A partial index is used only where the query says its condition in the same words, without parameters.
_READY: Final = "state = 1 AND NOT blocked AND agent_limit = 0"
_READY_LIMITED: Final = "state = 1 AND NOT blocked AND agent_limit > 0"
_RUNNING: Final = "state = 2"


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought.

    Attributes:
        rows: The runs, each under its new epoch.
        position: Where the round of turns stands now.
        is_exhausted: Nothing more can be claimed until something changes.
        has_limits: Some of the workspaces have a limit: a run that ends may make room in one.
        was_busy: Another replica was claiming for a workspace with a limit: it is worth trying again in a moment.
    """

    rows: list[sa.Row[Any]]
    position: Position
    is_exhausted: bool
    has_limits: bool = False
    was_busy: bool = False


class _Seen(NamedTuple):
    """A workspace with ready runs, as the look finds it."""

    workspace_id: str
    weight: int
    max_running: int
    # Lanes of runs of agents without a limit; None where there are none.
    first_lane: int | None
    last_lane: int | None
    has_limited: bool


@dataclass(slots=True)
class _Queue:
    """The ready runs of an agent with a limit."""

    workspace_id: str
    agent: str
    agent_limit: int
    first_lane: int
    last_lane: int
    running: int


@dataclass(slots=True)
class _Limits:
    """What limits leave, counted while nobody else claims in these workspaces."""

    has_any: bool = False
    was_busy: bool = False
    queues: list[_Queue] = field(default_factory=list)


def claim(
    connection: sa.Connection,
    db: Database,
    executor_id: str,
    stream_id: str,
    limit: int,
    position: Position = BEGINNING,
    draw: float = 0.0,
) -> Claimed | None:
    """Takes ready runs for an executor, each under a new epoch.

    Args:
        executor_id: For whom.
        stream_id: The stream that speaks for it.
        limit: At most so many.
        position: Where the round of turns stands.
        draw: A random number from 0 to 1, see `turns.lanes`.

    Returns:
        The runs; None when the stream does not speak for the executor (any more).
    """
    rows: list[sa.Row[Any]] = []
    has_limits = was_busy = False
    window = limit
    fruitless: set[str] = set()
    for _ in range(MAX_LOOKS):
        seen = _look(connection, db, executor_id, stream_id, position, window)
        if seen is None:
            return None
        tenants, limits = _with_limits(connection, db, seen)
        quotas, position = share(tenants, limit - len(rows), position)
        turns = [turn for tenant, quota in zip(tenants, quotas, strict=True) for turn in lanes(tenant, quota, draw)]
        taken = _take(connection, db, executor_id, turns, _fitting(limits.queues, turns, draw)) if turns else []
        rows += taken
        has_limits |= limits.has_any
        was_busy |= limits.was_busy
        if len(rows) >= limit:
            return Claimed(rows, position, False, has_limits, was_busy)
        # A turn that was used up may have left something; so may workspaces that were not visited.
        has_gone_round = len(seen) < window or any(one.workspace_id in fruitless for one in seen)
        if has_gone_round and not _may_leave_any(turns, taken, tenants):
            return Claimed(rows, position, True, has_limits, was_busy)
        # A turn of batch runs alone that came short says nothing of the other lanes.
        draw = 0.0
        fruitless = set() if taken else fruitless.union(one.workspace_id for one in seen)
        window = min(window * 4, MAX_WINDOW)
    return Claimed(rows, position, False, has_limits, was_busy)


def _may_leave_any(turns: Sequence[Turn], taken: Iterable[Any], tenants: Sequence[Tenant]) -> bool:
    """Whether one of the workspaces may have more that can be claimed: its turn was used up, or left lanes out."""
    got = Counter((row.workspace_id, row.lane == BATCH) for row in taken)
    known = {tenant.workspace_id: tenant for tenant in tenants}
    with_front = {turn.workspace_id for turn in turns if turn.first_lane < BATCH}
    for turn in turns:
        tenant = known[turn.workspace_id]
        front, batch = got[turn.workspace_id, False], got[turn.workspace_id, True]
        if tenant.room == front + batch:
            # With its room, its turn is over, too.
            continue
        mine = (front if turn.first_lane < BATCH else 0) + (batch if turn.last_lane == BATCH else 0)
        if mine >= turn.quota or (tenant.first_lane < BATCH and turn.workspace_id not in with_front):
            return True
    return False


# ------------------------------------------------------------------------------------------------------- whose turn


def _first(column: str, where: str, more: str = "", order: str = "") -> str:
    """A subquery that reads one index entry; not EXISTS, which a planner may answer from a hash of all of them."""
    return f"(SELECT r.{column} FROM runs AS r WHERE {where}{more} ORDER BY {order or 'r.' + column} LIMIT 1)"


def _of(alias: str, conditions: str) -> str:
    """The condition of a partial index with the table's alias."""
    return " AND ".join(
        f"NOT {alias}.{part.removeprefix('NOT ')}" if part.startswith("NOT ") else f"{alias}.{part}"
        for part in conditions.split(" AND ")
    )


_R_READY, _R_LIMITED, _R_RUNNING = _of("r", _READY), _of("r", _READY_LIMITED), _of("r", _RUNNING)

_FLAGS = f"""
  {_first("lane", _R_READY, " AND r.workspace_id = {id}", "r.lane")} AS first_lane,
  {_first("lane", _R_READY, " AND r.workspace_id = {id}", "r.lane DESC")} AS last_lane,
  {_first("agent_limit", _R_LIMITED, " AND r.workspace_id = {id}", "r.agent")} IS NOT NULL AS has_limited
"""

# A loose index scan: one probe finds the next workspace, in a circle that begins behind :after. The executor's row is
# locked first. Invariant: a run's holder has a row in `executors` when the claim commits, and whoever deletes that row
# returns the run.
_LOOK_ON_POSTGRES = sa.text(
    f"""
WITH RECURSIVE speaks AS MATERIALIZED (
  SELECT 1 FROM executors
  WHERE executor_id = :executor_id AND stream_id = :stream_id AND expires_at > clock_timestamp() FOR SHARE
), visited(workspace_id, place, has_wrapped) AS (
  SELECT CAST(:after AS uuid), 0, false
  UNION ALL
  SELECT n.workspace_id, v.place + 1, n.has_wrapped
  FROM visited AS v CROSS JOIN LATERAL (
    SELECT
      COALESCE(f.next_id, CASE WHEN NOT v.has_wrapped THEN LEAST(
        {_first("workspace_id", _R_READY)}, {_first("workspace_id", _R_LIMITED)}) END) AS workspace_id,
      v.has_wrapped OR f.next_id IS NULL AS has_wrapped
    FROM (SELECT LEAST(
      {_first("workspace_id", _R_READY, " AND r.workspace_id > v.workspace_id")},
      {_first("workspace_id", _R_LIMITED, " AND r.workspace_id > v.workspace_id")}) AS next_id OFFSET 0) AS f
  ) AS n
  WHERE v.place < :window AND n.workspace_id IS NOT NULL
    AND NOT (n.has_wrapped AND n.workspace_id > CAST(:after AS uuid))
)
SELECT (SELECT count(*) FROM speaks), v.place, v.workspace_id,
  COALESCE(w.weight, 1) AS weight, COALESCE(w.max_running, 0) AS max_running, {_FLAGS.format(id="v.workspace_id")}
FROM visited AS v LEFT JOIN LATERAL (
  SELECT weight, max_running FROM workspaces WHERE workspaces.workspace_id = v.workspace_id OFFSET 0
) AS w ON true
ORDER BY v.place
"""
)

_SPEAKS = sa.text(
    "SELECT 1 FROM executors WHERE executor_id = :executor_id AND stream_id = :stream_id AND expires_at > :now"
)
_NEXT_ON_SQLITE = tuple(
    sa.text(_first("workspace_id", where, " AND r.workspace_id > :after").strip("()"))
    for where in (_R_READY, _R_LIMITED)
)
_TENANT_ON_SQLITE = sa.text(
    f"SELECT COALESCE(w.weight, 1), COALESCE(w.max_running, 0), {_FLAGS.format(id=':id')} "
    "FROM (SELECT 1) LEFT JOIN workspaces AS w ON w.workspace_id = :id"
)


def _look(
    connection: sa.Connection, db: Database, executor_id: str, stream_id: str, position: Position, window: int
) -> list[_Seen] | None:
    """The next workspaces with ready runs; None when the stream does not speak for the executor."""
    names = {"executor_id": executor_id, "stream_id": stream_id}
    after = position.after
    if db.dialect == "postgresql":
        values = {**names, "after": after, "window": window}
        found = connection.execute(_LOOK_ON_POSTGRES, values).all()
        return [_Seen(*row[2:]) for row in found if row.place > 0] if found[0][0] else None
    if connection.execute(_SPEAKS, {**names, "now": to_micros(db.now(connection))}).one_or_none() is None:
        return None
    seen: list[_Seen] = []
    at: str = after
    has_wrapped = False
    while len(seen) < window:
        following = [
            row[0] for query in _NEXT_ON_SQLITE if (row := connection.execute(query, {"after": at}).one_or_none())
        ]
        if not following and has_wrapped:
            break
        if not following:
            has_wrapped, at = True, ""
            continue
        at = min(following)
        if has_wrapped and at > after:
            break
        seen.append(_Seen(at, *connection.execute(_TENANT_ON_SQLITE, {"id": at}).one()))
    return seen


# ----------------------------------------------------------------------------------------------------------- limits

_LOCK = sa.text(
    "SELECT id FROM unnest(CAST(:ids AS uuid[])) AS w(id) "
    "WHERE pg_try_advisory_xact_lock(hashtextextended('holdfast.claims.' || id, 0))"
)
# As far as the limit only: more is not asked.
_COUNT_OF_WORKSPACE = f"SELECT 1 FROM runs AS r WHERE {_R_RUNNING} AND r.workspace_id = {{id}} LIMIT {{limit}}"
_COUNT_OF_AGENT = (
    f"SELECT 1 FROM runs AS r WHERE {_R_RUNNING} AND r.workspace_id = {{id}} AND r.agent = {{agent}} LIMIT {{limit}}"
)
_COUNT_ON_POSTGRES = sa.text(
    f"""
SELECT w.id, (SELECT count(*) FROM ({_COUNT_OF_WORKSPACE.format(id="w.id", limit="w.most")}) AS running)
FROM unnest(CAST(:ids AS uuid[]), CAST(:most AS integer[])) AS w(id, most)
"""
)
_COUNT_ON_SQLITE = sa.text(f"SELECT count(*) FROM ({_COUNT_OF_WORKSPACE.format(id=':id', limit=':most')})")
_NEXT_AGENT = _first("agent", _R_LIMITED, " AND r.workspace_id = {id} AND r.agent > {after}")
_QUEUES_ON_POSTGRES = sa.text(
    f"""
WITH RECURSIVE queue(workspace_id, agent, place) AS (
  SELECT w.id, {_NEXT_AGENT.format(id="w.id", after="''")}, 1 FROM unnest(CAST(:ids AS uuid[])) AS w(id)
  UNION ALL
  SELECT q.workspace_id, {_NEXT_AGENT.format(id="q.workspace_id", after="q.agent")}, q.place + 1
  FROM queue AS q WHERE q.agent IS NOT NULL AND q.place < {_AGENTS_AT_ONCE}
)
SELECT q.workspace_id, q.agent, head.agent_limit, head.lane,
  {_first("lane", _R_LIMITED, " AND r.workspace_id = q.workspace_id AND r.agent = q.agent", "r.lane DESC")},
  (SELECT count(*) FROM (
    {_COUNT_OF_AGENT.format(id="q.workspace_id", agent="q.agent", limit="head.agent_limit")}) AS running)
FROM queue AS q CROSS JOIN LATERAL (
  SELECT r.agent_limit, r.lane FROM runs AS r
  WHERE {_R_LIMITED} AND r.workspace_id = q.workspace_id AND r.agent = q.agent
  ORDER BY r.lane, r.ready_at, r.run_id LIMIT 1
) AS head WHERE q.agent IS NOT NULL
"""
)
_NEXT_AGENT_ON_SQLITE = sa.text(_NEXT_AGENT.format(id=":id", after=":after").strip("()"))
_HEAD_ON_SQLITE = sa.text(
    "SELECT agent_limit, lane, "
    + _first("lane", _R_LIMITED, " AND r.workspace_id = :id AND r.agent = :agent", "r.lane DESC")
    + f" FROM runs WHERE {_READY_LIMITED} AND workspace_id = :id AND agent = :agent"
    " ORDER BY lane, ready_at, run_id LIMIT 1"
)
_COUNT_OF_AGENT_ON_SQLITE = sa.text(
    f"SELECT count(*) FROM ({_COUNT_OF_AGENT.format(id=':id', agent=':agent', limit=':most')})"
)


def _with_limits(connection: sa.Connection, db: Database, seen: Sequence[_Seen]) -> tuple[list[Tenant], _Limits]:
    """The workspaces with the room that their limits leave. Costs nothing where there are no limits."""
    limits = _Limits()
    limited = sorted(one.workspace_id for one in seen if one.max_running > 0 or one.has_limited)
    rooms: dict[str, int] = {}
    lanes_of: dict[str, list[int]] = {
        one.workspace_id: [lane for lane in (one.first_lane, one.last_lane) if lane is not None] for one in seen
    }
    if limited:
        locked = _lock(connection, db, limited)
        limits.has_any, limits.was_busy = True, len(locked) < len(limited)
        # Order matters: what is counted is read by statements that begin when the locks are held.
        capped = {one.workspace_id: one.max_running for one in seen if one.max_running > 0}
        rooms = dict.fromkeys(capped, 0) | _rooms(connection, db, {id_: capped[id_] for id_ in capped if id_ in locked})
        with_queues = [s.workspace_id for s in seen if s.has_limited and s.workspace_id in locked]
        queues = _queues(connection, db, [id_ for id_ in with_queues if rooms.get(id_) != 0])
        limits.queues = [queue for queue in queues if queue.running < queue.agent_limit]
        for queue in limits.queues:
            lanes_of[queue.workspace_id] += [queue.first_lane, queue.last_lane]
    tenants = []
    for one in seen:
        known = lanes_of[one.workspace_id]
        # Without a lane there are only runs of agents at their limits.
        room = rooms.get(one.workspace_id) if known else 0
        span = (min(known), max(known)) if known else (BATCH, BATCH)
        tenants.append(Tenant(one.workspace_id, max(1, one.weight), room, *span))
    return tenants, limits


def _lock(connection: sa.Connection, db: Database, workspaces: list[str]) -> set[str]:
    if db.dialect == "sqlite":
        # One writer: nobody else claims while this transaction is open.
        return set(workspaces)
    return set(connection.execute(_LOCK, {"ids": array(workspaces)}).scalars())


def _rooms(connection: sa.Connection, db: Database, capped: dict[str, int]) -> dict[str, int]:
    if not capped:
        return {}
    if db.dialect == "postgresql":
        values = {"ids": array(capped), "most": array(capped.values())}
        counts = [tuple(row) for row in connection.execute(_COUNT_ON_POSTGRES, values)]
    else:
        counts = [
            (workspace_id, connection.execute(_COUNT_ON_SQLITE, {"id": workspace_id, "most": most}).scalar_one())
            for workspace_id, most in capped.items()
        ]
    return {workspace_id: capped[workspace_id] - running for workspace_id, running in counts}


def _queues(connection: sa.Connection, db: Database, workspaces: list[str]) -> list[_Queue]:
    if not workspaces:
        return []
    if db.dialect == "postgresql":
        return [_Queue(*row) for row in connection.execute(_QUEUES_ON_POSTGRES, {"ids": array(workspaces)})]
    queues: list[_Queue] = []
    for workspace_id in workspaces:
        agent = ""
        for _ in range(_AGENTS_AT_ONCE):
            agent = connection.execute(_NEXT_AGENT_ON_SQLITE, {"id": workspace_id, "after": agent}).scalar() or ""
            if not agent:
                break
            names = {"id": workspace_id, "agent": agent}
            most, first, last = connection.execute(_HEAD_ON_SQLITE, names).one()
            running = connection.execute(_COUNT_OF_AGENT_ON_SQLITE, {**names, "most": most}).scalar_one()
            queues.append(_Queue(workspace_id, agent, most, first, last, running))
    return queues


def _fitting(queues: Sequence[_Queue], turns: Sequence[Turn], draw: float) -> list[tuple[int, _Queue]]:
    """Each queue beside the turn that takes from it: one only, or what is left of its limit would be taken twice."""
    fitting: list[tuple[int, _Queue]] = []
    for queue in queues:
        wants_batch = queue.last_lane == BATCH and (queue.first_lane == BATCH or draw < BATCH_SHARE)
        mine = [index for index, turn in enumerate(turns) if turn.workspace_id == queue.workspace_id]
        if mine:
            fitting.append((mine[-1] if wants_batch else mine[0], queue))
    return fitting


# ----------------------------------------------------------------------------------------------------------- taking

_RUN_COLUMNS = ", ".join(column.name for column in t.runs.c)
_ORDER = "ORDER BY r.lane, r.ready_at, r.run_id"
_SET = f"""
UPDATE runs SET state = {RUNNING}, wait_reason = 0, wake_at = NULL, holder = :executor_id, epoch = epoch + 1,
  updated_at = {{now}}
"""
_TURN = """turn AS MATERIALIZED (
  SELECT * FROM unnest(CAST(:turns AS integer[]), CAST(:workspaces AS uuid[]), CAST(:first_lanes AS smallint[]),
    CAST(:last_lanes AS smallint[]), CAST(:quotas AS integer[])) AS t(turn, workspace_id, first_lane, last_lane, quota)
)"""
# Taken where it is found: another replica that claims at the same time passes over it and takes what comes next.
_FREE = f"""
    SELECT r.run_id, r.lane, r.ready_at FROM runs AS r
    WHERE {_R_READY} AND r.workspace_id = turn.workspace_id AND r.lane BETWEEN turn.first_lane AND turn.last_lane
    {_ORDER} LIMIT turn.quota FOR UPDATE SKIP LOCKED
"""
_TAKE_ON_POSTGRES = sa.text(
    f"""
WITH {_TURN}, picked(id) AS MATERIALIZED (
  SELECT c.run_id FROM turn CROSS JOIN LATERAL ({_FREE}) AS c
)
{_SET.format(now="clock_timestamp()")} FROM picked WHERE run_id = picked.id RETURNING {_RUN_COLUMNS}
"""
).columns(*t.runs.c)
_TAKE_WITH_LIMITS_ON_POSTGRES = sa.text(
    f"""
WITH {_TURN}, queue AS MATERIALIZED (
  SELECT * FROM unnest(CAST(:queue_turns AS integer[]), CAST(:queue_agents AS text[]), CAST(:queue_limits AS integer[]),
    CAST(:queue_running AS integer[])) AS q(turn, agent, agent_limit, running)
), picked(id) AS MATERIALIZED (
  SELECT c.run_id FROM turn CROSS JOIN LATERAL (
    SELECT m.run_id FROM (
      SELECT * FROM ({_FREE}) AS free
      UNION ALL
      SELECT l.run_id, l.lane, l.ready_at FROM queue CROSS JOIN LATERAL (
        SELECT s.*, row_number() OVER (ORDER BY s.lane, s.ready_at, s.run_id) AS place FROM (
          SELECT r.run_id, r.lane, r.ready_at, r.agent_limit FROM runs AS r
          WHERE {_R_LIMITED} AND r.workspace_id = turn.workspace_id AND r.agent = queue.agent
            AND r.lane BETWEEN turn.first_lane AND turn.last_lane
          {_ORDER} LIMIT LEAST(turn.quota, queue.agent_limit - queue.running) FOR UPDATE SKIP LOCKED
        ) AS s
      ) AS l
      WHERE queue.turn = turn.turn AND queue.running + l.place <= l.agent_limit
    ) AS m ORDER BY m.lane, m.ready_at, m.run_id LIMIT turn.quota
  ) AS c
)
{_SET.format(now="clock_timestamp()")} FROM picked WHERE run_id = picked.id RETURNING {_RUN_COLUMNS}
"""
).columns(*t.runs.c)

_FREE_ON_SQLITE = (
    f"SELECT r.lane, r.ready_at, r.run_id FROM runs AS r WHERE {_R_READY} AND r.workspace_id = ? "
    f"AND r.lane BETWEEN ? AND ? {_ORDER} LIMIT ?"
)
_LIMITED_ON_SQLITE = (
    f"SELECT r.lane, r.ready_at, r.run_id, r.agent_limit FROM runs AS r WHERE {_R_LIMITED} AND r.workspace_id = ? "
    f"AND r.agent = ? AND r.lane BETWEEN ? AND ? {_ORDER} LIMIT ?"
)
_TAKE_ON_SQLITE = sa.text(
    f"{_SET.format(now=':now')} WHERE run_id IN (SELECT value FROM json_each(:ids)) RETURNING {_RUN_COLUMNS}"
).columns(*t.runs.c)


def _take(
    connection: sa.Connection,
    db: Database,
    executor_id: str,
    turns: Sequence[Turn],
    queues: Sequence[tuple[int, _Queue]],
) -> list[sa.Row[Any]]:
    if db.dialect == "sqlite":
        ids = _pick_on_sqlite(connection, turns, queues)
        values = {"executor_id": executor_id, "now": to_micros(db.now(connection)), "ids": json.dumps(ids)}
        rows = connection.execute(_TAKE_ON_SQLITE, values).all() if ids else []
    else:
        values = {
            "executor_id": executor_id,
            "turns": array(range(len(turns))),
            "workspaces": array(turn.workspace_id for turn in turns),
            "first_lanes": array(turn.first_lane for turn in turns),
            "last_lanes": array(turn.last_lane for turn in turns),
            "quotas": array(turn.quota for turn in turns),
        }
        if queues:
            values |= {
                "queue_turns": array(index for index, _ in queues),
                "queue_agents": array_of_text(queue.agent for _, queue in queues),
                "queue_limits": array(queue.agent_limit for _, queue in queues),
                "queue_running": array(queue.running for _, queue in queues),
            }
        query = _TAKE_WITH_LIMITS_ON_POSTGRES if queues else _TAKE_ON_POSTGRES
        rows = connection.execute(query, values).all()
    return sorted(rows, key=lambda row: (row.lane, row.ready_at, row.run_id))


def _pick_on_sqlite(
    connection: sa.Connection, turns: Sequence[Turn], queues: Sequence[tuple[int, _Queue]]
) -> list[str]:
    picked: list[str] = []
    for index, turn in enumerate(turns):
        span = (turn.first_lane, turn.last_lane)
        found = [
            tuple(row) for row in connection.exec_driver_sql(_FREE_ON_SQLITE, (turn.workspace_id, *span, turn.quota))
        ]
        for queue in (queue for at, queue in queues if at == index):
            room = min(turn.quota, queue.agent_limit - queue.running)
            waiting = connection.exec_driver_sql(_LIMITED_ON_SQLITE, (turn.workspace_id, queue.agent, *span, room))
            found += [
                tuple(row[:3]) for place, row in enumerate(waiting, start=1) if queue.running + place <= row.agent_limit
            ]
        picked += [run_id for _, _, run_id in sorted(found)[: turn.quota]]
    return picked


# --------------------------------------------------------------------------------------------------------- journals


# Times are microseconds: the driver's own type costs more than all the rest.
_SHORT: Final = """
SELECT run_id, seq, epoch, at, body FROM (
  SELECT run_id, seq, epoch, {at} AS at, body,
    sum(length(body)) OVER (PARTITION BY run_id) AS total
  FROM journal WHERE run_id {is_wanted}
) AS sized WHERE total <= :max_bytes ORDER BY run_id, seq
"""
_SHORT_OF: Final = {
    "sqlite": sa.text(_SHORT.format(at="at", is_wanted="IN (SELECT value FROM json_each(:run_ids))")),
    "postgresql": sa.text(
        _SHORT.format(
            at="CAST(extract(epoch FROM at) * 1000000 AS bigint)",
            is_wanted="= ANY(CAST(:run_ids AS uuid[]))",
        )
    ),
}


def short_journals(connection: sa.Connection, run_ids: list[str], max_bytes: int) -> dict[str, list[run_pb2.Event]]:
    """The journals of these runs where they are short, in one statement.

    Not that of a run whose payloads cannot be opened now: a claim is for many workspaces, and does not wait for one's
    keys. Its executor asks for the journal, and is told why it cannot have it.
    """
    dialect = connection.dialect.name
    wanted = json.dumps(run_ids) if dialect == "sqlite" else array(run_ids)
    events: dict[str, list[run_pb2.Event]] = {}
    closed: set[str] = set()
    for run_id, seq, epoch, at, stored in connection.execute(
        _SHORT_OF[dialect], {"run_ids": wanted, "max_bytes": max_bytes}
    ):
        try:
            event = run_pb2.Event.FromString(opened(stored, gone=t.GONE_EVENT))
        except (MissingKeyError, PayloadDamagedError):
            closed.add(run_id)
            continue
        put_place(event, run_id, seq, epoch, at)
        events.setdefault(run_id, []).append(event)
    return {run_id: found for run_id, found in events.items() if run_id not in closed}
