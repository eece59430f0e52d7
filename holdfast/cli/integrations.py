"""`holdfast integrations`: the workspace's applications at third parties, through which accounts are connected."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from holdfast.api.auth.v1 import integration_service_pb2 as pb
from holdfast.cli.app import JsonOption, group, with_client
from holdfast.cli.console import age, moment, note, print_json, print_table, say, state_text
from holdfast.cli.variables import VariableOption, read_variables
from holdfast.client import Client
from holdfast.connections import Kind
from holdfast.errors import InvalidArgument
from holdfast.runs import short_name

SECRET_VARIABLE = "HOLDFAST_CLIENT_SECRET"

integrations = group("integrations", "The workspace's applications at third parties; alone it lists them.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the integration.")]
ScopeOption = Annotated[
    list[str] | None, typer.Option("--scope", "-s", help="A permission that is always asked for; several times.")
]
AgentOption = Annotated[
    list[str] | None, typer.Option("--agent", "-a", help="An agent that may use its connections; all without.")
]
SecretStdinOption = Annotated[
    bool, typer.Option("--client-secret-stdin", help="Read the client secret from standard input.")
]
SecretFileOption = Annotated[
    Path | None, typer.Option("--client-secret-file", help="Read the client secret, or a PEM key, from a file.")
]


@integrations.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """The workspace's applications at third parties; alone it lists them."""
    if context.invoked_subcommand is None:
        list_integrations(as_json=as_json)


@integrations.command()
def providers(
    search: Annotated[str, typer.Argument(metavar="[TEXT]", help="Only those whose name has this in it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the third parties that the suite knows, and what an integration with each needs."""

    async def read(client: Client) -> list[pb.Provider]:
        return [provider async for provider in client.integrations.providers()]

    text = search.lower()
    found = [
        provider for provider in with_client(read) if text in provider.slug or text in provider.display_name.lower()
    ]
    if as_json:
        print_json(found)
        return
    print_table(
        ("provider", "name", "kinds", "needs", "documentation"),
        (
            (
                provider.slug,
                provider.display_name,
                ", ".join(_kind_text(kind) for kind in provider.kinds),
                ", ".join((*provider.variables, *(f"{name} (each)" for name in provider.connection_variables))),
                provider.documentation_url,
            )
            for provider in found
        ),
        empty="No provider is called like that; an operator may add one as a file (docs/connections.md).",
    )


@integrations.command("list")
def list_integrations(as_json: JsonOption = False) -> None:
    """List the integrations. Their secrets are never shown."""

    async def read(client: Client) -> list[pb.Integration]:
        return [integration async for integration in client.integrations.list()]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "provider", "kind", "state", "client id", "scopes", "agents", "changed"),
        (
            (
                integration.name,
                integration.provider,
                _kind_text(integration.kind),
                state_text(_state_text(integration)),
                integration.client_id or "-",
                " ".join(integration.scopes) or "the provider's own",
                ", ".join(integration.agents) or "all",
                age(integration.update_time),
            )
            for integration in found
        ),
        empty="There are no integrations; `holdfast integrations providers` shows what can be set up.",
    )


@integrations.command()
def create(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="One of `holdfast integrations providers`.")],
    name: Annotated[str, typer.Option(help="Name of the integration; the provider's when not given.")] = "",
    kind: Annotated[
        str, typer.Option(help="oauth2, client_credentials, api_key or basic; the provider's usual one without.")
    ] = "",
    client_id: Annotated[str, typer.Option(help="Client id of the application at the provider.")] = "",
    client_secret_stdin: SecretStdinOption = False,
    client_secret_file: SecretFileOption = None,
    public: Annotated[bool, typer.Option("--public", help="A public client: it has no secret.")] = False,
    variable: VariableOption = None,
    scope: ScopeOption = None,
    agent: AgentOption = None,
    server_url: Annotated[str, typer.Option(help="The server of a discovered provider, such as an MCP server.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Set an application up, so that accounts can be connected through it.

    The client secret is asked for without echo, or read from standard input, a file or the variable
    HOLDFAST_CLIENT_SECRET, never from an argument.
    """
    secret = ""
    if client_id and not public:
        secret = _read_secret(provider, from_stdin=client_secret_stdin, path=client_secret_file)
    elif client_secret_stdin or client_secret_file is not None:
        raise typer.BadParameter("a client secret belongs to a client id, and not to a public client")
    integration = with_client(
        lambda client: client.integrations.create(
            provider,
            name=name,
            kind=cast(Kind, kind.replace("-", "_")),
            client_id=client_id,
            client_secret=secret,
            variables=read_variables(variable),
            scopes=scope or (),
            agents=agent or (),
            server_url=server_url,
        )
    )
    if as_json:
        print_json(integration)
        return
    say(f"integration {integration.name} with {integration.provider} is set up")
    if integration.redirect_uri:
        note(f"register this redirect URI at the provider: {integration.redirect_uri}")
        note(f"then `holdfast connect {integration.name}` connects an account")
    else:
        note(f"`holdfast connections create --integration {integration.name}` connects it")


@integrations.command()
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show an integration, with the redirect URI to register at the provider."""
    integration = with_client(lambda client: client.integrations.get(name))
    if as_json:
        print_json(integration)
        return
    _print(integration)


def _print(integration: pb.Integration) -> None:
    rows = [
        ("name", integration.name),
        ("provider", integration.provider),
        ("kind", _kind_text(integration.kind)),
        ("state", _state_text(integration) + (f" ({integration.state_reason})" if integration.state_reason else "")),
        ("client id", integration.client_id),
        ("client secrets", str(integration.client_secret_count)),
        ("redirect URI", integration.redirect_uri),
        ("server", integration.server_url),
        ("variables", ", ".join(f"{key}={value}" for key, value in sorted(integration.variables.items()))),
        ("scopes", " ".join(integration.scopes)),
        ("agents", ", ".join(integration.agents) or "all"),
        ("made", moment(integration.create_time)),
        ("changed", moment(integration.update_time)),
    ]
    for label, value in rows:
        if value:
            say(f"{label:<15} {value}")


@integrations.command()
def update(
    name: NameArgument,
    client_id: Annotated[str | None, typer.Option(help="Client id of the application at the provider.")] = None,
    client_secret_stdin: SecretStdinOption = False,
    client_secret_file: SecretFileOption = None,
    new_secret: Annotated[
        bool, typer.Option("--client-secret", help="Ask for a further client secret; it is tried first from now on.")
    ] = False,
    remove_old_secrets: Annotated[
        bool, typer.Option("--remove-old-secrets", help="Forget all client secrets but the newest.")
    ] = False,
    variable: VariableOption = None,
    scope: ScopeOption = None,
    no_scopes: Annotated[bool, typer.Option("--no-scopes", help="Ask for the provider's own choice.")] = False,
    agent: AgentOption = None,
    all_agents: Annotated[bool, typer.Option("--all-agents", help="All agents may use its connections.")] = False,
    enable: Annotated[bool, typer.Option("--enable", help="Switch it on again.")] = False,
    disable: Annotated[bool, typer.Option("--disable", help="Switch it off: its connections are refused.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Change an integration; only what is given changes.

    A client secret is rotated without a gap: add the new one, switch at the provider, then --remove-old-secrets.
    """
    if enable and disable:
        raise typer.BadParameter("give one of --enable and --disable")
    secret = ""
    if new_secret or client_secret_stdin or client_secret_file is not None:
        secret = _read_secret(name, from_stdin=client_secret_stdin, path=client_secret_file)
    integration = with_client(
        lambda client: client.integrations.update(
            name,
            client_id=client_id,
            client_secret=secret,
            remove_old_secrets=remove_old_secrets,
            variables=None if variable is None else read_variables(variable),
            scopes=() if no_scopes else scope,
            agents=() if all_agents else agent,
            enabled=True if enable else False if disable else None,
        )
    )
    if as_json:
        print_json(integration)
        return
    say(f"integration {integration.name} is changed")
    _print(integration)


@integrations.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an integration with its secrets, and revoke all of its connections."""
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidArgument("there is no terminal to ask: give --yes")
        typer.confirm(f"Delete {name} and revoke all of its connections?", abort=True)
    revoked = with_client(lambda client: client.integrations.delete(name))
    if as_json:
        print_json({"revoked_connections": revoked})
        return
    say(f"integration {name} is deleted; {revoked} connection{'' if revoked == 1 else 's'} revoked")


def _kind_text(kind: int) -> str:
    return short_name(pb.CredentialKind, kind, "CREDENTIAL_KIND_").lower()


def _state_text(integration: pb.Integration) -> str:
    return short_name(pb.IntegrationState, integration.state, "INTEGRATION_STATE_")


def _read_secret(of: str, *, from_stdin: bool, path: Path | None) -> str:
    # A secret in an argument would be in the shell's history and in every process listing.
    if path is not None:
        secret = path.read_text(encoding="utf-8").strip()
    elif from_stdin:
        secret = sys.stdin.read().strip()
    elif os.environ.get(SECRET_VARIABLE):
        secret = os.environ[SECRET_VARIABLE].strip()
    elif sys.stdin.isatty():
        secret = str(typer.prompt(f"Client secret of {of}", hide_input=True)).strip()
    else:
        raise InvalidArgument(
            "there is no terminal to ask for the client secret: give it with --client-secret-stdin, in "
            f"--client-secret-file or in {SECRET_VARIABLE}; a public client has none (--public)"
        )
    if not secret:
        raise InvalidArgument("the client secret is empty")
    return secret
