"""What `holdfast doctor` looks at: a healthy database has no violation, and each kind of damage is found and named."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import make_url

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import operator_service_pb2 as pb
from holdfast.api.state.v1.operator_service_pb2_grpc import OperatorServiceStub
from holdfast.errors import InvalidArgument, PermissionDenied, from_rpc_error
from holdfast.ids import new_uuid7
from services.state import approval_store, housekeeping_store
from services.state import tables as t
from services.state.change_feed import read_feed
from services.state.housekeeping_store import Erasure
from services.state.invariant_list import CHECKS, Finding
from services.state.invariants import FeedCheck, Inspection
from tests.state.served import replica
from tests.state.support import (
    CANCELLED,
    FUTURE,
    PAST,
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    approves,
    asks,
    asks_about_call,
    attempt_failed,
    becomes,
    blob,
    calls_agent,
    child_of,
    emptied,
    finished,
    message_blob,
    new_call,
    opened,
    sqlite_url,
    started,
)

USAGE = content_pb2.Usage(input_tokens=100, output_tokens=20, cost_usd_nanos=5_000)


def calls_tool(step: int, *call_ids: str, **fields: Any) -> run_pb2.Change:
    """A model's answer with calls."""
    parts = [content_pb2.Part(tool_call=content_pb2.ToolCall(call_id=call_id, tool="refund")) for call_id in call_ids]
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts)
    return finished(step, message=content_pb2.StoredMessage(message=message), usage=USAGE, **fields)


def starts_tool(step: int, call_id: str) -> run_pb2.Change:
    intent = run_pb2.ToolIntent(tool="refund", call_id=call_id, tool_kind="worker")
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent))


def answers(step: int, call_id: str, attempt: int = 1) -> run_pb2.Change:
    """The result of a call."""
    result = content_pb2.ToolResult(call_id=call_id, tool="refund", content="done")
    message = content_pb2.Message(role=content_pb2.ROLE_TOOL, parts=[content_pb2.Part(tool_result=result)])
    return finished(step, message=content_pb2.StoredMessage(message=message), attempt=attempt)


def begins_attempt(step: int, attempt: int) -> run_pb2.Change:
    return run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=step, attempt=attempt))


async def inspect(store: Store, **options: Any) -> dict[str, Finding]:
    inspection = Inspection(store.db, **options)
    async for _ in inspection.run():
        pass
    return inspection.findings.of


async def broken(store: Store, **options: Any) -> dict[str, list[str]]:
    """What is found broken, with examples."""
    return {name: found.examples for name, found in (await inspect(store, **options)).items() if found.violations}


async def run_of_everything(store: Store, **fields: Any) -> Held:
    """A run that has ended, with calls, a second attempt, a question and a large answer."""
    run = await store.claimed(**fields)
    await store.advance(run, started(1))
    await store.advance(run, calls_tool(1, "a", "b"), starts_tool(2, "a"), starts_tool(3, "b"), calls=[new_call(2)])
    await store.advance(run, attempt_failed(3), begins_attempt(3, 2))
    lease = await store.offer()
    await store.start(lease)
    run.last_seq += 1
    await store.complete(lease, answers(2, "a"))
    run.last_seq += 1
    await store.advance(run, asks(3, new_uuid7()))
    await store.advance(run, answers(3, "b", attempt=2), started(4))
    large, body = message_blob("a long answer")
    await store.advance(run, finished(4, message=large, usage=USAGE), becomes(SUCCEEDED), blobs=[body])
    return run


async def waiting_run(store: Store, *changes: run_pb2.Change, **fields: Any) -> Held:
    """A run that is parked behind its first step."""
    run = await store.claimed()
    await store.advance(run, started(1), *changes, becomes(WAITING, **fields.pop("wait", {})), **fields)
    return run


async def parent_of(store: Store) -> tuple[Held, str]:
    """A run that waits for another one, which is ready."""
    parent = await store.claimed()
    child = child_of(parent, 1)
    await store.advance(parent, calls_agent(1, child.run_id), children=[child])
    await store.advance(parent, becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_CHILD))
    return parent, child.run_id


async def approved_run(store: Store, **fields: Any) -> Held:
    """A run whose one call was approved and is with its workers."""
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, *asks_about_call(1, question))
    await store.decide(run, approves(question, **fields))
    await store.advance(run, begins_attempt(1, 1), calls=[new_call(1)])
    return run


@pytest.fixture(scope="module")
def module_database(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database for all damage: the migrations take longer than most tests."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_to_damage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store on either database."""
    url = sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("module_database")
    async with emptied(url) as store:
        yield store


async def change(store: Store, *statements: sa.Executable) -> None:
    def execute(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    await store.db.write(execute)


def of(run: Held) -> sa.ColumnElement[bool]:
    return t.runs.c.run_id == run.run_id


async def rewrite(store: Store, run: Held, seq: int, edit: Callable[[run_pb2.Event], None]) -> None:
    """Makes another event of one that is stored."""

    def execute(connection: sa.Connection) -> None:
        key = (t.journal.c.run_id == run.run_id) & (t.journal.c.seq == seq)
        event = run_pb2.Event.FromString(connection.execute(sa.select(t.journal.c.body).where(key)).scalar_one())
        edit(event)
        connection.execute(sa.update(t.journal).where(key).values(body=event.SerializeToString()))

    await store.db.write(execute)


# ------------------------------------------------------------------------------------------------------------- healthy


async def test_a_healthy_database_has_no_violation(store: Store) -> None:
    ended = await run_of_everything(store)
    spent = await run_within_its_budget(store)
    second = await store.create(session_id=ended.session_id)
    third = await store.create(session_id=ended.session_id)
    await store.cancel(third)
    await store.take(second)
    await store.advance(second, started(1))
    await waiting_run(store, asks(1, new_uuid7()))
    await waiting_run(store, wait={"wake": FUTURE})
    await waiting_run(store, calls=[new_call(1)])
    await approved_run(store)
    await parent_of(store)
    for _ in range(2):
        await store.create()
    # A time of its own, which is not over.
    await store.create(ttl=Duration(seconds=3_600))
    # Ranges of two, so that everything has several.
    found = await inspect(store, page=2)
    assert {name: finding.examples for name, finding in found.items() if finding.violations} == {}
    assert {name for name, finding in found.items() if finding.incomplete_because} == set()
    looked_at = {name: finding.examined for name, finding in found.items()}
    assert looked_at["dense_sequences"] == 13
    assert looked_at["a_way_forward"] == 10
    assert looked_at["budgets_hold"] == 1
    assert looked_at["bodies_are_there"] == looked_at["no_orphan_bodies"] == 1
    assert looked_at["session_chains"] == 10
    told = sum([len(await store.events(run)) for run in (ended, spent, second, third)])
    assert looked_at["feed_in_order"] == told + 17
    assert min(looked_at.values()) > 0, "every check has looked at something"


async def test_an_empty_database_has_no_violation(store: Store) -> None:
    assert await broken(store) == {}


async def test_what_is_removed_is_no_violation_at_any_moment(store: Store) -> None:
    erased, kept = await run_of_everything(store), await run_of_everything(store)
    erasure = Erasure("key-1", "request-1")
    await store.db.write(
        housekeeping_store.remove_runs, store.db, store.workspace, [erased.session_id], 10, erasure=erasure
    )
    assert await broken(store) == {}
    is_more = True
    while is_more:
        _, is_more = await store.db.write(housekeeping_store.delete_events, store.db, 2, store.workspace)
        assert await broken(store) == {}
    entries, _, _ = await store.db.read(read_feed, store.db, b"", 100)
    left = {entry.event.run_id: entry.event for entry in entries}
    assert left.keys() == {erased.run_id, kept.run_id}
    assert left[erased.run_id].changes[0].HasField("run_erased")


async def test_only_the_newest_journals_are_read_when_there_are_many(store: Store) -> None:
    old = await run_of_everything(store)
    await run_of_everything(store)
    await change(store, sa.update(t.runs).where(of(old)).values(input_tokens=1))
    limited = await inspect(store, max_journals=1)
    assert limited["totals_add_up"].examined == 1
    assert limited["totals_add_up"].violations == 0
    assert "only the newest 1 journals were read" in limited["totals_add_up"].incomplete_because
    assert not limited["no_orphan_bodies"].incomplete_because
    assert set(await broken(store)) == {"totals_add_up"}


async def test_a_long_journal_is_read_page_by_page(store: Store) -> None:
    run = await store.claimed()
    for step in range(1, 251):
        await store.advance(run, *([finished(step - 1)] if step > 1 else []), started(step))
    await store.advance(run, finished(250), becomes(SUCCEEDED))
    assert await broken(store, chunk_bytes=1) == {}
    assert (await inspect(store, chunk_bytes=1))["one_result_per_call"].examined == 250


# -------------------------------------------------------------------------------------------------------------- damage


async def event_lost(store: Store) -> None:
    run = await run_of_everything(store)
    await change(store, sa.delete(t.journal).where(t.journal.c.run_id == run.run_id, t.journal.c.seq == 3))


async def newest_event_lost(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await change(store, sa.delete(t.journal).where(t.journal.c.run_id == run.run_id, t.journal.c.seq == 2))


async def run_lost(store: Store) -> None:
    run = await store.create()
    await change(store, sa.delete(t.runs).where(of(run)), sa.delete(t.sessions))


async def predecessor_lost(store: Store) -> None:
    first = await store.create()
    await store.create(session_id=first.session_id)
    await change(
        store, sa.delete(t.runs).where(of(first)), sa.delete(t.journal).where(t.journal.c.run_id == first.run_id)
    )


async def never_unblocked(store: Store) -> None:
    first = await store.claimed()
    second = await store.create(session_id=first.session_id)
    await store.advance(first, becomes(SUCCEEDED))
    await change(store, sa.update(t.runs).where(of(second)).values(blocked=True))


async def nobody_drives_it(store: Store) -> None:
    await store.claimed()
    await change(store, sa.delete(t.executors))


async def nothing_wakes_it(store: Store) -> None:
    run = await waiting_run(store, wait={"wake": FUTURE})
    await change(store, sa.update(t.runs).where(of(run)).values(wake_at=None))


async def holder_without_work(store: Store) -> None:
    run = await waiting_run(store, asks(1, new_uuid7()))
    await change(store, sa.update(t.runs).where(of(run)).values(holder=new_uuid7()))


async def running_without_holder(store: Store) -> None:
    run = await store.claimed()
    await change(store, sa.update(t.runs).where(of(run)).values(holder=None))


async def lease_overdue(store: Store) -> None:
    await store.executor()
    await change(store, sa.update(t.executors).values(expires_at=PAST))


async def timer_overdue(store: Store) -> None:
    await waiting_run(store, wait={"wake": PAST})


async def nobody_asked_to_pause_it(store: Store) -> None:
    run = await waiting_run(store, asks(1, new_uuid7()))
    await change(store, sa.update(t.runs).where(of(run)).values(state=run_pb2.RUN_STATE_PAUSED, wait_reason=0))


async def time_wakes_a_paused_run(store: Store) -> None:
    run = await store.create()
    await store.pause(run)
    await change(store, sa.update(t.runs).where(of(run)).values(wake_at=FUTURE))


async def lifetime_overdue(store: Store) -> None:
    run = await store.claimed()
    await change(store, sa.update(t.runs).where(of(run)).values(expire_at=PAST))


async def call_overdue(store: Store) -> None:
    await waiting_run(store, calls=[new_call(1, start_deadline=PAST)])


async def two_results(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await store.advance(run, finished(1))
    await store.advance(run, finished(1))


async def no_result(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await store.advance(run, calls_tool(1, "a"))
    await store.advance(run, becomes(SUCCEEDED))


async def step_without_end(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await store.advance(run, becomes(SUCCEEDED))


async def answer_to_nobody(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, starts_tool(1, "a"))
    await store.advance(run, answers(1, "a"))


async def attempt_skipped(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await store.advance(run, begins_attempt(1, 3))


async def failed_twice(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await store.advance(run, attempt_failed(1))
    await store.advance(run, attempt_failed(1))


async def stale_writer(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1))
    await change(store, sa.update(t.journal).where(t.journal.c.seq == 2).values(epoch=7))


async def driven_on_after_its_end(store: Store) -> None:
    run = await run_of_everything(store)

    def end(event: run_pb2.Event) -> None:
        event.changes.add(run_state_changed=run_pb2.RunStateChanged(state=SUCCEEDED))

    await rewrite(store, run, 4, end)


async def row_and_end_differ(store: Store) -> None:
    run = await run_of_everything(store)
    await change(store, sa.update(t.runs).where(of(run)).values(state=run_pb2.RUN_STATE_FAILED))


async def wrong_totals(store: Store) -> None:
    run = await run_of_everything(store)
    await change(store, sa.update(t.runs).where(of(run)).values(cost_usd_nanos=1))


def begins_call(step: int, **reserved: int) -> run_pb2.Change:
    """A model call that sets aside what it may use."""
    intent = run_pb2.ModelIntent(reserved=run_pb2.Reservation(**reserved))  # type: ignore[arg-type]
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_MODEL, model=intent))


async def run_within_its_budget(store: Store) -> Held:
    run = await store.claimed(budget=agent_pb2.Budget(max_total_tokens=250, max_tool_calls=1))
    await store.advance(run, begins_call(1, input_tokens=100, output_tokens=50))
    await store.advance(run, calls_tool(1, "a"), starts_tool(2, "a"))
    await store.advance(run, answers(2, "a"), begins_call(3, input_tokens=80, output_tokens=50))
    await store.advance(run, finished(3, usage=USAGE), becomes(SUCCEEDED))
    return run


async def spent_more_than_was_left(store: Store) -> None:
    run = await run_within_its_budget(store)

    def reserve(event: run_pb2.Event) -> None:
        event.changes[1].step_started.model.reserved.output_tokens = 51

    await rewrite(store, run, 4, reserve)


async def spent_without_a_reservation(store: Store) -> None:
    run = await run_within_its_budget(store)

    def reserve(event: run_pb2.Event) -> None:
        event.changes[0].step_started.model.ClearField("reserved")

    await rewrite(store, run, 2, reserve)


async def tools_called_beyond_the_limit(store: Store) -> None:
    run = await store.claimed(budget=agent_pb2.Budget(max_tool_calls=1))
    await store.advance(run, begins_call(1))
    await store.advance(run, calls_tool(1, "a", "b"), starts_tool(2, "a"), starts_tool(3, "b"))


async def question_of_an_ended_run(store: Store) -> None:
    await run_of_everything(store)
    await change(store, sa.update(t.approvals).values(state=run_pb2.APPROVAL_STATE_PENDING))


async def question_lost(store: Store) -> None:
    await waiting_run(store, asks(1, new_uuid7()), wait={"wake": FUTURE})
    await change(store, sa.delete(t.approvals))


async def made_without_approval(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, *asks_about_call(1, new_uuid7()))
    await store.advance(run, begins_attempt(1, 1))


async def made_although_rejected(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, *asks_about_call(1, question))
    no = approves(question)
    no.verdict = run_pb2.APPROVAL_VERDICT_REJECTED
    await store.decide(run, no)
    await store.advance(run, finished(1))


async def made_with_other_arguments(store: Store) -> None:
    await approved_run(store)
    other = new_call(1)
    other.arguments_json = '{"amount":9}'
    await change(store, sa.update(t.calls).values(body=other.SerializeToString()))


async def asked_about_too_late(store: Store) -> None:
    run = await store.claimed()
    begun, asked = asks_about_call(1, new_uuid7())
    await store.advance(run, begun)
    await store.advance(run, asked)


async def made_by_an_approval_of_nobody(store: Store) -> None:
    run = await store.claimed()
    begun, _ = asks_about_call(1, new_uuid7())
    begun.step_started.tool.approval_id = new_uuid7()
    await store.advance(run, begun)


async def made_by_an_approval_that_held_once(store: Store) -> None:
    run = await approved_run(store)
    asked = (await store.db.read(approval_store.list_approvals, store.workspace, 1, "", run.run_id, 0))[0]
    begun, _ = asks_about_call(2, new_uuid7())
    begun.step_started.tool.approval_id = asked.approval_id
    await store.advance(run, begun)


async def call_of_an_ended_run(store: Store) -> None:
    await run_of_everything(store)
    await change(store, sa.update(t.calls).values(state=1))


async def doubled_ordinal(store: Store) -> None:
    first = await run_of_everything(store)
    second = await store.create(session_id=first.session_id)
    await change(store, sa.update(t.runs).where(of(second)).values(ordinal=1))


async def successor_of_another(store: Store) -> None:
    first = await store.create()
    second = await store.create(session_id=first.session_id)
    await change(store, sa.update(t.runs).where(of(second)).values(previous_run_id=None, blocked=False))


async def body_lost(store: Store) -> None:
    await run_of_everything(store)
    await change(store, sa.delete(t.blobs))


async def reference_lost(store: Store) -> None:
    await run_of_everything(store)
    await change(store, sa.delete(t.blob_references))


async def reference_of_no_run(store: Store) -> None:
    values = {"workspace_id": store.workspace, "hash": b"h" * 32, "run_id": new_uuid7()}
    await change(store, sa.insert(t.blob_references).values(**values))


async def events_left_behind(store: Store) -> None:
    run = await run_of_everything(store)
    removed = {"run_id": run.run_id, "workspace_id": store.workspace, "last_seq": 3, "left_seq": 0}
    await change(
        store,
        *(sa.delete(table) for table in (t.runs, t.sessions, t.approvals, t.calls, t.blob_references)),
        sa.insert(t.removed_runs).values(**removed),
    )


async def orphan(store: Store) -> None:
    body = blob(b"nobody refers to it")
    values = {"workspace_id": store.workspace, "hash": body.hash, "data": body.data}
    old = {**values, "created_at": PAST}
    await change(store, sa.insert(t.blobs).values(**old))


async def nobody_stops_an_orphan(store: Store) -> None:
    await _orphan(store, orphaned_at=None)


async def orphan_overdue(store: Store) -> None:
    await _orphan(store, orphaned_at=PAST)


async def _orphan(store: Store, **values: Any) -> None:
    parent = await store.claimed()
    child = child_of(parent, 1)
    await store.advance(parent, calls_agent(1, child.run_id), children=[child])
    await store.advance(parent, finished(1), becomes(CANCELLED))
    await change(store, sa.update(t.children).values(**values))


async def child_lost(store: Store) -> None:
    _, child = await parent_of(store)
    await change(
        store,
        sa.delete(t.journal).where(t.journal.c.run_id == child),
        sa.delete(t.runs).where(t.runs.c.run_id == child),
    )


async def parent_not_told(store: Store) -> None:
    parent, child_run_id = await parent_of(store)
    child = await store.take(Held(parent.workspace, child_run_id, parent.session_id))
    await store.advance(child, becomes(CANCELLED))
    event = (t.journal.c.run_id == parent.run_id) & (t.journal.c.seq == 4)
    waits = {"state": WAITING, "last_seq": 3, "wait_reason": run_pb2.WAIT_REASON_CHILD}
    await change(store, sa.delete(t.journal).where(event), sa.update(t.runs).where(of(parent)).values(waits))


DAMAGE: dict[Callable[[Store], Any], set[str]] = {
    event_lost: {"dense_sequences", "feed_in_order", "attempts_in_order"},
    newest_event_lost: {"dense_sequences", "totals_add_up"},
    run_lost: {"events_have_a_run"},
    predecessor_lost: {"a_way_forward"},
    never_unblocked: {"a_way_forward"},
    nobody_drives_it: {"a_way_forward"},
    nothing_wakes_it: {"a_way_forward"},
    holder_without_work: {"one_holder"},
    running_without_holder: {"one_holder"},
    lease_overdue: {"leases_are_swept"},
    timer_overdue: {"timers_have_fired"},
    nobody_asked_to_pause_it: {"a_way_forward"},
    time_wakes_a_paused_run: {"a_way_forward"},
    lifetime_overdue: {"lifetimes_are_swept"},
    call_overdue: {"calls_are_swept"},
    two_results: {"one_result_per_call"},
    no_result: {"one_result_per_call"},
    step_without_end: {"one_result_per_call"},
    answer_to_nobody: {"one_result_per_call"},
    attempt_skipped: {"attempts_in_order"},
    failed_twice: {"attempts_in_order"},
    stale_writer: {"lease_epochs"},
    driven_on_after_its_end: {"nothing_after_the_end"},
    row_and_end_differ: {"nothing_after_the_end"},
    wrong_totals: {"totals_add_up"},
    spent_more_than_was_left: {"budgets_hold"},
    spent_without_a_reservation: {"budgets_hold"},
    tools_called_beyond_the_limit: {"budgets_hold"},
    question_of_an_ended_run: {"questions_are_open"},
    question_lost: {"questions_are_open"},
    made_without_approval: {"approved_before_dispatch"},
    made_although_rejected: {"approved_before_dispatch"},
    made_with_other_arguments: {"approved_before_dispatch"},
    asked_about_too_late: {"approved_before_dispatch"},
    made_by_an_approval_of_nobody: {"approved_before_dispatch"},
    made_by_an_approval_that_held_once: {"approved_before_dispatch"},
    call_of_an_ended_run: {"calls_are_closed", "calls_are_swept"},
    nobody_stops_an_orphan: {"children_are_told_of"},
    orphan_overdue: {"children_are_told_of"},
    child_lost: {"children_are_told_of", "a_way_forward"},
    parent_not_told: {"children_are_told_of", "a_way_forward"},
    doubled_ordinal: {"session_chains"},
    successor_of_another: {"session_chains"},
    body_lost: {"bodies_are_there"},
    reference_lost: {"bodies_are_there"},
    reference_of_no_run: {"events_have_a_run"},
    events_left_behind: {"events_have_a_run"},
    orphan: {"no_orphan_bodies"},
}
# Of these only the main check is certain: what else is wrong depends on which event is gone.
ALSO = {event_lost, call_of_an_ended_run, body_lost}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
async def test_damage_is_found_by_its_check(store_to_damage: Store, damage: Callable[[Store], Any]) -> None:
    store = store_to_damage
    await damage(store)
    found = await broken(store)
    if damage in ALSO:
        assert next(iter(sorted(DAMAGE[damage] & found.keys()))), found
    else:
        assert set(found) == DAMAGE[damage], found
    assert all(examples for examples in found.values())


def test_every_check_has_damage_that_it_finds() -> None:
    # A feed that passes an event over can't be made of a store that works, nor an event of a transaction to come.
    elsewhere = {"feed_in_order", "feed_goes_on"}
    assert {check.name for check in CHECKS} - set().union(*DAMAGE.values()) <= elsewhere
    assert len({check.name for check in CHECKS}) == len(CHECKS)


async def test_a_feed_that_passes_an_event_over_or_tells_it_twice_is_found(store: Store) -> None:
    await run_of_everything(store)
    entries, _, _ = await store.db.read(read_feed, store.db, b"", 100)
    whole, holey, double = FeedCheck(), FeedCheck(), FeedCheck()
    whole.take(entries)
    holey.take([*entries[:2], *entries[3:]])
    double.take([*entries[:2], entries[1], *entries[2:]])
    assert not whole.broken
    assert len(holey.broken) == 1
    assert len(double.broken) == 1


async def test_an_event_that_followers_cannot_reach_is_found(postgres_database: str) -> None:
    async with opened(postgres_database) as store:
        run = await run_of_everything(store)
        await change(store, sa.text("UPDATE journal SET txid = CAST('1000000000' AS xid8) WHERE seq = 1"))
        found = await broken(store)
        assert found["feed_goes_on"] == [f"run {run.run_id}: event 1"]


# ------------------------------------------------------------------------------------------------------------- service


async def test_the_service_answers_the_operator_and_nobody_else(store: Store, database_url: str) -> None:
    await run_of_everything(store)
    run = await waiting_run(store, asks(1, new_uuid7()))
    await change(store, sa.update(t.runs).where(of(run)).values(holder=new_uuid7()))
    async with replica(database_url) as state:
        operator = OperatorServiceStub(state.client("operator").channel)
        status = await operator.GetStatus(pb.GetStatusRequest())
        assert status.dialect == store.db.dialect
        assert status.schema_revision == status.expected_schema_revision != ""
        assert abs(status.database_time.ToDatetime() - status.service_time.ToDatetime()) < timedelta(minutes=1)
        assert status.unfinished_runs == 1
        results = [
            response.result
            async for response in operator.CheckInvariants(pb.CheckInvariantsRequest())
            if response.HasField("result")
        ]
        assert [result.name for result in results] == [check.name for check in CHECKS]
        assert {result.name: list(result.examples) for result in results if result.violations} == {
            "one_holder": [f"run {run.run_id}: WAITING with a holder"]
        }
        assert all(result.claim and result.advice for result in results)
        for request, error in (
            (operator.CheckInvariants(pb.CheckInvariantsRequest(max_journals=-1)), InvalidArgument),
            (
                OperatorServiceStub(state.client("executor").channel).CheckInvariants(pb.CheckInvariantsRequest()),
                PermissionDenied,
            ),
        ):
            with pytest.raises(error):
                try:
                    await request.read()
                except grpc.RpcError as raised:
                    raise from_rpc_error(raised, peer="state") from raised


async def test_state_says_that_it_cannot_ask_which_workspaces_are_sealed(database_url: str) -> None:
    async with replica(database_url) as state:
        operator = OperatorServiceStub(state.client("operator").channel)
        said = []
        for _ in range(2):
            status = await operator.GetStatus(pb.GetStatusRequest())
            said.append([warning for warning in status.warnings if "payloads sealed" in warning])
            # There is no auth here, and nobody waits for it.
            await state.client("executor").create(new_uuid7())
        assert [len(warnings) for warnings in said] == [0, 1]
