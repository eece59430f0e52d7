"""`holdfast storage`: how much room the workspace takes, or the whole suite."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.api.common.v1 import run_pb2, workspace_pb2
from holdfast.api.state.v1 import housekeeping_service_pb2 as state_pb2
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceStub
from holdfast.cli.app import JsonOption, app, with_client
from holdfast.cli.console import moment, print_json, print_table, say
from holdfast.cli.operator import DataOption
from holdfast.cli.workspace import OPERATOR_SECONDS, as_operator


@app.command()
def storage(
    whole_suite: Annotated[
        bool,
        typer.Option(
            "--all", help="The database and every workspace; as the operator, with the suite's service token."
        ),
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much the workspace keeps and what its settings let be removed next, or with --all the whole suite."""
    if not whole_suite:
        found = with_client(lambda client: client.housekeeping.storage())
        if as_json:
            print_json(found)
        else:
            _print_workspace(found)
        return

    async def ask(state: HousekeepingServiceStub) -> state_pb2.GetStorageReportResponse:
        return await state.GetStorageReport(state_pb2.GetStorageReportRequest(), timeout=OPERATOR_SECONDS)

    report = as_operator(data, ask)
    if as_json:
        print_json(report)
        return
    _print_database(report.database)
    say()
    print_table(
        ("workspace", "conversations", "runs", "events", "event bytes", "bodies", "body bytes", "removable runs"),
        (
            (
                found.workspace_id,
                f"{found.sessions:,}",
                f"{sum(entry.runs for entry in found.runs):,}",
                f"{found.events:,}",
                f"~{_bytes(found.event_bytes_estimate)}",
                f"{found.blobs:,}",
                _bytes(found.blob_bytes),
                f"{found.removable_runs:,}",
            )
            for found in report.workspaces
        ),
        empty="There are no workspaces with data.",
    )


def _print_database(database: workspace_pb2.DatabaseStorage) -> None:
    rows = [(f"{database.dialect} database", _bytes(database.bytes))]
    for name, label in (
        ("free_bytes", "of it free for new data"),
        ("wal_bytes", "write-ahead log"),
        ("disk_free_bytes", "free on the disk"),
    ):
        known = database.HasField(name)
        rows.append((label, _bytes(getattr(database, name)) if known else "not known"))
    for label, text in rows:
        say(f"{label:28} {text}")
    say()
    print_table(
        ("table", "rows", "bytes with indexes"),
        (
            (
                table.name,
                f"{'~' if table.is_estimate else ''}{table.rows:,}",
                _bytes(table.bytes) if table.HasField("bytes") else "not known",
            )
            for table in database.tables
        ),
        empty="There are no tables.",
    )


def _print_workspace(found: workspace_pb2.WorkspaceStorage) -> None:
    states = ", ".join(
        f"{entry.runs:,} {run_pb2.RunState.Name(entry.state).removeprefix('RUN_STATE_').lower()}"
        for entry in found.runs
    )
    rows = [
        ("conversations", f"{found.sessions:,}"),
        ("runs", states or "none"),
        ("oldest run", moment(found.oldest_run_time) or "none"),
        ("events", f"{found.events:,}, about {_bytes(found.event_bytes_estimate)}"),
        ("bodies", f"{found.blobs:,}, {_bytes(found.blob_bytes)}"),
        ("may be removed now", f"{found.removable_runs:,} runs, {found.removable_sessions:,} conversations"),
    ]
    if found.runs_being_deleted:
        rows.append(("being deleted", f"events of {found.runs_being_deleted:,} removed runs"))
    for label, text in rows:
        say(f"{label:28} {text}")


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
