"""What state promises of runs that other runs start, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import Conflict, InvalidArgument, LeaseLost
from holdfast.ids import new_uuid7
from services.state import approval_store, export, housekeeping_store, journal, run_store, session_store
from services.state import tables as t
from services.state.housekeeping_store import Erasure
from services.state.invariants import Inspection
from services.state.run_store import RunFilter
from services.state.turns import BATCH, CHILD
from tests.state.support import (
    BUDGET_EXCEEDED,
    CANCELLED,
    EXPIRED,
    FAILED,
    PAST,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    asks,
    becomes,
    calls_agent,
    child_of,
    emptied,
    finished,
    message_blob,
    started,
    tool_finished,
)

# Its fixtures: an empty database of each kind.
pytest_plugins = ["tests.state.sql_fixtures"]

WAITS = becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_CHILD)


@pytest.fixture
async def store(either_url: str) -> AsyncIterator[Store]:
    """The store on either database."""
    async with emptied(either_url) as store:
        yield store


async def starts_children(store: Store, parent: Held, *steps: int, **fields: Any) -> list[Held]:
    """The parent begins these steps, each with a child, in one transition."""
    children = [child_of(parent, step, **fields) for step in steps]
    changes = [calls_agent(step, child.run_id) for step, child in zip(steps, children, strict=True)]
    await store.advance(parent, *changes, children=children)
    return [Held(parent.workspace, child.run_id, parent.session_id) for child in children]


async def family(store: Store, **fields: Any) -> tuple[Held, Held]:
    """A parent that waits for its one child, which an executor drives."""
    parent = await store.claimed(**fields)
    (child,) = await starts_children(store, parent, 1)
    await store.advance(parent, WAITS)
    return parent, await store.take(child)


async def sound(store: Store) -> None:
    """Everything that must be true of what is stored is."""
    inspection = Inspection(store.db)
    async for _ in inspection.run():
        pass
    assert not {name: found.examples for name, found in inspection.findings.of.items() if found.examples}


async def told(store: Store, parent: Held) -> list[run_pb2.ChildEnded]:
    return [
        change.child_ended
        for event in await store.events(parent)
        for change in event.changes
        if change.WhichOneof("kind") == "child_ended"
    ]


async def test_child_is_stored_with_the_step_that_waits_for_it(store: Store) -> None:
    parent = await store.claimed(user_id="ada")
    first, second = await starts_children(store, parent, 1, 2)
    for step, child in ((1, first), (2, second)):
        row = await store.row(child)
        assert (row.state, row.parent_run_id, row.parent_step) == (QUEUED, parent.run_id, step)
        assert (row.root_run_id, row.depth, row.lane, row.user_id) == (parent.run_id, 1, CHILD, "ada")
        (event,) = await store.events(child)
        created = event.changes[0].run_created
        assert (created.parent_run_id, created.parent_step, created.parent_attempt) == (parent.run_id, step, 1)
        assert (created.root_run_id, created.depth, created.depth_limit) == (parent.run_id, 1, 5)
        assert (created.session_id, created.user_id) == (parent.session_id, "ada")
    await sound(store)


async def test_transition_that_comes_again_makes_no_second_child(store: Store) -> None:
    parent = await store.claimed()
    child = child_of(parent, 1)
    sent = parent.transition(calls_agent(1, child.run_id), children=[child])
    first, again = await store.commits.commit(sent), await store.commits.commit(sent)
    assert first == again
    assert [row.run_id for row in await store.claim()] == [child.run_id]


async def test_refused_transition_makes_no_child(store: Store) -> None:
    parent = await store.claimed()
    for fields, error in (({"seq": 5}, Conflict), ({"epoch": 7}, LeaseLost)):
        child = child_of(parent, 1)
        refused = await store.refusal(parent, calls_agent(1, child.run_id), children=[child], **fields)
        assert isinstance(refused, error)
    assert await store.claim() == []


async def test_step_and_child_come_together_or_not_at_all(store: Store) -> None:
    parent, other = await store.claimed(), await store.claimed()
    child = child_of(parent, 1)
    wrong: list[tuple[list[run_pb2.Change], list[pb.NewRun]]] = [
        ([calls_agent(1, child.run_id)], []),
        ([started(1)], [child]),
        ([calls_agent(2, child.run_id)], [child]),
        ([calls_agent(1, child.run_id)], [child_of(other, 1, run_id=child.run_id)]),
        ([calls_agent(1, child.run_id)], [child_of(parent, 1, depth=0, run_id=child.run_id)]),
        ([calls_agent(1, child.run_id)], [child_of(parent, 1, run_id=child.run_id, request_id="mine")]),
        ([calls_agent(1, child.run_id)], [child_of(parent, 1, run_id=child.run_id, agent="")]),
        ([calls_agent(1, child.run_id), becomes(FAILED)], [child]),
    ]
    for changes, children in wrong:
        refused = await store.refusal(parent, *changes, children=children)
        assert isinstance(refused, InvalidArgument), (changes, children)
    with pytest.raises(InvalidArgument):
        await store.commits.create_run(child)


async def test_end_of_a_child_wakes_its_parent_and_tells_it(store: Store) -> None:
    parent, child = await family(store)
    assert (await store.row(parent)).state == WAITING
    await store.advance(child, started(1))
    await store.advance(child, finished(1, "forty-two"), becomes(SUCCEEDED))
    assert (await store.row(parent)).state == QUEUED
    (end,) = await told(store, parent)
    assert (end.step, end.attempt, end.child_run_id, end.state) == (1, 1, child.run_id, SUCCEEDED)
    assert end.output.message.parts[0].text == "forty-two"
    await sound(store)
    parent = await store.take(parent)
    await store.advance(parent, tool_finished(1), started(2), finished(2), becomes(SUCCEEDED))
    await sound(store)


@pytest.mark.promise("P10")
async def test_parent_is_told_what_a_child_used_of_the_budget_that_it_was_given(store: Store) -> None:
    parent, child = await family(store)
    used = run_pb2.BudgetUse(cost_usd_nanos=7, input_tokens=5, model_calls=1)
    ended = becomes(BUDGET_EXCEEDED, failure=content_pb2.Failure(reason="BUDGET_EXCEEDED"))
    ended.run_state_changed.used.CopyFrom(used)
    await store.advance(child, ended)
    (end,) = await told(store, parent)
    assert (end.state, end.failure.reason, end.used) == (BUDGET_EXCEEDED, "BUDGET_EXCEEDED", used)
    await sound(store)


@pytest.mark.promise("P10")
async def test_state_says_what_a_run_below_used_whose_time_is_over(store: Store) -> None:
    parent = await store.claimed()
    budget = agent_pb2.Budget(max_total_tokens=100)
    waiting = child_of(parent, 1, ttl=Duration(seconds=3_600), budget=budget)
    await store.advance(parent, calls_agent(1, waiting.run_id), children=[waiting])
    await store.advance(parent, WAITS)
    child = await store.take(Held(parent.workspace, waiting.run_id, parent.session_id))
    reserved = run_pb2.Reservation(input_tokens=30, output_tokens=10)
    begun = run_pb2.StepStarted(step=1, kind=run_pb2.STEP_KIND_MODEL, model=run_pb2.ModelIntent(reserved=reserved))
    await store.advance(child, run_pb2.Change(step_started=begun), becomes(WAITING, wait_reason=1))

    def age(connection: sa.Connection) -> None:
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == child.run_id).values(expire_at=PAST))

    await store.db.write(age)
    await store.sweep()
    (end,) = await told(store, parent)
    # The call that was under way may have been billed.
    assert end.used == run_pb2.BudgetUse(input_tokens=30, output_tokens=10, model_calls=1)
    await sound(store)


async def test_large_answer_of_a_child_is_kept_for_its_parent(store: Store) -> None:
    parent, child = await family(store)
    answer, body = message_blob("x" * 9_000)
    await store.advance(child, started(1), finished(1, message=answer), becomes(SUCCEEDED), blobs=[body])
    (end,) = await told(store, parent)
    assert end.output.blob.hash == body.hash
    await sound(store)


@pytest.mark.parametrize("state", [FAILED, CANCELLED, EXPIRED])
async def test_parent_is_told_of_a_child_that_comes_to_nothing(store: Store, state: run_pb2.RunState) -> None:
    parent, child = await family(store)
    failure = content_pb2.Failure(reason="MAX_STEPS_EXCEEDED", message="Too many.") if state == FAILED else None
    await store.advance(child, becomes(state, failure=failure))
    (end,) = await told(store, parent)
    assert (end.state, end.failure.reason) == (state, failure.reason if failure else "")
    assert (await store.row(parent)).state == QUEUED
    await sound(store)


async def test_parent_that_is_driven_learns_of_the_end_by_its_next_transition(store: Store) -> None:
    parent = await store.claimed()
    first, second = await starts_children(store, parent, 1, 2)
    rows = {row.run_id: row for row in await store.claim()}
    for child in (first, second):
        child.epoch, child.last_seq = rows[child.run_id].epoch, rows[child.run_id].last_seq
    await store.advance(first, started(1), finished(1, "one"), becomes(SUCCEEDED))
    assert isinstance(await store.refusal(parent, WAITS), Conflict)
    parent.last_seq += 1
    await store.advance(parent, tool_finished(1), WAITS)
    await store.advance(second, started(1), finished(1, "two"), becomes(SUCCEEDED))
    assert [end.step for end in await told(store, parent)] == [1, 2]
    await sound(store)


async def test_end_that_comes_again_tells_once(store: Store) -> None:
    parent, child = await family(store)
    await store.advance(child, started(1))
    sent = child.transition(finished(1), becomes(SUCCEEDED))
    assert (await store.commits.commit(sent)).seq == (await store.commits.commit(sent)).seq
    assert len(await told(store, parent)) == 1


async def test_paused_parent_is_told_and_not_woken(store: Store) -> None:
    parent, child = await family(store)
    await store.pause(parent)
    await store.advance(child, becomes(FAILED))
    assert (await store.row(parent)).state == PAUSED
    assert len(await told(store, parent)) == 1
    await store.resume(parent)
    await store.take(parent)
    await sound(store)


async def test_child_whose_time_is_over_ends_without_an_executor_and_tells_its_parent(store: Store) -> None:
    parent = await store.claimed()
    waiting = child_of(parent, 1, ttl=Duration(seconds=3_600))
    await store.advance(parent, calls_agent(1, waiting.run_id), children=[waiting])
    await store.advance(parent, WAITS)
    child = await store.take(Held(parent.workspace, waiting.run_id, parent.session_id))
    await store.advance(child, started(1), asks(1, new_uuid7()), becomes(WAITING, wait_reason=1))

    def age(connection: sa.Connection) -> None:
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == child.run_id).values(expire_at=PAST))

    await store.db.write(age)
    await store.sweep()
    assert (await store.row(child)).state == EXPIRED
    (end,) = await told(store, parent)
    assert end.state == EXPIRED
    assert (await store.row(parent)).state == QUEUED
    await sound(store)


@pytest.mark.parametrize("state", [CANCELLED, FAILED])
async def test_end_of_a_parent_asks_its_children_to_end(store: Store, state: run_pb2.RunState) -> None:
    parent = await store.claimed()
    driven, waiting, over = await starts_children(store, parent, 1, 2, 3)
    rows = {row.run_id: row for row in await store.claim()}
    for child in (driven, waiting, over):
        child.epoch, child.last_seq = rows[child.run_id].epoch, rows[child.run_id].last_seq
    await store.advance(waiting, started(1), asks(1, new_uuid7()), becomes(WAITING, wait_reason=1))
    await store.advance(over, becomes(FAILED))
    parent.last_seq += 1
    await store.advance(parent, *(tool_finished(step) for step in (1, 2, 3)), becomes(state))
    # A process that dies here leaves the marks, which any replica's sweep finds.
    await sound(store)
    await store.sweep()
    for child, now in ((driven, RUNNING), (waiting, QUEUED)):
        row = await store.row(child)
        assert (row.state, row.cancel_requested) == (now, True)
        (asked,) = [c for e in await store.events(child) for c in e.changes if c.HasField("cancel_requested")]
        assert asked.cancel_requested.requested_by == "parent"
    assert (await store.kinds(over))[-1] == "run_state_changed"
    await sound(store)
    driven.last_seq += 1
    await store.advance(driven, becomes(CANCELLED))
    await store.advance(await store.take(waiting), tool_finished(1), becomes(CANCELLED))
    # Nothing is written to a run that has ended.
    assert len(await told(store, parent)) == 1
    await sound(store)


async def test_end_of_a_parent_reaches_the_whole_tree(store: Store) -> None:
    parent, child = await family(store)
    (grandchild,) = await starts_children(store, child, 1, depth=2)
    await store.advance(child, WAITS)
    row = await store.row(grandchild)
    assert (row.root_run_id, row.depth, row.parent_run_id) == (parent.run_id, 2, child.run_id)
    await store.cancel(parent)
    await store.sweep()
    taken = {row.run_id: row for row in await store.claim()}
    parent.epoch, parent.last_seq = taken[parent.run_id].epoch, taken[parent.run_id].last_seq
    await store.advance(parent, tool_finished(1), becomes(CANCELLED))
    await store.sweep()
    await store.advance(await store.take(child), tool_finished(1), becomes(CANCELLED))
    await store.sweep()
    assert (await store.row(grandchild)).cancel_requested
    await sound(store)


async def test_children_are_claimed_before_runs_that_came_later(store: Store) -> None:
    parent, batch = await store.claimed(), await store.claimed(lane=pb.LANE_BATCH)
    (mine,) = await starts_children(store, parent, 1)
    (late,) = await starts_children(store, batch, 1)
    root, later = await store.create(), await store.create(lane=pb.LANE_BATCH)
    assert ((await store.row(mine)).lane, (await store.row(late)).lane) == (CHILD, BATCH)
    executor = await store.executor()
    order = [row.run_id for _ in range(4) for row in await store.claim(executor, 1)]
    assert [run_id for run_id in order if run_id in (mine.run_id, root.run_id)] == [mine.run_id, root.run_id]
    assert [run_id for run_id in order if run_id in (late.run_id, later.run_id)] == [late.run_id, later.run_id]


async def test_waiting_parent_holds_no_place_of_its_agents_limit(store: Store) -> None:
    parent = await store.claimed(agent="researcher", agent_limit=1)
    (child,) = await starts_children(store, parent, 1, agent_limit=1)
    assert await store.claim() == []
    await store.advance(parent, WAITS)
    await store.take(child)


async def test_lists_show_what_callers_started_unless_they_ask_for_the_tree(store: Store) -> None:
    parent, child = await family(store)
    alone = await store.create()

    async def listed(**only: Any) -> set[str]:
        found = await store.db.read(run_store.list_runs, store.workspace, 50, "", RunFilter(**only))
        return {run.run_id for run in found}

    assert await listed() == await listed(session_id="") == {parent.run_id, alone.run_id}
    assert await listed(include_children=True) == {parent.run_id, child.run_id, alone.run_id}
    assert await listed(parent_run_id=parent.run_id) == {child.run_id}
    assert await listed(root_run_id=parent.run_id) == {parent.run_id, child.run_id}
    assert await listed(root_run_id=child.run_id) == {child.run_id}
    assert await listed(parent_run_id="x") == await listed(root_run_id=new_uuid7()) == set()


async def test_questions_of_a_tree_are_found_at_its_root(store: Store) -> None:
    parent, child = await family(store)
    question = new_uuid7()
    await store.advance(child, started(1), asks(1, question), becomes(WAITING, wait_reason=1))
    for root, expected in ((parent.run_id, [question]), (new_uuid7(), [])):
        found = await store.db.read(approval_store.list_approvals, store.workspace, 50, "", "", 0, root)
        assert [approval.approval_id for approval in found] == expected
    elsewhere = await store.db.read(approval_store.list_approvals, new_uuid7(), 50, "", "", 0, parent.run_id)
    assert elsewhere == []


async def test_conversation_has_no_messages_of_children(store: Store) -> None:
    parent, child = await family(store)
    await store.advance(child, started(1), finished(1, "mine"), becomes(SUCCEEDED))
    messages, _ = await store.db.read(
        session_store.list_session_messages, store.workspace, parent.session_id, 100, "", ""
    )
    assert [message.run_id for message in messages] == [parent.run_id]
    following = await store.create(session_id=parent.session_id)
    assert (await store.row(following)).previous_run_id == parent.run_id
    await sound(store)


async def test_children_are_removed_with_their_parent_and_not_before(store: Store) -> None:
    parent, child = await family(store)
    erasure = Erasure("key-1")
    sessions = [parent.session_id]

    async def removed() -> int:
        done = await store.db.write(
            housekeeping_store.remove_runs, store.db, store.workspace, sessions, 10, erasure=erasure
        )
        return done.runs

    await store.advance(child, becomes(FAILED))
    assert await removed() == 0
    await store.advance(await store.take(parent), tool_finished(1), becomes(SUCCEEDED))
    assert await removed() == 2
    for run in (parent, child):
        assert await store.db.read(journal.select_run, store.workspace, run.run_id) is None
    await sound(store)


async def test_an_export_has_the_whole_tree_whoever_asks_for_it_and_wherever_it_broke_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = await family(store, user_id="ada")
    (grandchild,) = await starts_children(store, child, 1, depth=2)
    await store.advance(child, WAITS)
    await store.advance(await store.take(grandchild), started(1), asks(1, new_uuid7()), becomes(WAITING, wait_reason=1))
    other = await store.create(user_id="bob")

    async def exported(scope: export.Scope, cursor: str = "") -> list[str]:
        found: list[str] = []
        async for records, _ in export.export(store.db, scope, cursor):
            for record in records:
                kind = str(record.WhichOneof("kind"))
                found.append(f"{kind} {record.run.run_id or record.event.run_id or record.approval.run_id}")
        return found

    of_tree = [f"run {run.run_id}" for run in (parent, child, grandchild)]
    for scope in (
        export.Scope(store.workspace),
        export.Scope(store.workspace, session_id=parent.session_id),
        export.Scope(store.workspace, user_id="ada"),
    ):
        found = await exported(scope)
        assert sorted(line for line in found if line in of_tree) == sorted(of_tree)
        for run in (parent, child, grandchild):
            assert found.count(f"event {run.run_id}") == len(await store.events(run))
        assert found.count(f"approval {grandchild.run_id}") == 1
        assert (f"run {other.run_id}" in found) == scope.is_everything
    everything = export.Scope(store.workspace)
    whole = await exported(everything)
    monkeypatch.setattr("services.state.export.FRAME_RECORDS", 1)
    frames = [(len(records), cursor) async for records, cursor in export.export(store.db, everything, "")]
    done = 0
    for count, cursor in frames:
        done += count
        assert await exported(everything, cursor) == whole[done:]


async def test_doctor_finds_what_a_tree_may_not_be(store: Store) -> None:
    parent, child = await family(store)
    ended, left = await family(store)
    await store.cancel(ended)
    await store.advance(await store.take(ended), tool_finished(1), becomes(CANCELLED))
    lost, missing = await family(store)

    def damage(connection: sa.Connection) -> None:
        c, r = t.children.c, t.runs.c
        # It ends, and nobody tells; nobody asks it to end; it is gone.
        connection.execute(sa.update(t.runs).where(r.run_id == child.run_id).values(state=FAILED, holder=None))
        connection.execute(sa.update(t.children).where(c.run_id == ended.run_id).values(orphaned_at=None))
        connection.execute(sa.delete(t.journal).where(t.journal.c.run_id == missing.run_id))
        connection.execute(sa.delete(t.runs).where(r.run_id == missing.run_id))

    await store.db.write(damage)
    inspection = Inspection(store.db)
    async for _ in inspection.run():
        pass
    examples = " ".join(inspection.findings.of["children_are_told_of"].examples)
    for run in (child, left, missing):
        assert run.run_id in examples
    stuck = " ".join(inspection.findings.of["a_way_forward"].examples)
    assert parent.run_id in stuck and lost.run_id in stuck


async def test_inputs_of_children_may_be_bodies_of_their_own(store: Store) -> None:
    parent = await store.claimed()
    asked, body = message_blob("y" * 9_000)
    child = child_of(parent, 1, input=asked, blobs=[body])
    await store.advance(parent, calls_agent(1, child.run_id), children=[child])
    await sound(store)
