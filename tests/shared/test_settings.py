"""The environment: read once, and refused with every bad setting named."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from services.shared.settings import (
    CommonSettings,
    SettingsError,
    byte_count,
    comma_list,
    database_url_setting,
    declared_settings,
    duration_seconds,
    host_port,
    is_loopback,
    listen_setting,
    load,
    peer_addresses,
    setting,
    state_address_setting,
    unknown_settings,
)

TOKEN = "t" * 32


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Sample(CommonSettings):
    listen: str = listen_setting(7409)
    state_address: str = state_address_setting()
    database_url: str = database_url_setting("sqlite:////tmp/sample.db")
    colour: Colour = setting("HOLDFAST_COLOUR", default=Colour.RED)
    mode: Literal["fast", "safe"] = setting("HOLDFAST_MODE", default="safe")
    folder: Path = setting("HOLDFAST_FOLDER", default=Path("/tmp"))
    names: tuple[str, ...] = setting("HOLDFAST_NAMES", default=("a",))
    ratio: float = setting("HOLDFAST_RATIO", default=0.5, minimum=0, maximum=1)
    limit: int | None = setting("HOLDFAST_LIMIT", default=None, minimum=1)


def load_sample(**environ: str) -> Sample:
    return load(Sample, {"HOLDFAST_SERVICE_TOKEN": TOKEN, **{f"HOLDFAST_{k}": v for k, v in environ.items()}})


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_sample(**environ)
    return str(caught.value)


def test_defaults_hold_when_nothing_is_set_or_empty() -> None:
    assert load_sample(RATIO="", LISTEN="") == Sample(service_token=TOKEN)
    assert load_sample().listen == "127.0.0.1:7409"


def test_every_type_is_read() -> None:
    loaded = load_sample(
        COLOUR="blue", MODE="FAST", FOLDER="/srv", NAMES="x, y,,z", RATIO="0.25", LIMIT="1_000",
        ALLOW_PLAINTEXT="true", DRAIN_SECONDS="2m", MAX_MESSAGE_BYTES="1MiB", LISTEN="0.0.0.0:0",
        DATABASE_URL="postgresql://u:p@h/d",
    )  # fmt: skip
    assert (loaded.colour, loaded.mode, loaded.folder, loaded.names) == (
        Colour.BLUE,
        "fast",
        Path("/srv"),
        tuple("xyz"),
    )
    assert (loaded.ratio, loaded.limit, loaded.drain_seconds, loaded.max_message_bytes) == (0.25, 1000, 120, 1 << 20)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("COLOUR", "green", "one of red, blue"),
        ("MODE", "slow", "one of fast, safe"),
        ("RATIO", "1.5", "at most 1"),
        ("RATIO", "nan", "a finite number"),
        ("LIMIT", "0", "at least 1"),
        ("LIMIT", "many", "a whole number"),
        ("ALLOW_PLAINTEXT", "perhaps", "true or false"),
        ("DRAIN_SECONDS", "-1", "a duration such as"),
        ("MAX_MESSAGE_BYTES", "2GiB", "at most"),
        ("STATE_ADDRESS", "http://state:7401", "host:port"),
        ("LISTEN", "127.0.0.1:99999", "host:port"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: str, expected: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"HOLDFAST_{name}={value!r} is not valid: expected ")
    assert expected in message


def test_all_bad_settings_are_named_at_once() -> None:
    lines = refusal(RATIO="x", MODE="y", SERVICE_TOKEN="short").splitlines()
    assert [line.split()[0].partition("=")[0] for line in lines] == [
        "HOLDFAST_SERVICE_TOKEN",
        "HOLDFAST_MODE",
        "HOLDFAST_RATIO",
    ]


def test_a_required_setting_is_named_when_missing() -> None:
    with pytest.raises(SettingsError, match=r"^HOLDFAST_SERVICE_TOKEN is required: "):
        load(Sample, {})


def test_secrets_are_never_shown() -> None:
    assert "hunter2" not in refusal(SERVICE_TOKEN="hunter2")
    assert "hunter2" not in refusal(DATABASE_URL="mysql://root:hunter2@db/x")
    assert "hunter2" not in repr(load_sample(DATABASE_URL="postgresql://root:hunter2@db/x"))
    assert TOKEN not in repr(load_sample())


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("f" * 40 + "\n")
    assert load(Sample, {"HOLDFAST_SERVICE_TOKEN_FILE": str(secret)}).service_token == "f" * 40
    assert "both set" in refusal(SERVICE_TOKEN_FILE=str(secret))
    with pytest.raises(SettingsError, match=r"HOLDFAST_SERVICE_TOKEN_FILE=.* cannot be read: No such file"):
        load(Sample, {"HOLDFAST_SERVICE_TOKEN_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize("name", ["LISTEN", "METRICS_LISTEN", "STATE_ADDRESS", "OTLP_ENDPOINT"])
def test_plain_text_beyond_this_machine_is_refused_unless_allowed(name: str) -> None:
    message = refusal(**{name: "10.0.0.5:7000"})
    assert message.startswith(f"HOLDFAST_{name}='10.0.0.5:7000' reaches beyond this machine")
    assert "HOLDFAST_ALLOW_PLAINTEXT=true" in message
    load_sample(**{name: "10.0.0.5:7000", "ALLOW_PLAINTEXT": "true"})


def test_a_misspelt_setting_is_pointed_out() -> None:
    environ = {"HOLDFAST_RATOI": "1", "HOLDFAST_SERVICE_TOKEN_FILE": "x", "HOLDFAST_ZZZ": "", "PATH": "/bin"}
    assert unknown_settings(environ, Sample) == [
        "HOLDFAST_RATOI is not a setting of this service; did you mean HOLDFAST_RATIO?",
        "HOLDFAST_ZZZ is not a setting of this service",
    ]


def test_every_common_setting_is_documented() -> None:
    assert [row.name for row, _ in declared_settings(CommonSettings) if not row.doc] == []


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (duration_seconds, "250ms", 0.25),
        (duration_seconds, "90", 90.0),
        (duration_seconds, "1.5h", 5400.0),
        (byte_count, "16777216", 1 << 24),
        (byte_count, "2kb", 2000),
        (comma_list, "", ()),
        (host_port, "[::1]:7400", "[::1]:7400"),
        (peer_addresses, "state:7401", "state:7401"),
        (peer_addresses, "10.0.0.1:7401, 10.0.0.2:7401", "10.0.0.1:7401,10.0.0.2:7401"),
    ],
)
def test_text_is_parsed(parse: Any, text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False),
     ("[::]:1", False), ("localhost.example.com:1", False), ("10.0.0.1:1", False)],
)  # fmt: skip
def test_loopback_is_recognised(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
