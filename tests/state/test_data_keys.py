"""Data keys and choices about sealing between real ones: auth over gRPC, and state's database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from holdfast.api.auth.v1 import workspace_service_pb2 as pb
from services.shared.database import Database
from services.shared.seals import MissingKeyError, Seals, is_sealed, opened
from services.state import tables as t
from services.state.data_keys import CHOICES_SECONDS, KEY_LIFE, REFRESH_SECONDS, DataKeys, keep_fresh
from tests.auth.support import Auth, Client, running, settings_for, sqlite_url
from tests.fakes.clock import FakeClock
from tests.fakes.data_keys import MemoryKeys
from tests.state.sql_store import migrated, sqlite


class Replicas:
    """Seals of several processes of state over one database, and auth beside it.

    Args:
        auth: The service.
        folder: Of state's database.
    """

    def __init__(self, auth: Auth, folder: Path, stack: AsyncExitStack) -> None:
        self.auth = auth
        self._url = sqlite(folder)
        self._stack = stack

    async def add(self, *, is_on: bool = False) -> Seals:
        """One more process."""
        keys = DataKeys(self.auth.as_service("state").channel)
        seals = Seals(keys, is_on=is_on)
        keys.db = await self._stack.enter_async_context(Database(self._url, schema="state", seals=seals))
        self.db = keys.db
        return seals


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    """No process yet."""
    async with asyncio.timeout(60), running(settings_for(sqlite_url(tmp_path))) as auth, AsyncExitStack() as stack:
        async with migrated(sqlite(tmp_path)):
            pass
        yield Replicas(auth, tmp_path, stack)


async def choose(client: Client, choice: pb.PayloadSealing) -> None:
    await client.workspaces.SetPayloadSealing(pb.SetPayloadSealingRequest(payload_sealing=choice))


async def close(auth: Auth, name: str) -> None:
    await auth.as_service("operator").workspaces.CloseWorkspace(pb.CloseWorkspaceRequest(name=name))


async def sealed_by(seals: Seals, workspace_id: str, payload: bytes = b"words") -> bytes:
    """What a process that does not know the workspace stores."""
    if not seals.is_ready(workspace_id):
        await seals.bring(MissingKeyError(workspace_id, None))
    return seals.seal(workspace_id, payload)


async def test_each_process_follows_a_workspaces_choice_and_all_read_all(replicas: Replicas) -> None:
    client, chosen = await replicas.auth.workspace("acme")
    _, other = await replicas.auth.workspace("other")
    first, second = await replicas.add(), await replicas.add()
    stored = [await sealed_by(seals, chosen) for seals in (first, second)]
    await choose(client, pb.PAYLOAD_SEALING_ON)
    # Between the two looks the processes differ, and nothing is lost by it.
    await first.refresh_choices()
    stored += [await sealed_by(seals, chosen) for seals in (first, second)]
    await second.refresh_choices()
    stored += [await sealed_by(seals, chosen) for seals in (first, second, await replicas.add())]
    await choose(client, pb.PAYLOAD_SEALING_OFF)
    stored.append(await sealed_by(await replicas.add(is_on=True), chosen))
    assert [is_sealed(payload) for payload in stored] == [False, False, True, False, True, True, True, False]
    assert {opened(payload) for payload in stored} == {b"words"}
    assert not is_sealed(await sealed_by(first, other))
    assert is_sealed(await sealed_by(await replicas.add(is_on=True), other))


async def test_a_closed_workspace_is_sealed_with_its_last_key_however_old(replicas: Replicas) -> None:
    client, workspace_id = await replicas.auth.workspace("acme")
    await choose(client, pb.PAYLOAD_SEALING_ON)
    before = await sealed_by(await replicas.add(), workspace_id)

    def age(connection: sa.Connection) -> None:
        created_at = t.data_keys.c.created_at
        [then] = connection.execute(sa.select(created_at)).scalars()
        connection.execute(sa.update(t.data_keys).values(created_at=then - 2 * KEY_LIFE))

    await replicas.db.write(age)
    await close(replicas.auth, "acme")
    after = await sealed_by(await replicas.add(), workspace_id)
    assert is_sealed(after) and after[:36] == before[:36], "the same workspace and key"


async def test_a_workspace_that_is_closed_before_anything_was_sealed_can_be_written_to_the_end(
    replicas: Replicas,
) -> None:
    client, workspace_id = await replicas.auth.workspace("acme")
    await choose(client, pb.PAYLOAD_SEALING_ON)
    await close(replicas.auth, "acme")
    assert await sealed_by(await replicas.add(), workspace_id, b"cancelled") == b"cancelled"


@asynccontextmanager
async def kept_fresh(seals: Seals, clock: FakeClock) -> AsyncIterator[None]:
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_fresh(seals, clock))
        await clock.wait_for_sleepers()
        yield
        task.cancel()


async def test_a_process_looks_at_choices_every_few_seconds_and_at_keys_every_few_minutes() -> None:
    keys, clock, workspace_id = MemoryKeys(), FakeClock(), "0198c0de-0000-7000-8000-00000000000a"
    seals = Seals(keys)
    await sealed_by(seals, workspace_id)
    async with kept_fresh(seals, clock):
        keys.chosen[workspace_id] = True
        await clock.advance(CHOICES_SECONDS)
        await clock.wait_for_sleepers()
        stored = await sealed_by(seals, workspace_id)
        assert is_sealed(stored)
        keys.destroyed.add(workspace_id)
        for _ in range(int(REFRESH_SECONDS / CHOICES_SECONDS) + 1):
            seals.is_ready(workspace_id)
            await clock.advance(CHOICES_SECONDS)
            await clock.wait_for_sleepers()
        assert opened(stored, gone=b"gone") == b"gone"
