"""The store under test, opened on either database, and short ways to say what an executor sends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as calls_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import HoldfastError
from holdfast.ids import new_uuid7
from services.shared.clock import Clock
from services.shared.database import Database
from services.shared.migrations import upgrade
from services.shared.seals import NO_SEALS, Seals
from services.state import approval_store, call_store, children, claims, expiry, journal, lease_store, pauses, run_store
from services.state import tables as t
from services.state.app import MIGRATIONS, SERVICE
from services.state.group_commit import GroupCommit
from services.state.hub import Hub
from services.state.operations import Committed
from services.state.pauses import Asked

QUEUED = run_pb2.RUN_STATE_QUEUED
RUNNING = run_pb2.RUN_STATE_RUNNING
WAITING = run_pb2.RUN_STATE_WAITING
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
FAILED = run_pb2.RUN_STATE_FAILED
CANCELLED = run_pb2.RUN_STATE_CANCELLED
PAUSED = run_pb2.RUN_STATE_PAUSED
EXPIRED = run_pb2.RUN_STATE_EXPIRED
BUDGET_EXCEEDED = run_pb2.RUN_STATE_BUDGET_EXCEEDED

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------------- messages


def text(words: str, role: content_pb2.Role = content_pb2.ROLE_USER) -> content_pb2.StoredMessage:
    return content_pb2.StoredMessage(message=content_pb2.Message(role=role, parts=[content_pb2.Part(text=words)]))


def blob(data: bytes) -> content_pb2.Blob:
    return content_pb2.Blob(hash=hashlib.sha256(data).digest(), data=data)


def message_blob(words: str) -> tuple[content_pb2.StoredMessage, content_pb2.Blob]:
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=[content_pb2.Part(text=words)])
    body = blob(message.SerializeToString(deterministic=True))
    ref = content_pb2.BlobRef(hash=body.hash, size=len(body.data))
    return content_pb2.StoredMessage(blob=ref), body


def new_run(workspace: str, **fields: Any) -> pb.NewRun:
    values: dict[str, Any] = {
        "workspace_id": workspace,
        "run_id": new_uuid7(),
        "agent": "support",
        "revision": "abcdef012345",
        "input": text("hello"),
    }
    if not fields.get("session_id"):
        values["new_session_id"] = new_uuid7()
    return pb.NewRun(**{**values, **fields})


def started(step: int, kind: run_pb2.StepKind = run_pb2.STEP_KIND_MODEL) -> run_pb2.Change:
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=kind))


def finished(step: int, words: str = "ok", **fields: Any) -> run_pb2.Change:
    values: dict[str, Any] = {
        "step": step,
        "attempt": 1,
        "state": run_pb2.STEP_STATE_SUCCEEDED,
        "message": text(words, content_pb2.ROLE_ASSISTANT),
    }
    return run_pb2.Change(step_finished=run_pb2.StepFinished(**{**values, **fields}))


def tool_finished(step: int, words: str = "done", attempt: int = 1) -> run_pb2.Change:
    return finished(step, message=text(words, content_pb2.ROLE_TOOL), attempt=attempt)


def attempt_failed(step: int, attempt: int = 1, reason: str = "TOOL_FAILED") -> run_pb2.Change:
    failure = content_pb2.Failure(reason=reason)
    return run_pb2.Change(attempt_failed=run_pb2.AttemptFailed(step=step, attempt=attempt, failure=failure))


def becomes(state: run_pb2.RunState, *, wake: datetime | None = None, **fields: Any) -> run_pb2.Change:
    changed = run_pb2.RunStateChanged(state=state, **fields)
    if wake is not None:
        changed.wake_time.FromDatetime(wake)
    return run_pb2.Change(run_state_changed=changed)


def asks(step: int, approval_id: str, *, expires: datetime = FUTURE) -> run_pb2.Change:
    approval = run_pb2.Approval(
        approval_id=approval_id, step=step, kind=run_pb2.APPROVAL_KIND_QUESTION, prompt="Which colour?"
    )
    approval.answer_schema.update({"type": "object", "b": 1, "a": {"z": 1, "y": [1, 2]}})
    approval.expire_time.FromDatetime(expires)
    return run_pb2.Change(approval_requested=run_pb2.ApprovalRequested(approval=approval))


def asks_about_call(
    step: int, approval_id: str, arguments: str = "{}", tool: str = "refund", **fields: Any
) -> tuple[run_pb2.Change, run_pb2.Change]:
    """A call that needs approval: its step and its question."""
    intent = run_pb2.ToolIntent(tool=tool, call_id=f"call-{step}", tool_kind="worker")
    begun = run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent)
    approval = run_pb2.Approval(
        approval_id=approval_id,
        step=step,
        kind=run_pb2.APPROVAL_KIND_TOOL_CALL,
        prompt="May refund be called?",
        tool=tool,
        arguments_json=arguments,
        arguments_sha256=hashlib.sha256(arguments.encode()).hexdigest(),
        tool_sha256="d" * 64,
        **fields,
    )
    approval.expire_time.FromDatetime(FUTURE)
    asked = run_pb2.ApprovalRequested(approval=approval)
    return run_pb2.Change(step_started=begun), run_pb2.Change(approval_requested=asked)


def approves(approval_id: str, arguments: str = "{}", **fields: Any) -> run_pb2.ApprovalDecided:
    return run_pb2.ApprovalDecided(
        approval_id=approval_id,
        verdict=run_pb2.APPROVAL_VERDICT_APPROVED,
        arguments_sha256=hashlib.sha256(arguments.encode()).hexdigest(),
        decided_by="key-1",
        **fields,
    )


def new_call(step: int, attempt: int = 1, tool: str = "refund", **fields: Any) -> pb.NewCall:
    call = pb.NewCall(step=step, attempt=attempt, tool=tool, arguments_json="{}", idempotency_key="k", agent="support")
    call.start_deadline.FromDatetime(fields.pop("start_deadline", FUTURE))
    call.timeout.FromTimedelta(fields.pop("timeout", timedelta(hours=1)))
    call.heartbeat_timeout.FromTimedelta(fields.pop("heartbeat_timeout", timedelta(hours=1)))
    assert not fields
    return call


# ------------------------------------------------------------------------------------------------------------- store


@dataclass
class Held:
    """A run as the executor that drives it sees it: where its next event goes."""

    workspace: str
    run_id: str
    session_id: str
    epoch: int = 0
    last_seq: int = 1
    holder: str = ""

    def transition(self, *changes: run_pb2.Change, **fields: Any) -> pb.Transition:
        """The next event, which only counts once `advance` says so."""
        values = {"epoch": self.epoch, "seq": self.last_seq + 1, **fields}
        return pb.Transition(workspace_id=self.workspace, run_id=self.run_id, changes=changes, **values)


def calls_agent(step: int, child_run_id: str) -> run_pb2.Change:
    intent = run_pb2.ToolIntent(
        tool="research", call_id=f"c{step}", tool_kind="agent", idempotency_key="k", child_run_id=child_run_id
    )
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_CHILD, tool=intent))


def child_of(parent: Held, step: int, attempt: int = 1, depth: int = 1, **fields: Any) -> pb.NewRun:
    """A run that a step of another one starts."""
    waiting = pb.ParentStep(run_id=parent.run_id, step=step, attempt=attempt, depth=depth, depth_limit=5)
    values = {"session_id": parent.session_id, "agent": "researcher", "parent": waiting, **fields}
    return new_run(parent.workspace, **values)


@dataclass
class Store:
    """The store functions on one database, with one group commit in front."""

    db: Database
    hub: Hub
    commits: GroupCommit
    workspace: str = field(default_factory=new_uuid7)
    streams: dict[str, str] = field(default_factory=dict)

    async def create(self, **fields: Any) -> Held:
        run = await self.commits.create_run(new_run(fields.pop("workspace", self.workspace), **fields))
        return Held(self.workspace, run.run_id, run.session_id)

    async def executor(self, executor_id: str | None = None, held: Sequence[Held] = ()) -> str:
        """An executor with an open stream."""
        executor_id = executor_id or new_uuid7()
        self.streams[executor_id] = new_uuid7()
        names = {run.run_id: run.epoch for run in held}
        await self.db.write(lease_store.open_stream, self.db, executor_id, self.streams[executor_id], names)
        return executor_id

    async def claim(self, executor_id: str | None = None, limit: int = 100) -> list[sa.Row[Any]]:
        """Claims what is ready; for a new executor when none is named."""
        executor_id = executor_id or await self.executor()
        claimed = await self.db.write(claims.claim, self.db, executor_id, self.streams[executor_id], limit)
        assert claimed is not None, "the executor's stream is open"
        return claimed.rows

    async def claimed(self, **fields: Any) -> Held:
        """A new run that an executor drives, when nothing else is ready."""
        run = await self.create(**fields)
        return await self.take(run)

    async def take(self, run: Held) -> Held:
        """Claims the only run that is ready."""
        (row,) = await self.claim()
        assert row.run_id == run.run_id
        run.epoch, run.last_seq, run.holder = row.epoch, row.last_seq, row.holder
        return run

    async def advance(self, run: Held, *changes: run_pb2.Change, **fields: Any) -> Committed:
        """Commits the next event of a driven run."""
        committed = await self.commits.commit(run.transition(*changes, **fields))
        run.last_seq = committed.seq
        return committed

    async def refusal(self, run: Held, *changes: run_pb2.Change, **fields: Any) -> HoldfastError:
        """The error of an event that must be refused."""
        try:
            committed = await self.commits.commit(run.transition(*changes, **fields))
        except HoldfastError as error:
            return error
        raise AssertionError(f"it was committed as event {committed.seq}")

    async def submit(self, *operations: pb.Transition | pb.NewRun) -> list[pb.OperationResult]:
        """Sends operations as one frame of a stream does; their answers in the order of the operations."""
        results: dict[int, pb.OperationResult] = {}
        done = asyncio.Event()

        def answer(result: pb.OperationResult) -> None:
            assert result.id not in results, "an operation is answered once"
            results[result.id] = result
            if len(results) == len(operations):
                done.set()

        for number, operation in enumerate(operations):
            if isinstance(operation, pb.Transition):
                sent = pb.Operation(id=number, transition=operation)
            else:
                sent = pb.Operation(id=number, new_run=operation)
            # What a frame brings was parsed from its bytes.
            self.commits.submit(pb.Operation.FromString(sent.SerializeToString()), answer)
        if operations:
            async with asyncio.timeout(30):
                await done.wait()
        return [results[number] for number in range(len(operations))]

    async def row(self, run: Held) -> sa.Row[Any]:
        return await self.db.read(journal.find_run, run.workspace, run.run_id)

    async def events(self, run: Held) -> list[run_pb2.Event]:
        """The run's journal, which must be dense and agree with its row."""
        found: list[run_pb2.Event] = []
        while page := await self.db.read(
            journal.read_events, run.workspace, run.run_id, found[-1].seq if found else 0, 200
        ):
            found += page
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert (await self.row(run)).last_seq == len(found)
        return found

    async def kinds(self, run: Held) -> list[str]:
        """The kinds of all changes of the run's journal."""
        return [str(change.WhichOneof("kind")) for event in await self.events(run) for change in event.changes]

    async def decide(self, run: Held, decision: run_pb2.ApprovalDecided) -> run_pb2.Approval:
        """Decides a question of a run, which goes on from there."""
        approval, written = await self.db.write(approval_store.decide_approval, self.db, run.workspace, decision)
        if written.outside is not None:
            run.last_seq = written.outside.seq
        return approval

    async def cancel(self, run: Held) -> run_pb2.Run:
        cancelled, _ = await self.db.write(
            run_store.request_cancel, self.db, run.workspace, run.run_id, "key-1", "enough"
        )
        return cancelled

    async def pause(self, run: Held, request_id: str = "") -> run_pb2.Run:
        asked = Asked("key-1", "lunch", request_id, run.run_id.encode())
        paused, _ = await self.db.write(pauses.request_pause, self.db, run.workspace, run.run_id, asked)
        return paused

    async def resume(self, run: Held, request_id: str = "") -> run_pb2.Run:
        asked = Asked("key-2", "back", request_id, run.run_id.encode())
        resumed, _ = await self.db.write(pauses.request_resume, self.db, run.workspace, run.run_id, asked)
        return resumed

    async def call_rows(self, run: Held) -> list[sa.Row[Any]]:
        def read(connection: sa.Connection) -> list[sa.Row[Any]]:
            c = t.calls.c
            query = sa.select(t.calls).where(c.run_id == run.run_id).order_by(c.step, c.attempt)
            return list(connection.execute(query).all())

        return await self.db.read(read)

    async def offers(self, worker: str = "worker-1", limit: int = 10) -> list[calls_pb2.LeasedCall]:
        """All calls that are queued, as offers to a worker."""
        offer = timedelta(seconds=60)
        return await self.db.write(call_store.lease_calls, self.db, self.workspace, worker, ["refund"], limit, offer)

    async def give_back(self, worker: str, *leases: str) -> set[tuple[str, str]]:
        return await self.db.write(call_store.return_calls, self.workspace, worker, leases)

    async def beat(self, worker: str, **running: str) -> tuple[list[str], list[str]]:
        return await self.db.write(call_store.renew_calls, self.db, self.workspace, worker, running)

    async def offer(self, worker: str = "worker-1", *, seconds: float = 60, tools: Sequence[str] = ("refund",)) -> str:
        """The lease of the only call that is queued."""
        (call,) = await self.db.write(
            call_store.lease_calls, self.db, self.workspace, worker, tools, 10, timedelta(seconds=seconds)
        )
        return call.lease

    async def start(self, lease: str, worker: str = "worker-1") -> call_store.CallEvent | None:
        return await self.db.write(call_store.start_call, self.db, self.workspace, worker, lease)

    async def complete(
        self, lease: str, change: run_pb2.Change, worker: str = "worker-1", blobs: Sequence[content_pb2.Blob] = ()
    ) -> call_store.Completion:
        late = run_pb2.LateResult(content="late")
        return await self.db.write(
            call_store.complete_call, self.db, self.workspace, worker, lease, change, list(blobs), late
        )

    async def sweep(self) -> lease_store.Sweep:
        """What the pulse does when something is due."""
        found = await self.db.write(lease_store.sweep, self.db)
        for lost in await self.db.read(lease_store.lost_calls, self.db):
            await self.db.write(lease_store.lose_call, self.db, lost)
        for expired in await self.db.read(expiry.expired_runs, self.db):
            await self.db.write(expiry.expire_run, self.db, expired)
        for orphan in await self.db.read(children.orphans):
            await self.db.write(children.cancel_orphan, self.db, orphan)
        return found


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'state.db'}"


@asynccontextmanager
async def migrated(url: str, clock: Clock | None = None, seals: Seals = NO_SEALS) -> AsyncIterator[Database]:
    """The service's database, with its tables."""
    # NORMAL: what a power cut would lose is no subject here, and each commit is faster.
    async with Database(url, schema=SERVICE, synchronous="NORMAL", clock=clock, seals=seals) as db:
        await upgrade(db, MIGRATIONS)
        yield db


@asynccontextmanager
async def committing(db: Database, **options: Any) -> AsyncIterator[Store]:
    """A group commit on a database."""
    hub = Hub()
    commits = GroupCommit(db, hub, **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(commits.run())
        try:
            yield Store(db, hub, commits)
        finally:
            running.cancel()


@asynccontextmanager
async def emptied(url: str, seals: Seals = NO_SEALS) -> AsyncIterator[Store]:
    """A store on a database that other tests have used."""

    def empty(connection: sa.Connection) -> None:
        for table in t.metadata.sorted_tables:
            connection.execute(sa.delete(table))

    async with migrated(url, seals=seals) as db:
        await db.write(empty)
        async with committing(db) as store:
            yield store


@asynccontextmanager
async def opened(url: str, clock: Clock | None = None) -> AsyncIterator[Store]:
    """A store on a database of its own."""
    async with migrated(url, clock) as db, committing(db) as store:
        yield store
