"""Decisions about calls as state keeps them: bound to the arguments, once, and for a session while it lasts."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import FailedPrecondition, Reason
from holdfast.ids import new_uuid7
from services.state import approval_store
from services.state import tables as t
from services.state.export import Scope, export
from services.state.housekeeping_store import Erasure, remove_runs
from tests.state.support import (
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    approves,
    asks_about_call,
    becomes,
    finished,
)

SESSION = run_pb2.APPROVAL_SCOPE_SESSION


async def asking(store: Store, arguments: str = "{}") -> tuple[Held, str]:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(
        run, *asks_about_call(1, question, arguments), becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_APPROVAL)
    )
    return run, question


async def approvals_of(store: Store, run: Held, workspace: str = "") -> list[run_pb2.SessionApproval]:
    return await store.db.read(approval_store.list_session_approvals, workspace or store.workspace, run.session_id)


@pytest.mark.promise("P6")
async def test_an_approval_is_stored_with_who_gave_it_and_wakes_the_run(store: Store) -> None:
    run, question = await asking(store, '{"amount":5}')
    approval = await store.decide(run, approves(question, '{"amount":5}', comment="fine"))
    assert approval.state == run_pb2.APPROVAL_STATE_DECIDED
    assert (approval.decision.decided_by, approval.decision.comment) == ("key-1", "fine")
    assert (await store.row(run)).state == run_pb2.RUN_STATE_QUEUED
    assert (await store.kinds(run))[-1] == "approval_decided"
    assert await approvals_of(store, run) == []


async def test_an_approval_of_other_arguments_is_refused_and_nothing_is_written(store: Store) -> None:
    run, question = await asking(store, '{"amount":5}')
    with pytest.raises(FailedPrecondition) as caught:
        await store.decide(run, approves(question, '{"amount":500}'))
    assert caught.value.reason == Reason.APPROVAL_HASH_MISMATCH
    assert "approval_decided" not in await store.kinds(run)


async def test_the_first_verdict_counts(store: Store) -> None:
    run, question = await asking(store)
    await store.decide(run, approves(question))
    await store.db.write(approval_store.decide_approval, store.db, store.workspace, approves(question))
    no = approves(question)
    no.verdict = run_pb2.APPROVAL_VERDICT_REJECTED
    with pytest.raises(FailedPrecondition) as caught:
        await store.db.write(approval_store.decide_approval, store.db, store.workspace, no)
    assert caught.value.reason == Reason.APPROVAL_ALREADY_DECIDED
    assert (await store.kinds(run)).count("approval_decided") == 1


@pytest.mark.promise("P11")
async def test_an_approval_for_the_session_is_found_there_and_nowhere_else(store: Store) -> None:
    run, question = await asking(store)
    await store.decide(run, approves(question, scope=SESSION))
    [found] = await approvals_of(store, run)
    assert (found.approval_id, found.run_id, found.tool, found.tool_sha256) == (
        question,
        run.run_id,
        "refund",
        "d" * 64,
    )
    assert await approvals_of(store, run, workspace=new_uuid7()) == []
    assert await approvals_of(store, await store.create()) == []


async def test_an_approval_for_the_session_outlives_its_run_and_goes_with_the_session(store: Store) -> None:
    run, question = await asking(store)
    await store.decide(run, approves(question, scope=SESSION))
    records = [record async for found, _ in export(store.db, Scope(store.workspace), "") for record in found]
    kinds = [record.WhichOneof("kind") for record in records]
    assert kinds.index("session_approval") == kinds.index("session") + 1
    await store.take(run)
    await store.advance(run, finished(1), becomes(SUCCEEDED))
    erasure = Erasure("key-1", "request-1")
    await store.db.write(remove_runs, store.db, store.workspace, [run.session_id], 10)
    assert len(await approvals_of(store, run)) == 1
    await store.db.write(remove_runs, store.db, store.workspace, [run.session_id], 10, erasure=erasure)
    left = await store.db.read(
        lambda connection: connection.execute(sa.select(sa.func.count()).select_from(t.session_approvals)).scalar_one()
    )
    assert left == 0
