"""The process: its commands, its refusals, and what a kill or a full disk leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from holdfast.api.auth.v1.api_key_service_pb2 import (
    CreateApiKeyRequest,
    ListApiKeysRequest,
    RevokeApiKeyRequest,
    VerifyApiKeyRequest,
)
from holdfast.api.auth.v1.connection_service_pb2 import ListConnectionsRequest, RevokeConnectionRequest
from holdfast.api.auth.v1.workspace_service_pb2 import GetWorkspaceRequest
from holdfast.errors import NotFound, Reason, ResourceExhausted, Unauthenticated
from services.auth.master_key import next_key_path
from services.auth.sealing import MasterKey
from services.auth.settings import AuthSettings
from services.shared.server import EXIT_CONFIGURATION, EXIT_OK, EXIT_USAGE
from tests.auth.support import (
    TOKEN,
    Auth,
    audit_of,
    failure,
    make_key,
    new_connection,
    running,
    settings_for,
    sqlite_url,
)
from tests.processes import Process, start
from tests.repository.tree import ROOT


def environment(database_url: str, **changes: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOLDFAST_DATABASE_URL": database_url,
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_AUTH_HTTP_LISTEN": "127.0.0.1:0",
        "HOLDFAST_LOG_FORMAT": "json",
        "HOLDFAST_MIGRATE_ON_START": "true",
        **changes,
    }


def command(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "services.auth", *arguments],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=60,
    )


@asynccontextmanager
async def process(settings: AuthSettings, environ: Mapping[str, str]) -> AsyncIterator[tuple[Auth, Process]]:
    """A service process, as seen from outside, and itself; killed at the end if it still lives."""
    child = await start("auth", environ)
    try:
        async with asyncio.timeout(30):
            while True:
                line = await child.stderr.readline()
                assert line, "the process ended before it listened"
                entry = json.loads(line)
                if entry["event"] == "listening":
                    break
        async with AsyncExitStack() as stack:
            yield Auth(settings, entry["address"], stack), child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


# ------------------------------------------------------------------------------------------------------------ crashes


@pytest.mark.promise("P1")
async def test_what_was_acknowledged_survives_a_kill(database_url: str) -> None:
    master = MasterKey.generate()
    settings = settings_for(database_url, master_key=master)
    environ = environment(database_url, HOLDFAST_MASTER_KEY=master.export())
    workspace_id, admin_key = await make_key(settings, "acme")
    async with process(settings, environ) as (auth, child):
        client = auth.as_bearer(admin_key)
        kept = await client.api_keys.CreateApiKey(CreateApiKeyRequest(scopes=["runs:read"], request_id="r1"))
        revoked = await client.api_keys.CreateApiKey(CreateApiKeyRequest(scopes=["runs:read"]))
        await client.connections.CreateConnection(new_connection(name="gone", key="sk-gone"))
        await client.connections.CreateConnection(new_connection(key="sk-one"))
        await client.connections.CreateConnection(new_connection(key="sk-two", replace=True, request_id="r2"))
        await client.connections.RevokeConnection(RevokeConnectionRequest(name="gone"))
        await client.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=revoked.api_key.api_key_id))
        child.kill()
    async with process(settings, environ) as (auth, _):
        executor = auth.as_service("executor")
        await executor.api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=kept.secret))
        refused = await failure(executor.api_keys.VerifyApiKey(VerifyApiKeyRequest(secret=revoked.secret)))
        assert type(refused) is Unauthenticated
        credential = await auth.resolve(workspace_id)
        assert (credential.secret, credential.version) == ("sk-two", 2)
        assert type(await failure(auth.resolve(workspace_id, "gone"))) is NotFound
        client = auth.as_bearer(admin_key)
        again = await client.connections.CreateConnection(new_connection(key="sk-two", replace=True, request_id="r2"))
        assert again.connection.connection_id == credential.connection_id
        assert (await auth.resolve(workspace_id)).version == 2
        repeated = await client.api_keys.CreateApiKey(CreateApiKeyRequest(scopes=["runs:read"], request_id="r1"))
        assert (repeated.api_key, repeated.secret) == (kept.api_key, "")


async def test_a_kill_loses_at_most_the_last_moment_of_the_audit(tmp_path: Path) -> None:
    master = MasterKey.generate()
    settings = settings_for(sqlite_url(tmp_path), master_key=master)
    environ = environment(settings.database_url, HOLDFAST_MASTER_KEY=master.export())
    workspace_id, admin_key = await make_key(settings, "acme")

    async def used_steps() -> list[int | None]:
        records = await audit_of(settings, workspace_id)
        return [record.step for record in records if record.action == "credential.resolve"]

    async with process(settings, environ) as (auth, child):
        await auth.as_bearer(admin_key).connections.CreateConnection(new_connection())
        await auth.resolve(workspace_id, step=7)
        async with asyncio.timeout(20):
            while not await used_steps():
                pass
        child.kill()
    assert await used_steps() == [7]


async def test_a_terminated_process_ends_well_and_has_written_its_audit(tmp_path: Path) -> None:
    master = MasterKey.generate()
    settings = settings_for(sqlite_url(tmp_path), master_key=master)
    workspace_id, admin_key = await make_key(settings, "acme")
    environ = environment(settings.database_url, HOLDFAST_MASTER_KEY=master.export())
    async with process(settings, environ) as (auth, child):
        await auth.as_bearer(admin_key).connections.CreateConnection(new_connection())
        for step in range(20):
            await auth.resolve(workspace_id, step=step)
        child.terminate()
        async with asyncio.timeout(20):
            assert await child.wait() == 0
    records = await audit_of(settings, workspace_id)
    assert len([record for record in records if record.action == "credential.resolve"]) == 20


# ---------------------------------------------------------------------------------------------------------- full disk


class Disk:
    """A limit on the pages of every SQLite database of this process."""

    is_full = False


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk that a test can fill."""
    state = Disk()

    def limit(connection: sa.Connection) -> None:
        if connection.dialect.name == "sqlite":
            pages = 1 if state.is_full else 1_000_000  # never less than what there is
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(sa.Engine, "begin", limit)
    yield state
    sa.event.remove(sa.Engine, "begin", limit)


async def test_a_full_disk_is_said_and_nothing_is_half_done(tmp_path: Path, disk: Disk) -> None:
    settings = settings_for(sqlite_url(tmp_path))
    # Long values: they need new pages, and do not fit into what is left of the old ones.
    long_key = "sk-" + "x" * 8000
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key="sk-old"))
        disk.is_full = True
        for request in (new_connection(name="other", key=long_key), new_connection(key=long_key, replace=True)):
            error = await failure(client.connections.CreateConnection(request))
            assert (type(error), error.reason) == (ResourceExhausted, Reason.STORAGE_FULL)
            assert error.retry_delay_seconds
        listed = await client.connections.ListConnections(ListConnectionsRequest())
        assert [connection.name for connection in listed.connections] == ["openai"]
        assert (await auth.resolve(workspace_id)).secret == "sk-old"
        disk.is_full = False
        await client.connections.CreateConnection(new_connection(key=long_key, replace=True))
        assert (await auth.resolve(workspace_id)).secret == long_key


# ----------------------------------------------------------------------------------------------------------- commands


async def test_create_key_prints_a_key_once_and_makes_the_workspace(database_url: str) -> None:
    master = MasterKey.generate()
    environ = environment(database_url, HOLDFAST_MASTER_KEY=master.export())
    arguments = ("create-key", "--workspace", "acme", "--name", "ci", "--expires", "2")
    result = await asyncio.to_thread(command, environ, *arguments, "--scopes", "runs:read,runs:write", "keys:write")
    assert (result.returncode, result.stderr) == (EXIT_OK, "")
    async with running(settings_for(database_url, master_key=master)) as auth:
        client = auth.as_bearer(result.stdout.strip())
        assert (await client.workspaces.GetWorkspace(GetWorkspaceRequest())).workspace.name == "acme"
        [key] = (await client.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys
    assert list(key.scopes) == ["keys:write", "runs:read", "runs:write"]
    assert key.display_name == "ci"
    assert abs(key.expire_time.seconds - key.create_time.seconds - 2 * 86400) < 60


def test_create_key_writes_a_private_file_and_never_over_another(tmp_path: Path) -> None:
    environ = environment(sqlite_url(tmp_path))
    out = tmp_path / "keys" / "admin"
    result = command(environ, "create-key", "--workspace", "acme", "--out", str(out))
    assert (result.returncode, result.stdout) == (EXIT_OK, "")
    key = out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = command(environ, "create-key", "--workspace", "acme", "--out", str(out))
    assert again.returncode == EXIT_CONFIGURATION
    assert "exists already" in again.stderr
    assert out.read_text() == key


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workspace", "Acme"], "lower-case"),
        (["--workspace", "acme", "--scopes", "everything"], "runs:read"),
        (["--workspace", "acme", "--expires", "-1"], "days"),
        ([], "--workspace"),
    ],
)
def test_create_key_says_what_is_wrong(tmp_path: Path, arguments: list[str], expected: str) -> None:
    result = command(environment(sqlite_url(tmp_path)), "create-key", *arguments)
    assert result.returncode == EXIT_USAGE
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_generated_master_key_is_rotated_in_place(tmp_path: Path) -> None:
    settings = settings_for(sqlite_url(tmp_path), master_key=None)
    key_path = settings.generated_key_path
    assert key_path is not None
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key="sk-one"))
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    old = key_path.read_text()
    result = await asyncio.to_thread(command, environment(settings.database_url), "rotate-master-key")
    assert result.returncode == EXIT_OK, result.stderr
    assert key_path.read_text() != old
    assert old.strip() not in result.stdout + result.stderr
    async with running(settings) as auth:
        credential = await auth.resolve(workspace_id)
        assert credential.secret == "sk-one"


@pytest.mark.parametrize("committed", [False, True])
async def test_a_rotation_that_was_killed_is_finished_or_forgotten_by_the_next_start(
    tmp_path: Path, committed: bool
) -> None:
    settings = settings_for(sqlite_url(tmp_path), master_key=None)
    key_path = settings.generated_key_path
    assert key_path is not None
    async with running(settings) as auth:
        _, workspace_id = await auth.workspace("acme")
        client, _ = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key="sk-one"))
    old = key_path.read_text()
    result = await asyncio.to_thread(command, environment(settings.database_url), "rotate-master-key")
    assert result.returncode == EXIT_OK, result.stderr
    new = key_path.read_text()
    if committed:  # died before the new key got its name
        next_key_path(key_path).write_text(new)
        next_key_path(key_path).chmod(0o600)
        key_path.write_text(old)
    else:  # died before the commit of a second rotation
        next_key_path(key_path).write_text(MasterKey.generate().export())
        next_key_path(key_path).chmod(0o600)
    async with running(settings) as auth:
        credential = await auth.resolve(workspace_id)
        assert credential.secret == "sk-one"
    assert key_path.read_text() == new


async def test_a_given_master_key_is_rotated_to_a_given_file(database_url: str, tmp_path: Path) -> None:
    old = MasterKey.generate()
    settings = settings_for(database_url, master_key=old)
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key="sk-one"))
    environ = environment(database_url, HOLDFAST_MASTER_KEY=old.export())
    refused = await asyncio.to_thread(command, environ, "rotate-master-key")
    assert refused.returncode == EXIT_CONFIGURATION
    assert "--new-key-file" in refused.stderr
    new_file = tmp_path / "keys" / "master"
    result = await asyncio.to_thread(command, environ, "rotate-master-key", "--new-key-file", str(new_file))
    assert result.returncode == EXIT_OK, result.stderr
    assert stat.S_IMODE(new_file.stat().st_mode) == 0o600
    new_settings = settings_for(database_url, master_key=MasterKey.parse(new_file.read_text()))
    async with running(new_settings) as auth:
        credential = await auth.resolve(workspace_id)
        assert credential.secret == "sk-one"


# ----------------------------------------------------------------------------------------------------------- refusals


def start_and_fail(environ: Mapping[str, str]) -> str:
    result = command(environ)
    assert result.returncode == EXIT_CONFIGURATION, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_master_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master"
    path.write_text(MasterKey.generate().export())
    path.chmod(0o640)
    said = start_and_fail(environment(sqlite_url(tmp_path), HOLDFAST_MASTER_KEY_FILE=str(path)))
    assert "HOLDFAST_MASTER_KEY_FILE" in said
    assert "chmod 600" in said


def test_a_master_key_that_is_none_is_refused_without_being_repeated(tmp_path: Path) -> None:
    said = start_and_fail(environment(sqlite_url(tmp_path), HOLDFAST_MASTER_KEY="canary"))
    assert "HOLDFAST_MASTER_KEY" in said
    assert "32 bytes" in said
    assert "canary" not in said


def test_a_lost_key_file_is_never_replaced_by_a_new_one(tmp_path: Path) -> None:
    environ = environment(sqlite_url(tmp_path))
    assert command(environ, "create-key", "--workspace", "acme").returncode == EXIT_OK
    (tmp_path / "auth.master-key").unlink()
    assert "restore it" in start_and_fail(environ)
    assert not (tmp_path / "auth.master-key").exists()


def test_postgresql_without_a_master_key_is_refused() -> None:
    said = start_and_fail(environment("postgresql://holdfast@127.0.0.1:1/holdfast"))
    assert "HOLDFAST_MASTER_KEY" in said
    assert "every replica" in said


def test_a_key_file_without_a_workspace_is_refused(tmp_path: Path) -> None:
    said = start_and_fail(environment(sqlite_url(tmp_path), HOLDFAST_BOOTSTRAP_KEY_FILE=str(tmp_path / "key")))
    assert "HOLDFAST_BOOTSTRAP_WORKSPACE" in said


def test_help_names_every_command_and_setting(tmp_path: Path) -> None:
    result = command(environment(sqlite_url(tmp_path)), "--help")
    assert result.returncode == EXIT_OK
    for name in ("migrate", "create-key", "rotate-master-key", "HOLDFAST_MASTER_KEY", "HOLDFAST_BOOTSTRAP_KEY_FILE"):
        assert name in result.stdout
