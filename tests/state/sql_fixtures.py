"""Fixtures of the store on either database; a test module takes them by `pytest_plugins`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.state.sql_store import SqlStateStore, empty, migrated, opened, postgres, sqlite


@pytest.fixture(scope="session")
def postgres_state(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database with state's schema, made once: the migrations take longer than most tests."""
    url = postgres(postgres_url)

    async def prepare() -> None:
        async with migrated(url):
            pass

    asyncio.run(prepare())
    yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def either_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    if request.param == "sqlite":
        return sqlite(tmp_path)
    url: str = request.getfixturevalue("postgres_state")
    return url


@pytest.fixture
async def sql_store(either_url: str) -> AsyncIterator[SqlStateStore]:
    """The store on an empty database of each kind."""
    async with migrated(either_url) as db:
        await db.write(empty)
        async with opened(db) as opened_store:
            yield opened_store
