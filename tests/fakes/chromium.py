"""A real browser without a window, driven through its debugging pipe: what its own rules allow is what is tested."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One window."""

    def __init__(self, reader: asyncio.StreamReader, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._session = ""

    async def open_window(self) -> None:
        """Opens an empty window."""
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.command("Page.enable")

    async def command(self, method: str, **params: Any) -> Any:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await asyncio.to_thread(os.write, self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def go(self, url: str) -> None:
        """Opens an address."""
        await self.command("Page.navigate", url=url)

    async def read(self, expression: str) -> Any:
        """Returns the value of an expression in the page."""
        answer = await self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Returns when an expression is true in the page."""
        async with asyncio.timeout(30):
            while not await self.read(expression):
                await asyncio.sleep(0.1)

    async def screenshot(self) -> bytes:
        """Returns a picture of the page."""
        return base64.b64decode((await self.command("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A window of a browser of its own."""
    assert PATH is not None
    to_browser, our_writer = os.pipe()
    our_reader, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def hand_over() -> None:
            # The browser reads commands from 3 and answers on 4.
            os.dup2(to_browser, 200)
            os.dup2(from_browser, 201)
            os.dup2(200, 3)
            os.dup2(201, 4)

        process = await asyncio.create_subprocess_exec(
            PATH,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--no-proxy-server",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            preexec_fn=hand_over,
            close_fds=False,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
        pipe = os.fdopen(our_reader, "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            page = Page(reader, our_writer)
            async with asyncio.timeout(60):
                await page.open_window()
            yield page
        finally:
            process.kill()
            await process.wait()
            transport.close()
            os.close(our_writer)
