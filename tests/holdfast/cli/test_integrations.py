"""`holdfast integrations` and `holdfast connections`, against a running auth service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli import __main__ as entry
from holdfast.cli.console import ExitCode
from tests.auth.support import make_key, running, settings_for, sqlite_url
from tests.holdfast.cli.conftest import Invoke

SECRET = "client-secret-canary"
KEY = "sk-canary-1"


@pytest.fixture
async def holdfast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Invoke]:
    """Runs a command against auth, in a thread, because commands have a loop of their own."""
    async with running(settings_for(sqlite_url(tmp_path))) as auth:
        _, key = await make_key(auth.settings, "acme")
        monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "config.toml"))
        monkeypatch.setenv("HOLDFAST_ADDRESS", "127.0.0.1:1")
        monkeypatch.setenv("HOLDFAST_AUTH_ADDRESS", auth.address)
        monkeypatch.setenv("HOLDFAST_API_KEY", key)

        async def invoke(*arguments: str, input: str | None = None):
            result = await asyncio.to_thread(CliRunner().invoke, entry.app, list(arguments), input)
            # Whatever a command prints, no secret is in it.
            assert "canary" not in result.output, result.output
            return result

        yield invoke


async def test_life_of_an_integration(holdfast: Invoke) -> None:
    listed = await holdfast("integrations", "providers", "github", "--json")
    assert "github" in [provider["slug"] for provider in json.loads(listed.stdout)]
    created = await holdfast(
        *("integrations", "create", "github", "--client-id", "app-1", "--scope", "repo", "--client-secret-stdin"),
        input=SECRET,
    )
    assert created.exit_code == ExitCode.OK, created.output
    assert "/oauth/callback/" in created.stderr
    shown = await holdfast("integrations", "show", "github")
    assert "app-1" in shown.stdout
    changed = await holdfast("integrations", "update", "github", "--agent", "helper", "--disable", "--json")
    assert json.loads(changed.stdout)["state"] == "INTEGRATION_STATE_DISABLED"
    again = await holdfast("integrations", "update", "github", "--enable", "--client-secret-stdin", input=f"{SECRET}2")
    assert "client secrets  2" in again.stdout
    table = await holdfast("integrations")
    assert "helper" in table.stdout
    unsure = await holdfast("integrations", "delete", "github")
    assert unsure.exit_code == ExitCode.ERROR
    deleted = await holdfast("integrations", "delete", "github", "--yes")
    assert deleted.stdout == "integration github is deleted; 0 connections revoked\n"
    assert json.loads((await holdfast("integrations", "list", "--json")).stdout) == []


async def test_client_secret_comes_from_a_file_or_a_variable_and_is_never_an_argument(
    holdfast: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await holdfast("integrations", "create", "github", "--client-id", "app", "--client-secret", "x")
    assert refused.exit_code == ExitCode.USAGE
    missing = await holdfast("integrations", "create", "github", "--client-id", "app")
    assert "HOLDFAST_CLIENT_SECRET" in missing.stderr
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    made = await holdfast(
        "integrations", "create", "github", "--client-id", "app", "--client-secret-file", str(file), "--json"
    )
    assert json.loads(made.stdout)["client_secret_count"] == 1
    monkeypatch.setenv("HOLDFAST_CLIENT_SECRET", SECRET)
    made = await holdfast("integrations", "create", "github", "--name", "b", "--client-id", "app", "--json")
    assert json.loads(made.stdout)["client_secret_count"] == 1
    public = await holdfast(
        "integrations", "create", "github", "--name", "c", "--client-id", "app", "--public", "--json"
    )
    assert "client_secret_count" not in json.loads(public.stdout)


async def test_life_of_a_users_connection(holdfast: Invoke) -> None:
    create = ("connections", "create", "crm", "--user", "ann", "--base-url", "https://crm.example", "--api-key-stdin")
    created = await holdfast(*create, "--agent", "helper", input=KEY)
    assert created.stdout.startswith("connection crm of ann to crm is stored, fingerprint ")
    shown = await holdfast("connections", "show", "crm", "--user", "ann")
    assert "https://crm.example" in shown.stdout
    absent = await holdfast("connections", "show", "crm")
    assert (absent.exit_code, "CONNECTION_NOT_FOUND" in absent.stderr) == (ExitCode.ERROR, True)
    off = await holdfast("connections", "update", "crm", "--user", "ann", "--all-agents", "--disable")
    assert off.stdout == "connection crm is changed; it is DISABLED\n"
    listed = json.loads((await holdfast("connections", "list", "--state", "disabled", "--json")).stdout)
    assert [(connection["name"], connection["user_id"]) for connection in listed] == [("crm", "ann")]
    assert json.loads((await holdfast("connections", "list", "--user", "bob", "--json")).stdout) == []
    table = await holdfast("connections")
    assert "ann" in table.stdout
    # A key has nothing to renew.
    kept = await holdfast("connections", "refresh", "crm", "--user", "ann")
    assert (kept.exit_code, "CONNECTION_NOT_REFRESHABLE" in kept.stderr) == (ExitCode.ERROR, True)
    revoked = await holdfast("connections", "revoke", "crm", "--user", "ann")
    assert revoked.exit_code == ExitCode.OK


async def test_password_is_asked_for_with_a_user_name(holdfast: Invoke) -> None:
    made = await holdfast(
        *("connections", "create", "legacy", "--username", "ann", "--base-url", "https://legacy.example"),
        *("--api-key-stdin", "--json"),
        input=KEY,
    )
    assert json.loads(made.stdout)["kind"] == "CREDENTIAL_KIND_BASIC"


async def test_what_an_installation_is_called_is_checked_by_its_provider(holdfast: Invoke) -> None:
    await holdfast("integrations", "create", "shopify", "--client-id", "app", "--public")
    refused = await holdfast("connect", "shopify", "--no-browser", "--variable", "shop=evil.example/x")
    assert (refused.exit_code, "<name>.myshopify.com" in refused.stderr) == (ExitCode.ERROR, True)
    await holdfast("integrations", "create", "api-key", "--variable", "api_url=https://crm.example")
    refused = await holdfast(
        *("connections", "create", "--integration", "api-key", "--api-key-stdin", "--variable", "shop=acme"), input=KEY
    )
    assert (refused.exit_code, "variables.shop" in refused.stderr) == (ExitCode.ERROR, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["connections", "create"], "give a provider, or an integration"),
        (["connections", "create", "a", "--integration", "b"], "give a provider, or an integration"),
        (["connections", "list", "--state", "fine"], "needs-reauth"),
        (["integrations", "update", "a", "--enable", "--disable"], "give one of"),
        (["integrations", "create", "github", "--set", "tenant", "--client-id", "a", "--public"], "NAME=VALUE"),
        (["integrations", "create", "mcp", "--client-secret-stdin"], "belongs to a client id"),
        (["connections", "create", "-i", "a", "--no-api-key", "--variable", "shop"], "NAME=VALUE"),
        (["connect", "shopify", "--variable", "=acme"], "NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_wrong_usage_ends_with_2(holdfast: Invoke, arguments: list[str], message: str) -> None:
    result = await holdfast(*arguments)
    assert result.exit_code == ExitCode.USAGE, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
