from holdfast.api.auth.v1 import connection_service_pb2 as _connection_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchConnectionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchConnectionsResponse(_message.Message):
    __slots__ = ("workspace_id", "connection")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    connection: _connection_service_pb2.Connection
    def __init__(self, workspace_id: _Optional[str] = ..., connection: _Optional[_Union[_connection_service_pb2.Connection, _Mapping]] = ...) -> None: ...

class SignIn(_message.Message):
    __slots__ = ("workspace_id", "user_id", "connection", "scopes", "rejected_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    user_id: str
    connection: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    rejected_fingerprint: str
    def __init__(self, workspace_id: _Optional[str] = ..., user_id: _Optional[str] = ..., connection: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., rejected_fingerprint: _Optional[str] = ...) -> None: ...

class CheckSignInsRequest(_message.Message):
    __slots__ = ("sign_ins",)
    SIGN_INS_FIELD_NUMBER: _ClassVar[int]
    sign_ins: _containers.RepeatedCompositeFieldContainer[SignIn]
    def __init__(self, sign_ins: _Optional[_Iterable[_Union[SignIn, _Mapping]]] = ...) -> None: ...

class CheckSignInsResponse(_message.Message):
    __slots__ = ("is_usable",)
    IS_USABLE_FIELD_NUMBER: _ClassVar[int]
    is_usable: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, is_usable: _Optional[_Iterable[bool]] = ...) -> None: ...
