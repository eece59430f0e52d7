"""Tools that are HTTP endpoints: one attempt, one answer, and an honest word on what a failed one may have done."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from email.message import Message as HeaderParser
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

import httpcore

from holdfast.api.common.v1 import agent_pb2, content_pb2
from holdfast.errors import Reason
from services.executor.credentials import CREDENTIAL_REJECTED, ResolvedCredential
from services.executor.tools.output import RESULT_LIMIT_BYTES, shorten
from services.executor.tools.pools import ConnectionPools
from services.executor.tools.schema import ArgumentsRefused, canonical_json, parse_json
from services.executor.tools.url_template import UrlTemplate, query_value
from services.shared.auth_failure_signals import is_refusal
from services.shared.clock import Clock, SystemClock
from services.shared.egress.addresses import Resolver, TargetRefused, resolve
from services.shared.egress.rules import allows_any

DEFAULT_METHOD: Final = "POST"
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
DEFAULT_TIMEOUT_SECONDS: Final = 60.0

TARGET_REFUSED: Final = "TOOL_TARGET_REFUSED"
UNREACHABLE: Final = "TOOL_UNREACHABLE"
TIMED_OUT: Final = "CALL_TIMEOUT"
CONNECTION_BROKEN: Final = "TOOL_CONNECTION_BROKEN"
RATE_LIMITED: Final = "TOOL_RATE_LIMITED"
ANSWERED_ERROR: Final = "TOOL_ANSWERED_ERROR"
REDIRECTED: Final = "TOOL_REDIRECTED"
RESULT_TOO_LARGE: Final = "RESULT_TOO_LARGE"
INVALID_RESULT: Final = "INVALID_RESULT"

_CONNECT_SECONDS: Final = 10.0
_POOL_SECONDS: Final = 10.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 24 * 3600.0
_SHOWN_BODY_BYTES: Final = 1_024
_NO_BODY: Final = ("GET", "DELETE")

_SCOPE_OF_CHALLENGE: Final = re.compile(r'scope="([^"\\]*)"')

_REPEATABLE: Final = (agent_pb2.EFFECT_CLASS_READ_ONLY, agent_pb2.EFFECT_CLASS_IDEMPOTENT)


class ToolFailed(Exception):
    """An attempt brought no result."""

    def __init__(self, failure: content_pb2.Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure


class CredentialRejected(ToolFailed):
    """The other side did not accept the credential, and so did nothing.

    Attributes:
        missing_scopes: What it wants beyond what the credential has (RFC 6750 §3.1); None when it was not about that.
    """

    def __init__(self, failure: content_pb2.Failure, missing_scopes: tuple[str, ...] | None) -> None:
        super().__init__(failure)
        self.missing_scopes = missing_scopes


class HttpTools:
    """Calls endpoints over pools of connections. No redirect is followed, no proxy or cookie is used.

    Args:
        allow: Networks, addresses and host names that may be called beyond the public internet.
        resolver: Where addresses of hosts come from.
        clock: Time against which a `Retry-After` date is measured.
    """

    def __init__(self, allow: Iterable[str] = (), *, resolver: Resolver = resolve, clock: Clock | None = None) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._pools = ConnectionPools(allow, resolver=resolver)

    async def close(self) -> None:
        """Closes the connections. No call may be under way."""
        await self._pools.close()

    async def call(
        self,
        tool: agent_pb2.ToolSpec,
        arguments: Mapping[str, Any],
        idempotency_key: str,
        headers: Mapping[str, str] | None = None,
        credential: ResolvedCredential | None = None,
    ) -> str:
        """Makes one attempt within the tool's timeout and returns the result as JSON text.

        Args:
            tool: A tool of kind `http`.
            arguments: Fitting its schema.
            idempotency_key: Sent as `Idempotency-Key`.
            headers: Further headers, such as `traceparent`.
            credential: Put into the request, if the request goes where it may be sent.

        Raises:
            CredentialRejected: The other side did not accept the credential.
            ToolFailed: There is no result. The failure's class says UNKNOWN_OUTCOME only where the request may have
                been taken and the tool does not bear to be called twice.
        """
        attempt = _Attempt(tool)
        try:
            request = _request_of(tool, arguments, idempotency_key, headers or {})
        except ArgumentsRefused as refused:
            raise ToolFailed(refused.failure) from refused
        if credential is not None:
            attempt.credential = credential
            request = _with_credential(attempt, request, credential)
        seconds = tool.timeout.ToTimedelta().total_seconds() if tool.HasField("timeout") else DEFAULT_TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                return await self._send(attempt, request, seconds)
        except TargetRefused as error:
            raise attempt.failed(TARGET_REFUSED, f"{tool.name} was not called: {error}.") from error
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise attempt.uncertain(TIMED_OUT, f"{tool.name} did not answer within {seconds:g} s.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            if attempt.is_sent:
                raise attempt.uncertain(CONNECTION_BROKEN, f"The connection to {tool.name} broke.") from error
            raise attempt.uncertain(UNREACHABLE, f"{tool.name} could not be reached: {_text_of(error)}.") from error

    async def _send(self, attempt: _Attempt, request: httpcore.Request, seconds: float) -> str:
        request.extensions = {
            "timeout": {
                "connect": min(_CONNECT_SECONDS, seconds),
                "read": seconds,
                "write": seconds,
                "pool": min(_POOL_SECONDS, seconds),
            },
            "trace": attempt.trace,
        }
        async with self._pools.sending(request) as response:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            body = await _body_of(response, headers)
        return self._result_of(attempt, response.status, headers, body)

    def _result_of(self, attempt: _Attempt, status: int, headers: Mapping[str, str], body: bytes | None) -> str:
        name = attempt.tool.name
        credential = attempt.credential
        if credential is not None and is_refusal(credential.signals, status, headers, body):
            raise _rejected(attempt, f"{name} answered {status}{_said(headers, body)}", None)
        if 200 <= status < 300:
            if body is None:
                raise attempt.failed(
                    RESULT_TOO_LARGE,
                    f"{name} answered {status}, but with more than {RESULT_LIMIT_BYTES:,} bytes, which were not read. "
                    "It may have taken effect.",
                )
            return _result_json(attempt, status, headers, body)
        said = _said(headers, body)
        if 300 <= status < 400:
            raise attempt.failed(
                REDIRECTED,
                f"{name} answered {status}, a redirect, which is not followed: the tool's address must be the final "
                "one.",
            )
        message = f"{name} answered {status}{said}"
        if credential is not None and (missing := _missing_scopes(status, headers)) is not None:
            raise _rejected(attempt, message, missing)
        delay_millis = self._retry_after_millis(headers.get("retry-after", ""))
        if status == 429 or (status == 503 and delay_millis is not None):
            raise attempt.rate_limited(message, delay_millis or 0)
        if status >= 500 or status in (408, 425):
            raise attempt.uncertain(ANSWERED_ERROR, message, delay_millis or 0)
        raise attempt.failed(ANSWERED_ERROR, message)

    def _retry_after_millis(self, value: str) -> int | None:
        """Returns what the other side asked for, or None when it did not, or not in a form that has a meaning."""
        try:
            seconds = float(value)
        except ValueError:
            try:
                date = parsedate_to_datetime(value)
            except ValueError:
                return None
            date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
            seconds = (date - self._clock.now()).total_seconds()
        if not math.isfinite(seconds):
            return None
        return math.ceil(min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS) * 1000)


class _Attempt:
    """What is known of one attempt, and so of what it may have done."""

    def __init__(self, tool: agent_pb2.ToolSpec) -> None:
        self.tool = tool
        self.is_sent = False
        self.credential: ResolvedCredential | None = None

    async def trace(self, event: str, _info: Mapping[str, Any]) -> None:
        """Notes the moment from which the other side may have the request."""
        if event.endswith("send_request_headers.started"):
            self.is_sent = True

    def failed(self, reason: str, message: str) -> ToolFailed:
        """The attempt is over, and another one would end the same."""
        return ToolFailed(
            content_pb2.Failure(reason=reason, message=message, failure_class=content_pb2.FAILURE_CLASS_PERMANENT)
        )

    def rate_limited(self, message: str, delay_millis: int) -> ToolFailed:
        """The other side did not take the request."""
        return ToolFailed(
            content_pb2.Failure(
                reason=RATE_LIMITED,
                message=message,
                failure_class=content_pb2.FAILURE_CLASS_RATE_LIMITED,
                retry_after_millis=delay_millis,
            )
        )

    def uncertain(self, reason: str, message: str, delay_millis: int = 0) -> ToolFailed:
        """Nobody here knows whether the request was carried out, unless it was never sent."""
        may_repeat = not self.is_sent or self.tool.effect in _REPEATABLE
        return ToolFailed(
            content_pb2.Failure(
                reason=reason,
                message=message,
                failure_class=content_pb2.FAILURE_CLASS_RETRYABLE
                if may_repeat
                else content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME,
                retry_after_millis=delay_millis,
            )
        )


# ------------------------------------------------------------------------------------------------------- the request


def _request_of(
    tool: agent_pb2.ToolSpec, arguments: Mapping[str, Any], idempotency_key: str, extra: Mapping[str, str]
) -> httpcore.Request:
    spec = tool.http
    method = spec.method or DEFAULT_METHOD
    try:
        template = UrlTemplate.parse(spec.url)
    except ValueError as error:
        raise ArgumentsRefused(f"The address of {tool.name} cannot be used: {error}.") from error
    url = template.expand(arguments)
    rest = {name: value for name, value in arguments.items() if name not in template.names}
    in_query = rest if method in _NO_BODY else {name: rest.pop(name) for name in spec.query if name in rest}
    query = "&".join(_query_pairs(in_query))
    if query:
        url += ("&" if "?" in url else "?") + query
    body = canonical_json(rest).encode() if method not in _NO_BODY else b""
    # Order matters: an agent's headers replace the first two, never those that follow.
    headers = {
        "accept": "application/json, text/*;q=0.9, */*;q=0.5",
        "user-agent": "holdfast",
        **{name.lower(): value for name, value in {**spec.headers, **extra}.items()},
        # Nothing that expands to gigabytes is asked for.
        "accept-encoding": "identity",
        "idempotency-key": idempotency_key,
        "host": template.origin.partition("://")[2],
    }
    if body:
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
    pairs = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return httpcore.Request(method, url, headers=pairs, content=body or None)


def _with_credential(attempt: _Attempt, request: httpcore.Request, credential: ResolvedCredential) -> httpcore.Request:
    url = bytes(request.url).decode("ascii")
    method = request.method.decode("ascii")
    # The last word on where a secret goes, whatever was said when it was asked for.
    if not allows_any(credential.allowed, url, method):
        raise attempt.failed(
            Reason.HOST_NOT_ALLOWED,
            f"{attempt.tool.name} was not called: its credential may not be sent to this address.",
        )
    injected = {item.name.lower().encode("ascii"): item.value.encode("ascii") for item in credential.headers}
    headers = [(name, value) for name, value in request.headers if name.lower() not in injected]
    if credential.query:
        pairs = "&".join(f"{quote(item.name, safe='')}={quote(item.value, safe='')}" for item in credential.query)
        url += ("&" if "?" in url else "?") + pairs
    return httpcore.Request(method, url, headers=[*headers, *injected.items()], content=request.stream)


def _rejected(attempt: _Attempt, message: str, missing_scopes: tuple[str, ...] | None) -> CredentialRejected:
    failure = attempt.failed(CREDENTIAL_REJECTED, message).failure
    failure.failure_class = content_pb2.FAILURE_CLASS_AUTH
    return CredentialRejected(failure, missing_scopes)


def _missing_scopes(status: int, headers: Mapping[str, str]) -> tuple[str, ...] | None:
    """Returns the permissions that the other side names as missing; None when it is not about them."""
    challenge = headers.get("www-authenticate", "")
    if status != 403 or "insufficient_scope" not in challenge:
        return None
    found = _SCOPE_OF_CHALLENGE.search(challenge)
    return (tuple(found[1].split()) or None) if found is not None else None


def _query_pairs(values: Mapping[str, Any]) -> list[str]:
    pairs: list[str] = []
    for name, value in values.items():
        # Left out, not `null`: a query has no null.
        items: Sequence[Any] = value if isinstance(value, list) else [] if value is None else [value]
        pairs.extend(f"{quote(name, safe='')}={quote(query_value(item), safe='')}" for item in items)
    return pairs


# -------------------------------------------------------------------------------------------------------- the answer


async def _body_of(response: httpcore.Response, headers: Mapping[str, str]) -> bytes | None:
    """Returns the body, or None when it is longer than the limit."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_stream():
        size += len(piece)
        if size > RESULT_LIMIT_BYTES:
            return None
        pieces.append(piece)
    body = b"".join(pieces)
    # Some servers compress whatever they are asked for.
    if headers.get("content-encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
        try:
            expander = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            body = expander.decompress(body, RESULT_LIMIT_BYTES + 1)
        except zlib.error as error:
            raise httpcore.RemoteProtocolError("the body is not what its Content-Encoding says") from error
        if len(body) > RESULT_LIMIT_BYTES:
            return None
    return body


def _result_json(attempt: _Attempt, status: int, headers: Mapping[str, str], body: bytes) -> str:
    if not body:
        return "null"
    media_type, charset = _content_type(headers)
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            text = body.decode("utf-8-sig")
            parse_json(text)
        except ValueError as error:
            raise attempt.failed(
                INVALID_RESULT,
                f"{attempt.tool.name} answered {status} with {media_type} that is not valid JSON. It may have taken "
                "effect.",
            ) from error
        return text
    if media_type.startswith("text/") or media_type in ("", "application/xml", "application/x-www-form-urlencoded"):
        return json.dumps(_decoded(body, charset), ensure_ascii=False)
    return canonical_json({"media_type": media_type, "base64": base64.b64encode(body).decode()})


def _said(headers: Mapping[str, str], body: bytes | None) -> str:
    if body is None:
        return " with a body that is too large to be shown"
    media_type, charset = _content_type(headers)
    is_readable = media_type.startswith("text/") or "json" in media_type or "xml" in media_type or not media_type
    if not body or not is_readable:
        return "."
    return f": {shorten(_decoded(body, charset).strip(), _SHOWN_BODY_BYTES)}"


def _content_type(headers: Mapping[str, str]) -> tuple[str, str]:
    value = headers.get("content-type", "")
    if not value:
        return "", "utf-8"
    parser = HeaderParser()
    parser["content-type"] = value
    return parser.get_content_type(), str(parser.get_param("charset") or "utf-8")


def _decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset, "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


def _text_of(error: BaseException) -> str:
    while error.__cause__ is not None and not str(error):
        error = error.__cause__
    return str(error).rstrip(".") or type(error).__name__
