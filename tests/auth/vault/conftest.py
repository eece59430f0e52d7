"""The double, and the server that each test of a pair runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.vault.support import NO_VAULT, Server, of_double
from tests.fakes.vault import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The double, of one node."""
    with Cluster() as double:
        yield double


@pytest.fixture(params=["double", "real"])
def server(request: pytest.FixtureRequest) -> Server:
    """The double, or a real server with mounts of the test's own."""
    if request.param == "double":
        return of_double(request.getfixturevalue("cluster"))
    found: Server | None = request.getfixturevalue("real_vault")
    if found is None:
        pytest.skip(NO_VAULT)
    return found.own()
