"""From a call of another agent to the run that state stores with it: which revision, and with what rights.

The revision is looked up when the call begins, and not when its run was started: a label means what it means then. What
the child may use is signed by auth from its parent's grant: never more than that allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from holdfast.api.common.v1 import agent_pb2, content_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import NotFound, PermissionDenied
from services.executor.children import ChildCall, Target, Targets
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants
from services.executor.stored_messages import store_message
from services.shared.telemetry import get_logger

log = get_logger(__name__)


class ChildRuns:
    """Makes runs of calls.

    Args:
        revisions: Finds the revision that a child pins.
        grants: Derives the rights of children.
    """

    def __init__(self, revisions: RevisionCache, grants: RunGrants) -> None:
        self._revisions = revisions
        self._grants = grants

    async def targets(self, workspace_id: str, tools: Sequence[agent_pb2.ToolSpec]) -> Targets:
        """Returns what the agents of these tools stand for now.

        Raises:
            Unavailable: State does not answer.
        """
        found = await asyncio.gather(*(self._target(workspace_id, tool) for tool in tools))
        return {tool.name: target for tool, target in zip(tools, found, strict=True)}

    async def _target(self, workspace_id: str, tool: agent_pb2.ToolSpec) -> Target | content_pb2.Failure:
        try:
            revision = await self._revisions.resolve(workspace_id, tool.agent.agent, tool.agent.revision)
        except NotFound as error:
            return content_pb2.Failure(
                reason=str(error.reason),
                message=f"The agent {tool.agent.agent} cannot be called: {error.message}.",
                failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
            )
        return Target(revision.agent, revision.revision, revision.spec)

    async def runs_of(self, workspace_id: str, run_id: str, calls: Sequence[ChildCall]) -> list[journal_pb2.NewRun]:
        """Returns the children of a transition.

        Raises:
            HoldfastError: Auth or state does not answer.
        """
        children = [child_run(workspace_id, run_id, call) for call in calls]
        for call, child in zip(calls, children, strict=True):
            try:
                child.run_grant = await self._grants.derive(workspace_id, run_id, call.target.spec, call.run_id)
            except PermissionDenied as error:
                # Its parent's right is over, or holds nothing of what it declares: it runs without, and is told so
                # where it needs a connection.
                log.info("child_without_grant", run_id=call.run_id, parent_run_id=run_id, reason=error.reason)
        return children


def child_run(workspace_id: str, run_id: str, call: ChildCall) -> journal_pb2.NewRun:
    """Returns the run that a call starts. State fills in what is its parent's: session, user, root and lane.

    The one place where a child is made of its parent's step: what it may use at most is said here.
    """
    limits = call.target.spec.limits
    own = limits.budget if limits.HasField("budget") else None
    stored, blobs = store_message(
        content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=call.input_text)])
    )
    return journal_pb2.NewRun(
        workspace_id=workspace_id,
        run_id=call.run_id,
        agent=call.target.agent,
        revision=call.target.revision,
        input=stored,
        blobs=blobs,
        agent_limit=limits.max_concurrent_runs,
        budget=own if call.budget is None else call.budget,
        ttl=call.tool.timeout if call.tool.HasField("timeout") else None,
        parent=journal_pb2.ParentStep(
            run_id=run_id, step=call.step, attempt=call.attempt, depth=call.depth, depth_limit=call.depth_limit
        ),
    )
