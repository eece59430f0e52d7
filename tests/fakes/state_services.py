"""The state service as the executor's servicers call it, kept in memory behind real gRPC.

It keeps the contract of `proto/holdfast/api/state/v1` for one process: what a test writes is what clients read. It has
no leases of runs and no group commit; those are tested where they live.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import agent_store_service_pb2 as agent_store
from holdfast.api.state.v1 import call_queue_service_pb2 as queue
from holdfast.api.state.v1 import journal_service_pb2 as journal
from holdfast.api.state.v1 import run_store_service_pb2 as run_store
from holdfast.api.state.v1.agent_store_service_pb2_grpc import (
    AgentStoreServiceServicer,
    add_AgentStoreServiceServicer_to_server,
)
from holdfast.api.state.v1.call_queue_service_pb2_grpc import (
    CallQueueServiceServicer,
    add_CallQueueServiceServicer_to_server,
)
from holdfast.api.state.v1.journal_service_pb2_grpc import (
    JournalServiceServicer,
    add_JournalServiceServicer_to_server,
)
from holdfast.api.state.v1.run_store_service_pb2_grpc import (
    RunStoreServiceServicer,
    add_RunStoreServiceServicer_to_server,
)
from holdfast.errors import Conflict, FailedPrecondition, InvalidArgument, LeaseLost, NotFound, Reason, Unavailable
from holdfast.ids import new_uuid7
from services.shared.access import Access
from services.shared.server import Server

ENDED = (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED)
PIECE_BYTES = 1024


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC))
    return stamp


@dataclass
class FakeAgent:
    agent: agent_pb2.Agent
    revisions: list[agent_pb2.AgentRevision] = field(default_factory=list)


@dataclass
class FakeRun:
    run: run_pb2.Run
    events: list[run_pb2.Event] = field(default_factory=list)
    deltas: list[run_pb2.Delta] = field(default_factory=list)


@dataclass
class FakeCall:
    """A worker's call: QUEUED, OFFERED, STARTED, or ENDED."""

    call: queue.LeasedCall
    state: str = "QUEUED"
    worker_id: str = ""
    is_cancelled: bool = False
    details: str = ""
    ended_with: run_pb2.Change | None = None


class FakeState:
    """What is stored, and the ways in which a test changes it."""

    def __init__(self) -> None:
        self.agents: dict[tuple[str, str], FakeAgent] = {}
        self.sessions: dict[tuple[str, str], run_store.StoredSession] = {}
        self.runs: dict[tuple[str, str], FakeRun] = {}
        self.approvals: dict[tuple[str, str], run_pb2.Approval] = {}
        self.session_approvals: dict[tuple[str, str], list[run_pb2.SessionApproval]] = {}
        self.blobs: dict[tuple[str, bytes], bytes] = {}
        self.calls: list[FakeCall] = []
        self.late: list[run_pb2.LateResult] = []
        self.requests: dict[tuple[str, str], tuple[bytes, Any]] = {}
        self.new_runs: list[journal.NewRun] = []
        self.received: list[Any] = []
        self.changed = asyncio.Condition()
        # Raised by the next calls of a method, in order; an exception factory each.
        self.failures: dict[str, list[Callable[[], Exception]]] = {}
        self.watch_stopped = asyncio.Event()
        self.leasing_paused = asyncio.Event()
        self.leasing_paused.set()
        self.lease_requests = 0

    def access(self) -> dict[str, Access]:
        """Only the executor may call it."""
        return {
            f"/holdfast.api.state.v1.{service}/{method}": Access(services=("executor",))
            for service, methods in {
                "AgentStoreService": (
                    "PutAgentRevision",
                    "GetAgent",
                    "ListAgents",
                    "GetAgentRevision",
                    "ListAgentRevisions",
                    "PutAgentLabel",
                ),
                "RunStoreService": (
                    "GetRun",
                    "ListRuns",
                    "RequestCancel",
                    "RequestPause",
                    "RequestResume",
                    "CreateSession",
                    "GetSession",
                    "ListSessions",
                    "ListSessionMessages",
                    "GetApproval",
                    "ListApprovals",
                    "DecideApproval",
                    "GetRunGrant",
                    "ListSessionApprovals",
                    "ListSignIns",
                ),
                "JournalService": ("Checkpoint", "Append", "CreateRun", "ReadJournal", "WatchJournal", "ReadBlob"),
                "CallQueueService": (
                    "LeaseCalls",
                    "StartCall",
                    "RenewCalls",
                    "ReturnCalls",
                    "CompleteCall",
                    "GetCall",
                ),
            }.items()
            for method in methods
        }

    def add_to(self, server: Server) -> None:
        """Serves everything."""
        server.add(add_AgentStoreServiceServicer_to_server, FakeAgentStore(self))
        server.add(add_RunStoreServiceServicer_to_server, FakeRunStore(self))
        server.add(add_JournalServiceServicer_to_server, FakeJournal(self))
        server.add(add_CallQueueServiceServicer_to_server, FakeCallQueue(self))

    # --- what a test does -----------------------------------------------------------------------------------------

    def fail(self, method: str, make: Callable[[], Exception], times: int = 1) -> None:
        """Lets the next calls of a method fail."""
        self.failures.setdefault(method, []).extend([make] * times)

    def add_agent(self, workspace_id: str, spec: agent_pb2.AgentSpec, revision: str = "a" * 64) -> None:
        """Stores a revision."""
        stored = agent_pb2.AgentRevision(revision=revision, agent=spec.name, spec=spec, create_time=now())
        known = self.agents.setdefault((workspace_id, spec.name), FakeAgent(agent_pb2.Agent(name=spec.name)))
        known.revisions.insert(0, stored)
        known.agent.labels["latest"] = revision

    def add_run(self, workspace_id: str, **fields: Any) -> FakeRun:
        """Stores a run with its first event."""
        defaults: dict[str, Any] = {"run_id": new_uuid7(), "state": run_pb2.RUN_STATE_QUEUED}
        run = run_pb2.Run(**(defaults | fields))
        known = FakeRun(run)
        self.runs[workspace_id, run.run_id] = known
        self._append(known, [run_pb2.Change(run_created=run_pb2.RunCreated(agent=run.agent, revision=run.revision))])
        return known

    async def append(self, run: FakeRun, *changes: run_pb2.Change) -> None:
        """Writes an event and tells the watchers."""
        async with self.changed:
            self._append(run, changes)
            self.changed.notify_all()

    async def end(self, run: FakeRun, state: run_pb2.RunState = run_pb2.RUN_STATE_SUCCEEDED) -> None:
        """Writes the event that ends a run."""
        run.run.state = state
        await self.append(run, run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state)))

    async def send_delta(self, run: FakeRun, text: str) -> None:
        """Passes a piece of a model's answer on to the watchers."""
        async with self.changed:
            run.deltas.append(run_pb2.Delta(run_id=run.run.run_id, text=text))
            self.changed.notify_all()

    async def queue_call(self, workspace_id: str, tool: str, arguments_json: str = "{}", **fields: Any) -> FakeCall:
        """Makes a call that waits for a worker."""
        call = queue.LeasedCall(
            workspace_id=workspace_id,
            run_id=new_uuid7(),
            step=1,
            attempt=1,
            tool=tool,
            arguments_json=arguments_json,
            idempotency_key="key",
            agent="support",
            revision="a" * 64,
            call_id="c1",
            **fields,
        )
        known = FakeCall(call)
        async with self.changed:
            self.calls.append(known)
            self.changed.notify_all()
        return known

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when something that is stored has become true."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: bool(condition()))

    def of(self, kind: type[Any]) -> list[Any]:
        """The requests of a kind that have arrived."""
        return [request for request in self.received if isinstance(request, kind)]

    # --- what the services share ----------------------------------------------------------------------------------

    async def note(self, method: str, request: Any) -> None:
        async with self.changed:
            self.received.append(request)
            self.changed.notify_all()
        pending = self.failures.get(method)
        if pending:
            raise pending.pop(0)()

    def once(self, workspace_id: str, request: Any, make: Callable[[], Any]) -> Any:
        """Answers a repeated request with its first answer."""
        if not request.request_id:
            return make()
        key = (workspace_id, request.request_id)
        known = self.requests.get(key)
        if known is None:
            known = self.requests[key] = (request.request_fingerprint, make())
        if known[0] != request.request_fingerprint:
            raise InvalidArgument("the request_id was used with other content", reason=Reason.REQUEST_ID_REUSED)
        return known[1]

    def run_of(self, workspace_id: str, run_id: str) -> FakeRun:
        known = self.runs.get((workspace_id, run_id))
        if known is None:
            raise NotFound("there is no such run", reason=Reason.RUN_NOT_FOUND)
        return known

    def _append(self, run: FakeRun, changes: Iterable[run_pb2.Change]) -> None:
        run.run.last_seq += 1
        run.events.append(run_pb2.Event(run_id=run.run.run_id, seq=run.run.last_seq, time=now(), changes=list(changes)))


def _page(items: list[Any], size: int, before: str, key: Callable[[Any], str]) -> tuple[list[Any], bool]:
    newest_first = sorted(items, key=key, reverse=True)
    rest = [item for item in newest_first if not before or key(item) < before]
    return rest[:size], len(rest) > size


class FakeAgentStore(AgentStoreServiceServicer):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    def _agent(self, workspace_id: str, name: str) -> FakeAgent:
        known = self.state.agents.get((workspace_id, name))
        if known is None:
            raise NotFound("there is no such agent", reason=Reason.AGENT_NOT_FOUND)
        return known

    def _revision(self, agent: FakeAgent, wanted: str) -> agent_pb2.AgentRevision:
        wanted = agent.agent.labels.get(wanted or "latest", wanted)
        found = [known for known in agent.revisions if known.revision.startswith(wanted)]
        if len(wanted) < 6 or not all(character in "0123456789abcdef" for character in wanted):
            raise NotFound("there is no such label", reason=Reason.LABEL_NOT_FOUND)
        if len(found) != 1:
            raise NotFound("there is no such revision", reason=Reason.REVISION_NOT_FOUND)
        return found[0]

    async def PutAgentRevision(
        self, request: agent_store.PutAgentRevisionRequest, context: Any
    ) -> agent_store.PutAgentRevisionResponse:
        await self.state.note("PutAgentRevision", request)

        def put() -> agent_store.PutAgentRevisionResponse:
            key = (request.workspace_id, request.spec.name)
            known = self.state.agents.get(key)
            found = [item for item in known.revisions if item.revision == request.revision] if known else []
            if not found:
                self.state.add_agent(request.workspace_id, request.spec, request.revision)
            agent = self.state.agents[key]
            agent.agent.labels["latest"] = request.revision
            return agent_store.PutAgentRevisionResponse(
                revision=self._revision(agent, request.revision), created=not found
            )

        response: agent_store.PutAgentRevisionResponse = self.state.once(request.workspace_id, request, put)
        return response

    async def GetAgent(self, request: agent_store.GetAgentRequest, context: Any) -> agent_store.GetAgentResponse:
        return agent_store.GetAgentResponse(agent=self._agent(request.workspace_id, request.agent).agent)

    async def ListAgents(self, request: agent_store.ListAgentsRequest, context: Any) -> agent_store.ListAgentsResponse:
        await self.state.note("ListAgents", request)
        names = sorted(name for workspace_id, name in self.state.agents if workspace_id == request.workspace_id)
        rest = [name for name in names if name > request.after_name]
        agents = [self.state.agents[request.workspace_id, name].agent for name in rest[: request.page_size]]
        return agent_store.ListAgentsResponse(agents=agents, has_more=len(rest) > request.page_size)

    async def GetAgentRevision(
        self, request: agent_store.GetAgentRevisionRequest, context: Any
    ) -> agent_store.GetAgentRevisionResponse:
        await self.state.note("GetAgentRevision", request)
        agent = self._agent(request.workspace_id, request.agent)
        return agent_store.GetAgentRevisionResponse(revision=self._revision(agent, request.revision))

    async def ListAgentRevisions(
        self, request: agent_store.ListAgentRevisionsRequest, context: Any
    ) -> agent_store.ListAgentRevisionsResponse:
        await self.state.note("ListAgentRevisions", request)
        agent = self._agent(request.workspace_id, request.agent)
        start = int(request.position or 0)
        end = start + request.page_size
        return agent_store.ListAgentRevisionsResponse(
            revisions=agent.revisions[start:end], next_position=str(end) if end < len(agent.revisions) else ""
        )

    async def PutAgentLabel(
        self, request: agent_store.PutAgentLabelRequest, context: Any
    ) -> agent_store.PutAgentLabelResponse:
        agent = self._agent(request.workspace_id, request.agent)

        def put() -> agent_store.PutAgentLabelResponse:
            agent.agent.labels[request.label] = self._revision(agent, request.revision).revision
            return agent_store.PutAgentLabelResponse(agent=agent.agent)

        response: agent_store.PutAgentLabelResponse = self.state.once(request.workspace_id, request, put)
        return response


class FakeRunStore(RunStoreServiceServicer):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    async def GetRun(self, request: run_store.GetRunRequest, context: Any) -> run_store.GetRunResponse:
        await self.state.note("GetRun", request)
        return run_store.GetRunResponse(run=self.state.run_of(request.workspace_id, request.run_id).run)

    async def ListRuns(self, request: run_store.ListRunsRequest, context: Any) -> run_store.ListRunsResponse:
        await self.state.note("ListRuns", request)
        runs = [
            known.run
            for (workspace_id, _), known in self.state.runs.items()
            if workspace_id == request.workspace_id
            and (not request.agent or known.run.agent == request.agent)
            and (not request.states or known.run.state in request.states)
        ]
        page, has_more = _page(runs, request.page_size, request.before_run_id, lambda run: str(run.run_id))
        return run_store.ListRunsResponse(runs=page, has_more=has_more)

    async def RequestCancel(
        self, request: run_store.RequestCancelRequest, context: Any
    ) -> run_store.RequestCancelResponse:
        known = self.state.run_of(request.workspace_id, request.run_id)
        if known.run.state in (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED):
            raise FailedPrecondition("the run has ended", reason=Reason.RUN_ENDED)
        if not known.run.cancel_requested:
            known.run.cancel_requested = True
            cancel = run_pb2.CancelRequested(requested_by=request.requested_by, reason=request.reason)
            await self.state.append(known, run_pb2.Change(cancel_requested=cancel))
        return run_store.RequestCancelResponse(run=known.run)

    async def RequestPause(
        self, request: run_store.RequestPauseRequest, context: Any
    ) -> run_store.RequestPauseResponse:
        await self.state.note("RequestPause", request)
        known = self._unfinished(request.workspace_id, request.run_id)
        if not known.run.pause_requested:
            known.run.pause_requested = True
            known.run.state = run_pb2.RUN_STATE_PAUSED
            asked = run_pb2.PauseRequested(requested_by=request.requested_by, reason=request.reason)
            await self.state.append(known, run_pb2.Change(pause_requested=asked))
        return run_store.RequestPauseResponse(run=known.run)

    async def RequestResume(
        self, request: run_store.RequestResumeRequest, context: Any
    ) -> run_store.RequestResumeResponse:
        await self.state.note("RequestResume", request)
        known = self._unfinished(request.workspace_id, request.run_id)
        if known.run.pause_requested:
            known.run.pause_requested = False
            known.run.state = run_pb2.RUN_STATE_QUEUED
            asked = run_pb2.ResumeRequested(requested_by=request.requested_by, reason=request.reason)
            await self.state.append(known, run_pb2.Change(resume_requested=asked))
        return run_store.RequestResumeResponse(run=known.run)

    def _unfinished(self, workspace_id: str, run_id: str) -> FakeRun:
        known = self.state.run_of(workspace_id, run_id)
        if known.run.state in (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED):
            raise FailedPrecondition("the run has ended", reason=Reason.RUN_ENDED)
        return known

    async def CreateSession(
        self, request: run_store.CreateSessionRequest, context: Any
    ) -> run_store.CreateSessionResponse:
        def make() -> run_store.CreateSessionResponse:
            session = run_store.StoredSession(session_id=request.session_id, user_id=request.user_id, create_time=now())
            self.state.sessions[request.workspace_id, request.session_id] = session
            return run_store.CreateSessionResponse(session=session)

        response: run_store.CreateSessionResponse = self.state.once(request.workspace_id, request, make)
        return response

    def _session(self, workspace_id: str, session_id: str) -> run_store.StoredSession:
        session = self.state.sessions.get((workspace_id, session_id))
        if session is None:
            raise NotFound("there is no such session", reason=Reason.SESSION_NOT_FOUND)
        return session

    async def GetSession(self, request: run_store.GetSessionRequest, context: Any) -> run_store.GetSessionResponse:
        return run_store.GetSessionResponse(session=self._session(request.workspace_id, request.session_id))

    async def ListSessions(
        self, request: run_store.ListSessionsRequest, context: Any
    ) -> run_store.ListSessionsResponse:
        sessions = [
            session
            for (workspace_id, _), session in self.state.sessions.items()
            if workspace_id == request.workspace_id and (not request.user_id or session.user_id == request.user_id)
        ]
        page, has_more = _page(
            sessions, request.page_size, request.before_session_id, lambda session: str(session.session_id)
        )
        return run_store.ListSessionsResponse(sessions=page, has_more=has_more)

    async def ListSessionMessages(
        self, request: run_store.ListSessionMessagesRequest, context: Any
    ) -> run_store.ListSessionMessagesResponse:
        self._session(request.workspace_id, request.session_id)
        start = int(request.position or 0)
        messages = [
            run_store.StoredSessionMessage(
                seq=seq, message=content_pb2.Message(parts=[content_pb2.Part(text=f"message {seq}")])
            )
            for seq in range(start, min(start + request.page_size, 5))
        ]
        end = start + len(messages)
        return run_store.ListSessionMessagesResponse(messages=messages, next_position=str(end) if end < 5 else "")

    def _approval(self, workspace_id: str, approval_id: str) -> run_pb2.Approval:
        approval = self.state.approvals.get((workspace_id, approval_id))
        if approval is None:
            raise NotFound("there is no such question", reason=Reason.APPROVAL_NOT_FOUND)
        return approval

    async def GetApproval(self, request: run_store.GetApprovalRequest, context: Any) -> run_store.GetApprovalResponse:
        return run_store.GetApprovalResponse(approval=self._approval(request.workspace_id, request.approval_id))

    async def ListApprovals(
        self, request: run_store.ListApprovalsRequest, context: Any
    ) -> run_store.ListApprovalsResponse:
        approvals = [
            approval
            for (workspace_id, _), approval in self.state.approvals.items()
            if workspace_id == request.workspace_id
            and (not request.run_id or approval.run_id == request.run_id)
            and (not request.state or approval.state == request.state)
        ]
        page, has_more = _page(
            approvals, request.page_size, request.before_approval_id, lambda approval: str(approval.approval_id)
        )
        return run_store.ListApprovalsResponse(approvals=page, has_more=has_more)

    async def GetRunGrant(self, request: run_store.GetRunGrantRequest, context: Any) -> run_store.GetRunGrantResponse:
        self.state.run_of(request.workspace_id, request.run_id)
        grants = [new.run_grant for new in self.state.new_runs if new.run_id == request.run_id]
        return run_store.GetRunGrantResponse(run_grant=grants[0] if grants else "")

    async def ListSessionApprovals(
        self, request: run_store.ListSessionApprovalsRequest, context: Any
    ) -> run_store.ListSessionApprovalsResponse:
        return run_store.ListSessionApprovalsResponse(
            approvals=self.state.session_approvals.get((request.workspace_id, request.session_id), ())
        )

    async def ListSignIns(self, request: run_store.ListSignInsRequest, context: Any) -> run_store.ListSignInsResponse:
        pending = [
            run_store.StoredSignIn(workspace_id=workspace_id, approval=approval)
            for (workspace_id, _), approval in sorted(self.state.approvals.items())
            if approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN
            and approval.state == run_pb2.APPROVAL_STATE_PENDING
            and request.workspace_id in ("", workspace_id)
            and (workspace_id, approval.approval_id) > (request.after_workspace_id, request.after_approval_id)
        ]
        size = request.page_size
        return run_store.ListSignInsResponse(sign_ins=pending[:size], has_more=len(pending) > size)

    async def DecideApproval(
        self, request: run_store.DecideApprovalRequest, context: Any
    ) -> run_store.DecideApprovalResponse:
        approval = self._approval(request.workspace_id, request.decision.approval_id)
        if approval.state == run_pb2.APPROVAL_STATE_DECIDED:
            first, second = approval.decision, request.decision
            said = (first.answer_json, first.resolution, first.verdict, first.reason, first.arguments_sha256)
            again = (second.answer_json, second.resolution, second.verdict, second.reason, second.arguments_sha256)
            if said != again:
                raise FailedPrecondition("it is decided", reason=Reason.APPROVAL_ALREADY_DECIDED)
        else:
            approval.state = run_pb2.APPROVAL_STATE_DECIDED
            approval.decision.CopyFrom(request.decision)
            async with self.state.changed:
                self.state.changed.notify_all()
        return run_store.DecideApprovalResponse(approval=approval)


class FakeJournal(JournalServiceServicer):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    async def Checkpoint(self, request_iterator: Any, context: Any) -> AsyncIterator[journal.CheckpointResponse]:
        async for _ in request_iterator:
            raise Unavailable("this double has no stream of transitions")
        yield journal.CheckpointResponse()

    async def Append(self, request: journal.AppendRequest, context: Any) -> journal.AppendResponse:
        raise Unavailable("this double has no transitions")

    async def CreateRun(self, request: journal.CreateRunRequest, context: Any) -> journal.CreateRunResponse:
        new = request.new_run
        await self.state.note("CreateRun", request)
        if new.session_id and (new.workspace_id, new.session_id) not in self.state.sessions:
            raise NotFound("there is no such session", reason=Reason.SESSION_NOT_FOUND)
        agent = self.state.agents[new.workspace_id, new.agent].agent
        if new.label and agent.labels.get(new.label) != new.revision:
            raise Conflict("the label points to another revision by now")

        def make() -> journal.CreateRunResponse:
            self.state.new_runs.append(new)
            for blob in new.blobs:
                self.state.blobs[new.workspace_id, blob.hash] = blob.data
            known = self.state.add_run(
                new.workspace_id,
                run_id=new.run_id,
                session_id=new.session_id or new.new_session_id,
                agent=new.agent,
                revision=new.revision,
                user_id=new.user_id,
            )
            return journal.CreateRunResponse(run=known.run)

        response: journal.CreateRunResponse = self.state.once(new.workspace_id, new, make)
        return response

    async def ReadJournal(
        self, request: journal.ReadJournalRequest, context: Any
    ) -> AsyncIterator[journal.ReadJournalResponse]:
        known = self.state.run_of(request.workspace_id, request.run_id)
        yield journal.ReadJournalResponse(events=known.events[request.after_seq :])

    async def WatchJournal(
        self, request: journal.WatchJournalRequest, context: Any
    ) -> AsyncIterator[journal.WatchJournalResponse]:
        await self.state.note("WatchJournal", request)
        known = self.state.run_of(request.workspace_id, request.run_id)
        seen, deltas = request.after_seq, len(known.deltas)
        while True:
            for event in known.events[seen:]:
                seen = event.seq
                yield journal.WatchJournalResponse(event=event)
            if known.run.state in ENDED:
                return
            for delta in known.deltas[deltas:]:
                deltas += 1
                if not request.events_only:
                    yield journal.WatchJournalResponse(delta=delta)
            if self.state.watch_stopped.is_set():
                return
            async with self.state.changed:
                # Nothing is written without the lock, so that no change is missed between the reading and the waiting.
                is_news = known.run.last_seq > seen or len(known.deltas) > deltas or self.state.watch_stopped.is_set()
                if not is_news:
                    await self.state.changed.wait()

    async def ReadBlob(self, request: journal.ReadBlobRequest, context: Any) -> AsyncIterator[journal.ReadBlobResponse]:
        data = self.state.blobs.get((request.workspace_id, request.hash))
        if data is None:
            raise NotFound("there is no such body", reason=Reason.BLOB_NOT_FOUND)
        for start in range(request.offset, len(data), PIECE_BYTES):
            yield journal.ReadBlobResponse(data=data[start : start + PIECE_BYTES], size=len(data))


class FakeCallQueue(CallQueueServiceServicer):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    def _call(self, lease: str, worker_id: str = "") -> FakeCall:
        for known in self.state.calls:
            if known.call.lease == lease and lease and (not worker_id or known.worker_id == worker_id):
                return known
        raise LeaseLost("the call is not this worker's", reason=Reason.CALL_LEASE_LOST)

    async def LeaseCalls(self, request: queue.LeaseCallsRequest, context: Any) -> queue.LeaseCallsResponse:
        self.state.lease_requests += 1
        await self.state.note("LeaseCalls", request)
        leased: list[queue.LeasedCall] = []
        for known in self.state.calls:
            is_wanted = known.call.workspace_id == request.workspace_id and known.call.tool in request.tools
            if known.state == "QUEUED" and is_wanted and len(leased) < request.max_calls:
                known.state, known.worker_id = "OFFERED", request.worker_id
                known.call.lease = hashlib.sha256(new_uuid7().encode()).hexdigest()
                expires = datetime.now(UTC) + timedelta(seconds=request.offer_duration.seconds or 15)
                known.call.offer_expire_time.FromDatetime(expires)
                leased.append(known.call)
        # What is leased is leased, also when the answer is late or nobody waits for it any more.
        await self.state.leasing_paused.wait()
        return queue.LeaseCallsResponse(calls=leased)

    async def StartCall(self, request: queue.StartCallRequest, context: Any) -> queue.StartCallResponse:
        await self.state.note("StartCall", request)
        known = self._call(request.lease, request.worker_id)
        if known.state not in ("OFFERED", "STARTED"):
            raise LeaseLost("the offer is void", reason=Reason.CALL_LEASE_LOST)
        known.state = "STARTED"
        return queue.StartCallResponse()

    async def RenewCalls(self, request: queue.RenewCallsRequest, context: Any) -> queue.RenewCallsResponse:
        response = queue.RenewCallsResponse()
        for lease, details in request.running.items():
            try:
                known = self._call(lease, request.worker_id)
            except LeaseLost:
                response.lost_leases.append(lease)
                continue
            if known.state != "STARTED":
                response.lost_leases.append(lease)
            elif known.is_cancelled:
                response.cancelled_leases.append(lease)
            known.details = details
        await self.state.note("RenewCalls", request)
        return response

    async def ReturnCalls(self, request: queue.ReturnCallsRequest, context: Any) -> queue.ReturnCallsResponse:
        for lease in request.leases:
            known = self._call(lease, request.worker_id)
            if known.state == "OFFERED":
                known.state, known.worker_id, known.call.lease = "QUEUED", "", ""
        await self.state.note("ReturnCalls", request)
        return queue.ReturnCallsResponse()

    async def CompleteCall(self, request: queue.CompleteCallRequest, context: Any) -> queue.CompleteCallResponse:
        await self.state.note("CompleteCall", request)
        known = self._call(request.lease)
        if known.ended_with == request.change:
            return queue.CompleteCallResponse(seq=1)
        if known.state != "STARTED" or known.worker_id != request.worker_id:
            self.state.late.append(request.late)
            raise LeaseLost("the call is not this worker's", reason=Reason.CALL_LEASE_LOST)
        for blob in request.blobs:
            self.state.blobs[request.workspace_id, blob.hash] = blob.data
        async with self.state.changed:
            known.state, known.ended_with = "ENDED", request.change
            self.state.changed.notify_all()
        return queue.CompleteCallResponse(seq=1)

    async def GetCall(self, request: queue.GetCallRequest, context: Any) -> queue.GetCallResponse:
        known = self._call(request.lease)
        if known.call.workspace_id != request.workspace_id:
            raise LeaseLost("there is no such call", reason=Reason.CALL_LEASE_LOST)
        if request.executing_worker_id and (known.state, known.worker_id) != ("STARTED", request.executing_worker_id):
            raise LeaseLost("the call is not this worker's", reason=Reason.CALL_LEASE_LOST)
        return queue.GetCallResponse(call=known.call)
