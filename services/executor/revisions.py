"""Agents' revisions as this executor has seen them; they are immutable, so that what is known stays true."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.state.v1 import agent_store_service_pb2 as agent_store_pb2
from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceStub
from holdfast.errors import Unavailable
from services.shared.channels import calling

# Bounded by bytes as well: a definition may have half a megabyte.
_MAX_ENTRIES: Final = 4_096
_MAX_BYTES: Final = 64 * 1024 * 1024
_REVISION_ID_LENGTH: Final = 64

# Workspace, agent, and what was asked for: a full id in what is known.
_Key = tuple[str, str, str]


class RevisionCache:
    """Reads revisions through a bounded cache, least recently used first out.

    Args:
        agents: The state service's agents.
        max_entries: How many revisions are kept at most.
        max_bytes: How many bytes they may have together.
    """

    def __init__(
        self, agents: AgentStoreServiceStub, *, max_entries: int = _MAX_ENTRIES, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._agents = agents
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[_Key, agent_pb2.AgentRevision] = OrderedDict()
        # What labels pointed to when they were last looked up.
        self._labels: OrderedDict[_Key, str] = OrderedDict()
        # The question that state has now, and the one that is put when it is answered.
        self._asked: dict[_Key, asyncio.Task[agent_pb2.AgentRevision]] = {}
        self._to_ask: dict[_Key, asyncio.Task[agent_pb2.AgentRevision]] = {}

    async def get(self, workspace_id: str, agent: str, revision: str) -> agent_pb2.AgentSpec:
        """Returns the definition of a revision, which is not to be changed.

        Args:
            workspace_id: The workspace.
            agent: Name of the agent.
            revision: Its full id.

        Raises:
            NotFound: AGENT_NOT_FOUND, REVISION_NOT_FOUND.
            Unavailable: State does not answer.
        """
        return (await self.resolve(workspace_id, agent, revision)).spec

    async def resolve(self, workspace_id: str, agent: str, revision: str) -> agent_pb2.AgentRevision:
        """Returns the revision that an id, a prefix of one, or a label stands for now; empty means `latest`.

        Only full ids are answered from the cache: a label may have been moved a moment ago, and who moved it expects
        the next run to follow.

        Raises:
            NotFound: AGENT_NOT_FOUND, REVISION_NOT_FOUND, LABEL_NOT_FOUND.
            Unavailable: State does not answer.
        """
        key = (workspace_id, agent, revision)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        return await self._ask(key)

    async def look_up(self, workspace_id: str, agent: str, revision: str) -> tuple[agent_pb2.AgentRevision, bool]:
        """As `resolve`, but a label may be answered with what it pointed to earlier.

        Returns:
            The revision, and whether it was found through a label that is to be verified with the write.

        Raises:
            NotFound: AGENT_NOT_FOUND, REVISION_NOT_FOUND, LABEL_NOT_FOUND.
            Unavailable: State does not answer.
        """
        key = (workspace_id, agent, revision)
        pointed_to = self._labels.get(key)
        if pointed_to is not None:
            known = self._known.get((workspace_id, agent, pointed_to))
            if known is not None:
                self._labels.move_to_end(key)
                self._known.move_to_end((workspace_id, agent, pointed_to))
                return known, True
        found = await self.resolve(*key)
        if _is_label(revision, found):
            self._labels[key] = found.revision
            if len(self._labels) > self._max_entries:
                self._labels.popitem(last=False)
        return found, False

    async def _ask(self, key: _Key) -> agent_pb2.AgentRevision:
        """Asks state, together with all who wait as well until the question before is answered.

        Invariant: nobody is given the answer to a question that was put before he asked.
        """
        asking = self._to_ask.get(key)
        if asking is None:
            asking = self._to_ask[key] = asyncio.create_task(self._ask_next(key, self._asked.get(key)))
        # It is everybody's: who goes away leaves it to the others.
        return await asyncio.shield(asking)

    async def _ask_next(
        self, key: _Key, before: asyncio.Task[agent_pb2.AgentRevision] | None
    ) -> agent_pb2.AgentRevision:
        if before is not None:
            await asyncio.wait((before,))
        # Whoever asks from here on waits for the next question.
        self._asked[key] = self._to_ask.pop(key)
        try:
            if before is not None and isinstance(before.exception(), Unavailable):
                # Those who have waited need not wait once more to hear that state is away.
                return before.result()
            workspace_id, agent, revision = key
            with calling("state"):
                response = await self._agents.GetAgentRevision(
                    agent_store_pb2.GetAgentRevisionRequest(workspace_id=workspace_id, agent=agent, revision=revision)
                )
            self._remember(workspace_id, response.revision)
            return response.revision
        finally:
            del self._asked[key]

    def forget_label(self, workspace_id: str, agent: str, revision: str) -> None:
        """What a label points to has to be looked up again."""
        self._labels.pop((workspace_id, agent, revision), None)

    def _remember(self, workspace_id: str, revision: agent_pb2.AgentRevision) -> None:
        key = (workspace_id, revision.agent, revision.revision)
        if len(revision.revision) != _REVISION_ID_LENGTH or key in self._known:
            return
        self._known[key] = revision
        self._bytes += revision.ByteSize()
        while self._known and (len(self._known) > self._max_entries or self._bytes > self._max_bytes):
            _, oldest = self._known.popitem(last=False)
            self._bytes -= oldest.ByteSize()


def _is_label(revision: str, found: agent_pb2.AgentRevision) -> bool:
    """Whether what was asked for is known to be a label: what the id begins with may have been a part of it."""
    return not revision or not found.revision.startswith(revision)
