"""Agents as stored: immutable revisions, and labels that point to them."""

from __future__ import annotations

import base64
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import InvalidArgument, NotFound, Reason
from holdfast.ids import is_uuid
from services.shared.database import Database
from services.shared.timestamps import Timestamp
from services.state import journal
from services.state import tables as t
from services.state.rows import stamp
from services.state.run_store import check_ids

LATEST = "latest"
SHORTEST_PREFIX = 6
_HEX = frozenset("0123456789abcdef")


def put_revision(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    revision: str,
    spec: agent_pb2.AgentSpec,
    request_id: str,
    fingerprint: bytes,
) -> tuple[agent_pb2.AgentRevision, bool]:
    """Stores a revision if it is new and points `latest` to it.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED, or an id or a name that cannot be stored.
    """
    check_ids(workspace_id=workspace_id)
    if not (revision and spec.name):
        raise InvalidArgument("a revision has an id and the agent's name", field="revision")
    earlier = journal.find_request(connection, workspace_id, request_id, "ApplyAgent", fingerprint)
    if earlier is not None:
        was_created, _, earlier_revision = earlier.partition(" ")
        row = _find_revision(connection, workspace_id, spec.name, earlier_revision)
        assert row is not None, "what a request made is there"
        return revision_of(row), was_created == "new"
    now = db.now(connection)
    insert = sqlite.insert if db.dialect == "sqlite" else postgresql.insert
    # The agent's row first: it serialises two who apply at the same moment.
    connection.execute(
        insert(t.agents)
        .values(workspace_id=workspace_id, name=spec.name, description=spec.description, created_at=now, updated_at=now)
        .on_conflict_do_update(
            index_elements=[t.agents.c.workspace_id, t.agents.c.name],
            set_={"description": spec.description, "updated_at": now},
        )
    )
    created = (
        connection.execute(
            insert(t.agent_revisions)
            .values(
                workspace_id=workspace_id,
                agent=spec.name,
                revision=revision,
                spec=db.seals.seal(workspace_id, spec.SerializeToString(deterministic=True)),
                created_at=now,
            )
            .on_conflict_do_nothing()
            # Not rowcount, which an insert on PostgreSQL does not fill.
            .returning(t.agent_revisions.c.revision)
        ).first()
        is not None
    )
    _point(connection, db, workspace_id, spec.name, LATEST, revision)
    result = f"{'new' if created else 'old'} {revision}"
    journal.remember_request(connection, workspace_id, request_id, "ApplyAgent", fingerprint, result, now)
    row = _find_revision(connection, workspace_id, spec.name, revision)
    assert row is not None
    return revision_of(row), created


def get_agent(connection: sa.Connection, workspace_id: str, name: str) -> agent_pb2.Agent:
    """One agent with its labels.

    Raises:
        NotFound: AGENT_NOT_FOUND.
    """
    return _agents_of(connection, workspace_id, [_agent_row(connection, workspace_id, name)])[0]


def list_agents(connection: sa.Connection, workspace_id: str, limit: int, after_name: str) -> list[agent_pb2.Agent]:
    """Agents by name."""
    check_ids(workspace_id=workspace_id)
    a = t.agents.c
    query = sa.select(t.agents).where(a.workspace_id == workspace_id, a.name > after_name).order_by(a.name).limit(limit)
    return _agents_of(connection, workspace_id, list(connection.execute(query).all()))


def get_revision(connection: sa.Connection, workspace_id: str, agent: str, revision: str) -> agent_pb2.AgentRevision:
    """One revision by id, unambiguous prefix, or label.

    Raises:
        NotFound: AGENT_NOT_FOUND, REVISION_NOT_FOUND, LABEL_NOT_FOUND.
    """
    wanted = revision or LATEST
    labelled = _find_labelled(connection, workspace_id, agent, wanted)
    if labelled is not None:
        return revision_of(labelled)
    _agent_row(connection, workspace_id, agent)
    is_id = len(wanted) >= SHORTEST_PREFIX and set(wanted) <= _HEX
    row = _find_revision(connection, workspace_id, agent, wanted) if is_id else None
    if row is None:
        reason = Reason.REVISION_NOT_FOUND if is_id else Reason.LABEL_NOT_FOUND
        noun = "revision" if is_id else "label"
        raise NotFound(f"{agent} has no {noun} {wanted}", reason=reason, metadata={"agent": agent})
    return revision_of(row)


def list_revisions(
    connection: sa.Connection, workspace_id: str, agent: str, limit: int, position: str
) -> tuple[list[agent_pb2.AgentRevision], str]:
    """Revisions, newest first."""
    _agent_row(connection, workspace_id, agent)
    r = t.agent_revisions.c
    query = sa.select(t.agent_revisions).where(r.workspace_id == workspace_id, r.agent == agent)
    if position:
        before = _find_revision(connection, workspace_id, agent, _decoded(position))
        if before is None:
            raise InvalidArgument("not a position of this list", reason=Reason.INVALID_PAGE_TOKEN, field="position")
        query = query.where(
            sa.tuple_(r.created_at, r.revision) < sa.tuple_(sa.literal(before.created_at, Timestamp()), before.revision)
        )
    rows = connection.execute(query.order_by(r.created_at.desc(), r.revision.desc()).limit(limit + 1)).all()
    page = rows[:limit]
    more = base64.urlsafe_b64encode(page[-1].revision.encode()).decode() if len(rows) > limit else ""
    return [revision_of(row) for row in page], more


def put_label(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    agent: str,
    label: str,
    revision: str,
    request_id: str,
    fingerprint: bytes,
) -> agent_pb2.Agent:
    """Points a label to a revision."""
    if journal.find_request(connection, workspace_id, request_id, "SetAgentLabel", fingerprint) is None:
        now = db.now(connection)
        found = get_revision(connection, workspace_id, agent, revision)
        _point(connection, db, workspace_id, agent, label, found.revision)
        connection.execute(
            sa.update(t.agents)
            .where(t.agents.c.workspace_id == workspace_id, t.agents.c.name == agent)
            .values(updated_at=now)
        )
        journal.remember_request(connection, workspace_id, request_id, "SetAgentLabel", fingerprint, label, now)
    return get_agent(connection, workspace_id, agent)


def _point(connection: sa.Connection, db: Database, workspace_id: str, agent: str, label: str, revision: str) -> None:
    insert = sqlite.insert if db.dialect == "sqlite" else postgresql.insert
    connection.execute(
        insert(t.agent_labels)
        .values(workspace_id=workspace_id, agent=agent, label=label, revision=revision)
        .on_conflict_do_update(
            index_elements=[t.agent_labels.c.workspace_id, t.agent_labels.c.agent, t.agent_labels.c.label],
            set_={"revision": revision},
        )
    )


def _agent_row(connection: sa.Connection, workspace_id: str, name: str) -> sa.Row[Any]:
    row = None
    if is_uuid(workspace_id) and "\0" not in name:
        row = connection.execute(
            sa.select(t.agents).where(t.agents.c.workspace_id == workspace_id, t.agents.c.name == name)
        ).one_or_none()
    if row is None:
        raise NotFound(f"no such agent: {name}", reason=Reason.AGENT_NOT_FOUND, metadata={"agent": name})
    return row


def _agents_of(connection: sa.Connection, workspace_id: str, rows: list[sa.Row[Any]]) -> list[agent_pb2.Agent]:
    labels: dict[str, dict[str, str]] = {}
    names = [row.name for row in rows]
    query = sa.select(t.agent_labels).where(
        t.agent_labels.c.workspace_id == workspace_id, t.agent_labels.c.agent.in_(names)
    )
    for row in connection.execute(query):
        labels.setdefault(row.agent, {})[row.label] = row.revision
    return [
        agent_pb2.Agent(
            name=row.name,
            description=row.description,
            labels=labels.get(row.name, {}),
            create_time=stamp(row.created_at),
            update_time=stamp(row.updated_at),
        )
        for row in rows
    ]


def _find_labelled(connection: sa.Connection, workspace_id: str, agent: str, label: str) -> sa.Row[Any] | None:
    if not is_uuid(workspace_id) or "\0" in agent or "\0" in label:
        return None
    r, a = t.agent_revisions.c, t.agent_labels.c
    points = (a.workspace_id == r.workspace_id) & (a.agent == r.agent) & (a.revision == r.revision)
    query = (
        sa.select(t.agent_revisions)
        .join_from(t.agent_labels, t.agent_revisions, points)
        .where(a.workspace_id == workspace_id, a.agent == agent, a.label == label)
    )
    return connection.execute(query).one_or_none()


def _find_revision(connection: sa.Connection, workspace_id: str, agent: str, prefix: str) -> sa.Row[Any] | None:
    r = t.agent_revisions.c
    rows = connection.execute(
        sa.select(t.agent_revisions)
        .where(r.workspace_id == workspace_id, r.agent == agent, r.revision.startswith(prefix, autoescape=True))
        .limit(2)
    ).all()
    return rows[0] if len(rows) == 1 else None


def revision_of(row: sa.Row[Any]) -> agent_pb2.AgentRevision:
    """A revision's row."""
    return agent_pb2.AgentRevision(
        revision=row.revision,
        agent=row.agent,
        spec=agent_pb2.AgentSpec.FromString(row.spec),
        create_time=stamp(row.created_at),
    )


def _decoded(position: str) -> str:
    try:
        return base64.urlsafe_b64decode(position.encode()).decode()
    except ValueError as error:
        raise InvalidArgument(
            "not a position of this list", reason=Reason.INVALID_PAGE_TOKEN, field="position"
        ) from error
