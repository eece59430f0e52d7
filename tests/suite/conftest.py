"""One suite on SQLite for all tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.suite.stages import Stage, open_stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """The suite, a client of it, and an HTTP endpoint for its tools."""
    async with open_stage() as opened:
        yield opened
