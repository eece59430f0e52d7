"""The first workspace and the key file of an embedded start, after any crash and any race."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.api.auth.v1.api_key_service_pb2 import ApiKey, ListApiKeysRequest, RevokeApiKeyRequest
from holdfast.api.auth.v1.workspace_service_pb2 import GetWorkspaceRequest
from holdfast.errors import Unauthenticated, Unavailable
from services.auth.app import open_core
from services.auth.settings import AuthSettings
from services.auth.store import ApiKey as StoredKey
from services.auth.store import NewApiKey, Request
from services.auth.store_sql import SqlAuthStore
from services.shared.clock import SystemClock
from services.shared.database import Database
from services.shared.server import StartupError
from tests.auth.support import TOKEN, Auth, failure, make_key, running, settings_for
from tests.processes import start
from tests.repository.tree import ROOT


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file in a folder that does not exist yet."""
    return tmp_path / "config" / "api-key"


@pytest.fixture
def embedded(database_url: str, key_file: Path) -> AuthSettings:
    """Settings of an embedded start."""
    return settings_for(database_url, bootstrap_workspace="default", bootstrap_key_file=key_file)


async def active_keys(auth: Auth, key_file: Path) -> list[ApiKey]:
    client = auth.as_bearer(key_file.read_text().strip())
    keys = (await client.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys
    return [key for key in keys if not key.HasField("revoke_time")]


def assert_private(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [other.name for other in path.parent.iterdir()] == [path.name]


async def test_a_start_makes_the_workspace_and_a_key_that_works(embedded: AuthSettings, key_file: Path) -> None:
    async with running(embedded) as auth:
        client = auth.as_bearer(key_file.read_text().strip())
        assert (await client.workspaces.GetWorkspace(GetWorkspaceRequest())).workspace.name == "default"
        assert [list(key.scopes) for key in await active_keys(auth, key_file)] == [["admin"]]
    assert_private(key_file)


async def test_the_next_start_keeps_the_key(embedded: AuthSettings, key_file: Path) -> None:
    async with running(embedded):
        first = key_file.read_text()
    key_file.chmod(0o644)
    async with running(embedded) as auth:
        assert key_file.read_text() == first
        assert len(await active_keys(auth, key_file)) == 1
    assert_private(key_file)


async def test_a_key_that_is_not_valid_any_more_is_replaced(embedded: AuthSettings, key_file: Path) -> None:
    async with running(embedded) as auth:
        first = key_file.read_text()
        client = auth.as_bearer(first.strip())
        await client.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=first.split("_")[1]))
    async with running(embedded) as auth:
        assert key_file.read_text() != first
        assert len(await active_keys(auth, key_file)) == 1
    _, foreign = await make_key(embedded, "other")
    _, weak = await make_key(embedded, "default", ["runs:read"])
    for content in (foreign, weak, "", "garbage", "\x00\xff" * 50_000):
        key_file.write_text(content)
        async with running(embedded) as auth:
            client = auth.as_bearer(key_file.read_text().strip())
            assert (await client.workspaces.GetWorkspace(GetWorkspaceRequest())).workspace.name == "default"
    assert_private(key_file)


async def test_starts_at_the_same_time_make_one_key(embedded: AuthSettings, key_file: Path) -> None:
    ready = asyncio.Barrier(4)

    async def start() -> None:
        async with running(embedded):
            await ready.wait()

    await asyncio.gather(*(start() for _ in range(4)))
    async with running(embedded) as auth:
        assert len(await active_keys(auth, key_file)) == 1
    assert_private(key_file)


class DyingStore(SqlAuthStore):
    """Dies while it stores a key: before, or after it was committed."""

    def __init__(self, db: Database, *, after: bool) -> None:
        super().__init__(db)
        self._after = after

    async def create_api_key(self, new: NewApiKey, *, actor: str, request: Request | None) -> tuple[StoredKey, bool]:
        if self._after:
            await super().create_api_key(new, actor=actor, request=request)
        raise Unavailable("the process died here")


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
async def test_a_crash_while_the_key_is_made_leaves_one_key_after_the_next_start(
    embedded: AuthSettings, key_file: Path, after: bool
) -> None:
    async with open_core(embedded, asyncio.Event(), clock=SystemClock()) as core:
        for _ in range(2):
            with pytest.raises(Unavailable):
                async with running(embedded, store=DyingStore(core.db, after=after)):
                    pass
            assert not key_file.exists()
            if after:
                break  # the second start adopts the key that the first one left
    async with running(embedded) as auth:
        assert len(await active_keys(auth, key_file)) == 1
    assert_private(key_file)


async def test_a_key_left_beside_a_valid_one_is_revoked(embedded: AuthSettings, key_file: Path) -> None:
    async with running(embedded):
        first = key_file.read_text()
    _, left = await make_key(embedded, "default")
    key_file.with_name("api-key.new").write_text(left)
    async with running(embedded) as auth:
        assert key_file.read_text() == first
        assert len(await active_keys(auth, key_file)) == 1
    assert_private(key_file)


async def test_a_file_that_cannot_be_written_refuses_to_start_with_a_sentence(
    embedded: AuthSettings, key_file: Path
) -> None:
    key_file.parent.write_text("a file where a folder is needed")
    with pytest.raises(StartupError, match=r"the folder .* of the key file cannot be used"):
        async with running(embedded):
            pass
    key_file.parent.unlink()
    key_file.mkdir(parents=True)
    with pytest.raises(StartupError, match=r"the key file .* cannot be read"):
        async with running(embedded):
            pass


# ------------------------------------------------------------------------------------------------------------ kills


def environment(settings: AuthSettings, key_file: Path, **changes: str) -> dict[str, str]:
    assert settings.master_key is not None
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOLDFAST_DATABASE_URL": settings.database_url,
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_AUTH_HTTP_LISTEN": "127.0.0.1:0",
        "HOLDFAST_MIGRATE_ON_START": "true",
        "HOLDFAST_MASTER_KEY": settings.master_key.export(),
        "HOLDFAST_BOOTSTRAP_WORKSPACE": "default",
        "HOLDFAST_BOOTSTRAP_KEY_FILE": str(key_file),
        **changes,
    }


async def killed_at(settings: AuthSettings, key_file: Path, point: str) -> None:
    """A start that dies as if it had been killed."""
    child = await start("auth", environment(settings, key_file, HOLDFAST_CRASH_POINT=point))
    async with asyncio.timeout(60):
        await child.communicate()
        assert await child.wait() == 137


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "point",
    ["auth.bootstrap.after_workspace", "auth.key.after_escrow", "auth.key.after_row", "auth.key.after_file"],
)
async def test_a_start_that_is_killed_anywhere_leaves_one_key_after_the_next(
    embedded: AuthSettings, key_file: Path, point: str
) -> None:
    await killed_at(embedded, key_file, point)
    left = [path.read_text() for path in key_file.parent.iterdir()] if key_file.parent.exists() else []
    async with running(embedded) as auth:
        assert len(await active_keys(auth, key_file)) == 1
        if point in ("auth.key.after_row", "auth.key.after_file"):
            assert left == [key_file.read_text()], "the key that was made is the one in use"
    assert_private(key_file)


@pytest.mark.promise("P1")
async def test_a_start_that_is_killed_while_it_withdraws_a_key_leaves_none_beside_the_valid_one(
    embedded: AuthSettings, key_file: Path
) -> None:
    async with running(embedded):
        first = key_file.read_text()
    _, left = await make_key(embedded, "default")
    key_file.with_name("api-key.new").write_text(left)
    await killed_at(embedded, key_file, "auth.key.after_withdrawal")
    async with running(embedded) as auth:
        assert key_file.read_text() == first
        assert len(await active_keys(auth, key_file)) == 1
    assert_private(key_file)


async def test_a_left_key_of_another_workspace_is_revoked_and_not_only_forgotten(
    embedded: AuthSettings, key_file: Path
) -> None:
    await killed_at(embedded, key_file, "auth.key.after_row")
    left = key_file.with_name("api-key.new").read_text().strip()
    async with running(replace(embedded, bootstrap_workspace="another")) as auth:
        client = auth.as_bearer(key_file.read_text().strip())
        assert (await client.workspaces.GetWorkspace(GetWorkspaceRequest())).workspace.name == "another"
        refused = await failure(auth.as_bearer(left).workspaces.GetWorkspace(GetWorkspaceRequest()))
        assert type(refused) is Unauthenticated
    assert_private(key_file)
