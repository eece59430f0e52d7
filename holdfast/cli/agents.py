"""`holdfast apply` and `holdfast agents`: definitions, revisions and labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.text import Text

from holdfast.agent import Agent
from holdfast.agent_files import load_agents, parse_agents
from holdfast.api.common.v1 import agent_pb2
from holdfast.cli.app import JsonOption, LimitOption, app, group, take, with_client
from holdfast.cli.console import age, note, plain, print_json, print_table, say
from holdfast.cli.targets import load_tools
from holdfast.client import Client
from holdfast.runs import short_name

agents = group("agents", "Agents, their revisions and labels; alone it lists them.")

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Name of the agent.")]
_SHOWN_REVISION = 12


@app.command()
def apply(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", metavar="FILE", help="YAML file with one or more agents; - is stdin.")
    ],
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE[:NAME]",
            help="Complete worker tools that declare no schema, description or effect from these Python tools.",
        ),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="Point this label to the new revision as well.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the definitions and store nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Store agents' definitions. The same definition again is the same revision."""
    # All files are read before anything is stored: a mistake in the last one leaves the others unapplied.
    found = [agent for file in files for agent in _read(file)]
    if worker is not None:
        tools = load_tools(worker).tools
        for agent in found:
            for name in agent.fill_from(tools):
                note(f"{agent.name}: {name} completed from {worker}")

    together = [agent.name for agent in found]

    async def store(client: Client) -> None:
        for agent in found:
            # Each alone is checked first, so that one refusal leaves nothing half-done.
            if len(found) > 1 and not check:
                await client.agents.apply(agent, validate_only=True, applied_together=together)
        for agent in called_first(found):
            response = await client.agents.apply(agent, validate_only=check, applied_together=together)
            for name in label or () if not check else ():
                await client.agents.set_label(agent.name, name, response.revision.revision)
            if as_json:
                print_json(
                    {
                        "agent": agent.name,
                        "revision": response.revision.revision,
                        "created": response.created,
                        "labels": [] if check else [*(label or ()), "latest"],
                    }
                )
                continue
            word = "checked" if check else "applied" if response.created else "unchanged"
            shown = response.revision.revision[:_SHOWN_REVISION]
            say(Text.assemble(f"{agent.name} ", (word, "green" if response.created else "dim"), f" revision {shown}"))

    with_client(store)


def called_first(agents: Sequence[Agent]) -> list[Agent]:
    """Returns agents in an order in which each comes behind those that it calls, where they do not call each other."""
    named = {agent.name: agent for agent in agents}
    ordered: dict[int, Agent] = {}
    begun: set[int] = set()

    def add(agent: Agent) -> None:
        if id(agent) in begun:
            return
        begun.add(id(agent))
        for tool in agent.spec.tools:
            if tool.agent.agent in named:
                add(named[tool.agent.agent])
        ordered[id(agent)] = agent

    for agent in agents:
        add(agent)
    return list(ordered.values())


def _read(file: Path) -> list[Agent]:
    if str(file) == "-":
        return parse_agents(sys.stdin.read(), file="<stdin>")
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a folder; name the files in it", param_hint="--file")
    return load_agents(file)


@agents.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """Agents, their revisions and labels; alone it lists them."""
    if context.invoked_subcommand is None:
        list_agents(as_json=as_json)


@agents.command("list")
def list_agents(as_json: JsonOption = False) -> None:
    """List the agents of the workspace."""

    async def read(client: Client) -> list[agent_pb2.Agent]:
        return [agent async for agent in client.agents.list()]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "latest", "labels", "changed", "description"),
        (
            (
                agent.name,
                agent.labels.get("latest", "")[:_SHOWN_REVISION],
                ", ".join(sorted(label for label in agent.labels if label != "latest")),
                age(agent.update_time),
                agent.description,
            )
            for agent in found
        ),
        empty="There are no agents yet; `holdfast apply -f agent.yaml` adds one.",
    )


@agents.command()
def show(
    agent: AgentArgument,
    revision: Annotated[str, typer.Option(help="A revision, a prefix of one, or a label.")] = "latest",
    as_json: JsonOption = False,
) -> None:
    """Show a definition as YAML, ready for `holdfast apply -f`."""

    async def read(client: Client) -> tuple[agent_pb2.AgentRevision, agent_pb2.Agent]:
        return await client.agents.revision(agent, revision), await client.agents.get(agent)

    found, named = with_client(read)
    if as_json:
        print_json({"revision": plain(found), "labels": dict(named.labels)})
        return
    labels = sorted(label for label, target in named.labels.items() if target == found.revision)
    say(f"# revision {found.revision}" + (f" ({', '.join(labels)})" if labels else ""), style="dim")
    say(to_yaml(found.spec).rstrip())


@agents.command()
def revisions(agent: AgentArgument, limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List the revisions of an agent, newest first."""

    async def read(client: Client) -> tuple[list[agent_pb2.AgentRevision], agent_pb2.Agent]:
        return await take(client.agents.revisions(agent), limit), await client.agents.get(agent)

    found, named = with_client(read)
    if as_json:
        print_json(found)
        return
    print_table(
        ("revision", "labels", "applied", "model", "tools"),
        (
            (
                revision.revision[:_SHOWN_REVISION],
                ", ".join(sorted(label for label, target in named.labels.items() if target == revision.revision)),
                age(revision.create_time),
                "/".join(filter(None, (revision.spec.model.provider, revision.spec.model.name))),
                str(len(revision.spec.tools)),
            )
            for revision in found
        ),
        empty="There are no revisions.",
    )


@agents.command()
def label(
    agent: AgentArgument,
    name: Annotated[str, typer.Argument(metavar="LABEL", help="The label, such as prod.")],
    revision: Annotated[str, typer.Argument(help="A revision, a prefix of one, or another label.")] = "latest",
    as_json: JsonOption = False,
) -> None:
    """Point a label to a revision. Runs that have begun keep theirs."""
    found = with_client(lambda client: client.agents.set_label(agent, name, revision))
    if as_json:
        print_json(found)
        return
    say(f"{agent}: {name} is revision {found.labels[name][:_SHOWN_REVISION]}")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, which is how people write them."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)


def to_yaml(spec: agent_pb2.AgentSpec) -> str:
    """Returns a definition as `load_agents` reads it, with the short names of effects and policies."""
    document = plain(spec)
    for tool, message in zip(document.get("tools", ()), spec.tools, strict=True):
        if "effect" in tool:
            tool["effect"] = short_name(agent_pb2.EffectClass, message.effect, "EFFECT_CLASS_").lower()
        if "in_doubt" in tool:
            tool["in_doubt"] = short_name(agent_pb2.InDoubtPolicy, message.in_doubt, "IN_DOUBT_POLICY_").lower()
    text: str = yaml.dump(_whole_numbers(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _whole_numbers(value: object) -> object:
    # A Struct knows only floating-point numbers; people wrote `minimum: 1`.
    if isinstance(value, dict):
        return {key: _whole_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(entry) for entry in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
