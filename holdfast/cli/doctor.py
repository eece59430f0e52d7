"""`holdfast doctor`: are all services well, and is everything that must be true of the stored runs true?

It changes nothing. Exit codes: 0 all is well, 1 something is not, 2 it could not be checked.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import grpc.aio
import typer
from rich.text import Text

from holdfast.api.auth.v1 import audit_service_pb2 as audit_pb2
from holdfast.api.auth.v1.audit_service_pb2_grpc import AuditServiceStub
from holdfast.api.state.v1 import operator_service_pb2 as pb
from holdfast.api.state.v1.operator_service_pb2_grpc import OperatorServiceStub
from holdfast.cli.app import JsonOption, app, chosen_profile
from holdfast.cli.console import error_fields, note, plain, print_json, report, say
from holdfast.cli.operator import (
    DataOption,
    operator_channel,
    operator_connection,
    operator_settings,
    stored_addresses,
)
from holdfast.errors import HoldfastError
from holdfast.runs import short_name
from holdfast.settings import resolve
from holdfast.transport import open_channel

HEALTH_SECONDS: Final = 5.0
STATUS_SECONDS: Final = 15.0
CHECK_SECONDS: Final = 4 * 3600.0

VIOLATIONS: Final = 1
NOT_CHECKED: Final = 2

# Leases last 5 s. By clocks that differ by more than this people read wrong times.
_CLOCKS_DIFFER_SECONDS: Final = 2.0
_MAX_EXAMPLES: Final = 10
_AUDIT_CLAIM: Final = (
    "each record of the installation's and each workspace's audit is as it was written, and follows the one before it"
)
_AUDIT_ADVICE: Final = (
    "somebody has changed auth's database; `holdfast audit verify --anchor`, with a hash that was kept elsewhere, says "
    "since when (docs/audit.md)"
)
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_HEALTH_NAMES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING"}


@dataclass
class Diagnosis:
    """All that was found.

    Attributes:
        services: What each service says of its health, with its address.
        status: What state says of its database; None when it could not be asked.
        checks: What each check found.
        warnings: What is dangerous and breaks nothing yet.
    """

    services: dict[str, dict[str, str]] = field(default_factory=dict)
    status: pb.GetStatusResponse | None = None
    checks: list[pb.CheckResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing is broken. Warnings break nothing."""
        healthy = all(service["health"] == "SERVING" for service in self.services.values())
        return healthy and not any(check.violations for check in self.checks)


@app.command()
def doctor(
    data: DataOption = None,
    journals: Annotated[
        int, typer.Option(min=1, help="Read the journals of so many runs, the newest first; rows are always all read.")
    ] = 10_000,
    read_all: Annotated[bool, typer.Option("--all", help="Read all journals, however many there are.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check all services, and what must be true of everything stored. Exits with 0 well, 1 violations, 2 not checked.

    For whoever runs the suite: it needs the services' addresses and token. It reads, and changes nothing.
    """
    diagnosis = Diagnosis()
    try:
        asyncio.run(_examine(diagnosis, data, journals, read_all=read_all, as_json=as_json))
    except HoldfastError as error:
        if as_json:
            print_json({**_fields(diagnosis), "result": "NOT_CHECKED", "error": error_fields(error)})
        else:
            report(error, as_json=False)
        raise typer.Exit(NOT_CHECKED) from None
    if as_json:
        print_json({**_fields(diagnosis), "result": "OK" if diagnosis.is_well else "VIOLATIONS"})
    else:
        _conclude(diagnosis)
    if not diagnosis.is_well:
        raise typer.Exit(VIOLATIONS)


async def _examine(diagnosis: Diagnosis, data: Path | None, journals: int, *, read_all: bool, as_json: bool) -> None:
    ca_file = resolve(profile=chosen_profile()).ca_file if data is None else ""
    diagnosis.services = await _health(_addresses(data), ca_file, with_certificate=data is None)
    if not as_json:
        for name, service in diagnosis.services.items():
            _line(name, service["health"] == "SERVING", service["health"], service["address"])
    async with operator_channel(data) as channel:
        state = OperatorServiceStub(channel)
        asked_at = time.time()
        diagnosis.status = status = await state.GetStatus(pb.GetStatusRequest(), timeout=STATUS_SECONDS)
        diagnosis.warnings.extend(_warnings(status, (asked_at + time.time()) / 2))
        if not as_json:
            _line("database", True, status.dialect, _describe(status))
        request = pb.CheckInvariantsRequest(max_journals=journals, all_journals=read_all)
        async for response in state.CheckInvariants(request, timeout=CHECK_SECONDS):
            if response.HasField("result"):
                diagnosis.checks.append(response.result)
                if not as_json:
                    _show(response.result)
            elif not as_json:
                note(f"… {response.progress.runs:,} runs, {response.progress.journals:,} journals")
    await _examine_audit(diagnosis, data, as_json=as_json)


async def _examine_audit(diagnosis: Diagnosis, data: Path | None, *, as_json: bool) -> None:
    """Has auth check the chains of its audit; that it cannot be asked is a warning."""
    check = pb.CheckResult(name="audit_chain", claim=_AUDIT_CLAIM, advice=_AUDIT_ADVICE)
    try:
        async with operator_channel(data, "auth") as channel:
            call = AuditServiceStub(channel).CheckAuditTrails(
                audit_pb2.CheckAuditTrailsRequest(), timeout=CHECK_SECONDS
            )
            async for response in call:
                verdict = response.verdict
                check.examined += verdict.record_count
                if verdict.flaw:
                    check.violations += 1
                    if len(check.examples) < _MAX_EXAMPLES:
                        flaw = short_name(audit_pb2.AuditFlaw, verdict.flaw, "AUDIT_FLAW_")
                        trail = f"workspace {response.workspace}" if response.workspace else "the installation"
                        check.examples.append(f"{trail}, record {verdict.flaw_seq}: {flaw}, {verdict.flaw_detail}")
    except HoldfastError as error:
        diagnosis.warnings.append(f"the audit was not checked: {error.message} ({error.reason})")
        return
    diagnosis.checks.append(check)
    if not as_json:
        _show(check)


def _addresses(data: Path | None) -> dict[str, str]:
    """Where the services are: what `holdfast up` has written, or what the environment and the profile say."""
    if data is not None:
        return stored_addresses(data)
    client = resolve(profile=chosen_profile())
    return {
        "executor": client.address,
        "state": operator_settings().address,
        "auth": client.auth_address,
        "trace": client.trace_address,
    }


async def _health(addresses: dict[str, str], ca_file: str, *, with_certificate: bool) -> dict[str, dict[str, str]]:
    found = await asyncio.gather(
        *(
            _health_of(address, ca_file, operator_connection(name, address) if with_certificate else None)
            for name, address in addresses.items()
        )
    )
    return {
        name: {"address": address, "health": health}
        for (name, address), health in zip(addresses.items(), found, strict=True)
    }


async def _health_of(address: str, ca_file: str, opened: grpc.aio.Channel | None) -> str:
    # With TLS, where services are taken nobody comes in without a certificate.
    async with open_channel(address, ca_file) if opened is None else opened as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_HEALTH)
        try:
            answer = await check(b"", timeout=HEALTH_SECONDS)
        except grpc.RpcError as error:
            return "UNREACHABLE" if error.code() == grpc.StatusCode.UNAVAILABLE else str(error.code().name)
    # A message with one number of one byte: the tag, then the status.
    return _HEALTH_NAMES.get(answer[1] if len(answer) == 2 else 0, "UNKNOWN")


def _warnings(status: pb.GetStatusResponse, now: float) -> list[str]:
    found = list(status.warnings)
    database = status.database_time.ToNanoseconds() / 1e9
    service = status.service_time.ToNanoseconds() / 1e9
    for name, other in (("this machine", now), ("state's machine", service)):
        if abs(other - database) > _CLOCKS_DIFFER_SECONDS:
            found.append(
                f"the clock of {name} is {abs(other - database):.1f} s {'ahead of' if other > database else 'behind'} "
                "the database's, by which leases and timers go: synchronise them"
            )
    if status.schema_revision != status.expected_schema_revision:
        found.append(
            f"the schema is at {status.schema_revision or 'nothing'}, this release of state was made for "
            f"{status.expected_schema_revision}: finish the upgrade of all replicas"
        )
    if status.dialect == "sqlite":
        found.append("SQLite is for one machine and one process of state: use PostgreSQL for more")
    return found


# ------------------------------------------------------------------------------------------------------------- printed


def _fields(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "services": diagnosis.services,
        "database": plain(diagnosis.status) if diagnosis.status is not None else None,
        "checks": [
            {
                "name": check.name,
                "result": "FAILED" if check.violations else "OK",
                "examined": check.examined,
                "violations": check.violations,
                "examples": list(check.examples),
                "claim": check.claim,
                "advice": check.advice,
                "incomplete_because": check.incomplete_because,
            }
            for check in diagnosis.checks
        ],
        "warnings": diagnosis.warnings,
    }


def _line(name: str, is_well: bool, word: str, text: str) -> None:
    say(Text.assemble((f"{name:24} "), (f"{word:12} ", "green" if is_well else "bold red"), (text, "dim")))


def _describe(status: pb.GetStatusResponse) -> str:
    parts = [
        f"schema {status.schema_revision}",
        f"{status.unfinished_runs:,} unfinished runs",
        f"{status.executors} executors",
    ]
    if status.database_connections:
        parts.append(f"{status.database_connections} connections of state")
    return ", ".join(parts)


def _show(check: pb.CheckResult) -> None:
    counted = f"{check.violations:,} of {check.examined:,}" if check.violations else f"{check.examined:,}"
    _line(check.name, not check.violations, "FAILED" if check.violations else "OK", counted)
    if check.incomplete_because:
        say(Text(f"  {check.incomplete_because}", style="dim"))
    if not check.violations:
        return
    say(Text(f"  must be true: {check.claim}"))
    for example in check.examples:
        say(Text(f"  - {example}"))
    if check.violations > len(check.examples):
        say(Text(f"  … and {check.violations - len(check.examples):,} more", style="dim"))
    say(Text(f"  {check.advice}"))


def _conclude(diagnosis: Diagnosis) -> None:
    for warning in diagnosis.warnings:
        say(Text.assemble(("warning: ", "yellow"), warning))
    broken = [check.name for check in diagnosis.checks if check.violations]
    away = [name for name, service in diagnosis.services.items() if service["health"] != "SERVING"]
    if diagnosis.is_well:
        say(f"All is well: {len(diagnosis.checks)} checks, no violation.", style="bold green")
        return
    if broken:
        say(Text(f"{len(broken)} of {len(diagnosis.checks)} checks failed: {', '.join(broken)}", style="bold red"))
    if away:
        say(Text(f"Not serving: {', '.join(away)}", style="bold red"))
