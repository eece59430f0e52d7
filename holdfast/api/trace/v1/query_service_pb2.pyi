import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import agent_pb2 as _agent_pb2
from holdfast.api.common.v1 import content_pb2 as _content_pb2
from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpanKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPAN_KIND_UNSPECIFIED: _ClassVar[SpanKind]
    SPAN_KIND_RUN: _ClassVar[SpanKind]
    SPAN_KIND_SEGMENT: _ClassVar[SpanKind]
    SPAN_KIND_MODEL: _ClassVar[SpanKind]
    SPAN_KIND_TOOL: _ClassVar[SpanKind]
    SPAN_KIND_WAIT: _ClassVar[SpanKind]
    SPAN_KIND_ATTEMPT: _ClassVar[SpanKind]
    SPAN_KIND_APPROVAL: _ClassVar[SpanKind]

class SpanStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPAN_STATUS_UNSPECIFIED: _ClassVar[SpanStatus]
    SPAN_STATUS_OK: _ClassVar[SpanStatus]
    SPAN_STATUS_ERROR: _ClassVar[SpanStatus]
    SPAN_STATUS_CANCELLED: _ClassVar[SpanStatus]
SPAN_KIND_UNSPECIFIED: SpanKind
SPAN_KIND_RUN: SpanKind
SPAN_KIND_SEGMENT: SpanKind
SPAN_KIND_MODEL: SpanKind
SPAN_KIND_TOOL: SpanKind
SPAN_KIND_WAIT: SpanKind
SPAN_KIND_ATTEMPT: SpanKind
SPAN_KIND_APPROVAL: SpanKind
SPAN_STATUS_UNSPECIFIED: SpanStatus
SPAN_STATUS_OK: SpanStatus
SPAN_STATUS_ERROR: SpanStatus
SPAN_STATUS_CANCELLED: SpanStatus

class RunSummary(_message.Message):
    __slots__ = ("run_id", "trace_id", "session_id", "agent", "revision", "user_id", "state", "wait_reason", "create_time", "end_time", "queued_duration", "active_duration", "waiting_duration", "model_calls", "tool_calls", "failed_attempts", "claims", "usage", "failure", "last_seq", "paused_duration", "parent_run_id", "parent_step", "root_run_id", "depth")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUED_DURATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_DURATION_FIELD_NUMBER: _ClassVar[int]
    WAITING_DURATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    PAUSED_DURATION_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    trace_id: str
    session_id: str
    agent: str
    revision: str
    user_id: str
    state: _run_pb2.RunState
    wait_reason: _run_pb2.WaitReason
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    queued_duration: _duration_pb2.Duration
    active_duration: _duration_pb2.Duration
    waiting_duration: _duration_pb2.Duration
    model_calls: int
    tool_calls: int
    failed_attempts: int
    claims: int
    usage: _content_pb2.Usage
    failure: _content_pb2.Failure
    last_seq: int
    paused_duration: _duration_pb2.Duration
    parent_run_id: str
    parent_step: int
    root_run_id: str
    depth: int
    def __init__(self, run_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., session_id: _Optional[str] = ..., agent: _Optional[str] = ..., revision: _Optional[str] = ..., user_id: _Optional[str] = ..., state: _Optional[_Union[_run_pb2.RunState, str]] = ..., wait_reason: _Optional[_Union[_run_pb2.WaitReason, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queued_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., active_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., waiting_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model_calls: _Optional[int] = ..., tool_calls: _Optional[int] = ..., failed_attempts: _Optional[int] = ..., claims: _Optional[int] = ..., usage: _Optional[_Union[_content_pb2.Usage, _Mapping]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., last_seq: _Optional[int] = ..., paused_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., parent_run_id: _Optional[str] = ..., parent_step: _Optional[int] = ..., root_run_id: _Optional[str] = ..., depth: _Optional[int] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("trace_id", "span_id", "parent_span_id", "name", "kind", "step", "attempt", "start_time", "end_time", "status", "failure", "attributes")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: SpanKind
    step: int
    attempt: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    status: SpanStatus
    failure: _content_pb2.Failure
    attributes: _struct_pb2.Struct
    def __init__(self, trace_id: _Optional[str] = ..., span_id: _Optional[str] = ..., parent_span_id: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[_Union[SpanKind, str]] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., status: _Optional[_Union[SpanStatus, str]] = ..., failure: _Optional[_Union[_content_pb2.Failure, _Mapping]] = ..., attributes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "agent", "session_id", "user_id", "states", "created_after", "created_before", "parent_run_id", "root_run_id", "include_children")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CHILDREN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    agent: str
    session_id: str
    user_id: str
    states: _containers.RepeatedScalarFieldContainer[_run_pb2.RunState]
    created_after: _timestamp_pb2.Timestamp
    created_before: _timestamp_pb2.Timestamp
    parent_run_id: str
    root_run_id: str
    include_children: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., agent: _Optional[str] = ..., session_id: _Optional[str] = ..., user_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_run_pb2.RunState, str]]] = ..., created_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., created_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_run_id: _Optional[str] = ..., root_run_id: _Optional[str] = ..., include_children: bool = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunSummary]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRunTreeRequest(_message.Message):
    __slots__ = ("run_id", "min_seq", "include_children")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CHILDREN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    min_seq: int
    include_children: bool
    def __init__(self, run_id: _Optional[str] = ..., min_seq: _Optional[int] = ..., include_children: bool = ...) -> None: ...

class GetRunTreeResponse(_message.Message):
    __slots__ = ("run", "spans", "children")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    run: RunSummary
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    children: _containers.RepeatedCompositeFieldContainer[RunSummary]
    def __init__(self, run: _Optional[_Union[RunSummary, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., children: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ...) -> None: ...

class GetStepRequest(_message.Message):
    __slots__ = ("run_id", "step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class GetStepResponse(_message.Message):
    __slots__ = ("span", "attempts", "model", "tool")
    SPAN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    span: Span
    attempts: _containers.RepeatedCompositeFieldContainer[Span]
    model: ModelStepDetail
    tool: ToolStepDetail
    def __init__(self, span: _Optional[_Union[Span, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., model: _Optional[_Union[ModelStepDetail, _Mapping]] = ..., tool: _Optional[_Union[ToolStepDetail, _Mapping]] = ...) -> None: ...

class ModelStepDetail(_message.Message):
    __slots__ = ("spec", "input", "output", "usage", "finish_reason", "response_model", "response_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _agent_pb2.AgentSpec
    input: _containers.RepeatedCompositeFieldContainer[InputMessage]
    output: _content_pb2.Message
    usage: _content_pb2.Usage
    finish_reason: str
    response_model: str
    response_id: str
    def __init__(self, spec: _Optional[_Union[_agent_pb2.AgentSpec, _Mapping]] = ..., input: _Optional[_Iterable[_Union[InputMessage, _Mapping]]] = ..., output: _Optional[_Union[_content_pb2.Message, _Mapping]] = ..., usage: _Optional[_Union[_content_pb2.Usage, _Mapping]] = ..., finish_reason: _Optional[str] = ..., response_model: _Optional[str] = ..., response_id: _Optional[str] = ...) -> None: ...

class InputMessage(_message.Message):
    __slots__ = ("run_id", "step", "message", "is_new")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IS_NEW_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    message: _content_pb2.Message
    is_new: bool
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., message: _Optional[_Union[_content_pb2.Message, _Mapping]] = ..., is_new: bool = ...) -> None: ...

class ToolStepDetail(_message.Message):
    __slots__ = ("tool", "call_id", "arguments_json", "effect", "idempotency_key", "shown", "output", "approvals", "edited_arguments_json", "approval_id")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    EDITED_ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    tool: str
    call_id: str
    arguments_json: str
    effect: _agent_pb2.EffectClass
    idempotency_key: str
    shown: _content_pb2.Message
    output: str
    approvals: _containers.RepeatedCompositeFieldContainer[_run_pb2.Approval]
    edited_arguments_json: str
    approval_id: str
    def __init__(self, tool: _Optional[str] = ..., call_id: _Optional[str] = ..., arguments_json: _Optional[str] = ..., effect: _Optional[_Union[_agent_pb2.EffectClass, str]] = ..., idempotency_key: _Optional[str] = ..., shown: _Optional[_Union[_content_pb2.Message, _Mapping]] = ..., output: _Optional[str] = ..., approvals: _Optional[_Iterable[_Union[_run_pb2.Approval, _Mapping]]] = ..., edited_arguments_json: _Optional[str] = ..., approval_id: _Optional[str] = ...) -> None: ...
