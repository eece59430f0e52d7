import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkRequest(_message.Message):
    __slots__ = ("executor_id", "free_slots", "released", "held", "draining")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    free_slots: int
    released: _containers.RepeatedCompositeFieldContainer[HeldRun]
    held: _containers.RepeatedCompositeFieldContainer[HeldRun]
    draining: bool
    def __init__(self, executor_id: _Optional[str] = ..., free_slots: _Optional[int] = ..., released: _Optional[_Iterable[_Union[HeldRun, _Mapping]]] = ..., held: _Optional[_Iterable[_Union[HeldRun, _Mapping]]] = ..., draining: bool = ...) -> None: ...

class HeldRun(_message.Message):
    __slots__ = ("run_id", "epoch")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("claims", "nudged_run_ids", "lost", "calls_queued", "cancelled_call_leases", "heartbeat_interval", "lease_duration")
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    NUDGED_RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    CALLS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_CALL_LEASES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    claims: _containers.RepeatedCompositeFieldContainer[Claim]
    nudged_run_ids: _containers.RepeatedScalarFieldContainer[str]
    lost: _containers.RepeatedCompositeFieldContainer[HeldRun]
    calls_queued: _containers.RepeatedCompositeFieldContainer[CallsQueued]
    cancelled_call_leases: _containers.RepeatedScalarFieldContainer[str]
    heartbeat_interval: _duration_pb2.Duration
    lease_duration: _duration_pb2.Duration
    def __init__(self, claims: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ..., nudged_run_ids: _Optional[_Iterable[str]] = ..., lost: _Optional[_Iterable[_Union[HeldRun, _Mapping]]] = ..., calls_queued: _Optional[_Iterable[_Union[CallsQueued, _Mapping]]] = ..., cancelled_call_leases: _Optional[_Iterable[str]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("workspace_id", "run", "epoch", "events")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run: _run_pb2.Run
    epoch: int
    events: _containers.RepeatedCompositeFieldContainer[_run_pb2.Event]
    def __init__(self, workspace_id: _Optional[str] = ..., run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ..., epoch: _Optional[int] = ..., events: _Optional[_Iterable[_Union[_run_pb2.Event, _Mapping]]] = ...) -> None: ...

class CallsQueued(_message.Message):
    __slots__ = ("workspace_id", "tool")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    tool: str
    def __init__(self, workspace_id: _Optional[str] = ..., tool: _Optional[str] = ...) -> None: ...
