"""A driver's end of a run that has a parent or children: applied alone, together with what it means for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.database import Database
from services.state import children, journal
from services.state.run_store import Written
from services.state.transition_batch import Applied, TransitionRow, apply_transitions, store_effects


@dataclass(frozen=True, slots=True)
class TreeEnd:
    """What it did.

    Attributes:
        applied: The end itself.
        written: What was written to others.
    """

    applied: Applied
    written: Sequence[Written]


def apply_end_in_tree(connection: sa.Connection, db: Database, row: TransitionRow) -> TreeEnd | None:
    """Ends a run as its driver asks; None where the transition's condition does not hold.

    Args:
        row: Its last transition.
    """
    run = journal.select_run(connection, row.workspace_id, row.run_id)
    if run is None:
        return None
    parent = children.lock_parent(connection, run)
    applied = apply_transitions(connection, db, [row], ends_in_tree=True).get(row.run_id)
    if applied is None:
        return None
    if row.transition is not None:
        store_effects(connection, applied.at, [row.transition])
    written = children.end_in_tree(connection, db, run, parent, _end_of(row))
    return TreeEnd(applied, written)


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
