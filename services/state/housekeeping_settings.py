"""What a workspace may use and how long it keeps what has ended: read, checked, stored.

Who may set what: `weight` and `max_running_runs` say how the machine is shared between workspaces, and are the
operator's. How long its own data is kept is each workspace's own matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.api.common.v1 import workspace_pb2
from holdfast.errors import Conflict, FieldViolation, InvalidArgument, Reason
from services.shared.database import Database
from services.state import journal
from services.state import tables as t
from services.state.housekeeping_store import MIN_KEPT
from services.state.rows import stamp
from services.state.run_store import check_ids

OPERATORS: Final = frozenset({"weight", "max_running_runs"})
TENANTS: Final = frozenset({"ended_runs_kept", "idle_sessions_kept", "keep_latest_runs"})
MAX_WEIGHT: Final = 100
MAX_RUNNING: Final = 1_000_000
MAX_KEEP_LATEST: Final = 1_000_000
MAX_KEPT: Final = timedelta(days=36_500)

_DEFAULTS: Final[dict[str, int]] = {
    "weight": 1,
    "max_running": 0,
    "ended_runs_kept": 0,
    "idle_sessions_kept": 0,
    "keep_latest_runs": 0,
}
_COLUMNS: Final = {"max_running_runs": "max_running"}


def get_settings(connection: sa.Connection, workspace_id: str) -> workspace_pb2.WorkspaceSettings:
    """A workspace's settings; the defaults when it has none."""
    check_ids(workspace_id=workspace_id)
    return _settings_of(_row(connection, workspace_id))


def update_settings(
    connection: sa.Connection,
    db: Database,
    workspace_id: str,
    settings: workspace_pb2.WorkspaceSettings,
    paths: Sequence[str],
    *,
    is_operator: bool,
    etag: str = "",
    request_id: str = "",
    fingerprint: bytes = b"",
) -> workspace_pb2.WorkspaceSettings:
    """Takes the named values.

    Raises:
        InvalidArgument: What is wrong with them, field by field; REQUEST_ID_REUSED.
        Conflict: The settings are not those of the etag.
    """
    check_ids(workspace_id=workspace_id)
    values = _checked(settings, paths, is_operator=is_operator)
    earlier = journal.find_request(connection, workspace_id, request_id, "UpdateWorkspaceSettings", fingerprint)
    if earlier is not None:
        return _settings_of(_row(connection, workspace_id))
    now = db.now(connection)
    insert = sqlite.insert if db.dialect == "sqlite" else postgresql.insert
    new_row = insert(t.workspaces).values(workspace_id=workspace_id, updated_at=now, **{**_DEFAULTS, **values})
    w = t.workspaces.c
    if etag:
        found = connection.execute(
            sa.select(t.workspaces).where(w.workspace_id == workspace_id).with_for_update()
        ).one_or_none()
        is_current = _etag_of(found) == etag
        if is_current and found is None:
            # Two may find none at the same moment: the one that makes the row is first.
            first = new_row.on_conflict_do_nothing().returning(w.workspace_id)
            is_current = connection.execute(first).first() is not None
        if not is_current:
            raise Conflict("the settings have been changed since: read them again")
    connection.execute(
        new_row.on_conflict_do_update(index_elements=[w.workspace_id], set_={**values, "updated_at": now})
    )
    journal.remember_request(
        connection, workspace_id, request_id, "UpdateWorkspaceSettings", fingerprint, workspace_id, now
    )
    return _settings_of(_row(connection, workspace_id))


def _row(connection: sa.Connection, workspace_id: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(t.workspaces).where(t.workspaces.c.workspace_id == workspace_id)).one_or_none()


def _etag_of(row: sa.Row[Any] | None) -> str:
    return "0" if row is None else format(journal.to_micros(row.updated_at), "x")


def _settings_of(row: sa.Row[Any] | None) -> workspace_pb2.WorkspaceSettings:
    found = workspace_pb2.WorkspaceSettings(weight=_DEFAULTS["weight"], etag=_etag_of(row))
    if row is not None:
        found.weight = row.weight
        found.max_running_runs = row.max_running
        found.keep_latest_runs = row.keep_latest_runs
        if row.ended_runs_kept:
            found.ended_runs_kept.seconds = row.ended_runs_kept
        if row.idle_sessions_kept:
            found.idle_sessions_kept.seconds = row.idle_sessions_kept
        found.update_time.CopyFrom(stamp(row.updated_at))
    return found


def _checked(settings: workspace_pb2.WorkspaceSettings, paths: Sequence[str], *, is_operator: bool) -> dict[str, int]:
    """The columns to write.

    Raises:
        InvalidArgument: All that is wrong.
    """
    wrong: list[FieldViolation] = []
    if not paths:
        wrong.append(FieldViolation("update_mask", "expected the names of the settings to change"))
    for path in paths:
        if path in OPERATORS and not is_operator:
            wrong.append(FieldViolation(f"settings.{path}", "is set by the operator of the suite"))
        elif path not in OPERATORS | TENANTS:
            wrong.append(FieldViolation("update_mask", f"there is no setting {path[:60]!r}"))
    values: dict[str, int] = {}
    for name, lowest, highest in (
        ("weight", 1, MAX_WEIGHT),
        ("max_running_runs", 0, MAX_RUNNING),
        ("keep_latest_runs", 0, MAX_KEEP_LATEST),
    ):
        if name in paths:
            # 0 is what an unset field reads as: named and unset means the default.
            value = getattr(settings, name) or _DEFAULTS[_COLUMNS.get(name, name)]
            values[_COLUMNS.get(name, name)] = value
            if not lowest <= value <= highest:
                wrong.append(FieldViolation(f"settings.{name}", f"expected {lowest} to {highest}"))
    for name in ("ended_runs_kept", "idle_sessions_kept"):
        if name in paths:
            values[name] = 0
            if settings.HasField(name):
                duration: Duration = getattr(settings, name)
                values[name] = duration.seconds
                shortest, longest = int(MIN_KEPT.total_seconds()), int(MAX_KEPT.total_seconds())
                if duration.nanos or not shortest <= duration.seconds <= longest:
                    wrong.append(FieldViolation(f"settings.{name}", "expected whole seconds, an hour to 36,500 days"))
    if wrong:
        raise InvalidArgument("the settings are not valid", reason=Reason.INVALID_FIELD, field_violations=wrong)
    return values
