"""What of a tool's request goes to a third party, and what of the answer comes back."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final
from urllib.parse import quote, unquote_plus

import httpcore
from starlette.types import Message

from services.executor.credentials import ResolvedCredential
from services.shared.auth_failure_signals import SIGNAL_BODY_BYTES, AuthFailureSignal, depends_on_body, is_refusal
from services.shared.egress.urls import Destination
from services.shared.scrubber import PROCESS, StreamScrubber

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
ERROR_HEADER: Final = "holdfast-error"

Header = tuple[bytes, bytes]

_BLANK: Final = b" \t\r\n" + codecs.BOM_UTF8
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Credentials of the caller's own, what is set here, and what says where the caller is.
_NOT_SENT: Final = _HOP_BY_HOP | {
    b"authorization",
    b"cookie",
    b"x-api-key",
    b"api-key",
    b"x-auth-token",
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
}
# Credentials and challenges, what changes on the way, and what only this side may say.
_NOT_RETURNED: Final = _HOP_BY_HOP | {
    b"authorization",
    b"set-cookie",
    b"set-cookie2",
    b"www-authenticate",
    b"content-length",
    b"content-encoding",
    ERROR_HEADER.encode(),
}


class AnswerRefused(Exception):
    """The answer cannot be passed on. The text is for the tool."""


def outgoing(
    method: str,
    to: Destination,
    headers: Iterable[Header],
    body: bytes | AsyncIterator[bytes],
    length: int | None,
    credential: ResolvedCredential,
) -> httpcore.Request:
    """Returns the request as it is sent.

    Args:
        method: Its method.
        to: Where it goes; the credential is allowed there.
        headers: As the tool sent them.
        body: Its body; `b""` for none.
        length: Of the body; None when it is not known.
        credential: Put in; what the tool sent under the same names is not.
    """
    pairs = list(headers)
    dropped = _NOT_SENT | _named_by_connection(pairs)
    injected = {item.name.lower().encode("ascii"): item.value.encode("ascii") for item in credential.headers}
    sent = [(name, value) for name, value in pairs if name.lower() not in dropped and name.lower() not in injected]
    # Nothing is asked for that could not be looked into.
    sent += [(b"host", to.authority.encode("ascii")), (b"accept-encoding", b"identity"), *injected.items()]
    if body == b"":
        if method not in ("GET", "HEAD", "OPTIONS", "DELETE"):
            sent.append((b"content-length", b"0"))
    elif length is not None:
        sent.append((b"content-length", str(length).encode()))
    else:
        sent.append((b"transfer-encoding", b"chunked"))
    names = {item.name for item in credential.query}
    query = [pair for pair in to.query.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in names]
    query += [f"{quote(item.name, safe='')}={quote(item.value, safe='')}" for item in credential.query]
    url = f"{to.origin}{to.path}" + (f"?{'&'.join(query)}" if query else "")
    return httpcore.Request(method, url, headers=sent, content=body or None)


class Answer:
    """An answer: readable, without secrets, and no longer than it may be.

    Args:
        response: As it comes in. It is read once, by `is_refusal` as far as that needs and by `pieces`.

    Raises:
        AnswerRefused: It is encoded in a way that was not asked for and cannot be read.
    """

    def __init__(self, response: httpcore.Response) -> None:
        encodings = [value.lower() for name, value in response.headers if name.lower() == b"content-encoding"]
        self._expander: zlib._Decompress | None = None
        if encodings and encodings != [b"identity"]:
            if encodings not in ([b"gzip"], [b"x-gzip"], [b"deflate"]):
                raise AnswerRefused("the answer is compressed in a way that was not asked for")
            self._expander = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._status = response.status
        self._headers = response.headers
        self._body = self._read(response)
        self._ahead = b""

    def start(self, error: str = "") -> Message:
        """Returns what the tool gets of its status and its headers.

        Args:
            error: What the proxy adds to it, as the reason of a failure.
        """
        dropped = _NOT_RETURNED | _named_by_connection(self._headers)
        headers = [
            (name.lower(), PROCESS.exact(value.decode("latin-1"), "stream").encode("latin-1", "replace"))
            for name, value in self._headers
            if name.lower() not in dropped
        ]
        if error:
            headers.append((ERROR_HEADER.encode(), error.encode()))
        return {"type": "http.response.start", "status": self._status, "headers": headers}

    async def is_refusal(self, signals: Sequence[AuthFailureSignal]) -> bool:
        """Tells whether it says that the credential is over, before anything of it is passed on.

        The body is waited for only where a signal for this status is in one, and no further than it may be one.

        Raises:
            AnswerRefused: It is not what its encoding says.
        """
        if depends_on_body(signals, self._status):
            self._ahead = await self._beginning()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers}
        return is_refusal(signals, self._status, headers, self._ahead)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body.

        Raises:
            AnswerRefused: It is too long, or not what its encoding says.
        """
        scrubber = StreamScrubber(PROCESS)
        # Byte for byte, whatever the encoding: secrets are ASCII in all forms that are looked for.
        if cleaned := scrubber.add(self._ahead.decode("latin-1")):
            yield cleaned.encode("latin-1")
        async for piece in self._body:
            if cleaned := scrubber.add(piece.decode("latin-1")):
                yield cleaned.encode("latin-1")
        if rest := scrubber.end():
            yield rest.encode("latin-1")

    async def _beginning(self) -> bytes:
        beginning = bytearray()
        is_blank = True
        async for piece in self._body:
            beginning += piece
            if is_blank and (begun := piece.lstrip(_BLANK)):
                is_blank = False
                if not begun.startswith((b"{", b"[")):
                    # No JSON with values in it: events and files are not held back.
                    break
            if len(beginning) > SIGNAL_BODY_BYTES:
                break
        return bytes(beginning)

    async def _read(self, response: httpcore.Response) -> AsyncIterator[bytes]:
        size = 0
        async for raw in response.aiter_stream():
            piece = self._expanded(raw, MAX_ANSWER_BYTES + 1 - size)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise AnswerRefused(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
            yield piece

    def _expanded(self, raw: bytes, limit: int) -> bytes:
        if self._expander is None:
            return raw
        try:
            # What is left over when the limit is reached is of no interest: the answer is too long then.
            return self._expander.decompress(raw, limit)
        except zlib.error as error:
            raise AnswerRefused("the answer is not what its Content-Encoding says") from error


def _named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    named = (value for name, value in headers if name.lower() == b"connection")
    return frozenset(item.strip().lower() for value in named for item in value.split(b","))
