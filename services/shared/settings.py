"""The only reader of the environment: `HOLDFAST_*` become a frozen dataclass, or a refusal that names every bad one.

A service declares its settings as fields of a frozen, keyword-only dataclass:

    @dataclass(frozen=True, kw_only=True)
    class TraceSettings(CommonSettings):
        listen: str = listen_setting(7403)
        page_size: int = setting("HOLDFAST_PAGE_SIZE", default=50, minimum=1, doc="Rows on one page.")
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import ipaddress
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

PREFIX: Final = "HOLDFAST_"
MINIMUM_TOKEN_CHARACTERS: Final = 32
HARD_MESSAGE_LIMIT_BYTES: Final = 256 * 1024 * 1024

_KEY: Final = "holdfast.setting"
_REQUIRED: Final = object()


class SettingsError(ValueError):
    """The environment is not usable; the text has one line per bad setting."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field is read."""

    name: str
    doc: str
    parse: Callable[[str], Any] | None
    secret: bool
    minimum: float | None
    maximum: float | None
    dials: bool
    """The value is an address that this process connects to; it needs the same permission as listening."""


def setting(
    name: str,
    *,
    default: Any = _REQUIRED,
    parse: Callable[[str], Any] | None = None,
    doc: str = "",
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    dials: bool = False,
) -> Any:
    """Declares a dataclass field that `load` fills from the environment.

    Args:
        name: The environment variable, with its prefix.
        default: The Python value when the variable is absent; without one, the setting is required.
        parse: Turns the text into the value and raises `ValueError` saying what was expected. When it is not given,
            the field's type decides: str, int, float, bool, Path, an Enum, a Literal, or tuple[str, ...] (comma list).
        doc: What it does, for `--help` and the operations guide.
        secret: Its value never appears in a message; it may also be given as a file through `<name>_FILE`.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        dials: The value is the address of a peer.
    """
    if not name.startswith(PREFIX):
        raise ValueError(f"setting {name!r} does not start with {PREFIX}")
    declared = Setting(name, doc, parse, secret, minimum, maximum, dials)
    metadata = {_KEY: declared}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def load(cls: type[T], environ: Mapping[str, str] | None = None) -> T:
    """Reads the settings of `cls` from the environment.

    Raises:
        SettingsError: One or more are missing or wrong; every one of them is named.
    """
    source = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    for field, declared, field_type in _declared(cls):
        try:
            text = _text_of(declared, source)
            if text is not None:
                values[field.name] = _parsed(declared, field_type, text)
            elif field.default is dataclasses.MISSING:
                problems.append(f"{declared.name} is required: {declared.doc}")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError(problems)
    loaded = cls(**values)
    check = getattr(loaded, "problems", None)
    if callable(check):
        problems.extend(check())
    if problems:
        raise SettingsError(problems)
    return loaded


def unknown_settings(environ: Mapping[str, str] | None, *classes: type[Any]) -> list[str]:
    """Returns one warning for each `HOLDFAST_*` variable that no field of `classes` reads: most often a misspelling."""
    source = os.environ if environ is None else environ
    known: set[str] = set()
    for cls in classes:
        for _, declared, _ in _declared(cls):
            known.add(declared.name)
            if declared.secret:
                known.add(f"{declared.name}_FILE")
    warnings = []
    for name in sorted(source):
        if not name.startswith(PREFIX) or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        hint = f"; did you mean {close[0]}?" if close else ""
        warnings.append(f"{name} is not a setting of this service{hint}")
    return warnings


def declared_settings(cls: type[Any]) -> list[tuple[Setting, str]]:
    """Returns every setting of `cls` with its default as text, in order: what `--help` and the documentation show."""
    rows = []
    for field, declared, _ in _declared(cls):
        if field.default is dataclasses.MISSING:
            default = "required"
        elif isinstance(field.default, bool):
            default = str(field.default).lower()
        elif isinstance(field.default, enum.Enum):
            default = str(field.default.value)
        elif isinstance(field.default, tuple):
            default = ",".join(field.default)
        else:
            default = "" if field.default is None else str(field.default)
        rows.append((declared, default))
    return rows


def _declared(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], Setting, Any]]:
    hints = typing.get_type_hints(cls)
    return [
        (field, field.metadata[_KEY], hints[field.name]) for field in dataclasses.fields(cls) if _KEY in field.metadata
    ]


def _text_of(declared: Setting, source: Mapping[str, str]) -> str | None:
    # An empty variable means "not set": compose files and shells pass on variables that way.
    text = source.get(declared.name) or None
    if not declared.secret:
        return text
    file_name = source.get(f"{declared.name}_FILE") or None
    if file_name is None:
        return text
    if text is not None:
        raise ValueError(f"{declared.name} and {declared.name}_FILE are both set: keep one")
    try:
        return Path(file_name).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{declared.name}_FILE={file_name!r} cannot be read: {cause}") from error


def _parsed(declared: Setting, field_type: Any, text: str) -> Any:
    shown = declared.name if declared.secret else f"{declared.name}={text!r}"
    parse = declared.parse if declared.parse is not None else _parser_for(declared.name, field_type)
    try:
        value = parse(text)
    except ValueError as error:
        raise ValueError(f"{shown} is not valid: expected {error}") from error
    if declared.minimum is not None and value < declared.minimum:
        raise ValueError(f"{shown} is not valid: expected at least {declared.minimum:g}")
    if declared.maximum is not None and value > declared.maximum:
        raise ValueError(f"{shown} is not valid: expected at most {declared.maximum:g}")
    return value


def _parser_for(name: str, field_type: Any) -> Callable[[str], Any]:
    origin = typing.get_origin(field_type)
    if origin in (typing.Union, types.UnionType):
        field_type = next(item for item in typing.get_args(field_type) if item is not type(None))
        origin = typing.get_origin(field_type)
    if origin is Literal:
        return choice(*typing.get_args(field_type))
    if origin is tuple:
        return comma_list
    parser = _PARSERS.get(field_type)
    if parser is not None:
        return parser
    if isinstance(field_type, type) and issubclass(field_type, enum.Enum):
        return _enum_parser(field_type)
    raise TypeError(f"{name}: no parser for the type {field_type!r}; give one with parse=")


# ------------------------------------------------------------------------------------------------------------- parsers
# Each raises ValueError whose text completes "expected …".


def _text(text: str) -> str:
    return text


def _integer(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ValueError("a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def _path(text: str) -> Path:
    return Path(text).expanduser()


_PARSERS: Final[Mapping[Any, Callable[[str], Any]]] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _boolean,
    Path: _path,
}


def _enum_parser(cls: type[enum.Enum]) -> Callable[[str], enum.Enum]:
    def parse(text: str) -> enum.Enum:
        try:
            return cls(text)
        except ValueError:
            raise ValueError(f"one of {', '.join(str(member.value) for member in cls)}") from None

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """Returns a parser that takes one of `allowed`, in any letter case."""

    def parse(text: str) -> str:
        for item in allowed:
            if text.strip().lower() == item.lower():
                return item
        raise ValueError(f"one of {', '.join(allowed)}")

    return parse


def comma_list(text: str) -> tuple[str, ...]:
    """Parses `a, b,c` into ("a", "b", "c")."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)?")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_seconds(text: str) -> float:
    """Parses `90`, `1.5s`, `250ms`, `5m`, `2h` or `30d` into seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("a duration such as 10, 250ms, 1.5s, 5m, 2h or 30d")
    return float(match["number"]) * _UNIT_SECONDS[match["unit"] or "s"]


_BYTE_COUNT: Final = re.compile(r"(?P<number>\d+)\s*(?P<unit>[kmg]i?b)?")
_UNIT_BYTES: Final = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def byte_count(text: str) -> int:
    """Parses `16777216` or `16MiB` into bytes."""
    match = _BYTE_COUNT.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("a number of bytes such as 16777216 or 16MiB")
    return int(match["number"]) * (_UNIT_BYTES[match["unit"]] if match["unit"] else 1)


def split_address(address: str) -> tuple[str, int]:
    """Splits `host:port` or `[v6]:port`.

    Raises:
        ValueError: It is neither.
    """
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if (
        not separator
        or not host
        or (":" in host and not bracketed)
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
        or re.search(r"[\s/@]", host)
    ):
        raise ValueError("an address of the form host:port")
    return host, int(port)


def host_port(text: str) -> str:
    """Parses `host:port`; a scheme such as `http://` is not an address."""
    split_address(text.strip())
    return text.strip()


def peer_addresses(text: str) -> str:
    """Parses `host:port`, or the same for several replicas as `ip:port,ip:port`."""
    addresses = [host_port(part) for part in text.split(",")]
    if len(addresses) > 1:
        for address in addresses:
            try:
                ipaddress.IPv4Address(split_address(address)[0])
            except ValueError as error:
                raise ValueError("several addresses are ip:port,ip:port; or one name that leads to all") from error
    return ",".join(addresses)


def is_loopback(address: str) -> bool:
    """Tells whether `host:port`, or each of several, never leaves this machine."""
    if "," in address:
        return all(is_loopback(part) for part in address.split(","))
    host, _ = split_address(address)
    if host.lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _trust_domain(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", text):
        raise ValueError(
            "a name of lower-case letters, digits, dots, hyphens and underscores, such as holdfast.internal"
        )
    return text


def services_listen_setting() -> Any:
    """Declares where a service that clients call as well accepts the suite's services."""
    return setting(
        "HOLDFAST_SERVICES_LISTEN",
        default="",
        parse=host_port,
        doc="With TLS: address for the suite's own services, who show certificates there, as host:port.",
    )


def _service_token(text: str) -> str:
    if len(text) < MINIMUM_TOKEN_CHARACTERS:
        raise ValueError(f"at least {MINIMUM_TOKEN_CHARACTERS} characters; `openssl rand -hex 32` makes a good one")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("printable ASCII without spaces")
    return text


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if scheme == "sqlite" and separator and rest.startswith("/") and len(rest) > 1:
        return text
    if scheme in ("postgresql", "postgres", "postgresql+psycopg") and separator and rest:
        return text
    raise ValueError("postgresql://user:password@host:5432/database, or sqlite:///path/of/the/file.db")


# --------------------------------------------------------------------------------- settings that several services have


def listen_setting(port: int) -> Any:
    """Declares where the service accepts gRPC."""
    return setting(
        "HOLDFAST_LISTEN",
        default=f"127.0.0.1:{port}",
        parse=host_port,
        doc="Address on which the service accepts gRPC, as host:port; port 0 takes a free one.",
    )


def state_address_setting() -> Any:
    """Declares where the state service is."""
    return _peer("STATE", 7401)


def auth_address_setting() -> Any:
    """Declares where the auth service is."""
    return _peer("AUTH", 7402)


def executor_address_setting() -> Any:
    """Declares where the executor service is."""
    return _peer("EXECUTOR", 7400)


def trace_address_setting() -> Any:
    """Declares where the trace service is."""
    return _peer("TRACE", 7403)


def _peer(service: str, port: int) -> Any:
    return setting(
        f"HOLDFAST_{service}_ADDRESS",
        default=f"127.0.0.1:{port}",
        parse=peer_addresses,
        doc=f"Address of the {service.lower()} service, as host:port; of several replicas, ip:port,ip:port.",
        dials=True,
    )


def database_url_setting(default: str | None = None) -> Any:
    """Declares the database; secret, because the URL may hold a password."""
    doc = "Database: postgresql://user:password@host:5432/name, or sqlite:///path (one machine only)."
    if default is None:
        return setting("HOLDFAST_DATABASE_URL", parse=_database_url, doc=doc, secret=True)
    return setting("HOLDFAST_DATABASE_URL", default=default, parse=_database_url, doc=doc, secret=True)


def database_pool_size_setting() -> Any:
    """Declares how many PostgreSQL connections the process keeps."""
    return setting(
        "HOLDFAST_DATABASE_POOL_SIZE",
        default=8,
        minimum=1,
        maximum=200,
        doc="PostgreSQL connections of this process, beside up to four for single statements and those of its "
        "dedicated writers.",
    )


def migrate_on_start_setting() -> Any:
    """Declares whether the service brings a PostgreSQL schema up to date by itself."""
    return setting(
        "HOLDFAST_MIGRATE_ON_START",
        default=False,
        doc="Run the database migrations at start on PostgreSQL; SQLite is always migrated at start.",
    )


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service has. A subclass gives `listen` its own port and may extend `problems`."""

    listen: str = listen_setting(7400)
    service_token: str = setting(
        "HOLDFAST_SERVICE_TOKEN",
        parse=_service_token,
        secret=True,
        doc="Secret that the suite's services show to each other, the same for all; at least 32 characters.",
    )
    metrics_listen: str = setting(
        "HOLDFAST_METRICS_LISTEN",
        default="",
        parse=host_port,
        doc="Address of the Prometheus page /metrics, as host:port; off when empty.",
    )
    log_format: Literal["auto", "json", "pretty"] = setting(
        "HOLDFAST_LOG_FORMAT",
        default="auto",
        doc="json writes one object a line, pretty is for people; auto is pretty on a terminal.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "HOLDFAST_LOG_LEVEL", default="info", doc="Least severe level that is logged."
    )
    allow_plaintext: bool = setting(
        "HOLDFAST_ALLOW_PLAINTEXT",
        default=False,
        doc="Allow connections without TLS beyond this machine, on a network that nobody else can read.",
    )
    tls_cert_file: Path | None = setting(
        "HOLDFAST_TLS_CERT_FILE",
        default=None,
        doc="The service's certificate in PEM, with its chain. It, its key and the authority are read again when they "
        "change. Set all four TLS settings, or none.",
    )
    tls_key_file: Path | None = setting("HOLDFAST_TLS_KEY_FILE", default=None, doc="The certificate's key in PEM.")
    tls_ca_file: Path | None = setting(
        "HOLDFAST_TLS_CA_FILE",
        default=None,
        doc="The authority that signs the certificates of the suite's services, in PEM.",
    )
    tls_trust_domain: str = setting(
        "HOLDFAST_TLS_TRUST_DOMAIN",
        default="",
        parse=_trust_domain,
        doc="Whose services are trusted: certificates with the URI spiffe://<trust domain>/<service>.",
    )
    drain_seconds: float = setting(
        "HOLDFAST_DRAIN_SECONDS",
        default=10.0,
        parse=duration_seconds,
        maximum=3600,
        doc="How long calls in flight may go on after SIGTERM before they are cut.",
    )
    max_message_bytes: int = setting(
        "HOLDFAST_MAX_MESSAGE_BYTES",
        default=16 * 1024 * 1024,
        parse=byte_count,
        minimum=64 * 1024,
        maximum=HARD_MESSAGE_LIMIT_BYTES // 4,
        doc="Largest gRPC message that is accepted or sent.",
    )
    default_deadline_seconds: float = setting(
        "HOLDFAST_DEFAULT_DEADLINE_SECONDS",
        default=60.0,
        parse=duration_seconds,
        minimum=0.001,
        doc="Deadline of a unary call whose client gave none; calls made to wait are exempt.",
    )
    crash_point: str = setting(
        "HOLDFAST_CRASH_POINT",
        default="",
        doc="For tests: where the process dies as if killed, as name or name:visits (services/shared/crash_points.py).",
    )
    auth_failures_per_minute: int = setting(
        "HOLDFAST_AUTH_FAILURES_PER_MINUTE",
        default=60,
        minimum=0,
        doc="How many keys, tokens and service credentials that are not valid one address may try; 0 means no limit.",
    )
    otlp_endpoint: str = setting(
        "HOLDFAST_OTLP_ENDPOINT",
        default="",
        parse=host_port,
        dials=True,
        doc="OTLP/gRPC collector for the services' own spans, as host:port; off when empty.",
    )

    @property
    def speaks_tls(self) -> bool:
        """Whether the service accepts and makes encrypted connections only."""
        return self.tls_cert_file is not None

    def problems(self) -> list[str]:
        """Returns what is wrong in the combination of the settings, one line each."""
        tls = {
            "HOLDFAST_TLS_CERT_FILE": self.tls_cert_file,
            "HOLDFAST_TLS_KEY_FILE": self.tls_key_file,
            "HOLDFAST_TLS_CA_FILE": self.tls_ca_file,
            "HOLDFAST_TLS_TRUST_DOMAIN": self.tls_trust_domain,
        }
        if any(tls.values()) and not all(tls.values()):
            return [f"{name} is required with the other TLS settings" for name, value in tls.items() if not value]
        return self._plaintext_problems()

    def _plaintext_problems(self) -> list[str]:
        if self.allow_plaintext:
            return []
        addresses = [("HOLDFAST_METRICS_LISTEN", self.metrics_listen)]
        if not self.speaks_tls:
            addresses.insert(0, ("HOLDFAST_LISTEN", self.listen))
        for field, declared, _ in _declared(type(self)):
            # Of what a service dials, the other services have TLS then, and a collector has not.
            if declared.dials and (not self.speaks_tls or field.name == "otlp_endpoint"):
                addresses.append((declared.name, getattr(self, field.name)))
        return [
            f"{name}={address!r} reaches beyond this machine, and connections are not encrypted: use a loopback "
            "address or the HOLDFAST_TLS_* settings, or set HOLDFAST_ALLOW_PLAINTEXT=true if nobody else can read "
            "that network"
            for name, address in addresses
            if address and not is_loopback(address)
        ]
