"""`holdfast audit`: who did what with credentials and keys, and whether anybody has tampered with the record of it.

It is of the workspace whose key is used, or, for the operator, of the installation (`--installation`).

`verify` ends with 0 when the trail is intact, 1 when it is not, 2 when it could not be checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TextIO, TypeVar

import typer
from rich.text import Text

from holdfast.api.auth.v1 import audit_service_pb2 as pb
from holdfast.audit import Audit
from holdfast.audit_chain import ChainCheck, Verdict, parse_hash, parse_line
from holdfast.cli.app import JsonOption, LimitOption, group, take, with_client
from holdfast.cli.console import error_fields, moment, note, print_json, print_table, report, say
from holdfast.cli.operator import DataOption, operator_transport
from holdfast.errors import FailedPrecondition, HoldfastError, InvalidArgument

BROKEN: Final = 1
NOT_CHECKED: Final = 2

_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DEFAULT_LIMIT: Final = 50

T = TypeVar("T")

InstallationOption = Annotated[
    bool,
    typer.Option(
        "--installation",
        help="Operator: what belongs to no workspace, such as keys that nobody has; with the suite's service token.",
    ),
]

audit = group("audit", "Who did what with credentials and keys, and the proof of it; alone it lists the latest.")


@audit.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """Who did what with credentials and keys, and the proof of it; alone it lists the latest."""
    if context.invoked_subcommand is None:
        list_records(as_json=as_json)


@audit.command("list")
def list_records(
    action: Annotated[str, typer.Option(help="Such as credential.resolve; 'connection.*' means all of them.")] = "",
    actor: Annotated[str, typer.Option(help="Who did it, such as key:<id> or service:executor.")] = "",
    user_id: Annotated[str, typer.Option("--user", help="On whose behalf.")] = "",
    connection: Annotated[str, typer.Option(help="Name or id of a connection.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="The run that used it.")] = "",
    tool: Annotated[str, typer.Option(help="The tool that used it.")] = "",
    api_key_id: Annotated[str, typer.Option("--key", help="The API key that it is about.")] = "",
    fingerprint: Annotated[str, typer.Option(help="Fingerprint of the credential.")] = "",
    outcome: Annotated[str, typer.Option(help="OK, or the reason of a refusal.")] = "",
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From this time on: 2026-11-28T09:00, or 2h, 7d ago.")
    ] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Up to this time.")] = "",
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Oldest first.")] = False,
    limit: LimitOption = _DEFAULT_LIMIT,
    installation: InstallationOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List records, newest first."""
    if refused and outcome:
        raise typer.BadParameter("give --outcome or --refused, not both")
    start, end = _time(since, "--since"), _time(until, "--until")

    async def read(trail: Audit) -> list[pb.AuditRecord]:
        records = trail.list(
            start_time=start,
            end_time=end,
            action=action,
            actor=actor,
            user_id=user_id,
            connection=connection,
            run_id=run_id,
            outcome="!OK" if refused else outcome,
            tool=tool,
            api_key_id=api_key_id,
            fingerprint=fingerprint,
            oldest_first=oldest_first,
        )
        return await take(records, limit)

    found = _with_trail(read, data, of_installation=installation)
    if as_json:
        print_json(found)
        return
    print_table(
        ("seq", "time", "who", "what", "outcome", "about", "for"),
        (
            [str(record.seq), moment(record.event_time), record.actor, record.action, *_cells(record)]
            for record in found
        ),
        empty="There is no such record.",
    )


def _cells(record: pb.AuditRecord) -> list[str | Text]:
    outcome = Text(record.outcome, style="" if record.outcome == "OK" else "red")
    subjects = [record.connection or record.connection_id]
    if record.fingerprint:
        subjects.append(f"[{record.fingerprint}]")
    if record.api_key_id:
        subjects.append(f"key {record.api_key_id}")
    subjects.extend(f"{name}={value}" for name, value in sorted(record.details.items()))
    purposes = [f"user {record.user_id}" if record.user_id else ""]
    if record.run_id:
        purposes.append(f"{record.run_id} step {record.step}")
    purposes.append(f"tool {record.tool}" if record.tool else "")
    purposes.append(f"to {record.host}" if record.host else "")
    return [outcome, " ".join(filter(None, subjects)), " ".join(filter(None, purposes))]


@audit.command()
def export(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A new file, for its owner only; standard output without it."),
    ] = None,
    after_seq: Annotated[int, typer.Option("--after", min=0, help="Only records behind this number.")] = 0,
    installation: InstallationOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the trail as NDJSON, oldest first. `holdfast audit verify --file FILE` checks it without the suite."""
    summary: dict[str, Any] = {"records": 0, "last_seq": after_seq, "head_hash": ""}

    async def write(trail: Audit, file: TextIO) -> None:
        last = ""
        async for line in trail.export(after_seq=after_seq):
            file.write(f"{line}\n")
            summary["records"] += 1
            last = line
        if last:
            content, record_hash = parse_line(last)
            summary["last_seq"] = content["seq"]
            summary["head_hash"] = record_hash.hex() if record_hash is not None else ""
        # A file without it was cut off on its way.
        file.write(json.dumps({"end": summary}, separators=(",", ":")) + "\n")
        file.flush()

    with _new_file(out) as file:
        _with_trail(lambda trail: write(trail, file), data, of_installation=installation)
        if out is not None:
            os.fsync(file.fileno())
    if as_json and out is not None:
        print_json(summary)
        return
    note(
        f"exported {summary['records']:,} records; the hash of the last, {summary['last_seq']}: {summary['head_hash']}"
    )


@audit.command()
def verify(
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Check an export; needs neither suite nor key.")
    ] = None,
    anchor: Annotated[
        str,
        typer.Option("--anchor", metavar="HASH", help="A hash that an earlier check has printed: it has to be there."),
    ] = "",
    first_seq: Annotated[int, typer.Option("--from", min=0, help="First record to check.")] = 0,
    last_seq: Annotated[int, typer.Option("--to", min=0, help="Last record to check.")] = 0,
    installation: InstallationOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no record was changed, removed, moved or put in. Exits with 0 intact, 1 not intact, 2 not checked.

    Keep the hash that it prints somewhere else: given as the anchor, it also proves that nothing was cut off or
    rewritten as a whole since.
    """
    if file is not None and (first_seq or last_seq):
        raise typer.BadParameter("--from and --to are for the suite's trail; a file is checked as a whole")
    if file is not None and installation:
        raise typer.BadParameter("--installation is for the suite's trail; a file is checked whosoever it is")
    try:
        if file is not None:
            answer = _answer_of(_check_file(file, anchor))
        else:
            answer = _with_trail(
                lambda trail: trail.verify(first_seq=first_seq, last_seq=last_seq, anchor_hash=anchor),
                data,
                of_installation=installation,
            )
    except (HoldfastError, OSError) as error:
        problem = error if isinstance(error, HoldfastError) else FailedPrecondition(f"{file}: {error.strerror}")
        if as_json:
            print_json({"result": "NOT_CHECKED", "error": error_fields(problem)})
        else:
            report(problem, as_json=False)
        raise typer.Exit(NOT_CHECKED) from None
    _show(answer, anchor, as_json=as_json)
    if answer.flaw:
        raise typer.Exit(BROKEN)


def _with_trail(work: Callable[[Audit], Awaitable[T]], data: Path | None, *, of_installation: bool) -> T:
    """Runs `work` with the workspace's trail, or as the operator with the installation's.

    Raises:
        BadParameter: A data folder is named for a workspace's trail.
    """
    if not of_installation:
        if data is not None:
            raise typer.BadParameter("--data belongs to --installation")
        return with_client(lambda client: work(client.audit))

    async def run() -> T:
        async with operator_transport(data) as transport:
            return await work(Audit(transport))

    return asyncio.run(run())


def _check_file(path: Path, anchor: str) -> Verdict:
    try:
        check = ChainCheck(first_seq=None, anchor=parse_hash(anchor) if anchor else None)
    except ValueError as error:
        raise InvalidArgument(f"the anchor is no hash: {error}", field="anchor") from None
    end: dict[str, Any] | None = None
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith('{"end":'):
                end = _end_of(line)
                break
            check.take_line(line)
    # Without its end, at least one record is missing: that of the export itself.
    return check.finish(last_seq=check.last_seq + 1 if end is None else int(end["last_seq"]))


def _end_of(line: str) -> dict[str, Any] | None:
    try:
        end = json.loads(line)["end"]
        return end if type(end["last_seq"]) is int else None
    except (ValueError, KeyError, TypeError):
        return None


def _answer_of(verdict: Verdict) -> pb.VerifyAuditTrailResponse:
    answer = pb.VerifyAuditTrailResponse(
        record_count=verdict.records,
        before_chain_count=verdict.before_chain,
        last_seq=verdict.last_seq,
        head_hash=verdict.head_hash.hex() if verdict.head_hash is not None else "",
        anchor_seq=verdict.anchor_seq or 0,
    )
    if verdict.problem is not None:
        problem = pb.VerifyAuditTrailResponse(
            flaw=f"AUDIT_FLAW_{verdict.problem.flaw}",
            flaw_seq=verdict.problem.seq,
            flaw_detail=verdict.problem.detail,
        )
        answer.MergeFrom(problem)
    return answer


def _show(answer: pb.VerifyAuditTrailResponse, anchor: str, *, as_json: bool) -> None:
    flaw = pb.AuditFlaw.Name(answer.flaw).removeprefix("AUDIT_FLAW_") if answer.flaw else ""
    if as_json:
        found: dict[str, Any] = {
            "result": "BROKEN" if flaw else "OK",
            "records": answer.record_count,
            "before_chain": answer.before_chain_count,
            "last_seq": answer.last_seq,
            "head_hash": answer.head_hash,
        }
        if answer.anchor_seq:
            found["anchor_seq"] = answer.anchor_seq
        if flaw:
            found["flaw"] = {"kind": flaw, "seq": answer.flaw_seq, "detail": answer.flaw_detail}
        print_json(found)
        return
    if flaw:
        say(Text(f"The trail is broken at record {answer.flaw_seq} ({flaw}): {answer.flaw_detail}.", style="bold red"))
        say(f"{answer.record_count:,} records before it are in order.")
        return
    say(
        Text(
            f"The trail is intact: {answer.record_count:,} records, the last is {answer.last_seq}.", style="bold green"
        )
    )
    if answer.before_chain_count:
        say(f"{answer.before_chain_count:,} records are from before there was a chain: nothing proves those.")
    if answer.anchor_seq:
        say(f"The anchor is the hash of record {answer.anchor_seq}.")
    if answer.head_hash:
        say(f"anchor: {answer.head_hash}")
    if answer.head_hash and not anchor:
        note("Keep it elsewhere: --anchor proves later that nothing was cut off or rewritten as a whole.")


def _time(text: str, option: str) -> datetime | None:
    if not text:
        return None
    if match := re.fullmatch(r"(\d{1,6})\s*([mhdw])", text.strip().lower()):
        return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a time nor a duration such as 2h", param_hint=option) from None


@contextmanager
def _new_file(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FailedPrecondition(f"{path} exists: choose another file") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yield file
