"""Logs, traces and metrics of one service process: set up once at start, flushed once at the end."""

from __future__ import annotations

import json
import logging
import resource
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO, get_args

from google.protobuf.message import Message
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource as SpanResource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from services.shared.redaction import redacted
from services.shared.scrubber import PROCESS, Sink
from services.shared.settings import CommonSettings
from services.shared.span_scrubbing import ScrubbedSpans

# Names of log fields whose value is never written, whatever a caller passes.
_SECRET_FIELDS: Final = frozenset(
    {"authorization", "api_key", "token", "service_token", "secret", "password", "credential", "database_url"}
)
_RESERVED: Final = frozenset({"time", "level", "service", "logger", "event", "trace_id", "span_id", "exception"})


class Logger:
    """A named event with fields: `log.info("run_claimed", run_id=run_id, epoch=epoch)`."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def is_enabled_for(self, level: int) -> bool:
        """Tells whether a record of `level` would be written; spares the making of its fields."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, event: str, /, *, exc_info: Any = None, **fields: Any) -> None:
        """Writes `event` at a level chosen at run time."""
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=exc_info, extra={"fields": fields}, stacklevel=2)

    def debug(self, event: str, /, **fields: Any) -> None:
        """Writes what helps to follow one case."""
        self.log(logging.DEBUG, event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Writes what an operator wants to see of a healthy service."""
        self.log(logging.INFO, event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Writes what works on, but not as it should."""
        self.log(logging.WARNING, event, **fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Writes what failed; `exc_info=error` adds the traceback."""
        self.log(logging.ERROR, event, **fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Writes what failed, with the traceback of the exception being handled."""
        self.log(logging.ERROR, event, exc_info=True, **fields)


def get_logger(name: str) -> Logger:
    """Returns the logger of a module: `get_logger(__name__)`."""
    return Logger(logging.getLogger(name))


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    if not fields:
        return {}
    return {
        (f"field_{name}" if name in _RESERVED else name): "[redacted]" if name.lower() in _SECRET_FIELDS else value
        for name, value in fields.items()
    }


def _traceback_of(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


class JsonFormatter(logging.Formatter):
    """One JSON object on one line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as JSON; a value that JSON does not know is written as its text."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            entry["trace_id"] = f"{span.trace_id:032x}"
            entry["span_id"] = f"{span.span_id:016x}"
        entry.update(_fields_of(record))
        exception = _traceback_of(record)
        if exception is not None:
            entry["exception"] = exception
        return PROCESS.everything(json.dumps(entry, ensure_ascii=False, default=_text_of), "log")


class PrettyFormatter(logging.Formatter):
    """For people: time, level, service, event, then the fields."""

    _COLOURS: Final = {
        "DEBUG": "\x1b[2m",
        "INFO": "",
        "WARNING": "\x1b[33m",
        "ERROR": "\x1b[31m",
        "CRITICAL": "\x1b[31m",
    }

    def __init__(self, service: str, *, colour: bool) -> None:
        super().__init__()
        self._service = service
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, and the traceback below it when there is one."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_shown(value)}" for name, value in _fields_of(record).items())
        line = f"{clock} {record.levelname.lower():<7} {self._service:<8} {record.getMessage()}"
        if fields:
            line = f"{line}  {fields}"
        exception = _traceback_of(record)
        if exception is not None:
            line = f"{line}\n{exception}"
        line = PROCESS.everything(line, "log")
        colour = self._COLOURS.get(record.levelname, "") if self._colour else ""
        return f"{colour}{line}\x1b[0m" if colour else line


def _text_of(value: Any) -> str:
    # A message in a log is there by mistake; its own text shows every field, those marked `debug_redact` too.
    return redacted(value) if isinstance(value, Message) else str(value)


def _shown(value: Any) -> str:
    text = _text_of(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c == '"' for c in text) else text


def configure_logging(
    service: str, *, log_format: str = "auto", level: str = "info", stream: TextIO | None = None
) -> None:
    """Sends every record of the process to `stream` (standard error), in one format.

    Args:
        service: Name of the service, written with each record.
        log_format: `json`, `pretty`, or `auto`, which is pretty when the stream is a terminal.
        level: Least severe level that is written.
        stream: Where to write.
    """
    target = sys.stderr if stream is None else stream
    on_terminal = target.isatty()
    pretty = log_format == "pretty" or (log_format == "auto" and on_terminal)
    handler = logging.StreamHandler(target)
    handler.setFormatter(PrettyFormatter(service, colour=on_terminal) if pretty else JsonFormatter(service))
    root = logging.getLogger()
    for existing in list(root.handlers):
        root.removeHandler(existing)
    root.addHandler(handler)
    root.setLevel(level.upper())
    quiet_libraries(level)


def quiet_libraries(level: str) -> None:
    """Lets libraries say what went wrong, and no more.

    Args:
        level: Least severe level that the service's own records are written at.
    """
    # These report every request or connection at INFO; what matters of them is in our own request log.
    for noisy in ("openai", "anthropic", "alembic", "mcp", "asyncio", "urllib3", "hvac"):
        logging.getLogger(noisy).setLevel(logging.WARNING if level != "debug" else logging.INFO)
    # These write headers and whole addresses, at whatever level is asked for: cookies, codes and tokens of others.
    for wire in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "h11",
        "h2",
        "hpack",
        "uvicorn.access",
        "python_multipart",
        "requests",
    ):
        logging.getLogger(wire).setLevel(logging.WARNING)


def log_crashes() -> None:
    """Sends what would end on standard error in the interpreter's own words through the log, and so past the scrubber;
    leaves no image of the memory behind."""

    def crashed(kind: type[BaseException], error: BaseException, trace_back: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        get_logger(__name__).error("crashed", exc_info=(kind, error, trace_back))

    def ignored(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_value is not None:
            get_logger(__name__).error("error_ignored", exc_info=unraisable.exc_value)

    def thread_crashed(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            crashed(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    sys.excepthook = crashed
    sys.unraisablehook = ignored
    threading.excepthook = thread_crashed
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


class _ScrubbedSecrets(Collector):
    """How many secrets were taken out of texts, by where they were going. More than none is a leak that was stopped."""

    def collect(self) -> Iterable[Metric]:
        """Returns the counts."""
        counts = CounterMetricFamily(
            "holdfast_secrets_scrubbed", "Secrets taken out of texts, by where they were going.", labels=["sink"]
        )
        for sink in get_args(Sink):
            counts.add_metric([sink], PROCESS.counts[sink])
        return (counts,)


class Telemetry:
    """The tracer provider and the metrics registry of one process."""

    def __init__(self, service: str, tracer_provider: TracerProvider, registry: CollectorRegistry) -> None:
        self.service = service
        self.tracer_provider = tracer_provider
        self.registry = registry
        self.exports_spans = False

    def tracer(self, name: str) -> trace.Tracer:
        """Returns the tracer of a module."""
        return self.tracer_provider.get_tracer(name)

    def close(self) -> None:
        """Sends what is still buffered. Blocks for as long as the exporter takes, at most a few seconds."""
        self.tracer_provider.shutdown()


def build_telemetry(service: str, *, otlp_endpoint: str = "", span_processor: SpanProcessor | None = None) -> Telemetry:
    """Makes the tracer provider and the registry without touching any process-wide state.

    Args:
        service: Name of the service, part of the resource of every span.
        otlp_endpoint: Collector as host:port. Without one, no span is recorded unless the caller's is sampled, and
            the W3C context is still passed on.
        span_processor: Receives the spans instead of an OTLP exporter.
    """
    exports = bool(otlp_endpoint) or span_processor is not None
    provider = TracerProvider(
        resource=SpanResource.create({"service.name": f"holdfast-{service}", "service.namespace": "holdfast"}),
        sampler=ParentBased(ALWAYS_ON if exports else ALWAYS_OFF),
        shutdown_on_exit=False,
    )
    if span_processor is not None:
        provider.add_span_processor(ScrubbedSpans(span_processor, PROCESS))
    elif otlp_endpoint:
        # Imported here: the exporter costs a tenth of a second at start, and most processes run without one.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True, timeout=5)
        provider.add_span_processor(ScrubbedSpans(BatchSpanProcessor(exporter), PROCESS))
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_ScrubbedSecrets())
    telemetry = Telemetry(service, provider, registry)
    telemetry.exports_spans = exports
    return telemetry


def configure(settings: CommonSettings, service: str) -> Telemetry:
    """Sets up logs, propagation and traces for this process; called once, by `service_main`."""
    configure_logging(service, log_format=settings.log_format, level=settings.log_level)
    log_crashes()
    telemetry = build_telemetry(service, otlp_endpoint=settings.otlp_endpoint)
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    trace.set_tracer_provider(telemetry.tracer_provider)
    return telemetry
