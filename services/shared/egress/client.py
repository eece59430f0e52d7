"""The client of a service's own calls to third parties: one attempt to a checked address, and an honest word on it.

It follows no redirect, knows no proxy, keeps no cookie, and reads no more of an answer than it may.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Final

import httpcore

from services.shared.egress.addresses import CheckedBackend, Resolver, TargetPolicy, TargetRefused, resolve
from services.shared.egress.deadline import RequestDeadline
from services.shared.egress.urls import Destination, parse_destination

MAX_BODY_BYTES: Final = 256 * 1024
CONNECT_SECONDS: Final = 5.0

_IDLE_SECONDS: Final = 5.0
# Of one origin. A pool looks at all of its connections and requests for each of them: one pool for everybody took
# seconds of CPU for a thousand requests at once, and a slow provider would fill it before the others.
_MAX_CONNECTIONS: Final = 16
_MAX_IDLE_ORIGINS: Final = 32
_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})


class Failure(StrEnum):
    """Why there is no answer."""

    REFUSED = "refused"
    """The address is none that may be called; nothing was sent."""
    UNREACHABLE = "unreachable"
    """No connection: the name, the network, or the certificate."""
    TIMED_OUT = "timed out"
    BROKEN = "broken"
    """The connection broke, or what came was no HTTP."""
    TOO_LARGE = "too large"
    """The answer has more than the bytes that may be read; its status is known."""


class EgressFailed(Exception):
    """There is no answer. The text names the host and the kind of failure, nothing that was sent or received."""

    def __init__(self, kind: Failure, message: str, *, was_sent: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.was_sent = was_sent
        """Whether bytes of the request may have left: the other side may have acted on it."""
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. It is not shown by `repr`: answers of token endpoints are secrets."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Lower-case names; of a repeated one, the first."""
    body: bytes = field(repr=False)


class EgressClient:
    """Sends requests, each once.

    Plain http is spoken only to addresses of this machine that the operator allows; everything else is https.

    Args:
        policy: Which addresses may be called.
        resolver: Where addresses of hosts come from.
        ssl_context: How servers are verified; by certifi's and the system's authorities when not given.
        max_body_bytes: How much of an answer is read.
    """

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        resolver: Resolver = resolve,
        ssl_context: ssl.SSLContext | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._ssl_context = ssl_context or _ssl_context()
        self._backends = {
            "https": CheckedBackend(policy, resolver),
            "http": CheckedBackend(_LoopbackOnly(policy), resolver),
        }
        # Least recently used first.
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    async def close(self) -> None:
        """Closes the connections. No request may be under way."""
        while self._origins:
            _, origin = self._origins.popitem()
            await origin.pool.aclose()

    async def request(
        self,
        method: str,
        url: str | Destination,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_seconds: float,
    ) -> Answer:
        """Sends one request and returns its answer, whatever its status; a redirect is an answer like any other.

        Args:
            method: In upper case.
            url: Where to.
            headers: Without `Host` and what describes the transfer, which are set here.
            body: Sent when it is not empty, and for a POST in any case.
            timeout_seconds: For everything, from the look-up of the name to the last byte; time in which this process
                was stopped after it had sent the request does not count.

        Raises:
            EgressFailed: There is no answer.
        """
        try:
            to = parse_destination(url) if isinstance(url, str) else url
        except ValueError as error:
            raise EgressFailed(Failure.REFUSED, f"the address cannot be used: {error}", was_sent=False) from error
        deadline = RequestDeadline(timeout_seconds)
        sent = _Sent(deadline)
        try:
            request = _request_of(method, to, headers or {}, body, timeout_seconds, sent)
            async with deadline:
                return await self._send(to, request)
        except TargetRefused as error:
            raise EgressFailed(Failure.REFUSED, str(error), was_sent=False) from error
        except (httpcore.TimeoutException, TimeoutError) as error:
            kind = Failure.TIMED_OUT if sent.is_sent else Failure.UNREACHABLE
            raise EgressFailed(
                kind, f"{to.host} did not answer within {timeout_seconds:g} s", was_sent=sent.is_sent
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
            if sent.is_sent:
                raise EgressFailed(Failure.BROKEN, f"the connection to {to.host} broke", was_sent=True) from error
            raise EgressFailed(Failure.UNREACHABLE, f"{to.host} could not be reached", was_sent=False) from error

    async def _send(self, to: Destination, request: httpcore.Request) -> Answer:
        origin = self._origin_of(to)
        origin.load += 1
        try:
            async with origin.slots:
                return await self._answer_of(to, await origin.pool.handle_async_request(request))
        finally:
            origin.load -= 1
            await self._forget_idle_origins()

    async def _answer_of(self, to: Destination, response: httpcore.Response) -> Answer:
        try:
            headers: dict[str, str] = {}
            for name, value in response.headers:
                headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
            pieces: list[bytes] = []
            size = 0
            async for piece in response.aiter_stream():
                size += len(piece)
                if size > self._max_body_bytes:
                    raise EgressFailed(
                        Failure.TOO_LARGE,
                        f"{to.host} answered with more than {self._max_body_bytes:,} bytes",
                        was_sent=True,
                        status=response.status,
                    )
                pieces.append(piece)
        finally:
            await response.aclose()
        return Answer(response.status, headers, b"".join(pieces))

    def _origin_of(self, to: Destination) -> _Origin:
        origin = self._origins.get(to.origin)
        if origin is None:
            origin = self._origins[to.origin] = _Origin(_pool(self._backends[to.scheme], self._ssl_context))
        self._origins.move_to_end(to.origin)
        return origin

    async def _forget_idle_origins(self) -> None:
        """Closes the pools that were not used for longest, so that a thousand servers seen once are not kept."""
        surplus = len(self._origins) - _MAX_IDLE_ORIGINS
        if surplus > 0:
            idle = [name for name, origin in self._origins.items() if not origin.load]
            # Out of the table first: from here on nobody can begin a request on one that is being closed.
            for origin in [self._origins.pop(name) for name in idle[:surplus]]:
                await origin.pool.aclose()


@dataclass(slots=True, eq=False)
class _Origin:
    """The connections to one server, and how many requests may be under way there."""

    pool: httpcore.AsyncConnectionPool
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONNECTIONS))
    load: int = 0


class _LoopbackOnly(TargetPolicy):
    """Of what another policy allows, this machine's own addresses: what plain http is for."""

    def __init__(self, policy: TargetPolicy) -> None:
        super().__init__()
        self._policy = policy

    def check(self, host: str, addresses: Iterable[str]) -> list[str]:
        """Returns the addresses, all of which are this machine's.

        Raises:
            TargetRefused: One is not, or the operator does not allow it.
        """
        checked = self._policy.check(host, addresses)
        if not all(ipaddress.ip_address(text).is_loopback for text in checked):
            raise TargetRefused(f"{host} is not on this machine, and plain http is spoken to nobody else")
        return checked


class _Sent:
    """Notes the moment from which the other side may have something of a request."""

    def __init__(self, deadline: RequestDeadline) -> None:
        self.is_sent = False
        self._deadline = deadline

    async def trace(self, event: str, _info: Mapping[str, Any]) -> None:
        """Is called by `httpcore` for each thing it does."""
        if event.endswith("send_request_headers.started"):
            self.is_sent = True
            self._deadline.sent()


def _request_of(
    method: str, to: Destination, headers: Mapping[str, str], body: bytes, timeout_seconds: float, sent: _Sent
) -> httpcore.Request:
    fields = {"user-agent": "holdfast"}
    fields |= {name.lower(): value for name, value in headers.items() if name.lower() not in _OWN_HEADERS}
    # Nothing that expands is asked for: the limit is one of the bytes that arrive.
    fields |= {"host": to.authority, "accept-encoding": "identity"}
    if body or method in ("POST", "PUT", "PATCH"):
        fields["content-length"] = str(len(body))
    try:
        pairs = [(name.encode("ascii"), value.encode("ascii")) for name, value in fields.items()]
        if any(byte < 0x20 and byte != 0x09 for _, value in pairs for byte in value):
            raise ValueError
    except ValueError:
        # Without the cause: it would show the value.
        raise EgressFailed(Failure.REFUSED, "a header of the request cannot be sent", was_sent=False) from None
    return httpcore.Request(
        method,
        to.url,
        headers=pairs,
        content=body or None,
        extensions={
            "timeout": {
                "connect": min(CONNECT_SECONDS, timeout_seconds),
                # The deadline around the request ends these.
                "read": None,
                "write": None,
                "pool": None,
            },
            "trace": sent.trace,
        },
    )


def _pool(backend: CheckedBackend, ssl_context: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=ssl_context,
        max_connections=_MAX_CONNECTIONS,
        # All of them: httpcore counts busy ones too, and would close each connection as soon as it is free.
        max_keepalive_connections=_MAX_CONNECTIONS,
        # A connection that has idled longer may be half closed, and a request lost on it leaves doubt.
        keepalive_expiry=_IDLE_SECONDS,
        # Whoever asked decides what is repeated.
        retries=0,
        network_backend=backend,
    )


# Shared, as reading the authorities takes a while: nobody changes it.
@cache
def _ssl_context() -> ssl.SSLContext:
    # certifi's authorities, as small images have none of their own, and the system's, where an operator adds one.
    context = httpcore.default_ssl_context()
    context.load_default_certs()
    return context
