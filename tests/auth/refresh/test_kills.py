"""Real replicas, killed at each step of a renewal: each lease is watched for its whole time, which takes minutes."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.errors import Unavailable
from services.auth.connection_store import ConnectionState
from tests.auth.refresh.processes import Cluster, connected, is_alive, outcome
from tests.fakes.oauth_provider import FakeOAuthProvider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
