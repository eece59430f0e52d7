"""What is tried again, and when: exponential back-off with full jitter, and the other side's own wish."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import tenacity

from holdfast.api.common.v1 import agent_pb2, content_pb2

DEFAULT_MAX_ATTEMPTS = 4
DEFAULT_INITIAL_SECONDS = 1.0
DEFAULT_MULTIPLIER = 2.0
DEFAULT_MAX_SECONDS = 60.0

# A step whose executors keep dying is not tried for ever, whatever its policy says.
MAX_LOST_ATTEMPTS = 20

_REPEATABLE = frozenset({content_pb2.FAILURE_CLASS_RETRYABLE, content_pb2.FAILURE_CLASS_RATE_LIMITED})


def delay_before_retry(
    policy: agent_pb2.RetryPolicy, failure: content_pb2.Failure, failures: int, *, lost: bool = False
) -> float | None:
    """Seconds to wait before the next attempt, or None when there is none.

    Args:
        policy: How the step wants to be repeated; unset fields mean the defaults.
        failure: Why the last attempt failed.
        failures: How many attempts have failed on their own account, the last one included.
        lost: Whether the last attempt was lost with its executor; that costs no attempt and no delay.
    """
    if lost:
        return 0.0
    if failure.failure_class not in _REPEATABLE or failures >= (policy.max_attempts or DEFAULT_MAX_ATTEMPTS):
        return None
    wait = tenacity.wait_random_exponential(
        multiplier=_seconds(policy, "initial_interval", DEFAULT_INITIAL_SECONDS),
        exp_base=policy.multiplier or DEFAULT_MULTIPLIER,
        max=_seconds(policy, "max_interval", DEFAULT_MAX_SECONDS),
    )
    state = tenacity.RetryCallState(tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = failures
    return max(wait(state), failure.retry_after_millis / 1000)


def reconnecting(
    on_retry: Callable[[int, BaseException | None], None], *retried: type[BaseException]
) -> AsyncIterator[tenacity.AttemptManager]:
    """Attempts for ever, with a growing pause of at most 2 s, for streams to a service that may be away."""

    def announce(state: tenacity.RetryCallState) -> None:
        outcome = state.outcome
        on_retry(state.attempt_number, outcome.exception() if outcome is not None else None)

    retrying: Any = tenacity.AsyncRetrying(
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        retry=tenacity.retry_if_exception_type(retried),
        before_sleep=announce,
        reraise=True,
    )
    return retrying.__aiter__()  # type: ignore[no-any-return]


def _seconds(policy: agent_pb2.RetryPolicy, name: str, default: float) -> float:
    if not policy.HasField(name):
        return default
    return float(getattr(policy, name).ToTimedelta().total_seconds())
