"""Calls that a person has to approve: which they are, what is asked, and what follows from the decision.

Invariants: a call that needs approval is begun (StepStarted) and asked about (ApprovalRequested) in one event, and is
not dispatched before an AttemptStarted that was decided from a stored approval of exactly its arguments. So wherever a
process dies, the next driver finds the question, the decision, or an announced attempt, and nothing else. A call that
is not approved ends with one result that says why (P7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import approval_conditions
from services.executor.journal_view import StepView
from services.executor.stored_messages import make_blob
from services.executor.tools.output import shorten
from services.executor.tools.schema import canonical_json

EXPIRES_AFTER: Final = timedelta(hours=72)
MAX_SHOWN_ARGUMENTS_BYTES: Final = 4_096
"""Longer ones are a body of their own: the questions of a whole turn are one event, and events are small."""
MAX_EDITED_ARGUMENTS_BYTES: Final = 256 * 1024

_MAX_SHOWN_CONDITION_BYTES: Final = 400

APPROVAL_EXPIRED: Final = "APPROVAL_EXPIRED"
APPROVAL_REJECTED: Final = "APPROVAL_REJECTED"
APPROVAL_VOID: Final = "APPROVAL_VOID"


@dataclass(frozen=True, slots=True)
class Gate:
    """What the policy of a tool says of one of its calls.

    Attributes:
        approval_id: An earlier decision by which nobody is asked; empty when somebody has to be.
        prompt: What a person is asked.
    """

    approval_id: str = ""
    prompt: str = ""


class SessionApprovals:
    """The approvals for the whole session that a run begins with.

    Args:
        approvals: As they are stored.
    """

    def __init__(self, approvals: Iterable[run_pb2.SessionApproval] = ()) -> None:
        self._ids = {(approval.tool, approval.tool_sha256): approval.approval_id for approval in approvals}

    def of(self, tool: agent_pb2.ToolSpec) -> str:
        """Returns the approval that holds for a tool as it is defined; empty when there is none."""
        return self._ids.get((tool.name, tool_sha256(tool)), "") if self._ids else ""


def has_policies(spec: agent_pb2.AgentSpec) -> bool:
    """Whether calls of the agent may need approval."""
    return any(tool.HasField("approval") for tool in spec.tools)


def gate_of(
    tool: agent_pb2.ToolSpec,
    arguments: Mapping[str, Any],
    *,
    run_approvals: Mapping[str, str],
    session_approvals: SessionApprovals,
) -> Gate | None:
    """Returns what has to come before a call; None for one that needs no approval.

    Args:
        tool: The tool, with a policy.
        arguments: Of the call, which fit the tool.
        run_approvals: Decisions of this run that hold for all of a tool's calls, by tool.
        session_approvals: Those of earlier runs of the session.
    """
    why = ""
    match tool.approval.WhichOneof("when"):
        case "condition":
            condition = tool.approval.condition
            verdict = approval_conditions.evaluate(condition, arguments, canonical_json(arguments))
            if not verdict.holds:
                return None
            why = f" It needs approval when {shorten(condition, _MAX_SHOWN_CONDITION_BYTES)}"
            why += f" (which could not be evaluated: {verdict.problem})." if verdict.problem else "."
        case "always" if tool.approval.always:
            pass
        case _:
            return None
    known = run_approvals.get(tool.name) or session_approvals.of(tool)
    return Gate(approval_id=known) if known else Gate(prompt=f"May {tool.name} be called?{why}")


def fill_question(question: run_pb2.Approval, tool: agent_pb2.ToolSpec, arguments_json: str) -> list[content_pb2.Blob]:
    """Puts the call into its question, and returns the bodies that the question refers to.

    Args:
        question: The question.
        tool: The tool.
        arguments_json: In canonical form.
    """
    question.tool = tool.name
    question.tool_sha256 = tool_sha256(tool)
    question.arguments_sha256 = sha256_of(arguments_json)
    shown = shorten(arguments_json, MAX_SHOWN_ARGUMENTS_BYTES)
    question.arguments_json = shown
    if shown == arguments_json:
        return []
    # Found by the hash that the question has anyway.
    question.arguments_shortened = True
    return [make_blob(arguments_json.encode())]


def expires_after(tool: agent_pb2.ToolSpec) -> timedelta:
    """Returns how long a call of the tool waits for its approval."""
    policy = tool.approval
    return policy.expire_after.ToTimedelta() if policy.HasField("expire_after") else EXPIRES_AFTER


def refusal_of(decision: run_pb2.ApprovalDecided, arguments_json: str) -> content_pb2.Failure | None:
    """Returns why a call is not made; None when exactly this call is approved.

    Args:
        decision: About the call.
        arguments_json: The arguments that it would be made with, in canonical form.
    """
    if decision.verdict == run_pb2.APPROVAL_VERDICT_REJECTED:
        why = f" The reason: {decision.reason}" if decision.reason else " No reason was given."
        return _not_made(APPROVAL_REJECTED, f"A person rejected this call, and it was not made.{why}")
    if decision.verdict != run_pb2.APPROVAL_VERDICT_APPROVED or decision.arguments_sha256 != sha256_of(arguments_json):
        return _not_made(APPROVAL_VOID, "The stored decision is no approval of this call. It was not made.")
    return None


def expired_failure() -> content_pb2.Failure:
    """Returns what becomes of a call that nobody decided about in time."""
    return _not_made(
        APPROVAL_EXPIRED,
        "Nobody decided in time whether this call may be made, and it was not made. Nobody rejected it: call again if "
        "it is still needed.",
    )


def note_of(step: StepView) -> str:
    """Returns what the model is told with the result of a step, if a person has edited its arguments."""
    return edited_note(step.edited_arguments_json) if step.edited_arguments_json else ""


def edited_note(arguments_json: str) -> str:
    """Returns what the model is told with the result of a call whose arguments a person has edited."""
    shown = shorten(arguments_json, MAX_SHOWN_ARGUMENTS_BYTES)
    return f"A person approved this call with other arguments, and it was made with these: {shown}\n\n"


def sha256_of(arguments_json: str) -> str:
    """Returns the lower-case hex SHA-256 of arguments in canonical form."""
    return hashlib.sha256(arguments_json.encode()).hexdigest()


def tool_sha256(tool: agent_pb2.ToolSpec) -> str:
    """Returns the hash of a tool's definition, the same under every version of protobuf."""
    return sha256_of(canonical_json(json_format.MessageToDict(tool, preserving_proto_field_name=True)))


def _not_made(reason: str, message: str) -> content_pb2.Failure:
    return content_pb2.Failure(reason=reason, message=message, failure_class=content_pb2.FAILURE_CLASS_PERMANENT)
