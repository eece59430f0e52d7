"""Where a client finds its suite and its key, and what becomes of the configuration file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from holdfast.errors import InvalidArgument
from holdfast.settings import (
    ConfigurationError,
    Profile,
    beside,
    config_path,
    load_profiles,
    resolve,
    save_profile,
    split_address,
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file that does not exist yet."""
    path = tmp_path / "folder" / "config.toml"
    monkeypatch.setenv("HOLDFAST_CONFIG", str(path))
    return path


LOCAL = Profile("127.0.0.1:7500", "127.0.0.1:7502", "127.0.0.1:9999", "hfst_local", "default")


def test_without_anything_the_default_ports_of_this_machine_are_used(config: Path) -> None:
    settings = resolve()
    assert (settings.address, settings.auth_address, settings.trace_address, settings.api_key) == (
        "127.0.0.1:7400",
        "127.0.0.1:7402",
        "127.0.0.1:7403",
        "",
    )


def test_arguments_go_before_variables_and_variables_before_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_profile(config, "default", LOCAL)
    assert resolve().api_key == "hfst_local"
    assert resolve().trace_address == "127.0.0.1:9999"
    monkeypatch.setenv("HOLDFAST_API_KEY", "hfst_variable")
    monkeypatch.setenv("HOLDFAST_TRACE_ADDRESS", "trace.example:1")
    assert (resolve().api_key, resolve().trace_address) == ("hfst_variable", "trace.example:1")
    assert resolve(api_key="hfst_argument").api_key == "hfst_argument"
    assert resolve().address == "127.0.0.1:7500"


def test_neighbours_of_a_profile_do_not_follow_another_executor(config: Path) -> None:
    save_profile(config, "default", LOCAL)
    settings = resolve(address="other.example:8000")
    assert (settings.auth_address, settings.trace_address) == ("other.example:8002", "other.example:8003")


def test_profile_is_chosen_by_argument_or_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(config, "default", LOCAL)
    save_profile(config, "prod", Profile("https://agents.example:443", api_key="hfst_prod"))
    assert resolve(profile="prod").api_key == "hfst_prod"
    monkeypatch.setenv("HOLDFAST_PROFILE", "prod")
    assert resolve().address == "https://agents.example:443"
    with pytest.raises(ConfigurationError, match=r"no profile 'test' in .*; it has default, prod"):
        resolve(profile="test")


def test_file_and_folder_are_for_the_owner_only(config: Path) -> None:
    save_profile(config, "default", LOCAL)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    config.chmod(0o644)
    save_profile(config, "default", LOCAL)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_saving_keeps_other_profiles_and_unknown_entries(config: Path) -> None:
    config.parent.mkdir()
    config.write_text(
        'theme = "dark"\n[profiles.prod]\napi_key = "hfst_prod"\nnote = "mine"\nlevels = [1, 2]\n'
        '[other."a b"]\nx = 1.5\n'
    )
    save_profile(config, "default", LOCAL)
    save_profile(config, "odd name", Profile(api_key='quote " and \\ and ü'))
    text = config.read_text()
    assert 'theme = "dark"' in text
    assert 'note = "mine"' in text
    assert "x = 1.5" in text
    profiles = load_profiles(config)
    assert profiles["default"] == LOCAL
    assert profiles["prod"].api_key == "hfst_prod"
    assert profiles["odd name"].api_key == 'quote " and \\ and ü'


def test_profile_never_shows_its_key() -> None:
    assert "hfst_local" not in repr(LOCAL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[profiles\n", "is not valid TOML"),
        ("profiles = 1\n", "profiles is not a table"),
        ("[profiles]\ndefault = 1\n", "profiles.default is not a table"),
        ("[profiles.default]\napi_key = 1\n", "profiles.default.api_key is not a text"),
    ],
)
def test_broken_file_is_named_with_what_is_wrong(config: Path, text: str, message: str) -> None:
    config.parent.mkdir()
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        resolve()
    assert str(config) in caught.value.message


def test_default_path_is_in_the_users_configuration_folder() -> None:
    assert config_path().parts[-2:] == ("holdfast", "config.toml")


@pytest.mark.parametrize(
    "address", ["localhost", "host:port", "http://host", "user@host:1", "host:99999", ":1", "a b:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="is no address of the form"):
        split_address(address)


def test_address_is_split_with_scheme_and_brackets() -> None:
    assert split_address("https://[::1]:7400") == ("https://", "::1", 7400)
    assert beside("[::1]:7400", "trace") == "[::1]:7403"
