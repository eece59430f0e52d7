"""Starting runs: from a client's request to a stored run, driven here from its first moment where a slot is free."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, Protocol

from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2 as api
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.errors import Conflict, InvalidArgument, Reason, Unavailable
from services.executor.budget_rules import budget_of_run
from services.executor.new_runs import input_message, new_run, ttl_of
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants
from services.executor.servicers.fields import (
    agent_field,
    fingerprint,
    optional_uuid_field,
    plain_field,
    request_id_field,
    user_field,
)
from services.shared.identity import acting_user

# A label that is moved again and again while a run is created; each time it is looked up anew.
_MAX_ATTEMPTS: Final = 5


class RunStore(Protocol):
    """Stores new runs, on the stream that they share with all transitions."""

    async def create_run(self, new_run: journal_pb2.NewRun) -> tuple[run_pb2.Run, bool]:
        """Returns the run as stored, or the one that its request id made before, and whether it is claimed for us."""


class Slots(Protocol):
    """Room for runs that are driven here."""

    @property
    def executor_id(self) -> str:
        """Who drives them."""

    def reserve(self) -> bool:
        """Keeps a slot; False when there is none."""

    def release(self) -> None:
        """Gives back the slot that was kept."""

    def begin(self, claim: lease_pb2.Claim) -> None:
        """Drives a run on the slot that was kept."""


@dataclass(frozen=True, slots=True)
class Starting:
    """Who starts runs.

    Attributes:
        workspace_id: Whose runs they are.
        credential: The caller's own, for the runs' grants.
        traceparent: The caller's trace context.
    """

    workspace_id: str
    credential: str = field(default="", repr=False)
    traceparent: str = ""


class RunStarter:
    """Accepts runs.

    Args:
        revisions: Finds the revision that a run pins.
        store: Stores new runs.
        slots: Where runs are driven.
        grants: Asks for the right to use connections, for agents that declare some.
    """

    def __init__(self, revisions: RevisionCache, store: RunStore, slots: Slots, grants: RunGrants) -> None:
        self._revisions = revisions
        self._store = store
        self._slots = slots
        self._grants = grants
        self._storing: set[asyncio.Task[run_pb2.Run]] = set()

    async def start(self, starting: Starting, request: api.StartRunRequest) -> run_pb2.Run:
        """Stores a run; returns after the commit.

        Raises:
            HoldfastError: Why nothing was stored, see RunService.StartRun.
        """
        message, user_id = input_message(request), acting_user(user_field(request.user_id))
        request_id = request_id_field(request.request_id)
        session_id = optional_uuid_field("session_id", request.session_id, Reason.SESSION_NOT_FOUND)
        if request.busy_policy not in api.BusyPolicy.values():
            raise InvalidArgument("expected ENQUEUE or REJECT", field="busy_policy")
        if request.priority not in run_pb2.Priority.values():
            raise InvalidArgument("expected INTERACTIVE or BATCH", field="priority")
        ttl = ttl_of(request)
        asked = request.budget if request.HasField("budget") else None
        workspace_id = starting.workspace_id
        agent, label = agent_field(request.agent), plain_field("revision", request.revision)
        for _ in range(_MAX_ATTEMPTS):
            found, was_cached = await self._revisions.look_up(workspace_id, agent, label)
            new = new_run(
                workspace_id=workspace_id,
                agent=found.agent,
                revision=found.revision,
                session_id=session_id,
                user_id=user_id,
                message=message,
                reject_when_busy=request.busy_policy == api.BUSY_POLICY_REJECT,
                request_id=request_id,
                # Only a request that may be repeated is ever compared.
                request_fingerprint=fingerprint(request) if request_id else b"",
                traceparent=starting.traceparent,
                is_batch=request.priority == run_pb2.PRIORITY_BATCH,
                agent_limit=found.spec.limits.max_concurrent_runs,
                ttl=ttl,
                budget=await budget_of_run(found.spec, asked),
            )
            new.run_grant = await self._grants.issue(
                workspace_id,
                found.spec,
                run_id=new.run_id,
                user_id=user_id,
                caller_credential=starting.credential,
            )
            if was_cached:
                new.label = label or "latest"
            try:
                return await self._create(new)
            except Conflict:
                self._revisions.forget_label(workspace_id, agent, label)
        raise Unavailable("the label moves too often to follow; start the run again", retry_delay_seconds=1.0)

    async def _create(self, new: journal_pb2.NewRun) -> run_pb2.Run:
        if not self._slots.reserve():
            return (await self._store.create_run(new))[0]
        # A caller who goes away does not end this: a run that is claimed for this executor is driven by it.
        storing = asyncio.create_task(self._create_and_drive(new))
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        return await asyncio.shield(storing)

    async def _create_and_drive(self, new: journal_pb2.NewRun) -> run_pb2.Run:
        new.claim_for = self._slots.executor_id
        is_begun = False
        try:
            run, is_claimed = await self._store.create_run(new)
            if is_claimed:
                is_begun = True
                self._slots.begin(
                    lease_pb2.Claim(workspace_id=new.workspace_id, run=run, epoch=1, events=_first_event(new, run))
                )
            return run
        finally:
            if not is_begun:
                self._slots.release()


def _first_event(new: journal_pb2.NewRun, run: run_pb2.Run) -> list[run_pb2.Event]:
    """The journal of a run that was just created; empty, to be read, where it is an older one."""
    if run.run_id != new.run_id or run.last_seq != 1:
        return []
    created = run_pb2.RunCreated(
        session_id=run.session_id,
        agent=new.agent,
        revision=new.revision,
        user_id=new.user_id,
        input=new.input,
        previous_run_id=run.previous_run_id,
        traceparent=new.traceparent,
        ttl=new.ttl if new.HasField("ttl") else None,
        budget=new.budget if new.HasField("budget") else None,
    )
    change = run_pb2.Change(run_created=created)
    return [run_pb2.Event(run_id=run.run_id, seq=1, time=run.create_time, changes=[change])]
