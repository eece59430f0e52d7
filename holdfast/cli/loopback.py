"""The address on this machine to which a browser brings a confirm code (RFC 8252): open for one answer, then gone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

_MAX_HEAD_BYTES: Final = 8 * 1024
_HEAD_SECONDS: Final = 10
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{title} · Holdfast</title>
<style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem}}</style></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class Loopback:
    """An address, and what comes to it."""

    url: str
    answer: asyncio.Future[tuple[str, str]]
    """The session and the code, once a browser has brought them."""


@asynccontextmanager
async def loopback() -> AsyncIterator[Loopback]:
    """Listens on a free port of this machine while the context is open."""
    answer: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    # Other programs of this machine can reach the port, and cannot know the path.
    path = f"/{secrets.token_urlsafe(16)}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            status, title, text = _answered(head.decode("latin-1"), path, answer)
            body = _PAGE.format(title=title, text=text).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
                "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Not a browser, or one that has left.
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Loopback(f"http://127.0.0.1:{port}{path}", answer)


def _answered(head: str, path: str, answer: asyncio.Future[tuple[str, str]]) -> tuple[str, str, str]:
    method, _, rest = head.partition("\r\n")[0].partition(" ")
    to = urlsplit(rest.partition(" ")[0])
    query = parse_qs(to.query)
    session, code = query.get("session_id", [""])[0], query.get("confirm_code", [""])[0]
    if method != "GET" or not secrets.compare_digest(to.path.encode(), path.encode()) or not session or not code:
        return "404 Not Found", "There is nothing here", "Please go back to where you began."
    if not answer.done():
        answer.set_result((session, code))
    return "200 OK", "Back to the terminal", "The rest happens there. You can close this page."
