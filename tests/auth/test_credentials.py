"""A credential for one step: fresh, recorded, and refused when it cannot be recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import grpc
import pytest

from holdfast.api.auth.v1.connection_service_pb2 import RevokeConnectionRequest
from holdfast.errors import InvalidArgument, NotFound, Unavailable
from services.auth.app import open_core
from services.auth.audit import LINGER_SECONDS, MAX_LAG_SECONDS
from services.auth.settings import AuthSettings
from services.auth.store import CredentialUse
from services.auth.store_sql import SqlAuthStore
from services.shared.clock import SystemClock
from services.shared.database import Database
from tests.auth.support import Auth, audit_of, failure, make_key, new_connection, running
from tests.fakes.clock import FakeClock
from tests.fakes.secret_store import MemorySecretStore


def run_id(number: int) -> str:
    return f"0198c0de-0000-7000-8000-{number:012d}"


async def resolve(auth: Auth, workspace_id: str, **fields):
    return await auth.resolve(workspace_id, **fields)


async def test_every_use_is_recorded_with_run_and_step(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        connection = (await client.connections.CreateConnection(new_connection())).connection
        for step in range(5):
            await resolve(auth, workspace_id, run_id=run_id(step), step=step)
        await failure(resolve(auth, workspace_id, name="absent", step=9))
    # The replica has drained: nothing is left unwritten.
    uses = [record for record in await audit_of(settings, workspace_id) if record.action == "credential.resolve"]
    assert [(use.run_id, use.step, use.outcome) for use in uses[:5]] == [(run_id(n), n, "OK") for n in range(5)]
    assert {(use.actor, use.connection, use.connection_id, use.fingerprint) for use in uses[:5]} == {
        ("service:executor", "openai", connection.connection_id, connection.fingerprint)
    }
    assert (uses[5].outcome, uses[5].connection, uses[5].step) == ("CONNECTION_NOT_FOUND", "absent", 9)
    assert len({use.record_id for use in uses}) == 6


async def test_changes_are_recorded_with_who_made_them(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        await client.connections.CreateConnection(new_connection(key="sk-two", replace=True))
        for _ in range(2):
            await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai"))
    records = await audit_of(settings, workspace_id)
    assert [record.action for record in records] == [
        "workspace.create",
        "api_key.create",
        "connection.create",
        "connection.replace",
        "connection.revoke",
    ]
    assert {record.actor for record in records[:2]} == {"test"}
    assert {record.actor for record in records[2:]} == {f"key:{records[1].api_key_id}"}
    assert records[3].fingerprint == records[4].fingerprint != records[2].fingerprint


async def test_uses_in_two_replicas_are_numbered_without_gaps(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as two:
        client, workspace_id = await one.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        await asyncio.gather(*(resolve((one, two)[n % 2], workspace_id, step=n) for n in range(40)))
    uses = [record for record in await audit_of(settings, workspace_id) if record.action == "credential.resolve"]
    assert sorted(use.step or 0 for use in uses) == list(range(40))


@pytest.mark.parametrize("fields", [{"run_id": ""}, {"run_id": "a\x00"}, {"run_id": "x" * 200}, {"step": -1}])
async def test_a_use_without_run_and_step_is_refused(embedded_auth: Auth, fields) -> None:
    client, workspace_id = await embedded_auth.workspace("acme")
    await client.connections.CreateConnection(new_connection())
    assert type(await failure(resolve(embedded_auth, workspace_id, **fields))) is InvalidArgument


async def test_every_replica_stops_to_hand_out_what_was_revoked(settings: AuthSettings) -> None:
    secrets = MemorySecretStore()
    async with running(settings, secrets=secrets) as here, running(settings, secrets=secrets) as there:
        client, workspace_id = await here.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        for replica in (here, there):
            await resolve(replica, workspace_id)
        await client.connections.RevokeConnection(RevokeConnectionRequest(name="openai"))
        assert type(await failure(resolve(here, workspace_id))) is NotFound
        # The other one reads the event within a second or so.
        async with asyncio.timeout(10):
            while True:
                try:
                    await resolve(there, workspace_id)
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.NOT_FOUND
                    break


async def test_a_key_replaced_while_it_is_read_is_not_remembered_for_the_new_one(
    settings: AuthSettings,
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemorySecretStore):
        async def get(self, path: str):
            found = await super().get(path)
            if not reached.is_set():
                reached.set()
                await go_on.wait()
            return found

    async with running(settings, secrets=Slow()) as auth, asyncio.timeout(20):
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key="sk-old"))
        early = asyncio.ensure_future(resolve(auth, workspace_id))
        await reached.wait()
        await client.connections.CreateConnection(new_connection(key="sk-new", replace=True))
        go_on.set()
        assert (await early).secret == "sk-old"
        assert (await resolve(auth, workspace_id)).secret == "sk-new"


async def test_a_burst_reads_the_secret_once(settings: AuthSettings) -> None:
    reads = 0

    class Counting(MemorySecretStore):
        async def get(self, path: str):
            nonlocal reads
            reads += 1
            return await super().get(path)

    async with running(settings, secrets=Counting()) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        await asyncio.gather(*(resolve(auth, workspace_id, step=n) for n in range(50)))
    assert reads == 1


class FailingAudit(SqlAuthStore):
    """A store whose audit can be away."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.is_away = False
        self.loses_answers = False
        self.lost = asyncio.Event()

    async def append_credential_uses(self, uses: Sequence[CredentialUse]) -> None:
        if self.is_away:
            raise Unavailable("the audit is away")
        await super().append_credential_uses(uses)
        if self.loses_answers:
            self.loses_answers = False
            self.lost.set()
            raise Unavailable("the answer is lost")


async def test_without_a_record_there_is_no_use(settings: AuthSettings) -> None:
    clock = FakeClock(datetime.now(UTC))
    await make_key(settings, "acme")
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        store = FailingAudit(core.db)
        async with running(settings, clock=clock, store=store) as auth:
            client, workspace_id = await auth.workspace("acme")
            await client.connections.CreateConnection(new_connection())
            await resolve(auth, workspace_id, step=0)
            store.is_away = True
            await clock.advance(MAX_LAG_SECONDS + 0.1)
            assert type(await failure(resolve(auth, workspace_id, step=1))) is Unavailable
            store.is_away = False
            await resolve(auth, workspace_id, step=2)
    uses = [record for record in await audit_of(settings, workspace_id) if record.action == "credential.resolve"]
    assert [use.step for use in uses] == [0, 2]


async def test_a_record_whose_write_lost_its_answer_is_kept_once(settings: AuthSettings) -> None:
    clock = FakeClock(datetime.now(UTC))
    await make_key(settings, "acme")
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core:
        store = FailingAudit(core.db)
        async with running(settings, clock=clock, store=store) as auth, asyncio.timeout(20):
            client, workspace_id = await auth.workspace("acme")
            await client.connections.CreateConnection(new_connection())
            store.loses_answers = True
            await resolve(auth, workspace_id, step=0)
            await clock.wait_for_sleepers(2)
            await clock.advance(LINGER_SECONDS)
            await store.lost.wait()
            await resolve(auth, workspace_id, step=1)
    uses = [record for record in await audit_of(settings, workspace_id) if record.action == "credential.resolve"]
    assert [use.step for use in uses] == [0, 1]
