"""One gRPC server of a service: build, serve, drain; and the frame of the process around it.

A drain loses nothing: health says NOT_SERVING, the service's own drain callbacks hand back what it holds, calls in
flight get their grace, and only then the rest is closed.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Thread
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
import prometheus_client
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from holdfast.errors import NotFound, Unavailable
from services.shared.access import INFRASTRUCTURE_ACCESS, Access, check_access_table
from services.shared.channels import KEEPALIVE_OPTIONS, wait_for_channel_ready
from services.shared.clock import Clock
from services.shared.crash_points import arm
from services.shared.handlers import check_handler
from services.shared.identity import Authenticator
from services.shared.interceptors import build_interceptors
from services.shared.settings import (
    HARD_MESSAGE_LIMIT_BYTES,
    CommonSettings,
    SettingsError,
    declared_settings,
    load,
    split_address,
    unknown_settings,
)
from services.shared.telemetry import Telemetry, configure, get_logger
from services.shared.tls import ServedCertificate, TlsError, TlsFiles

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_OK",
    "EXIT_SOFTWARE",
    "EXIT_TEMPORARY",
    "EXIT_USAGE",
    "Process",
    "Server",
    "StartupError",
    "service_main",
    "wait_for_channel_ready",
]

# The numbers of sysexits.h, which supervisors and people can look up.
EXIT_OK: Final = 0
EXIT_USAGE: Final = 64
EXIT_SOFTWARE: Final = 70
EXIT_TEMPORARY: Final = 75
EXIT_CONFIGURATION: Final = 78

SettingsT = TypeVar("SettingsT", bound=CommonSettings)
DrainCallback = Callable[[], Awaitable[None]]

log = get_logger(__name__)


class StartupError(Exception):
    """The service cannot start; the text is one sentence for the operator.

    Args:
        message: What is wrong, where, and what to change.
        exit_code: `EXIT_TEMPORARY` when a later start may succeed, `EXIT_CONFIGURATION` when somebody must act.
    """

    def __init__(self, message: str, *, exit_code: int = EXIT_CONFIGURATION) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Health:
    """grpc.health.v1, with watches that end when the server drains, so that a drain does not wait for them."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._changed = asyncio.Condition()
        self._draining = False

    async def set(self, serving: bool, service: str = "") -> None:
        """Sets the health of the server, or of one of its services. Ignored once the server drains."""
        async with self._changed:
            if not self._draining:
                self._serving[service] = serving
                self._changed.notify_all()

    async def drain(self) -> None:
        """Says NOT_SERVING for everything, for good."""
        async with self._changed:
            self._draining = True
            self._serving = dict.fromkeys(self._serving, False)
            self._changed.notify_all()

    def _status(self, service: str) -> int:
        serving = self._serving.get(service)
        name = "SERVICE_UNKNOWN" if serving is None else "SERVING" if serving else "NOT_SERVING"
        return int(health_pb2.HealthCheckResponse.ServingStatus.Value(name))

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Returns the health of one service, or of the server when the name is empty."""
        if request.service not in self._serving:
            raise NotFound("the server has no such service", metadata={"service": request.service})
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """Returns the health of everything."""
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=self._status(service)) for service in self._serving
            }
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Sends the health now and after every change, until the server drains."""
        last: int | None = None
        while True:
            async with self._changed:
                while (status := self._status(request.service)) == last and not self._draining:
                    await self._changed.wait()
                draining = self._draining
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if draining:
                return


class _Registrar:
    """Stands in for the server while a generated `add_…Servicer_to_server` runs, and notes what it registers."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(generic_rpc_handlers)
        for generic in handlers:
            # Generated code of every grpcio version makes this one kind of handler.
            methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = getattr(generic, "_method_handlers", {})
            for name, handler in methods.items():
                check_handler(name, handler)
                self.handlers[name] = handler
                service = name[1:].partition("/")[0]
                if service not in self.services:
                    self.services.append(service)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)


class Server:
    """The gRPC server of one service.

    Example:
        server = Server(settings, service="state", access=ACCESS, telemetry=telemetry)
        server.add(add_JournalServiceServicer_to_server, JournalServicer(journal))
        server.on_drain(leases.hand_back)
        await server.run(stop)

    Args:
        settings: The service's settings.
        service: Its name.
        access: Who may call what; every method of every added servicer has an entry. Health and reflection are in.
        telemetry: The process's telemetry.
        authenticator: Verifies API keys; a service that takes none leaves it out.
        clock: Time, for credentials that end while a stream is open.
        services_listen: With TLS, where the suite's services come in with their certificates, when clients come to
            `settings.listen` without one. A server that only services call needs no second address.
    """

    def __init__(
        self,
        settings: CommonSettings,
        *,
        service: str,
        access: Mapping[str, Access],
        telemetry: Telemetry,
        authenticator: Authenticator | None = None,
        clock: Clock | None = None,
        services_listen: str = "",
    ) -> None:
        self.service = service
        self.health = Health()
        self.draining = asyncio.Event()
        """Set when the drain begins: handlers of endless streams end theirs when they see it."""
        self.port = 0
        self.services_port = 0
        """Where services come in when they have a port of their own."""
        self._services_listen = services_listen
        self._settings = settings
        self._telemetry = telemetry
        self._access = {**INFRASTRUCTURE_ACCESS, **access}
        self._drain_callbacks: list[DrainCallback] = []
        self._metrics_page: _MetricsPage | None = None
        self._is_started = False
        self._is_drained = False
        hard_limit = min(settings.max_message_bytes * 4, HARD_MESSAGE_LIMIT_BYTES)
        self._grpc = grpc.aio.server(
            interceptors=build_interceptors(
                settings, telemetry, access=access, authenticator=authenticator, clock=clock
            ),
            options=[
                *KEEPALIVE_OPTIONS,
                # Clients may ping every 10 s, also between calls; the default would close their connection.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 0),
                # A second process on the same port is an error, not a silent half of the traffic.
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", hard_limit),
                # The transport refuses with RESOURCE_EXHAUSTED, which says nothing of the limit; up to four times
                # the limit the message is therefore taken, and refused by the chain with INVALID_ARGUMENT.
                ("grpc.max_receive_message_length", hard_limit),
            ],
        )
        self._registrar = _Registrar(self._grpc)
        self.add(health_pb2_grpc.add_HealthServicer_to_server, self.health)

    @property
    def address(self) -> str:
        """Where the server listens, with the port that it really has."""
        host, _ = split_address(self._settings.listen)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def metrics_address(self) -> str:
        """Where the metrics page is; empty when it is off."""
        return self._metrics_page.address if self._metrics_page is not None else ""

    @property
    def methods(self) -> frozenset[str]:
        """Full names of all methods that were added."""
        return frozenset(self._registrar.handlers)

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Adds a servicer through the function that was generated for it.

        Raises:
            TypeError: A handler is not async, or a streaming one is no async generator.
        """
        add_to_server(servicer, self._registrar)

    def on_drain(self, callback: DrainCallback) -> None:
        """Registers what runs when the server drains, in the order of registration, before calls in flight are cut."""
        self._drain_callbacks.append(callback)

    async def start(self) -> None:
        """Listens and says SERVING.

        Raises:
            ValueError: The access table and the methods differ.
            StartupError: The address cannot be used.
        """
        reflected = (*self._registrar.services, reflection.SERVICE_NAME)
        self.add(add_ServerReflectionServicer_to_server, reflection.aio.ReflectionServicer(reflected))
        check_access_table(self.methods, self._access)
        self._bind()
        if self._settings.metrics_listen:
            self._metrics_page = _MetricsPage(self._settings.metrics_listen, self._telemetry)
        await self._grpc.start()
        self._is_started = True
        for service in self._registrar.services:
            await self.health.set(True, service)
        await self.health.set(True)
        fields = {"metrics": self.metrics_address} if self._metrics_page is not None else {}
        log.info("listening", address=self.address, **fields)

    def _bind(self) -> None:
        files = TlsFiles.of(self._settings)
        if files is None:
            self.port = self._opened("HOLDFAST_LISTEN", self._settings.listen, None)
            return
        takes_keys = any(access.scope is not None for access in self._access.values())
        takes_services = any(access.services for access in self._access.values())
        if takes_keys and takes_services and not self._services_listen:
            raise StartupError(
                "HOLDFAST_SERVICES_LISTEN is required with TLS: the suite's services show their certificates there, "
                "clients come to HOLDFAST_LISTEN without one"
            )
        try:
            served = ServedCertificate(files)
            listen = served.credentials(demands_certificate=not takes_keys)
            self.port = self._opened("HOLDFAST_LISTEN", self._settings.listen, listen)
            if self._services_listen:
                # A certificate of its own, because each port asks for changes on its own.
                inner = ServedCertificate(files).credentials(demands_certificate=True)
                self.services_port = self._opened("HOLDFAST_SERVICES_LISTEN", self._services_listen, inner)
        except TlsError as error:
            raise StartupError(f"TLS cannot be used: {error}") from error

    def _opened(self, setting: str, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise address_error(setting, address) from error
        if port == 0:
            raise address_error(setting, address)
        return port

    async def drain(self) -> None:
        """Stops serving without losing anything; safe to call twice and before `start`."""
        if self._is_drained:
            return
        self._is_drained = True
        grace = self._settings.drain_seconds
        started = asyncio.get_running_loop().time()
        await self.health.drain()
        self.draining.set()
        if self._is_started:
            log.info("draining", grace_seconds=grace)
        for callback in self._drain_callbacks:
            try:
                # A second even when calls in flight get no grace: leases are worth handing back.
                async with asyncio.timeout(max(grace, 1.0)):
                    await callback()
            except Exception as error:
                # One part that cannot hand back must not keep the others from doing so.
                log.error("drain_callback_failed", exc_info=error)
        remaining = max(0.0, grace - (asyncio.get_running_loop().time() - started))
        await self._grpc.stop(remaining if self._is_started else None)
        if self._metrics_page is not None:
            await asyncio.to_thread(self._metrics_page.close)
        if self._is_started:
            log.info("stopped")

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains."""
        async with self:
            await stop.wait()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.drain()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.drain()


class _MetricsPage:
    """Prometheus' page, served by its own library in a thread of its own."""

    def __init__(self, listen: str, telemetry: Telemetry) -> None:
        host, port = split_address(listen)
        try:
            started: tuple[WSGIServer, Thread] = prometheus_client.start_http_server(
                port, addr=host, registry=telemetry.registry
            )
        except OSError as error:
            raise address_error("HOLDFAST_METRICS_LISTEN", listen, error) from error
        self._http, self._thread = started
        self.address = f"{host}:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def address_error(setting: str, address: str, cause: OSError | None = None) -> StartupError:
    """Returns the sentence that says why `address` cannot be listened on."""
    host, port = split_address(address)
    if cause is None:
        # The transport says only that it failed; the same attempt by a plain socket says why.
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with socket.socket(found[0], found[1]) as probe:
                probe.bind(found[4])
                probe.listen(1)
        except OSError as error:
            cause = error
    if cause is None:
        return StartupError(f"{address} cannot be listened on; choose another {setting}", exit_code=EXIT_TEMPORARY)
    if cause.errno == errno.EADDRINUSE:
        return StartupError(
            f"{address} is already in use by another process; stop it or choose another {setting}",
            exit_code=EXIT_TEMPORARY,
        )
    reason = cause.strerror or str(cause)
    return StartupError(f"{address} cannot be listened on ({reason}); choose another {setting}")


# --------------------------------------------------------------------------------------------------- the process


@dataclass(slots=True)
class Process:
    """What the frame of the process gives to the service that runs in it."""

    telemetry: Telemetry
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first SIGTERM or SIGINT. A second one cuts the drain short."""


def service_main(
    run: Callable[[SettingsT, Process], Coroutine[Any, Any, None]],
    settings_cls: type[SettingsT],
    *,
    service: str,
    migrate: Callable[[SettingsT], Coroutine[Any, Any, None]] | None = None,
    arguments: list[str] | None = None,
) -> NoReturn:
    """Is the whole of a service's `__main__`: settings, telemetry, signals, exit codes.

    Args:
        run: Builds the service, serves until `process.stop` is set, and closes it.
        settings_cls: The service's settings.
        service: Its name.
        migrate: What the sub-command `migrate` does, for a service with a database.
        arguments: Command line; the process's own when not given.
    """
    given = sys.argv[1:] if arguments is None else arguments
    commands = ("migrate",) if migrate is not None else ()
    if given and given[0] in ("-h", "--help"):
        sys.stdout.write(_help(service, settings_cls, commands))
        sys.exit(EXIT_OK)
    if len(given) > 1 or (given and given[0] not in commands):
        sys.stderr.write(f"{service}: unknown arguments: {' '.join(given)}\n\n{_help(service, settings_cls, commands)}")
        sys.exit(EXIT_USAGE)
    try:
        settings = load(settings_cls)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{service}: {problem}\n")
        sys.exit(EXIT_CONFIGURATION)
    telemetry = configure(settings, service)
    for warning in unknown_settings(None, settings_cls):
        log.warning("unknown_setting", detail=warning)
    arm(settings.crash_point)
    process = Process(telemetry)

    async def main() -> None:
        with _signals(process.stop):
            try:
                if given and migrate is not None:
                    await migrate(settings)
                else:
                    await run(settings, process)
            except BaseExceptionGroup as group:
                raise _told_to_people(group) from None

    exit_code = EXIT_OK
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (StartupError, SettingsError) as error:
        sys.stderr.write(f"{service}: {error}\n")
        exit_code = error.exit_code if isinstance(error, StartupError) else EXIT_CONFIGURATION
    except Unavailable as error:
        sys.stderr.write(f"{service}: {error}\n")
        exit_code = EXIT_TEMPORARY
    except (asyncio.CancelledError, KeyboardInterrupt):
        exit_code = 128 + signal.SIGINT
    except Exception as error:
        log.error("crashed", exc_info=error)
        exit_code = EXIT_SOFTWARE
    finally:
        telemetry.close()
    sys.exit(exit_code)


def _told_to_people(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a group was raised for, where that has a sentence of its own; task groups wrap whatever ends a service."""
    known = group.subgroup((StartupError, SettingsError, Unavailable))
    error: BaseException = group if known is None else known
    while isinstance(error, BaseExceptionGroup) and error is not group:
        error = error.exceptions[0]
    return error


class _signals:
    """Sets `stop` at the first SIGTERM or SIGINT, and cancels the task at the second."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def handle(number: signal.Signals) -> None:
            if self._stop.is_set():
                log.warning("second_signal", signal=number.name)
                task.cancel()
            else:
                log.info("signal", signal=number.name)
                self._stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, handle, number)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _help(service: str, settings_cls: type[CommonSettings], commands: Iterable[str]) -> str:
    usage = f"usage: python -m services.{service} [{'|'.join(('--help', *commands))}]\n\nSettings (environment):\n"
    rows = []
    for declared, default in declared_settings(settings_cls):
        shown = default if default == "required" or not declared.secret else ("set" if default else "")
        rows.append(f"  {declared.name}  [{shown or 'none'}]\n      {declared.doc}\n")
    return usage + "".join(rows)
