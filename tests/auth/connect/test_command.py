"""`holdfast connect` against a running auth service, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from holdfast.api.auth.v1 import connect_service_pb2 as pb
from holdfast.api.auth.v1.api_key_service_pb2 import ListApiKeysRequest, RevokeApiKeyRequest
from holdfast.cli.loopback import loopback
from services.auth.providers import ProviderCatalog
from tests.auth.connect.support import Browser, code_on, query_of
from tests.auth.connect.test_service import LOOPBACK, base_of, integration_at
from tests.auth.support import Client, make_key, running, settings_for, sqlite_url
from tests.fakes.oauth_provider import FakeOAuthProvider
from tests.repository.tree import ROOT

Command = Callable[..., Awaitable[Process]]


@pytest.fixture
async def suite(tmp_path: Path, provider: FakeOAuthProvider) -> AsyncIterator[tuple[Client, Command]]:
    """A client of a service with an integration, and the command."""
    settings = settings_for(sqlite_url(tmp_path), egress_allow=LOOPBACK)
    _, key = await make_key(settings, "acme")
    processes: list[Process] = []
    async with running(settings, catalog=ProviderCatalog([provider.data])) as auth:

        async def command(*arguments: str) -> Process:
            environment = {
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "HOLDFAST_CONFIG": str(tmp_path / "config.toml"),
                "HOLDFAST_ADDRESS": auth.address,
                "HOLDFAST_AUTH_ADDRESS": auth.address,
                "HOLDFAST_API_KEY": key,
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "holdfast.cli",
                "connect",
                *arguments,
                env=environment,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
            )
            processes.append(process)
            return process

        client = auth.as_bearer(key)
        await client.integrations.CreateIntegration(integration_at(provider))
        yield client, command
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def test_it_prints_a_link_takes_the_code_and_says_who_was_connected(
    suite: tuple[Client, Command],
) -> None:
    _, command = suite
    process = await command("fake", "--user", "u1", "--scope", "write", "--no-browser")
    link = await line_of(process)
    browser = Browser(base_of(link))
    code = code_on(await browser.complete(link))
    await browser.close()
    async with asyncio.timeout(40):
        out, err = await process.communicate(f"{code}\n".encode())
    assert process.returncode == 0, err.decode()
    said = out.decode()
    assert "connected fake as Ada for u1" in said
    assert "granted: read, write" in said
    assert "waiting" in err.decode()
    assert code not in said + err.decode()


async def test_an_interrupt_gives_the_session_up(suite: tuple[Client, Command]) -> None:
    client, command = suite
    process = await command("fake", "--no-browser", "--json")
    session = json.loads(await line_of(process))
    browser = Browser(base_of(session["connect_url"]))
    await browser.complete(session["connect_url"])
    await browser.close()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        assert await process.wait() == 130
    found = await client.connect.GetConnectSession(pb.GetConnectSessionRequest(session_id=session["session_id"]))
    assert found.session.state == pb.CONNECT_SESSION_STATE_CANCELLED


async def test_a_session_that_cannot_be_given_up_is_said_to_stay_open(suite: tuple[Client, Command]) -> None:
    client, command = suite
    process = await command("fake", "--no-browser", "--json")
    await line_of(process)
    for key in (await client.api_keys.ListApiKeys(ListApiKeysRequest())).api_keys:
        await client.api_keys.RevokeApiKey(RevokeApiKeyRequest(api_key_id=key.api_key_id))
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(40):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert "could not be given up" in err.decode()


async def test_a_declined_consent_is_an_error_of_the_command(suite: tuple[Client, Command]) -> None:
    _, command = suite
    process = await command("fake", "--no-browser")
    link = await line_of(process)
    browser = Browser(base_of(link))
    asked = query_of(await browser.to_provider(link))
    await browser.open(f"{asked['redirect_uri']}?error=access_denied&state={asked['state']}")
    await browser.close()
    async with asyncio.timeout(40):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert "nothing was connected: the consent was declined" in err.decode()


async def test_a_loopback_takes_one_answer_at_its_own_path_only() -> None:
    async with loopback() as back:
        browser = Browser(back.url)
        root = back.url.rpartition("/")[0]
        for url in (root + "/", f"{root}/guess?session_id=a&confirm_code=b", back.url, f"{back.url}?session_id=a"):
            assert (await browser.open(url)).status_code == 404
        assert not back.answer.done()
        page = await browser.open(f"{back.url}?session_id=a&confirm_code=b")
        assert page.status_code == 200
        assert await back.answer == ("a", "b")
        assert (await browser.open(f"{back.url}?session_id=x&confirm_code=y")).status_code == 200
        assert await back.answer == ("a", "b")
        await browser.close()
