"""The connect flow on either database, a provider, and a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.auth.connect.support import Browser, Stage, staged
from tests.fakes.oauth_provider import FakeOAuthProvider


@pytest.fixture
async def provider() -> AsyncIterator[FakeOAuthProvider]:
    """A provider that issues refresh tokens."""
    async with FakeOAuthProvider() as made:
        yield made


@pytest.fixture
async def stage(database_url: str, provider: FakeOAuthProvider) -> AsyncIterator[Stage]:
    """A replica with one integration, `fake`."""
    async with staged(database_url, provider) as made:
        await made.integration()
        yield made


@pytest.fixture
async def browser(stage: Stage) -> AsyncIterator[Browser]:
    """The browser of whoever got the link."""
    made = Browser(stage.url)
    yield made
    await made.close()
