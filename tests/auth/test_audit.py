"""The audit: everything that happens is a record, each is chained to the one before, and tampering is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from holdfast.api.auth.v1 import api_key_service_pb2, audit_service_pb2, connection_service_pb2
from holdfast.audit_chain import ChainCheck
from holdfast.errors import InvalidArgument, PermissionDenied
from holdfast.ids import new_uuid7
from services.auth.app import open_core
from services.auth.audit_sql import append_uses
from services.auth.connection_store import ConnectionState, TokenStatus
from services.auth.settings import AuthSettings
from services.auth.store import CredentialUse
from services.auth.tables import audit_records, workspaces
from services.shared.clock import SystemClock
from services.shared.database import Database
from tests.auth.support import RUN, Auth, Client, failure, make_key, new_connection, running

AuditRecord = audit_service_pb2.AuditRecord


async def records_of(client: Client, *, oldest_first: bool = True, **fields: Any) -> list[AuditRecord]:
    """All pages."""
    request = audit_service_pb2.ListAuditRecordsRequest(
        page_size=2,
        oldest_first=oldest_first,
        filter=audit_service_pb2.AuditFilter(**fields),
    )
    found: list[AuditRecord] = []
    while True:
        response = await client.audit.ListAuditRecords(request)
        found += response.records
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token


async def verdict_of(client: Client, **fields: Any) -> audit_service_pb2.VerifyAuditTrailResponse:
    return await client.audit.VerifyAuditTrail(audit_service_pb2.VerifyAuditTrailRequest(**fields))


async def lines_of(client: Client, after_seq: int = 0) -> list[str]:
    request = audit_service_pb2.ExportAuditRecordsRequest(after_seq=after_seq)
    return [line async for piece in client.audit.ExportAuditRecords(request) for line in piece.lines]


def uses(workspace_id: str, count: int) -> list[CredentialUse]:
    return [
        CredentialUse(
            record_id=new_uuid7(),
            workspace_id=workspace_id,
            time=datetime.now(UTC),
            actor="service:executor",
            outcome="OK" if step % 3 else "HOST_NOT_ALLOWED",
            connection="github",
            connection_id="c1",
            fingerprint="0123456789ab",
            run_id=RUN,
            step=step,
            tool="create_issue",
            host="https://api.github.com",
            user_id="anna",
            details={"method": "POST"},
        )
        for step in range(1, count + 1)
    ]


@asynccontextmanager
async def database(settings: AuthSettings) -> AsyncIterator[Database]:
    async with Database(settings.database_url, schema="auth") as db:
        yield db


async def test_what_is_done_is_on_record_with_who_did_it(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection())
    await client.connections.CreateConnection(new_connection(key="sk-test-2", replace=True))
    await client.connections.RevokeConnection(connection_service_pb2.RevokeConnectionRequest(name="openai"))
    await failure(auth.resolve(workspace_id))
    created = await client.api_keys.CreateApiKey(api_key_service_pb2.CreateApiKeyRequest(scopes=["runs:read"]))
    async with database(auth.settings) as db:
        await db.write(append_uses, uses(workspace_id, 3))

    async with asyncio.timeout(10):
        while len(found := await records_of(client)) < 10:
            await asyncio.sleep(0)
    assert [record.seq for record in found] == list(range(1, 11))
    assert {record.action for record in found[:2]} == {"workspace.create", "api_key.create"}
    assert [record.action for record in found if record.action.startswith("connection.")] == [
        "connection.create",
        "connection.replace",
        "connection.revoke",
    ]
    refused = [record for record in found if record.outcome == "CONNECTION_NOT_FOUND"]
    assert [(record.action, record.run_id, record.step) for record in refused] == [("credential.resolve", RUN, 3)]
    assert created.api_key.api_key_id in {record.api_key_id for record in found}
    use = next(record for record in found if record.tool)
    assert (use.user_id, use.host, use.fingerprint, use.step, dict(use.details)) == (
        "anna",
        "https://api.github.com",
        "0123456789ab",
        1,
        {"method": "POST"},
    )
    assert [record.seq for record in await records_of(client, oldest_first=False)] == list(range(10, 0, -1))


async def test_filters_find_what_fits_and_nothing_else(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    await client.connections.CreateConnection(new_connection())
    async with database(auth.settings) as db:
        await db.write(append_uses, uses(workspace_id, 6))
    now = datetime.now(UTC)

    async def count(**fields: Any) -> int:
        return len(await records_of(client, **fields))

    assert await count(run_id=RUN) == 6
    assert await count(run_id="other") == 0
    assert await count(outcome="HOST_NOT_ALLOWED") == await count(outcome="!OK") == 2
    assert await count(connection="c1", outcome="OK") == await count(connection="github", outcome="OK") == 4
    assert await count(action="connection.*") == await count(action="connection.create") == 1
    assert await count(action="c%") == await count(action="%*") == 0
    assert await count(user_id="anna", tool="create_issue", actor="service:executor") == 6
    assert await count(fingerprint="0123456789ab") == 6
    assert await count(start_time=now - timedelta(hours=1), end_time=now + timedelta(hours=1)) == await count()
    assert await count(end_time=now - timedelta(hours=1)) == await count(start_time=now + timedelta(hours=1)) == 0
    error = await failure(
        client.audit.ListAuditRecords(
            audit_service_pb2.ListAuditRecordsRequest(filter=audit_service_pb2.AuditFilter(run_id="x" * 300))
        )
    )
    assert isinstance(error, InvalidArgument)


async def test_records_of_several_replicas_and_of_batches_make_one_chain(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as other:
        client, workspace_id = await one.workspace("acme")
        async with database(settings) as db:

            async def write_uses() -> None:
                for _ in range(5):
                    await db.write(append_uses, uses(workspace_id, 20))

            async def make_keys(replica: Auth) -> None:
                keys = replica.as_bearer(key).api_keys
                for _ in range(5):
                    await keys.CreateApiKey(api_key_service_pb2.CreateApiKeyRequest(scopes=["runs:read"]))

            _, key = await make_key(settings, "acme")
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for work in (write_uses(), write_uses(), make_keys(one), make_keys(other)):
                    group.create_task(work)
        verdict = await verdict_of(client)
    assert (verdict.flaw, verdict.before_chain_count) == (audit_service_pb2.AUDIT_FLAW_UNSPECIFIED, 0)
    assert verdict.record_count == verdict.last_seq == 2 + 1 + 200 + 10


async def test_an_export_is_on_record_and_is_checked_without_the_suite(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    async with database(auth.settings) as db:
        await db.write(append_uses, uses(workspace_id, 1200))
    anchor = (await verdict_of(client)).head_hash
    lines = await lines_of(client)
    check = ChainCheck(first_seq=1, anchor=bytes.fromhex(anchor))
    for line in lines:
        check.take_line(line)
    verdict = check.finish(last_seq=1203)
    assert verdict.problem is None
    assert verdict.anchor_seq == 1202
    assert '"action":"audit.export"' in lines[-1]
    assert verdict.head_hash is not None
    assert verdict.head_hash.hex() == (await verdict_of(client, anchor_hash=anchor)).head_hash
    assert len(await lines_of(client, after_seq=1203)) == 1


Tamper = Callable[[sa.Connection], object]


def _edit(connection: sa.Connection) -> None:
    connection.execute(audit_records.update().where(audit_records.c.seq == 8).values(outcome="OK", host="https://x"))


def _remove(connection: sa.Connection) -> None:
    connection.execute(audit_records.delete().where(audit_records.c.seq == 8))


def _exchange(connection: sa.Connection) -> None:
    for seq, other in ((8, 1_000), (9, 8), (1_000, 9)):
        connection.execute(audit_records.update().where(audit_records.c.seq == seq).values(seq=other))


def _cut_off(connection: sa.Connection) -> None:
    connection.execute(audit_records.delete().where(audit_records.c.seq >= 8))


def _cut_off_and_hide(connection: sa.Connection) -> None:
    _cut_off(connection)
    connection.execute(workspaces.update().values(audit_seq=7))


def _unchain(connection: sa.Connection) -> None:
    connection.execute(audit_records.update().where(audit_records.c.seq <= 8).values(hash=None, previous_hash=None))


@pytest.mark.parametrize(
    ("tamper", "flaw", "seq"),
    [
        (_edit, "EDITED", 8),
        (_remove, "MISSING", 8),
        (_exchange, "EDITED", 8),
        (_cut_off, "TRUNCATED", 8),
        (_cut_off_and_hide, "ANCHOR_MISSING", 8),
        (_unchain, "UNLINKED", 9),
    ],
)
async def test_whoever_changes_the_table_is_found_out(auth: Auth, tamper: Tamper, flaw: str, seq: int) -> None:
    client, workspace_id = await auth.workspace("acme")
    async with database(auth.settings) as db:
        await db.write(append_uses, uses(workspace_id, 10))
        before = await verdict_of(client)
        assert not before.flaw
        await db.write(tamper)
    verdict = await verdict_of(client, anchor_hash=before.head_hash)
    assert (audit_service_pb2.AuditFlaw.Name(verdict.flaw), verdict.flaw_seq) == (f"AUDIT_FLAW_{flaw}", seq)
    # What was tampered with can still be read.
    assert await records_of(client)


async def test_a_part_is_checked_with_the_hash_before_it(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")
    async with database(auth.settings) as db:
        await db.write(append_uses, uses(workspace_id, 10))
        verdict = await verdict_of(client, first_seq=5, last_seq=9)
        assert (verdict.flaw, verdict.record_count, verdict.last_seq) == (0, 5, 9)
        await db.write(_edit)
    assert not (await verdict_of(client, first_seq=9)).flaw
    assert (await verdict_of(client, first_seq=8, last_seq=8)).flaw_seq == 8
    for fields in ({"first_seq": -1}, {"last_seq": -1}, {"anchor_hash": "zz"}, {"anchor_hash": "z" * 64}):
        error = await failure(client.audit.VerifyAuditTrail(audit_service_pb2.VerifyAuditTrailRequest(**fields)))
        assert isinstance(error, InvalidArgument)


async def test_records_of_the_release_before_are_left_or_taken_into_the_chain(auth: Auth) -> None:
    client, workspace_id = await auth.workspace("acme")

    def as_the_release_before(connection: sa.Connection) -> None:
        connection.execute(audit_records.update().values(hash=None, previous_hash=None))

    def write_as_the_release_before(connection: sa.Connection) -> None:
        connection.execute(workspaces.update().values(audit_seq=workspaces.c.audit_seq + 2))
        last = connection.execute(sa.select(workspaces.c.audit_seq)).scalar_one()
        for seq in (last - 1, last):
            connection.execute(
                audit_records.insert().values(
                    workspace_id=workspace_id,
                    seq=seq,
                    record_id=f"old-{seq}",
                    time=datetime.now(UTC),
                    actor="service:executor",
                    action="credential.resolve",
                    outcome="OK",
                    run_id=RUN,
                    step=1,
                )
            )

    async with database(auth.settings) as db:
        await db.write(as_the_release_before)
        await db.write(append_uses, uses(workspace_id, 2))
        # Both releases run side by side during an upgrade.
        await db.write(write_as_the_release_before)
        await db.write(append_uses, uses(workspace_id, 2))
    verdict = await verdict_of(client)
    assert (verdict.flaw, verdict.before_chain_count, verdict.record_count) == (0, 2, 8)


async def test_only_a_key_with_the_scope_reads_the_audit_of_its_own_workspace(auth: Auth) -> None:
    _, runner = await make_key(auth.settings, "acme", ["runs:read"])
    _, auditor = await make_key(auth.settings, "acme", ["audit:read"])
    other, _ = await auth.workspace("other")
    error = await failure(auth.as_bearer(runner).audit.VerifyAuditTrail(audit_service_pb2.VerifyAuditTrailRequest()))
    assert isinstance(error, PermissionDenied)
    own = await records_of(auth.as_bearer(auditor))
    foreign = await records_of(other)
    assert {record.record_id for record in own}.isdisjoint(record.record_id for record in foreign)
    assert [record.seq for record in foreign] == [1, 2]


async def test_what_renewing_makes_of_a_connection_is_on_record(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        made = (await client.connections.CreateConnection(new_connection())).connection
        async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
            store = core.connection_store
            row = await store.get_connection(workspace_id, made.connection_id)
            assert row is not None
            assert row.secret_path is not None
            connection_id, secret_path = row.connection_id, row.secret_path

            async def fails(state: ConnectionState, reason: str) -> None:
                await store.record_refresh_failure(
                    workspace_id,
                    connection_id,
                    secret_path=secret_path,
                    token_version=1,
                    state=state,
                    state_reason=reason,
                    refresh_time=None,
                )

            for _ in range(3):
                await fails(ConnectionState.DEGRADED, "provider_unavailable")
            await fails(ConnectionState.NEEDS_REAUTH, "grant_revoked")
            status = TokenStatus(
                secret_path=secret_path,
                token_version=2,
                fingerprint="a" * 12,
                scopes=(),
                expire_time=None,
                grant_expire_time=None,
                refresh_time=None,
            )
            for _ in range(2):
                await store.record_tokens(workspace_id, connection_id, status)
        found = [(record.action, dict(record.details)) for record in await records_of(client, actor="service:auth")]
        assert (await verdict_of(client)).flaw == 0
    assert found == [
        ("connection.state", {"from": "ACTIVE", "to": "DEGRADED", "reason": "provider_unavailable"}),
        ("connection.state", {"from": "DEGRADED", "to": "NEEDS_REAUTH", "reason": "grant_revoked"}),
        ("connection.rotate", {"token_version": "2"}),
        ("connection.state", {"from": "NEEDS_REAUTH", "to": "ACTIVE"}),
    ]


async def test_the_operator_checks_every_workspaces_trail(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        for name in ("one", "two"):
            client, workspace_id = await auth.workspace(name)
            await client.connections.CreateConnection(new_connection())

        async def verdicts() -> dict[str, str]:
            call = auth.as_service("operator").audit.CheckAuditTrails(audit_service_pb2.CheckAuditTrailsRequest())
            return {item.workspace: audit_service_pb2.AuditFlaw.Name(item.verdict.flaw) async for item in call}

        assert await verdicts() == {"one": "AUDIT_FLAW_UNSPECIFIED", "two": "AUDIT_FLAW_UNSPECIFIED"}
        async with database(settings) as db:
            is_it = sa.and_(audit_records.c.workspace_id == workspace_id, audit_records.c.seq == 2)
            await db.write(lambda connection: connection.execute(audit_records.update().where(is_it).values(actor="x")))
        assert await verdicts() == {"one": "AUDIT_FLAW_UNSPECIFIED", "two": "AUDIT_FLAW_EDITED"}
        with pytest.raises(grpc.RpcError):
            await anext(aiter(client.audit.CheckAuditTrails(audit_service_pb2.CheckAuditTrailsRequest())))
