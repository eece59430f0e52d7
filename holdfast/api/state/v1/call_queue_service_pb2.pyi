import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import content_pb2 as _content_pb2
from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeasedCall(_message.Message):
    __slots__ = ("lease", "workspace_id", "run_id", "step", "attempt", "tool", "arguments_json", "idempotency_key", "timeout", "agent", "user_id", "revision", "last_heartbeat_details", "offer_expire_time", "call_id", "arguments_edited", "root_run_id")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_DETAILS_FIELD_NUMBER: _ClassVar[int]
    OFFER_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_EDITED_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    lease: str
    workspace_id: str
    run_id: str
    step: int
    attempt: int
    tool: str
    arguments_json: str
    idempotency_key: str
    timeout: _duration_pb2.Duration
    agent: str
    user_id: str
    revision: str
    last_heartbeat_details: str
    offer_expire_time: _timestamp_pb2.Timestamp
    call_id: str
    arguments_edited: bool
    root_run_id: str
    def __init__(self, lease: _Optional[str] = ..., workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., agent: _Optional[str] = ..., user_id: _Optional[str] = ..., revision: _Optional[str] = ..., last_heartbeat_details: _Optional[str] = ..., offer_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., call_id: _Optional[str] = ..., arguments_edited: bool = ..., root_run_id: _Optional[str] = ...) -> None: ...

class LeaseCallsRequest(_message.Message):
    __slots__ = ("workspace_id", "worker_id", "tools", "max_calls", "offer_duration")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    OFFER_DURATION_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    worker_id: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    max_calls: int
    offer_duration: _duration_pb2.Duration
    def __init__(self, workspace_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ..., max_calls: _Optional[int] = ..., offer_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseCallsResponse(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[LeasedCall]
    def __init__(self, calls: _Optional[_Iterable[_Union[LeasedCall, _Mapping]]] = ...) -> None: ...

class StartCallRequest(_message.Message):
    __slots__ = ("workspace_id", "worker_id", "lease")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    worker_id: str
    lease: str
    def __init__(self, workspace_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., lease: _Optional[str] = ...) -> None: ...

class StartCallResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewCallsRequest(_message.Message):
    __slots__ = ("workspace_id", "worker_id", "running")
    class RunningEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    worker_id: str
    running: _containers.ScalarMap[str, str]
    def __init__(self, workspace_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., running: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RenewCallsResponse(_message.Message):
    __slots__ = ("lost_leases", "cancelled_leases")
    LOST_LEASES_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_LEASES_FIELD_NUMBER: _ClassVar[int]
    lost_leases: _containers.RepeatedScalarFieldContainer[str]
    cancelled_leases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lost_leases: _Optional[_Iterable[str]] = ..., cancelled_leases: _Optional[_Iterable[str]] = ...) -> None: ...

class ReturnCallsRequest(_message.Message):
    __slots__ = ("workspace_id", "worker_id", "leases")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    worker_id: str
    leases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workspace_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., leases: _Optional[_Iterable[str]] = ...) -> None: ...

class ReturnCallsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CompleteCallRequest(_message.Message):
    __slots__ = ("workspace_id", "worker_id", "lease", "change", "blobs", "late")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    worker_id: str
    lease: str
    change: _run_pb2.Change
    blobs: _containers.RepeatedCompositeFieldContainer[_content_pb2.Blob]
    late: _run_pb2.LateResult
    def __init__(self, workspace_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., lease: _Optional[str] = ..., change: _Optional[_Union[_run_pb2.Change, _Mapping]] = ..., blobs: _Optional[_Iterable[_Union[_content_pb2.Blob, _Mapping]]] = ..., late: _Optional[_Union[_run_pb2.LateResult, _Mapping]] = ...) -> None: ...

class CompleteCallResponse(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class GetCallRequest(_message.Message):
    __slots__ = ("workspace_id", "lease", "executing_worker_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EXECUTING_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    lease: str
    executing_worker_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., lease: _Optional[str] = ..., executing_worker_id: _Optional[str] = ...) -> None: ...

class GetCallResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: LeasedCall
    def __init__(self, call: _Optional[_Union[LeasedCall, _Mapping]] = ...) -> None: ...
