"""Forwards requests of running calls, with the credential put in, for whoever knows the call's address while it runs.

`ANY /{workspace}/{worker}/{lease}/{scheme}/{host[:port]}/{path}`. The lease is what nobody can guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

import httpcore
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from holdfast.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from services.executor.call_credentials import CallCredentials, RunningCall
from services.executor.credentials import CREDENTIAL_REJECTED, ResolvedCredential
from services.executor.egress.messages import ERROR_HEADER, Answer, AnswerRefused, outgoing
from services.executor.tools.http import (
    ANSWERED_ERROR,
    CONNECTION_BROKEN,
    DEFAULT_TIMEOUT_SECONDS,
    TARGET_REFUSED,
    TIMED_OUT,
    UNREACHABLE,
)
from services.executor.tools.pools import ConnectionPools
from services.shared.egress.addresses import TargetRefused
from services.shared.egress.rules import METHODS
from services.shared.egress.urls import Destination, parse_destination
from services.shared.telemetry import get_logger

MAX_BODY_BYTES: Final = 10 * 1024 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
_REPEATABLE_BYTES: Final = 1024 * 1024
"""Bodies up to here are kept until the answer is there, so that they can be sent again with a renewed credential."""
_CONNECT_SECONDS: Final = 10.0

_STATUS: Final[Mapping[type[HoldfastError], int]] = {
    InvalidArgument: 400,
    PermissionDenied: 403,
    Aborted: 409,
    # What the request depends on is missing: a sign-in, mostly.
    NotFound: 424,
    FailedPrecondition: 424,
    Unavailable: 503,
    DeadlineExceeded: 503,
    ResourceExhausted: 503,
}

log = get_logger(__name__)


def egress_url(base: str, workspace_id: str, worker_id: str, lease: str) -> str:
    """Returns the address at which a call's requests are taken; empty when there is no proxy."""
    return f"{base}/{workspace_id}/{quote(worker_id, safe='')}/{lease}" if base else ""


class _Refused(Exception):
    """The request is answered here."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class _Body:
    """A request's body: whole, or its beginning with the stream of the rest."""

    start: bytes
    rest: AsyncIterator[bytes] | None
    length: int | None


class EgressProxy:
    """The ASGI application.

    Args:
        credentials: Says whose a call is, and what it may send where.
        pools: Connections to third parties.
    """

    def __init__(self, credentials: CallCredentials, pools: ConnectionPools) -> None:
        self._credentials = credentials
        self._pools = pools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._forward(Request(scope, receive), sending)
            return
        except ClientDisconnect:
            return
        except HoldfastError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
            refused = _Refused(status, error.reason, error.message)
        except _Refused as error:
            refused = error
        except TargetRefused as error:
            refused = _Refused(403, TARGET_REFUSED, str(error))
        except AnswerRefused as error:
            refused = _Refused(502, ANSWERED_ERROR, str(error))
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout):
            refused = _Refused(502, UNREACHABLE, "the other side could not be reached")
        except (httpcore.TimeoutException, TimeoutError):
            refused = _Refused(504, TIMED_OUT, "the other side did not answer in time")
        except (httpcore.NetworkError, httpcore.ProtocolError):
            refused = _Refused(502, CONNECTION_BROKEN, "the connection to the other side broke")
        if has_begun:
            # What is begun and not ended is broken off by the server: the only way left to say that it is not whole.
            log.info("egress_answer_broken", reason=refused.reason)
            return
        answer = JSONResponse(
            {"reason": refused.reason, "message": refused.message},
            status_code=refused.status,
            headers={ERROR_HEADER: refused.reason},
        )
        await answer(scope, receive, send)

    async def _forward(self, request: Request, send: Send) -> None:
        workspace_id, worker_id, lease, url = _address_of(request)
        # Order matters: nothing is read or looked at for somebody who knows no running call.
        call = await self._credentials.running_call(workspace_id, worker_id, lease)
        try:
            to = parse_destination(url)
        except ValueError as error:
            raise InvalidArgument(f"the address cannot be used: {error}", field="path") from error
        if request.method not in METHODS:
            raise _Refused(405, Reason.INVALID_FIELD, f"expected one of {', '.join(sorted(METHODS))}")
        # No longer than the call may take: a connection that is held open must not be in others' way.
        async with asyncio.timeout(_seconds_of(call)):
            await self._exchange(request, send, call, to)

    async def _exchange(self, request: Request, send: Send, call: RunningCall, to: Destination) -> None:
        body = await _read(request)
        credential = await self._credentials.for_request(call, to, request.method)
        async with AsyncExitStack() as first, AsyncExitStack() as second:
            sending = self._pools.sending(_built(request, call, to, body, credential))
            answer = Answer(await first.enter_async_context(sending))
            is_rejected = False
            # Order matters: what is passed on cannot be taken back.
            if await answer.is_refusal(credential.signals):
                renewed = await self._credentials.for_request(
                    call, to, request.method, rejected_fingerprint=credential.fingerprint
                )
                # What has been streamed is gone: it is the tool's to send again, with what is renewed by then.
                if renewed.fingerprint == credential.fingerprint:
                    is_rejected = self._credentials.note_rejected(call, renewed)
                elif body.rest is None:
                    await first.aclose()
                    # Once: what a new credential does not open is not about its age.
                    sending = self._pools.sending(_built(request, call, to, body, renewed))
                    answer = Answer(await second.enter_async_context(sending))
                    if await answer.is_refusal(renewed.signals):
                        is_rejected = self._credentials.note_rejected(call, renewed)
            await send(answer.start(CREDENTIAL_REJECTED if is_rejected else ""))
            async for piece in answer.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _address_of(request: Request) -> tuple[str, str, str, str]:
    # The raw path: what is decoded and put together again may be another address.
    raw = request.scope.get("raw_path") or b""
    parts = raw.decode("latin-1").split("/", 6)
    if len(parts) < 6 or parts[0] or not all(parts[1:6]):
        raise _Refused(
            404,
            Reason.NOT_FOUND,
            "expected the call's egress address, then scheme, host and path, as in …/https/api.example.com/v1",
        )
    _, workspace_id, worker_id, lease, scheme, host, *path = parts
    query = request.scope["query_string"].decode("latin-1")
    url = f"{scheme}://{host}/{path[0] if path else ''}" + (f"?{query}" if query else "")
    return workspace_id, unquote(worker_id), lease, url


async def _read(request: Request) -> _Body:
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() else None
    if length is not None and length > MAX_BODY_BYTES:
        raise _too_large()
    stream = request.stream()
    pieces: list[bytes] = []
    size = 0
    async for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size > _REPEATABLE_BYTES:
            start = b"".join(pieces)
            return _Body(start, _capped(start, stream), length)
    return _Body(b"".join(pieces), None, size)


async def _capped(start: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    size = len(start)
    async for piece in stream:
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        if piece:
            yield piece


def _too_large() -> _Refused:
    return _Refused(413, Reason.MESSAGE_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES:,} bytes")


def _built(
    request: Request, call: RunningCall, to: Destination, body: _Body, credential: ResolvedCredential
) -> httpcore.Request:
    content = body.start if body.rest is None else body.rest
    built = outgoing(request.method, to, request.scope["headers"], content, body.length, credential)
    seconds = _seconds_of(call)
    connect = min(_CONNECT_SECONDS, seconds)
    built.extensions = {"timeout": {"connect": connect, "read": seconds, "write": seconds, "pool": connect}}
    return built


def _seconds_of(call: RunningCall) -> float:
    has_timeout = call.tool.HasField("timeout")
    return call.tool.timeout.ToTimedelta().total_seconds() if has_timeout else DEFAULT_TIMEOUT_SECONDS
