"""The async client of one suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from holdfast.agent import Agent, Budget
from holdfast.api.auth.v1 import workspace_service_pb2
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.audit import Audit
from holdfast.connecting import ConnectHandle, ConnectMode, get_connect, start_connect
from holdfast.connections import Connections, Integrations
from holdfast.housekeeping import Housekeeping
from holdfast.resources import Agents, Approvals, Keys, Priority, Runs, Sessions, Trace
from holdfast.run_stream import RunStream
from holdfast.runs import RunHandle
from holdfast.settings import resolve
from holdfast.transport import DEFAULT_TIMEOUT_SECONDS, Transport


class Client:
    """A connection to a suite. Belongs to one event loop; close it, or use it as an async context manager.

    Example:
        async with Client() as client:
            await client.apply(agent)
            run = await client.start("support", "Where is my order?")
            print(await run.result())

    Args:
        address: The executor as host:port (https://host:port for TLS). Not given: HOLDFAST_ADDRESS, then the user's
            configuration file, then 127.0.0.1:7400.
        api_key: Not given: HOLDFAST_API_KEY, then the configuration file.
        auth_address: The auth service; by default beside the executor, its port + 2.
        trace_address: The trace service; by default beside the executor, its port + 3.
        profile: Which part of the configuration file; not given: HOLDFAST_PROFILE, then `default`.
        ca_file: Authority that signs the services' certificates, in PEM. Not given: HOLDFAST_CA_FILE, then the
            configuration file, then the system's authorities.
        timeout: Deadline of every call but streams, in seconds.

    Raises:
        InvalidArgument: An address or the configuration file is not valid.
    """

    def __init__(
        self,
        address: str | None = None,
        api_key: str | None = None,
        *,
        auth_address: str | None = None,
        trace_address: str | None = None,
        profile: str | None = None,
        ca_file: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        settings = resolve(
            address=address,
            api_key=api_key,
            auth_address=auth_address,
            trace_address=trace_address,
            profile=profile,
            ca_file=ca_file,
        )
        self._transport = Transport(settings, timeout=timeout)
        self.agents = Agents(self._transport)
        """Agents, their revisions and labels."""
        self.runs = Runs(self._transport)
        """Runs."""
        self.sessions = Sessions(self._transport)
        """Conversations."""
        self.approvals = Approvals(self._transport)
        """Questions to people."""
        self.keys = Keys(self._transport)
        """API keys of the workspace."""
        self.integrations = Integrations(self._transport)
        """The workspace's applications at third parties."""
        self.connections = Connections(self._transport)
        """Credentials of third parties, of users or shared."""
        self.audit = Audit(self._transport)
        """Who did what with credentials and keys."""
        self.trace = Trace(self._transport)
        """What happened and why."""
        self.housekeeping = Housekeeping(self._transport)
        """What the workspace keeps, and for how long."""

    @property
    def transport(self) -> Transport:
        """The channels below this client."""
        return self._transport

    async def apply(self, agent: Agent | agent_pb2.AgentSpec) -> agent_pb2.AgentRevision:
        """Stores a definition and returns its revision; the same definition again is the same revision."""
        return (await self.agents.apply(agent)).revision

    async def connect(
        self,
        integration: str,
        *,
        user_id: str = "",
        connection: str = "",
        scopes: Sequence[str] = (),
        mode: ConnectMode = "browser",
        return_url: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> ConnectHandle:
        """Begins to connect an account at a third party, so that agents can act with it.

        Args:
            integration: Name of the workspace's integration.
            user_id: Whose account it is; empty for one that the workspace shares.
            connection: Name of the connection; an existing one is reconnected and works on meanwhile. The
                integration's name when not given.
            scopes: Permissions beyond those of the integration.
            mode: `browser`: the person opens a link. `device`: they type a code on another device.
            return_url: Where their browser brings the code that confirms it: this machine's loopback, or an address
                that the operator has listed. Not given: the page shows the code.
            variables: Values of the provider's variables that are the connection's own, such as `shop`. What is not
                given is that of the existing connection, or the page asks the person.
        """
        return await start_connect(
            self._transport,
            integration,
            user_id=user_id,
            connection=connection,
            scopes=scopes,
            mode=mode,
            return_url=return_url,
            variables=variables,
        )

    async def connect_session(self, session_id: str) -> ConnectHandle:
        """Returns an attempt to connect that was begun with the same key."""
        return await get_connect(self._transport, session_id)

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
        """Starts a run. When this returns, the run is stored and goes on without the caller.

        Args:
            agent: The agent or its name.
            text: What the run is asked to do.
            revision: A revision id or label; `latest` when not given.
            session_id: The conversation to go on with; a new one when not given.
            user_id: On whose behalf, the caller's own opaque id.
            reject_when_busy: Refuse, instead of waiting, while the session has an unfinished run.
            priority: `batch` lets the workspace's other runs go first.
            ttl: How long it may take in all, in seconds where it is a number; what has not ended by then ends EXPIRED.
                Not limited when not given.
            budget: What it may use; for each limit no more than the agent's own, which holds where none is given.
            request_id: The same id with the same content is the same run. A new one when not given, so that the
                retries inside this call start one run.
        """
        return await self.runs.start(
            agent,
            text,
            revision=revision,
            session_id=session_id,
            user_id=user_id,
            reject_when_busy=reject_when_busy,
            priority=priority,
            ttl=ttl,
            budget=budget,
            request_id=request_id,
        )

    def run_stream(self) -> RunStream:
        """Returns a stream that starts many runs; open it as an async context manager."""
        return RunStream(self._transport)

    async def run(self, run_id: str) -> RunHandle:
        """Returns an existing run."""
        return await self.runs.get(run_id)

    async def pause(self, run_id: str, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `RunHandle.pause`."""
        return await self.runs.handle(run_id).pause(reason, request_id=request_id)

    async def resume(self, run_id: str, reason: str = "", *, request_id: str | None = None) -> run_pb2.Run:
        """As `RunHandle.resume`."""
        return await self.runs.handle(run_id).resume(reason, request_id=request_id)

    async def workspace(self) -> workspace_service_pb2.Workspace:
        """Returns the workspace of the client's key."""
        stub = self._transport.stub("auth", WorkspaceServiceStub)
        request = workspace_service_pb2.GetWorkspaceRequest()
        return (await self._transport.call("auth", stub.GetWorkspace, request)).workspace

    async def seal_payloads(self, is_on: bool | None = True) -> workspace_service_pb2.Workspace:
        """Decides whether what is said in the workspace is stored sealed under a key of its own, from some seconds on.

        What is stored already stays as it is. For administrators; may be repeated.

        Args:
            is_on: None leaves it to the installation, as it is for a new workspace.

        Raises:
            Unavailable: The workspace's key cannot be reached: nothing was turned on.
        """
        choice = {
            None: workspace_service_pb2.PAYLOAD_SEALING_UNSPECIFIED,
            True: workspace_service_pb2.PAYLOAD_SEALING_ON,
            False: workspace_service_pb2.PAYLOAD_SEALING_OFF,
        }[is_on]
        stub = self._transport.stub("auth", WorkspaceServiceStub)
        request = workspace_service_pb2.SetPayloadSealingRequest(payload_sealing=choice)
        return (await self._transport.call("auth", stub.SetPayloadSealing, request)).workspace

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()
