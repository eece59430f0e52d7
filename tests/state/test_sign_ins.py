"""Grants of runs and the sign-ins that runs wait for: kept beside the run, found across workspaces, gone with it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import NotFound
from holdfast.ids import new_uuid7
from services.state import approval_store, run_store, tables
from services.state.housekeeping_store import remove_runs
from services.state.new_runs import insert_run
from tests.state.builders import OTHER_WORKSPACE, WORKSPACE, answers, asks, ends, new_run, starts, transition, waits
from tests.state.sql_store import SqlStateStore

pytest_plugins = ["tests.state.sql_fixtures"]

EXECUTOR = new_uuid7()


def needs_sign_in(approval_id: str, step: int = 1) -> run_pb2.Change:
    change = asks(approval_id, step)
    change.approval_requested.approval.kind = run_pb2.APPROVAL_KIND_SIGN_IN
    change.approval_requested.approval.sign_in.connection = "github"
    return change


async def waiting_run(store: SqlStateStore, workspace_id: str, change: run_pb2.Change) -> str:
    new = new_run(workspace_id=workspace_id)
    await store.commit(new)
    epoch = (await store.claim(EXECUTOR))[new.run_id]
    wait = waits(run_pb2.WAIT_REASON_AUTH)
    await store.commit(transition(new.run_id, epoch, 2, starts(1), change, wait, workspace_id=workspace_id))
    return new.run_id


async def test_grant_is_stored_with_the_run_and_returned_to_its_workspace_alone(sql_store: SqlStateStore) -> None:
    granted, plain = new_run(), new_run()
    granted.run_grant = "a.b.c"
    await sql_store.commit(granted, plain)
    follower = new_run(session_id=granted.new_session_id)
    follower.run_grant = "d.e.f"
    await sql_store.db.write(insert_run, sql_store.db, follower)

    async def grant(run_id: str, workspace_id: str = WORKSPACE) -> str:
        return await sql_store.db.read(run_store.get_run_grant, workspace_id, run_id)

    assert [await grant(new.run_id) for new in (granted, plain, follower)] == ["a.b.c", "", "d.e.f"]
    for run_id, workspace_id in ((granted.run_id, OTHER_WORKSPACE), (new_uuid7(), WORKSPACE)):
        with pytest.raises(NotFound):
            await grant(run_id, workspace_id)


async def test_repeated_start_keeps_the_grant_of_the_first(sql_store: SqlStateStore) -> None:
    first, again = new_run(request_id="r1", fingerprint=b"f"), new_run(request_id="r1", fingerprint=b"f")
    first.run_grant, again.run_grant = "first", "again"
    await sql_store.commit(first)
    await sql_store.commit(again)
    assert await sql_store.db.read(run_store.get_run_grant, WORKSPACE, first.run_id) == "first"
    with pytest.raises(NotFound):
        await sql_store.db.read(run_store.get_run_grant, WORKSPACE, again.run_id)


async def test_pending_sign_ins_are_listed_by_workspace_and_across_them(sql_store: SqlStateStore) -> None:
    ids = sorted(new_uuid7() for _ in range(3))
    for approval_id, workspace_id in zip(ids, (WORKSPACE, WORKSPACE, OTHER_WORKSPACE), strict=True):
        await waiting_run(sql_store, workspace_id, needs_sign_in(approval_id))
    await waiting_run(sql_store, WORKSPACE, asks(new_uuid7()))

    async def listed(workspace_id: str = "", limit: int = 10, after: tuple[str, str] | None = None) -> list[str]:
        found = await sql_store.db.read(approval_store.list_sign_ins, workspace_id, limit, after)
        return [approval.approval_id for _, approval in found]

    assert await listed() == ids
    assert await listed(WORKSPACE) == ids[:2]
    assert await listed(limit=2) == ids[:2]
    assert await listed(after=(WORKSPACE, ids[1])) == ids[2:]
    # A decision wakes the run in its own transaction and takes the question off the list.
    approval = await sql_store.decide(answers(ids[0], "null"))
    assert (await sql_store.run(approval.run_id)).state == run_pb2.RUN_STATE_QUEUED
    assert await listed(WORKSPACE) == ids[1:2]


async def test_removed_run_leaves_no_grant(sql_store: SqlStateStore) -> None:
    new = new_run()
    new.run_grant = "a.b.c"
    await sql_store.commit(new)
    epoch = (await sql_store.claim(EXECUTOR))[new.run_id]
    await sql_store.commit(transition(new.run_id, epoch, 2, ends()))
    await sql_store.db.write(remove_runs, sql_store.db, WORKSPACE, [new.new_session_id], 10)

    def grants(connection: sa.Connection) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(tables.run_grants)).scalar_one()

    assert await sql_store.db.read(grants) == 0
