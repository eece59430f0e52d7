"""`holdfast connections`: credentials of third parties, such as the model providers' keys."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from holdfast.api.auth.v1 import connection_service_pb2
from holdfast.cli.app import JsonOption, group, with_client
from holdfast.cli.console import age, print_json, print_table, say, state_text
from holdfast.client import Client
from holdfast.errors import InvalidArgument
from holdfast.runs import short_name

connections = group("connections", "Credentials of third parties, such as model providers; alone it lists them.")


@connections.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """Credentials of third parties, such as model providers; alone it lists them."""
    if context.invoked_subcommand is None:
        list_connections(as_json=as_json)


@connections.command("list")
def list_connections(as_json: JsonOption = False) -> None:
    """List the connections. Their secrets are never shown."""

    async def read(client: Client) -> list[connection_service_pb2.Connection]:
        return [connection async for connection in client.connections.list()]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "provider", "state", "address", "fingerprint", "changed"),
        (
            (
                connection.name,
                connection.provider,
                state_text(short_name(connection_service_pb2.ConnectionState, connection.state, "CONNECTION_STATE_")),
                connection.base_url or "the provider's own",
                connection.fingerprint or "no key",
                age(connection.update_time),
            )
            for connection in found
        ),
        empty="There are no connections; `holdfast connections create openai` adds one.",
    )


@connections.command()
def create(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="openai, anthropic, or any other name.")],
    name: Annotated[str, typer.Option(help="Name of the connection; the provider's when not given.")] = "",
    base_url: Annotated[str, typer.Option(help="The API's address; the provider's own when not given.")] = "",
    api_key_stdin: Annotated[
        bool, typer.Option("--api-key-stdin", help="Read the key from standard input instead of asking for it.")
    ] = False,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="The server wants no key; needs --base-url.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the key of an existing connection.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Store a third party's API key. It is read without echo or from standard input, never from an argument."""
    if no_api_key and api_key_stdin:
        raise typer.BadParameter("give one of --api-key-stdin and --no-api-key")
    if no_api_key and not base_url:
        raise typer.BadParameter("a server without a key needs its address", param_hint="--base-url")
    key = "" if no_api_key else _read_key(provider, from_stdin=api_key_stdin)
    connection = with_client(
        lambda client: client.connections.create(provider, key, name=name, base_url=base_url, replace=replace)
    )
    if as_json:
        print_json(connection)
        return
    shown = f", fingerprint {connection.fingerprint}" if connection.fingerprint else ""
    say(f"connection {connection.name} to {connection.provider} is stored{shown}")


def _read_key(provider: str, *, from_stdin: bool) -> str:
    # A key in an argument would be in the shell's history and in every process listing.
    if from_stdin:
        key = sys.stdin.readline().strip()
        if not key:
            raise InvalidArgument("standard input has no key")
        return key
    if not sys.stdin.isatty():
        raise InvalidArgument("there is no terminal to ask for the key: give it on standard input with --api-key-stdin")
    key = str(typer.prompt(f"API key of {provider}", hide_input=True)).strip()
    if not key:
        raise InvalidArgument("the key is empty")
    return key


@connections.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the connection.")], as_json: JsonOption = False
) -> None:
    """Revoke a connection and delete its secret."""
    connection = with_client(lambda client: client.connections.revoke(name))
    if as_json:
        print_json(connection)
        return
    say(f"connection {connection.name} is revoked and its key deleted")
