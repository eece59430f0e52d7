"""OperatorService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import operator_service_pb2 as pb
from holdfast.api.state.v1.operator_service_pb2_grpc import OperatorServiceServicer
from holdfast.errors import InvalidArgument
from services.shared.clock import Clock
from services.shared.database import Database
from services.shared.migrations import current, newest
from services.state.invariant_list import CHECKS
from services.state.invariants import DEFAULT_JOURNALS, Inspection
from services.state.rows import stamp
from services.state.status import read_status, warnings_about_seals

PROGRESS_SECONDS = 0.5

Context = grpc.aio.ServicerContext[Any, Any]


class OperatorServicer(OperatorServiceServicer):
    """Serves the person who runs the suite.

    Args:
        db: The database.
        clock: This machine's time.
        migrations: Where the schema's revisions are.
        warnings: What is dangerous about this process's settings.
    """

    def __init__(self, db: Database, clock: Clock, migrations: Path, warnings: Sequence[str] = ()) -> None:
        self._db = db
        self._clock = clock
        self._migrations = migrations
        self._warnings = warnings
        # Two at once would only take twice as long, and more from everybody else.
        self._inspecting = asyncio.Lock()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        status = await self._db.read(read_status, self._db)
        return pb.GetStatusResponse(
            database_time=stamp(status.time),
            service_time=stamp(self._clock.now()),
            dialect=self._db.dialect,
            schema_revision=",".join(await current(self._db)),
            expected_schema_revision=",".join(newest(self._migrations)),
            unfinished_runs=status.unfinished_runs,
            executors=status.executors,
            database_connections=status.connections,
            warnings=[*self._warnings, *warnings_about_seals(self._db.seals), *status.warnings],
        )

    async def CheckInvariants(
        self, request: pb.CheckInvariantsRequest, context: Context
    ) -> AsyncIterator[pb.CheckInvariantsResponse]:
        if request.max_journals < 0:
            raise InvalidArgument("max_journals must not be negative", field="max_journals")
        limit = None if request.all_journals else request.max_journals or DEFAULT_JOURNALS
        async with self._inspecting:
            inspection = Inspection(self._db, max_journals=limit)
            told_at = asyncio.get_running_loop().time()
            async for _ in inspection.run():
                now = asyncio.get_running_loop().time()
                if now - told_at >= PROGRESS_SECONDS:
                    told_at = now
                    progress = pb.CheckProgress(runs=inspection.runs, journals=inspection.journals)
                    yield pb.CheckInvariantsResponse(progress=progress)
        for check in CHECKS:
            found = inspection.findings.of[check.name]
            yield pb.CheckInvariantsResponse(
                result=pb.CheckResult(
                    name=check.name,
                    claim=check.claim,
                    examined=found.examined,
                    violations=found.violations,
                    examples=found.examples,
                    advice=check.advice,
                    incomplete_because=found.incomplete_because,
                )
            )
