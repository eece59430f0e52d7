"""`holdfast connections`: credentials of third parties, of users or shared: keys, passwords, accounts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from holdfast.api.auth.v1 import integration_service_pb2
from holdfast.cli.app import JsonOption, group, with_client
from holdfast.cli.console import age, moment, print_json, print_table, say, state_text
from holdfast.cli.variables import VariableOption, read_variables
from holdfast.client import Client
from holdfast.errors import InvalidArgument
from holdfast.runs import short_name

connections = group("connections", "Credentials of third parties, such as model providers; alone it lists them.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the connection.")]
UserOption = Annotated[str, typer.Option("--user", "-u", help="Whose it is; the workspace's when not given.")]


@connections.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """Credentials of third parties, such as model providers; alone it lists them."""
    if context.invoked_subcommand is None:
        list_connections(as_json=as_json)


@connections.command("list")
def list_connections(
    user: Annotated[str, typer.Option("--user", "-u", help="Only those of this user.")] = "",
    integration: Annotated[str, typer.Option("--integration", "-i", help="Only those of this integration.")] = "",
    state: Annotated[str, typer.Option(help="Only those in this state, such as needs-reauth.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the connections. Their secrets are never shown."""

    wanted = _state_of(state)

    async def read(client: Client) -> list[pb.Connection]:
        listed = client.connections.list(user_id=user, integration=integration, state=wanted)
        return [connection async for connection in listed]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "user", "provider", "account", "state", "ends", "used", "fingerprint", "changed"),
        (
            (
                connection.name,
                connection.user_id or "shared",
                connection.provider,
                connection.account_label or connection.base_url or "-",
                state_text(_state_text(connection)),
                moment(connection.expire_time) or "-",
                age(connection.last_use_time) or "never",
                connection.fingerprint or "no key",
                age(connection.update_time),
            )
            for connection in found
        ),
        empty="There are no connections; `holdfast connections create openai` adds one.",
    )


@connections.command()
def show(name: NameArgument, user: UserOption = "", as_json: JsonOption = False) -> None:
    """Show a connection: whose account it is, what it may do, and where it stands."""
    connection = with_client(lambda client: client.connections.get(name, user_id=user))
    if as_json:
        print_json(connection)
        return
    reason = f" ({connection.state_reason})" if connection.state_reason else ""
    rows = [
        ("name", connection.name),
        ("user", connection.user_id or "shared"),
        ("provider", connection.provider),
        ("integration", connection.integration),
        ("kind", short_name(integration_service_pb2.CredentialKind, connection.kind, "CREDENTIAL_KIND_").lower()),
        ("state", _state_text(connection) + reason),
        ("account", connection.account_label),
        ("address", connection.base_url),
        ("variables", ", ".join(f"{name}={value}" for name, value in sorted(connection.variables.items()))),
        ("scopes", " ".join(connection.scopes)),
        ("missing scopes", " ".join(connection.missing_scopes)),
        ("agents", ", ".join(connection.agents) or "all"),
        ("raw token", "workers may have it" if connection.allow_raw_token else ""),
        ("token ends", moment(connection.expire_time)),
        ("grant ends", moment(connection.grant_expire_time)),
        ("used", age(connection.last_use_time) or "never"),
        ("fingerprint", connection.fingerprint),
        ("made", moment(connection.create_time)),
        ("changed", moment(connection.update_time)),
        ("id", connection.connection_id),
    ]
    for label, value in rows:
        if value:
            say(f"{label:<15} {value}")


@connections.command()
def create(
    provider: Annotated[str, typer.Argument(metavar="[PROVIDER]", help="openai, anthropic, or any other name.")] = "",
    name: Annotated[str, typer.Option(help="Name of the connection; the provider's when not given.")] = "",
    integration: Annotated[
        str, typer.Option("--integration", "-i", help="An integration, instead of a provider.")
    ] = "",
    user: UserOption = "",
    base_url: Annotated[str, typer.Option(help="The API's address; the provider's own when not given.")] = "",
    username: Annotated[str, typer.Option(help="User name for HTTP Basic; the password is then asked for.")] = "",
    api_key_stdin: Annotated[
        bool, typer.Option("--api-key-stdin", help="Read the key or password from standard input.")
    ] = False,
    no_api_key: Annotated[
        bool,
        typer.Option("--no-api-key", help="The server wants no key (with --base-url), or the application has its own."),
    ] = False,
    agent: Annotated[
        list[str] | None, typer.Option("--agent", "-a", help="An agent that may use it; all without. Several times.")
    ] = None,
    variable: VariableOption = None,
    allow_raw_token: Annotated[
        bool, typer.Option("--allow-raw-token", help="Workers may be handed the secret itself.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the key of an existing connection.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Store a third party's key or password. It is read without echo or from standard input, never from an argument.

    Accounts at OAuth providers are connected with `holdfast connect`.
    """
    if bool(provider) == bool(integration):
        raise typer.BadParameter("give a provider, or an integration")
    if no_api_key and api_key_stdin:
        raise typer.BadParameter("give one of --api-key-stdin and --no-api-key")
    if no_api_key and not base_url and not integration:
        raise typer.BadParameter("a server without a key needs its address", param_hint="--base-url")
    key = "" if no_api_key else _read_key(integration or provider, from_stdin=api_key_stdin, is_password=bool(username))
    connection = with_client(
        lambda client: client.connections.create(
            provider,
            key,
            name=name,
            base_url=base_url,
            replace=replace,
            user_id=user,
            integration=integration,
            username=username,
            agents=agent or (),
            allow_raw_token=allow_raw_token,
            variables=read_variables(variable),
        )
    )
    if as_json:
        print_json(connection)
        return
    shown = f", fingerprint {connection.fingerprint}" if connection.fingerprint else ""
    of = f" of {connection.user_id}" if connection.user_id else ""
    say(f"connection {connection.name}{of} to {connection.provider} is stored{shown}")


def _read_key(of: str, *, from_stdin: bool, is_password: bool) -> str:
    # A key in an argument would be in the shell's history and in every process listing.
    if from_stdin:
        key = sys.stdin.readline().strip()
        if not key:
            raise InvalidArgument("standard input has no key")
        return key
    if not sys.stdin.isatty():
        raise InvalidArgument("there is no terminal to ask for the key: give it on standard input with --api-key-stdin")
    key = str(typer.prompt(f"{'Password' if is_password else 'API key'} of {of}", hide_input=True)).strip()
    if not key:
        raise InvalidArgument("the key is empty")
    return key


@connections.command()
def update(
    name: NameArgument,
    user: UserOption = "",
    agent: Annotated[
        list[str] | None, typer.Option("--agent", "-a", help="An agent that may use it. Several times.")
    ] = None,
    all_agents: Annotated[bool, typer.Option("--all-agents", help="All agents may use it.")] = False,
    raw_token: Annotated[
        bool | None, typer.Option("--allow-raw-token/--no-raw-token", help="Workers may be handed the secret itself.")
    ] = None,
    enable: Annotated[bool, typer.Option("--enable", help="Switch it on again.")] = False,
    disable: Annotated[bool, typer.Option("--disable", help="Switch it off; its secret is kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Change who may use a connection, or switch it off and on."""
    if enable and disable:
        raise typer.BadParameter("give one of --enable and --disable")
    connection = with_client(
        lambda client: client.connections.update(
            name,
            user_id=user,
            agents=() if all_agents else agent,
            allow_raw_token=raw_token,
            enabled=True if enable else False if disable else None,
        )
    )
    if as_json:
        print_json(connection)
        return
    say(f"connection {connection.name} is changed; it is {_state_text(connection)}")


@connections.command()
def refresh(name: NameArgument, user: UserOption = "", as_json: JsonOption = False) -> None:
    """Renew the token of an OAuth connection now, whatever its age."""
    connection = with_client(lambda client: client.connections.refresh(name, user_id=user))
    if as_json:
        print_json(connection)
        return
    ends = moment(connection.expire_time)
    say(f"connection {connection.name} is {_state_text(connection)}" + (f"; its token ends {ends}" if ends else ""))


@connections.command()
def revoke(name: NameArgument, user: UserOption = "", as_json: JsonOption = False) -> None:
    """Revoke a connection, tell the provider, and delete its secret."""
    connection = with_client(lambda client: client.connections.revoke(name, user_id=user))
    if as_json:
        print_json(connection)
        return
    say(f"connection {connection.name} is revoked and its key deleted")


def _state_text(connection: pb.Connection) -> str:
    return short_name(pb.ConnectionState, connection.state, "CONNECTION_STATE_")


def _state_of(text: str) -> int:
    if not text:
        return pb.CONNECTION_STATE_UNSPECIFIED
    states: dict[str, int] = {
        short_name(pb.ConnectionState, number, "CONNECTION_STATE_"): number
        for number in pb.ConnectionState.values()
        if number
    }
    name = text.upper().replace("-", "_")
    if name not in states:
        known = ", ".join(state.lower().replace("_", "-") for state in states)
        raise typer.BadParameter(f"expected one of {known}", param_hint="--state")
    return states[name]
