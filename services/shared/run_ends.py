"""What becomes of a call whose run ends before it has a result: its one result says so (P7), whoever writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.run_budgets import BUDGET_EXCEEDED


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run ends with something open.

    Attributes:
        reason: The failure of its open steps.
        message: What is said of a call without a result.
        question_state: What its open questions become.
    """

    reason: str
    message: str
    question_state: run_pb2.ApprovalState


CANCEL: Final = Ending(
    "CANCELLED", "The run was cancelled before this call had a result.", run_pb2.APPROVAL_STATE_CANCELLED
)
EXPIRY: Final = Ending(
    "RUN_EXPIRED", "The run's time was over before this call had a result.", run_pb2.APPROVAL_STATE_EXPIRED
)
BUDGET: Final = Ending(BUDGET_EXCEEDED, "The run's budget had no room for this call.", run_pb2.APPROVAL_STATE_CANCELLED)


def failure_of_open_call(ending: Ending, *, may_have_happened: bool) -> content_pb2.Failure:
    """Why a call has no result.

    Args:
        ending: Why its run ends.
        may_have_happened: It was dispatched, and nobody knows how far it came.
    """
    message = f"{ending.message} It may have taken effect." if may_have_happened else ending.message
    return content_pb2.Failure(reason=ending.reason, message=message, failure_class=content_pb2.FAILURE_CLASS_CANCELLED)


def told_of_open_call(failure: content_pb2.Failure) -> str:
    """What the model is told of a call that was given up."""
    return f"The call was cancelled: {failure.message}"
