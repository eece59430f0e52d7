"""Where auth keeps its data: each test that takes `database_url` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.auth.settings import AuthSettings
from tests.auth.support import Auth, running, settings_for, sqlite_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def settings(database_url: str) -> AuthSettings:
    """Settings on either database."""
    return settings_for(database_url)


@pytest.fixture
async def auth(settings: AuthSettings) -> AsyncIterator[Auth]:
    """A running replica on either database."""
    async with running(settings) as replica:
        yield replica


@pytest.fixture
async def embedded_auth(tmp_path: Path) -> AsyncIterator[Auth]:
    """A running replica on SQLite, for what does not depend on the database."""
    async with running(settings_for(sqlite_url(tmp_path))) as replica:
        yield replica
