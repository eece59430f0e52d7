"""Wakes runs that wait for a sign-in when it is done: told by auth's stream, and made sure by looking now and then.

The stream is a hint, looking is the truth: whatever was missed while nobody listened, or came between a run's look and
its question, is found within half a minute. Every executor does it; a decision that two of them make is made once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final, NoReturn

from holdfast.api.auth.v1 import connection_feed_service_pb2 as feed_pb2
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceStub
from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub
from holdfast.errors import FailedPrecondition, HoldfastError, NotFound, Unavailable
from services.executor import retries
from services.shared.channels import calling
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

LOOK_SECONDS: Final = 30.0
SIGNED_IN: Final = "auth"
"""`decided_by` of a question that a sign-in has answered."""

_PAGE: Final = 200

log = get_logger(__name__)


class SignIns:
    """Decides questions of kind SIGN_IN once a usable connection is there.

    Args:
        feed: Auth's news of connections.
        runs: State's questions.
        clock: Between two looks.
    """

    def __init__(self, feed: ConnectionFeedServiceStub, runs: RunStoreServiceStub, clock: Clock) -> None:
        self._feed = feed
        self._runs = runs
        self._clock = clock
        # Workspaces with news; the empty name stands for all of them.
        self._due: set[str] = set()
        self._news = asyncio.Event()

    async def run(self) -> NoReturn:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._remind())
            while True:
                await self._news.wait()
                self._news.clear()
                due, self._due = self._due, set()
                for workspace_id in [""] if "" in due else sorted(due):
                    try:
                        await self.look(workspace_id)
                    except HoldfastError as error:
                        # The next look finds what this one did not.
                        log.info("sign_ins_not_looked_at", reason=error.reason)

    async def look(self, workspace_id: str) -> int:
        """Looks at the sign-ins that runs of a workspace (of all, when empty) wait for; returns how many are done.

        Raises:
            HoldfastError: State or auth does not answer.
        """
        after = store.ListSignInsRequest(workspace_id=workspace_id, page_size=_PAGE)
        count = 0
        while True:
            with calling("state"):
                page = await self._runs.ListSignIns(after)
            count += await self._settle(page.sign_ins)
            if not page.has_more:
                return count
            last = page.sign_ins[-1]
            after.after_workspace_id, after.after_approval_id = last.workspace_id, last.approval.approval_id

    async def _settle(self, sign_ins: Sequence[store.StoredSignIn]) -> int:
        if not sign_ins:
            return 0
        with calling("auth"):
            checked = await self._feed.CheckSignIns(
                feed_pb2.CheckSignInsRequest(
                    sign_ins=[
                        feed_pb2.SignIn(
                            workspace_id=stored.workspace_id,
                            user_id=stored.approval.sign_in.user_id,
                            connection=stored.approval.sign_in.connection,
                            scopes=stored.approval.sign_in.scopes,
                            rejected_fingerprint=stored.approval.sign_in.rejected_fingerprint,
                        )
                        for stored in sign_ins
                    ]
                )
            )
        done = [stored for stored, is_usable in zip(sign_ins, checked.is_usable, strict=True) if is_usable]
        for stored in done:
            decision = run_pb2.ApprovalDecided(
                approval_id=stored.approval.approval_id, answer_json="null", decided_by=SIGNED_IN
            )
            try:
                with calling("state"):
                    await self._runs.DecideApproval(
                        store.DecideApprovalRequest(workspace_id=stored.workspace_id, decision=decision)
                    )
            except (NotFound, FailedPrecondition):
                # Another executor was first, or a person, or the run is gone.
                continue
            log.info("sign_in_done", run_id=stored.approval.run_id, workspace_id=stored.workspace_id)
        return len(done)

    async def _follow(self) -> NoReturn:
        def announce(attempt: int, error: BaseException | None) -> None:
            if attempt == 1:
                log.info("connections_not_followed", error=type(error).__name__)

        async for attempt in retries.reconnecting(announce, Unavailable):
            with attempt, calling("auth"):
                # What changed while nobody listened.
                self._note("")
                async for news in self._feed.WatchConnections(feed_pb2.WatchConnectionsRequest()):
                    if news.workspace_id:
                        self._note(news.workspace_id)
                raise Unavailable("the stream has ended")
        raise AssertionError("unreachable")

    async def _remind(self) -> NoReturn:
        while True:
            # Not all executors at the same moment.
            await self._clock.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))
            self._note("")

    def _note(self, workspace_id: str) -> None:
        self._due.add(workspace_id)
        self._news.set()
