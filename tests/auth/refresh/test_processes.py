"""Real replicas against real providers: killed at each step, stopped past the lease, and all at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from holdfast.api.auth.v1.connection_service_pb2 import Connection
from holdfast.errors import DeadlineExceeded, HoldfastError, Unavailable, from_rpc_error
from services.auth.connection_store import ConnectionState
from services.auth.oauth.client import OAuthClient
from services.shared.clock import SystemClock
from tests.auth.oauth.test_oidc_provider import signed_in
from tests.auth.refresh.processes import Child, Cluster
from tests.auth.vault.support import approle_environment, of_double
from tests.fakes import oauth_provider, oidc_provider
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Grant
from tests.fakes.vault import Cluster as Vault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def providers(tmp_path: Path) -> Path:
    """A folder of providers."""
    folder = tmp_path / "providers"
    folder.mkdir()
    (folder / "panva.yaml").write_text(oidc_provider.DATA)
    (folder / "fake.yaml").write_text(oauth_provider.DATA.replace("account:\n", "  rotation: strict\naccount:\n", 1))
    return folder


@pytest.fixture
async def cluster(postgres_database: str, providers: Path) -> Cluster:
    """A database that holds the tokens too."""
    made = Cluster(postgres_database, providers)
    await made.prepare()
    return made


@pytest.fixture
async def cluster_on_vault(postgres_database: str, providers: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A database, and tokens in the double of Vault: only then are there escrows."""
    with Vault() as vault:
        made = Cluster(postgres_database, providers, **await approle_environment(of_double(vault), tmp_path))
        await made.prepare()
        yield made


@pytest.fixture
async def provider() -> AsyncIterator[FakeOAuthProvider]:
    """A strict provider."""
    async with FakeOAuthProvider() as made:
        yield made


async def connected(
    cluster: Cluster, child: Child, provider: FakeOAuthProvider, name: str = "crm"
) -> tuple[str, Grant]:
    """A connection at the provider of the tests."""
    found = await cluster.integrate(child, "fake", CLIENT_ID, CLIENT_SECRET, provider.url)
    grant = provider.grant(name)
    return await cluster.connect(name, found, "fake", grant.tokens()), grant


async def outcome(child: Child) -> Connection | HoldfastError:
    """Renews a connection's token, asking again when the answer takes longer than a call may."""
    async with asyncio.timeout(150):
        while True:
            try:
                return await child.refresh("crm")
            except grpc.RpcError as error:
                told = from_rpc_error(error)
                if not isinstance(told, DeadlineExceeded):
                    return told


def is_alive(grant: Grant, refresh_token: str) -> bool:
    """Tells whether a stored refresh token is the one that the provider takes next."""
    return grant.is_alive and refresh_token == grant.refresh_token


async def test_eight_refreshers_in_each_of_three_processes_share_one_call_a_round(cluster: Cluster) -> None:
    grants, rounds = 3, 3
    try:
        running = oidc_provider.running()
        panva = running.__enter__()
    except oidc_provider.NodeUnavailable as error:
        pytest.skip(f"oidc-provider cannot run here: {error}")
    async with AsyncExitStack() as stack:
        stack.callback(running.__exit__, None, None, None)
        egress = FakeOAuthProvider.egress()
        stack.push_async_callback(egress.close)
        client = OAuthClient(egress, SystemClock())
        replicas = [await stack.enter_async_context(cluster.process()) for _ in range(3)]
        app = panva.app()
        secret = app.client_secrets[0].reveal()
        integration_id = await cluster.integrate(replicas[0], "panva", app.client_id, secret, panva.url)
        ids = {}
        for number in range(grants):
            tokens = await signed_in(client, panva, app)
            ids[f"panva-{number}"] = await cluster.connect(f"panva-{number}", integration_id, "panva", tokens)
        before = await panva.state()
        for round_number in range(rounds):
            for name in ids:
                answers = await asyncio.gather(*(replica.refresh(name) for replica in replicas for _ in range(8)))
                assert {answer.state for answer in answers} == {1}
                # Some asked after the first renewal was over, and got another one: what counts is one call each.
                _, version, _ = await cluster.stored(ids[name])
                assert version >= round_number + 2
        versions = [(await cluster.stored(connection_id))[1] for connection_id in ids.values()]
        after = await panva.state()
        assert after["refreshed"] - before["refreshed"] == sum(versions) - grants
        assert after["refused"] == before["refused"]
        assert after["grants_revoked"] == before["grants_revoked"]
        print(f"oidc-provider: {grants} grants, {rounds} rounds of 24 callers, {sum(versions) - grants} token calls")


@pytest.mark.parametrize("step", ["r1", "r2", "r3", "r4", "r8", "r9"])
async def test_a_process_that_is_killed_at_a_step_loses_no_grant(
    cluster: Cluster, provider: FakeOAuthProvider, step: str
) -> None:
    async with cluster.process() as survivor, cluster.process(HOLDFAST_CRASH_POINT=f"auth.refresh.{step}") as victim:
        connection_id, grant = await connected(cluster, survivor, provider)
        dying = asyncio.create_task(victim.refresh("crm"))
        assert await victim.ended() == 137
        await asyncio.gather(dying, return_exceptions=True)
        is_stored = step in ("r8", "r9")
        # A lease that a killed process held is watched for its whole time.
        await outcome(survivor)
        state, version, document = await cluster.stored(connection_id)
        token = document.tokens.refresh_token
        assert token is not None
        assert is_alive(grant, token.reveal())
        assert provider.reuses_detected == 0
        assert provider.max_concurrent_token_calls <= 1
        if step == "r4":
            # Written that it would be sent, and nobody knows whether it was: the access token is used up first.
            assert (state, version) == (ConnectionState.DEGRADED, 1)
        else:
            assert (state, version) == (ConnectionState.ACTIVE, 3 if is_stored else 2)


async def test_tokens_that_a_killed_process_left_in_escrow_become_the_document(
    cluster_on_vault: Cluster, provider: FakeOAuthProvider
) -> None:
    cluster = cluster_on_vault
    async with cluster.process(HOLDFAST_CRASH_POINT="auth.refresh.r7") as victim:
        connection_id, grant = await connected(cluster, victim, provider)
        dying = asyncio.create_task(victim.refresh("crm"))
        assert await victim.ended() == 137
        await asyncio.gather(dying, return_exceptions=True)
    # The provider has spent the refresh token of the document; the one that it takes next lies in the escrow alone.
    _, version, document = await cluster.stored(connection_id)
    spent = document.tokens.refresh_token
    assert spent is not None
    assert (version, is_alive(grant, spent.reveal()), await cluster.escrowed()) == (1, False, 1)
    async with cluster.process() as survivor:
        renewed = await outcome(survivor)
        assert isinstance(renewed, Connection)
        state, version, document = await cluster.stored(connection_id)
        token = document.tokens.refresh_token
        assert token is not None
        assert is_alive(grant, token.reveal())
        # Each answer of the provider is a version of the document, the one that the victim got among them.
        assert (state, version) == (ConnectionState.ACTIVE, provider.token_calls + 1)
        assert provider.reuses_detected == 0
        assert await cluster.escrowed() == 0


async def test_a_process_that_is_killed_with_the_answer_in_its_hands_loses_the_grant_and_says_why(
    cluster: Cluster, provider: FakeOAuthProvider
) -> None:
    async with cluster.process() as survivor, cluster.process(HOLDFAST_CRASH_POINT="auth.refresh.r6") as victim:
        connection_id, _ = await connected(cluster, survivor, provider)
        dying = asyncio.create_task(victim.refresh("crm"))
        assert await victim.ended() == 137
        await asyncio.gather(dying, return_exceptions=True)
        error = await outcome(survivor)
        assert isinstance(error, Unavailable)
        assert error.reason == "CREDENTIAL_UNAVAILABLE"
        state, version, _ = await cluster.stored(connection_id)
        assert (state, version) == (ConnectionState.DEGRADED, 1)
        # The access token that everybody has goes on working: nobody sent the spent refresh token again.
        assert provider.reuses_detected == 0


async def test_a_process_that_is_stopped_past_its_lease_makes_nobody_send_again(
    cluster: Cluster, provider: FakeOAuthProvider
) -> None:
    async with cluster.process() as one, cluster.process() as two:
        connection_id, _ = await connected(cluster, one, provider)
        with provider.gate(after=True) as gate:
            call = asyncio.create_task(one.refresh("crm"))
            async with asyncio.timeout(30):
                await gate.arrived.wait()
            one.stop()
            gate.release()
        error = await outcome(two)
        assert isinstance(error, Unavailable)
        assert error.reason == "CREDENTIAL_UNAVAILABLE"
        assert provider.token_calls == 1
        one.go_on()
        await asyncio.gather(call, return_exceptions=True)
        # Its deadline by the clock is long past, and its lease is somebody else's; the answer lay in its socket all the
        # time, and is the only refresh token there is.
        async with asyncio.timeout(30):
            while (await cluster.stored(connection_id))[:2] != (ConnectionState.ACTIVE, 2):
                await asyncio.sleep(0.1)
        assert provider.token_calls == 1
        assert provider.reuses_detected == 0


async def test_a_process_that_is_told_to_end_stores_what_it_has_sent(
    cluster: Cluster, provider: FakeOAuthProvider
) -> None:
    async with cluster.process() as one:
        connection_id, grant = await connected(cluster, one, provider)
        with provider.gate(after=True) as gate:
            call = asyncio.create_task(one.refresh("crm"))
            async with asyncio.timeout(30):
                await gate.arrived.wait()
            one.process.terminate()
            await asyncio.sleep(0.5)
            assert one.process.returncode is None
            gate.release()
            assert (await call).state == 1
        assert await one.ended() == 0
        _, version, document = await cluster.stored(connection_id)
        token = document.tokens.refresh_token
        assert version == 2
        assert token is not None
        assert is_alive(grant, token.reveal())
