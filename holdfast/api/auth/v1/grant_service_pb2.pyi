import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GrantedConnection(_message.Message):
    __slots__ = ("name", "scopes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    name: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ...) -> None: ...

class IssueRunGrantRequest(_message.Message):
    __slots__ = ("caller_credential", "run_id", "user_id", "agent", "connections")
    CALLER_CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    caller_credential: str
    run_id: str
    user_id: str
    agent: str
    connections: _containers.RepeatedCompositeFieldContainer[GrantedConnection]
    def __init__(self, caller_credential: _Optional[str] = ..., run_id: _Optional[str] = ..., user_id: _Optional[str] = ..., agent: _Optional[str] = ..., connections: _Optional[_Iterable[_Union[GrantedConnection, _Mapping]]] = ...) -> None: ...

class DeriveRunGrantRequest(_message.Message):
    __slots__ = ("workspace_id", "parent_run_id", "parent_run_grant", "run_id", "agent", "connections")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    parent_run_id: str
    parent_run_grant: str
    run_id: str
    agent: str
    connections: _containers.RepeatedCompositeFieldContainer[GrantedConnection]
    def __init__(self, workspace_id: _Optional[str] = ..., parent_run_id: _Optional[str] = ..., parent_run_grant: _Optional[str] = ..., run_id: _Optional[str] = ..., agent: _Optional[str] = ..., connections: _Optional[_Iterable[_Union[GrantedConnection, _Mapping]]] = ...) -> None: ...

class DeriveRunGrantResponse(_message.Message):
    __slots__ = ("run_grant", "expire_time")
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    run_grant: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, run_grant: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class IssueRunGrantResponse(_message.Message):
    __slots__ = ("run_grant", "expire_time")
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    run_grant: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, run_grant: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
