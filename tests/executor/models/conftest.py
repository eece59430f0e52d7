"""Nothing here leaves loopback, and no log record may hold the canary key."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from services.executor.models import ModelRegistry
from services.shared.clock import SystemClock
from tests.executor.models import aimock
from tests.executor.models.calls import CANARY
from tests.fakes.loopback import loopback_only


@pytest.fixture(autouse=True)
def on_loopback() -> Iterator[None]:
    with loopback_only():
        yield


@pytest.fixture(autouse=True)
def canary_is_never_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert CANARY not in caplog.text
    assert not any(CANARY in repr(record.__dict__) for record in caplog.records)


@pytest.fixture
async def registry() -> AsyncIterator[ModelRegistry]:
    registry = ModelRegistry(SystemClock())
    yield registry
    await registry.close()


@pytest.fixture(scope="session")
def aimock_url() -> Iterator[str]:
    try:
        aimock.install()
    except aimock.AimockUnavailable as error:
        pytest.skip(f"@copilotkit/aimock cannot be had here: {error}")
    with aimock.running() as url:
        yield url
