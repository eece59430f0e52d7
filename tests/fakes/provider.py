"""A model provider on a real socket that answers what a test scripted, byte for byte, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

_REASONS: Final = {200: "OK", 429: "Too Many Requests"}


class Ending(Enum):
    """What happens after the last piece of a reply."""

    COMPLETE = "complete"
    """The body ends as it should."""
    CLOSE = "close"
    """The connection is closed in the middle of the body."""
    HANG = "hang"
    """Nothing more comes until the client goes away."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer."""

    pieces: Sequence[bytes] = ()
    """The body; each piece is one chunk."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: Ending = Ending.COMPLETE
    with_head: bool = True
    """Whether status and headers are sent at all."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it arrived; header names are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    connection: int
    """Which of the server's connections it came over, from 0."""


class FakeProvider:
    """Plays replies in order to whoever asks; a request beyond the last one gets status 599.

    Use it as an async context manager; `url` is its address.
    """

    def __init__(self, *replies: Reply) -> None:
        self._replies = deque(replies)
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[ReceivedRequest] = []
        self.requested = asyncio.Event()
        """A request has arrived."""
        self.abandoned = asyncio.Event()
        """A client has closed the connection while its reply was not complete."""

    async def __aenter__(self) -> FakeProvider:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        # A task of a connection accepted just now has not begun: cancelled, it would never close what it was given.
        await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Where it answers."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def will_reply(self, *replies: Reply) -> None:
        """Adds replies to the end of the script."""
        self._replies.extend(replies)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self._connections
        self._connections += 1
        try:
            while (request := await _read_request(reader, number)) is not None:
                self.requests.append(request)
                self.requested.set()
                reply = self._replies.popleft() if self._replies else Reply(status=599)
                if not await self._send(reply, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.abandoned.set()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if reply.with_head:
            head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}", "Transfer-Encoding: chunked"]
            head.extend(f"{name}: {value}" for name, value in reply.headers.items())
            writer.write("\r\n".join([*head, "", ""]).encode())
        for piece in reply.pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        if reply.ending is Ending.COMPLETE:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        await writer.drain()
        if reply.ending is Ending.HANG:
            # A client that has sent its request has nothing more to say: reading returns when it goes away.
            await reader.read(1)
            self.abandoned.set()
        return False


async def _read_request(reader: asyncio.StreamReader, connection: int) -> ReceivedRequest | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ReceivedRequest(method, path, headers, json.loads(body) if body else None, connection)


def event_stream(*events: bytes, ending: Ending = Ending.COMPLETE) -> Reply:
    """Returns a reply that streams the events."""
    return Reply(pieces=events, headers={"Content-Type": "text/event-stream"}, ending=ending)


def json_reply(status: int, body: Any, **headers: str) -> Reply:
    """Returns a JSON reply; `_` in header names becomes `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps(body).encode()], status, {"Content-Type": "application/json", **named})


def chunk(
    delta: Mapping[str, Any] | None = None, *, finish_reason: str | None = None, usage: Mapping[str, Any] | None = None
) -> bytes:
    """Returns one Chat Completions chunk; with usage alone it has no choices, as OpenAI sends it."""
    choices = [] if delta is None and finish_reason is None else [_choice(delta or {}, finish_reason)]
    event: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "gpt-test-2026-01-01",
        "choices": choices,
    }
    if usage is not None:
        event["usage"] = usage
    return data(event)


def _choice(delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def data(event: Any) -> bytes:
    """Returns a server-sent event without a name, as Chat Completions have them."""
    return f"data: {json.dumps(event)}\n\n".encode()


DONE: Final = b"data: [DONE]\n\n"


def openai_text(*pieces: str, finish_reason: str = "stop", usage: Mapping[str, Any] | None = None) -> Reply:
    """Returns a whole Chat Completions stream that says the pieces."""
    events = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces)]
    events.append(chunk(finish_reason=finish_reason))
    if usage is not None:
        events.append(chunk(usage=usage))
    return event_stream(*events, DONE)


def event(kind: str, **fields: Any) -> bytes:
    """Returns a named server-sent event, as the Messages API has them."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def anthropic_events(
    blocks: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    *,
    stop_reason: str = "end_turn",
    start_usage: Mapping[str, Any] | None = None,
    end_usage: Mapping[str, Any] | None = None,
) -> list[bytes]:
    """Returns the events of a whole message: each block is its start and its deltas."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test-20260101"}
    message |= {"content": [], "stop_reason": None, "usage": start_usage or {"input_tokens": 3, "output_tokens": 1}}
    events = [event("message_start", message=message), event("ping")]
    for index, (start, deltas) in enumerate(blocks):
        events.append(event("content_block_start", index=index, content_block=start))
        events.extend(event("content_block_delta", index=index, delta=delta) for delta in deltas)
        events.append(event("content_block_stop", index=index))
    events.append(
        event(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage=end_usage or {"output_tokens": 5},
        )
    )
    return [*events, event("message_stop")]


def text_block(*pieces: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """Returns a text block for `anthropic_events`."""
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]


def anthropic_text(*pieces: str) -> Reply:
    """Returns a whole Messages stream that says the pieces."""
    return event_stream(*anthropic_events([text_block(*pieces)]))
