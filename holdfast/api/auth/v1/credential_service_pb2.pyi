from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ResolveCredentialRequest(_message.Message):
    __slots__ = ("workspace_id", "connection", "run_id", "step")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    connection: str
    run_id: str
    step: int
    def __init__(self, workspace_id: _Optional[str] = ..., connection: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class ResolveCredentialResponse(_message.Message):
    __slots__ = ("connection_id", "provider", "secret", "base_url", "version")
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    connection_id: str
    provider: str
    secret: str
    base_url: str
    version: int
    def __init__(self, connection_id: _Optional[str] = ..., provider: _Optional[str] = ..., secret: _Optional[str] = ..., base_url: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...
