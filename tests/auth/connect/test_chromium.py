"""The whole way in a real browser, whose own rules about forms, cookies and redirects apply."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from holdfast.cli.loopback import loopback
from services.auth.connect.store import SessionState
from tests.auth.connect.support import staged
from tests.fakes import chromium
from tests.fakes.oauth_provider import FakeOAuthProvider

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="there is no Chromium here")


async def test_a_browser_goes_the_whole_way_and_shows_the_code(tmp_path: Path, provider: FakeOAuthProvider) -> None:
    async with staged(f"sqlite:///{tmp_path / 'auth.db'}", provider) as stage, chromium.browser() as page:
        await stage.integration()
        view = await stage.start(user_id="u1")
        await page.go(view.connect_url)
        await page.until("document.querySelector('button') !== null")
        assert await page.read("document.documentElement.lang") == "en"
        # Its one stylesheet is allowed, and loaded: the page looks as it is meant to.
        assert await page.read("getComputedStyle(document.querySelector('main')).borderRadius") == "12px"
        assert len(await page.screenshot()) > 10_000
        await page.read("document.querySelector('button').click()")
        await page.until("document.querySelector('output') !== null")
        assert await page.read("location.search") == ""
        code = await page.read("document.querySelector('output').textContent")
        assert (await stage.session(view.session.session_id)).state is SessionState.CONFIRMING
        _, connection = await stage.sessions.confirm(stage.alice, view.session.session_id, code)
        assert connection.account_label == "Ada"
        await page.command("Page.reload")
        await page.until("document.querySelector('h1')?.textContent === 'Connected'")


async def test_a_browser_brings_the_code_back_to_the_command(tmp_path: Path, provider: FakeOAuthProvider) -> None:
    async with (
        staged(f"sqlite:///{tmp_path / 'auth.db'}", provider) as stage,
        chromium.browser() as page,
        loopback() as back,
    ):
        await stage.integration()
        view = await stage.start(return_url=back.url)
        await page.go(view.connect_url)
        await page.until("document.querySelector('button') !== null")
        await page.read("document.querySelector('button').click()")
        async with asyncio.timeout(30):
            session_id, code = await back.answer
        assert session_id == view.session.session_id
        await page.until("document.querySelector('h1')?.textContent === 'Back to the terminal'")
        await stage.sessions.confirm(stage.alice, session_id, code)
