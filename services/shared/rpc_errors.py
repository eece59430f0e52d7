"""What a caller sees of an error: its public form, and nothing of what went wrong inside."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.errors import (
    Cancelled,
    DeadlineExceeded,
    HoldfastError,
    Internal,
    Reason,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    from_rpc_error,
    to_status,
)
from holdfast.ids import new_uuid7
from services.shared.scrubber import PROCESS
from services.shared.telemetry import get_logger

log = get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def _leaf(error: BaseException) -> BaseException:
    """Returns the one error inside a task group's exception group, when all of its errors are meant for callers."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_leaf(inner) for inner in error.exceptions]
    if all(isinstance(leaf, HoldfastError | grpc.RpcError) for leaf in leaves):
        return leaves[0]
    return error


def public_error(error: Exception, method: str) -> HoldfastError:
    """Returns what the caller may see of `error`; what it may not see is logged under an id that it does."""
    cause = _leaf(error)
    if isinstance(cause, grpc.RpcError):
        cause = from_rpc_error(cause)
    if isinstance(cause, HoldfastError):
        if cause.origin == "local" or (cause.origin == "remote" and not is_our_own_fault(cause)):
            return cause
        # A peer's plain status has the transport's text in it, such as the peer's address.
        if isinstance(cause, Unavailable | Cancelled):
            reason = cause.reason if isinstance(cause, Unavailable) else Reason.UNAVAILABLE
            log.warning("peer_unavailable", method=method, reason=reason, detail=cause.message)
            return Unavailable("a service that this call needs is unavailable", reason=reason, retry_delay_seconds=1.0)
        if isinstance(cause, DeadlineExceeded):
            log.warning("peer_deadline_exceeded", method=method, detail=cause.message)
            return DeadlineExceeded("a service that this call needs did not answer in time")
        if isinstance(cause, ResourceExhausted):
            log.warning("peer_exhausted", method=method, detail=cause.message)
            return ResourceExhausted("a service that this call needs is at a limit", retry_delay_seconds=1.0)
    if isinstance(cause, TimeoutError):
        log.warning("operation_timed_out", method=method, exc_info=error)
        return DeadlineExceeded("the operation did not end in time")
    error_id = new_uuid7()
    log.error("internal_error", method=method, error_id=error_id, exc_info=error)
    return Internal(f"internal error; the service's log has it under {error_id}", metadata={"error_id": error_id})


def is_our_own_fault(error: HoldfastError) -> bool:
    # The caller's own key or arguments have nothing to do with how the services know each other.
    return error.reason in _SERVICES_REFUSALS or isinstance(error, Unimplemented)


_SERVICES_REFUSALS: Final = frozenset(
    {Reason.SERVICE_TOKEN_INVALID, Reason.SERVICE_CERTIFICATE_INVALID, Reason.METHOD_NOT_ALLOWED}
)


def without_secrets(error: HoldfastError) -> HoldfastError:
    """Returns what may leave of an error: whoever raised it may have quoted what it was given."""
    texts = (error.message, *error.metadata.values(), *(item.description for item in error.field_violations))
    if all(PROCESS.everything(text, "error") == text for text in texts):
        return error
    clean = copy.copy(error)
    clean.message = PROCESS.everything(error.message, "error")
    clean.metadata = {name: PROCESS.everything(value, "error") for name, value in error.metadata.items()}
    clean.field_violations = tuple(
        item._replace(description=PROCESS.everything(item.description, "error")) for item in error.field_violations
    )
    return clean


async def abort(context: Context, error: HoldfastError) -> None:
    code, message, details = to_status(without_secrets(error))
    existing = tuple(context.trailing_metadata() or ())
    try:
        await context.abort(code, message, (*existing, *details))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as failure:
        # The caller is gone, and nobody is left to be told.
        raise asyncio.CancelledError("the caller is gone") from failure
