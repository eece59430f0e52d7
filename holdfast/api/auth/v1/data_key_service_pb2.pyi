from holdfast.api.auth.v1 import workspace_service_pb2 as _workspace_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateDataKeyRequest(_message.Message):
    __slots__ = ("workspace_id",)
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    def __init__(self, workspace_id: _Optional[str] = ...) -> None: ...

class CreateDataKeyResponse(_message.Message):
    __slots__ = ("key", "wrapped")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    wrapped: str
    def __init__(self, key: _Optional[bytes] = ..., wrapped: _Optional[str] = ...) -> None: ...

class UnwrapDataKeyRequest(_message.Message):
    __slots__ = ("workspace_id", "wrapped")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    wrapped: str
    def __init__(self, workspace_id: _Optional[str] = ..., wrapped: _Optional[str] = ...) -> None: ...

class UnwrapDataKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: _Optional[bytes] = ...) -> None: ...

class CheckPayloadSealingRequest(_message.Message):
    __slots__ = ("workspace_ids",)
    WORKSPACE_IDS_FIELD_NUMBER: _ClassVar[int]
    workspace_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workspace_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckPayloadSealingResponse(_message.Message):
    __slots__ = ("payload_sealing",)
    PAYLOAD_SEALING_FIELD_NUMBER: _ClassVar[int]
    payload_sealing: _containers.RepeatedScalarFieldContainer[_workspace_service_pb2.PayloadSealing]
    def __init__(self, payload_sealing: _Optional[_Iterable[_Union[_workspace_service_pb2.PayloadSealing, str]]] = ...) -> None: ...
