"""Real replicas against real providers: killed at each step, stopped past the lease, and all at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from holdfast.api.auth.v1.connection_service_pb2 import Connection
from holdfast.errors import Unavailable
from services.auth.connection_store import ConnectionState
from services.auth.oauth.client import OAuthClient
from services.shared.clock import SystemClock
from tests.auth.oauth.test_oidc_provider import signed_in
from tests.auth.refresh.processes import Cluster, connected, is_alive, outcome
from tests.fakes import oidc_provider
from tests.fakes.oauth_provider import FakeOAuthProvider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
