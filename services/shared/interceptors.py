"""The ordered chain around every RPC: errors, request log, metrics, deadline, message size, authentication.

`build_interceptors` is the one place where the order is written. A method that is not in the access table is denied.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import perf_counter
from typing import Any, Final

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from prometheus_client import CollectorRegistry, Counter, Histogram

from holdfast.errors import (
    DeadlineExceeded,
    HoldfastError,
    InvalidArgument,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from services.shared.access import INFRASTRUCTURE_ACCESS, NOBODY, Access
from services.shared.auth_failures import FailureLimiter
from services.shared.clock import Clock, SystemClock
from services.shared.error_guard import ErrorGuard, close_at_end, stream_end
from services.shared.handlers import HandlerWrapper, behaviour_of, handler_like
from services.shared.identity import ANONYMOUS, Authenticator, Identity, caller, caller_peer
from services.shared.key_form import MAX_CREDENTIAL_CHARACTERS, id_of_key
from services.shared.peers import is_within
from services.shared.rpc_errors import Context, abort, is_our_own_fault, public_error
from services.shared.settings import CommonSettings
from services.shared.stream_access import StreamEnd, rechecked
from services.shared.telemetry import Telemetry, get_logger
from services.shared.tls import certified_service

AUTHORIZATION: Final = "authorization"
WORKSPACE_KEY: Final = "holdfast-workspace-id"
"""Metadata in which a service says for which workspace it calls; taken from services only."""

log = get_logger(__name__)


class Call:
    """What the layers know of one RPC."""

    __slots__ = ("access", "context", "credential", "end", "error", "identity", "method")

    def __init__(self, method: str, access: Access, context: Context) -> None:
        self.method = method
        self.access = access
        self.context = context
        self.identity: Identity = ANONYMOUS
        self.credential: str | None = None
        """The key or token that was shown, for streams that outlive a look at it."""
        self.end: StreamEnd | None = None
        self.error: HoldfastError | None = None


class _Malformed:
    """Stands in for a unary request that could not be taken: a deserializer that raises would bypass every layer."""

    __slots__ = ("error",)

    def __init__(self, error: InvalidArgument) -> None:
        self.error = error


def _checked_deserializer(
    deserialize: Callable[[bytes], Any] | None, max_message_bytes: int, *, streaming: bool
) -> Callable[[bytes], Any]:
    def refuse(error: InvalidArgument) -> Any:
        # In a stream the deserializer runs inside the handler's `async for`, where the layers see what it raises.
        if streaming:
            raise error
        return _Malformed(error)

    def checked(serialized: bytes) -> Any:
        if len(serialized) > max_message_bytes:
            return refuse(
                InvalidArgument(
                    f"the message has {len(serialized)} bytes; the limit is {max_message_bytes}",
                    reason=Reason.MESSAGE_TOO_LARGE,
                    metadata={"limit_bytes": str(max_message_bytes), "message_bytes": str(len(serialized))},
                )
            )
        if deserialize is None:
            return serialized
        try:
            return deserialize(serialized)
        except Exception as error:
            refusal = InvalidArgument(
                "the request is not a valid message of this method", reason=Reason.MALFORMED_REQUEST
            )
            refusal.__cause__ = error
            return refuse(refusal)

    return checked


class RpcMetrics:
    """Counts and times of served RPCs, under the names that gRPC's dashboards expect."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_service", "grpc_method")
        self.handled = Counter(
            "grpc_server_handled_total", "RPCs completed on the server.", (*labels, "grpc_code"), registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from the arrival of an RPC to its end.",
            labels,
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Adds one RPC. Only methods of the server arrive here, so the number of label values is bounded."""
        service, _, name = method[1:].partition("/")
        self.handled.labels(service, name, code).inc()
        self.handling.labels(service, name).observe(seconds)


class ServerChain(HandlerWrapper):
    """Wraps each handler of the server in the layers that `_served` lists in order."""

    def __init__(
        self,
        *,
        access: Mapping[str, Access],
        service_token: str,
        authenticator: Authenticator | None,
        metrics: RpcMetrics,
        max_message_bytes: int,
        default_deadline_seconds: float,
        auth_failures_per_minute: int = 0,
        trust_domain: str = "",
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self._clock: Clock = SystemClock() if clock is None else clock
        self._failures = FailureLimiter(auth_failures_per_minute, self._clock)
        self._access = {**INFRASTRUCTURE_ACCESS, **access}
        self._service_token = service_token.encode()
        self._trust_domain = trust_domain
        self._authenticator = authenticator
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes
        self._default_deadline_seconds = default_deadline_seconds

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        access = self._access.get(method, NOBODY)
        behaviour = behaviour_of(handler)

        async def unary(request: Any, context: Context) -> Any:
            async with self._served(Call(method, access, context), is_unary=not handler.request_streaming):
                if isinstance(request, _Malformed):
                    raise request.error
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._served(Call(method, access, context), is_unary=False):
                if isinstance(request, _Malformed):
                    raise request.error
                responses = behaviour(request, context)
                try:
                    async for response in responses:
                        yield response
                finally:
                    await responses.aclose()

        def opened_stream(request: Any, context: Context) -> AsyncIterator[Any]:
            generator = stream(request, context)
            close_at_end(generator)
            return generator

        deserializer = _checked_deserializer(
            handler.request_deserializer, self._max_message_bytes, streaming=handler.request_streaming
        )
        return handler_like(handler, opened_stream if handler.response_streaming else unary, deserializer)

    @asynccontextmanager
    async def _served(self, call: Call, *, is_unary: bool) -> AsyncIterator[None]:
        # Order matters: each line sees what the lines below it raise.
        async with (
            self._translated_errors(call),  # every error leaves as a status with details, inside the RPC's span
            self._observed(call),  # one log line and one measurement per RPC, with the code that leaves
            self._bounded(call, is_unary),  # no unary call without an end, authentication included
            self._authenticated(call, is_unary),  # nothing of the handler runs before the caller is known and allowed
        ):
            yield

    @asynccontextmanager
    async def _translated_errors(self, call: Call) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(call.context, call.error or public_error(error, call.method))

    @asynccontextmanager
    async def _observed(self, call: Call) -> AsyncIterator[None]:
        started = perf_counter()
        code = grpc.StatusCode.OK
        reason: str | None = None
        try:
            yield
        except grpc.aio.AbortError:
            code = grpc.StatusCode.UNKNOWN
            raise
        except Exception as error:
            call.error = public_error(error, call.method)
            code, reason = call.error.code, call.error.reason
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            if call.end is not None and call.end.error is not None:
                code, reason = call.end.error.code, call.end.error.reason
            raise
        finally:
            seconds = perf_counter() - started
            self._metrics.observe(call.method, code.name, seconds)
            level = _log_level(call, code)
            if log.is_enabled_for(level):
                fields: dict[str, Any] = {
                    "method": call.method[1:],
                    "code": code.name,
                    "duration_ms": round(seconds * 1000, 2),
                    "caller": call.identity.name,
                }
                if call.identity.workspace_id is not None:
                    fields["workspace_id"] = call.identity.workspace_id
                if reason is not None:
                    fields["reason"] = reason
                log.log(level, "rpc", **fields)

    @asynccontextmanager
    async def _bounded(self, call: Call, is_unary: bool) -> AsyncIterator[None]:
        # grpc itself cancels a call whose client gave a deadline.
        if not is_unary or call.access.long_poll or call.context.time_remaining() is not None:
            yield
            return
        seconds = self._default_deadline_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"the call did not end within the server's default deadline of {seconds:g} s"
            ) from error

    @asynccontextmanager
    async def _authenticated(self, call: Call, is_unary: bool) -> AsyncIterator[None]:
        if not call.access.public:
            call.identity = await self._authenticate(call)
        # Never reset: each RPC has a task, and so a context, of its own.
        caller.set(call.identity)
        call.end = stream_end()
        if is_unary or call.credential is None or call.end is None:
            yield
            return
        credential = call.credential

        async def verify() -> datetime | None:
            return (await self._verified(call, credential)).expire_time

        async with rechecked(call.end, verify, call.identity.expire_time, self._clock):
            yield

    async def _authenticate(self, call: Call) -> Identity:
        access = call.access
        if access == NOBODY or not (access.services or access.scope):
            raise PermissionDenied("this method may not be called", reason=Reason.METHOD_NOT_ALLOWED)
        credential, workspace_id = "", None
        for key, value in call.context.invocation_metadata() or ():
            if key == AUTHORIZATION and isinstance(value, str):
                credential = value
            elif key == WORKSPACE_KEY and isinstance(value, str):
                workspace_id = value
        scheme, _, secret = credential.partition(" ")
        secret = secret.strip()
        match scheme.lower():
            case "service" if secret:
                return self._service_identity(call, secret, workspace_id)
            case "bearer" if secret:
                return await self._bearer_identity(call, secret)
        if access.scope is None:
            raise Unauthenticated("this method takes calls of services only", reason=Reason.SERVICE_TOKEN_INVALID)
        raise Unauthenticated(
            "no API key: send it as the metadata `authorization: Bearer <key>`", reason=Reason.API_KEY_MISSING
        )

    def _service_identity(self, call: Call, secret: str, workspace_id: str | None) -> Identity:
        name, _, token = secret.partition(":")
        refusal = None
        if self._trust_domain:
            # With TLS the certificate alone proves who calls; a token, which could be carried off, proves nothing.
            if certified_service(call.context.auth_context(), self._trust_domain) != name:
                refusal = Unauthenticated(
                    "the connection has no certificate of this service", reason=Reason.SERVICE_CERTIFICATE_INVALID
                )
        elif not hmac.compare_digest(token.encode(), self._service_token):
            refusal = Unauthenticated("the service token is not valid", reason=Reason.SERVICE_TOKEN_INVALID)
        if refusal is not None:
            peer = call.context.peer()
            self._failures.check(peer, None, b"")
            self._failures.failed(peer)
            raise refusal
        if name not in call.access.services:
            raise PermissionDenied("this service may not call this method", reason=Reason.METHOD_NOT_ALLOWED)
        return Identity("service", workspace_id=workspace_id, service=name)

    async def _bearer_identity(self, call: Call, credential: str) -> Identity:
        caller_peer.set(call.context.peer())
        if call.access.scope is None or self._authenticator is None:
            raise PermissionDenied("this method takes calls of services only", reason=Reason.METHOD_NOT_ALLOWED)
        if len(credential) > MAX_CREDENTIAL_CHARACTERS:
            raise _invalid_key()
        digest = hashlib.sha256(credential.encode()).digest()
        if self._failures.is_counting:
            self._failures.check(call.context.peer(), id_of_key(credential), digest)
        try:
            identity = await self._verified(call, credential)
        except Unauthenticated as error:
            if not is_our_own_fault(error):
                self._failures.failed(call.context.peer(), id_of_key(credential))
            raise
        self._failures.succeeded(digest)
        call.credential = credential
        return identity

    async def _verified(self, call: Call, credential: str) -> Identity:
        assert self._authenticator is not None and call.access.scope is not None
        try:
            identity = await self._authenticator.verify(credential)
        except Unauthenticated as error:
            if is_our_own_fault(error):
                raise
            # One public text each: nobody learns that a key once existed, or whose it was.
            if error.reason in _PUBLIC_REFUSALS:
                raise Unauthenticated(_PUBLIC_REFUSALS[error.reason], reason=error.reason) from error
            raise _invalid_key() from error
        call.identity = identity
        if identity.networks and not is_within(call.context.peer(), identity.networks):
            raise PermissionDenied("the API key may not be used from this address", reason=Reason.ADDRESS_NOT_ALLOWED)
        if not identity.has_scope(call.access.scope):
            raise PermissionDenied(
                f"the {'API key' if identity.kind == 'api_key' else 'caller'} lacks the scope {call.access.scope}",
                reason=Reason.SCOPE_MISSING,
                metadata={"scope": call.access.scope},
            )
        return identity


_PUBLIC_REFUSALS: Final[Mapping[str, str]] = {
    Reason.API_KEY_EXPIRED: "the API key has expired",
    Reason.TOKEN_EXPIRED: "the token has expired",
    Reason.TOKEN_INVALID: "the token is not valid",
}


def _invalid_key() -> Unauthenticated:
    return Unauthenticated("the API key is not valid", reason=Reason.API_KEY_INVALID)


def _log_level(call: Call, code: grpc.StatusCode) -> int:
    # Probes and the services' own traffic would drown what a person looks for.
    if call.access.public or (call.identity.kind == "service" and code is grpc.StatusCode.OK):
        return logging.DEBUG
    return logging.INFO


def build_interceptors(
    settings: CommonSettings,
    telemetry: Telemetry,
    *,
    access: Mapping[str, Access],
    authenticator: Authenticator | None,
    clock: Clock | None = None,
) -> Sequence[grpc.aio.ServerInterceptor]:
    """Returns the server's interceptors, outermost first; this is the only list."""
    table = {**INFRASTRUCTURE_ACCESS, **access}

    def is_traced(details: grpc.HandlerCallDetails) -> bool:
        return table.get(details.method, NOBODY).traced

    tracing: grpc.aio.ServerInterceptor = aio_server_interceptor(  # type: ignore[no-untyped-call]
        telemetry.tracer_provider, filter_=is_traced
    )

    return (
        ErrorGuard(),  # 1. outermost: no exception's text reaches a caller, even if a layer below is at fault
        tracing,  # 2. the span around all that follows
        ServerChain(  # 3. the layers that may refuse, in the order of `_served`
            access=access,
            service_token=settings.service_token,
            authenticator=authenticator,
            metrics=RpcMetrics(telemetry.registry),
            max_message_bytes=settings.max_message_bytes,
            default_deadline_seconds=settings.default_deadline_seconds,
            auth_failures_per_minute=settings.auth_failures_per_minute,
            trust_domain=settings.tls_trust_domain,
            clock=clock,
        ),
    )
