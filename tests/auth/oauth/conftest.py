"""A provider with quirks and the client that speaks to it, for the tests of the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.auth.oauth.client import OAuthClient
from services.shared.clock import SystemClock
from services.shared.egress import EgressClient
from tests.fakes.oauth_provider import FakeOAuthProvider


@pytest.fixture
async def provider() -> AsyncIterator[FakeOAuthProvider]:
    async with FakeOAuthProvider() as made:
        yield made


@pytest.fixture
async def egress() -> AsyncIterator[EgressClient]:
    client = FakeOAuthProvider.egress()
    yield client
    await client.close()


@pytest.fixture
def client(egress: EgressClient) -> OAuthClient:
    return OAuthClient(egress, SystemClock())
