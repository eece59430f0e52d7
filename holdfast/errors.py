"""The one tree of errors: servers raise them, `google.rpc.Status` carries them, clients raise the same class again.

    HoldfastError
    ├── InvalidArgument         INVALID_ARGUMENT     the call itself is wrong: fix it
    ├── NotFound                NOT_FOUND            no such thing, or not in this workspace: stop
    ├── AlreadyExists           ALREADY_EXISTS       the same id with other content: stop
    ├── FailedPrecondition      FAILED_PRECONDITION  not in this state: stop
    ├── Aborted                 ABORTED              re-read, then decide again
    │   ├── LeaseLost                                another holder drives the run or the call
    │   └── Conflict                                 something else was written first
    ├── ResourceExhausted       RESOURCE_EXHAUSTED   a limit: wait for the retry delay
    ├── Unavailable             UNAVAILABLE          the same call may be retried
    ├── Unauthenticated         UNAUTHENTICATED      who are you
    ├── PermissionDenied        PERMISSION_DENIED    you may not
    ├── DeadlineExceeded        DEADLINE_EXCEEDED    no answer in time; it may have happened
    ├── Cancelled               CANCELLED            the caller, or a closing server, gave up
    ├── Unimplemented           UNIMPLEMENTED        this server has no such method
    └── Internal                INTERNAL             a bug; the id in the text finds the log line

`message` is public: it reaches the caller as it is written, so it never holds a secret or another exception's text.
Identifiers belong in `metadata`, the cause in `__cause__`. `docs/errors.md` lists every reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal, NamedTuple
from urllib.parse import quote

import grpc

DOMAIN: Final = "holdfast.dev"
"""The `domain` of every `google.rpc.ErrorInfo` made here."""

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

# Trailers share one HTTP/2 header limit; an error longer than that would be replaced by one of the transport's own, and
# the reason with it. 8 KiB is where grpc begins to refuse.
_MAX_TRAILER_BYTES: Final = 7_000


class _Limits(NamedTuple):
    message_characters: int
    text_characters: int
    violations: int
    metadata_entries: int


# Tried in this order until the error fits: texts outside ASCII take up to nine bytes a character on the wire.
_LIMITS: Final = (_Limits(1_500, 200, 10, 16), _Limits(600, 120, 6, 8), _Limits(200, 60, 3, 6), _Limits(100, 30, 2, 4))


class Reason(StrEnum):
    """Why an error happened, stable for programs; the explanation of each is in `docs/errors.md`."""

    # INVALID_ARGUMENT
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INVALID_FIELD = "INVALID_FIELD"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    TOOL_UNKNOWN = "TOOL_UNKNOWN"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    PROVIDER_UNKNOWN = "PROVIDER_UNKNOWN"
    CONFIRM_CODE_INVALID = "CONFIRM_CODE_INVALID"

    # NOT_FOUND
    NOT_FOUND = "NOT_FOUND"
    AGENT_NOT_FOUND = "AGENT_NOT_FOUND"
    REVISION_NOT_FOUND = "REVISION_NOT_FOUND"
    LABEL_NOT_FOUND = "LABEL_NOT_FOUND"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    STEP_NOT_FOUND = "STEP_NOT_FOUND"
    APPROVAL_NOT_FOUND = "APPROVAL_NOT_FOUND"
    CALL_NOT_FOUND = "CALL_NOT_FOUND"
    CONNECTION_NOT_FOUND = "CONNECTION_NOT_FOUND"
    INTEGRATION_NOT_FOUND = "INTEGRATION_NOT_FOUND"
    CONNECT_SESSION_NOT_FOUND = "CONNECT_SESSION_NOT_FOUND"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    WORKSPACE_NOT_FOUND = "WORKSPACE_NOT_FOUND"
    BLOB_NOT_FOUND = "BLOB_NOT_FOUND"
    CONTENT_REMOVED = "CONTENT_REMOVED"

    # ALREADY_EXISTS
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RUN_EXISTS = "RUN_EXISTS"
    CONNECTION_EXISTS = "CONNECTION_EXISTS"
    INTEGRATION_EXISTS = "INTEGRATION_EXISTS"

    # FAILED_PRECONDITION
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RUN_ENDED = "RUN_ENDED"
    SESSION_BUSY = "SESSION_BUSY"
    APPROVAL_ALREADY_DECIDED = "APPROVAL_ALREADY_DECIDED"
    APPROVAL_HASH_MISMATCH = "APPROVAL_HASH_MISMATCH"
    CONNECTION_NEEDS_REAUTH = "CONNECTION_NEEDS_REAUTH"
    CONNECTION_AMBIGUOUS = "CONNECTION_AMBIGUOUS"
    CONNECTION_NOT_REFRESHABLE = "CONNECTION_NOT_REFRESHABLE"
    SCOPE_INSUFFICIENT = "SCOPE_INSUFFICIENT"
    INTEGRATION_DISABLED = "INTEGRATION_DISABLED"
    WORKSPACE_CLOSED = "WORKSPACE_CLOSED"
    WORKSPACE_NOT_CLOSED = "WORKSPACE_NOT_CLOSED"
    CREDENTIAL_NOT_DECLARED = "CREDENTIAL_NOT_DECLARED"
    CONNECT_SESSION_NOT_CONFIRMABLE = "CONNECT_SESSION_NOT_CONFIRMABLE"

    # ABORTED
    ABORTED = "ABORTED"
    LEASE_LOST = "LEASE_LOST"
    CALL_LEASE_LOST = "CALL_LEASE_LOST"
    CONFLICT = "CONFLICT"

    # RESOURCE_EXHAUSTED
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    STORAGE_FULL = "STORAGE_FULL"
    TOO_MANY_AUTH_FAILURES = "TOO_MANY_AUTH_FAILURES"

    # UNAVAILABLE
    UNAVAILABLE = "UNAVAILABLE"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    STATE_UNAVAILABLE = "STATE_UNAVAILABLE"
    AUTH_UNAVAILABLE = "AUTH_UNAVAILABLE"
    EXECUTOR_UNAVAILABLE = "EXECUTOR_UNAVAILABLE"
    TRACE_UNAVAILABLE = "TRACE_UNAVAILABLE"
    CREDENTIAL_UNAVAILABLE = "CREDENTIAL_UNAVAILABLE"
    DRAINING = "DRAINING"

    # UNAUTHENTICATED
    UNAUTHENTICATED = "UNAUTHENTICATED"
    API_KEY_MISSING = "API_KEY_MISSING"
    API_KEY_INVALID = "API_KEY_INVALID"
    API_KEY_EXPIRED = "API_KEY_EXPIRED"
    API_KEY_REVOKED = "API_KEY_REVOKED"
    TOKEN_INVALID = "TOKEN_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    SERVICE_TOKEN_INVALID = "SERVICE_TOKEN_INVALID"
    SERVICE_CERTIFICATE_INVALID = "SERVICE_CERTIFICATE_INVALID"

    # PERMISSION_DENIED
    PERMISSION_DENIED = "PERMISSION_DENIED"
    SCOPE_MISSING = "SCOPE_MISSING"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    ADDRESS_NOT_ALLOWED = "ADDRESS_NOT_ALLOWED"
    RUN_GRANT_INVALID = "RUN_GRANT_INVALID"
    CONNECTION_NOT_GRANTED = "CONNECTION_NOT_GRANTED"
    HOST_NOT_ALLOWED = "HOST_NOT_ALLOWED"
    RAW_TOKEN_NOT_ALLOWED = "RAW_TOKEN_NOT_ALLOWED"

    # The rest
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class FieldViolation(NamedTuple):
    """One wrong field of a request: its path (`agent.tools[0].name`) and what was expected."""

    field: str
    description: str


class HoldfastError(Exception):
    """Base of every error that crosses a service boundary.

    Args:
        message: What happened, for the caller. Public: never a secret, never another exception's text.
        reason: Stable machine-readable reason; the class's own when not given.
        metadata: Identifiers that help to act on the error, such as `run_id`.
        field: Shorthand for one field violation; `description` defaults to the message.
        description: What was expected of `field`.
        field_violations: Every wrong field, when there are several.
        retry_delay_seconds: How long to wait before the same call may succeed.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[Reason] = Reason.INTERNAL

    reason: str
    message: str
    metadata: dict[str, str]
    field_violations: tuple[FieldViolation, ...]
    retry_delay_seconds: float | None

    origin: Literal["local", "remote", "foreign"]
    """Where it was made: here, by a Holdfast server we called, or by something that sent no details."""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field: str | None = None,
        description: str | None = None,
        field_violations: Iterable[FieldViolation] = (),
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = str(reason) if reason is not None else str(self.default_reason)
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        violations = tuple(field_violations)
        if field is not None:
            violations = (FieldViolation(field, description if description is not None else message), *violations)
            if reason is None and self.reason == Reason.INVALID_ARGUMENT:
                self.reason = str(Reason.INVALID_FIELD)
        self.field_violations = violations
        self.retry_delay_seconds = retry_delay_seconds
        self.origin = "local"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)

    def __str__(self) -> str:
        return self.message


def _rebuild(cls: type[HoldfastError], message: str, attributes: dict[str, Any]) -> HoldfastError:
    error = cls(message)
    error.__dict__.update(attributes)
    return error


class InvalidArgument(HoldfastError):
    """The request is malformed or out of range; the same request will never succeed."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = Reason.INVALID_ARGUMENT


class NotFound(HoldfastError):
    """It does not exist, or it belongs to another workspace: the two are never told apart."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = Reason.NOT_FOUND


class AlreadyExists(HoldfastError):
    """The id is taken by something with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = Reason.ALREADY_EXISTS


class FailedPrecondition(HoldfastError):
    """The thing exists but is not in a state that allows this operation."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = Reason.FAILED_PRECONDITION


class Aborted(HoldfastError):
    """Someone else changed it first: re-read and decide again, never patch and resend."""

    code = grpc.StatusCode.ABORTED
    default_reason = Reason.ABORTED


class LeaseLost(Aborted):
    """The lease epoch of the write is not the current one; nothing was written."""

    default_reason = Reason.LEASE_LOST


class Conflict(Aborted):
    """The write was made against an older version than the stored one; nothing was written."""

    default_reason = Reason.CONFLICT


class ResourceExhausted(HoldfastError):
    """A limit, quota or disk is used up; `retry_delay_seconds` says when to try again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = Reason.RESOURCE_EXHAUSTED


class Unavailable(HoldfastError):
    """A database or a peer is away; the same call may be retried."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = Reason.UNAVAILABLE


class Unauthenticated(HoldfastError):
    """The caller's key is missing or not valid."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = Reason.UNAUTHENTICATED


class PermissionDenied(HoldfastError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = Reason.PERMISSION_DENIED


class DeadlineExceeded(HoldfastError):
    """No answer within the deadline; the call may nevertheless have had its effect."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = Reason.DEADLINE_EXCEEDED


class Cancelled(HoldfastError):
    """The call was given up before it ended. (Not `asyncio.CancelledError`, which cancels the own task.)"""

    code = grpc.StatusCode.CANCELLED
    default_reason = Reason.CANCELLED


class Unimplemented(HoldfastError):
    """The server does not have this method."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = Reason.UNIMPLEMENTED


class Internal(HoldfastError):
    """A bug in a service. The message is fixed text with an id that finds the log line."""

    code = grpc.StatusCode.INTERNAL
    default_reason = Reason.INTERNAL


_BY_CODE: Final[Mapping[grpc.StatusCode, type[HoldfastError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}

_BY_REASON: Final[Mapping[str, type[HoldfastError]]] = {
    Reason.LEASE_LOST: LeaseLost,
    Reason.CALL_LEASE_LOST: LeaseLost,
    Reason.CONFLICT: Conflict,
}


def error_from_code(
    code: int,
    message: str,
    *,
    reason: str | None = None,
    field: str | None = None,
    retry_delay_seconds: float | None = None,
) -> HoldfastError:
    """Returns the error that a status code and a reason stand for, where they travel inside a message.

    Args:
        code: Number of a gRPC status code.
        message: Public text.
        reason: Stable reason; it chooses the class where one is more exact than the code's.
        field: The field that is wrong, where one is.
        retry_delay_seconds: When to try again.
    """
    status = next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
    cls = _BY_REASON.get(reason or "", _BY_CODE.get(status, Internal))
    return cls(message, reason=reason, field=field, retry_delay_seconds=retry_delay_seconds)


def _shortened(text: str, limit: int) -> str:
    # Half of a surrogate pair, which JSON can carry, has no form on the wire.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def to_status(error: HoldfastError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Returns what `context.abort` needs: the code, the public message and the trailing metadata with the details.

    What does not fit into a header is shortened; the code and the reason always arrive.
    """
    message, serialized = "", b""
    for limits in _LIMITS:
        message, serialized = _packed(error, limits)
        # The message is percent-encoded, binary metadata is base64.
        if len(quote(message)) + len(serialized) * 4 // 3 <= _MAX_TRAILER_BYTES:
            break
    return error.code, message, ((STATUS_DETAILS_KEY, serialized),)


def _packed(error: HoldfastError, limits: _Limits) -> tuple[str, bytes]:
    # Imported here because users' programs import this module at start and need these messages only for an error.
    from google.protobuf import any_pb2, duration_pb2
    from google.rpc import error_details_pb2, status_pb2

    message = _shortened(error.message, limits.message_characters)
    status = status_pb2.Status(code=error.code.value[0], message=message)

    def attach(detail: Any) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)

    metadata = {
        _shortened(key, limits.text_characters): _shortened(value, limits.text_characters)
        for key, value in list(error.metadata.items())[: limits.metadata_entries]
    }
    attach(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field_violations:
        attach(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=_shortened(violation.field, limits.text_characters),
                        description=_shortened(violation.description, limits.text_characters),
                    )
                    for violation in error.field_violations[: limits.violations]
                ]
            )
        )
    if error.retry_delay_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        attach(error_details_pb2.RetryInfo(retry_delay=delay))
    return message, status.SerializeToString()


def from_rpc_error(error: grpc.RpcError, *, peer: str | None = None) -> HoldfastError:
    """Returns the error that the server raised, as the same class; the caller raises it `from` the given one.

    Args:
        error: What a grpc or grpc.aio call raised.
        peer: Name of the service that was called. An answer that never came from it (refused connection, closed
            channel) then says which one is away: `state` becomes the reason `STATE_UNAVAILABLE`.
    """
    code = _read(error, "code") or grpc.StatusCode.UNKNOWN
    text = _read(error, "details") or ""
    details = _status_details(error)
    cls = _BY_CODE.get(code, Internal)
    if details is None:
        if peer is not None and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            result: HoldfastError = Unavailable(
                f"{peer} is unavailable", reason=f"{peer.upper()}_UNAVAILABLE", retry_delay_seconds=1.0
            )
        else:
            result = cls(text or code.name)
        result.origin = "foreign"
        return result
    reason, metadata, violations, retry_delay_seconds, message = details
    if reason is not None:
        cls = _BY_REASON.get(reason, cls)
    result = cls(
        message or text or code.name,
        reason=reason,
        metadata=metadata,
        field_violations=violations,
        retry_delay_seconds=retry_delay_seconds,
    )
    result.origin = "remote" if reason is not None else "foreign"
    return result


def _read(error: grpc.RpcError, name: str) -> Any:
    method = getattr(error, name, None)
    return method() if callable(method) else None


def _status_details(
    error: grpc.RpcError,
) -> tuple[str | None, dict[str, str], list[FieldViolation], float | None, str] | None:
    serialized: bytes | None = None
    for key, value in _read(error, "trailing_metadata") or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            serialized = value
    if serialized is None:
        return None

    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    reason: str | None = None
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_delay_seconds: float | None = None
    try:
        status = status_pb2.Status.FromString(serialized)
        for packed in status.details:
            if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(packed.value)
                if info.domain == DOMAIN:
                    reason, metadata = info.reason, dict(info.metadata)
            elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad_request = error_details_pb2.BadRequest.FromString(packed.value)
                violations = [FieldViolation(item.field, item.description) for item in bad_request.field_violations]
            elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry_info = error_details_pb2.RetryInfo.FromString(packed.value)
                retry_delay_seconds = retry_info.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:
        return None
    return reason, metadata, violations, retry_delay_seconds, status.message
