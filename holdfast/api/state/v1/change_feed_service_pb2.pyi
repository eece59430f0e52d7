from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("cursor", "max_entries")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    cursor: bytes
    max_entries: int
    def __init__(self, cursor: _Optional[bytes] = ..., max_entries: _Optional[int] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("entries", "cursor", "is_caught_up")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    IS_CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[FeedEntry]
    cursor: bytes
    is_caught_up: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[FeedEntry, _Mapping]]] = ..., cursor: _Optional[bytes] = ..., is_caught_up: bool = ...) -> None: ...

class FeedEntry(_message.Message):
    __slots__ = ("workspace_id", "event", "is_sealed")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    IS_SEALED_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    event: _run_pb2.Event
    is_sealed: bool
    def __init__(self, workspace_id: _Optional[str] = ..., event: _Optional[_Union[_run_pb2.Event, _Mapping]] = ..., is_sealed: bool = ...) -> None: ...
