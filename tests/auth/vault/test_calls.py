"""What each answer of Vault leads to: another node, another attempt, another login, or an error that says enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.errors import Conflict, ResourceExhausted, Unavailable
from services.auth.secrets import Secret
from services.auth.vault.backend import Vault
from tests.auth.vault.support import Server, approle, as_root, of_double, opened
from tests.fakes.vault import Cluster, Fault, Point

PATH = "ws/0198/shared/c/1"
DATA = f"holdfast-conn/data/{PATH}"


@pytest.fixture
async def vault(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Vault]:
    """Logged in on the double."""
    server = of_double(cluster)
    async with opened(server, await approle(server, tmp_path)) as found:
        await found.session.token()
        cluster.requests.clear()
        yield found


async def value(vault: Vault, path: str = PATH) -> str | None:
    stored = await vault.secrets.get(path)
    return None if stored is None else stored.secret.reveal()


# ------------------------------------------------------------------------------------------------- the status table


@pytest.mark.parametrize("status", [429, 472, 473, 474, 500, 502, 503, 530])
async def test_a_passing_failure_is_repeated_until_it_has_passed(vault: Vault, cluster: Cluster, status: int) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    cluster.faults.add(Fault(DATA, "GET", status=status, times=2))
    assert await value(vault) == "one"


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503])
@pytest.mark.parametrize("point", list(Point))
async def test_a_write_whose_answer_is_lost_takes_place_once(
    vault: Vault, cluster: Cluster, status: int, point: Point
) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    cluster.faults.add(Fault(DATA, "POST", point=point, status=status))
    assert await vault.secrets.put(PATH, Secret("two"), expected_version=1) == 2
    assert (await vault.secrets.version(PATH), await value(vault)) == (2, "two")


async def test_a_lost_answer_over_somebody_elses_write_is_a_conflict(vault: Vault, cluster: Cluster) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    fault = cluster.faults.add(Fault(DATA, "POST", point=Point.BEFORE))
    lost = asyncio.create_task(vault.secrets.put(PATH, Secret("mine"), expected_version=1))
    async with asyncio.timeout(20):
        while not fault.reached.is_set():
            await asyncio.sleep(0)
    async with as_root(of_double(cluster)) as client:
        body = {"options": {"cas": 1}, "data": {"value": "theirs", "write_id": "x", "schema": 1}}
        try:
            await client.write(lambda adapter: adapter.post(f"/v1/{DATA}", json=body))
        except Exception:
            # Ours was repeated before: then theirs lost the race, and ours stands.
            assert await lost == 2
            return
    with pytest.raises(Conflict):
        await lost
    assert await value(vault) == "theirs"


async def test_a_replica_that_is_behind_is_asked_again_and_then_passed_by(vault: Vault, cluster: Cluster) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    cluster.faults.add(Fault(DATA, "GET", status=412, times=3))
    assert await value(vault) == "one"
    cluster.requests.clear()
    cluster.faults.add(Fault(DATA, "GET", status=412, times=40))
    with pytest.raises(Unavailable):
        await value(vault)


async def test_a_quota_is_waited_for(vault: Vault, cluster: Cluster) -> None:
    cluster.faults.add(Fault(DATA, "GET", status=429, times=1))
    assert await value(vault) is None


async def test_what_is_too_large_for_vault_is_told_as_such(vault: Vault, cluster: Cluster) -> None:
    cluster.faults.add(Fault(DATA, "POST", status=413))
    with pytest.raises(ResourceExhausted):
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)


async def test_a_secret_that_was_deleted_in_vault_itself_can_be_put_again(server: Server, tmp_path: Path) -> None:
    mount = server.mounts.connections
    async with opened(server, await approle(server, tmp_path)) as vault, as_root(server) as client:
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)
        for version, kind in ((1, "deleted"), (2, "destroyed")):
            if kind == "deleted":
                await client.write(lambda adapter: adapter.delete(f"/v1/{mount}/data/{PATH}"))
            else:
                await client.write(lambda adapter: adapter.post(f"/v1/{mount}/destroy/{PATH}", json={"versions": [2]}))
            assert (await vault.secrets.version(PATH), await value(vault)) == (0, None), kind
            # The count goes on, so that no older writer's expectation fits again.
            assert await vault.secrets.put(PATH, Secret("two"), expected_version=0) == version + 1
            assert await value(vault) == "two"


# ------------------------------------------------------------------------------------------- sealed, away, elsewhere


async def test_a_sealed_vault_is_unavailable_and_works_again_unsealed(vault: Vault, cluster: Cluster) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    cluster.sealed = True
    with pytest.raises(Unavailable) as caught:
        await value(vault)
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
    # The circuit is open: this one does not reach Vault.
    cluster.requests.clear()
    with pytest.raises(Unavailable):
        await value(vault)
    assert cluster.paths() == []
    cluster.sealed = False
    assert await eventually(vault) == "one"


async def eventually(vault: Vault) -> str | None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await value(vault)
            except Unavailable:
                await asyncio.sleep(0.05)


async def test_health_follows_the_seal(vault: Vault, cluster: Cluster) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()
    watching = asyncio.create_task(vault.watch(told.put))
    try:
        async with asyncio.timeout(30):
            assert await told.get() is True
            cluster.sealed = True
            assert await told.get() is False
            cluster.sealed = False
            assert await told.get() is True
    finally:
        watching.cancel()


@pytest.mark.parametrize("standby", ["forward", "redirect", "behind"])
async def test_another_node_takes_over(tmp_path: Path, standby: str) -> None:
    with Cluster(nodes=2, standby=standby) as cluster:  # type: ignore[arg-type]
        server = of_double(cluster)
        async with opened(server, await approle(server, tmp_path)) as vault:
            await vault.secrets.put(PATH, Secret("one"), expected_version=0)
            with cluster.stopped(0):
                cluster.active = 1
                assert await value(vault) == "one"
                assert await vault.secrets.put(PATH, Secret("two"), expected_version=1) == 2
            # The first one is back as a standby, and the second one dies.
            cluster.active = 0
            with cluster.stopped(1):
                assert await value(vault) == "two"


async def test_a_redirect_to_a_configured_address_is_followed_and_any_other_is_not(tmp_path: Path) -> None:
    with Cluster(nodes=2, standby="redirect") as cluster, Cluster() as elsewhere:
        server = of_double(cluster)
        async with opened(server, await approle(server, tmp_path)) as vault:
            await vault.secrets.put(PATH, Secret("one"), expected_version=0)
            cluster.active = 1
            assert await value(vault) == "one"
            cluster.faults.add(Fault(DATA, "GET", status=307, location=f"{elsewhere.addresses[0]}/v1/{DATA}"))
            assert await value(vault) == "one"
            assert elsewhere.requests == []


async def test_reads_after_a_write_ask_for_what_it_wrote(vault: Vault, cluster: Cluster) -> None:
    await vault.secrets.put(PATH, Secret("one"), expected_version=0)
    await value(vault)
    assert cluster.requests[-1].headers["x-vault-index"] == f"v1:{cluster.index}"


async def test_a_call_that_policy_refuses_is_not_repeated(vault: Vault, cluster: Cluster) -> None:
    cluster.tokens.policies["holdfast-runtime"] = 'path "auth/token/lookup-self" { capabilities = ["read"] }'
    for _ in range(5):
        with pytest.raises(Unavailable, match="does not allow"):
            await value(vault)
    # Each is asked for once; the token is judged once, and nobody logs in again.
    assert cluster.paths().count(DATA) == 5
    assert cluster.paths().count("auth/token/lookup-self") == 1
    assert "auth/approle/login" not in cluster.paths()
