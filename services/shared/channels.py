"""Outgoing calls between services: identity, deadline, retries of UNAVAILABLE only, keep-alive and trace context."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import grpc
import grpc.aio
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from holdfast.cancellation import cancellations, raise_if_cancelled
from holdfast.errors import from_rpc_error
from services.shared.clock import Clock
from services.shared.interceptors import AUTHORIZATION
from services.shared.settings import CommonSettings, SettingsError, is_loopback
from services.shared.telemetry import Telemetry, get_logger
from services.shared.tls import ShownCertificate, TlsError, TlsFiles

DEFAULT_DEADLINE_SECONDS: Final = 10.0
"""Deadline of a unary call whose caller gives none."""

SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                # Every method: each mutating call may be repeated (request_id, sequence numbers), and no other status
                # says that the same call may succeed.
                "name": [{}],
                "waitForReady": False,
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
            {
                # Not repeated: whoever asks has an answer of its own meanwhile, and asks again in a moment.
                "name": [{"service": "holdfast.api.auth.v1.DataKeyService", "method": "CheckPayloadSealing"}],
                "waitForReady": False,
            },
            {
                # Not repeated: gRPC sends what was written to such a stream again on the next connection, and may lose
                # what is written meanwhile. Whoever keeps one open opens the next one, and sends again what is open.
                "name": [
                    {"service": "holdfast.api.state.v1.JournalService", "method": "Checkpoint"},
                    {"service": "holdfast.api.state.v1.LeaseService", "method": "Work"},
                ],
                "waitForReady": False,
            },
        ],
        # When most calls fail, retries stop adding to the load.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)

KEEPALIVE_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

log = get_logger(__name__)


class _Peer(Protocol):
    def __call__(self, request: Any = None, **options: Any) -> Any: ...


class ServiceChannel(grpc.aio.Channel):
    """A channel whose every call says which service makes it, in which trace, and until when it is worth answering.

    These are added where a call is made, not by client interceptors: an interceptor costs each call a task, and each
    message of a stream a queue.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str,
        identity: str | None,
        unary_deadline_seconds: float,
        certificate: ShownCertificate | None = None,
        reopen: Callable[[], grpc.aio.Channel] | None = None,
    ) -> None:
        self.address = address
        self._channel = channel
        self._certificate = certificate
        self._reopen = reopen
        self._retired: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._identity = identity
        self._unary_deadline_seconds = unary_deadline_seconds

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Creates a multicallable with the default deadline."""
        return self._prepared(
            lambda channel: channel.unary_unary(method, *args, **kwargs), self._unary_deadline_seconds
        )

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Creates a multicallable with the default deadline."""
        return self._prepared(
            lambda channel: channel.stream_unary(method, *args, **kwargs), self._unary_deadline_seconds
        )

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Creates a multicallable without a deadline; keep-alive notices a dead peer."""
        return self._prepared(lambda channel: channel.unary_stream(method, *args, **kwargs), None)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Creates a multicallable without a deadline; keep-alive notices a dead peer."""
        return self._prepared(lambda channel: channel.stream_stream(method, *args, **kwargs), None)

    def _prepared(self, make: Callable[[grpc.aio.Channel], Any], default_timeout: float | None) -> Callable[..., Any]:
        identity = self._identity
        made_on = self._channel
        inner = make(made_on)

        def call(request: Any = None, *, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
            nonlocal made_on, inner
            if self._certificate is not None:
                self._follow_certificate()
            if made_on is not self._channel:
                made_on = self._channel
                inner = make(made_on)
            pairs: list[tuple[str, str | bytes]] = list(metadata) if metadata is not None else []
            if identity is not None:
                pairs.append((AUTHORIZATION, identity))
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            pairs.extend(carrier.items())
            return cast(_Peer, inner)(
                request, timeout=default_timeout if timeout is None else timeout, metadata=tuple(pairs), **options
            )

        return call

    def _follow_certificate(self) -> None:
        """Opens another connection when there is another certificate. Calls in flight stay on the old one, streams
        until the change after this one."""
        if self._certificate is None or self._reopen is None or not self._certificate.changed():
            return
        if self._retired is not None:
            task = asyncio.create_task(self._retired.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._retired, self._channel = self._channel, self._reopen()

    async def close(self, grace: float | None = None) -> None:
        """Closes the connection; calls in flight are cancelled after `grace` seconds."""
        await asyncio.gather(*self._closing)
        if self._retired is not None:
            await self._retired.close(grace)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the connectivity."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the connectivity is no longer `last_observed_state`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the channel is connected."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


def open_channel(
    address: str,
    *,
    service: str,
    settings: CommonSettings,
    telemetry: Telemetry | None = None,
    untraced: frozenset[str] = frozenset(),
    unary_deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    peer: str = "",
    clock: Clock | None = None,
) -> ServiceChannel:
    """Opens a channel to another service of the suite. It connects by itself, again and again.

    Args:
        address: The peer, as host:port.
        service: Name of the calling service, which the peer's access table knows.
        settings: The calling service's settings.
        telemetry: Where client spans go; none are made without it, or when it exports none.
        untraced: Full names of methods without client spans: streams that live long.
        unary_deadline_seconds: Deadline of unary calls that give none.
        peer: With TLS, the service that the peer's certificate must be good for, whatever its address; the host of the
            address when it is not given.
        clock: When to look for another certificate.

    Raises:
        SettingsError: The address is beyond this machine and plain text is not allowed, or the certificate is not
            usable.
    """
    files = TlsFiles.of(settings)
    if files is None and not is_loopback(address) and not settings.allow_plaintext:
        raise SettingsError(
            [f"{address} is beyond this machine and connections are not encrypted: set HOLDFAST_ALLOW_PLAINTEXT=true"]
        )
    interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
    if telemetry is not None and telemetry.exports_spans:
        interceptors = _tracing_interceptors(telemetry, untraced)
    if files is not None:
        return _open_secure(
            address, service, peer, files, channel_options(settings), interceptors, unary_deadline_seconds, clock
        )
    channel = grpc.aio.insecure_channel(_target(address), options=channel_options(settings), interceptors=interceptors)
    identity = f"Service {service}:{settings.service_token}"
    return ServiceChannel(channel, address=address, identity=identity, unary_deadline_seconds=unary_deadline_seconds)


def _open_secure(
    address: str,
    service: str,
    peer: str,
    files: TlsFiles,
    options: list[tuple[str, Any]],
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    unary_deadline_seconds: float,
    clock: Clock | None,
) -> ServiceChannel:
    try:
        certificate = ShownCertificate(files, clock)
    except TlsError as error:
        raise SettingsError([f"TLS cannot be used: {error}"]) from error
    if peer:
        options.append(("grpc.ssl_target_name_override", peer))
    # The connection of the certificate before is not used again, although it leads to the same place.
    options.append(("grpc.use_local_subchannel_pool", 1))

    def opened() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            _target(address), certificate.material.channel_credentials, options=options, interceptors=interceptors
        )

    return ServiceChannel(
        opened(),
        address=address,
        # Only a name: the certificate proves it.
        identity=f"Service {service}",
        unary_deadline_seconds=unary_deadline_seconds,
        certificate=certificate,
        reopen=opened,
    )


def _target(address: str) -> str:
    """Of several replicas, the first that answers is used, and another one when it is lost."""
    if "," not in address:
        return address
    addresses = address.split(",")
    # Processes that begin with different ones share the load between the replicas.
    random.shuffle(addresses)
    return f"ipv4:{','.join(addresses)}"


def channel_options(settings: CommonSettings) -> list[tuple[str, Any]]:
    """Returns the transport's options for calls between services."""
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Answers may be a little longer than the longest request that made them: envelopes around stored bodies.
        ("grpc.max_receive_message_length", settings.max_message_bytes * 4),
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        # A restarted peer is found again within a second: take-over of runs depends on it.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # The suite's own traffic never goes through a proxy that the environment names for the internet.
        ("grpc.enable_http_proxy", 0),
    ]


@contextmanager
def calling(peer: str) -> Iterator[None]:
    """Turns what a call to `peer` raises into `holdfast.errors`; a peer that is away becomes `<PEER>_UNAVAILABLE`.

    Example:
        with calling("state"):
            run = await stub.GetRun(request)
    """
    before = cancellations()
    try:
        yield
    except grpc.RpcError as error:
        raise_if_cancelled(before)
        raise from_rpc_error(error, peer=peer) from error


async def wait_for_channel_ready(
    channel: grpc.aio.Channel, name: str, stop: asyncio.Event, *, report_every_seconds: float = 5.0
) -> bool:
    """Waits until the peer accepts connections, and says so while it does not: services start in any order.

    Returns:
        True when the channel is connected, False when `stop` was set first.
    """
    address = getattr(channel, "address", "")
    # Two things are awaited at once and the loser is cancelled below; a task group would wait for both.
    ready = asyncio.ensure_future(channel.channel_ready())
    stopped = asyncio.ensure_future(stop.wait())
    waits = 0
    try:
        while True:
            # The first report comes early, so that a person who started one service alone is not left guessing.
            timeout = 1.0 if waits == 0 else report_every_seconds
            done, _ = await asyncio.wait((ready, stopped), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if ready in done:
                ready.result()
                if waits:
                    log.info("connected", peer=name, address=address)
                return True
            if stopped in done:
                return False
            waits += 1
            log.info(f"waiting for {name} at {address}", peer=name, address=address)
    finally:
        for task in (ready, stopped):
            task.cancel()
        await asyncio.gather(ready, stopped, return_exceptions=True)


# ------------------------------------------------------------------------------------------------------ client spans

_client_span: ContextVar[trace.Span | None] = ContextVar("holdfast_client_span", default=None)


def _remember_span(span: trace.Span, _request: Any) -> None:
    _client_span.set(span)


class _CancellableCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """The instrumentation's unary interceptor, for calls that may be cancelled.

    On its own it awaits the status of a call, and leaves both the call running on the server and the span open when
    that is interrupted.
    """

    def __init__(self, inner: grpc.aio.UnaryUnaryClientInterceptor) -> None:
        self._inner = inner

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Delegates; on the way out by an exception it ends the call and the span."""
        started: list[Any] = []

        async def start(details: Any, message: Any) -> Any:
            made = await continuation(details, message)
            started.append(made)
            return made

        _client_span.set(None)
        try:
            return await self._inner.intercept_unary_unary(start, client_call_details, request)
        except BaseException as error:
            for made in started:
                made.cancel()
            span = _client_span.get()
            if span is not None and span.is_recording():
                span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
                span.end()
            raise


def _tracing_interceptors(telemetry: Telemetry, untraced: frozenset[str]) -> list[grpc.aio.ClientInterceptor]:
    def is_traced(details: Any) -> bool:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        return method not in untraced

    # Only unary calls have client spans. A stream's span would stay open for as long as the stream, and the
    # interceptor would stand in the way of each of its messages; the server has the span of a short stream.
    interceptors: list[grpc.aio.ClientInterceptor] = aio_client_interceptors(  # type: ignore[no-untyped-call]
        telemetry.tracer_provider, filter_=is_traced, request_hook=_remember_span
    )
    for interceptor in interceptors:
        if isinstance(interceptor, grpc.aio.UnaryUnaryClientInterceptor):
            return [_CancellableCalls(interceptor)]
    raise RuntimeError("opentelemetry-instrumentation-grpc has no interceptor for unary calls")
