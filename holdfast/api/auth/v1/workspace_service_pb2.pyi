import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PayloadSealing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAYLOAD_SEALING_UNSPECIFIED: _ClassVar[PayloadSealing]
    PAYLOAD_SEALING_ON: _ClassVar[PayloadSealing]
    PAYLOAD_SEALING_OFF: _ClassVar[PayloadSealing]
PAYLOAD_SEALING_UNSPECIFIED: PayloadSealing
PAYLOAD_SEALING_ON: PayloadSealing
PAYLOAD_SEALING_OFF: PayloadSealing

class Workspace(_message.Message):
    __slots__ = ("workspace_id", "name", "create_time", "close_time", "delete_time", "payload_sealing")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SEALING_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    name: str
    create_time: _timestamp_pb2.Timestamp
    close_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    payload_sealing: PayloadSealing
    def __init__(self, workspace_id: _Optional[str] = ..., name: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., close_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., payload_sealing: _Optional[_Union[PayloadSealing, str]] = ...) -> None: ...

class GetWorkspaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkspaceResponse(_message.Message):
    __slots__ = ("workspace",)
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    workspace: Workspace
    def __init__(self, workspace: _Optional[_Union[Workspace, _Mapping]] = ...) -> None: ...

class SetPayloadSealingRequest(_message.Message):
    __slots__ = ("payload_sealing",)
    PAYLOAD_SEALING_FIELD_NUMBER: _ClassVar[int]
    payload_sealing: PayloadSealing
    def __init__(self, payload_sealing: _Optional[_Union[PayloadSealing, str]] = ...) -> None: ...

class SetPayloadSealingResponse(_message.Message):
    __slots__ = ("workspace",)
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    workspace: Workspace
    def __init__(self, workspace: _Optional[_Union[Workspace, _Mapping]] = ...) -> None: ...

class CloseWorkspaceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CloseWorkspaceResponse(_message.Message):
    __slots__ = ("workspace",)
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    workspace: Workspace
    def __init__(self, workspace: _Optional[_Union[Workspace, _Mapping]] = ...) -> None: ...

class DeleteWorkspaceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteWorkspaceResponse(_message.Message):
    __slots__ = ("workspace", "deleted_connections")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    DELETED_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    workspace: Workspace
    deleted_connections: int
    def __init__(self, workspace: _Optional[_Union[Workspace, _Mapping]] = ..., deleted_connections: _Optional[int] = ...) -> None: ...
