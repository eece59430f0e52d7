"""Whole suites for tests: four services as processes, on SQLite or PostgreSQL; a failed test shows their logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from holdfast.testing import Suite
from tests.suite.stages import Stage, open_stage

_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Notes how a test ended, for the fixtures that show logs."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.when == "call":
        item.stash[_REPORT] = report
    return report  # type: ignore[return-value]


@pytest.fixture
async def suite(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    """A suite of the test's own on SQLite."""
    async with Suite() as started:
        yield started
        _show_logs(request, started)


@pytest.fixture(params=["sqlite", "postgresql"])
async def either_suite(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    """A suite of the test's own on each kind of database."""
    url = "" if request.param == "sqlite" else database_url(request)
    async with Suite(database_url=url) as started:
        yield started
        _show_logs(request, started)


@pytest.fixture(scope="session")
def shared_suite() -> Iterator[Suite]:
    """One suite on SQLite for tests that only talk to it: they do not kill, restart or fill it."""
    started = Suite()
    asyncio.run(started.start())
    yield started
    asyncio.run(started.stop())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """A suite for all tests of a module, a client of it, and an HTTP endpoint for its tools."""
    async with open_stage() as opened:
        yield opened


def database_url(request: pytest.FixtureRequest) -> str:
    """Returns an empty PostgreSQL database of the test's own, as an operator writes its URL."""
    url = make_url(request.getfixturevalue("postgres_database"))
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _show_logs(request: pytest.FixtureRequest, suite: Suite) -> None:
    report = request.node.stash.get(_REPORT, None)
    if report is not None and report.failed:
        for name in (*suite.executors, "state", "auth", "trace"):
            print(f"--- {name}\n{suite.log_tail(name)}")
