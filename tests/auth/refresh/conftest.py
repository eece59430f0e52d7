"""A world of a strict provider, for each test."""

from __future__ import annotations

import pytest

from tests.auth.refresh.world import World
from tests.fakes.clock import FakeClock
from tests.fakes.token_endpoint import MemoryTokenEndpoint


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
def world(clock: FakeClock) -> World:
    """A strict provider."""
    return World(clock, MemoryTokenEndpoint(clock))
