import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import agent_pb2 as _agent_pb2
from holdfast.api.common.v1 import content_pb2 as _content_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_WAITING: _ClassVar[RunState]
    RUN_STATE_SUCCEEDED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_EXPIRED: _ClassVar[RunState]
    RUN_STATE_BUDGET_EXCEEDED: _ClassVar[RunState]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]

class WaitReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_REASON_UNSPECIFIED: _ClassVar[WaitReason]
    WAIT_REASON_INPUT: _ClassVar[WaitReason]
    WAIT_REASON_IN_DOUBT: _ClassVar[WaitReason]
    WAIT_REASON_TOOL: _ClassVar[WaitReason]
    WAIT_REASON_TIMER: _ClassVar[WaitReason]
    WAIT_REASON_AUTH: _ClassVar[WaitReason]
    WAIT_REASON_CHILD: _ClassVar[WaitReason]
    WAIT_REASON_APPROVAL: _ClassVar[WaitReason]

class StepKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_KIND_UNSPECIFIED: _ClassVar[StepKind]
    STEP_KIND_MODEL: _ClassVar[StepKind]
    STEP_KIND_TOOL: _ClassVar[StepKind]
    STEP_KIND_WAIT: _ClassVar[StepKind]
    STEP_KIND_CHILD: _ClassVar[StepKind]

class StepState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_STATE_UNSPECIFIED: _ClassVar[StepState]
    STEP_STATE_STARTED: _ClassVar[StepState]
    STEP_STATE_SUCCEEDED: _ClassVar[StepState]
    STEP_STATE_FAILED: _ClassVar[StepState]
    STEP_STATE_IN_DOUBT: _ClassVar[StepState]
    STEP_STATE_CANCELLED: _ClassVar[StepState]

class ApprovalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_KIND_UNSPECIFIED: _ClassVar[ApprovalKind]
    APPROVAL_KIND_QUESTION: _ClassVar[ApprovalKind]
    APPROVAL_KIND_IN_DOUBT: _ClassVar[ApprovalKind]
    APPROVAL_KIND_SIGN_IN: _ClassVar[ApprovalKind]
    APPROVAL_KIND_TOOL_CALL: _ClassVar[ApprovalKind]
    APPROVAL_KIND_BUDGET: _ClassVar[ApprovalKind]

class ApprovalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_STATE_UNSPECIFIED: _ClassVar[ApprovalState]
    APPROVAL_STATE_PENDING: _ClassVar[ApprovalState]
    APPROVAL_STATE_DECIDED: _ClassVar[ApprovalState]
    APPROVAL_STATE_EXPIRED: _ClassVar[ApprovalState]
    APPROVAL_STATE_CANCELLED: _ClassVar[ApprovalState]

class InDoubtResolution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IN_DOUBT_RESOLUTION_UNSPECIFIED: _ClassVar[InDoubtResolution]
    IN_DOUBT_RESOLUTION_DONE: _ClassVar[InDoubtResolution]
    IN_DOUBT_RESOLUTION_NOT_DONE: _ClassVar[InDoubtResolution]
    IN_DOUBT_RESOLUTION_TELL_MODEL: _ClassVar[InDoubtResolution]
    IN_DOUBT_RESOLUTION_FAIL_RUN: _ClassVar[InDoubtResolution]

class ApprovalVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_VERDICT_UNSPECIFIED: _ClassVar[ApprovalVerdict]
    APPROVAL_VERDICT_APPROVED: _ClassVar[ApprovalVerdict]
    APPROVAL_VERDICT_REJECTED: _ClassVar[ApprovalVerdict]

class ApprovalScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_SCOPE_UNSPECIFIED: _ClassVar[ApprovalScope]
    APPROVAL_SCOPE_ONCE: _ClassVar[ApprovalScope]
    APPROVAL_SCOPE_RUN: _ClassVar[ApprovalScope]
    APPROVAL_SCOPE_SESSION: _ClassVar[ApprovalScope]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_WAITING: RunState
RUN_STATE_SUCCEEDED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_CANCELLED: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_EXPIRED: RunState
RUN_STATE_BUDGET_EXCEEDED: RunState
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BATCH: Priority
WAIT_REASON_UNSPECIFIED: WaitReason
WAIT_REASON_INPUT: WaitReason
WAIT_REASON_IN_DOUBT: WaitReason
WAIT_REASON_TOOL: WaitReason
WAIT_REASON_TIMER: WaitReason
WAIT_REASON_AUTH: WaitReason
WAIT_REASON_CHILD: WaitReason
WAIT_REASON_APPROVAL: WaitReason
STEP_KIND_UNSPECIFIED: StepKind
STEP_KIND_MODEL: StepKind
STEP_KIND_TOOL: StepKind
STEP_KIND_WAIT: StepKind
STEP_KIND_CHILD: StepKind
STEP_STATE_UNSPECIFIED: StepState
STEP_STATE_STARTED: StepState
STEP_STATE_SUCCEEDED: StepState
STEP_STATE_FAILED: StepState
STEP_STATE_IN_DOUBT: StepState
STEP_STATE_CANCELLED: StepState
APPROVAL_KIND_UNSPECIFIED: ApprovalKind
APPROVAL_KIND_QUESTION: ApprovalKind
APPROVAL_KIND_IN_DOUBT: ApprovalKind
APPROVAL_KIND_SIGN_IN: ApprovalKind
APPROVAL_KIND_TOOL_CALL: ApprovalKind
APPROVAL_KIND_BUDGET: ApprovalKind
APPROVAL_STATE_UNSPECIFIED: ApprovalState
APPROVAL_STATE_PENDING: ApprovalState
APPROVAL_STATE_DECIDED: ApprovalState
APPROVAL_STATE_EXPIRED: ApprovalState
APPROVAL_STATE_CANCELLED: ApprovalState
IN_DOUBT_RESOLUTION_UNSPECIFIED: InDoubtResolution
IN_DOUBT_RESOLUTION_DONE: InDoubtResolution
IN_DOUBT_RESOLUTION_NOT_DONE: InDoubtResolution
IN_DOUBT_RESOLUTION_TELL_MODEL: InDoubtResolution
IN_DOUBT_RESOLUTION_FAIL_RUN: InDoubtResolution
APPROVAL_VERDICT_UNSPECIFIED: ApprovalVerdict
APPROVAL_VERDICT_APPROVED: ApprovalVerdict
APPROVAL_VERDICT_REJECTED: ApprovalVerdict
APPROVAL_SCOPE_UNSPECIFIED: ApprovalScope
APPROVAL_SCOPE_ONCE: ApprovalScope
APPROVAL_SCOPE_RUN: ApprovalScope
APPROVAL_SCOPE_SESSION: ApprovalScope

class Run(_message.Message):
    __slots__ = ("run_id", "session_id", "agent", "revision", "user_id", "state", "wait_reason", "cancel_requested", "last_seq", "step_count", "usage", "failure", "output", "create_time", "update_time", "end_time", "wake_time", "previous_run_id", "priority", "pause_requested", "expire_time", "parent_run_id", "parent_step", "root_run_id", "depth")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_REASON_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    WAKE_TIME_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    session_id: str
    agent: str
    revision: str
    user_id: str
    state: RunState
    wait_reason: WaitReason
    cancel_requested: bool
    last_seq: int
    step_count: int
    usage: _content_pb2.Usage
    failure: _content_pb2.Failure
    output: _content_pb2.Message
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    wake_time: _timestamp_pb2.Timestamp
    previous_run_id: str
    priority: Priority
    pause_requested: bool
    expire_time: _timestamp_pb2.Timestamp
    parent_run_id: str
    parent_step: int
    root_run_id: str
    depth: int
    def __init__(self, run_id: _Optional[str] = ..., session_id: _Optional[str] = ..., agent: _Optional[str] = ..., revision: _Optional[str] = ..., user_id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., wait_reason: _Optional[_Union[WaitReason, str]] = ..., cancel_requested: bool = ..., last_seq: _Optional[int] = ..., step_count: _Optional[int] = ..., usage: _Optional[_Union[_content_pb2.Usage, _Mapping]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., output: _Optional[_Union[_content_pb2.Message, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., wake_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., previous_run_id: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., pause_requested: bool = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_run_id: _Optional[str] = ..., parent_step: _Optional[int] = ..., root_run_id: _Optional[str] = ..., depth: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("run_id", "seq", "time", "epoch", "changes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    seq: int
    time: _timestamp_pb2.Timestamp
    epoch: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, run_id: _Optional[str] = ..., seq: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., epoch: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("run_created", "run_claimed", "step_started", "attempt_started", "attempt_failed", "step_finished", "step_in_doubt", "run_state_changed", "cancel_requested", "approval_requested", "approval_decided", "approval_closed", "call_started", "late_result", "run_erased", "pause_requested", "resume_requested", "expiry_reached", "child_ended")
    RUN_CREATED_FIELD_NUMBER: _ClassVar[int]
    RUN_CLAIMED_FIELD_NUMBER: _ClassVar[int]
    STEP_STARTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_STARTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FAILED_FIELD_NUMBER: _ClassVar[int]
    STEP_FINISHED_FIELD_NUMBER: _ClassVar[int]
    STEP_IN_DOUBT_FIELD_NUMBER: _ClassVar[int]
    RUN_STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_DECIDED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_CLOSED_FIELD_NUMBER: _ClassVar[int]
    CALL_STARTED_FIELD_NUMBER: _ClassVar[int]
    LATE_RESULT_FIELD_NUMBER: _ClassVar[int]
    RUN_ERASED_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    RESUME_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_REACHED_FIELD_NUMBER: _ClassVar[int]
    CHILD_ENDED_FIELD_NUMBER: _ClassVar[int]
    run_created: RunCreated
    run_claimed: RunClaimed
    step_started: StepStarted
    attempt_started: AttemptStarted
    attempt_failed: AttemptFailed
    step_finished: StepFinished
    step_in_doubt: StepInDoubt
    run_state_changed: RunStateChanged
    cancel_requested: CancelRequested
    approval_requested: ApprovalRequested
    approval_decided: ApprovalDecided
    approval_closed: ApprovalClosed
    call_started: CallStarted
    late_result: LateResult
    run_erased: RunErased
    pause_requested: PauseRequested
    resume_requested: ResumeRequested
    expiry_reached: ExpiryReached
    child_ended: ChildEnded
    def __init__(self, run_created: _Optional[_Union[RunCreated, _Mapping]] = ..., run_claimed: _Optional[_Union[RunClaimed, _Mapping]] = ..., step_started: _Optional[_Union[StepStarted, _Mapping]] = ..., attempt_started: _Optional[_Union[AttemptStarted, _Mapping]] = ..., attempt_failed: _Optional[_Union[AttemptFailed, _Mapping]] = ..., step_finished: _Optional[_Union[StepFinished, _Mapping]] = ..., step_in_doubt: _Optional[_Union[StepInDoubt, _Mapping]] = ..., run_state_changed: _Optional[_Union[RunStateChanged, _Mapping]] = ..., cancel_requested: _Optional[_Union[CancelRequested, _Mapping]] = ..., approval_requested: _Optional[_Union[ApprovalRequested, _Mapping]] = ..., approval_decided: _Optional[_Union[ApprovalDecided, _Mapping]] = ..., approval_closed: _Optional[_Union[ApprovalClosed, _Mapping]] = ..., call_started: _Optional[_Union[CallStarted, _Mapping]] = ..., late_result: _Optional[_Union[LateResult, _Mapping]] = ..., run_erased: _Optional[_Union[RunErased, _Mapping]] = ..., pause_requested: _Optional[_Union[PauseRequested, _Mapping]] = ..., resume_requested: _Optional[_Union[ResumeRequested, _Mapping]] = ..., expiry_reached: _Optional[_Union[ExpiryReached, _Mapping]] = ..., child_ended: _Optional[_Union[ChildEnded, _Mapping]] = ...) -> None: ...

class RunCreated(_message.Message):
    __slots__ = ("session_id", "agent", "revision", "user_id", "input", "previous_run_id", "traceparent", "ttl", "parent_run_id", "parent_step", "parent_attempt", "root_run_id", "depth", "depth_limit", "budget")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    PARENT_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    agent: str
    revision: str
    user_id: str
    input: _content_pb2.StoredMessage
    previous_run_id: str
    traceparent: str
    ttl: _duration_pb2.Duration
    parent_run_id: str
    parent_step: int
    parent_attempt: int
    root_run_id: str
    depth: int
    depth_limit: int
    budget: _agent_pb2.Budget
    def __init__(self, session_id: _Optional[str] = ..., agent: _Optional[str] = ..., revision: _Optional[str] = ..., user_id: _Optional[str] = ..., input: _Optional[_Union[_content_pb2.StoredMessage, _Mapping]] = ..., previous_run_id: _Optional[str] = ..., traceparent: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., parent_run_id: _Optional[str] = ..., parent_step: _Optional[int] = ..., parent_attempt: _Optional[int] = ..., root_run_id: _Optional[str] = ..., depth: _Optional[int] = ..., depth_limit: _Optional[int] = ..., budget: _Optional[_Union[_agent_pb2.Budget, _Mapping]] = ...) -> None: ...

class RunClaimed(_message.Message):
    __slots__ = ("executor_id", "epoch")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    epoch: int
    def __init__(self, executor_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class StepStarted(_message.Message):
    __slots__ = ("step", "kind", "model", "tool")
    STEP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    step: int
    kind: StepKind
    model: ModelIntent
    tool: ToolIntent
    def __init__(self, step: _Optional[int] = ..., kind: _Optional[_Union[StepKind, str]] = ..., model: _Optional[_Union[ModelIntent, _Mapping]] = ..., tool: _Optional[_Union[ToolIntent, _Mapping]] = ...) -> None: ...

class ModelIntent(_message.Message):
    __slots__ = ("provider", "model", "message_count", "reserved", "final_note", "is_cheaper")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    FINAL_NOTE_FIELD_NUMBER: _ClassVar[int]
    IS_CHEAPER_FIELD_NUMBER: _ClassVar[int]
    provider: str
    model: str
    message_count: int
    reserved: Reservation
    final_note: str
    is_cheaper: bool
    def __init__(self, provider: _Optional[str] = ..., model: _Optional[str] = ..., message_count: _Optional[int] = ..., reserved: _Optional[_Union[Reservation, _Mapping]] = ..., final_note: _Optional[str] = ..., is_cheaper: bool = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("cost_usd_nanos", "input_tokens", "output_tokens", "price_source")
    COST_USD_NANOS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    cost_usd_nanos: int
    input_tokens: int
    output_tokens: int
    price_source: str
    def __init__(self, cost_usd_nanos: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., price_source: _Optional[str] = ...) -> None: ...

class BudgetLine(_message.Message):
    __slots__ = ("limit", "max", "used", "reserved", "left")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    limit: str
    max: int
    used: int
    reserved: int
    left: int
    def __init__(self, limit: _Optional[str] = ..., max: _Optional[int] = ..., used: _Optional[int] = ..., reserved: _Optional[int] = ..., left: _Optional[int] = ...) -> None: ...

class ToolIntent(_message.Message):
    __slots__ = ("tool", "call_id", "effect", "idempotency_key", "tool_kind", "due_time", "child_run_id", "child_budget", "approval_id")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TOOL_KIND_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHILD_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CHILD_BUDGET_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    tool: str
    call_id: str
    effect: _agent_pb2.EffectClass
    idempotency_key: str
    tool_kind: str
    due_time: _timestamp_pb2.Timestamp
    child_run_id: str
    child_budget: _agent_pb2.Budget
    approval_id: str
    def __init__(self, tool: _Optional[str] = ..., call_id: _Optional[str] = ..., effect: _Optional[_Union[_agent_pb2.EffectClass, str]] = ..., idempotency_key: _Optional[str] = ..., tool_kind: _Optional[str] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., child_run_id: _Optional[str] = ..., child_budget: _Optional[_Union[_agent_pb2.Budget, _Mapping]] = ..., approval_id: _Optional[str] = ...) -> None: ...

class AttemptStarted(_message.Message):
    __slots__ = ("step", "attempt", "not_before", "child_run_id", "child_budget")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    CHILD_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CHILD_BUDGET_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    not_before: _timestamp_pb2.Timestamp
    child_run_id: str
    child_budget: _agent_pb2.Budget
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., child_run_id: _Optional[str] = ..., child_budget: _Optional[_Union[_agent_pb2.Budget, _Mapping]] = ...) -> None: ...

class AttemptFailed(_message.Message):
    __slots__ = ("step", "attempt", "failure", "sign_in")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SIGN_IN_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    failure: _content_pb2.Failure
    sign_in: SignInNeeded
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., sign_in: _Optional[_Union[SignInNeeded, _Mapping]] = ...) -> None: ...

class StepFinished(_message.Message):
    __slots__ = ("step", "attempt", "state", "message", "usage", "failure", "output", "finish_reason", "response_id", "response_model", "duration", "time_to_first_token")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    state: StepState
    message: _content_pb2.StoredMessage
    usage: _content_pb2.Usage
    failure: _content_pb2.Failure
    output: _content_pb2.BlobRef
    finish_reason: str
    response_id: str
    response_model: str
    duration: _duration_pb2.Duration
    time_to_first_token: _duration_pb2.Duration
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[StepState, str]] = ..., message: _Optional[_Union[_content_pb2.StoredMessage, _Mapping]] = ..., usage: _Optional[_Union[_content_pb2.Usage, _Mapping]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., output: _Optional[_Union[_content_pb2.BlobRef, _Mapping]] = ..., finish_reason: _Optional[str] = ..., response_id: _Optional[str] = ..., response_model: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., time_to_first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StepInDoubt(_message.Message):
    __slots__ = ("step", "attempt", "failure")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    failure: _content_pb2.Failure
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ...) -> None: ...

class RunStateChanged(_message.Message):
    __slots__ = ("state", "wait_reason", "wake_time", "failure", "used")
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_REASON_FIELD_NUMBER: _ClassVar[int]
    WAKE_TIME_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    state: RunState
    wait_reason: WaitReason
    wake_time: _timestamp_pb2.Timestamp
    failure: _content_pb2.Failure
    used: BudgetUse
    def __init__(self, state: _Optional[_Union[RunState, str]] = ..., wait_reason: _Optional[_Union[WaitReason, str]] = ..., wake_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., used: _Optional[_Union[BudgetUse, _Mapping]] = ...) -> None: ...

class BudgetUse(_message.Message):
    __slots__ = ("cost_usd_nanos", "input_tokens", "output_tokens", "unsplit_tokens", "model_calls", "tool_calls")
    COST_USD_NANOS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNSPLIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    cost_usd_nanos: int
    input_tokens: int
    output_tokens: int
    unsplit_tokens: int
    model_calls: int
    tool_calls: int
    def __init__(self, cost_usd_nanos: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., unsplit_tokens: _Optional[int] = ..., model_calls: _Optional[int] = ..., tool_calls: _Optional[int] = ...) -> None: ...

class CancelRequested(_message.Message):
    __slots__ = ("requested_by", "reason")
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    requested_by: str
    reason: str
    def __init__(self, requested_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PauseRequested(_message.Message):
    __slots__ = ("requested_by", "reason")
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    requested_by: str
    reason: str
    def __init__(self, requested_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeRequested(_message.Message):
    __slots__ = ("requested_by", "reason")
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    requested_by: str
    reason: str
    def __init__(self, requested_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ExpiryReached(_message.Message):
    __slots__ = ("expire_time",)
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ChildEnded(_message.Message):
    __slots__ = ("step", "attempt", "child_run_id", "state", "failure", "output", "used")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHILD_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    child_run_id: str
    state: RunState
    failure: _content_pb2.Failure
    output: _content_pb2.StoredMessage
    used: BudgetUse
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., child_run_id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., output: _Optional[_Union[_content_pb2.StoredMessage, _Mapping]] = ..., used: _Optional[_Union[BudgetUse, _Mapping]] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("approval_id", "run_id", "step", "kind", "state", "prompt", "answer_schema", "tool", "arguments_json", "create_time", "expire_time", "decide_time", "decision", "sign_in", "arguments_sha256", "arguments_shortened", "tool_sha256", "budget")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    DECIDE_TIME_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SIGN_IN_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_SHORTENED_FIELD_NUMBER: _ClassVar[int]
    TOOL_SHA256_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    run_id: str
    step: int
    kind: ApprovalKind
    state: ApprovalState
    prompt: str
    answer_schema: _struct_pb2.Struct
    tool: str
    arguments_json: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    decide_time: _timestamp_pb2.Timestamp
    decision: ApprovalDecided
    sign_in: SignInNeeded
    arguments_sha256: str
    arguments_shortened: bool
    tool_sha256: str
    budget: BudgetShortfall
    def __init__(self, approval_id: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., kind: _Optional[_Union[ApprovalKind, str]] = ..., state: _Optional[_Union[ApprovalState, str]] = ..., prompt: _Optional[str] = ..., answer_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decide_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decision: _Optional[_Union[ApprovalDecided, _Mapping]] = ..., sign_in: _Optional[_Union[SignInNeeded, _Mapping]] = ..., arguments_sha256: _Optional[str] = ..., arguments_shortened: bool = ..., tool_sha256: _Optional[str] = ..., budget: _Optional[_Union[BudgetShortfall, _Mapping]] = ...) -> None: ...

class BudgetShortfall(_message.Message):
    __slots__ = ("limit", "max", "used", "reserved", "needed")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    limit: str
    max: int
    used: int
    reserved: int
    needed: int
    def __init__(self, limit: _Optional[str] = ..., max: _Optional[int] = ..., used: _Optional[int] = ..., reserved: _Optional[int] = ..., needed: _Optional[int] = ...) -> None: ...

class SignInNeeded(_message.Message):
    __slots__ = ("connection", "user_id", "scopes", "connect_url", "connect_session_id", "reason", "rejected_fingerprint")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    CONNECT_URL_FIELD_NUMBER: _ClassVar[int]
    CONNECT_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    connection: str
    user_id: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    connect_url: str
    connect_session_id: str
    reason: str
    rejected_fingerprint: str
    def __init__(self, connection: _Optional[str] = ..., user_id: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., connect_url: _Optional[str] = ..., connect_session_id: _Optional[str] = ..., reason: _Optional[str] = ..., rejected_fingerprint: _Optional[str] = ...) -> None: ...

class ApprovalRequested(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class ApprovalDecided(_message.Message):
    __slots__ = ("approval_id", "step", "answer_json", "resolution", "decided_by", "comment", "verdict", "reason", "edited_arguments_json", "arguments_sha256", "idempotency_key", "scope")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWER_JSON_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EDITED_ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    step: int
    answer_json: str
    resolution: InDoubtResolution
    decided_by: str
    comment: str
    verdict: ApprovalVerdict
    reason: str
    edited_arguments_json: str
    arguments_sha256: str
    idempotency_key: str
    scope: ApprovalScope
    def __init__(self, approval_id: _Optional[str] = ..., step: _Optional[int] = ..., answer_json: _Optional[str] = ..., resolution: _Optional[_Union[InDoubtResolution, str]] = ..., decided_by: _Optional[str] = ..., comment: _Optional[str] = ..., verdict: _Optional[_Union[ApprovalVerdict, str]] = ..., reason: _Optional[str] = ..., edited_arguments_json: _Optional[str] = ..., arguments_sha256: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., scope: _Optional[_Union[ApprovalScope, str]] = ...) -> None: ...

class SessionApproval(_message.Message):
    __slots__ = ("approval_id", "run_id", "tool", "tool_sha256", "create_time")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TOOL_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    run_id: str
    tool: str
    tool_sha256: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, approval_id: _Optional[str] = ..., run_id: _Optional[str] = ..., tool: _Optional[str] = ..., tool_sha256: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ApprovalClosed(_message.Message):
    __slots__ = ("approval_id", "state")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    state: ApprovalState
    def __init__(self, approval_id: _Optional[str] = ..., state: _Optional[_Union[ApprovalState, str]] = ...) -> None: ...

class CallStarted(_message.Message):
    __slots__ = ("step", "attempt", "worker_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    worker_id: str
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., worker_id: _Optional[str] = ...) -> None: ...

class LateResult(_message.Message):
    __slots__ = ("step", "attempt", "worker_id", "content", "is_error")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    IS_ERROR_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    worker_id: str
    content: str
    is_error: bool
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., worker_id: _Optional[str] = ..., content: _Optional[str] = ..., is_error: bool = ...) -> None: ...

class RunErased(_message.Message):
    __slots__ = ("requested_by", "request_id")
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    requested_by: str
    request_id: str
    def __init__(self, requested_by: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("run_id", "step", "attempt", "index", "text")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    attempt: int
    index: int
    text: str
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., index: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...
