"""A world of a strict provider, for each test, and databases and providers of real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.auth.refresh.processes import Cluster
from tests.auth.refresh.world import World
from tests.auth.vault.support import approle_environment, of_double
from tests.fakes import oauth_provider, oidc_provider
from tests.fakes.clock import FakeClock
from tests.fakes.oauth_provider import FakeOAuthProvider
from tests.fakes.token_endpoint import MemoryTokenEndpoint
from tests.fakes.vault import Cluster as Vault


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
def world(clock: FakeClock) -> World:
    """A strict provider."""
    return World(clock, MemoryTokenEndpoint(clock))


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
