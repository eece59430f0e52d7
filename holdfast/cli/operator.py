"""The operator's way to state and auth: with the suite's own service token, not with a workspace's API key.

Whoever holds that token may do everything in the suite; it never goes into a profile.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import grpc.aio
import typer

from holdfast.errors import FailedPrecondition, HoldfastError, Unavailable, from_rpc_error
from holdfast.settings import ClientSettings, split_addresses, write_private
from holdfast.transport import Transport, channel_options, read_pem

OPERATOR: Final = "operator"
"""The name by which the services' access tables know these calls."""

_ADDRESSES: Final = "addresses.json"

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Data folder of a suite that `holdfast up` runs. Not used when HOLDFAST_STATE_ADDRESS is set.",
        show_default="the user's data folder",
    ),
]


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Where a service is and what it takes an operator by.

    Attributes:
        peer: The service: `state` or `auth`.
        address: As host:port, or ip:port,ip:port for several replicas.
        service_token: The suite's token; empty with TLS.
        certificate: With TLS, the files of the authority, and of the operator's key and certificate.
    """

    peer: str
    address: str
    service_token: str
    certificate: tuple[str, str, str] | None = None

    def __repr__(self) -> str:
        return f"<OperatorSettings {self.peer} {self.address}>"


def write_addresses(data: Path, addresses: Mapping[str, str]) -> None:
    """Keeps where the services of a data folder listen, beside their token, for its owner only.

    Raises:
        OSError: It can't be written.
    """
    write_private(data / _ADDRESSES, json.dumps(dict(addresses)) + "\n")


def operator_settings(data: Path | None = None, peer: str = "state") -> OperatorSettings:
    """Returns what is needed to reach a service: HOLDFAST_STATE_ADDRESS, for auth HOLDFAST_AUTH_ADDRESS (with TLS, when
    it is another one, HOLDFAST_AUTH_SERVICES_ADDRESS), and HOLDFAST_SERVICE_TOKEN, as the services use.

    Args:
        data: Data folder of a suite that `holdfast up` runs; the user's own when not given. It says what the
            environment does not, and is asked first when it is given.

    Raises:
        FailedPrecondition: Neither says it.
    """
    environ = os.environ
    setting = f"HOLDFAST_{peer.upper()}_ADDRESS"
    address = ""
    if data is None:
        # With TLS, services and the operator come to a port of auth's own.
        special = environ.get("HOLDFAST_AUTH_SERVICES_ADDRESS", "") if peer == "auth" else ""
        address = special or environ.get(setting, "")
    token = _token_of_environment() if data is None else ""
    certificate = _certificate_of_environment() if data is None else None
    if address and certificate is not None:
        split_addresses(address)
        return OperatorSettings(peer, address, "", certificate)
    # The token of one suite does not go to the addresses of another, which happens to be on this machine.
    is_elsewhere = data is None and bool(environ.get("HOLDFAST_STATE_ADDRESS"))
    if not (address and token) and not (is_elsewhere and not address):
        folder = _data_folder(data)
        address = address or stored_addresses(folder).get(peer, "")
        token = token or _read(folder / "service.token")
    if not (address and token):
        raise FailedPrecondition(
            f"this is the operator's command: set {setting} and HOLDFAST_SERVICE_TOKEN (or "
            "HOLDFAST_SERVICE_TOKEN_FILE, or with TLS the HOLDFAST_TLS_* files) as the services have them, or name the "
            "folder of `holdfast up` with --data"
        )
    split_addresses(address)
    return OperatorSettings(peer, address, token)


def _token_of_environment() -> str:
    path = os.environ.get("HOLDFAST_SERVICE_TOKEN_FILE")
    return os.environ.get("HOLDFAST_SERVICE_TOKEN", "").strip() or (_read(Path(path)) if path else "")


def _data_folder(data: Path | None) -> Path:
    if data is not None:
        return data.expanduser()
    import platformdirs

    return platformdirs.user_data_path("holdfast")


def stored_addresses(folder: Path) -> dict[str, str]:
    """Returns where the services of a data folder listen; empty when it does not say."""
    try:
        stored: Any = json.loads(_read(folder.expanduser() / _ADDRESSES) or "{}")
    except ValueError:
        return {}
    items = stored.items() if isinstance(stored, dict) else ()
    return {name: address for name, address in items if isinstance(address, str)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FailedPrecondition(f"{path} can't be read: {error.strerror}") from error


class _Signing:
    """Shows the token with every call."""

    def __init__(self, token: str) -> None:
        self._authorization = f"Service {OPERATOR}:{token}" if token else f"Service {OPERATOR}"

    def signed(self, details: Any) -> grpc.aio.ClientCallDetails:
        """The call with the authorization."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", self._authorization)
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


# Two classes: of an interceptor of both kinds, the channel takes only the first.
class _SignedCalls(_Signing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.signed(client_call_details), request)


class _SignedStreams(_Signing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.signed(client_call_details), request)


@asynccontextmanager
async def operator_channel(data: Path | None = None, peer: str = "state") -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel to a service on which every call carries the operator's authorization.

    What a call raises inside the context is raised as `holdfast.errors`. The caller gives each call its deadline.

    Args:
        data: Data folder of a suite that `holdfast up` runs.
        peer: The service: `state` or `auth`.

    Raises:
        FailedPrecondition: Nothing says where it is, or with which token.
        HoldfastError: As it raised it; `Unavailable` with the address when it can't be reached.
    """
    settings = operator_settings(data, peer)
    interceptors: list[grpc.aio.ClientInterceptor] = [
        _SignedCalls(settings.service_token),
        _SignedStreams(settings.service_token),
    ]
    async with _opened(settings, interceptors) as channel:
        with _errors_of(settings):
            yield channel


@asynccontextmanager
async def operator_transport(data: Path | None = None) -> AsyncIterator[Transport]:
    """Opens what a client's parts call auth with, as the operator instead of a workspace's key.

    Args:
        data: Data folder of a suite that `holdfast up` runs.

    Raises:
        FailedPrecondition: Nothing says where auth is, or with which token.
        HoldfastError: As a call raised it.
    """
    address = operator_settings(data, "auth").address
    async with operator_channel(data, "auth") as channel:
        yield _OperatorTransport(channel, address)


class _OperatorTransport(Transport):
    """A transport to auth alone, over a channel that is somebody else's."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        super().__init__(ClientSettings(address="", auth_address=address, trace_address="", api_key=""))
        self._channels["auth"] = channel

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Nothing: the channel signs each call."""
        return ()


def operator_connection(peer: str, address: str) -> grpc.aio.Channel | None:
    """Returns a connection to a service with the operator's certificate, or None when the environment names none.

    A service that asks nobody for a certificate takes it as well, and the suite's own authority signs for all of them.

    Args:
        peer: The service.
        address: As the environment says it; with or without `https://`.
    """
    certificate = _certificate_of_environment()
    return None if certificate is None else _opened(OperatorSettings(peer, address, "", certificate), [])


def _certificate_of_environment() -> tuple[str, str, str] | None:
    authority, key, certificate = (os.environ.get(f"HOLDFAST_TLS_{name}_FILE", "") for name in ("CA", "KEY", "CERT"))
    return (authority, key, certificate) if authority and key and certificate else None


def _opened(settings: OperatorSettings, interceptors: list[grpc.aio.ClientInterceptor]) -> grpc.aio.Channel:
    addresses = split_addresses(settings.address)
    scheme, host, port = addresses[0]
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if len(addresses) > 1:
        # Of several replicas, the first that answers.
        target = "ipv4:" + ",".join(f"{host}:{port}" for _, host, port in addresses)
    # The suite's own traffic never goes through a proxy that the environment names for the internet.
    options = [*channel_options(), ("grpc.enable_http_proxy", 0)]
    if settings.certificate is not None:
        # Whatever its address, the peer must be the service that is meant.
        options.append(("grpc.ssl_target_name_override", settings.peer))
        credentials = grpc.ssl_channel_credentials(*(read_pem(path) for path in settings.certificate))
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)
    if scheme == "https://":
        credentials = grpc.ssl_channel_credentials()
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)


@contextmanager
def _errors_of(settings: OperatorSettings) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raised: HoldfastError = from_rpc_error(error, peer=settings.peer)
        if isinstance(raised, Unavailable) and raised.origin == "foreign":
            raise Unavailable(
                f"{settings.peer} at {settings.address} can't be reached",
                reason=raised.reason,
                metadata={"address": settings.address},
            ) from error
        raise raised from error
