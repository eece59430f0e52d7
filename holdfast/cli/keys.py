"""`holdfast keys`: Holdfast's own API keys of the workspace."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from holdfast.api.auth.v1 import api_key_service_pb2
from holdfast.cli.app import JsonOption, group, with_client
from holdfast.cli.console import age, moment, note, plain, print_json, print_table, say, state_text, to_datetime
from holdfast.client import Client
from holdfast.errors import NotFound

keys = group("keys", "API keys of the workspace; alone it lists them.")

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


@keys.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """API keys of the workspace; alone it lists them."""
    if context.invoked_subcommand is None:
        list_keys(as_json=as_json)


@keys.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys, newest first, without their secrets."""

    async def read(client: Client) -> list[api_key_service_pb2.ApiKey]:
        return [key async for key in client.keys.list()]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "name", "state", "scopes", "made", "ends", "used"),
        (
            (
                key.api_key_id,
                key.display_name,
                state_text(_state(key)),
                ", ".join(key.scopes),
                age(key.create_time),
                moment(key.expire_time) or "never",
                age(key.last_use_time) or "never",
            )
            for key in found
        ),
        empty="There are no keys.",
    )


def _state(key: api_key_service_pb2.ApiKey) -> str:
    if key.HasField("revoke_time"):
        return "REVOKED"
    if key.HasField("expire_time") and to_datetime(key.expire_time) <= datetime.now(UTC):
        return "EXPIRED"
    return "ACTIVE"


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for, for people.")],
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            "-r",
            help="What it may do, as a role: admin, developer, runner, viewer or worker. Without a role or scope: "
            "runner, which is what a program needs to start and follow runs.",
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", "-s", help="What it may do, such as runs:write; give it several times."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network", metavar="CIDR", help="Where it may be used from, such as 10.0.0.0/8; give it several times."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="When it ends by itself: 12h, 30d, 8w. Never when not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once."""
    wanted = [*(role or []), *(scope or [])] or ["runner"]
    expire_time = _expire_time(expires) if expires is not None else None
    key, secret = with_client(
        lambda client: client.keys.create(name, wanted, expire_time=expire_time, networks=network or [])
    )
    _show_new(key, secret, as_json)


@keys.command()
def rotate(
    api_key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, the part between the underscores.")],
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="When the new key ends by itself: 12h, 30d, 8w.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a second key like another one. Both work until the old one is revoked."""
    expire_time = _expire_time(expires) if expires is not None else None

    async def copy(client: Client) -> tuple[api_key_service_pb2.ApiKey, str]:
        async for old in client.keys.list():
            if old.api_key_id == api_key_id:
                return await client.keys.create(
                    old.display_name, list(old.scopes), expire_time=expire_time, networks=list(old.networks)
                )
        raise NotFound("there is no such API key", reason="API_KEY_NOT_FOUND")

    key, secret = with_client(copy)
    _show_new(key, secret, as_json)
    if not as_json:
        note(f"When nothing uses the old one any more: holdfast keys revoke {api_key_id}")


def _show_new(key: api_key_service_pb2.ApiKey, secret: str, as_json: bool) -> None:
    if as_json:
        print_json({"api_key": plain(key), "secret": secret})
        return
    say(secret)
    note(
        f"This is the only time it is shown. It may: {', '.join(key.scopes)}. To end it: holdfast keys revoke "
        f"{key.api_key_id}"
    )


def _expire_time(text: str) -> datetime:
    match = re.fullmatch(r"(\d{1,6})\s*([mhdw])", text.strip().lower())
    if match is None or not int(match[1]):
        raise typer.BadParameter(f"{text!r} is no duration such as 12h, 30d or 8w", param_hint="--expires")
    return datetime.now(UTC) + timedelta(seconds=int(match[1]) * _UNITS[match[2]])


@keys.command()
def revoke(
    api_key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, the part between the underscores.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key useless, at every service within seconds."""
    key = with_client(lambda client: client.keys.revoke(api_key_id))
    if as_json:
        print_json(key)
        return
    say(f"{key.api_key_id} is revoked")
