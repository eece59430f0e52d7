"""Export, erasure and the storage report: whole, within their walls, and resumable; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.common.v1 import agent_pb2, run_pb2, workspace_pb2
from holdfast.api.state.v1 import housekeeping_service_pb2 as pb
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceStub
from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from holdfast.ids import new_uuid7
from services.state import agent_store, change_feed, housekeeping_report, tables
from services.state import housekeeping_store as store_
from services.state.export import Scope, export, scope_of
from services.state.housekeeping_erase import Erasing
from services.state.housekeeping_store import Erasure
from tests.state.old_runs import DAY, ago, count, ended_run, left_of, run_ids, settle
from tests.state.served import Client, replica
from tests.state.support import (
    CANCELLED,
    Held,
    Store,
    asks,
    becomes,
    opened,
    started,
)
from tests.state.test_housekeeping import Unhurried, housekeeping, violations
from tests.state.test_processes import process

BY = Erasure("key-1", "request-1")
Records = list[workspace_pb2.ExportRecord]


async def exported(store: Store, scope: Scope, cursor: str = "") -> Records:
    return [record async for records, _ in export(store.db, scope, cursor) for record in records]


def kinds(records: Records) -> list[str]:
    return [str(record.WhichOneof("kind")) for record in records]


def erasing(store: Store) -> Erasing:
    return Erasing(store.db, store.hub, Unhurried(), lambda: 0)


async def erase(store: Store, scope: Scope, *, cancel_first: bool = False) -> workspace_pb2.DataCounts:
    found = workspace_pb2.DataCounts()
    async with asyncio.timeout(20):
        async for erased in erasing(store).erase(scope, BY, cancel_first=cancel_first):
            found.CopyFrom(erased)
    return found


@dataclass
class Filled:
    """A workspace with two users, and a neighbour."""

    store: Store
    ada: list[Held]
    bob: Held
    neighbour: Held
    neighbours: str

    @property
    def workspace(self) -> str:
        return self.store.workspace

    def everything(self) -> Scope:
        return Scope(self.workspace)

    def of(self, user: str) -> Scope:
        return Scope(self.workspace, user_id=user)


async def fill(store: Store) -> Filled:
    spec = agent_pb2.AgentSpec(name="support")
    for revision in ("a" * 64, "b" * 64):
        await store.db.write(agent_store.put_revision, store.db, store.workspace, revision, spec, "", b"")
    first = await ended_run(store, 5, user_id="ada", body="ada's secret")
    second = await ended_run(store, 4, user_id="ada", session=first, body="shared")
    bob = await ended_run(store, 3, user_id="bob", body="shared")
    own, store.workspace = store.workspace, new_uuid7()
    neighbour = await ended_run(store, 5, user_id="ada", body="ada's secret")
    neighbours, store.workspace = store.workspace, own
    return Filled(store, [first, second], bob, neighbour, neighbours)


# ------------------------------------------------------------------------------------------------------- export


async def test_an_export_holds_everything_once_and_in_order(store: Store) -> None:
    filled = await fill(store)
    asking = await store.claimed(user_id="bob")
    await store.advance(asking, started(1), asks(1, new_uuid7()))
    records = await exported(store, filled.everything())
    names = kinds(records)
    assert names[:3] == ["agent", "agent_revision", "agent_revision"]
    assert (names.count("session"), names.count("run"), names.count("approval")) == (3, 4, 1)
    assert names[-2:] == ["blob", "blob"] and names.count("blob") == 2
    # Events follow their run, all of them.
    events: dict[str, list[int]] = {}
    current = ""
    for record in records:
        if record.HasField("run"):
            current = record.run.run_id
            events[current] = []
        elif record.HasField("event"):
            assert record.event.run_id == current
            events[current].append(record.event.seq)
    assert events == {run.run_id: list(range(1, run.last_seq + 1)) for run in (*filled.ada, filled.bob, asking)}
    assert filled.neighbours not in str(records)


async def test_an_export_of_a_user_or_a_session_holds_only_that(store: Store) -> None:
    filled = await fill(store)
    of_ada = await exported(store, filled.of("ada"))
    assert [r.run.run_id for r in of_ada if r.HasField("run")] == [run.run_id for run in filled.ada]
    assert kinds(of_ada).count("blob") == 2 and "agent" not in kinds(of_ada)
    of_session = await exported(store, Scope(filled.workspace, session_id=filled.bob.session_id))
    assert [r.run.run_id for r in of_session if r.HasField("run")] == [filled.bob.run_id]
    assert kinds(of_session).count("blob") == 1
    assert await exported(store, filled.of("nobody")) == []


async def test_a_user_has_the_conversations_in_which_a_run_is_theirs(store: Store) -> None:
    first = await ended_run(store, 5, user_id="ada")
    await ended_run(store, 4, user_id="carl", session=first)
    records = await exported(store, Scope(store.workspace, user_id="carl"))
    assert kinds(records).count("run") == 2


async def test_an_export_goes_on_behind_any_of_its_cursors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = await fill(store)
    whole = await exported(store, filled.everything())
    monkeypatch.setattr("services.state.export.FRAME_RECORDS", 2)
    frames = [(records, cursor) async for records, cursor in export(store.db, filled.everything(), "")]
    assert [record for records, _ in frames for record in records] == whole
    for index, (_, cursor) in enumerate(frames):
        rest = [record for records, _ in frames[index + 1 :] for record in records]
        assert await exported(store, filled.everything(), cursor) == rest


@pytest.mark.parametrize("cursor", ["x", "W10=", "WyJydW5zIl0=", "WyJibG9icyIsICJ6eiJd", "WyJzZXNzaW9ucyIsICJ4Il0="])
async def test_a_cursor_that_is_none_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await exported(store, Scope(store.workspace), cursor)
    assert refused.value.reason == Reason.INVALID_PAGE_TOKEN


async def test_a_neighbours_session_is_neither_exported_nor_erased(store: Store) -> None:
    filled = await fill(store)
    foreign = Scope(filled.workspace, session_id=filled.neighbour.session_id)
    absent = Scope(filled.workspace, session_id=new_uuid7())
    for scope in (foreign, absent):
        with pytest.raises(NotFound):
            await exported(store, scope)
        with pytest.raises(NotFound):
            await erase(store, scope)
    _, cursor = await anext(export(store.db, Scope(filled.neighbours), ""))
    # A cursor of one workspace is a place in any other, and opens nothing.
    assert filled.neighbour.run_id not in str(await exported(store, filled.everything(), cursor))


@pytest.mark.parametrize(
    "scope",
    [
        workspace_pb2.DataScope(),
        workspace_pb2.DataScope(everything=False),
        workspace_pb2.DataScope(user_id=""),
        workspace_pb2.DataScope(user_id="a\0b"),
    ],
)
def test_a_scope_that_says_nothing_is_refused(scope: workspace_pb2.DataScope) -> None:
    with pytest.raises(InvalidArgument):
        scope_of(new_uuid7(), scope)


# ------------------------------------------------------------------------------------------------------- erasure


async def test_what_was_erased_is_in_no_export_and_its_end_is_in_the_feed(store: Store) -> None:
    filled = await fill(store)
    _, before, _ = await store.db.read(change_feed.read_feed, store.db, b"", 1_000)
    preview = await erasing(store).preview(filled.of("ada"))
    erased = await erase(store, filled.of("ada"))
    events = sum(run.last_seq for run in filled.ada)
    assert (erased.sessions, erased.runs, erased.events, erased.blobs) == (1, 2, events, 1)
    # The shared body is counted beforehand, and stays.
    assert (preview.sessions, preview.runs, preview.events, preview.blobs) == (1, 2, events, 2)
    assert await exported(store, filled.of("ada")) == []
    assert await run_ids(store) == {filled.bob.run_id, filled.neighbour.run_id}
    entries, _, _ = await store.db.read(change_feed.read_feed, store.db, before, 1_000)
    told = {
        (entry.workspace_id, entry.event.run_id, entry.event.seq, entry.event.changes[0].run_erased.request_id)
        for entry in entries
    }
    assert told == {(filled.workspace, run.run_id, run.last_seq + 1, "request-1") for run in filled.ada}
    assert await left_of(store, *filled.ada) == {"journal": 2, "removed_runs": 2}
    assert await violations(store) == {}
    # Again is nothing more.
    assert (await erase(store, filled.of("ada"))).runs == 0


async def test_everything_of_a_workspace_goes_and_nothing_of_its_neighbours(store: Store) -> None:
    filled = await fill(store)
    await settle(store, keep_latest_runs=7)
    before = await exported(store, Scope(filled.neighbours))
    erased = await erase(store, filled.everything())
    assert (erased.sessions, erased.runs, erased.blobs, erased.agents) == (2, 3, 2, 1)
    assert await exported(store, filled.everything()) == []
    assert await exported(store, Scope(filled.neighbours)) == before
    for table in (tables.agent_revisions, tables.agent_labels, tables.blob_references):
        assert await count(store, table, table.c.workspace_id == filled.workspace) == 0
    # Settings stay.
    assert await count(store, tables.workspaces) == 1
    assert await violations(store) == {}


async def test_a_run_that_has_not_ended_is_erased_only_after_it_was_cancelled(store: Store) -> None:
    filled = await fill(store)
    live = await store.claimed(session_id=filled.ada[0].session_id, user_id="ada")
    behind = await store.create(session_id=live.session_id, user_id="ada")
    with pytest.raises(FailedPrecondition) as refused:
        await erase(store, filled.of("ada"))
    assert refused.value.reason == Reason.SESSION_BUSY
    assert {filled.ada[0].run_id, live.run_id, behind.run_id} <= await run_ids(store)
    async with asyncio.TaskGroup() as tasks:
        erasure = tasks.create_task(erase(store, filled.of("ada"), cancel_first=True))
        async with asyncio.timeout(10):
            while not (row := await store.row(live)).cancel_requested:
                await asyncio.sleep(0.01)
        # Its driver ends it, as asked.
        live.last_seq = row.last_seq
        await store.advance(live, becomes(CANCELLED))
    assert erasure.result().runs == 4
    assert await run_ids(store) == {filled.bob.run_id, filled.neighbour.run_id}
    assert await violations(store) == {}


async def test_erased_runs_are_told_of_for_a_month(store: Store) -> None:
    filled = await fill(store)
    await erase(store, filled.of("ada"))
    await store.create()
    assert await store.db.write(store_.delete_tombstones, store.db, 10) == 0

    def turn_back(connection: sa.Connection) -> None:
        connection.execute(sa.update(tables.removed_runs).values(erased_at=ago(31)))

    await store.db.write(turn_back)
    await housekeeping(store).forget()
    assert await left_of(store, *filled.ada) == {}
    assert await violations(store) == {}


# ------------------------------------------------------------------------------------------------------- report


async def test_the_report_counts_what_is_there_and_what_may_go(store: Store) -> None:
    filled = await fill(store)
    await settle(store, ended_runs_kept=3.5 * DAY)
    found = await store.db.read(housekeeping_report.workspace_storage, store.db, filled.workspace)
    runs = [*filled.ada, filled.bob]
    assert [(entry.state, entry.runs) for entry in found.runs] == [(run_pb2.RUN_STATE_SUCCEEDED, 3)]
    assert (found.sessions, found.events, found.blobs) == (2, sum(run.last_seq for run in runs), 2)
    assert found.blob_bytes > 0 and found.event_bytes_estimate > 0
    assert (found.removable_runs, found.removable_sessions) == (2, 0)
    database = await store.db.read(housekeeping_report.database_storage, store.db)
    rows = {table.name: table.rows for table in database.tables}
    assert (rows["runs"], rows["sessions"], rows["blobs"]) == (4, 3, 3)
    assert database.bytes > 0 and database.dialect == store.db.dialect
    assert await store.db.read(housekeeping_report.workspaces_with_data) == [filled.workspace, filled.neighbours]


# ------------------------------------------------------------------------------------------------------- processes


@asynccontextmanager
async def served(database_url: str, service: str) -> AsyncIterator[HousekeepingServiceStub]:
    async with replica(database_url) as running:
        yield HousekeepingServiceStub(running.client(service).channel)


async def test_only_the_operator_shares_out_the_machine_and_sees_all_workspaces(database_url: str) -> None:
    workspace = new_uuid7()
    request = pb.UpdateWorkspaceSettingsRequest(
        workspace_id=workspace,
        settings=workspace_pb2.WorkspaceSettings(weight=5, max_running_runs=10),
        update_mask=FieldMask(paths=["weight", "max_running_runs"]),
    )
    async with replica(database_url) as running:
        executor = HousekeepingServiceStub(running.client("executor").channel)
        operator = HousekeepingServiceStub(running.client("operator").channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await executor.UpdateWorkspaceSettings(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        stored = await operator.UpdateWorkspaceSettings(request)
        assert (stored.settings.weight, stored.settings.max_running_runs) == (5, 10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await executor.GetStorageReport(pb.GetStorageReportRequest())
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        report = await operator.GetStorageReport(pb.GetStorageReportRequest())
        assert [found.workspace_id for found in report.workspaces] == [workspace]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "point"),
    [("sqlite", "events_deleted"), ("postgresql", "runs_removed"), ("postgresql", "agents_deleted")],
    indirect=["database_url"],
)
async def test_an_erasure_that_was_cut_short_is_finished_by_the_same_call(database_url: str, point: str) -> None:
    async with opened(database_url) as store:
        filled = await fill(store)
        workspace = store.workspace
    request = pb.EraseDataRequest(
        workspace_id=workspace, scope=workspace_pb2.DataScope(everything=True), requested_by="key-1"
    )
    async with process(database_url, HOLDFAST_CRASH_POINT=f"state.erase.{point}") as (child, address):
        client = Client(address, "executor")
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in HousekeepingServiceStub(client.channel).EraseData(request, timeout=20):
                pass
        await client.channel.close()
        assert child.stderr is not None
        await child.stderr.read()
        assert await child.wait() == 137
    async with opened(database_url) as store:
        store.workspace = workspace
        assert await violations(store) == {}
    async with served(database_url, "executor") as stub:
        frames = [frame async for frame in stub.EraseData(request, timeout=20)]
        assert frames[-1].is_done
    async with opened(database_url) as store:
        store.workspace = workspace
        assert await exported(store, filled.everything()) == []
        assert "runs" not in await left_of(store, *filled.ada, filled.bob)
        assert await exported(store, Scope(filled.neighbours)) != []
        assert await violations(store) == {}
