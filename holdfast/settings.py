"""Where the suite is and which key to show: arguments, then HOLDFAST_* variables, then the user's configuration file.

The file holds API keys: it is written whole or not at all, and nobody but its owner can read it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.errors import InvalidArgument

DEFAULT_PROFILE: Final = "default"
DEFAULT_HOST: Final = "127.0.0.1"
PORTS: Final[Mapping[str, int]] = {"executor": 7400, "state": 7401, "auth": 7402, "trace": 7403}
"""Default ports of the services. Beside another executor, auth and trace are expected at the same distance."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_FIELDS: Final = ("address", "auth_address", "trace_address", "api_key", "workspace", "ca_file")


class ConfigurationError(InvalidArgument):
    """The user's configuration is missing something or can't be read; the text says what and where."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One suite in the configuration file; empty means not given.

    Attributes:
        address: The executor, as host:port, or https://host:port for TLS. Several executors are separated by commas,
            with IP addresses: the first that can be reached is used, and left for another one when it is lost.
        auth_address: The auth service.
        trace_address: The trace service.
        api_key: The key that is shown to all of them.
        workspace: Name of the key's workspace, for people.
        ca_file: Authority that signs the services' certificates, in PEM; the system's when there is none.
    """

    address: str = ""
    auth_address: str = ""
    trace_address: str = ""
    api_key: str = ""
    workspace: str = ""
    ca_file: str = ""

    def __repr__(self) -> str:
        return f"<Profile {self.address or 'without an address'}>"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client needs to know, resolved.

    Attributes:
        address: The executor.
        auth_address: The auth service.
        trace_address: The trace service.
        api_key: Empty when there is none anywhere.
        ca_file: Authority of `https://` addresses; the system's when it is empty.
    """

    address: str
    auth_address: str
    trace_address: str
    api_key: str
    ca_file: str = ""

    def __repr__(self) -> str:
        return f"<ClientSettings {self.address}>"


def config_path() -> Path:
    """Returns the path of the user's configuration file; HOLDFAST_CONFIG overrides it."""
    given = os.environ.get("HOLDFAST_CONFIG")
    if given:
        return Path(given).expanduser()
    # Imported here: most programs name their address themselves or through the environment.
    import platformdirs

    return platformdirs.user_config_path("holdfast") / "config.toml"


def resolve(
    *,
    address: str | None = None,
    api_key: str | None = None,
    auth_address: str | None = None,
    trace_address: str | None = None,
    profile: str | None = None,
    ca_file: str | None = None,
) -> ClientSettings:
    """Returns the settings of a client: each from the arguments, else the environment, else the configuration file.

    An executor named by an argument or variable has its auth and trace beside it (ports + 2 and + 3), unless they
    are named too: those of a profile belong to the profile's executor.

    Raises:
        ConfigurationError: The file can't be read, or has no such profile.
        InvalidArgument: An address is none.
    """
    environ = os.environ
    given_address = address or environ.get("HOLDFAST_ADDRESS") or ""
    given_auth = auth_address or environ.get("HOLDFAST_AUTH_ADDRESS") or ""
    given_trace = trace_address or environ.get("HOLDFAST_TRACE_ADDRESS") or ""
    given_key = api_key or environ.get("HOLDFAST_API_KEY") or ""
    named = profile or environ.get("HOLDFAST_PROFILE") or ""
    stored = Profile()
    if not (given_address and given_key) or named:
        stored = _stored_profile(named)
    chosen = given_address or stored.address or f"{DEFAULT_HOST}:{PORTS['executor']}"
    # What the profile says of its neighbours holds only for the profile's own executor.
    neighbours = stored if chosen == stored.address else Profile()
    return ClientSettings(
        address=chosen,
        auth_address=given_auth or neighbours.auth_address or beside(chosen, "auth"),
        trace_address=given_trace or neighbours.trace_address or beside(chosen, "trace"),
        api_key=(given_key or stored.api_key).strip(),
        ca_file=ca_file or environ.get("HOLDFAST_CA_FILE") or neighbours.ca_file,
    )


def _stored_profile(named: str) -> Profile:
    path = config_path()
    profiles = load_profiles(path)
    if not named:
        return profiles.get(DEFAULT_PROFILE, Profile())
    if named not in profiles:
        known = f"; it has {', '.join(sorted(profiles))}" if profiles else ""
        raise ConfigurationError(f"there is no profile {named!r} in {path}{known}")
    return profiles[named]


def beside(address: str, service: str) -> str:
    """Returns where another service of the suite is expected, next to an executor's address (the first of several)."""
    scheme, host, port = split_address(address.partition(",")[0].strip())
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}{shown}:{port + PORTS[service] - PORTS['executor']}"


def split_addresses(addresses: str) -> list[tuple[str, str, int]]:
    """Splits one address, or several of one service that are separated by commas.

    Raises:
        InvalidArgument: One of them is none, or several are given that are not IP addresses without TLS.
    """
    found = [split_address(address.strip()) for address in addresses.split(",")]
    if len(found) > 1:
        for scheme, host, _ in found:
            # The transport takes several addresses as numbers only; a name may stand for several by itself, in DNS.
            if scheme or not _is_ip_address(host):
                raise InvalidArgument(
                    f"{addresses!r}: several addresses must be of the form 10.0.0.1:7400,10.0.0.2:7400", field="address"
                )
    return found


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def split_address(address: str) -> tuple[str, str, int]:
    """Splits an address into its scheme (`https://`, `http://` or empty), host and port.

    Raises:
        InvalidArgument: It is none.
    """
    match = re.fullmatch(r"(https?://|)(\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+):(\d{1,5})/?", address)
    if match is None or int(match[3]) > 65535:
        raise InvalidArgument(f"{address!r} is no address of the form host:port or https://host:port", field="address")
    return match[1], match[2].strip("[]"), int(match[3])


# ---------------------------------------------------------------------------------------------------------------- file


def load_profiles(path: Path) -> dict[str, Profile]:
    """Returns the profiles of a configuration file; none when there is no file.

    Raises:
        ConfigurationError: It can't be read, is not TOML, or has a field of another type.
    """
    profiles = {}
    for name, table in _load_document(path).get("profiles", {}).items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: profiles.{name} is not a table")
        for field in _FIELDS:
            if not isinstance(table.get(field, ""), str):
                raise ConfigurationError(f"{path}: profiles.{name}.{field} is not a text")
        profiles[name] = Profile(**{field: table[field] for field in _FIELDS if field in table})
    return profiles


def save_profile(path: Path, name: str, profile: Profile) -> None:
    """Writes one profile into the configuration file; everything else that is in it stays.

    Raises:
        ConfigurationError: The existing file is not valid, or the new one can't be written.
    """
    document = _load_document(path)
    table = document.setdefault("profiles", {}).setdefault(name, {})
    for field in _FIELDS:
        value = getattr(profile, field)
        if value:
            table[field] = value
        else:
            table.pop(field, None)
    text = "# Written by `holdfast`. It holds API keys: keep it to yourself.\n" + _toml(document)
    try:
        write_private(path, text)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step with one that only its owner can read; folders it needs are made likewise.

    Raises:
        OSError: It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp makes the file 0600, so that there is no moment in which others could open it.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load_document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    if not isinstance(document.get("profiles", {}), dict):
        raise ConfigurationError(f"{path}: profiles is not a table")
    return document


def _toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Writes the part of TOML that this file uses: texts, numbers, booleans, lists of them, and tables."""
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            name = f"{prefix}{_toml_key(key)}"
            body = _toml(value, f"{name}.")
            # A table that holds only tables needs no header of its own.
            has_own = any(not isinstance(entry, dict) for entry in value.values()) or not value
            lines.append(f"\n[{name}]\n{body}".rstrip("\n") if has_own else body.rstrip("\n"))
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # A basic string of TOML escapes like JSON, but for DEL, which JSON leaves alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
