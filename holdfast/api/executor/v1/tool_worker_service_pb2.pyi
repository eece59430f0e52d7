import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import agent_pb2 as _agent_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkRequest(_message.Message):
    __slots__ = ("hello", "start", "heartbeat", "drain")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    start: StartCall
    heartbeat: WorkerHeartbeat
    drain: WorkerDrain
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., start: _Optional[_Union[StartCall, _Mapping]] = ..., heartbeat: _Optional[_Union[WorkerHeartbeat, _Mapping]] = ..., drain: _Optional[_Union[WorkerDrain, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "tools", "slots", "running_leases", "client")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_LEASES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    tools: _containers.RepeatedCompositeFieldContainer[ServedTool]
    slots: int
    running_leases: _containers.RepeatedScalarFieldContainer[str]
    client: str
    def __init__(self, worker_id: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[ServedTool, _Mapping]]] = ..., slots: _Optional[int] = ..., running_leases: _Optional[_Iterable[str]] = ..., client: _Optional[str] = ...) -> None: ...

class ServedTool(_message.Message):
    __slots__ = ("name", "description", "input_schema", "effect")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    input_schema: _struct_pb2.Struct
    effect: _agent_pb2.EffectClass
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., input_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., effect: _Optional[_Union[_agent_pb2.EffectClass, str]] = ...) -> None: ...

class StartCall(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class WorkerHeartbeat(_message.Message):
    __slots__ = ("running",)
    class RunningEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    running: _containers.ScalarMap[str, str]
    def __init__(self, running: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WorkerDrain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("welcome", "offer", "go", "cancel")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    welcome: WorkerWelcome
    offer: CallOffer
    go: CallGo
    cancel: CallCancel
    def __init__(self, welcome: _Optional[_Union[WorkerWelcome, _Mapping]] = ..., offer: _Optional[_Union[CallOffer, _Mapping]] = ..., go: _Optional[_Union[CallGo, _Mapping]] = ..., cancel: _Optional[_Union[CallCancel, _Mapping]] = ...) -> None: ...

class WorkerWelcome(_message.Message):
    __slots__ = ("heartbeat_interval", "workspace_id")
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    heartbeat_interval: _duration_pb2.Duration
    workspace_id: str
    def __init__(self, heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., workspace_id: _Optional[str] = ...) -> None: ...

class CallOffer(_message.Message):
    __slots__ = ("lease", "run_id", "step", "attempt", "tool", "arguments_json", "idempotency_key", "timeout", "agent", "user_id", "last_heartbeat_details", "traceparent", "expire_time", "egress_url")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_DETAILS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    EGRESS_URL_FIELD_NUMBER: _ClassVar[int]
    lease: str
    run_id: str
    step: int
    attempt: int
    tool: str
    arguments_json: str
    idempotency_key: str
    timeout: _duration_pb2.Duration
    agent: str
    user_id: str
    last_heartbeat_details: str
    traceparent: str
    expire_time: _timestamp_pb2.Timestamp
    egress_url: str
    def __init__(self, lease: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., agent: _Optional[str] = ..., user_id: _Optional[str] = ..., last_heartbeat_details: _Optional[str] = ..., traceparent: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., egress_url: _Optional[str] = ...) -> None: ...

class CallGo(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class CallCancel(_message.Message):
    __slots__ = ("lease", "reason")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease: str
    reason: str
    def __init__(self, lease: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CompleteCallRequest(_message.Message):
    __slots__ = ("worker_id", "lease", "result_json", "error")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease: str
    result_json: str
    error: CallError
    def __init__(self, worker_id: _Optional[str] = ..., lease: _Optional[str] = ..., result_json: _Optional[str] = ..., error: _Optional[_Union[CallError, _Mapping]] = ...) -> None: ...

class CallError(_message.Message):
    __slots__ = ("message", "is_retryable", "is_outcome_unknown", "needs_sign_in")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IS_RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    IS_OUTCOME_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    NEEDS_SIGN_IN_FIELD_NUMBER: _ClassVar[int]
    message: str
    is_retryable: bool
    is_outcome_unknown: bool
    needs_sign_in: bool
    def __init__(self, message: _Optional[str] = ..., is_retryable: bool = ..., is_outcome_unknown: bool = ..., needs_sign_in: bool = ...) -> None: ...

class CompleteCallResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCallCredentialRequest(_message.Message):
    __slots__ = ("worker_id", "lease", "rejected_fingerprint")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease: str
    rejected_fingerprint: str
    def __init__(self, worker_id: _Optional[str] = ..., lease: _Optional[str] = ..., rejected_fingerprint: _Optional[str] = ...) -> None: ...

class CallCredentialField(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class GetCallCredentialResponse(_message.Message):
    __slots__ = ("secret", "fingerprint", "expire_time", "headers", "query", "base_url")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    secret: str
    fingerprint: str
    expire_time: _timestamp_pb2.Timestamp
    headers: _containers.RepeatedCompositeFieldContainer[CallCredentialField]
    query: _containers.RepeatedCompositeFieldContainer[CallCredentialField]
    base_url: str
    def __init__(self, secret: _Optional[str] = ..., fingerprint: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[CallCredentialField, _Mapping]]] = ..., query: _Optional[_Iterable[_Union[CallCredentialField, _Mapping]]] = ..., base_url: _Optional[str] = ...) -> None: ...
