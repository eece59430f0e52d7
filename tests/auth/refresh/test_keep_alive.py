"""Real replicas keep a grant alive that nobody uses, at a provider that ends grants which are idle."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from services.auth.connection_store import ConnectionState
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import OAuthSpec
from services.auth.refresh.timing import next_refresh
from tests.auth.refresh.processes import Cluster, is_alive
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Profile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

# Kept alive every five seconds or so; a machine that is busy for half a minute ends no grant.
IDLE_SECONDS, DOCUMENTED_SECONDS = 40.0, 20.0


async def test_a_grant_that_nobody_uses_outlives_the_providers_idle_limit(cluster: Cluster, providers: Path) -> None:
    async with FakeOAuthProvider(Profile.idle(IDLE_SECONDS, documented=DOCUMENTED_SECONDS)) as provider:
        (providers / "fake.yaml").write_text(provider.text)
        spec = provider.data.oauth or OAuthSpec()
        async with cluster.process() as one, cluster.process() as two:
            integration_id = await cluster.integrate(one, "fake", CLIENT_ID, CLIENT_SECRET, provider.url)
            grant, unattended = provider.grant("ada"), provider.grant("bob")
            tokens = grant.tokens()
            # As a sign-in does. The access token is good for an hour: only the idle limit demands anything.
            due = next_refresh(tokens, spec, random.Random(7))
            began = provider.clock.monotonic()
            connection_id = await cluster.connect("crm", integration_id, "fake", tokens, refresh_time=due)
            async with asyncio.timeout(120):
                while provider.clock.monotonic() - began <= IDLE_SECONDS + 1 or grant.refreshes < 3:
                    await asyncio.sleep(0.1)
                    assert grant.is_alive
            connection = await one.get("crm")
            # What is in flight is stored before they end.
            for replica in (one, two):
                replica.process.terminate()
            assert {await one.ended(), await two.ended()} == {0}
        state, version, document = await cluster.stored(connection_id)
        assert (connection.state, state) == (pb.CONNECTION_STATE_ACTIVE, ConnectionState.ACTIVE)
        assert not connection.HasField("last_use_time"), "nobody has used it"
        token = document.tokens.refresh_token
        assert token is not None
        assert is_alive(grant, token.reveal())
        # Each call brought the next version, whichever replica made it.
        assert (provider.token_calls, provider.reuses_detected) == (version - 1, 0)
        # The limit is a real one.
        egress = provider.egress()
        client = OAuthClient(egress, provider.clock)
        with pytest.raises(TokenRefused) as caught:
            await client.refresh(provider.app(), unattended.tokens(), timeout_seconds=10)
        await egress.close()
        assert caught.value.kind is RefusalKind.PERMANENT
