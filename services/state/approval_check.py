"""What must be true of a run's approvals of calls: nothing is dispatched that nobody has approved. Reads in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from holdfast.api.common.v1 import run_pb2

CHECK: Final = "approved_before_dispatch"

_STANDING: Final = (run_pb2.APPROVAL_SCOPE_RUN, run_pb2.APPROVAL_SCOPE_SESSION)


@dataclass(slots=True)
class AskedCall:
    """A call that a person was asked about.

    Attributes:
        approval_id: The question.
        tool: Its tool.
        arguments_sha256: Hash of the arguments that were asked about.
        approved_sha256: Hash of those that were approved; empty while none are.
    """

    approval_id: str
    tool: str
    arguments_sha256: str
    approved_sha256: str = ""


class ApprovalCheck:
    """Takes the changes of a run in order, and notes what breaks the claim.

    Args:
        note: Takes the name of the check and what was found.
    """

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        self._begun: set[int] = set()
        # Decisions of this run that hold for later calls, with their tools.
        self._standing: dict[str, str] = {}
        self.asked: dict[int, AskedCall] = {}
        """Calls that a person was asked about, by step."""
        self.by_session: dict[str, str] = {}
        """Decisions of other runs by which calls were made, with their tools."""

    def next_event(self) -> None:
        """The changes that follow are of another event."""
        self._begun.clear()

    def take(self, kind: str, change: run_pb2.Change) -> None:
        """Takes the next change."""
        if kind == "step_started":
            self._begin(change.step_started)
        elif kind == "approval_requested":
            self._ask(change.approval_requested.approval)
        elif kind == "approval_decided":
            self._decide(change.approval_decided)
        elif not self.asked:
            return
        elif kind == "attempt_started":
            self._dispatch(change.attempt_started.step, "an attempt")
        elif kind == "attempt_failed":
            self._dispatch(change.attempt_failed.step, "a failed attempt")
        elif kind == "call_started":
            self._dispatch(change.call_started.step, "a worker's start")
        elif kind == "step_in_doubt":
            self._dispatch(change.step_in_doubt.step, "a call in doubt")
        elif kind == "step_finished" and change.step_finished.state == run_pb2.STEP_STATE_SUCCEEDED:
            self._dispatch(change.step_finished.step, "a result")

    def _begin(self, started: run_pb2.StepStarted) -> None:
        self._begun.add(started.step)
        by = started.tool.approval_id if started.WhichOneof("intent") == "tool" else ""
        if not by:
            return
        tool = self._standing.get(by)
        if tool is None:
            self.by_session[by] = started.tool.tool
        elif tool != started.tool.tool:
            self._note(CHECK, f"step {started.step} is made by the approval {by}, which is for another tool")

    def _ask(self, approval: run_pb2.Approval) -> None:
        if approval.kind != run_pb2.APPROVAL_KIND_TOOL_CALL:
            return
        if approval.step not in self._begun:
            self._note(CHECK, f"step {approval.step} was asked about after it had begun")
        self.asked[approval.step] = AskedCall(approval.approval_id, approval.tool, approval.arguments_sha256)

    def _decide(self, decision: run_pb2.ApprovalDecided) -> None:
        call = self.asked.get(decision.step)
        if call is None or call.approval_id != decision.approval_id:
            return
        if decision.verdict != run_pb2.APPROVAL_VERDICT_APPROVED:
            return
        edited = decision.edited_arguments_json
        expected = hashlib.sha256(edited.encode()).hexdigest() if edited else call.arguments_sha256
        if decision.arguments_sha256 != expected:
            self._note(CHECK, f"step {decision.step}: the approval {call.approval_id} is of other arguments")
            return
        call.approved_sha256 = decision.arguments_sha256
        if decision.scope in _STANDING:
            self._standing[call.approval_id] = call.tool

    def _dispatch(self, step: int, what: str) -> None:
        call = self.asked.get(step)
        if call is not None and not call.approved_sha256:
            self._note(CHECK, f"step {step} has {what}, and the question {call.approval_id} was not approved")
