"""Credentials for calls that workers execute: only for a running call of theirs, and what its tool declares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.executor.v1 import tool_worker_service_pb2 as worker_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as queue_pb2
from holdfast.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Reason, Unauthenticated, Unavailable
from services.executor.credentials import CredentialMissing, Credentials, Injection, Need, ResolvedCredential
from services.executor.revisions import RevisionCache
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.egress.rules import allows_any
from services.shared.egress.urls import Destination

MAX_LEASE_CHARACTERS: Final = 512
MAX_WORKER_ID_CHARACTERS: Final = 64
_MAX_FINGERPRINT_CHARACTERS: Final = 64
_MOST_REJECTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that a worker executes, with its tool as the run's revision defines it."""

    call: queue_pb2.LeasedCall
    tool: agent_pb2.ToolSpec


class CallCredentials:
    """Hands the secrets of connections to workers, where the connections allow it.

    Args:
        state: Knows whose call it is.
        revisions: Definitions, for what the tools declare.
        credentials: Asks auth.
    """

    def __init__(self, state: StateStubs, revisions: RevisionCache, credentials: Credentials) -> None:
        self._state = state
        self._revisions = revisions
        self._credentials = credentials
        # By lease, oldest first: what the other side refused in a call, and auth has nothing newer for. In memory only:
        # where it is lost, the call is made again and finds it anew.
        self._rejected: dict[str, str] = {}

    async def hand_out(
        self, workspace_id: str, request: worker_pb2.GetCallCredentialRequest
    ) -> worker_pb2.GetCallCredentialResponse:
        """Returns the credential for a call that the worker executes now.

        Args:
            workspace_id: The workspace of the worker's key.
            request: Which call.

        Raises:
            LeaseLost: CALL_LEASE_LOST: the worker does not execute the call, or not any more.
            FailedPrecondition: The tool declares no connection (CREDENTIAL_NOT_DECLARED), or its connection cannot be
                used until somebody does something.
            HoldfastError: Auth refuses it or does not answer.
        """
        if len(request.rejected_fingerprint) > _MAX_FINGERPRINT_CHARACTERS:
            raise InvalidArgument("expected the fingerprint of a credential", field="rejected_fingerprint")
        running = await self.running_call(workspace_id, request.worker_id, request.lease)
        credential = await self._resolve(
            _need(running.call, running.tool, is_raw=True), rejected_fingerprint=request.rejected_fingerprint
        )
        if credential.fingerprint == request.rejected_fingerprint:
            self.note_rejected(running, credential)
        answer = worker_pb2.GetCallCredentialResponse(
            secret=credential.secret,
            fingerprint=credential.fingerprint,
            headers=[_field(item) for item in credential.headers],
            query=[_field(item) for item in credential.query],
            base_url=credential.base_url,
        )
        if credential.expire_time is not None:
            answer.expire_time.FromDatetime(credential.expire_time)
        return answer

    async def running_call(self, workspace_id: str, worker_id: str, lease: str) -> RunningCall:
        """Returns a call that the worker executes now, with its tool, which declares a connection.

        Raises:
            LeaseLost: CALL_LEASE_LOST: the worker does not execute the call, or not any more.
            FailedPrecondition: CREDENTIAL_NOT_DECLARED.
        """
        check_call(worker_id, lease)
        with calling("state"):
            response = await self._state.calls.GetCall(
                queue_pb2.GetCallRequest(workspace_id=workspace_id, lease=lease, executing_worker_id=worker_id)
            )
        call = response.call
        tool = await tool_of(self._revisions, workspace_id, call)
        if not tool.HasField("auth"):
            raise FailedPrecondition(
                f"the tool {call.tool!r} declares no connection in this run's revision of {call.agent!r}",
                reason=Reason.CREDENTIAL_NOT_DECLARED,
                metadata={"tool": call.tool, "agent": call.agent, "revision": call.revision},
            )
        return RunningCall(call, tool)

    async def for_request(
        self, running: RunningCall, to: Destination, method: str, *, rejected_fingerprint: str = ""
    ) -> ResolvedCredential:
        """Returns the credential for one request of a call, to be put in by the runtime.

        Raises:
            PermissionDenied: It may not be sent there (HOST_NOT_ALLOWED), or not be used.
            HoldfastError: There is none; as auth said it.
        """
        need = replace(_need(running.call, running.tool), target=to.origin, method=method)
        credential = await self._resolve(need, rejected_fingerprint=rejected_fingerprint)
        # The last word on where a secret goes, whatever was said when it was asked for.
        if not allows_any(credential.allowed, to, method):
            raise PermissionDenied(
                f"the credential of {need.connection!r} may not be sent to this address", reason=Reason.HOST_NOT_ALLOWED
            )
        return credential

    def note_rejected(self, running: RunningCall, credential: ResolvedCredential) -> bool:
        """Keeps in mind that the other side refuses a credential in a call, although it could not be renewed, or was.

        Returns:
            Whether a person can do something about it: something was sent that can be replaced.
        """
        if not credential.fingerprint:
            return False
        self._rejected[running.call.lease] = credential.fingerprint
        if len(self._rejected) > _MOST_REJECTED:
            del self._rejected[next(iter(self._rejected))]
        return True

    async def why_missing(self, call: queue_pb2.LeasedCall, tool: agent_pb2.ToolSpec) -> CredentialMissing | None:
        """Returns what a call lacks whose worker says that it lacks a sign-in; None when it is there by now."""
        # Not the secret itself: whether a worker may have that is not what is asked.
        rejected = self._rejected.get(call.lease, "")
        return await self._credentials.why_missing(_need(call, tool), rejected_fingerprint=rejected)

    async def _resolve(self, need: Need, *, rejected_fingerprint: str) -> ResolvedCredential:
        try:
            return await self._credentials.hand_out(need, rejected_fingerprint=rejected_fingerprint)
        except Unauthenticated as error:
            # That is about this executor. The worker's own key is good.
            raise Unavailable(
                "the auth service does not accept the executor", reason=Reason.AUTH_UNAVAILABLE
            ) from error


async def tool_of(revisions: RevisionCache, workspace_id: str, call: queue_pb2.LeasedCall) -> agent_pb2.ToolSpec:
    """Returns the tool of a call as its run's revision defines it.

    Raises:
        HoldfastError: The definition can't be read.
    """
    spec = await revisions.get(workspace_id, call.agent, call.revision)
    return next((tool for tool in spec.tools if tool.name == call.tool), agent_pb2.ToolSpec(name=call.tool))


def check_call(worker_id: str, lease: str) -> None:
    """Looks at the names of a worker and of its call.

    Raises:
        InvalidArgument: One of them is missing or too long.
    """
    if not worker_id or len(worker_id) > MAX_WORKER_ID_CHARACTERS:
        raise InvalidArgument("expected the worker's id", field="worker_id")
    if not lease or len(lease) > MAX_LEASE_CHARACTERS:
        raise InvalidArgument("expected the lease of the call", field="lease")


def _need(call: queue_pb2.LeasedCall, tool: agent_pb2.ToolSpec, *, is_raw: bool = False) -> Need:
    return Need(
        workspace_id=call.workspace_id,
        run_id=call.run_id,
        user_id=call.user_id,
        step=call.step,
        connection=tool.auth.connection,
        tool=call.tool,
        scopes=tuple(tool.auth.scopes),
        is_raw=is_raw,
    )


def _field(item: Injection) -> worker_pb2.CallCredentialField:
    return worker_pb2.CallCredentialField(name=item.name, value=item.value)
