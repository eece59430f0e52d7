"""The table of what may happen to a run, walked; and the shapes of transitions that no run could take."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import InvalidArgument, Reason
from holdfast.ids import new_uuid7
from services.state.transitions import ALLOWED, BY_DRIVER, DRIVER_CHANGES, ENDED, check_transition
from tests.repository.tree import ROOT
from tests.state.builders import (
    BUDGET_EXCEEDED,
    CANCELLED,
    EXPIRED,
    FAILED,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    ends,
    starts,
    transition,
    waits,
)

STATES = [QUEUED, RUNNING, WAITING, PAUSED, SUCCEEDED, FAILED, CANCELLED, EXPIRED, BUDGET_EXCEEDED]
RUN = new_uuid7()


def test_table_is_the_one_of_the_architecture() -> None:
    written = set()
    page = (ROOT / "docs" / "architecture.md").read_text()
    for before, afters in re.findall(r"^\| ([A-Z–]+) \| ([A-Z_, ]+) \|", page, flags=re.MULTILINE):
        if before != "–":
            state = run_pb2.RunState.Value(f"RUN_STATE_{before}")
            written |= {(state, run_pb2.RunState.Value(f"RUN_STATE_{after}")) for after in afters.split(", ")}
    assert written == {(before, after) for before, afters in ALLOWED.items() for after in afters}
    assert written == {
        (QUEUED, RUNNING),
        (QUEUED, PAUSED),
        (QUEUED, CANCELLED),
        (QUEUED, EXPIRED),
        (RUNNING, QUEUED),
        (RUNNING, WAITING),
        (RUNNING, PAUSED),
        (RUNNING, SUCCEEDED),
        (RUNNING, FAILED),
        (RUNNING, CANCELLED),
        (RUNNING, EXPIRED),
        (RUNNING, BUDGET_EXCEEDED),
        (WAITING, QUEUED),
        (WAITING, PAUSED),
        (WAITING, EXPIRED),
        (PAUSED, QUEUED),
        (PAUSED, CANCELLED),
        (PAUSED, EXPIRED),
    }


def test_every_state_can_be_reached_and_every_unfinished_one_can_end() -> None:
    assert set(ALLOWED) == set(STATES)
    reached = {QUEUED}
    for _ in STATES:
        reached |= {after for before in reached for after in ALLOWED[before]}
    assert reached == set(STATES)
    assert all(not ALLOWED[state] for state in ENDED)
    for state in set(STATES) - ENDED:
        following = {state}
        for _ in STATES:
            following |= {after for before in following for after in ALLOWED[before]}
        assert following >= ENDED


@pytest.mark.parametrize("state", [*STATES, run_pb2.RUN_STATE_UNSPECIFIED])
def test_driver_makes_a_run_wait_or_end_and_nothing_else(state: run_pb2.RunState) -> None:
    changed = run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state))
    if state in BY_DRIVER:
        check_transition(transition(RUN, 1, 2, changed))
        return
    with pytest.raises(InvalidArgument):
        check_transition(transition(RUN, 1, 2, changed))


@pytest.mark.parametrize("kind", [field.name for field in run_pb2.Change.DESCRIPTOR.fields])
def test_driver_writes_only_its_own_changes(kind: str) -> None:
    change = run_pb2.Change()
    getattr(change, kind).SetInParent()
    if kind == "run_state_changed":
        change.run_state_changed.state = WAITING
    elif kind == "approval_requested":
        change.approval_requested.approval.approval_id = new_uuid7()
    elif kind == "approval_closed":
        change.approval_closed.approval_id = new_uuid7()
        change.approval_closed.state = run_pb2.APPROVAL_STATE_EXPIRED
    if kind in DRIVER_CHANGES:
        check_transition(transition(RUN, 1, 2, change))
        return
    with pytest.raises(InvalidArgument) as refused:
        check_transition(transition(RUN, 1, 2, change))
    assert refused.value.reason == Reason.INVALID_FIELD


@given(st.lists(st.sampled_from([starts(1), waits(), ends()]), min_size=1, max_size=6))
def test_change_of_state_is_the_last_one(changes: list[run_pb2.Change]) -> None:
    places = [index for index, change in enumerate(changes) if change.WhichOneof("kind") == "run_state_changed"]
    sent = transition(RUN, 1, 2, *changes)
    if places in ([], [len(changes) - 1]):
        check_transition(sent)
    else:
        with pytest.raises(InvalidArgument):
            check_transition(sent)


@pytest.mark.parametrize(("epoch", "seq"), list(itertools.product((-1, 0, 1), (-1, 0, 1))))
def test_first_event_and_leases_that_were_never_given_are_not_a_drivers(epoch: int, seq: int) -> None:
    with pytest.raises(InvalidArgument):
        check_transition(transition(RUN, epoch, seq))


@pytest.mark.parametrize("run_id", ["", "run", "01A20B51-92E5-7000-8000-000000000000", "0" * 36])
def test_ids_that_are_none_are_refused(run_id: str) -> None:
    with pytest.raises(InvalidArgument):
        check_transition(transition(run_id, 1, 2))


def test_empty_transition_is_refused() -> None:
    empty = transition(RUN, 1, 2)
    del empty.changes[:]
    with pytest.raises(InvalidArgument):
        check_transition(empty)
