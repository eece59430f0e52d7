"""compose.yml starts what the services accept: every setting is known, none is missing, and little is published."""

from __future__ import annotations

import base64
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.shared.settings import CommonSettings, declared_settings, load, unknown_settings
from tests.repository.tree import ROOT, SERVICES

COMPOSE = yaml.safe_load((ROOT / "compose.yml").read_text())
VARIABLES = {
    "HOLDFAST_SERVICE_TOKEN": "t" * 64,
    "HOLDFAST_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
    "POSTGRES_PASSWORD": "password",
}
PRODUCTION = yaml.safe_load((ROOT / "deploy" / "compose.production.yml").read_text())
PRODUCTION_VARIABLES = {
    "SERVICES_TLS_DIR": "/certs",
    "HOLDFAST_VAULT_ROLE_ID": "role",
    "VAULT_CA_FILE": "ca.pem",
    "VAULT_SECRET_ID_FILE": "secret-id",
    "VAULT_TAG": "1.20",
    "VAULT_TLS_DIR": "tls",
}
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def substituted(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match["kind"] == "-":
            return VARIABLES.get(match["name"], match["rest"])
        return (VARIABLES | PRODUCTION_VARIABLES)[match["name"]]

    return VARIABLE.sub(value, text)


def settings_class(service: str) -> type[CommonSettings]:
    module: Any = importlib.import_module(f"services.{service}.settings")
    [found] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, CommonSettings) and value.__module__ == module.__name__
    ]
    return found


def declared_defaults(cls: type[CommonSettings]) -> list[tuple[str, str]]:
    return [(declared.name, default) for declared, default in declared_settings(cls)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_the_settings_of_its_container(service: str) -> None:
    definition = COMPOSE["services"][service]
    environment = {name: substituted(str(value)) for name, value in definition["environment"].items()}
    cls = settings_class(service)

    settings = load(cls, environment)

    assert unknown_settings(environment, cls) == []
    [port] = [default.rpartition(":")[2] for name, default in declared_defaults(cls) if name == "HOLDFAST_LISTEN"]
    assert settings.listen == f"0.0.0.0:{port}"
    assert definition["command"] == ["python", "-P", "-m", f"services.{service}"]


def test_every_secret_has_to_be_given_and_is_explained() -> None:
    text = (ROOT / "compose.yml").read_text()
    required = {match["name"] for match in VARIABLE.finditer(text) if match["kind"] == "?"}
    explained = set(re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert required == explained == set(VARIABLES)


def test_only_what_clients_call_is_published_and_only_on_this_machine() -> None:
    published = {name: definition.get("ports", []) for name, definition in COMPOSE["services"].items()}

    assert {name for name, ports in published.items() if ports} == {"executor", "auth", "trace"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_of_ours_may_change_nothing_but_its_temporary_files(service: str) -> None:
    definition = COMPOSE["services"][service]

    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    assert re.search(r"^USER 10001:10001$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def production_of(name: str, folder: Path) -> dict[str, str]:
    """The environment of a container in production; the files that it mounts are files of this machine."""
    environment = {
        variable: substituted(str(value))
        for file in (COMPOSE, PRODUCTION)
        for variable, value in file["services"][name]["environment"].items()
    }
    mounted = {volume.split(":")[-2] for volume in PRODUCTION["services"][name]["volumes"]}
    named = {variable for variable, value in environment.items() if value.startswith("/run/holdfast/")}
    assert {environment[variable] for variable in named} == mounted
    for variable in named:
        file = folder / variable
        file.touch(0o600)
        environment[variable] = str(file)
    return environment


def test_auth_accepts_the_settings_of_production_over_those_of_development(tmp_path: Path) -> None:
    environment = production_of("auth", tmp_path)
    cls = settings_class("auth")

    settings: Any = load(cls, environment)

    assert unknown_settings(environment, cls) == []
    assert (settings.secret_store, settings.vault_auth, settings.vault_token) == ("vault", "approle", None)
    assert settings.vault_addr == ("https://vault:8200",)


@pytest.mark.parametrize("service", SERVICES)
def test_services_speak_tls_only_in_production_and_come_to_auth_where_it_takes_services(
    service: str, tmp_path: Path
) -> None:
    environment = production_of(service, tmp_path)
    cls = settings_class(service)

    settings: Any = load(cls, environment)

    assert unknown_settings(environment, cls) == []
    assert settings.speaks_tls
    # Auth's pages for browsers are plain HTTP, behind a proxy.
    assert settings.allow_plaintext is (service == "auth")
    auth: Any = load(settings_class("auth"), production_of("auth", tmp_path))
    port = auth.services_listen.rpartition(":")[2]
    assert port != auth.listen.rpartition(":")[2]
    if service != "auth":
        assert settings.auth_address == f"auth:{port}"
    published = COMPOSE["services"]["auth"]["ports"] + PRODUCTION["services"]["auth"].get("ports", [])
    assert not any(port in address for address in published)


@pytest.mark.parametrize("name", [*SERVICES, "operator"])
def test_a_container_sees_its_own_certificate_and_no_others(name: str) -> None:
    certificates = {
        substituted(volume).split(":")[0]
        for volume in PRODUCTION["services"][name]["volumes"]
        if "SERVICES_TLS_DIR" in volume
    }
    assert certificates == {f"/certs/{name}.pem", f"/certs/{name}.key", "/certs/ca.pem"}
    assert all(volume.endswith(":ro") for volume in PRODUCTION["services"][name]["volumes"])


def test_the_vault_of_production_has_nothing_of_the_development_one() -> None:
    development, production = COMPOSE["services"]["vault"], PRODUCTION["services"]["vault"]

    assert production["command"] == ["server", "-config=/vault/config/holdfast.hcl"]
    assert {name for name in development["environment"] if production["environment"].get(name) != ""} == set()
    assert "tls_cert_file" in (ROOT / "deploy" / "vault" / "holdfast.hcl").read_text()
    assert "development-only" not in (ROOT / "deploy" / "compose.production.yml").read_text()
