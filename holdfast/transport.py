"""Calls to the services: channels, the caller's key, a deadline on every unary call, and errors as their own classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Protocol, TypeVar

import grpc
import grpc.aio

from holdfast.errors import Unauthenticated, from_rpc_error
from holdfast.settings import ClientSettings, split_address

Service = Literal["executor", "auth", "trace"]

RequestT = TypeVar("RequestT", contravariant=True)
ResponseT = TypeVar("ResponseT", covariant=True)

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
            }
        ],
        # When most calls fail, retries stop adding to the load.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
"""The service config of the SDK: only UNAVAILABLE is retried."""


def channel_options() -> list[tuple[str, Any]]:
    """Returns the transport's options."""
    return [
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A restarted service is found again within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def is_local(address: str) -> bool:
    """Tells whether an address is on this machine."""
    _, host, _ = split_address(address)
    return host in ("localhost", "::1") or host.startswith("127.")


def open_channel(address: str) -> grpc.aio.Channel:
    """Opens a channel: TLS for `https://host:port`, plain text for `host:port`."""
    scheme, host, port = split_address(address)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = channel_options()
    if is_local(address):
        # A proxy that the environment names for the internet has no way to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    if scheme == "https://":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(target, options=options)


class Method(Protocol[RequestT, ResponseT]):
    """A unary method of a stub."""

    def __call__(self, request: RequestT, *, timeout: float | None = ..., metadata: Any = ...) -> Any:
        """Makes the call."""


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
            self._channels[service] = open_channel(self._addresses[service])
        return self._channels[service]

    def stub(self, service: Service, factory: Callable[[grpc.aio.Channel], Any]) -> Any:
        """Returns a stub of a service."""
        if factory not in self._stubs:
            self._stubs[factory] = factory(self.channel(service))
        return self._stubs[factory]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what every call carries.

        Raises:
            Unauthenticated: There is no API key.
        """
        if not self.settings.api_key:
            raise Unauthenticated(
                "there is no API key: set HOLDFAST_API_KEY, or run `holdfast up`, which makes one",
                reason="API_KEY_MISSING",
            )
        return (("authorization", f"Bearer {self.settings.api_key}"),)

    async def call(
        self, service: Service, method: Method[RequestT, ResponseT], request: RequestT, *, timeout: float | None = None
    ) -> Any:
        """Makes a unary call.

        Raises:
            HoldfastError: As the service raised it; `Unavailable` when it can't be reached.
        """
        try:
            return await method(
                request, timeout=self.timeout if timeout is None else timeout, metadata=self.metadata()
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=service) from error

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
