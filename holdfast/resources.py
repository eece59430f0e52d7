"""What a client can do with each kind of thing of a suite: agents, runs, conversations, questions, keys, traces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, cast

from holdfast.agent import Agent, Budget
from holdfast.api.auth.v1 import api_key_service_pb2
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import agent_service_pb2, approval_service_pb2, run_service_pb2, session_service_pb2
from holdfast.api.executor.v1.agent_service_pb2_grpc import AgentServiceStub
from holdfast.api.executor.v1.approval_service_pb2_grpc import ApprovalServiceStub
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceStub
from holdfast.api.executor.v1.session_service_pb2_grpc import SessionServiceStub
from holdfast.api.trace.v1 import query_service_pb2
from holdfast.api.trace.v1.query_service_pb2_grpc import QueryServiceStub
from holdfast.errors import InvalidArgument
from holdfast.ids import new_uuid7
from holdfast.runs import RunHandle
from holdfast.times import to_timestamp
from holdfast.transport import Transport

Resolution = Literal["done", "not_done", "tell_model", "fail_run"]
Priority = Literal["interactive", "batch"]
Scope = Literal["once", "run", "session"]

_PAGE_SIZE: Final = 200
_PRIORITIES: Final = {"interactive": run_pb2.PRIORITY_INTERACTIVE, "batch": run_pb2.PRIORITY_BATCH}


class Agents:
    """Agents, their immutable revisions, and labels."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", AgentServiceStub)

    async def apply(
        self,
        agent: Agent | agent_pb2.AgentSpec,
        *,
        validate_only: bool = False,
        applied_together: Iterable[str] = (),
    ) -> agent_service_pb2.ApplyAgentResponse:
        """Stores a definition as a revision and points `latest` to it.

        Args:
            agent: The definition.
            validate_only: Check it and store nothing.
            applied_together: Names of agents that are about to be stored as well, which its tools may call.

        Raises:
            InvalidArgument: With the fields that are wrong; for an agent from a file, with file and line.
        """
        # Imported here: an agent that was built in Python needs no YAML.
        from holdfast.agent_files import explain

        spec = agent.spec if isinstance(agent, Agent) else agent
        request = agent_service_pb2.ApplyAgentRequest(
            spec=spec,
            validate_only=validate_only,
            request_id="" if validate_only else new_uuid7(),
            applied_together=applied_together,
        )
        try:
            return await self._transport.call("executor", self._stub.ApplyAgent, request)
        except InvalidArgument as error:
            if isinstance(agent, Agent) and agent.locator is not None:
                raise explain(error, agent) from error
            raise

    async def get(self, name: str) -> agent_pb2.Agent:
        """Returns an agent."""
        request = agent_service_pb2.GetAgentRequest(agent=name)
        return (await self._transport.call("executor", self._stub.GetAgent, request)).agent

    async def revision(self, name: str, revision: str = "") -> agent_pb2.AgentRevision:
        """Returns a revision by its id, a prefix of it, or a label; `latest` when not given."""
        request = agent_service_pb2.GetAgentRevisionRequest(agent=name, revision=revision)
        return (await self._transport.call("executor", self._stub.GetAgentRevision, request)).revision

    async def list(self) -> AsyncIterator[agent_pb2.Agent]:
        """Yields all agents by name."""
        request = agent_service_pb2.ListAgentsRequest(page_size=_PAGE_SIZE)
        async for response in self._transport.pages("executor", self._stub.ListAgents, request):
            for agent in response.agents:
                yield agent

    async def revisions(self, name: str) -> AsyncIterator[agent_pb2.AgentRevision]:
        """Yields the revisions of an agent, newest first."""
        request = agent_service_pb2.ListAgentRevisionsRequest(agent=name, page_size=_PAGE_SIZE)
        async for response in self._transport.pages("executor", self._stub.ListAgentRevisions, request):
            for revision in response.revisions:
                yield revision

    async def set_label(self, name: str, label: str, revision: str) -> agent_pb2.Agent:
        """Points a label to a revision."""
        request = agent_service_pb2.SetAgentLabelRequest(
            agent=name, label=label, revision=revision, request_id=new_uuid7()
        )
        return (await self._transport.call("executor", self._stub.SetAgentLabel, request)).agent


class Runs:
    """Runs: start, look, list."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", RunServiceStub)

    async def start(
        self,
        agent: str | Agent,
        text: str,
        *,
        revision: str = "",
        session_id: str = "",
        user_id: str = "",
        reject_when_busy: bool = False,
        priority: Priority = "interactive",
        ttl: timedelta | float | None = None,
        budget: Budget | None = None,
        request_id: str | None = None,
    ) -> RunHandle:
        """As `Client.start`."""
        if priority not in _PRIORITIES:
            raise InvalidArgument(f"expected interactive or batch, not {priority!r}", field="priority")
        busy = run_service_pb2.BUSY_POLICY_REJECT if reject_when_busy else run_service_pb2.BUSY_POLICY_ENQUEUE
        request = run_service_pb2.StartRunRequest(
            agent=agent.name if isinstance(agent, Agent) else agent,
            revision=revision,
            text=text,
            session_id=session_id,
            user_id=user_id,
            busy_policy=busy,
            priority=_PRIORITIES[priority],
            # Without an id the channel's own retry after a lost answer would start a second run.
            request_id=request_id if request_id is not None else new_uuid7(),
        )
        if ttl is not None:
            request.ttl.FromTimedelta(ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl))
        if budget is not None:
            request.budget.CopyFrom(budget.message())
        response = await self._transport.call("executor", self._stub.StartRun, request)
        return RunHandle(self._transport, response.run)

    def handle(self, run_id: str) -> RunHandle:
        """Returns a run that nobody has looked at yet."""
        return RunHandle(self._transport, run_pb2.Run(run_id=run_id))

    async def get(self, run_id: str) -> RunHandle:
        """Returns an existing run."""
        request = run_service_pb2.GetRunRequest(run_id=run_id)
        response = await self._transport.call("executor", self._stub.GetRun, request)
        return RunHandle(self._transport, response.run)

    async def list(
        self,
        *,
        agent: str = "",
        session_id: str = "",
        user_id: str = "",
        states: Iterable[int] = (),
        created_after: datetime | None = None,
        parent_run_id: str = "",
        root_run_id: str = "",
        include_children: bool = False,
    ) -> AsyncIterator[run_pb2.Run]:
        """Yields runs, newest first: those that callers started, unless the last three ask for others.

        Args:
            agent: Only runs of this agent.
            session_id: Only runs of this session.
            user_id: Only runs of this user.
            states: Only runs in one of these states; empty means all.
            created_after: Only runs accepted at or after this time.
            parent_run_id: Only the runs that this one started, by calls of agents.
            root_run_id: Only those of the tree of this run, itself among them.
            include_children: Also runs that other runs started.
        """
        request = run_service_pb2.ListRunsRequest(
            page_size=_PAGE_SIZE,
            agent=agent,
            session_id=session_id,
            user_id=user_id,
            states=[_run_state(state) for state in states],
            created_after=to_timestamp(created_after),
            parent_run_id=parent_run_id,
            root_run_id=root_run_id,
            include_children=include_children,
        )
        async for response in self._transport.pages("executor", self._stub.ListRuns, request):
            for run in response.runs:
                yield run


class Sessions:
    """Conversations: ordered messages and the runs that made them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", SessionServiceStub)

    async def create(self, *, user_id: str = "") -> session_service_pb2.Session:
        """Begins a conversation without a run."""
        request = session_service_pb2.CreateSessionRequest(user_id=user_id, request_id=new_uuid7())
        return (await self._transport.call("executor", self._stub.CreateSession, request)).session

    async def get(self, session_id: str) -> session_service_pb2.Session:
        """Returns a conversation."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return (await self._transport.call("executor", self._stub.GetSession, request)).session

    async def list(self, *, user_id: str = "") -> AsyncIterator[session_service_pb2.Session]:
        """Yields conversations, newest first."""
        request = session_service_pb2.ListSessionsRequest(page_size=_PAGE_SIZE, user_id=user_id)
        async for response in self._transport.pages("executor", self._stub.ListSessions, request):
            for session in response.sessions:
                yield session

    async def messages(self, session_id: str) -> AsyncIterator[session_service_pb2.SessionMessage]:
        """Yields the messages of a conversation in order."""
        request = session_service_pb2.ListMessagesRequest(session_id=session_id, page_size=_PAGE_SIZE)
        async for response in self._transport.pages("executor", self._stub.ListMessages, request):
            for message in response.messages:
                yield message


class Approvals:
    """Questions to people: those an agent asks, calls that wait for approval, and calls whose outcome nobody knows."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("executor", ApprovalServiceStub)

    async def get(self, approval_id: str) -> run_pb2.Approval:
        """Returns a question."""
        request = approval_service_pb2.GetApprovalRequest(approval_id=approval_id)
        return (await self._transport.call("executor", self._stub.GetApproval, request)).approval

    async def list(
        self, *, run_id: str = "", root_run_id: str = "", pending_only: bool = True
    ) -> AsyncIterator[run_pb2.Approval]:
        """Yields questions, newest first.

        Args:
            run_id: Only those of this run.
            root_run_id: Only those of this run and of all that it and its agents have started.
            pending_only: Only those that wait for somebody.
        """
        state = run_pb2.APPROVAL_STATE_PENDING if pending_only else run_pb2.APPROVAL_STATE_UNSPECIFIED
        request = approval_service_pb2.ListApprovalsRequest(
            page_size=_PAGE_SIZE, run_id=run_id, state=state, root_run_id=root_run_id
        )
        async for response in self._transport.pages("executor", self._stub.ListApprovals, request):
            for approval in response.approvals:
                yield approval

    async def answer(self, approval_id: str, answer: Any, *, comment: str = "") -> run_pb2.Approval:
        """Answers an agent's question; its run goes on.

        Args:
            approval_id: The question.
            answer: A text, or what JSON can say where the question has a schema.
            comment: For the record.

        Raises:
            FailedPrecondition: It was decided otherwise before.
            InvalidArgument: The answer does not fit the question's schema.
        """
        return await self.answer_json(approval_id, json.dumps(answer, ensure_ascii=False), comment=comment)

    async def answer_json(self, approval_id: str, answer_json: str, *, comment: str = "") -> run_pb2.Approval:
        """As `answer`, with the answer as JSON text."""
        request = approval_service_pb2.DecideApprovalRequest(
            approval_id=approval_id, answer_json=answer_json, comment=comment, request_id=new_uuid7()
        )
        return (await self._transport.call("executor", self._stub.DecideApproval, request)).approval

    async def approve(
        self,
        approval_id: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        scope: Scope = "once",
        arguments_sha256: str = "",
        comment: str = "",
    ) -> run_pb2.Approval:
        """Lets a call be made that waits for approval; its run goes on.

        Args:
            approval_id: The question.
            arguments: Make it with these instead; the model is told.
            scope: `once`: this call. `run`: also all later calls of the tool in this run, whatever their arguments.
                `session`: also in later runs of the session, while the tool is defined as it is now.
            arguments_sha256: Hash of the arguments that were seen (`Approval.arguments_sha256`): a call with any others
                is not approved.
            comment: For the record.

        Raises:
            FailedPrecondition: It was decided otherwise before, or is about other arguments (APPROVAL_HASH_MISMATCH).
            InvalidArgument: The arguments do not fit the tool.
        """
        request = approval_service_pb2.DecideApprovalRequest(
            approval_id=approval_id,
            verdict=run_pb2.APPROVAL_VERDICT_APPROVED,
            scope=f"APPROVAL_SCOPE_{scope.upper()}",
            edited_arguments_json="" if arguments is None else json.dumps(arguments, ensure_ascii=False),
            arguments_sha256=arguments_sha256,
            comment=comment,
            request_id=new_uuid7(),
        )
        return (await self._transport.call("executor", self._stub.DecideApproval, request)).approval

    async def reject(
        self, approval_id: str, reason: str = "", *, arguments_sha256: str = "", comment: str = ""
    ) -> run_pb2.Approval:
        """Refuses a call that waits for approval; its run goes on, and the model is told.

        Args:
            approval_id: The question.
            reason: Why, for the model.
            arguments_sha256: As for `approve`.
            comment: For the record.

        Raises:
            FailedPrecondition: As `approve`.
        """
        request = approval_service_pb2.DecideApprovalRequest(
            approval_id=approval_id,
            verdict=run_pb2.APPROVAL_VERDICT_REJECTED,
            reason=reason,
            arguments_sha256=arguments_sha256,
            comment=comment,
            request_id=new_uuid7(),
        )
        return (await self._transport.call("executor", self._stub.DecideApproval, request)).approval

    async def resolve(
        self, approval_id: str, resolution: Resolution, *, result: Any = None, comment: str = ""
    ) -> run_pb2.Approval:
        """Says what a call in doubt did; its run goes on.

        Args:
            approval_id: The question.
            resolution: `done`: it happened, and `result` is what it returned. `not_done`: call it again.
                `tell_model`: the model is told that nobody knows. `fail_run`: the run fails.
            result: Of a call that is done, as JSON can say it.
            comment: For the record.
        """
        request = approval_service_pb2.DecideApprovalRequest(
            approval_id=approval_id,
            resolution=f"IN_DOUBT_RESOLUTION_{resolution.upper()}",
            answer_json=json.dumps(result, ensure_ascii=False) if resolution == "done" else "",
            comment=comment,
            request_id=new_uuid7(),
        )
        return (await self._transport.call("executor", self._stub.DecideApproval, request)).approval


class Keys:
    """Holdfast's own API keys of the workspace."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("auth", ApiKeyServiceStub)

    async def create(
        self,
        display_name: str,
        scopes: Sequence[str],
        *,
        expire_time: datetime | None = None,
        networks: Sequence[str] = (),
    ) -> tuple[api_key_service_pb2.ApiKey, str]:
        """Makes a key.

        Args:
            display_name: For people.
            scopes: What it may do: scopes such as `runs:write`, or roles (`admin`, `developer`, `runner`, `viewer`,
                `worker`); within those of the client's key.
            expire_time: When it ends by itself.
            networks: Where it may be used from, such as `10.0.0.0/8`; everywhere when there is none.

        Returns:
            The key's description, and the key itself, which is shown only here.
        """
        request = api_key_service_pb2.CreateApiKeyRequest(
            display_name=display_name,
            scopes=scopes,
            expire_time=to_timestamp(expire_time),
            networks=networks,
            request_id=new_uuid7(),
        )
        response = await self._transport.call("auth", self._stub.CreateApiKey, request)
        return response.api_key, response.secret

    async def list(self) -> AsyncIterator[api_key_service_pb2.ApiKey]:
        """Yields the keys, newest first, without secrets."""
        request = api_key_service_pb2.ListApiKeysRequest(page_size=_PAGE_SIZE)
        async for response in self._transport.pages("auth", self._stub.ListApiKeys, request):
            for key in response.api_keys:
                yield key

    async def revoke(self, api_key_id: str) -> api_key_service_pb2.ApiKey:
        """Makes a key useless, at every service within seconds."""
        request = api_key_service_pb2.RevokeApiKeyRequest(api_key_id=api_key_id, request_id=new_uuid7())
        return (await self._transport.call("auth", self._stub.RevokeApiKey, request)).api_key


class Trace:
    """What happened and why, derived from the journal."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.stub("trace", QueryServiceStub)

    async def list(
        self,
        *,
        agent: str = "",
        session_id: str = "",
        user_id: str = "",
        states: Iterable[int] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        parent_run_id: str = "",
        root_run_id: str = "",
        include_children: bool = False,
    ) -> AsyncIterator[query_service_pb2.RunSummary]:
        """Yields runs in short, newest first."""
        request = query_service_pb2.ListRunsRequest(
            page_size=_PAGE_SIZE,
            agent=agent,
            session_id=session_id,
            user_id=user_id,
            states=[_run_state(state) for state in states],
            created_after=to_timestamp(created_after),
            created_before=to_timestamp(created_before),
            parent_run_id=parent_run_id,
            root_run_id=root_run_id,
            include_children=include_children,
        )
        async for response in self._transport.pages("trace", self._stub.ListRuns, request):
            for run in response.runs:
                yield run

    async def tree(
        self, run_id: str, *, min_seq: int = 0, include_children: bool = False, timeout: float | None = None
    ) -> query_service_pb2.GetRunTreeResponse:
        """Returns one run's spans, parents before children.

        Args:
            run_id: The run.
            min_seq: Wait until trace has read at least this event.
            include_children: Also the spans of the runs below it.
            timeout: How long to wait at most, in seconds.
        """
        request = query_service_pb2.GetRunTreeRequest(run_id=run_id, min_seq=min_seq, include_children=include_children)
        return await self._transport.call("trace", self._stub.GetRunTree, request, timeout=timeout)

    async def step(self, run_id: str, step: int) -> query_service_pb2.GetStepResponse:
        """Returns one step with its full input and output."""
        request = query_service_pb2.GetStepRequest(run_id=run_id, step=step)
        return await self._transport.call("trace", self._stub.GetStep, request)


def _run_state(state: int) -> run_pb2.RunState:
    return cast(run_pb2.RunState, state)
