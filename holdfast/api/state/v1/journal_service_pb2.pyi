import datetime

from google.protobuf import duration_pb2 as _duration_pb2
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

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_UNSPECIFIED: _ClassVar[Lane]
    LANE_CHILD: _ClassVar[Lane]
    LANE_INTERACTIVE: _ClassVar[Lane]
    LANE_BATCH: _ClassVar[Lane]
LANE_UNSPECIFIED: Lane
LANE_CHILD: Lane
LANE_INTERACTIVE: Lane
LANE_BATCH: Lane

class CheckpointRequest(_message.Message):
    __slots__ = ("operations", "deltas", "withdrawn")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    deltas: _containers.RepeatedCompositeFieldContainer[_run_pb2.Delta]
    withdrawn: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., deltas: _Optional[_Iterable[_Union[_run_pb2.Delta, _Mapping]]] = ..., withdrawn: _Optional[_Iterable[int]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("id", "transition", "new_run", "await_end")
    ID_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    NEW_RUN_FIELD_NUMBER: _ClassVar[int]
    AWAIT_END_FIELD_NUMBER: _ClassVar[int]
    id: int
    transition: Transition
    new_run: NewRun
    await_end: AwaitEnd
    def __init__(self, id: _Optional[int] = ..., transition: _Optional[_Union[Transition, _Mapping]] = ..., new_run: _Optional[_Union[NewRun, _Mapping]] = ..., await_end: _Optional[_Union[AwaitEnd, _Mapping]] = ...) -> None: ...

class AwaitEnd(_message.Message):
    __slots__ = ("workspace_id", "run_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[OperationResult]
    def __init__(self, results: _Optional[_Iterable[_Union[OperationResult, _Mapping]]] = ...) -> None: ...

class OperationResult(_message.Message):
    __slots__ = ("id", "committed", "refused", "run", "is_claimed")
    ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    IS_CLAIMED_FIELD_NUMBER: _ClassVar[int]
    id: int
    committed: Committed
    refused: Refused
    run: _run_pb2.Run
    is_claimed: bool
    def __init__(self, id: _Optional[int] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ..., is_claimed: bool = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("seq", "time")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    seq: int
    time: _timestamp_pb2.Timestamp
    def __init__(self, seq: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "code", "message", "retry_delay")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: int
    message: str
    retry_delay: _duration_pb2.Duration
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("workspace_id", "run_id", "epoch", "seq", "changes", "blobs", "calls", "children", "ends_child")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    ENDS_CHILD_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    epoch: int
    seq: int
    changes: _containers.RepeatedCompositeFieldContainer[_run_pb2.Change]
    blobs: _containers.RepeatedCompositeFieldContainer[_content_pb2.Blob]
    calls: _containers.RepeatedCompositeFieldContainer[NewCall]
    children: _containers.RepeatedCompositeFieldContainer[NewRun]
    ends_child: bool
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[_run_pb2.Change, _Mapping]]] = ..., blobs: _Optional[_Iterable[_Union[_content_pb2.Blob, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[NewCall, _Mapping]]] = ..., children: _Optional[_Iterable[_Union[NewRun, _Mapping]]] = ..., ends_child: bool = ...) -> None: ...

class NewCall(_message.Message):
    __slots__ = ("step", "attempt", "tool", "arguments_json", "idempotency_key", "not_before", "start_deadline", "timeout", "heartbeat_timeout", "agent", "user_id", "revision", "last_heartbeat_details", "call_id", "arguments_edited", "root_run_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    START_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_DETAILS_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_EDITED_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    tool: str
    arguments_json: str
    idempotency_key: str
    not_before: _timestamp_pb2.Timestamp
    start_deadline: _timestamp_pb2.Timestamp
    timeout: _duration_pb2.Duration
    heartbeat_timeout: _duration_pb2.Duration
    agent: str
    user_id: str
    revision: str
    last_heartbeat_details: str
    call_id: str
    arguments_edited: bool
    root_run_id: str
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., agent: _Optional[str] = ..., user_id: _Optional[str] = ..., revision: _Optional[str] = ..., last_heartbeat_details: _Optional[str] = ..., call_id: _Optional[str] = ..., arguments_edited: bool = ..., root_run_id: _Optional[str] = ...) -> None: ...

class NewRun(_message.Message):
    __slots__ = ("workspace_id", "run_id", "session_id", "new_session_id", "agent", "revision", "user_id", "input", "blobs", "reject_when_busy", "request_id", "request_fingerprint", "traceparent", "lane", "agent_limit", "label", "claim_for", "run_grant", "ttl", "budget", "parent")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    REJECT_WHEN_BUSY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    AGENT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FOR_FIELD_NUMBER: _ClassVar[int]
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    session_id: str
    new_session_id: str
    agent: str
    revision: str
    user_id: str
    input: _content_pb2.StoredMessage
    blobs: _containers.RepeatedCompositeFieldContainer[_content_pb2.Blob]
    reject_when_busy: bool
    request_id: str
    request_fingerprint: bytes
    traceparent: str
    lane: Lane
    agent_limit: int
    label: str
    claim_for: str
    run_grant: str
    ttl: _duration_pb2.Duration
    budget: _agent_pb2.Budget
    parent: ParentStep
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., session_id: _Optional[str] = ..., new_session_id: _Optional[str] = ..., agent: _Optional[str] = ..., revision: _Optional[str] = ..., user_id: _Optional[str] = ..., input: _Optional[_Union[_content_pb2.StoredMessage, _Mapping]] = ..., blobs: _Optional[_Iterable[_Union[_content_pb2.Blob, _Mapping]]] = ..., reject_when_busy: bool = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., lane: _Optional[_Union[Lane, str]] = ..., agent_limit: _Optional[int] = ..., label: _Optional[str] = ..., claim_for: _Optional[str] = ..., run_grant: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., budget: _Optional[_Union[_agent_pb2.Budget, _Mapping]] = ..., parent: _Optional[_Union[ParentStep, _Mapping]] = ...) -> None: ...

class ParentStep(_message.Message):
    __slots__ = ("run_id", "step", "attempt", "root_run_id", "depth", "depth_limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    attempt: int
    root_run_id: str
    depth: int
    depth_limit: int
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., root_run_id: _Optional[str] = ..., depth: _Optional[int] = ..., depth_limit: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("transition",)
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    transition: Transition
    def __init__(self, transition: _Optional[_Union[Transition, _Mapping]] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("committed",)
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    committed: Committed
    def __init__(self, committed: _Optional[_Union[Committed, _Mapping]] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("new_run",)
    NEW_RUN_FIELD_NUMBER: _ClassVar[int]
    new_run: NewRun
    def __init__(self, new_run: _Optional[_Union[NewRun, _Mapping]] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class ReadJournalRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id", "after_seq", "inline_messages")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    INLINE_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    after_seq: int
    inline_messages: bool
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., after_seq: _Optional[int] = ..., inline_messages: bool = ...) -> None: ...

class ReadJournalResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_run_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_run_pb2.Event, _Mapping]]] = ...) -> None: ...

class WatchJournalRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id", "after_seq", "events_only")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENTS_ONLY_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    after_seq: int
    events_only: bool
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., after_seq: _Optional[int] = ..., events_only: bool = ...) -> None: ...

class WatchJournalResponse(_message.Message):
    __slots__ = ("event", "delta", "beat_last_seq")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    BEAT_LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    event: _run_pb2.Event
    delta: _run_pb2.Delta
    beat_last_seq: int
    def __init__(self, event: _Optional[_Union[_run_pb2.Event, _Mapping]] = ..., delta: _Optional[_Union[_run_pb2.Delta, _Mapping]] = ..., beat_last_seq: _Optional[int] = ...) -> None: ...

class ReadBlobRequest(_message.Message):
    __slots__ = ("workspace_id", "hash", "offset")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    hash: bytes
    offset: int
    def __init__(self, workspace_id: _Optional[str] = ..., hash: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadBlobResponse(_message.Message):
    __slots__ = ("data", "size")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size: int
    def __init__(self, data: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...
