"""Calls to the services: channels, the caller's key, a deadline on every unary call, errors as their own classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import grpc
import grpc.aio

from holdfast.cancellation import cancellations, raise_if_cancelled
from holdfast.errors import (
    HoldfastError,
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from holdfast.settings import ClientSettings, split_addresses

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

Service = Literal["executor", "auth", "trace"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
StubT = TypeVar("StubT")
PageT = TypeVar("PageT", bound="Page")


class Page(Protocol):
    """One page of a list."""

    next_page_token: str


DEFAULT_TIMEOUT_SECONDS: Final = 15.0
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                # Every method: each call that changes something carries a request_id or may be repeated, and no other
                # status says that the same call may succeed.
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
            {
                # Not repeated: gRPC sends what was written to such a stream again on the next connection, and may lose
                # what is written meanwhile. Whoever keeps one open opens the next one, and sends again what is open.
                "name": [
                    {"service": "holdfast.api.executor.v1.RunService", "method": "StartRuns"},
                    {"service": "holdfast.api.executor.v1.ToolWorkerService", "method": "Work"},
                ],
            },
        ],
        # When most calls fail, retries stop adding to the load.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
"""The service config of the SDK: only UNAVAILABLE is retried, and no stream to which both sides write."""


def channel_options() -> list[tuple[str, Any]]:
    """Returns the transport's options."""
    return [
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A restarted service is found again within a second, and a new client does not inherit the pause that another
        # one of this process has come to after refused connections.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


def is_local(address: str) -> bool:
    """Tells whether an address, or each of several, is on this machine."""
    return all(host in ("localhost", "::1") or host.startswith("127.") for _, host, _ in split_addresses(address))


def open_channel(address: str, ca_file: str = "") -> grpc.aio.Channel:
    """Opens a channel: TLS for `https://host:port`, plain text for `host:port` and for several, `ip:port,ip:port`.

    Args:
        address: The service.
        ca_file: Authority of its certificate; the system's when not given.

    Raises:
        InvalidArgument: The authority's file can't be read.
    """
    addresses = split_addresses(address)
    scheme, host, _ = addresses[0]
    targets = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for _, host, port in addresses]
    # Of several, the transport connects to the first that answers, and to another one when that connection is lost.
    target = targets[0] if len(targets) == 1 else f"{'ipv6' if ':' in host else 'ipv4'}:{','.join(targets)}"
    options = channel_options()
    if is_local(address):
        # A proxy that the environment names for the internet has no way to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    if scheme == "https://":
        credentials = grpc.ssl_channel_credentials(read_pem(ca_file) if ca_file else None)
        return grpc.aio.secure_channel(target, credentials, options=options)
    return grpc.aio.insecure_channel(target, options=options)


def read_pem(path: str) -> bytes:
    """Returns what is in a file of certificates or of a key.

    Raises:
        InvalidArgument: It can't be read, or is no PEM.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} can't be read: {error.strerror}", field="ca_file") from error
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"{path} is no file in PEM", field="ca_file")
    return content


def _tls_hint(address: str, details: str) -> str:
    """What the transport's words mean when one side speaks TLS and the other does not, or does not trust it."""
    if address.startswith("https://"):
        if "WRONG_VERSION_NUMBER" in details:
            return "; it does not speak TLS: write its address without https://"
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return "; its certificate is not trusted: name the authority that signed it with HOLDFAST_CA_FILE"
        if "Peer name" in details or "not in peer certificate" in details:
            return "; its certificate is for another host name"
    elif "Socket closed" in details or "Connection reset" in details:
        return f"; it closes the connection, as one does that expects TLS: try https://{address}"
    return ""


class Transport:
    """Channels to the services of one suite, opened when first needed. Belongs to one event loop.

    Args:
        settings: Addresses and key.
        timeout: Deadline of a unary call, in seconds.
    """

    def __init__(self, settings: ClientSettings, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self.settings = settings
        self.timeout = timeout
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[Any, Any] = {}
        self._addresses: Mapping[str, str] = {
            "executor": settings.address,
            "auth": settings.auth_address,
            "trace": settings.trace_address,
        }

    def address(self, service: Service) -> str:
        """Returns where a service is."""
        return self._addresses[service]

    def channel(self, service: Service) -> grpc.aio.Channel:
        """Returns the channel to a service."""
        if service not in self._channels:
            self._channels[service] = open_channel(self._addresses[service], self.settings.ca_file)
        return self._channels[service]

    def stub(self, service: Service, factory: Callable[[grpc.aio.Channel], StubT]) -> StubT:
        """Returns a stub of a service."""
        if factory not in self._stubs:
            self._stubs[factory] = factory(self.channel(service))
        stub: StubT = self._stubs[factory]
        return stub

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what every call carries.

        Raises:
            Unauthenticated: There is no API key, or one that cannot be sent.
        """
        if not self.settings.api_key:
            raise Unauthenticated(
                "there is no API key: set HOLDFAST_API_KEY, or run `holdfast up`, which makes one",
                reason="API_KEY_MISSING",
            )
        if not self.settings.api_key.isascii() or not self.settings.api_key.isprintable():
            # The transport would refuse it in words that nobody understands.
            raise Unauthenticated("the API key contains characters that no key has", reason="API_KEY_INVALID")
        return (("authorization", f"Bearer {self.settings.api_key}"),)

    async def call(
        self,
        service: Service,
        method: UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float | None = None,
    ) -> ResponseT:
        """Makes a unary call.

        Raises:
            HoldfastError: As the service raised it; `Unavailable` when it can't be reached.
        """
        before = cancellations()
        try:
            return await method(request, timeout=self.timeout if timeout is None else timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise_if_cancelled(before)
            raise self.error(service, error) from error

    async def pages(
        self, service: Service, method: UnaryUnaryMultiCallable[RequestT, PageT], request: RequestT
    ) -> AsyncIterator[PageT]:
        """Yields all pages of a list."""
        while True:
            response = await self.call(service, method, request)
            yield response
            if not response.next_page_token:
                return
            # Every list's request has the field; protocols can't say so of a generated class.
            request.page_token = response.next_page_token  # type: ignore[attr-defined]

    def error(self, service: Service, error: grpc.RpcError) -> HoldfastError:
        """Returns what a failed call raises; a service that can't be reached is named with its address."""
        result = from_rpc_error(error, peer=service)
        if isinstance(result, Unavailable) and result.origin == "foreign":
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else None
            hint = _tls_hint(self._addresses[service], details or "")
            result = Unavailable(
                f"the {service} service at {self._addresses[service]} can't be reached{hint}",
                reason=result.reason,
                metadata={"address": self._addresses[service]},
                retry_delay_seconds=result.retry_delay_seconds,
            )
            result.origin = "foreign"
        if isinstance(result, ResourceExhausted) and result.origin == "foreign" and "larger than max" in result.message:
            # The transport's own word for it sounds as if waiting would help.
            return InvalidArgument(
                f"the message is larger than {MAX_MESSAGE_BYTES} bytes",
                reason="MESSAGE_TOO_LARGE",
                metadata={"limit_bytes": str(MAX_MESSAGE_BYTES)},
            )
        return result

    async def close(self) -> None:
        """Closes every channel."""
        channels = list(self._channels.values())
        self._channels.clear()
        self._stubs.clear()
        await asyncio.gather(*(channel.close() for channel in channels))


@asynccontextmanager
async def cancelling(call: Any) -> AsyncIterator[Any]:
    """Cancels a stream when its reader leaves it, however it leaves."""
    try:
        yield call
    finally:
        call.cancel()
