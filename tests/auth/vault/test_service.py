"""Auth as a whole on Vault: a connection's key lies there and nowhere else, and trouble there does not end auth."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from holdfast.errors import Unavailable
from services.auth.sealing import MasterKey
from services.auth.secret_backend import READ_HEALTH, WRITE_HEALTH
from services.auth.settings import AuthSettings
from services.shared.settings import SettingsError, load
from tests.auth.support import TOKEN, Client, failure, new_connection, running, sqlite_url, use_of
from tests.auth.vault.support import Server, approle_environment, of_double
from tests.fakes.vault import Cluster

KEY = "sk-canary-of-the-vault"


def environment(folder: Path, server: Server, **changes: str) -> dict[str, str]:
    return {
        "HOLDFAST_DATABASE_URL": sqlite_url(folder),
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_MASTER_KEY": MasterKey.generate().export(),
        "HOLDFAST_DRAIN_SECONDS": "2",
        "HOLDFAST_SECRET_STORE": "vault",
        "HOLDFAST_VAULT_ADDR": ",".join(server.addresses),
        "HOLDFAST_VAULT_MOUNT_PREFIX": server.mounts.connections.removesuffix("-conn"),
        "HOLDFAST_VAULT_ROLE": server.role.name,
        **changes,
    }


async def settings_on(server: Server, folder: Path) -> AuthSettings:
    return load(AuthSettings, environment(folder, server, **await approle_environment(server, folder)))


async def health(client: Client, name: str, wanted: str) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    async with asyncio.timeout(20):
        while True:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            if health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == wanted:
                return
            await asyncio.sleep(0.05)


async def test_a_connections_key_lies_in_vault_and_nowhere_else(server: Server, tmp_path: Path) -> None:
    async with running(await settings_on(server, tmp_path)) as auth:
        client, workspace_id = await auth.workspace("w1")
        await client.connections.CreateConnection(new_connection(key=KEY))
        use = use_of(workspace_id, run_grant=await auth.grant(workspace_id, "openai"))
        answer = await auth.as_service("executor").credentials.ResolveCredential(use)
        assert answer.secret == KEY
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


async def test_a_sealed_vault_shows_in_health_and_is_used_again_without_a_restart(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with running(await settings_on(of_double(cluster), tmp_path)) as auth:
        client, _ = await auth.workspace("w1")
        await client.connections.CreateConnection(new_connection(key=KEY))
        nobody = auth.as_nobody()
        await health(nobody, WRITE_HEALTH, "SERVING")
        cluster.sealed = True
        await health(nobody, WRITE_HEALTH, "NOT_SERVING")
        await health(nobody, READ_HEALTH, "SERVING")
        await health(nobody, "", "SERVING")
        error = await failure(client.connections.CreateConnection(new_connection("other", key="sk-2")))
        assert isinstance(error, Unavailable)
        cluster.sealed = False
        await health(nobody, WRITE_HEALTH, "SERVING")
        await client.connections.CreateConnection(new_connection("other", key="sk-2"))


async def test_the_service_starts_before_vault_does(cluster: Cluster, tmp_path: Path) -> None:
    settings = await settings_on(of_double(cluster), tmp_path)
    with cluster.stopped(0):
        async with running(settings) as auth:
            nobody = auth.as_nobody()
            await health(nobody, WRITE_HEALTH, "NOT_SERVING")
            cluster.nodes[0].start()
            await health(nobody, WRITE_HEALTH, "SERVING")
            cluster.nodes[0].stop()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"HOLDFAST_VAULT_ADDR": ""}, "HOLDFAST_VAULT_ADDR is required"),
        ({"HOLDFAST_VAULT_ADDR": "vault:8200"}, "expected https://host:port"),
        ({"HOLDFAST_VAULT_ADDR": "https://user:pw@vault:8200"}, "expected https://host:port"),
        ({"HOLDFAST_VAULT_ADDR": "http://vault:8200"}, "is not encrypted"),
        ({}, "HOLDFAST_VAULT_ROLE_ID and HOLDFAST_VAULT_SECRET_ID_FILE are required"),
        ({"HOLDFAST_VAULT_AUTH": "token"}, "HOLDFAST_VAULT_TOKEN or"),
        ({"HOLDFAST_VAULT_CA_FILE": "/nowhere"}, "HOLDFAST_VAULT_CA_FILE"),
        ({"HOLDFAST_VAULT_MOUNT_PREFIX": "a/b"}, "expected letters"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(AuthSettings, environment(tmp_path, Server(("https://vault:8200",), ""), **changes))
