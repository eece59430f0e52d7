from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

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
