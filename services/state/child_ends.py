"""Drivers' ends of runs that other runs have started: many at once, each together with the news for its parent.

Invariants:
- A parent is waited for by an end that is applied alone: of many, those whose parent somebody else has locked are left
  out, and each is applied by itself.
- An end is not applied beside that of its own parent, as either would have to see the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.database import Database
from services.state import children
from services.state import tables as t
from services.state.run_store import Written
from services.state.transition_batch import Applied, TransitionRow, apply_transitions, store_effects


@dataclass(frozen=True, slots=True)
class ChildEnds:
    """What one transaction did.

    Attributes:
        applied: The ends, by run. A run that is missing here was not written to at all.
        written: The news for their parents.
    """

    applied: dict[str, Applied] = field(default_factory=dict)
    written: Sequence[Written] = ()


def apply_child_ends(connection: sa.Connection, db: Database, rows: Sequence[TransitionRow]) -> ChildEnds:
    """Ends runs as their drivers ask, where the transition's condition holds.

    Args:
        rows: Last transitions, one of a run.
    """
    are_many = len(rows) > 1
    r = t.runs.c
    query = sa.select(r.run_id, r.workspace_id, r.parent_run_id).where(r.run_id.in_([row.run_id for row in rows]))
    runs: dict[str, Any] = {run.run_id: run for run in connection.execute(query)}
    above = {run.parent_run_id for run in runs.values() if run.parent_run_id is not None}
    # Order matters: before anything is written, see `children`.
    parents = children.lock_parents(connection, above - runs.keys(), skip_locked=are_many)
    ready = [row for row in rows if row.run_id in runs and (not are_many or runs[row.run_id].parent_run_id in parents)]
    if not ready:
        return ChildEnds()
    applied = apply_transitions(connection, db, ready, ends_of_children=True)
    ended = [row for row in ready if row.run_id in applied]
    effects = [row.transition for row in ended if row.transition is not None]
    if effects:
        store_effects(connection, applied[ended[0].run_id].at, effects)
    ends = [
        (run, parents.get(run.parent_run_id), _end_of(row))
        for row in ended
        if (run := runs[row.run_id]).parent_run_id is not None
    ]
    return ChildEnds(applied, children.tell_parents(connection, db, ends) if ends else ())


def _end_of(row: TransitionRow) -> children.End:
    state = cast(run_pb2.RunState, row.state)
    changes = run_pb2.Event.FromString(row.body).changes
    ended = changes[-1].run_state_changed
    used = ended.used if ended.HasField("used") else None
    if not row.has_output:
        failure = None if row.failure is None else content_pb2.Failure.FromString(row.failure)
        return children.End(state, failure, used=used)
    answers = [
        change.step_finished.message
        for change in changes
        if change.WhichOneof("kind") == "step_finished" and change.step_finished.HasField("message")
    ]
    # A large one is a body of this very transition.
    blobs = () if row.transition is None else row.transition.blobs
    its_own = tuple(blob for blob in blobs if blob.hash == answers[-1].blob.hash)
    return children.End(state, output=answers[-1], used=used, blobs=its_own)
