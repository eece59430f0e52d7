"""All replicas die at once in the middle of a renewal; one comes back, nobody asks, and the grant lives or is reported.

The access token of these grants ends soon: until then a grant with an unknown outcome would wait for it to be used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from services.auth.connection_store import ConnectionState
from tests.auth.refresh.processes import Child, Cluster, is_alive
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Grant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIFE_SECONDS = 50.0


async def due_now(cluster: Cluster, child: Child, provider: FakeOAuthProvider) -> tuple[str, Grant]:
    """A connection whose renewal every replica takes up by itself."""
    found = await cluster.integrate(child, "fake", CLIENT_ID, CLIENT_SECRET, provider.url)
    grant = provider.grant("crm")
    tokens = grant.tokens(expires_in=LIFE_SECONDS)
    return await cluster.connect("crm", found, "fake", tokens, refresh_time=tokens.obtain_time), grant


async def killed(cluster: Cluster, provider: FakeOAuthProvider, step: str) -> tuple[str, Grant]:
    """What is left when one replica has died at a step of the renewal, and the other one on its way to it."""
    async with (
        cluster.process(HOLDFAST_CRASH_POINT=f"auth.refresh.{step}") as holder,
        cluster.process(HOLDFAST_CRASH_POINT="auth.refresh.r1") as other,
    ):
        made = await due_now(cluster, holder, provider)
        assert {*await asyncio.gather(holder.ended(), other.ended())} == {137}
    return made


async def settled(survivor: Child, is_settled: Callable[[pb.Connection], bool]) -> pb.Connection:
    """The connection, when the replica that came back has brought it there by itself."""
    async with asyncio.timeout(150):
        while not is_settled(connection := await survivor.get("crm")):
            await asyncio.sleep(0.2)
    return connection


def is_renewed(connection: pb.Connection) -> bool:
    """Tells whether the row has a token that lives longer than the first one."""
    lives = connection.expire_time.ToSeconds() - connection.create_time.ToSeconds()
    return connection.state == pb.CONNECTION_STATE_ACTIVE and lives > 2 * LIFE_SECONDS


async def assert_alive(cluster: Cluster, provider: FakeOAuthProvider, connection_id: str, grant: Grant) -> None:
    state, version, document = await cluster.stored(connection_id)
    token = document.tokens.refresh_token
    assert token is not None
    assert is_alive(grant, token.reveal())
    # One call for each version of the document.
    assert (state, version, provider.token_calls) == (ConnectionState.ACTIVE, 2, 1)
    assert provider.reuses_detected == 0
    assert provider.max_concurrent_token_calls == 1


async def assert_reported(
    cluster: Cluster, provider: FakeOAuthProvider, connection_id: str, grant: Grant, connection: pb.Connection
) -> None:
    """The old refresh token was tried once more, when nothing was left to lose, and the user is told why."""
    assert connection.state_reason == "refresh_outcome_unknown"
    state, version, _ = await cluster.stored(connection_id)
    assert (state, version) == (ConnectionState.NEEDS_REAUTH, 1)
    assert (provider.token_calls, grant.refreshes, provider.reuses_detected) == (2, 1, 1)
    assert provider.max_concurrent_token_calls == 1


# Taken, about to send, and stored: nothing that the provider has handed out is lost.
@pytest.mark.parametrize("step", ["r3", "r4", "r8"])
async def test_a_grant_whose_refreshers_have_all_died_is_renewed_by_the_first_that_comes_back(
    cluster: Cluster, provider: FakeOAuthProvider, step: str
) -> None:
    connection_id, grant = await killed(cluster, provider, step)
    assert provider.token_calls == (1 if step == "r8" else 0)
    async with cluster.process() as survivor:
        await settled(survivor, is_renewed)
        await assert_alive(cluster, provider, connection_id, grant)


async def test_tokens_in_escrow_survive_the_death_of_all_refreshers(
    cluster_on_vault: Cluster, provider: FakeOAuthProvider
) -> None:
    connection_id, grant = await killed(cluster_on_vault, provider, "r7")
    assert await cluster_on_vault.escrowed() == 1
    async with cluster_on_vault.process() as survivor:
        await settled(survivor, is_renewed)
        await assert_alive(cluster_on_vault, provider, connection_id, grant)
        assert await cluster_on_vault.escrowed() == 0


async def test_a_grant_is_reported_when_the_answer_dies_with_all_refreshers(
    cluster: Cluster, provider: FakeOAuthProvider
) -> None:
    connection_id, grant = await killed(cluster, provider, "r6")
    async with cluster.process() as survivor:
        connection = await settled(survivor, lambda found: found.state == pb.CONNECTION_STATE_NEEDS_REAUTH)
        await assert_reported(cluster, provider, connection_id, grant, connection)


async def test_a_grant_is_reported_when_all_refreshers_are_killed_while_the_provider_answers(
    cluster: Cluster, provider: FakeOAuthProvider
) -> None:
    async with cluster.process() as one, cluster.process() as two:
        with provider.gate(after=True) as gate:
            connection_id, grant = await due_now(cluster, one, provider)
            async with asyncio.timeout(60):
                await gate.arrived.wait()
            one.kill()
            two.kill()
            await asyncio.gather(one.ended(), two.ended())
    async with cluster.process() as survivor:
        connection = await settled(survivor, lambda found: found.state == pb.CONNECTION_STATE_NEEDS_REAUTH)
        await assert_reported(cluster, provider, connection_id, grant, connection)
